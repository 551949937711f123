"""Block reconstruction: the weights between two values that everything passes through learn to make
the second one.

Source: AdaRound (arXiv:2004.10568): a weight's code is one of the two beside the float; BRECQ
(arXiv:2102.05426): block by block, from what the compressed blocks before give; QDrop
(arXiv:2203.05740): half of a block's input, drawn anew for each step, is the teacher's. Codes round
straight through here, in place of AdaRound's relaxation.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError
from .checkpoint import Checkpoint
from .data import Example, Samples, Split, spread
from .device import Device
from .distributed import Team
from .heads import Head
from .loop import Job, Loop, Tell
from .objective import Objective
from .recipe import Recipe
from .separators import Separator, separators
from .student import State, Student

MOST_ROWS = 1024
"""Rows that a block learns from."""
CHUNK = 64


@dataclass(frozen=True)
class Block:
    """A part of a graph between two values, the first of them "" where it begins at the graph's
    inputs.
    """

    start: str
    end: str


def reconstruct(
    student: ir.Model,
    teacher: ir.Model,
    samples: Samples,
    rows: Split,
    recipe: Recipe,
    setting: Any,
    team: Team,
    folder: Path,
    device: Device,
    checkpoint: Checkpoint | None,
) -> dict[str, int | float | str]:
    """Train `student` block after block, in place; figures for the report. Blocks of a checkpoint
    are not trained anew.

    Errors: RefusedError where no values are in both graphs that everything passes through.
    """
    blocks = list(find_blocks(student, teacher))
    if not blocks:
        raise RefusedError(
            "finetune.preset",
            "block finds no part of the graph between values that both models have",
            "use preset=qad or recover",
        )
    parts = [_segment(student, block) for block in blocks]
    recipe = dataclasses.replace(
        recipe,
        logit_mse=0.0,
        labels=0.0,
        features=(),
        output_weights=(),
        watch="loss",
        flip=False,
        shift=0,
        mixup=0.0,
        cutmix=0.0,
        loss="mse",
        accumulate=1,
        distill=True,
        exclude=(*recipe.exclude, *_shared(parts)),
    )
    saved = None if checkpoint is None else checkpoint.load()
    states: list[State] = [] if saved is None else saved["blocks"]
    better = 0
    learned = spread(rows.train, MOST_ROWS, samples)
    for index, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        learner = _learner(part, block, recipe, setting)
        if index == len(states):
            fed = _around(
                student,
                teacher,
                block,
                part,
                samples,
                np.concatenate([learned, rows.held]),
                setting,
                folder,
            )
            split = Split(np.arange(len(learned)), np.arange(len(learned), fed.units))
            tell = _telling(setting.tell, index, len(blocks), block)
            states.append(
                {}
                if learner is None
                else _learned(
                    learner, block, fed, split, recipe, setting.seed, team, device, tell
                )
            )
            fed.close()
            if checkpoint is not None and team.leads:
                checkpoint.save({"blocks": states})
        if learner is not None and states[index]:
            learner.put(states[index], part)
            better += _adopted(student, part)
    return {"blocks": len(blocks), "better_blocks": better}


def find_blocks(student: ir.Model, teacher: ir.Model) -> Iterator[Block]:
    """Parts of the student in order, each with layers, between values that both graphs have and
    that separate them.

    A part ends as soon as it can: before an activation that would hide what is below zero.
    """
    known = {value.name for node in teacher.graph for value in node.outputs}
    start = Separator("", 0)
    for end in separators(student):
        if end.name in known and end.layers > start.layers:
            yield Block(start.name, end.name)
            start = end


def _segment(model: ir.Model, block: Block) -> ir.Model:
    """A copy of the part, as a model of its own: of where it starts, and of inputs that pass
    beside.
    """
    fed = [value for value in model.graph.inputs if value.const_value is None]
    graph = ir.convenience.extract(
        model.graph, [*([block.start] if block.start else []), *fed], [block.end]
    )
    for value in tuple(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    return ir.Model(
        graph,
        ir_version=model.ir_version or 10,
        functions=list(model.functions.values()),
    )


def _shared(parts: Iterable[ir.Model]) -> list[str]:
    """Constants of several parts: what one of them learned would not suit the others."""
    counts = Counter(name for part in parts for name in part.graph.initializers)
    return [name for name, count in counts.items() if count > 1]


def _around(
    student: ir.Model,
    teacher: ir.Model,
    block: Block,
    part: ir.Model,
    samples: Samples,
    units: NDArray[np.int64],
    setting: Any,
    folder: Path,
) -> Samples:
    """What the student gives before a block, beside what the teacher gives there and behind it."""
    made = Samples(samples.ragged, folder)
    starts = [block.start] if block.start else []
    inputs = [value.name or "" for value in part.graph.inputs]
    with (
        setting.runtime.runner(student, starts) as own,
        setting.runtime.runner(teacher, [*starts, block.end]) as theirs,
    ):
        for example in samples.take(units, CHUNK):
            fed, right = own(example.feeds) | example.feeds, theirs(example.feeds)
            made.add(
                Example(
                    {name: fed[name] for name in inputs},
                    None,
                    {name: right[name] for name in (*starts, block.end)},
                )
            )
    return made


def _learner(
    part: ir.Model, block: Block, recipe: Recipe, setting: Any
) -> Student | None:
    """The block as it trains; None where all its weights are excluded."""
    try:
        return Student(part, [block.end], recipe, setting.originals)
    except RefusedError:
        return None


def _learned(
    learner: Student,
    block: Block,
    fed: Samples,
    split: Split,
    recipe: Recipe,
    seed: int,
    team: Team,
    device: Device,
    tell: Tell,
) -> State:
    """What a block learns; empty where it got no better."""
    objective = Objective(
        [Head(block.end, block.end, block.end, "values")], (), recipe, labelled=False
    )
    objective.measure(
        {block.end: fed.take(split.train, MOST_ROWS)[0].targets[block.end]}
    )
    learner.to(device.name)
    account = Loop(
        Job(
            learner,
            objective,
            fed,
            split,
            recipe,
            None,
            team,
            seed,
            tell,
            None,
            device,
            drop=block.start,
        )
    ).run()
    return account.state if account.best_step else {}


def _adopted(student: ir.Model, part: ir.Model) -> bool:
    """Put a block's weights back, unless one of them is a setting elsewhere."""
    if not set(part.graph.initializers) <= set(student.graph.initializers):
        return False
    for name, value in part.graph.initializers.items():
        student.graph.initializers[name].const_value = value.const_value
    return True


def _telling(tell: Tell, index: int, count: int, block: Block) -> Tell:
    return lambda progress, words: tell(
        (index + progress) / count, f"block {index + 1} of {count}, {words}"
    )
