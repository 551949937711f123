"""Patterns that tempt rewrites: those that hold, and near misses of them."""

from __future__ import annotations

import numpy as np
from onnx import helper

from ..builder import ANY, FLOATS, NUMBERS, Builder, Rejected, Value
from .layers import conv, conv_transpose, image, vector
from .movement import axis_of
from .registry import recipe


@recipe(5)
def neutral(b: Builder) -> None:
    """An operand that changes nothing, or nearly so: of another shape, or only in part."""
    x = b.pick(NUMBERS)
    op, element = b.one_of(
        [
            ("Add", 0),
            ("Add", 0),
            ("Sub", 0),
            ("Mul", 1),
            ("Mul", 1),
            ("Div", 1),
            ("Pow", 1),
        ]
    )
    kind = x.array.dtype
    shape = b.one_of(
        [(), (1,), x.shape, (1,) * x.rank, (1,) * (x.rank + 1), (2, *x.shape)]
    )
    array = np.full(shape, element, kind)
    if b.chance(0.3) and array.size:
        # one element that does something
        array.flat[b.number(0, array.size - 1)] = 2
    if kind.kind == "f" and op in ("Add", "Sub") and b.chance(0.3):
        array = -array
    y = b.constant(array)
    is_first = op in ("Add", "Mul") and b.chance(0.3)
    # 1 / x and 0 - x are no identities
    is_first = is_first or (x.dtype in FLOATS and op == "Sub" and b.chance(0.2))
    b.node(op, [y, x] if is_first else [x, y])


@recipe(1.2)
def logical_neutral(b: Builder) -> None:
    x = b.pick(("bool",))
    element = b.constant(np.full(b.one_of([(), x.shape]), b.chance(0.5)))
    b.node(b.one_of(["And", "Or", "Xor", "Equal"]), [x, element])


@recipe(1.2)
def annihilated(b: Builder) -> None:
    """Constants that swallow their partner, but for NaN and infinity."""
    x = b.pick()
    number = b.one_of([0.0, -0.0, np.inf, -np.inf, np.nan])
    constant = b.constant(np.asarray(number, x.array.dtype))
    with b.nonfinite():
        b.node(b.one_of(["Mul", "Add", "Max", "Min", "Sub"]), [x, constant])


@recipe(1)
def with_nonfinite(b: Builder) -> None:
    """A vector with one NaN or infinity, which must reach the output where it did."""
    x = b.pick(rank=(1, 2, 3), test=lambda v: v.shape[-1] > 1)
    array = b.array(x.dtype, x.shape[-1:])
    array[0] = b.one_of([np.inf, -np.inf, np.nan])
    with b.nonfinite():
        y = b.node(b.one_of(["Add", "Mul"]), [x, b.constant(array)])
        b.node(b.one_of(["Relu", "Identity", "Neg", "Abs", "IsNaN", "Clip"]), [y])


@recipe(2.5)
def transposed_twice(b: Builder) -> None:
    x = b.pick(ANY, rank=(2, 3, 4))
    order = b.random.permutation(x.rank)
    back = np.argsort(order) if b.chance(0.5) else b.random.permutation(x.rank)
    y = b.node("Transpose", [x], perm=order.tolist())
    if b.chance(0.4) and y.dtype in FLOATS:
        y = b.node(b.one_of(["Relu", "Neg", "Sigmoid"]), [y])
    b.node("Transpose", [y], perm=back.tolist())


@recipe(2.5)
def reshaped_twice(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3, 4), test=lambda v: v.array.size > 0)
    flat = b.one_of([(-1,), (x.shape[0], -1), (1, -1), (-1, x.shape[-1])])
    y = b.node("Reshape", [x, b.ints(*flat)])
    back = list(x.shape)
    if b.chance(0.4):
        back[b.number(0, len(back) - 1)] = -1
    if b.chance(0.3) and y.shape[0] == x.shape[0]:
        back[0] = 0
    b.node("Reshape", [y, b.ints(*back)])


@recipe(1.5)
def same_shape(b: Builder) -> None:
    """Views that change nothing, as far as a run can tell."""
    x = b.pick(ANY, rank=(1, 2, 3, 4))
    kind = b.random.random()
    if kind < 0.3:
        b.node(
            "Reshape", [x, b.ints(*x.shape)], **{"allowzero": 1} if 0 in x.shape else {}
        )
    elif kind < 0.5:
        b.node("Expand", [x, b.ints(*[1] * x.rank)])
    elif kind < 0.65:
        b.node("Tile", [x, b.ints(*[1] * x.rank)])
    elif kind < 0.8:
        b.node("Concat", [x], axis=axis_of(b, x))
    else:
        ends = b.ints(*[b.one_of([2**40, length]) for length in x.shape])
        b.node("Slice", [x, b.ints(*[0] * x.rank), ends])


@recipe(1.5)
def squeezed_and_back(b: Builder) -> None:
    x = b.pick(ANY, rank=(1, 2, 3))
    axis = b.number(0, x.rank)
    other = b.number(0, x.rank)
    y = b.node("Unsqueeze", [x, b.ints(axis)])
    if b.chance(0.5):
        b.node("Squeeze", [y, b.ints(axis)])
    else:
        b.node("Unsqueeze", [y, b.ints(other)])


@recipe(1.5)
def twice(b: Builder) -> None:
    """f(f(x)): the same as x, as f(x), or neither."""
    op, dtypes = b.one_of(
        [
            ("Neg", NUMBERS),
            ("Not", ("bool",)),
            ("Relu", FLOATS),
            ("Abs", NUMBERS),
            ("Sigmoid", FLOATS),
            ("BitwiseNot", ("int64", "int32", "uint8")),
            ("Identity", ANY),
        ]
    )
    b.node(op, [b.node(op, [b.pick(dtypes)])])


LIMITING = ("Relu", "Abs", "Clip", "Sign", "LeakyRelu")
LIMITED = (
    "Abs",
    "Sigmoid",
    "Softmax",
    "Exp",
    "Softplus",
    "HardSigmoid",
    "Relu",
    "Erf",
    "Tanh",
    "Neg",
    "Elu",
    "LeakyRelu",
    "Softsign",
    "Identity",
    "Sin",
    "Add",
    "Mul",
)


@recipe(3)
def limited_already(b: Builder) -> None:
    """An op that limits what another one has limited, or not."""
    x = b.pick()
    inner = b.one_of(LIMITED)
    y = b.node(inner, [x, x] if inner in ("Add", "Mul") else [x])
    outer = b.one_of(LIMITING)
    if outer == "Clip":
        y = b.node(
            outer, [y, b.constant(np.asarray(b.one_of([-1, 0, 1]), x.array.dtype))]
        )
        return
    if outer == "Sign":
        b.distinct(y, np.zeros((), x.array.dtype))
    b.node(outer, [y])


@recipe(1)
def clipped_twice(b: Builder) -> None:
    x = b.pick(NUMBERS)
    for _ in range(2):
        bounds = sorted(b.random.integers(0, 5, 2).tolist())
        low, high = (b.constant(np.asarray(each, x.array.dtype)) for each in bounds)
        inputs = b.one_of([[x, low, high], [x, low], [x, None, high]])
        x = b.node("Clip", inputs)
    if b.chance(0.4) and x.dtype in FLOATS:
        b.node("Relu", [x])


@recipe(1.5)
def cast_and_back(b: Builder) -> None:
    x = b.pick(("float32", "int64", "int32", "bool", "float16"))
    wider = {
        "float32": ["float64", "float16"],
        "int64": ["int32", "float32", "float64"],
        "int32": ["int64", "float32", "uint8"],
        "bool": ["float32", "int64", "uint8"],
        "float16": ["float32", "float64"],
    }
    through = np.dtype(b.one_of(wider[x.dtype]))
    if through.kind == "u" and x.array.size and x.array.min() < 0:
        raise Rejected("wraps around")
    for kind in (through, x.array.dtype):
        x = b.node("Cast", [x], to=helper.np_dtype_to_tensor_dtype(kind))


@recipe(3)
def affine_after_conv(b: Builder) -> None:
    """A scale or shift that folds into a convolution, or has one element too many for it."""
    y = conv(b) if b.chance(0.8) else conv_transpose(b)
    channels = y.shape[1]
    ones = [1] * (y.rank - 2)
    shape = b.one_of([(), (1,), (channels, *ones), (1, channels, *ones), y.shape[1:]])
    array = b.array(y.dtype, shape)
    op = b.one_of(["Mul", "Add", "Sub", "Div"])
    if op == "Div":
        array = (np.abs(array) + 0.5).astype(y.array.dtype)
    constant = b.constant(array)
    is_first = op in ("Mul", "Add", "Sub") and b.chance(0.3)
    b.node(op, [constant, y] if is_first else [y, constant])


@recipe(1.5)
def affine_after_linear(b: Builder) -> None:
    x = b.pick(rank=(2, 3), test=lambda v: v.array.size > 0)
    w = b.constant(b.array(x.dtype, (x.shape[-1], 3)))
    if x.rank == 2 and b.chance(0.5):
        y = b.node("Gemm", [x, w, vector(b, x, 3)])
    else:
        y = b.node("MatMul", [x, w])
    for _ in range(b.number(1, 2)):
        shape = b.one_of([(), (1,), (3,), (1, 3), y.shape])
        b_node = b.constant(b.array(x.dtype, shape))
        y = b.node(b.one_of(["Add", "Mul", "Sub"]), [y, b_node])


@recipe(2)
def padded_conv(b: Builder) -> None:
    """Pad before a convolution or pool: of zeros or not, of spatial axes or not."""
    x = image(b)
    spatial = x.rank - 2
    pads = [0, 0, *[b.number(0, 2) for _ in range(spatial)]]
    pads += [0, 0, *[b.number(0, 2) for _ in range(spatial)]]
    if b.chance(0.15):
        pads[1] = 1
    inputs = [x, b.ints(*pads)]
    if b.chance(0.5):
        inputs.append(b.constant(np.asarray(b.one_of([0, 0, -0.0, 1]), np.float32)))
    y = b.node("Pad", inputs, **({"mode": "edge"} if b.chance(0.15) else {}))
    op = b.one_of(["Conv", "Conv", "MaxPool", "AveragePool"])
    if op == "Conv":
        w = b.constant(b.array("float32", (2, y.shape[1], *[2] * spatial)))
        extra = {"auto_pad": "SAME_UPPER"} if b.chance(0.15) else {}
        b.node("Conv", [y, w], **extra)
    else:
        b.node(op, [y], kernel_shape=[2] * spatial)


@recipe(2.5)
def repeated(b: Builder) -> None:
    """A node once more, with the same inputs; and one that uses both."""
    nodes = [n for n in b.scope.nodes if n.domain == "" and n.op_type != "Constant"]
    nodes = [n for n in nodes if not any(a.HasField("g") for a in n.attribute)]
    nodes = [n for n in nodes if all(name in b.table for name in n.input if name)]
    if not nodes:
        raise Rejected("nothing to repeat")
    node = type(nodes[0])()
    node.CopyFrom(b.one_of(nodes))
    if not all(name in b.table for name in node.output):
        raise Rejected("of a sequence")
    original = b.table[node.output[0]]
    node.output[:] = [b.name("h") for _ in node.output]
    if node.attribute and b.chance(0.15):
        # a near duplicate
        del node.attribute[0]
    again = b.add([node])[0]
    if again.shape == original.shape and again.dtype in NUMBERS:
        b.node(b.one_of(["Add", "Sub", "Max"]), [original, again])


@recipe(1)
def equal_bytes(b: Builder) -> None:
    """Constants alike in their bytes, or in their values, and not in both type and shape."""
    zeros: list[Value] = [
        b.constant(np.zeros((2, 2), np.float32)),
        b.constant(-np.zeros((2, 2), np.float32)),
        b.constant(np.zeros((4,), np.float32)),
        b.constant(np.zeros((2,), np.float64)),
        b.constant(np.zeros((2, 2), np.int32)),
    ]
    first = b.one_of(zeros[:2])
    second = b.one_of(zeros[:2])
    b.node("Add", [b.pick(("float32",), rank=(0,)), first])
    b.node("Concat", [first, second], axis=0)
    b.node("Neg", [b.one_of(zeros[2:])])


@recipe(1)
def known_condition(b: Builder) -> None:
    """Where with a constant condition, or two equal branches."""
    x = b.pick(ANY)
    if b.chance(0.5):
        condition = b.constant(np.full(b.one_of([(), x.shape]), b.chance(0.5)))
        y = b.constant(b.array(x.dtype, x.shape))
        b.node("Where", [condition, x, y])
    else:
        b.node("Where", [b.pick(("bool",), rank=(0, 1)), x, x])


@recipe(1)
def reduced_to_nothing(b: Builder) -> None:
    """A reduction over no axes, or over axes of length one."""
    x = b.pick(rank=(1, 2, 3), test=lambda v: v.array.size > 0)
    op = b.one_of(["ReduceSum", "ReduceMean", "ReduceMax"])
    ones = [axis for axis, length in enumerate(x.shape) if length == 1]
    as_input = op == "ReduceSum" or b.opset >= 18
    if as_input and b.chance(0.5):
        b.node(op, [x, b.ints()], noop_with_empty_axes=b.number(0, 1))
    elif ones and as_input:
        b.node(op, [x, b.ints(*ones)], keepdims=b.number(0, 1))
    elif ones:
        b.node(op, [x], axes=ones, keepdims=b.number(0, 1))
    else:
        raise Rejected("no axis of length one")


@recipe(1.2)
def constant_chain(b: Builder) -> None:
    """Constants alone, which fold, before one that does not."""
    x = b.pick(rank=(1, 2, 3))
    first = b.constant(b.array(x.dtype, x.shape[-1:]))
    second = b.constant(b.array(x.dtype, ()))
    folded = b.node(b.one_of(["Mul", "Add"]), [first, second])
    b.node(b.one_of(["Mul", "Add"]), [x, b.node(b.one_of(["Tanh", "Neg"]), [folded])])
