"""Ops that work element by element, with broadcasting: equal axes are one index space."""

from __future__ import annotations

import onnx_ir as ir

from ..relations import Relations, required_input
from ..table import rule

UNARY = (
    "Abs",
    "Acos",
    "Acosh",
    "Asin",
    "Asinh",
    "Atan",
    "Atanh",
    "BitwiseNot",
    "Cast",
    "Ceil",
    "Celu",
    "Cos",
    "Cosh",
    "Elu",
    "Erf",
    "Exp",
    "Floor",
    "Gelu",
    "HardSigmoid",
    "HardSwish",
    "Identity",
    "IsInf",
    "IsNaN",
    "LeakyRelu",
    "Log",
    "Mish",
    "Neg",
    "Not",
    "Reciprocal",
    "Relu",
    "Round",
    "Selu",
    "Shrink",
    "Sigmoid",
    "Sign",
    "Sin",
    "Sinh",
    "Softplus",
    "Softsign",
    "Sqrt",
    "Swish",
    "Tan",
    "Tanh",
    "ThresholdedRelu",
    "Bernoulli",
    "RandomNormalLike",
    "RandomUniformLike",
)
"""Elementwise, and of one input."""

FIRST_INPUT = ("CastLike", "Clip", "Dropout")
"""Elementwise in their first input; the others are scalars or only lend their type."""

BROADCAST = (
    "Add",
    "And",
    "BitShift",
    "BitwiseAnd",
    "BitwiseOr",
    "BitwiseXor",
    "Div",
    "Equal",
    "Greater",
    "GreaterOrEqual",
    "Less",
    "LessOrEqual",
    "Max",
    "Mean",
    "Min",
    "Mod",
    "Mul",
    "Or",
    "Pow",
    "PRelu",
    "Sub",
    "Sum",
    "Where",
    "Xor",
)
"""Elementwise in all inputs, which are broadcast against each other."""


def elementwise(source: ir.Value, result: ir.Value, relations: Relations) -> None:
    """Relate the axes of two tensors aligned at their last axis; broadcast axes stay apart."""
    ranks = (relations.rank(source), relations.rank(result))
    last_axes(source, result, min(ranks), relations)


def last_axes(
    source: ir.Value,
    result: ir.Value,
    count: int,
    relations: Relations,
) -> None:
    """Relate the last so many axes of two tensors."""
    for back in range(1, count + 1):
        relations.aligned(source, -back, result, -back)


@rule(*UNARY, *FIRST_INPUT)
def first_input(node: ir.Node, relations: Relations) -> None:
    """Outputs like the first input: the mask of a Dropout too."""
    source = required_input(node, 0)
    for result in node.outputs:
        if relations.shape(result) is not None:
            elementwise(source, result, relations)


@rule(*BROADCAST)
def broadcast(node: ir.Node, relations: Relations) -> None:
    """One output, aligned with every input."""
    result = node.outputs[0]
    for source in node.inputs:
        if source is not None:
            elementwise(source, result, relations)
