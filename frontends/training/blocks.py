"""Block reconstruction: the weights between two values that everything passes through learn to make the second one.

Source: AdaRound (arXiv:2004.10568): a weight's code is one of the two beside the float; BRECQ (arXiv:2102.05426): block
by block, from what the compressed blocks before give; QDrop (arXiv:2203.05740): half of a block's input, drawn anew for
each step, is the teacher's. Codes round straight through here, in place of AdaRound's relaxation.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ... import RefusedError
from .checkpoint import Checkpoint
from .data import Example, Samples, Split
from .device import Device
from .distributed import Team
from .heads import Head
from .loop import Job, Loop, Tell
from .objective import Objective
from .recipe import Recipe
from .separators import separators
from .student import State, Student

MOST_ROWS = 1024
"""Rows that a block learns from."""
CHUNK = 64


@dataclass(frozen=True)
class Block:
    """A part of a graph between two values."""

    start: str
    end: str


def reconstruct(
    student: ir.Model, teacher: ir.Model, samples: Samples, parts: Split, recipe: Recipe, setting: Any, team: Team,
    folder: Path, device: Device, checkpoint: Checkpoint | None,
) -> dict[str, int | float | str]:
    """Train `student` block after block, in place; figures for the report. Blocks of a checkpoint are not trained anew.

    Errors: RefusedError where no values are in both graphs that everything passes through.
    """
    blocks = list(find_blocks(student, teacher))
    if not blocks:
        raise RefusedError("finetune.preset", "block finds no part of the graph between values that both models have",
                           "use preset=qad or recover")
    recipe = dataclasses.replace(recipe, logit_mse=0.0, labels=0.0, features=(), output_weights=(), watch="loss",
                                 flip=False, shift=0, mixup=0.0, cutmix=0.0, loss="mse", accumulate=1, distill=True)
    saved = None if checkpoint is None else checkpoint.load()
    states: list[State] = [] if saved is None else saved["blocks"]
    better = 0
    for index, block in enumerate(blocks):
        part = _segment(student, block)
        learner = _learner(part, block, recipe, setting)
        if index == len(states):
            units = np.concatenate([parts.train[:MOST_ROWS], parts.held])
            fed = _around(student, teacher, block, samples, units, setting, folder)
            held = np.arange(fed.units)[len(parts.train[:MOST_ROWS]) :]
            split = Split(np.arange(len(parts.train[:MOST_ROWS])), held)
            tell = _telling(setting.tell, index, len(blocks), block)
            states.append({} if learner is None else _learned(learner, block, fed, split, recipe, setting.seed, team,
                                                             device, tell))
            fed.close()
            if checkpoint is not None and team.leads:
                checkpoint.save({"blocks": states})
        if learner is not None and states[index]:
            learner.put(states[index], part)
            better += _adopted(student, part)
    return {"blocks": len(blocks), "better_blocks": better}


def find_blocks(student: ir.Model, teacher: ir.Model) -> Iterator[Block]:
    """Parts of the student in order, each with weights, between values that both graphs have and that separate them."""
    known = {value.name for node in teacher.graph for value in node.outputs} | {v.name for v in teacher.graph.inputs}
    names = [name for name in separators(student) if name in known]
    start = names[0] if names else ""
    for end in names[1:]:
        if _has_weights(student, start, end):
            yield Block(start, end)
            start = end


def _segment(model: ir.Model, block: Block) -> ir.Model:
    """A copy of the part, as a model of its own."""
    graph = ir.convenience.extract(model.graph, [block.start], [block.end])
    return ir.Model(graph, ir_version=model.ir_version or 10, functions=list(model.functions.values()))


def _has_weights(model: ir.Model, start: str, end: str) -> bool:
    part = ir.convenience.extract(model.graph, [start], [end])
    return any(value.const_value is not None and value.const_value.size > 1 and len(value.const_value.shape) > 1
               for value in part.initializers.values())


def _around(
    student: ir.Model, teacher: ir.Model, block: Block, samples: Samples, units: Any, setting: Any, folder: Path
) -> Samples:
    """What the student gives before a block, beside what the teacher gives there and behind it."""
    made = Samples(samples.ragged, folder)
    with setting.runtime.runner(student, [block.start]) as own, setting.runtime.runner(
            teacher, [block.start, block.end]) as theirs:
        for example in samples.take(units, CHUNK):
            fed, right = own(example.feeds) | example.feeds, theirs(example.feeds) | example.feeds
            targets = {name: right[name] for name in (block.start, block.end)}
            made.add(Example({block.start: fed[block.start]}, None, targets))
    return made


def _learner(part: ir.Model, block: Block, recipe: Recipe, setting: Any) -> Student | None:
    """The block as it trains; None where all its weights are excluded."""
    try:
        return Student(part, [block.end], recipe, setting.originals)
    except RefusedError:
        return None


def _learned(
    learner: Student, block: Block, fed: Samples, split: Split, recipe: Recipe, seed: int, team: Team, device: Device,
    tell: Tell,
) -> State:
    """What a block learns; empty where it got no better."""
    objective = Objective([Head(block.end, block.end, block.end, "values")], (), recipe, labelled=False)
    objective.measure({block.end: fed.take(split.train, MOST_ROWS)[0].targets[block.end]})
    learner.to(device.name)
    account = Loop(Job(learner, objective, fed, split, recipe, None, team, seed, tell, None, device,
                       drop=block.start)).run()
    return account.state if account.best_step else {}


def _adopted(student: ir.Model, part: ir.Model) -> bool:
    """Put a block's weights back, unless one of them is a setting elsewhere."""
    if not set(part.graph.initializers) <= set(student.graph.initializers):
        return False
    for name, value in part.graph.initializers.items():
        student.graph.initializers[name].const_value = value.const_value
    return True


def _telling(tell: Tell, index: int, count: int, block: Block) -> Tell:
    return lambda progress, words: tell((index + progress) / count, f"block {index + 1} of {count}, {words}")
