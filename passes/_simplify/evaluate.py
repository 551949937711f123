"""Evaluation of one node whose inputs are constants: which ops, how large the result, what it
is.
"""

from __future__ import annotations

from collections.abc import Callable
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

Array = NDArray[Any]
Inputs = list[Array | None]
Size = Callable[[ir.Node, Inputs], int]
"""Elements of the largest output, from the inputs alone: nothing is allocated for it."""

MATMUL_LIMIT = 10**8
"""Multiply-accumulates of the largest product that is computed here."""


class NotFoldable(Exception):
    """Why a node is left as it is."""


def foldable(node: ir.Node) -> bool:
    """Whether a node's op is deterministic and has a bound of its result."""
    return node.domain == "" and node.op_type in _SIZES


def result_elements(node: ir.Node, inputs: Inputs) -> int:
    """Elements of the largest output of a foldable node. Errors: NotFoldable where its inputs do
    not fit its op.
    """
    try:
        return _SIZES[node.op_type](node, inputs)
    except (ValueError, IndexError, OverflowError) as error:
        raise NotFoldable(f"its inputs do not fit: {error}") from None


def evaluate(node: ir.Node, inputs: Inputs, opset: int) -> list[Array]:
    """The outputs of a node of the given inputs, by onnx's reference implementation.

    Errors: NotFoldable where the implementation gives up or returns something that is not an array.
    """
    names = ["" if array is None else f"x{i}" for i, array in enumerate(inputs)]
    proto = ir.to_proto(node)
    del proto.input[:], proto.output[:]
    proto.input.extend(names)
    proto.output.extend(f"y{i}" for i in range(len(node.outputs)))
    feeds = {
        name: array
        for name, array in zip(names, inputs, strict=True)
        if array is not None
    }
    try:
        with np.errstate(all="ignore"):
            results = ReferenceEvaluator(proto, opsets={"": opset}).run(None, feeds)
    except Exception as error:  # the reference implementation raises anything; the reason goes into the report
        raise NotFoldable(f"evaluation failed: {error!r}"[:200]) from None
    if not all(isinstance(result, (np.ndarray, np.generic)) for result in results):
        raise NotFoldable("its result is not a tensor")
    return [
        _typed(np.asarray(result), value)
        for result, value in zip(results, node.outputs, strict=True)
    ]


def _typed(array: Array, value: ir.Value) -> Array:
    """The type that the graph declares: some reference implementations widen."""
    return (
        array if value.dtype is None else array.astype(value.dtype.numpy(), copy=False)
    )


def _broadcast(node: ir.Node, inputs: Inputs) -> int:
    return int(prod(np.broadcast_shapes(*(a.shape for a in inputs if a is not None))))


def _first(node: ir.Node, inputs: Inputs) -> int:
    return 0 if inputs[0] is None else int(inputs[0].size)


def _small(node: ir.Node, inputs: Inputs) -> int:
    return 1 if inputs[0] is None else max(inputs[0].ndim, 1)


def _total(node: ir.Node, inputs: Inputs) -> int:
    return sum(int(a.size) for a in inputs if a is not None)


def _numbers(array: Array | None) -> list[int]:
    return [] if array is None else [int(v) for v in array.reshape(-1)]


def _gather(node: ir.Node, inputs: Inputs) -> int:
    data, indices = inputs[0], inputs[1]
    assert data is not None
    assert indices is not None
    return int(
        indices.size
        * data.size
        // max(data.shape[node.attributes.get_int("axis", 0)], 1)
    )


def _second(node: ir.Node, inputs: Inputs) -> int:
    return 0 if inputs[1] is None else int(inputs[1].size)


def _filled(node: ir.Node, inputs: Inputs) -> int:
    return prod(_numbers(inputs[0]))


def _expanded(node: ir.Node, inputs: Inputs) -> int:
    assert inputs[0] is not None
    return prod(np.broadcast_shapes(inputs[0].shape, tuple(_numbers(inputs[1]))))


def _tiled(node: ir.Node, inputs: Inputs) -> int:
    return _first(node, inputs) * prod(_numbers(inputs[1]))


def _ranged(node: ir.Node, inputs: Inputs) -> int:
    start, limit, delta = (float(a.reshape(-1)[0]) for a in inputs if a is not None)
    return max(int(np.ceil((limit - start) / delta)), 0) if delta else 0


def _padded(node: ir.Node, inputs: Inputs) -> int:
    pads = list(node.attributes.get_ints("pads", [])) or _numbers(inputs[1])
    assert inputs[0] is not None
    rank = inputs[0].ndim
    if len(pads) != 2 * rank:  # given for some axes only
        return _first(node, inputs) * prod(1 + abs(p) for p in pads)
    return int(
        prod(size + pads[i] + pads[i + rank] for i, size in enumerate(inputs[0].shape))
    )


def _one_hot(node: ir.Node, inputs: Inputs) -> int:
    return _first(node, inputs) * max(_numbers(inputs[1])[0], 1)


def _nonzero(node: ir.Node, inputs: Inputs) -> int:
    return _first(node, inputs) * _small(node, inputs)


def _product(node: ir.Node, inputs: Inputs) -> int:
    a, b = inputs[0], inputs[1]
    assert a is not None
    assert b is not None
    if node.op_type == "Gemm":
        a = a.T if node.attributes.get_int("transA", 0) else a
        b = b.T if node.attributes.get_int("transB", 0) else b
    rows, summed = (a.shape[:-1] or (1,)), a.shape[-1]
    columns = b.shape[-1] if b.ndim > 1 else 1
    batch = np.broadcast_shapes(rows[:-1], b.shape[:-2]) if b.ndim > 1 else rows[:-1]
    size = int(prod(batch) * rows[-1] * columns)
    if size * summed > MATMUL_LIMIT:
        raise NotFoldable("its product is too much work to do here")
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
"""Deterministic ops with a bound of their result. Quantization ops are missing on purpose: folding
undoes them.
"""
