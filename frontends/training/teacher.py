"""Outputs of the teacher: cached once for every row, or asked live at every step.

Live ones are needed where rows change from step to step, or where features are compared.
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
from ...passes._core.training_recipe import TrainingRecipe
from ..trainable import TrainableModule, to_torch
from .attribution import teacher_maps
from .data import Arrays
from .device import Device, channels_last
from .heads import Head
from .objective import ComparedValues, needs_live_teacher

Runner = Callable[[Arrays], Arrays]
TeacherFunction = Callable[[Arrays], dict[str, Any]]
"""Takes a student's feeds; gives the teacher's values by name, as arrays or tensors."""


class Runtime(Protocol):
    """Runs models the way their users will."""

    def runner(
        self, model: ir.Model, names: Sequence[str]
    ) -> AbstractContextManager[Runner]:
        """Return a function from feeds to the model's outputs and the named values."""
        ...


@dataclass(frozen=True)
class TeacherOutputs:
    """Two ways to ask the teacher.

    `cached`: exactly, outputs alone, for targets that are kept. `live`: a function that is made
    once it is known what the loss reads. It answers as precisely as the student learns, with all
    those values: features of a whole data set would fill a disk.
    """

    cached: TeacherFunction
    live: Callable[[ComparedValues, TrainingRecipe], TeacherFunction]


@contextlib.contextmanager
def teacher_outputs(
    student: ir.Model,
    teacher: ir.Model,
    heads: Sequence[Head],
    asked: TrainingRecipe,
    runtime: Runtime,
    device: Device,
) -> Iterator[TeacherOutputs]:
    """Run the teacher by ONNX Runtime, or by torch where that is faster or asked for.

    Torch is faster on a GPU, and in bfloat16 for what is asked at every step. Errors: RefusedError
    where student and teacher take different inputs.
    """
    rename = _renaming(student, teacher)
    outputs = [head.teacher for head in heads]

    def with_maps(compared: ComparedValues) -> TeacherFunction:
        return _with_maps(teacher, compared, rename, device)

    automatic = asked.teacher == "auto"
    if asked.teacher == "torch" or (automatic and device.name != "cpu"):
        # cached targets are judged by: never in half precision
        exact = Device(device.name)

        def live_by_torch(
            compared: ComparedValues, recipe: TrainingRecipe
        ) -> TeacherFunction:
            if compared.attributed:
                return with_maps(compared)
            return _by_torch(teacher, compared.teacher_names(), rename, device)

        yield TeacherOutputs(
            cached=_by_torch(teacher, outputs, rename, exact), live=live_by_torch
        )
        return
    with contextlib.ExitStack() as sessions:

        def by_runtime(names: Sequence[str]) -> TeacherFunction:
            runner = runtime.runner(teacher, names)
            run = sessions.enter_context(runner)

            def ask(feeds: Arrays) -> dict[str, Any]:
                values = run(rename(feeds))
                # a runner gives all outputs, named or not
                return {name: values[name] for name in values if name in names}

            return ask

        cached = by_runtime(outputs)

        def live(compared: ComparedValues, recipe: TrainingRecipe) -> TeacherFunction:
            if not needs_live_teacher(compared, recipe):
                return cached
            if compared.attributed:
                return with_maps(compared)
            names = compared.teacher_names()
            if automatic and device.half:
                return _by_torch(teacher, names, rename, device)
            return by_runtime(names)

        yield TeacherOutputs(cached, live)


def _by_torch(
    teacher: ir.Model, names: Sequence[str], rename: Runner, device: Device
) -> TeacherFunction:
    module = _module(teacher, names, train=False, device=device)

    def ask(feeds: Arrays) -> dict[str, Any]:
        renamed = rename(feeds)
        placed = channels_last(renamed, device.name)
        with torch.no_grad(), device.halved():
            values = module.run(placed)
        return {name: values[name] for name in names}

    return ask


def _module(
    teacher: ir.Model, names: Sequence[str], train: bool, device: Device
) -> TrainableModule:
    """The teacher in torch, which gives these values."""
    outputs = {value.name for value in teacher.graph.outputs}
    inside = [name for name in names if name not in outputs]
    module = to_torch(teacher, train=train, taps=inside, qat="off")
    module.to(device.name)
    return module


def _with_maps(
    teacher: ir.Model, compared: ComparedValues, rename: Runner, device: Device
) -> TeacherFunction:
    """By torch, with the attribution maps, which ONNX Runtime cannot give."""
    names = compared.teacher_names()
    # what trains has gradients, whatever the inputs are
    module = _module(teacher, names, train=True, device=device)

    def ask(feeds: Arrays) -> dict[str, Any]:
        renamed = rename(feeds)
        placed = channels_last(renamed, device.name)
        with torch.enable_grad(), device.halved():
            values = module.run(placed)
            maps = teacher_maps(values, compared.heads[0], compared.attributed)
        answers = {name: values[name].detach() for name in names}
        return {**answers, **maps}

    return ask


def _renaming(student: ir.Model, teacher: ir.Model) -> Runner:
    """Return a function from the student's feeds to the same under the teacher's names.

    Errors: RefusedError where they take different inputs.
    """
    own = _fed_inputs(student)
    theirs = _fed_inputs(teacher)
    if set(own) == set(theirs):
        return lambda feeds: feeds
    # the only input of both is the same thing, whatever it is called
    if len(own) == 1 and len(theirs) == 1:
        return lambda feeds: {theirs[0]: feeds[own[0]]}
    raise RefusedError(
        "finetune, teacher",
        f"takes {', '.join(theirs)}; the student {', '.join(own)}",
        "rename the inputs: both must be fed the same data",
    )


def _fed_inputs(model: ir.Model) -> list[str]:
    """Return the inputs without a default value."""
    inputs = [value for value in model.graph.inputs if value.const_value is None]
    return [value.name or "" for value in inputs]
