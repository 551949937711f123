"""Ops on single elements, with broadcasting."""

from __future__ import annotations

import numpy as np

from ..builder import ANY, FLOATS, INTEGERS, NUMBERS, Builder, Rejected, Value
from .registry import recipe

SMOOTH = [
    "Abs",
    "Neg",
    "Exp",
    "Sigmoid",
    "Tanh",
    "Relu",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Celu",
    "HardSigmoid",
    "HardSwish",
    "Softplus",
    "Softsign",
    "Mish",
    "Gelu",
    "Erf",
    "Sin",
    "Cos",
    "Atan",
    "Sinh",
    "Asinh",
    "Identity",
]
JUMPING = [
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "ThresholdedRelu",
    "Shrink",
    "IsNaN",
    "IsInf",
]
SLOPED = {"LeakyRelu": "alpha", "Elu": "alpha", "Celu": "alpha", "HardSigmoid": "alpha"}


@recipe(6)
def smooth(b: Builder) -> None:
    op = b.one_of(SMOOTH)
    attributes = {}
    if op in SLOPED and b.chance(0.5):
        attributes[SLOPED[op]] = round(float(b.random.uniform(0.1, 1)), 2)
    if op == "Gelu" and b.chance(0.5):
        attributes["approximate"] = "tanh"
    b.node(op, [b.pick()], **attributes)


@recipe(1.5)
def jumping(b: Builder) -> None:
    x = b.pick()
    # the halves: there Round jumps, the wholes are where Floor and Ceil do
    nearest = np.rint(x.array.astype(np.float64) * 2) / 2
    b.distinct(x, nearest.astype(x.array.dtype))
    b.node(b.one_of(JUMPING), [x])


@recipe(1.5)
def of_positive(b: Builder) -> None:
    """Ops that are defined, or well conditioned, only away from zero."""
    x = b.node("Abs", [b.pick()])
    one = b.constant(np.asarray(0.5, x.array.dtype))
    safe = b.node("Add", [x, one])
    b.node(b.one_of(["Log", "Sqrt", "Reciprocal"]), [safe])


def partner(b: Builder, x: Value) -> Value:
    """A second operand: of the same shape, or one that broadcasts with it."""
    same = [
        v
        for v in b.visible()
        if v.dtype == x.dtype and v.finite and _broadcasts(v.shape, x.shape)
    ]
    if same and b.chance(0.6):
        return b.one_of(same)
    shape = [length if b.chance(0.7) else 1 for length in x.shape]
    shape = shape[b.number(0, len(shape)) :] if b.chance(0.4) else shape
    return b.leaf(b.array(x.dtype, shape))


def _broadcasts(first: tuple[int, ...], second: tuple[int, ...]) -> bool:
    pairs = zip(first[::-1], second[::-1], strict=False)
    return all(a == b or 1 in (a, b) for a, b in pairs)


def _either_way(b: Builder, x: Value, y: Value) -> list[Value]:
    return [x, y] if b.chance(0.6) else [y, x]


@recipe(8)
def arithmetic(b: Builder) -> None:
    x = b.pick(NUMBERS)
    y = partner(b, x)
    b.node(b.one_of(["Add", "Add", "Sub", "Mul", "Mul"]), _either_way(b, x, y))


@recipe(2)
def quotient(b: Builder) -> None:
    x = b.pick(NUMBERS)
    if x.dtype in FLOATS:
        y = partner(b, x)
        # near zero, the quotient magnifies noise
        if np.any(np.abs(y.array) < 0.05):
            y = b.node("Exp", [y])
    else:
        y = b.constant(np.maximum(np.abs(b.array(x.dtype, x.shape)), 1))
    op = "Div"
    if x.dtype in INTEGERS and b.chance(0.5):
        op = "Mod"
    b.node(op, [x, y])


@recipe(1)
def power(b: Builder) -> None:
    x = b.pick(FLOATS)
    exponent = b.one_of([1.0, 2.0, 3.0, 0.0, 2])
    kind = np.int64 if isinstance(exponent, int) else x.array.dtype
    b.node("Pow", [x, b.constant(np.asarray(exponent, kind))])


@recipe(2)
def extremes(b: Builder) -> None:
    x = b.pick(NUMBERS)
    others = [partner(b, x) for _ in range(b.number(0, 2))]
    op = b.one_of(["Max", "Min", "Sum", "Mean"])
    b.node(op, [x, *others])


@recipe(1.5)
def clip(b: Builder) -> None:
    x = b.pick(NUMBERS)
    low: Value | None = b.constant(np.asarray(0, x.array.dtype))
    high: Value | None = b.constant(np.asarray(b.one_of([1, 3, 6]), x.array.dtype))
    left_out = b.random.random()
    if left_out < 0.2:
        b.node("Clip", [x, low])
    elif left_out < 0.4:
        b.node("Clip", [x, None, high])
    elif left_out < 0.5:
        b.node("Clip", [x])
    else:
        b.node("Clip", [x, low, high])


@recipe(0.7)
def prelu(b: Builder) -> None:
    x = b.pick(rank=(2, 3, 4))
    slope = b.constant(b.array(x.dtype, x.shape[1:2] + (1,) * (x.rank - 2)))
    b.node("PRelu", [x, slope])


@recipe(2)
def comparison(b: Builder) -> None:
    x = b.pick(NUMBERS)
    y = partner(b, x)
    ops = ["Equal", "Greater", "Less", "GreaterOrEqual", "LessOrEqual"]
    _apart_after_broadcasting(b, x, y)
    b.node(b.one_of(ops), [x, y])


def _apart_after_broadcasting(b: Builder, x: Value, y: Value) -> None:
    if x.exact and y.exact:
        return
    first, second = np.broadcast_arrays(x.array, y.array)
    b.distinct(Value(x.name, first, exact=False), second)


@recipe(1.5)
def logic(b: Builder) -> None:
    x = b.pick(("bool",))
    op = b.one_of(["And", "Or", "Xor", "Not"])
    b.node(op, [x] if op == "Not" else [x, partner(b, x)])


@recipe(1.5)
def where(b: Builder) -> None:
    x = b.pick(ANY)
    y = partner(b, x)
    condition = b.pick(("bool",), test=lambda v: _broadcasts(v.shape, x.shape))
    b.node("Where", [condition, x, y])


@recipe(0.7)
def bits(b: Builder) -> None:
    x = b.pick(INTEGERS)
    op = b.one_of(["BitwiseAnd", "BitwiseOr", "BitwiseXor", "BitwiseNot", "BitShift"])
    if op == "BitwiseNot":
        b.node(op, [x])
    elif op == "BitShift":
        if x.dtype != "uint8":
            raise Rejected("shifts are of unsigned numbers")
        two = b.constant(np.asarray(2, x.array.dtype))
        b.node(op, [x, two], direction=b.one_of(["LEFT", "RIGHT"]))
    else:
        b.node(op, [x, partner(b, x)])


@recipe(2.5)
def cast(b: Builder) -> None:
    from onnx import helper

    x = b.pick(ANY)
    target = b.one_of(ANY)
    kind = np.dtype(target)
    if x.array.dtype.kind == "f" and kind.kind in "iub":
        # towards zero, which jumps at the wholes; and to uint8 only what it holds
        b.distinct(x, np.rint(x.array).astype(x.array.dtype))
        if kind.kind == "u" and np.any((x.array < 0) | (x.array > 255)):
            raise Rejected("undefined: outside of uint8")
    if x.array.dtype.kind == "i" and kind.kind == "u" and np.any(x.array < 0):
        raise Rejected("wraps around")
    if b.chance(0.15):
        like = b.pick((target,))
        b.node("CastLike", [x, like])
        return
    y = b.node("Cast", [x], to=helper.np_dtype_to_tensor_dtype(kind))
    # back again: the same only where nothing was lost
    if b.chance(0.4):
        b.node("Cast", [y], to=helper.np_dtype_to_tensor_dtype(x.array.dtype))


@recipe(0.6)
def dropout(b: Builder) -> None:
    x = b.pick()
    ratio = b.constant(np.float32(0.5)) if b.chance(0.5) else None
    inputs = [x] if ratio is None else [x, ratio]
    if ratio is not None and b.chance(0.4):
        inputs.append(b.constant(np.asarray(False)))
    b.nodes("Dropout", inputs, b.number(1, 2))
