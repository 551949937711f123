"""Evaluation of one node whose inputs are constants, and a bound of its result before that."""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.ops import is_standard
from .._core.schemas import schema_of

Array = NDArray[Any]
Inputs = list[Array | None]
Size = Callable[[ir.Node, Inputs], int]
"""Elements of the largest output, from the inputs alone: nothing is allocated for it."""

MATMUL_LIMIT = 10**8
"""Multiply-accumulates of the largest product that is computed here. Chosen by hand."""


class NotFoldable(Exception):
    """A node is left as it is; the text is the reason."""


def foldable(node: ir.Node) -> bool:
    """True if a node's op is deterministic and has a bound of its result."""
    return is_standard(node, *_SIZES)


def result_elements(node: ir.Node, inputs: Inputs) -> int:
    """Elements of the largest output of a foldable node.

    Errors: NotFoldable where its inputs do not fit its op.
    """
    try:
        return _SIZES[node.op_type](node, inputs)
    except (ValueError, IndexError, OverflowError) as error:
        raise NotFoldable(f"its inputs do not fit: {error}") from None


def evaluate(node: ir.Node, inputs: Inputs, opset: int) -> list[Array]:
    """The outputs of a node of the given inputs, by onnx's reference implementation.

    Errors: NotFoldable where the implementation gives up or returns something that is not an array.
    """
    # here, not above: its import takes longer than most graphs, which fold nothing
    from onnx.reference import ReferenceEvaluator

    names = []
    feeds = {}
    for index, array in enumerate(inputs):
        if array is None:
            names.append("")
            continue
        name = f"x{index}"
        names.append(name)
        feeds[name] = array
    proto = ir.to_proto(node)
    # names of the graph may be empty or appear twice
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"y{index}" for index in range(len(node.outputs)))
    try:
        evaluator = ReferenceEvaluator(proto, opsets={"": opset})
        with np.errstate(all="ignore"):
            results = evaluator.run(None, feeds)
    # the reference implementation raises anything; the reason goes into the report
    except Exception as error:
        reason = f"evaluation failed: {error!r}"
        raise NotFoldable(reason[:200]) from None
    outputs = []
    types = _types(node, inputs, opset)
    for result, dtype in zip(results, types, strict=True):
        if not isinstance(result, (np.ndarray, np.generic)):
            raise NotFoldable("its result is not a tensor")
        array = np.asarray(result)
        # some reference implementations widen
        outputs.append(array if dtype is None else array.astype(dtype, copy=False))
    return outputs


def _types(node: ir.Node, inputs: Inputs, opset: int) -> list[np.dtype[Any] | None]:
    """Type of each output: the one that the graph declares, or else that of an input, by schema."""
    schema = schema_of(node.op_type, opset)
    known: dict[str, np.dtype[Any]] = {}
    if schema is not None:
        for formal, array in zip(schema.inputs, inputs, strict=False):
            if array is not None:
                known[formal.type_str] = array.dtype
    found: list[np.dtype[Any] | None] = []
    for index, value in enumerate(node.outputs):
        if value.dtype is not None:
            found.append(value.dtype.numpy())
        elif schema is not None and index < len(schema.outputs):
            found.append(known.get(schema.outputs[index].type_str))
        else:
            found.append(None)
    return found


# bounds of results


def _broadcast(node: ir.Node, inputs: Inputs) -> int:
    shapes = [array.shape for array in inputs if array is not None]
    common = np.broadcast_shapes(*shapes)
    return int(prod(common))


def _first(node: ir.Node, inputs: Inputs) -> int:
    return _elements(inputs[0])


def _elements(array: Array | None) -> int:
    if array is None:
        return 0
    return int(array.size)


def _small(node: ir.Node, inputs: Inputs) -> int:
    """The rank of the first input, which the outputs of Shape and Size do not exceed."""
    array = inputs[0]
    if array is None:
        return 1
    return max(array.ndim, 1)


def _total(node: ir.Node, inputs: Inputs) -> int:
    total = 0
    for array in inputs:
        total += _elements(array)
    return total


def _numbers(array: Array | None) -> list[int]:
    if array is None:
        return []
    return [int(element) for element in array.reshape(-1)]


def _gather(node: ir.Node, inputs: Inputs) -> int:
    data = inputs[0]
    indices = inputs[1]
    assert data is not None
    assert indices is not None
    axis = node.attributes.get_int("axis", 0)
    length = max(data.shape[axis], 1)
    elements = indices.size * data.size // length
    return int(elements)


def _second(node: ir.Node, inputs: Inputs) -> int:
    return _elements(inputs[1])


def _filled(node: ir.Node, inputs: Inputs) -> int:
    return prod(_numbers(inputs[0]))


def _expanded(node: ir.Node, inputs: Inputs) -> int:
    data = inputs[0]
    assert data is not None
    target = tuple(_numbers(inputs[1]))
    common = np.broadcast_shapes(data.shape, target)
    return prod(common)


def _tiled(node: ir.Node, inputs: Inputs) -> int:
    repeats = _numbers(inputs[1])
    return _first(node, inputs) * prod(repeats)


def _ranged(node: ir.Node, inputs: Inputs) -> int:
    numbers = []
    for array in inputs:
        if array is not None:
            flat = array.reshape(-1)
            numbers.append(float(flat[0]))
    start, limit, delta = numbers
    if not delta:
        return 0
    exact = (limit - start) / delta
    steps = int(np.ceil(exact))
    return max(steps, 0)


def _padded(node: ir.Node, inputs: Inputs) -> int:
    data = inputs[0]
    assert data is not None
    pads = list(node.attributes.get_ints("pads", [])) or _numbers(inputs[1])
    rank = data.ndim
    if len(pads) != 2 * rank:
        # for some axes only: a bound that holds whichever they are
        size = int(data.size)
        for pad in pads:
            size *= 1 + abs(pad)
        return size
    befores = pads[:rank]
    afters = pads[rank:]
    axes = zip(data.shape, befores, afters, strict=True)
    size = 1
    for dim, before, after in axes:
        size *= dim + before + after
    return size


def _one_hot(node: ir.Node, inputs: Inputs) -> int:
    depth = _numbers(inputs[1])[0]
    return _first(node, inputs) * max(depth, 1)


def _nonzero(node: ir.Node, inputs: Inputs) -> int:
    return _first(node, inputs) * _small(node, inputs)


def _product(node: ir.Node, inputs: Inputs) -> int:
    a = inputs[0]
    b = inputs[1]
    assert a is not None
    assert b is not None
    if node.op_type == "Gemm":
        if node.attributes.get_int("transA", 0):
            a = a.T
        if node.attributes.get_int("transB", 0):
            b = b.T
    # a vector is multiplied as a matrix of one row
    if a.ndim == 1:
        a = a[None, :]
    *outer, rows, summed = a.shape
    batch: tuple[int, ...] = tuple(outer)
    columns = 1
    if b.ndim > 1:
        batch = np.broadcast_shapes(batch, b.shape[:-2])
        columns = b.shape[-1]
    matrices = prod(batch)
    size = int(matrices * rows * columns)
    if size * summed > MATMUL_LIMIT:
        raise NotFoldable("its product takes too long to compute here")
    return size


_ELEMENTWISE = (
    "Add",
    "Sub",
    "Mul",
    "Div",
    "Mod",
    "Pow",
    "Min",
    "Max",
    "Sum",
    "Mean",
    "And",
    "Or",
    "Xor",
    "Not",
    "Equal",
    "Greater",
    "Less",
    "GreaterOrEqual",
    "LessOrEqual",
    "Where",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "BitwiseNot",
    "PRelu",
)
_UNARY = (
    "Abs",
    "Neg",
    "Sqrt",
    "Exp",
    "Log",
    "Floor",
    "Ceil",
    "Round",
    "Sign",
    "Reciprocal",
    "Relu",
    "Sigmoid",
    "Tanh",
    "Erf",
    "Clip",
    "Cast",
    "CastLike",
    "Identity",
    "Sin",
    "Cos",
    "Tan",
    "Asin",
    "Acos",
    "Atan",
    "Sinh",
    "Cosh",
    "Asinh",
    "Acosh",
    "Atanh",
    "IsNaN",
    "IsInf",
    "LeakyRelu",
    "Elu",
    "Selu",
    "Softplus",
    "Softsign",
    "HardSigmoid",
    "HardSwish",
    "Gelu",
    "Softmax",
    "LogSoftmax",
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Flatten",
    "Transpose",
    "Split",
    "Slice",
    "CumSum",
    "Trilu",
    "ScatterND",
    "ScatterElements",
    "Compress",
    "DepthToSpace",
    "SpaceToDepth",
    "ReduceSum",
    "ReduceMean",
    "ReduceProd",
    "ReduceMax",
    "ReduceMin",
    "ReduceL1",
    "ReduceL2",
    "ReduceSumSquare",
    "ReduceLogSum",
    "ReduceLogSumExp",
    "ArgMax",
    "ArgMin",
)
_SIZES: dict[str, Size] = {
    **dict.fromkeys(_ELEMENTWISE, _broadcast),
    **dict.fromkeys(_UNARY, _first),
    "Shape": _small,
    "Size": _small,
    "Concat": _total,
    "Gather": _gather,
    "GatherElements": _second,
    "ConstantOfShape": _filled,
    "Expand": _expanded,
    "Tile": _tiled,
    "Range": _ranged,
    "Pad": _padded,
    "OneHot": _one_hot,
    "NonZero": _nonzero,
    "MatMul": _product,
    "Gemm": _product,
}
"""Deterministic ops, each with a bound of its result.

Quantization ops are missing on purpose: folding undoes them.
"""
