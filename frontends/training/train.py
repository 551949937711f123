"""One training from models and data to an account: collect, train, judge by ONNX Runtime, write
back what is better.
"""

from __future__ import annotations

import contextlib
import dataclasses
import math
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ... import CheckError, RefusedError
from ..trainable import coarsest_grid
from .augment import Augment, image_of
from .blocks import reconstruct
from .checkpoint import Checkpoint
from .data import Example, Samples, Split, split, spread
from .device import Device
from .distributed import Team, team
from .features import find_taps
from .heads import Head, find_heads
from .loop import Account, Job, Loop, Tell
from .objective import Objective, check_labels
from .recipe import SOFT_LEVELS, Recipe
from .score import Score, Scorer
from .student import Student
from .teacher import Runtime, Said, Teacher, teacher_of
from .tensorboard import logging_to

Fed = tuple[Mapping[str, NDArray[Any]], NDArray[Any] | None]
MEASURED = 1000
"""Rows from which the variance of the teacher's values is taken."""
FEW_ROWS = 200
"""Held out: below, the distance from the teacher says more than how often first choices agree."""
LEAST_BATCH = 32
"""Rows whose statistics are near enough to those of all."""
QUANTIZERS = {
    "QuantizeLinear",
    "DequantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
    "QLinearMatMul",
}


@dataclass
class Trained:
    """What came of it. `weights`: tensors that changed, 0 where the student stays as it was;
    `reason` says why then.

    `stats`: plain figures for the report. `warnings`: what the user should know.
    """

    weights: int = 0
    reason: str = ""
    stats: dict[str, int | float | str] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)


@dataclass
class Setting:
    """What a training starts from besides its data and recipe."""

    runtime: Runtime
    seed: int = 0
    originals: Mapping[str, NDArray[Any]] | None = None
    folder: Path | None = None
    tell: Tell = lambda progress, words: None


def train(
    student: ir.Model,
    teacher: ir.Model,
    batches: Iterable[Fed],
    recipe: Recipe,
    setting: Setting,
) -> Trained:
    """Train `student` to say what `teacher` says; its weights are replaced only by better ones.

    `batches`: (feeds, labels or None), read once. Errors: UsageError (options), RefusedError
    (models, data), CheckError where the loss stops being finite before anything got better.
    """
    quantized = any(
        node.op_type in QUANTIZERS
        for node in ir.traversal.RecursiveGraphIterator(student.graph)
    )
    levels, asked = coarsest_grid(student) if quantized else math.inf, recipe
    recipe = asked.completed(quantized, levels)
    began = time.monotonic()
    with (
        _threads(recipe.threads),
        torch.random.fork_rng(),
        team() as us,
        tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder,
        contextlib.ExitStack() as stack,
    ):
        torch.manual_seed(setting.seed)
        device = Device.of(recipe)
        log = stack.enter_context(logging_to(recipe.tensorboard if us.leads else ""))
        objective = _objective(student, teacher, recipe)
        said = stack.enter_context(
            teacher_of(student, teacher, objective, setting.runtime, device)
        )
        samples = _collected(student, batches, said.once, Path(folder))
        stack.callback(samples.close)
        parts = split(samples, recipe.holdout, setting.seed)
        judge = Judge(objective, samples, parts, setting.runtime, us)
        if levels < SOFT_LEVELS:
            recipe = asked.completed(quantized, levels, judge.agreement(student))
        recipe = objective.recipe = _suited(recipe, samples, parts, us)
        learner = Student(
            student,
            objective.student_names(),
            recipe,
            setting.originals,
            lambda rows: (
                e.feeds
                for e in samples.take(spread(parts.train, MEASURED, samples), rows)
            ),
            teacher if recipe.preset == "recover" else None,
        )
        _prepare(learner, objective, samples, parts, said, device)
        checkpoint = (
            None
            if setting.folder is None
            else Checkpoint(
                setting.folder,
                dict(learner.runs.named_parameters()),
                recipe,
                setting.seed,
                f"{samples.rows} rows in {samples.units} units, {us.size} processes",
            )
        )
        if recipe.preset == "block":
            trained = student.clone()
            figures = reconstruct(
                trained,
                teacher,
                samples,
                parts,
                recipe,
                setting,
                us,
                Path(folder),
                device,
                checkpoint,
            )
            result = judge.adopted(student, trained)
        else:
            loop = Loop(
                Job(
                    learner,
                    objective,
                    samples,
                    parts,
                    recipe,
                    said.often if objective.asks_always() else None,
                    us,
                    setting.seed,
                    setting.tell,
                    checkpoint,
                    device,
                    log=log,
                )
            )
            account = loop.run()
            result = _outcome(learner, student, account, judge)
            figures = _figures(account, loop, recipe)
    result.stats |= {
        "preset": recipe.preset,
        "rows": samples.rows,
        "held_out": samples.rows_in(parts.held),
        **figures,
        "seconds": round(time.monotonic() - began, 1),
    }
    return result


def _objective(student: ir.Model, teacher: ir.Model, recipe: Recipe) -> Objective:
    heads, taps = (
        find_heads(student, teacher),
        find_taps(student, teacher, recipe.features),
    )
    return Objective(heads, taps, recipe, labelled=recipe.labels > 0)


def _suited(recipe: Recipe, samples: Samples, parts: Split, team: Team) -> Recipe:
    """With it decided what depends on the data: what counts as better (counts of agreement say too
    little of few rows), and whether normalizations may go by the statistics of batches (of many
    rows, of one process).
    """
    watch, statistics = recipe.watch, recipe.statistics
    if watch == "auto":
        watch = "loss" if samples.rows_in(parts.held) < FEW_ROWS else "agreement"
    if statistics == "auto":
        rows = recipe.batch_of(round(len(parts.train) * samples.rows_of_a_unit()))
        able = (
            recipe.preset == "recover"
            and rows >= LEAST_BATCH
            and not samples.ragged
            and team.size == 1
        )
        statistics = "batch" if able or recipe.preset == "student" else "fixed"
    return dataclasses.replace(recipe, watch=watch, statistics=statistics)


def _collected(
    student: ir.Model, batches: Iterable[Fed], ask: Said, folder: Path
) -> Samples:
    """All data with the teacher's values beside. Errors: RefusedError where those are not
    finite.
    """
    first = [
        value.shape[0] if value.shape is not None and len(value.shape) else 1
        for value in student.graph.inputs
    ]
    samples = Samples(any(isinstance(dim, int) for dim in first), folder)
    for index, (feeds, labels) in enumerate(batches):
        values = {name: _array(value) for name, value in ask(dict(feeds)).items()}
        for name, value in values.items():
            if not np.isfinite(value).all():
                raise RefusedError(
                    "finetune, teacher",
                    f"'{name}' is not finite for batch {index} of the data",
                    "leave that data out, or give a teacher that is sound",
                )
        samples.add(Example(dict(feeds), labels, values))
    return samples


def _prepare(
    learner: Student,
    objective: Objective,
    samples: Samples,
    parts: Split,
    said: Teacher,
    device: Device,
) -> None:
    """See that one example goes through everything that the loop will do with it."""
    learner.to(device.name)
    objective.labelled &= samples.labelled
    example = samples.take(parts.train[:2], 2)[0]
    values = learner.trains.run(example.feeds)
    targets = {
        name: torch.as_tensor(value).to(device.name)
        for name, value in said.often(example.feeds).items()
    }
    for head in objective.heads:
        own, theirs = values[head.student], targets[head.teacher]
        _check_shapes(head, own.shape, theirs.shape)
    if objective.labelled or objective.recipe.watch == "labels":
        if not samples.labelled:
            raise RefusedError(
                "finetune.watch",
                "the data has no labels",
                "give labels, or watch=agreement",
            )
        for piece in samples.take(np.concatenate([parts.train, parts.held]), 4096):
            first = objective.heads[0]
            assert piece.labels is not None
            check_labels(piece.labels, piece.targets[first.teacher].shape, first)
    if not objective.labelled and not objective.recipe.distill and not objective.taps:
        raise RefusedError(
            "finetune",
            "there is nothing to learn from: no teacher's loss and no labels",
            "give labelled data, or leave distill on",
        )
    if Augment.of(objective.recipe):
        image_of(example)
    objective.project(values, targets)
    if objective.taps:
        objective.measure(
            said.often(
                samples.take(spread(parts.train, FEW_ROWS, samples), FEW_ROWS)[0].feeds
            )
        )
    objective.measure(
        samples.take(spread(parts.train, MEASURED, samples), MEASURED)[0].targets
    )
    _check_gradients(learner, objective.student_names(), values)


def _check_shapes(head: Head, own: Sequence[int], theirs: Sequence[int]) -> None:
    if tuple(own) != tuple(theirs):
        raise RefusedError(
            f"finetune, output '{head.output}'",
            f"the student gives {list(own)}, the teacher {list(theirs)}",
            "train models that answer the same question",
        )


def _check_gradients(
    learner: Student, names: Sequence[str], values: Mapping[str, Any]
) -> None:
    """See that what is compared depends on some weight, at these rows."""
    floats = [v for v in (values[name] for name in names) if v.requires_grad]
    probe = sum((v * torch.randn_like(v)).sum() for v in floats)
    found = (
        torch.autograd.grad(probe, learner.parameters(), allow_unused=True)
        if floats
        else ()
    )
    if not any(g is not None and bool(g.any()) for g in found):
        cuts = "; ".join(
            sorted(
                {f"{cut.node}: {cut.reason}" for cut in learner.trains.provenance.cuts}
            )[:3]
        )
        raise RefusedError(
            "finetune",
            f"no weight is reached by a gradient{' (' + cuts + ')' if cuts else ''}",
            "train a graph whose outputs follow from its weights by differentiable operations",
        )


def _outcome(
    learner: Student, student: ir.Model, account: Account, judge: Judge
) -> Trained:
    """Keep the best state if ONNX Runtime agrees that it is better than what was given."""
    warnings = []
    if account.trouble.startswith("the "):  # not finite
        if account.best_step == 0:
            raise CheckError(
                "finetune",
                account.trouble,
                "lower the rate, or clip, or clean those rows of the data",
            )
        warnings.append(
            f"{account.trouble}: stopped, and the state of step {account.best_step} is kept"
        )
    if (
        account.best_step == 0 and learner.statistics is None
    ):  # else its statistics moved before the first step
        return Trained(
            reason="training made nothing better on the rows held out",
            warnings=warnings,
        )
    trained = student.clone()
    learner.put(account.state, trained)
    result = judge.adopted(
        student, trained, write=lambda: learner.put(account.state, student)
    )
    if result.weights:
        result.weights = learner.weights
    result.warnings += warnings
    return result


@dataclass(frozen=True)
class Judge:
    """Says by ONNX Runtime, on the rows held out, whether a trained model is better than what was
    given.
    """

    objective: Objective
    samples: Samples
    parts: Split
    runtime: Runtime
    team: Team

    def adopted(
        self,
        student: ir.Model,
        trained: ir.Model,
        write: Callable[[], None] | None = None,
    ) -> Trained:
        """Give `student` the weights of `trained` (by `write`, else its initializers) unless that
        is worse.
        """
        watch = self.objective.recipe.watch
        scores = [
            self._score(model, watch) if self.team.leads else Score(0.0, 0.0)
            for model in (student, trained)
        ]
        numbers = self.team.of_leader(
            *(n for score in scores for n in (score.value, score.closeness))
        )
        before, after = Score(*numbers[:2]), Score(*numbers[2:])
        result = Trained(stats={"before": before.value, "after": after.value})
        if not after.finite or after <= before:
            result.reason = (
                "run by ONNX Runtime it got no better on the rows held out "
                f"({before.value:.4f} before, {after.value:.4f} after)"
            )
            return result
        result.weights = max(_replaced(student, trained, write is None), 1)
        if write is not None:
            write()
        return result

    def agreement(self, student: ir.Model) -> float:
        """With the teacher, 0 to 1."""
        return self.team.of_leader(
            self._score(student, "agreement").value if self.team.leads else 0.0
        )[0]

    def _score(self, model: ir.Model, watch: str) -> Score:
        scorer = Scorer(self.objective.heads, watch)
        with self.runtime.runner(
            model, [head.student for head in self.objective.heads]
        ) as run:
            for example in self.samples.take(self.parts.held, 64):
                values = run(example.feeds)
                for head in self.objective.heads:
                    _check_shapes(
                        head,
                        values[head.student].shape,
                        example.targets[head.teacher].shape,
                    )
                scorer.add(values, example.targets, example.labels)
        return scorer.score()


def _replaced(student: ir.Model, trained: ir.Model, write: bool) -> int:
    """How many initializers differ; where `write`, they are replaced."""
    count = 0
    for name, value in trained.graph.initializers.items():
        mine = student.graph.initializers.get(
            name
        )  # a setting that shared a weight gets a tensor of its own
        if mine is not None and mine.const_value is not value.const_value:
            count += 1
            mine.const_value = value.const_value if write else mine.const_value
    return count


def _figures(
    account: Account, loop: Loop, recipe: Recipe
) -> dict[str, int | float | str]:
    return {
        "batch": loop.batch,
        "rate": recipe.rate,
        "steps": account.steps,
        "best_step": account.best_step,
        "epochs": round(account.steps / loop.order.steps, 2),
        **(
            {"loss_first": account.losses[0], "loss_last": account.losses[-1]}
            if account.losses
            else {}
        ),
        "scores": " ".join(f"{score:.4f}" for score in account.scores),
        **({"stopped": account.trouble} if account.trouble else {}),
    }


def _array(value: Any) -> NDArray[Any]:
    return (
        value.float().cpu().numpy()
        if isinstance(value, torch.Tensor)
        else np.asarray(value)
    )


@contextlib.contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    if count:
        torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
