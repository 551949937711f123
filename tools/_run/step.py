"""Steps of a run: apply a pass, verify the model after it, and keep it or go back."""

from __future__ import annotations

import dataclasses
import functools
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx_ir as ir

from ... import CheckError, OnnxOptError, UsageError
from ...frontends.onnx_file import save
from ...passes._core.contract import Pass
from ...passes._core.graph import all_nodes
from ...passes._core.ops import HALF_FLOATS
from ...passes._core.opset import OpsetRefused
from ...passes._core.outcome import Effect, PassOutcome
from ...runtime.session import LoadRefused, is_runtime_fault
from ...runtime.worker import LimitExceeded, RemoteError, WorkerDied
from .attempt import PassAttempt, Verification
from .checks import first_line, interface_of, validity_of
from .context import TrainingContext
from .drift import (
    COARSE,
    FLOAT32,
    Outputs,
    Reference,
    Tolerance,
    as_figures,
    inexact,
)
from .explain_loss import LossyStage
from .kernels import is_quantized
from .load import Original, own_fault
from .result import Step
from .run import Run
from .spare import spare


@dataclass(frozen=True)
class Checked:
    """The model after the passes so far, as far as it is believed.

    `outputs`: its outputs on the reference's batches; None where nothing is compared. `steps`: one
    for each pass. `stages`: its lossy changes, where losses are to be explained.
    """

    model: ir.Model
    outputs: Outputs | None
    steps: tuple[Step, ...] = ()
    stages: tuple[LossyStage, ...] = ()

    @property
    def applied(self) -> str:
        """Pipeline text of the passes that were not rolled back."""
        return ", ".join(step.text for step in self.steps if not step.rolled_back)


def check_loaded(verifier: Verifier, model: ir.Model) -> Checked:
    """Start of the steps: the model as loaded, which must compute what its file does.

    Errors: CheckError where it does not.
    """
    reference = verifier.reference
    if reference is None:
        return Checked(model, None)
    # normalizing has changed the graph: it is held to the standard of an exact pass
    try:
        outputs = verifier.outputs_of(model)
    except (LoadRefused, RemoteError, WorkerDied) as error:
        if isinstance(error, LimitExceeded):
            raise
        raise own_fault(f"the model as loaded does not run: {error.problem}") from None
    problem = verifier.inexact(model, reference.original, outputs)
    if problem:
        raise own_fault(f"the model as loaded computes something else: {problem}")
    return Checked(model, outputs)


def run_step(
    run: Run,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
    pass_: Pass,
    is_worth: Callable[[ir.Model, ir.Model], bool] | None = None,
) -> Checked:
    """Apply one pass and verify it; an exact pass that fails is rolled back with a warning.

    `is_worth`: compares the models before and after; where it is False the pass leaves no trace.

    Errors: CheckError where a lossy pass fails, or any with `strict`.
    """
    model = checked.model
    # tensors are shared: a clone costs the graph, not the weights
    before = model.clone()
    with run.reporter.progress(str(pass_)):
        worth = None if is_worth is None else functools.partial(is_worth, before)
        attempt = _attempt(run, verifier, context, checked, model, pass_, worth)
        # before the costly part
        if attempt is None:
            return dataclasses.replace(checked, model=before)
        if attempt.fault and pass_.effect == "lossy":
            attempt = _spared(run, verifier, context, checked, before, pass_, attempt)
    outcome = attempt.outcome
    verification = attempt.verification
    problem = verification.problem
    step = Step(
        pass_.name,
        str(pass_),
        seconds=attempt.seconds,
        stats=dict(outcome.stats),
        declined=[dataclasses.asdict(declined) for declined in outcome.declined],
        chosen=[dataclasses.asdict(chosen) for chosen in outcome.chosen],
    )
    if problem is not None:
        if pass_.effect == "lossy" or run.settings.strict:
            raise CheckError(
                str(pass_),
                problem,
                "leave this pass out, or exclude the part of the model that it names",
            )
        run.reporter.warn(str(pass_), f"rolled back: {problem}")
        step = dataclasses.replace(step, rolled_back=True)
        return dataclasses.replace(checked, model=before, steps=(*checked.steps, step))
    step = dataclasses.replace(
        step,
        changed=outcome.changed,
        drift=None if verification.drift is None else as_figures(verification.drift),
    )
    stages = checked.stages
    if run.settings.explain_loss and pass_.effect == "lossy" and outcome.changed:
        stages = _with_stage(stages, pass_, before, attempt.model, attempt.float_form)
    return Checked(attempt.model, verification.outputs, (*checked.steps, step), stages)


def _attempt(
    run: Run,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
    model: ir.Model,
    pass_: Pass,
    is_worth: Callable[[ir.Model], bool] | None = None,
) -> PassAttempt | None:
    """Apply a pass to `model`, in place, and verify that; None where it is not worth it.

    Errors: as `apply_pass`, but for the runtime's own faults.
    """
    # a pass that starts from another float model than the one before it says so
    context.float_form = None
    error: OnnxOptError | None = None
    start = time.perf_counter()
    try:
        problem, outcome = apply_pass(run, context, model, pass_)
    except OnnxOptError as raised:
        if not (is_runtime_fault(raised) or isinstance(raised, OpsetRefused)):
            raise
        error = raised
        problem, outcome = raised.problem, PassOutcome()
    # the time of the pass alone: verifying may take longer
    seconds = time.perf_counter() - start
    if error is not None:
        verification = Verification(problem, fault=error.problem)
    elif problem is not None:
        verification = Verification(problem)
    elif is_worth is not None and not is_worth(model):
        return None
    else:
        verification = verifier.verify(model, pass_.effect, checked.outputs)
    return PassAttempt(model, outcome, verification, seconds, context.float_form, error)


def _spared(
    run: Run,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
    before: ir.Model,
    pass_: Pass,
    failed: PassAttempt,
) -> PassAttempt:
    """Find the most of a lossy pass that the runtime bears, with a warning of what is left out.

    Errors: CheckError where nothing is, or with `strict`; the pass's own where it raised one.
    """
    seconds = [failed.seconds]

    def attempt(variant: Pass) -> PassAttempt:
        tried = _attempt(run, verifier, context, checked, before.clone(), variant)
        assert tried is not None
        seconds.append(tried.seconds)
        return tried

    def fault_of(model: ir.Model) -> str:
        return verifier.verify(model, "lossy", None).fault

    spared = spare(pass_, before, failed, attempt, fault_of)
    if spared.attempt is None and isinstance(failed.error, OpsetRefused):
        raise failed.error
    if spared.attempt is None or run.settings.strict:
        raise CheckError(str(pass_), failed.fault, spared.fix)
    run.reporter.warn(str(pass_), spared.words)
    return dataclasses.replace(spared.attempt, seconds=sum(seconds))


def apply_pass(
    run: Run, context: TrainingContext, model: ir.Model, pass_: Pass
) -> tuple[str | None, PassOutcome]:
    """Run a pass in place; the problem, if any, and its account.

    Errors: UsageError; every failure of a lossy pass, and refusals of any with `strict`.
    """
    try:
        return None, pass_.run(model, context)
    except UsageError:
        # options that do not fit the model are the caller's to mend
        raise
    except OnnxOptError as error:
        if pass_.effect == "lossy" or run.settings.strict:
            raise
        return f"{error.where}: {error.problem}", PassOutcome()
    except Exception as error:
        # passes from outside raise anything; the run can go on without an exact one
        problem = f"{type(error).__name__}: {first_line(error)}"
        if pass_.effect == "lossy":
            raise OnnxOptError(
                str(pass_),
                f"failed: {problem}",
                "run without this pass; --debug shows the traceback to report",
            ) from error
        return problem, PassOutcome()


def _with_stage(
    stages: tuple[LossyStage, ...],
    pass_: Pass,
    before: ir.Model,
    model: ir.Model,
    float_form: ir.Model | None,
) -> tuple[LossyStage, ...]:
    """Add what a lossy pass started from and made.

    One that refines quantized layers belongs to the pass before it: losses of a layer are told
    against its float form alone.
    """
    result = model.clone()
    if stages and float_form is None and is_quantized(before):
        *earlier, last = stages
        refined = dataclasses.replace(last, result=result)
        return (*earlier, refined)
    reference = float_form or before
    stage = LossyStage(pass_, reference, result)
    return (*stages, stage)


def warn_if_unchanged(run: Run, steps: Sequence[Step]) -> None:
    """Warn where no pass changed anything, with the commonest reasons."""
    if any(step.changed for step in steps):
        return
    reasons: Counter[str] = Counter()
    for step in steps:
        for declined in step.declined:
            reasons[declined["reason"]] += 1
    words = [f"{reason} ({count})" for reason, count in reasons.most_common(3)]
    run.reporter.warn(
        "nothing changed", "; ".join(words) or "no pass found anything to do"
    )


# verification


@dataclass(frozen=True)
class Verifier:
    """Verification of models against the original; `reference` None: in structure only."""

    scratch: Path
    original: Original
    reference: Reference | None

    def verify(
        self, model: ir.Model, effect: Effect, expected: Outputs | None
    ) -> Verification:
        """Check a model after a pass; `expected`: outputs before it, which an exact one keeps."""
        problem = self.original.interface.difference(interface_of(model))
        # the costly check second
        problem = problem or validity_of(model).worse_than(self.original.validity)
        if problem or self.reference is None:
            return Verification(problem)
        try:
            outputs = self.outputs_of(model)
            drift = self.reference.from_original(outputs)
        except (LoadRefused, RemoteError, WorkerDied) as error:
            # the original ran on the same feeds: neither they nor a limit are new
            is_limit = isinstance(error, LimitExceeded)
            return Verification(error.problem, fault="" if is_limit else error.problem)
        except OnnxOptError as error:
            return Verification(f"{error.where}: {error.problem}")
        fault = ""
        if effect != "lossy":
            assert expected is not None
            problem = self.inexact(model, expected, outputs)
        elif drift.nonfinite:
            problem = f"{drift.nonfinite} output values are no longer finite"
            fault = problem
        return Verification(problem, drift, outputs, fault)

    def outputs_of(self, model: ir.Model) -> Outputs:
        """Outputs of a model on the reference's batches. Errors: as `Reference.outputs`."""
        assert self.reference is not None
        # gone before the next: only one candidate takes room on the disk
        with tempfile.TemporaryDirectory(dir=self.scratch) as folder:
            path = Path(folder, "candidate.onnx")
            save(model, path)
            return self.reference.outputs(path)

    def inexact(
        self, model: ir.Model, expected: Outputs, outputs: Outputs
    ) -> str | None:
        """Say why a model's outputs are not as expected up to float noise; None if they are."""
        assert self.reference is not None
        tolerance = _tolerance(model)
        problem = inexact(expected, outputs, tolerance)
        if problem is None:
            return None
        # the original's own noise takes another run: measured only where it matters
        return inexact(expected, outputs, tolerance, self.reference.noise())


def _tolerance(model: ir.Model) -> Tolerance:
    # judged by the model as it is now: an exact pass may follow quant
    if is_quantized(model):
        return COARSE
    for node in all_nodes(model):
        if any(output.dtype in HALF_FLOATS for output in node.outputs):
            return COARSE
    return FLOAT32
