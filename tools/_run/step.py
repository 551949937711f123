"""Steps of a run: apply a pass, verify the model after it, and keep it or go back."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import CheckError, OnnxOptError, UsageError
from ...passes._core.contract import Pass
from ...passes._core.opset import OpsetRefused
from ...passes._core.order import Ran, lost_by_order
from ...passes._core.outcome import Declined, PassOutcome
from ...passes._core.registry import ForeignPass
from ...passes._core.requirements import requirements_of
from ...runtime.held_outputs import HeldOutputs
from ...runtime.installed import installed, too_old
from ...runtime.session import LoadRefused, is_runtime_fault
from ...runtime.worker import LimitExceeded, RemoteError, WorkerDied
from .attempt import PassAttempt
from .bisection import Bisection, Problem, without_culprits
from .checks import first_line
from .context import TrainingContext
from .drift import as_figures
from .evidence import VerificationInputs
from .explain_loss import LossyStage
from .kernels import is_quantized
from .load import own_fault
from .result import Step
from .run import Run
from .spare import Unmet, spare
from .verify import Baseline, Counts, Verification, Verifier


@dataclass(frozen=True)
class Checked:
    """The model after the passes so far, as far as it is believed.

    `outputs`: its outputs on the reference's batches; None where nothing is compared. `steps`: one
    for each pass. `stages`: its lossy changes, where models are run. `counts`: of its
    optimized graph, if known. `is_exact`: no lossy pass has changed it.
    """

    model: ir.Model
    outputs: HeldOutputs | None
    steps: tuple[Step, ...] = ()
    stages: tuple[LossyStage, ...] = ()
    counts: Counts | None = None
    is_exact: bool = True

    @property
    def applied(self) -> str:
        """Pipeline text of the passes that were not rolled back."""
        return ", ".join(step.text for step in self.steps if not step.rolled_back)

    def baseline(self, verifier: Verifier, model: ir.Model) -> Baseline:
        """Start of the next pass; `model`: a clone of this one, which stays as it is."""
        return Baseline(
            verifier,
            model,
            self.outputs,
            self.counts,
            self.is_exact,
        )


def check_loaded(
    verifier: Verifier, model: ir.Model, is_counted: bool = False
) -> Checked:
    """Start of the steps: the model as loaded, which must compute what its file does.

    `is_counted`: exact passes will compare ONNX Runtime's optimized graphs with its own. Errors:
    CheckError where it does not.
    """
    reference = verifier.reference
    if reference is None:
        return Checked(model, None)
    # normalizing has changed the graph: it is held to the standard of an exact pass
    try:
        outputs, counts = verifier.runs_of(model, is_counted)
    except (LoadRefused, RemoteError, WorkerDied) as error:
        if isinstance(error, LimitExceeded):
            raise
        raise own_fault(f"the model as loaded does not run: {error.problem}") from None
    of_file = Baseline(verifier, model, reference.original)
    problem = verifier.inexact(model, of_file, outputs)
    if problem:
        raise own_fault(f"the model as loaded computes something else: {problem}")
    return Checked(model, outputs, counts=counts)


Judge = Callable[[ir.Model, PassOutcome], Verification | None]
"""Verification of what a pass has made; None: not worth one, the pass leaves no trace."""


def run_step(
    run: Run,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
    pass_: Pass,
    is_worth: Callable[[ir.Model, ir.Model], bool] | None = None,
) -> Checked:
    """Apply one pass and verify it; one that fails loses the changes that make it fail.

    Of an exact pass these are rewrites, of a lossy one the parts that the runtime does not bear.
    Where none are to blame, an exact pass is rolled back with a warning. `is_worth`: compares the
    models before and after; where it is False the pass leaves no trace.

    Errors: CheckError where a lossy pass fails, or any with `strict`.
    """
    # tensors are shared: a clone costs the graph, not the weights
    before = checked.model.clone()
    baseline = checked.baseline(verifier, before)
    # what a pass of the user's own costs the runtime is the user's affair
    is_foreign = isinstance(pass_, ForeignPass)

    def judge(model: ir.Model, outcome: PassOutcome) -> Verification | None:
        # before the costly part
        if is_worth is not None and not (outcome.changed and is_worth(before, model)):
            return None
        is_counted = outcome.changed > 0 and not is_foreign
        return verifier.verify(model, pass_.effect, baseline, is_counted)

    def judged(model: ir.Model) -> PassAttempt | None:
        return tried(run, context, pass_, model, judge)

    with run.reporter.progress(str(pass_)), _accounted(run, pass_) as told:
        attempt = judged(checked.model)
        if attempt is None:
            return dataclasses.replace(checked, model=before)
        told.append(_account(pass_, attempt))
        if attempt.fault and pass_.effect == "lossy":
            attempt = _spared(
                run,
                context,
                baseline,
                pass_,
                attempt,
            )
        if attempt.problem is not None:
            _refuse(run, pass_, attempt.problem)
            mended = _without_culprits(
                run,
                pass_,
                baseline,
                attempt,
                judged,
            )
            if mended is None:
                return _rolled_back(
                    run,
                    checked,
                    pass_,
                    attempt,
                    attempt.problem,
                    before,
                )
            attempt = mended
    outcome = attempt.outcome
    verification = attempt.verification
    step = dataclasses.replace(_account(pass_, attempt), changed=outcome.changed)
    is_lossy = pass_.effect == "lossy" and outcome.changed > 0
    # they were not counted again where nothing changed
    counts = verification.counts if outcome.changed else checked.counts
    if is_foreign:
        counts = None
    stages = checked.stages
    # a result that is found poor at the end is explained, too
    if verification.outputs is not None and is_lossy:
        stages = _with_stage(
            stages,
            pass_,
            before,
            attempt.model,
            attempt.float_form,
        )
    return Checked(
        attempt.model,
        verification.outputs,
        (*checked.steps, step),
        stages,
        counts,
        checked.is_exact and not is_lossy,
    )


@contextlib.contextmanager
def _accounted(run: Run, pass_: Pass) -> Iterator[list[Step]]:
    """Keep the account of a pass at which the run ends: the last that was told, or its name."""
    told = [Step(pass_.name, str(pass_), unit=pass_.unit)]
    try:
        yield told
    except OnnxOptError:
        run.reporter.refused = told[-1:]
        raise


def tried(
    run: Run, context: TrainingContext, pass_: Pass, model: ir.Model, judge: Judge
) -> PassAttempt | None:
    """Apply a pass to a model, in place, and judge it; None: it is not worth a judgement.

    Errors: as `apply_pass`, but for the runtime's own faults.
    """
    # a pass that starts from another float model than this says so
    context.float_form = None
    error: OnnxOptError | None = None
    start = time.perf_counter()
    try:
        with run.reporter.progress("apply"):
            problem, outcome = apply_pass(run, context, model, pass_)
    except OnnxOptError as raised:
        if not (is_runtime_fault(raised) or isinstance(raised, OpsetRefused)):
            raise
        error = raised
        problem, outcome = raised.problem, PassOutcome()
    # the time of the pass alone: verifying may take longer
    seconds = time.perf_counter() - start
    verification: Verification | None
    if problem is None:
        verification = judge(model, outcome)
    else:
        fault = "" if error is None else problem
        verification = Verification(Problem(problem), fault=fault)
    if verification is None:
        return None
    return PassAttempt(
        model,
        outcome,
        verification,
        seconds,
        context.float_form,
        error,
    )


LEAVE_OUT = "leave this pass out, or exclude the part of the model that it names"
"""Advice where a problem has none of its own."""


def _refuse(run: Run, pass_: Pass, problem: Problem) -> None:
    """Errors: CheckError for the fault of a lossy pass, or of any with `strict`."""
    if problem.is_fault and (pass_.effect == "lossy" or run.settings.strict):
        raise CheckError(
            str(pass_),
            problem.text,
            problem.fix or LEAVE_OUT,
        )


def _spared(
    run: Run,
    context: TrainingContext,
    baseline: Baseline,
    pass_: Pass,
    failed: PassAttempt,
) -> PassAttempt:
    """Find the most of a lossy pass that the runtime bears, with a warning of what is left out.

    Errors: CheckError where nothing is, or with `strict`; the pass's own where it raised one.
    """
    seconds = [failed.seconds]
    before = baseline.model

    def judge(model: ir.Model, outcome: PassOutcome) -> Verification:
        return baseline.verifier.verify(model, pass_.effect, baseline)

    def attempt(variant: Pass) -> PassAttempt:
        found = tried(run, context, variant, before.clone(), judge)
        assert found is not None
        seconds.append(found.seconds)
        return found

    def fault_of(model: ir.Model) -> str:
        return baseline.verifier.verify(model, "lossy", baseline).fault

    unmet = _too_old(run, failed.model)
    spared = spare(pass_, before, failed, attempt, fault_of, unmet)
    if spared.attempt is None and isinstance(failed.error, OpsetRefused):
        raise failed.error
    if spared.attempt is None and unmet is not None:
        raise UsageError(str(pass_), unmet.words, unmet.fix)
    if spared.attempt is None or run.settings.strict:
        raise CheckError(str(pass_), failed.fault, spared.fix)
    run.reporter.warn(str(pass_), spared.words)
    return dataclasses.replace(spared.attempt, seconds=sum(seconds))


def _too_old(run: Run, model: ir.Model) -> Unmet | None:
    """Say which release of the runtime a model needs, where the one here is older."""
    told = too_old(installed(run.worker), requirements_of(model))
    return None if told is None else Unmet("onnxruntime", *told)


def _without_culprits(
    run: Run,
    pass_: Pass,
    baseline: Baseline,
    failed: PassAttempt,
    judged: Callable[[ir.Model], PassAttempt | None],
) -> PassAttempt | None:
    """Run an exact pass again without the rewrites that are to blame, and account for them.

    None where none are found.
    """
    search = Bisection(lambda: judged(baseline.model.clone()) or failed)
    found = without_culprits(search)
    if found is None:
        return None
    trial, culprits = found
    for culprit in culprits:
        rewrite = culprit.rewrite
        text = culprit.problem.text
        reason = f"{rewrite.rule} left out: {text}"
        trial.outcome.declined.append(Declined(rewrite.where or "all nodes", reason))
        if culprit.problem.is_fault:
            run.reporter.warn(str(pass_), f"left out {rewrite}: {text}")
    return trial


def _rolled_back(
    run: Run,
    checked: Checked,
    pass_: Pass,
    trial: PassAttempt,
    problem: Problem,
    before: ir.Model,
) -> Checked:
    """The model before a pass, which is named."""
    run.reporter.warn(str(pass_), f"rolled back: {problem.text}")
    account = _account(pass_, trial)
    step = dataclasses.replace(account, drift=None, rolled_back=True)
    return dataclasses.replace(checked, model=before, steps=(*checked.steps, step))


def _account(pass_: Pass, trial: PassAttempt) -> Step:
    outcome = trial.outcome
    drift = trial.verification.drift
    return Step(
        pass_.name,
        str(pass_),
        seconds=trial.seconds,
        drift=None if drift is None else as_figures(drift),
        unit=outcome.unit or pass_.unit,
        stats=dict(outcome.stats),
        declined=[dataclasses.asdict(declined) for declined in outcome.declined],
        chosen=[dataclasses.asdict(chosen) for chosen in outcome.chosen],
    )


def apply_pass(
    run: Run, context: TrainingContext, model: ir.Model, pass_: Pass
) -> tuple[str | None, PassOutcome]:
    """Run a pass in place; the problem, if any, and its account.

    Errors: UsageError; every failure of a lossy pass, and refusals of any with `strict`.
    """
    memory = run.settings.memory
    try:
        if memory is None:
            return None, pass_.run(model, context)
        return None, memory.run(pass_, model, context, run.reporter.warnings)
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


def with_metric(
    run: Run, inputs: VerificationInputs, verifier: Verifier, checked: Checked
) -> Checked:
    """Add the metric after the last pass, where it is to be measured after each."""
    if not run.settings.metric_each or inputs.run_metric is None or not checked.steps:
        return checked
    *earlier, last = checked.steps
    # the pass that ends a run unasked may have left no trace
    if last.metric is not None:
        return checked
    assert inputs.baseline is not None
    metric = earlier[-1].metric if earlier else inputs.baseline.value
    if last.changed:
        with verifier.file_of(checked.model) as path:
            # not one to be found again: no run starts from it
            metric = inputs.run_metric.computed(path).value
    step = dataclasses.replace(last, metric=metric)
    return dataclasses.replace(checked, steps=(*earlier, step))


def warn_of_order(run: Run, steps: Sequence[Step]) -> None:
    """Warn of passes that left later ones nothing to work on, or that these undid."""
    ran = []
    for step in steps:
        reasons = [declined["reason"] for declined in step.declined]
        ran.append(Ran(step.name, step.text, step.changed, reasons))
    for earlier, later in itertools.combinations(ran, 2):
        words = lost_by_order(earlier, later)
        if words is not None:
            run.reporter.warn("order", words)


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
