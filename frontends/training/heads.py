"""What a model's outputs are to a loss: classes by their logits, yes or no by theirs, or plain
values.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir

from ... import RefusedError

Kind = Literal["classes", "binary", "values"]
_SAME = {"Identity", "QuantizeLinear", "DequantizeLinear", "Cast", "Dropout"}
_MOVED = _SAME | {"Reshape", "Squeeze", "Unsqueeze", "Flatten", "Transpose"}
_LINEAR = {"Gemm", "MatMul", "Conv", "MatMulInteger", "QLinearMatMul"}
_FLOATS = {
    ir.DataType.FLOAT,
    ir.DataType.FLOAT16,
    ir.DataType.BFLOAT16,
    ir.DataType.DOUBLE,
}


@dataclass(frozen=True)
class Head:
    """One output. `student`, `teacher`: the values to compare, logits where `kind` says so. `axis`:
    of the classes.
    """

    output: str
    student: str
    teacher: str
    kind: Kind
    axis: int = -1


def find_heads(student: ir.Model, teacher: ir.Model) -> list[Head]:
    """The float outputs of both; whether one is of classes, the teacher says.

    Errors: RefusedError where the models have no float output in common.
    """
    known = {value.name: value for value in teacher.graph.outputs}
    heads = []
    for value in student.graph.outputs:
        other = known.get(value.name)
        if (
            other is None
            and len(student.graph.outputs) == len(teacher.graph.outputs) == 1
        ):
            other = teacher.graph.outputs[0]
        if other is None or other.dtype not in _FLOATS or value.dtype not in _FLOATS:
            continue
        kind, theirs, axis = _logits(other, teacher)
        own_kind, own, _ = _logits(value, student)
        if kind != own_kind and "values" in (kind, own_kind):
            kind, own, theirs = "values", value, other
        heads.append(
            Head(value.name or "", own.name or "", theirs.name or "", kind, axis)
        )
    if not heads:
        raise RefusedError(
            "finetune",
            "student and teacher have no float output in common",
            "train models with the same output names; class numbers or boxes alone "
            "give no gradient",
        )
    return heads


def _logits(output: ir.Value, model: ir.Model) -> tuple[Kind, ir.Value, int]:
    """(kind, the value of the logits, axis of classes) of an output."""
    value = _behind(output, _SAME)
    node = value.producer()
    if node is not None and not node.domain:
        if node.op_type in ("Softmax", "LogSoftmax") and node.inputs[0] is not None:
            default = -1 if model.opset_imports.get("", 13) >= 13 else 1
            return "classes", node.inputs[0], node.attributes.get_int("axis", default)
        if node.op_type == "Sigmoid" and node.inputs[0] is not None:
            return "binary", node.inputs[0], -1
        if _scores_of_classes(output):
            return "classes", output, -1
    return "values", output, -1


def _scores_of_classes(output: ir.Value) -> bool:
    """Whether an output (N, C) comes straight from a linear layer: most likely logits."""
    shape = output.shape
    if (
        shape is None
        or len(shape) != 2
        or not isinstance(shape[1], int)
        or shape[1] < 2
    ):
        return False
    value = _behind(output, _MOVED)
    node = value.producer()
    if node is not None and node.op_type == "Add":
        found = [_behind(i, _MOVED).producer() for i in node.inputs if i is not None]
        return any(n is not None and n.op_type in _LINEAR for n in found)
    return node is not None and node.op_type in _LINEAR


def _behind(value: ir.Value, ops: set[str]) -> ir.Value:
    while (
        (node := value.producer()) is not None
        and node.op_type in ops
        and node.inputs
        and node.inputs[0] is not None
    ):
        value = node.inputs[0]
    return value
