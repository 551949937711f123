"""Block reconstruction: parts of a graph, one after another, learn to make the teacher's values.

A part lies between two values that everything passes through. Source: AdaRound (arXiv:2004.10568):
a weight's code is one of the two beside the float; BRECQ (arXiv:2102.05426): block by block, from
what the compressed blocks before give; QDrop (arXiv:2203.05740): half of a block's input, drawn
anew for each step, is the teacher's. Codes round straight through here, in place of AdaRound's
relaxation.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from ... import RefusedError
from ...passes._core.training_recipe import TrainingRecipe
from .data import Example, Samples, Split, Units, spread
from .heads import Head
from .learner import Learner, State
from .loop import Loop
from .objective import ComparedValues, Objective, variances
from .separators import Separator, made_values, separators
from .session import ProgressCallback, TrainingSession
from .tensorboard import no_log

MOST_ROWS = 1024
"""Rows that a block learns from, as in BRECQ; more were not measured."""

ROWS_AT_A_TIME = 64
"""Rows of one run that collects what a block sees."""

DEFAULT_IR_VERSION = 10
"""IR version of a part whose model names none."""


@dataclass(frozen=True)
class GraphBlock:
    """A part of a graph between two values; `start` is "" where it begins at the graph's inputs."""

    start: str
    end: str


@dataclass(frozen=True)
class Reconstruction:
    """A trained copy of the student, its number of blocks and of those that got better."""

    model: ir.Model
    blocks: int
    better_blocks: int


def reconstruct(session: TrainingSession) -> Reconstruction:
    """Train a copy of the student block after block; blocks of a checkpoint are not trained anew.

    Errors: RefusedError where no values are in both graphs that everything passes through.
    """
    # a copy: blocks that get better one by one may make a worse whole
    student = session.student.clone()
    blocks = list(find_blocks(student, session.teacher))
    if not blocks:
        raise RefusedError(
            "finetune.preset",
            "block finds no part of the graph between values that both models have",
            "use preset=qad or recover",
        )
    # all parts are cut out before the first is trained: what they share is known by then
    parts = [_segment(student, block) for block in blocks]
    session = dataclasses.replace(
        session, student=student, recipe=_block_recipe(session.recipe, parts)
    )
    states = _saved_states(session)
    better = 0
    for index, (block, part) in enumerate(zip(blocks, parts, strict=True)):
        learner = _learner(part, block, session)
        # blocks before come from the checkpoint: their weights are put back below, in order
        if index == len(states):
            state: State = {}
            if learner is not None:
                progress = _block_progress(session.progress, index, len(blocks))
                state = _train_block(
                    session,
                    learner,
                    block,
                    part,
                    progress,
                )
            states.append(state)
            if session.checkpoint is not None and session.group.is_leader:
                session.checkpoint.save({"blocks": states})
        if learner is not None and states[index]:
            learner.put(states[index], part)
            better += _adopt(student, part)
    return Reconstruction(
        model=student,
        blocks=len(blocks),
        better_blocks=better,
    )


def find_blocks(student: ir.Model, teacher: ir.Model) -> Iterator[GraphBlock]:
    """Yield the blocks of the student in order, each with layers.

    They lie between values that both graphs have and that separate them. A block ends as soon as it
    can: before an activation that would hide what is below zero (behind it was worse, by
    docs/decisions/2026-11-22-training-few-bits.md).
    """
    known = made_values(teacher)
    start = Separator("", 0)
    for end in separators(student):
        if end.name in known and end.layers > start.layers:
            yield GraphBlock(start.name, end.name)
            start = end


def _block_recipe(recipe: TrainingRecipe, parts: Sequence[ir.Model]) -> TrainingRecipe:
    """Return the recipe without all that looks at a whole graph: outputs, labels, images."""
    # changed images would need the student's values anew at every step
    return dataclasses.replace(
        recipe,
        logit_mse=0.0,
        labels=0.0,
        features=(),
        attribution=0.0,
        output_weights=(),
        watch="loss",
        flip=False,
        shift=0,
        mixup=0.0,
        cutmix=0.0,
        loss="mse",
        accumulate=1,
        distill=True,
        exclude=(*recipe.exclude, *_shared_constants(parts)),
    )


def _shared_constants(parts: Iterable[ir.Model]) -> list[str]:
    """Return constants of several parts: values that one learned would not suit the others."""
    counts: Counter[str] = Counter()
    for part in parts:
        counts.update(part.graph.initializers.keys())
    return [name for name, count in counts.items() if count > 1]


def _saved_states(session: TrainingSession) -> list[State]:
    """Return the states of the blocks that an interrupted training has done."""
    saved = None if session.checkpoint is None else session.checkpoint.load()
    return [] if saved is None else list(saved["blocks"])


def _segment(model: ir.Model, block: GraphBlock) -> ir.Model:
    """Return a copy of the block as a model: of its start and of inputs that pass beside."""
    starts = [block.start] if block.start else []
    fed = [value for value in model.graph.inputs if value.const_value is None]
    graph = ir.convenience.extract(
        model.graph,
        inputs=[*starts, *fed],
        outputs=[block.end],
    )
    # a runtime would have inputs that nothing reads fed all the same
    for value in tuple(graph.inputs):
        if not value.uses():
            graph.inputs.remove(value)
    return ir.Model(
        graph,
        ir_version=model.ir_version or DEFAULT_IR_VERSION,
        functions=list(model.functions.values()),
    )


def _learner(
    part: ir.Model, block: GraphBlock, session: TrainingSession
) -> Learner | None:
    """Return the block as it trains, None where all its weights are excluded."""
    originals = session.environment.originals
    # a block without weights that train is no error of the whole
    try:
        return Learner(part, [block.end], session.recipe, originals)
    except RefusedError:
        return None


def _train_block(
    session: TrainingSession,
    learner: Learner,
    block: GraphBlock,
    part: ir.Model,
    progress: ProgressCallback,
) -> State:
    """Return what a block learned; empty where it got no better."""
    learned = spread(
        session.split.train,
        rows=MOST_ROWS,
        samples=session.samples,
    )
    units = np.concatenate([learned, session.split.held])
    samples = _block_samples(session, block, part, units)
    split = Split(
        train=np.arange(len(learned)), held=np.arange(len(learned), samples.units)
    )
    targets = samples.take(split.train, MOST_ROWS)[0].targets
    head = Head(
        output=block.end,
        student=block.end,
        teacher=block.end,
        kind="values",
    )
    objective = Objective(
        ComparedValues((head,)),
        session.recipe,
        variances({block.end: targets[block.end]}),
    )
    learner.to(session.device.name)
    block_session = dataclasses.replace(
        session,
        learner=learner,
        objective=objective,
        samples=samples,
        split=split,
        progress=progress,
        # targets are those of this block; states are kept by block, curves are of the whole
        live_teacher=None,
        checkpoint=None,
        log=no_log,
        mixed_input=block.start,
    )
    account = Loop(block_session).run()
    samples.close()
    return account.state if account.best_step else {}


def _block_samples(
    session: TrainingSession, block: GraphBlock, part: ir.Model, units: Units
) -> Samples:
    """Return the student's values before a block, beside the teacher's there and behind it."""
    samples = Samples(session.samples.ragged, session.folder)
    starts = [block.start] if block.start else []
    targets = [*starts, block.end]
    inputs = [value.name or "" for value in part.graph.inputs]
    runtime = session.environment.runtime
    with (
        runtime.runner(session.student, starts) as run_student,
        runtime.runner(session.teacher, targets) as run_teacher,
    ):
        for example in session.samples.take(units, ROWS_AT_A_TIME):
            # the student's own values, so that a block makes up for errors of those before
            own = run_student(example.feeds) | example.feeds
            theirs = run_teacher(example.feeds)
            samples.add(
                Example(
                    feeds={name: own[name] for name in inputs},
                    labels=None,
                    targets={name: theirs[name] for name in targets},
                )
            )
    return samples


def _adopt(student: ir.Model, part: ir.Model) -> bool:
    """Put a block's weights back, unless one of them is a setting elsewhere."""
    # such a weight got a tensor of its own, under a name that the whole graph has not
    if not set(part.graph.initializers) <= set(student.graph.initializers):
        return False
    for name, value in part.graph.initializers.items():
        student.graph.initializers[name].const_value = value.const_value
    return True


def _block_progress(
    progress: ProgressCallback, index: int, count: int
) -> ProgressCallback:
    """Return a callback that takes a block's progress and tells that of all blocks."""

    def report(part: float, words: str) -> None:
        whole = (index + part) / count
        progress(whole, f"block {index + 1} of {count}, {words}")

    return report
