"""What the teacher says: once of every row as it is, and at every step where rows are changed or
features compared.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir
import torch

from ... import RefusedError
from ..trainable import to_torch
from .data import Arrays
from .device import Device, laid_out
from .objective import Objective

Runner = Callable[[Arrays], Arrays]
Said = Callable[[Arrays], dict[str, Any]]
"""Takes a student's feeds; gives the teacher's values by name, as arrays or tensors."""


class Runtime(Protocol):
    """Runs models as they will be run."""

    def runner(
        self, model: ir.Model, names: Sequence[str]
    ) -> AbstractContextManager[Runner]:
        """A function from feeds to the model's outputs and the named values."""
        ...


@dataclass(frozen=True)
class Teacher:
    """`once`: exactly, outputs alone, for targets that are kept. `often`: as precisely as the
    student learns, with all that the loss reads, for every step: features of a whole data set would
    fill a disk.
    """

    once: Said
    often: Said


@contextlib.contextmanager
def teacher_of(
    student: ir.Model,
    teacher: ir.Model,
    objective: Objective,
    runtime: Runtime,
    device: Device,
) -> Iterator[Teacher]:
    """ONNX Runtime says it, or torch where that is faster (on a GPU, or in bfloat16 for every step)
    or asked for.

    Errors: RefusedError where both take different inputs.
    """
    renamed, chosen = _renamed(student, teacher), objective.recipe.teacher
    outputs, names = (
        [head.teacher for head in objective.heads],
        objective.teacher_names(),
    )
    if chosen == "torch" or (chosen == "auto" and device.name != "cpu"):
        yield Teacher(
            _by_torch(teacher, outputs, renamed, Device(device.name)),
            _by_torch(teacher, names, renamed, device),
        )
        return
    with contextlib.ExitStack() as sessions:

        def by_runtime(names: Sequence[str]) -> Said:
            run = sessions.enter_context(runtime.runner(teacher, names))
            return lambda feeds: {
                name: value
                for name, value in run(renamed(feeds)).items()
                if name in names
            }

        once = by_runtime(outputs)
        if not objective.asks_always():
            yield Teacher(once, once)
        elif chosen == "auto" and device.half:
            yield Teacher(once, _by_torch(teacher, names, renamed, device))
        else:
            yield Teacher(once, by_runtime(names))


def _by_torch(
    teacher: ir.Model, names: Sequence[str], renamed: Runner, device: Device
) -> Said:
    outputs = {value.name for value in teacher.graph.outputs}
    module = to_torch(
        teacher, train=False, taps=[n for n in names if n not in outputs], qat="off"
    ).to(device.name)

    def says(feeds: Arrays) -> dict[str, Any]:
        with torch.no_grad(), device.halved():
            values = module.run(laid_out(renamed(feeds), device.name))
        return {name: values[name] for name in names}

    return says


def _renamed(student: ir.Model, teacher: ir.Model) -> Runner:
    """The student's feeds under the teacher's names. Errors: RefusedError where they take different
    inputs.
    """
    own, theirs = (
        [v.name or "" for v in m.graph.inputs if v.const_value is None]
        for m in (student, teacher)
    )
    if set(own) == set(theirs):
        return lambda feeds: feeds
    if len(own) == len(theirs) == 1:
        return lambda feeds: {theirs[0]: feeds[own[0]]}
    raise RefusedError(
        "finetune, teacher",
        f"takes {', '.join(theirs)}; the student {', '.join(own)}",
        "rename the inputs: both must be fed the same data",
    )
