"""Facts about ONNX operators, each stated once: weights, their axes, moves of elements, types."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

STANDARD_DOMAINS = ("", "ai.onnx")
"""Two spellings of the domain of ONNX's own operators."""


def is_standard(node: ir.Node, *op_types: str) -> bool:
    """Return whether a node is an operator of ONNX itself, and of `op_types` if any are given."""
    return node.domain in STANDARD_DOMAINS and (
        not op_types or node.op_type in op_types
    )


# types


FLOATS = frozenset(
    {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}
)
"""Types that weights and activations of a float model have."""

HALF_FLOATS = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16})
"""Types of 16 bits: arithmetic on weights rounds them by more than float noise."""

SMALL_FLOATS = frozenset(
    {
        ir.DataType.FLOAT8E4M3FN,
        ir.DataType.FLOAT8E4M3FNUZ,
        ir.DataType.FLOAT8E5M2,
        ir.DataType.FLOAT8E5M2FNUZ,
        ir.DataType.FLOAT4E2M1,
    }
)
"""Float types that serve as codes of quantized weights, never as activations."""


# operators that multiply by a weight


@dataclass(frozen=True)
class WeightedOp:
    """Inputs of an operator that multiplies its data by a weight.

    `weights`: inputs that may hold it; an initializer there is a weight. `bias`: the input that is
    added, None where there is none.
    """

    weights: tuple[int, ...]
    bias: int | None = None


CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})

WEIGHTED_OPS: dict[str, WeightedOp] = {
    "Conv": WeightedOp((1,), bias=2),
    "ConvTranspose": WeightedOp((1,), bias=2),
    "Gemm": WeightedOp((0, 1), bias=2),
    "MatMul": WeightedOp((0, 1)),
    "LSTM": WeightedOp((1, 2), bias=3),
    "GRU": WeightedOp((1, 2), bias=3),
    "RNN": WeightedOp((1, 2), bias=3),
}
"""Standard operators that multiply data by a float weight."""


MICROSOFT = "com.microsoft"
"""Domain of ONNX Runtime's own operators."""

FUSED_OPS = {
    "FusedConv": "Conv",
    "FusedGemm": "Gemm",
    "FusedMatMul": "MatMul",
    "FusedMatMulActivation": "MatMul",
}
"""Operators of ONNX Runtime that are a standard one with more: an activation, a factor, a further
input that is added, matrices read transposed.
"""


def plain_op(node: ir.Node) -> str:
    """Standard operator that a node is, or is a fused form of; empty of any other node."""
    if node.domain == MICROSOFT:
        return FUSED_OPS.get(node.op_type, "")
    return node.op_type if is_standard(node) else ""


def summed_axes(node: ir.Node, index: int, rank: int) -> list[int]:
    """Axes of input `index`, a weight of that rank, that a node sums over, the input axis first.

    Conv: weight (M, C / group, *K). ConvTranspose: (C, M / group, *K). Gemm, MatMul: matrices.
    LSTM, GRU, RNN: (directions, gates, inputs). Fused forms as the operators that they are.
    """
    op = plain_op(node)
    if op == "Conv":
        return list(range(1, rank))
    if op == "ConvTranspose":
        return [0, *range(2, rank)]
    last = rank - 1
    if op not in ("Gemm", "MatMul"):
        return [last]
    # only Gemm and fused products have these attributes; a vector has no axis to swap
    row = max(last - 1, 0)
    if index == 0:
        return [row] if node.attributes.get_int("transA", 0) else [last]
    return [last] if node.attributes.get_int("transB", 0) else [row]


def output_axis(node: ir.Node, index: int, rank: int) -> int | None:
    """Axis of input `index`, a weight of that rank, along which a node's output channels lie.

    None where the outputs are no axis of the weight: a vector, or a recurrent operator's gates. Of
    a grouped ConvTranspose the axis holds the channels of one group.
    """
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    if node.op_type in RECURRENT or rank < 2:
        return None
    (summed,) = summed_axes(node, index, rank)
    last = rank - 1
    if summed == last:
        return last - 1
    return last


def normalizes_by_batch(node: ir.Node) -> bool:
    """True for a BatchNormalization in training, which computes the statistics of its batch.

    Before opset 14 its further outputs say so, used or not; from then on only such a node has them.
    """
    if not is_standard(node, "BatchNormalization"):
        return False
    return node.attributes.get_int("training_mode", 0) != 0 or len(node.outputs) > 1


def group_count(node: ir.Node) -> int:
    """Groups of a convolution; 1 of every other node."""
    if node.op_type not in CONVOLUTIONS:
        return 1
    return node.attributes.get_int("group", 1)


# operators whose outputs hold nothing but elements of their inputs


COPIES = frozenset({"Identity"})
"""The same tensor."""

VIEWS = frozenset({"Reshape", "Flatten", "Squeeze", "Unsqueeze"})
"""The same elements in the same order, in another shape."""

PERMUTATIONS = frozenset({"Transpose", "DepthToSpace", "SpaceToDepth"})
"""Every element once, in another order."""

REARRANGEMENTS = COPIES | VIEWS | PERMUTATIONS
"""Every element of the first input exactly once."""

SELECTIONS = frozenset({"Slice", "Split", "Gather"})
"""Some of the elements."""

REPETITIONS = frozenset({"Expand", "Tile"})
"""Every element, perhaps several times."""

MOVES = REARRANGEMENTS | SELECTIONS | REPETITIONS | {"Concat"}
"""Outputs hold no value that no input holds."""


# quantized operators


QUANT_OPS = frozenset(
    {
        "QuantizeLinear",
        "DequantizeLinear",
        "DynamicQuantizeLinear",
        "QLinearConv",
        "QLinearMatMul",
        "ConvInteger",
        "MatMulInteger",
        "QLinearAdd",
        "QLinearMul",
        "QGemm",
        "QLinearConcat",
        "QLinearGlobalAveragePool",
        "MatMulNBits",
        "GatherBlockQuantized",
        "QAttention",
        "DynamicQuantizeMatMul",
        "MatMulIntegerToFloat",
    }
)
"""Operators, of ONNX and com.microsoft, that show that a part of a graph is quantized already."""
