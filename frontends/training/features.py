"""Inner values that student and teacher are compared on: named ones, or one of each map size."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import RefusedError, UsageError
from .separators import made_values, separators

AUTO = "auto"
"""Word of the option `features` that has values found by themselves."""

MAP_RANK = 3
"""Rank from which a value is a map or a sequence: rows, channels, and axes that have a size."""


@dataclass(frozen=True)
class Tap:
    """A value inside: its name in the student and in the teacher."""

    student: str
    teacher: str


def find_taps(student: ir.Model, teacher: ir.Model, texts: Sequence[str]) -> list[Tap]:
    """Return taps for the texts `name`, `student_name=teacher_name` and `auto`.

    Errors: UsageError for a name that a graph has not, RefusedError where auto finds none.
    """
    taps: list[Tap] = []
    for text in texts:
        if text == AUTO:
            taps += _required_ends(student, teacher)
            continue
        # a name alone means the same name in both
        own, _, theirs = text.partition("=")
        taps.append(Tap(own, theirs or own))
    _require_values(student, [tap.student for tap in taps], "student")
    _require_values(teacher, [tap.teacher for tap in taps], "teacher")
    return taps


def _require_values(model: ir.Model, names: Iterable[str], role: str) -> None:
    known = made_values(model)
    for name in names:
        if name not in known:
            raise UsageError(
                "finetune.features",
                f"the {role} has no value '{name}'",
                "name a value of both graphs, or student_value=teacher_value, or auto",
            )


def _required_ends(student: ir.Model, teacher: ir.Model) -> list[Tap]:
    taps = ends_in_common(student, teacher)
    if not taps:
        raise RefusedError(
            "finetune.features",
            "auto finds no values of one size that both graphs wholly pass through",
            "name them: features=[student_value=teacher_value]",
        )
    return taps


def ends_in_common(student: ir.Model, teacher: ir.Model) -> list[Tap]:
    """Return the ends of stages whose map size the other graph has too."""
    own = _ends_of_stages(student)
    theirs = _ends_of_stages(teacher)
    return [Tap(name, theirs[size]) for size, name in own.items() if size in theirs]


def _ends_of_stages(model: ir.Model) -> dict[tuple[str, ...], str]:
    """Return by map size, rows and channels left out, the last separator that has it.

    Inputs and outputs are none: the loss compares outputs anyway.
    """
    shapes = {}
    for node in model.graph:
        for value in node.outputs:
            shapes[value.name] = value.shape
    outputs = {value.name for value in model.graph.outputs}
    found: dict[tuple[str, ...], str] = {}
    for separator in separators(model):
        name = separator.name
        shape = shapes[name]
        if name in outputs or shape is None or len(shape) < MAP_RANK:
            continue
        # a later separator of the same size replaces the one before it
        found[_map_size(shape)] = name
    return found


def _map_size(shape: ir.Shape) -> tuple[str, ...]:
    """Return the axes besides rows and channels; as texts, since some are symbols."""
    # symbols of the two graphs match by name
    texts = [str(dim) for dim in shape]
    del texts[channel_axis(len(shape))]
    return tuple(texts[1:])


def channel_axis(rank: int) -> int:
    """Return the axis of the channels of a value of this rank.

    It comes after the rows in vectors and maps, (N, C) and (N, C, *K), and last in sequences, (N,
    S, C).
    """
    if rank in (2, 4, 5):
        return 1
    return rank - 1
