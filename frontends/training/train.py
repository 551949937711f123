"""One training from models and data to an outcome: prepare, train, accept or leave as it was."""

from __future__ import annotations

import time
from collections.abc import Iterable
from dataclasses import dataclass, field

import onnx_ir as ir

from ... import CheckError
from ...passes._core.outcome import Chosen, Stat
from ...passes._core.training_recipe import TrainingRecipe
from .account import Account, Stop, StopReason
from .blocks import reconstruct
from .choices import has_budget
from .data import TooFewSamples, TrainingBatch
from .loop import Loop
from .prepare import training_session
from .regrowth import EVERY
from .score import Score
from .session import Environment, TrainingSession


@dataclass
class Trained:
    """Outcome of a training.

    `weights`: tensors that changed, 0 where the student stays as it was; `reason` says why then.
    `stats`: plain figures for the report. `warnings`: what the user should know.
    `chosen`: options that the recipe had left open.
    """

    weights: int = 0
    reason: str = ""
    stats: dict[str, Stat] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    chosen: list[Chosen] = field(default_factory=list)


def train(
    student: ir.Model,
    teacher: ir.Model,
    batches: Iterable[TrainingBatch],
    recipe: TrainingRecipe,
    environment: Environment,
) -> Trained:
    """Train `student` towards the outputs of `teacher`; only better weights replace its own.

    `batches`: (feeds, labels or None), read once. Errors: UsageError (options), RefusedError
    (models, data), CheckError where the loss stops being finite before anything got better.
    """
    began = time.monotonic()
    try:
        result = _train(
            student,
            teacher,
            batches,
            recipe,
            environment,
        )
    except TooFewSamples as error:
        # a student cannot do without, and who names a budget should know that it is not spent
        if has_budget(recipe) or recipe.preset == "student":
            raise
        result = Trained(
            reason=error.problem,
            warnings=[f"{error.problem}; the weights stay as they are: {error.fix}"],
        )
    result.stats["seconds"] = round(time.monotonic() - began, 1)
    return result


def _train(
    student: ir.Model,
    teacher: ir.Model,
    batches: Iterable[TrainingBatch],
    recipe: TrainingRecipe,
    environment: Environment,
) -> Trained:
    with training_session(student, teacher, batches, recipe, environment) as session:
        if session.recipe.preset == "block":
            result = _train_blocks(session)
        else:
            result = _train_whole(session)
        result.chosen += session.chosen
        result.warnings += session.warnings
    return result


def _train_blocks(session: TrainingSession) -> Trained:
    found = reconstruct(session)
    result = _accepted(session, found.model)
    if result.weights:
        result.weights = max(_copy_weights(found.model, session.student), 1)
    result.stats |= _data_figures(session)
    result.stats["blocks"] = found.blocks
    result.stats["better_blocks"] = found.better_blocks
    return result


def _train_whole(session: TrainingSession) -> Trained:
    loop = Loop(session)
    account = loop.run()
    result = _outcome(session, account)
    result.stats |= _data_figures(session)
    result.stats |= _loop_figures(account, loop, session.recipe)
    return result


def _outcome(session: TrainingSession, account: Account) -> Trained:
    """Keep the best state if the runtime agrees that it is better than what was given."""
    warnings = []
    stop = account.stop
    if stop is not None and stop.reason is StopReason.NOT_FINITE:
        warnings.append(_not_finite_warning(stop, account.best_step))
    if session.recipe.regrow and not account.regrown:
        warnings.append(
            "regrow: no zeros changed places, since no weight that trains was pruned or the "
            f"training had no more than {EVERY} steps"
        )
    learner = session.learner
    # recalibrated statistics may have made a state better without a step
    if account.best_step == 0 and learner.statistics is None:
        return Trained(
            reason="training made nothing better on the rows held out",
            warnings=warnings,
        )
    # judged by the written file's runtime, which rounds otherwise than torch
    trained = session.student.clone()
    learner.put(account.state, trained)
    result = _accepted(session, trained)
    if result.weights:
        # not copied from `trained`: tensors there may have got names of their own
        learner.put(account.state, session.student)
        result.weights = learner.weights
    result.warnings += warnings
    return result


def _not_finite_warning(stop: Stop, best_step: int) -> str:
    """Return the warning of a training that was cut short.

    Errors: CheckError if nothing got better before.
    """
    if best_step == 0:
        raise CheckError(
            "finetune",
            stop.message,
            "lower the rate, or clip, or clean those rows of the data",
        )
    return f"{stop.message}: stopped, and the state of step {best_step} is kept"


def _accepted(session: TrainingSession, trained: ir.Model) -> Trained:
    """Score both models by the runtime; `weights` is 1 if the trained one is better, else 0."""
    watch = session.recipe.watch
    before = session.acceptance.score(session.student, watch)
    after = session.acceptance.score(trained, watch)
    result = Trained(stats={"before": before.value, "after": after.value})
    # no better counts as worse: the student stays byte for byte
    if after.finite and after > before:
        result.weights = 1
    else:
        result.reason = _rejection(before, after)
    return result


def _rejection(before: Score, after: Score) -> str:
    return (
        "run by ONNX Runtime it got no better on the rows held out "
        f"({before.value:.4f} before, {after.value:.4f} after)"
    )


def _copy_weights(source: ir.Model, target: ir.Model) -> int:
    """Replace initializers that differ; return how many."""
    count = 0
    for name, value in source.graph.initializers.items():
        # a setting that shared a weight has got a tensor of its own, which the target has not
        own = target.graph.initializers.get(name)
        if own is not None and own.const_value is not value.const_value:
            own.const_value = value.const_value
            count += 1
    return count


def _data_figures(session: TrainingSession) -> dict[str, Stat]:
    return {
        "preset": session.recipe.preset,
        "rows": session.samples.rows,
        "held_out": session.samples.rows_in(session.split.held),
    }


def _loop_figures(
    account: Account, loop: Loop, recipe: TrainingRecipe
) -> dict[str, Stat]:
    figures: dict[str, Stat] = {
        "batch": loop.batch,
        "rate": recipe.rate,
        "steps": account.steps,
        "best_step": account.best_step,
        "epochs": round(account.steps / loop.order.steps, 2),
    }
    if account.losses:
        figures["loss_first"] = account.losses[0]
        figures["loss_last"] = account.losses[-1]
    figures["scores"] = " ".join(f"{score:.4f}" for score in account.scores)
    figures["losses"] = " ".join(f"{loss:.4g}" for loss in account.losses)
    if recipe.regrow:
        figures["regrown"] = account.regrown
    if account.stop is not None:
        figures["stopped"] = account.stop.message
    elif account.skipped:
        figures["stopped"] = (
            f"checks without anything better took {account.skipped:.0%} off the budget"
        )
    return figures
