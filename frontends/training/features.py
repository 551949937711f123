"""Which values inside are matched: those that are named, or by themselves the last of each size of
map.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import RefusedError, UsageError
from .separators import separators

AUTO = "auto"


@dataclass(frozen=True)
class Tap:
    """A value inside: its name in the student and in the teacher."""

    student: str
    teacher: str


def find_taps(student: ir.Model, teacher: ir.Model, texts: Sequence[str]) -> list[Tap]:
    """The values of `name`, `student_name=teacher_name`, and of `auto`.

    Errors: UsageError for a name that a graph has not, RefusedError where auto finds none.
    """
    taps: list[Tap] = []
    for text in texts:
        if text == AUTO:
            taps += _found(student, teacher)
            continue
        own, _, theirs = text.partition("=")
        taps.append(Tap(own, theirs or own))
    for model, names, whose in (
        (student, [t.student for t in taps], "student"),
        (teacher, [t.teacher for t in taps], "teacher"),
    ):
        known = {value.name for node in model.graph for value in node.outputs}
        for name in names:
            if name not in known:
                raise UsageError(
                    "finetune.features",
                    f"the {whose} has no value '{name}'",
                    "name a value of both graphs, or student_value=teacher_value, or auto",
                )
    return taps


def _found(student: ir.Model, teacher: ir.Model) -> list[Tap]:
    """Ends of stages: the last value of each size that separates the graph, where the other has one
    of that size.
    """
    own, theirs = (_ends_of_stages(model) for model in (student, teacher))
    taps = [Tap(name, theirs[size]) for size, name in own.items() if size in theirs]
    if not taps:
        raise RefusedError(
            "finetune.features",
            "auto finds no values of one size that both graphs wholly pass through",
            "name them: features=[student_value=teacher_value]",
        )
    return taps


def _ends_of_stages(model: ir.Model) -> dict[tuple[str, ...], str]:
    """By size of a map, rows and channels left out, the last separator that has it; inputs and
    outputs are none.
    """
    values = {value.name: value for node in model.graph for value in node.outputs}
    outputs = {value.name for value in model.graph.outputs}
    found: dict[tuple[str, ...], str] = {}
    for name in (separator.name for separator in separators(model)):
        shape = values[name].shape if name not in outputs else None
        if shape is not None and len(shape) > 2:
            rank = len(shape)
            found[
                tuple(
                    str(shape[axis])
                    for axis in range(1, rank)
                    if axis != channel_axis(rank)
                )
            ] = name
    return found


def channel_axis(rank: int) -> int:
    """Where a value of this rank has its channels: behind the rows for vectors and maps, last for
    sequences.
    """
    return 1 if rank in (2, 4, 5) else rank - 1
