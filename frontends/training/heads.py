"""Kinds of outputs that a loss tells apart: classes, yes-or-no, or plain values."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ... import RefusedError
from ...passes._core.ops import (
    COPIES,
    FLOATS,
    RECURRENT,
    VIEWS,
    WEIGHTED_OPS,
    is_standard,
)

Kind = Literal["classes", "binary", "values"]

SAME_VALUES = COPIES | {"QuantizeLinear", "DequantizeLinear", "Cast", "Dropout"}
"""Operators whose output stands for their first input, element by element."""

MOVED_VALUES = SAME_VALUES | VIEWS | {"Transpose"}
"""The same, and operators that only bring the elements into another shape or order."""

# Linear layers that classifiers end with. Recurrent layers end in tanh or sigmoid, and a
# ConvTranspose draws maps: neither gives logits of classes.
CLASSIFIER_LAYERS = (WEIGHTED_OPS.keys() - RECURRENT - {"ConvTranspose"}) | {
    "MatMulInteger",
    "QLinearMatMul",
}

LOGITS_AXIS_OPSET = 13
"""Opset since which the default axis of Softmax is the last; before, it is 1."""


@dataclass(frozen=True)
class Head:
    """One output that is trained.

    `student`, `teacher`: names of the values to compare, logits unless `kind` is "values". `axis`:
    that of the classes.
    """

    output: str
    student: str
    teacher: str
    kind: Kind
    axis: int = -1


@dataclass(frozen=True)
class Logits:
    """The value that a loss compares for an output."""

    kind: Kind
    value: ir.Value
    axis: int = -1


def find_heads(student: ir.Model, teacher: ir.Model) -> list[Head]:
    """Return the float outputs that both models have; the teacher decides their kinds.

    Errors: RefusedError where the models have no float output in common.
    """
    heads = []
    for output in student.graph.outputs:
        other = _counterpart(output, student, teacher)
        if other is not None and other.dtype in FLOATS and output.dtype in FLOATS:
            heads.append(_head(output, other, student, teacher))
    if not heads:
        raise RefusedError(
            "finetune",
            "student and teacher have no float output in common",
            "train models with the same output names; class numbers or boxes alone "
            "give no gradient",
        )
    return heads


def _counterpart(
    output: ir.Value, student: ir.Model, teacher: ir.Model
) -> ir.Value | None:
    """Return the teacher's output of the same name, or its only one."""
    outputs = teacher.graph.outputs
    for other in outputs:
        if other.name == output.name:
            return other
    if len(student.graph.outputs) == 1 and len(outputs) == 1:
        return outputs[0]
    return None


def _head(
    output: ir.Value, other: ir.Value, student: ir.Model, teacher: ir.Model
) -> Head:
    theirs = _logits(other, teacher)
    own = _logits(output, student)
    # logits of one model have no counterpart in the other: compare the outputs themselves
    if own.kind != theirs.kind and "values" in (own.kind, theirs.kind):
        theirs = Logits(
            kind="values",
            value=other,
            axis=theirs.axis,
        )
        own = Logits("values", output)
    return Head(
        output=output.name or "",
        student=own.value.name or "",
        teacher=theirs.value.name or "",
        kind=theirs.kind,
        axis=theirs.axis,
    )


def _logits(output: ir.Value, model: ir.Model) -> Logits:
    """Return the value before a final softmax or sigmoid, or the output itself."""
    plain = Logits("values", output)
    node = _source(output, SAME_VALUES).producer()
    if node is None or not is_standard(node):
        return plain
    if _is_classifier(output):
        return Logits("classes", output)
    before = node.inputs[0] if node.inputs else None
    if before is None:
        return plain
    if node.op_type == "Sigmoid":
        return Logits("binary", before)
    if node.op_type not in ("Softmax", "LogSoftmax"):
        return plain
    opset = model.opset_imports.get("", LOGITS_AXIS_OPSET)
    default = -1 if opset >= LOGITS_AXIS_OPSET else 1
    axis = node.attributes.get_int("axis", default)
    return Logits(
        kind="classes",
        value=before,
        axis=axis,
    )


def _is_classifier(output: ir.Value) -> bool:
    """True if an output (N, C) comes straight from a linear layer: most likely logits."""
    shape = output.shape
    if shape is None or len(shape) != 2:
        return False
    classes = shape[1]
    if not isinstance(classes, int) or classes < 2:
        return False
    node = _source(output, MOVED_VALUES).producer()
    if node is None:
        return False
    if node.op_type != "Add":
        return node.op_type in CLASSIFIER_LAYERS
    # a MatMul and its bias
    for value in node.inputs:
        if value is None:
            continue
        addend = _source(value, MOVED_VALUES).producer()
        if addend is not None and addend.op_type in CLASSIFIER_LAYERS:
            return True
    return False


def _source(value: ir.Value, through: Collection[str]) -> ir.Value:
    """Follow first inputs back through these operators."""
    while True:
        node = value.producer()
        if node is None or node.op_type not in through or not node.inputs:
            return value
        before = node.inputs[0]
        if before is None:
            return value
        value = before
