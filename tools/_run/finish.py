"""Last step of a run: write the result, then judge and measure the very file that was written."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ... import CheckError
from ...frontends.onnx_file import copy, is_split, load, save
from ...passes._core.requirements import Requirements, requirements_of
from ...passes._core.stats import model_macs
from ...passes._core.stored import StoredConstant, bits_by_count, stored_constants
from ...passes._core.versions import LeastVersions, lower_versions, lowers_opset
from ...runtime.compare import Drift
from ...runtime.drift_words import ON_DATA, ON_SYNTHETIC, weak_output, worst_word
from ...runtime.held_outputs import HeldOutputs
from ...runtime.session import Session, open_session
from ...runtime.token_floor import token_problem
from .checks import Interface, forget_shapes, interface_of
from .context import TrainingContext
from .drift import as_figures, choices_of
from .evidence import VerificationInputs
from .figures import Figures, expected_bytes, figures_of, files_of, zipped_bytes
from .floor import BelowFloor, floor_of, is_asked
from .harm import is_kept, judgement_of
from .kernels import compare_kernels, is_quantized, remedy
from .load import Original, own_fault, reading_of
from .measure import Latencies, measure_latency
from .misfits import warn_of_misfits
from .provenance import stamp
from .result import Step
from .run import Run
from .scoring import measure_metric
from .step import Checked, apply_pass
from .unchanged import is_packed_again, is_unchanged
from .verify import Verifier

LARGER = 1.01
"""Ratio of file sizes above which a warning says that the result is larger.

Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Counted:
    """Counts of a result that need shapes, which its file may lack; `bits`: of its weights."""

    macs: int | None
    constants: Sequence[StoredConstant]
    bits: dict[str, int] | None

    def figures(self) -> dict[str, Any]:
        """The figures that they are."""
        return {"macs": self.macs, "bits": self.bits}


@dataclass(frozen=True)
class Written:
    """The result as it was written, or as it would be.

    `is_unchanged`: it is the original, but for `changes` of reading. `word`: what its drift means.
    `latency`: of the original and of the result. `path`: where it was written; None: it was not,
    and `files` is empty. `failure`: a budget or the floor that it misses, and is not written for.
    """

    model: ir.Model
    figures: Figures
    requires: Requirements
    constants: Sequence[StoredConstant]
    is_unchanged: bool = False
    changes: tuple[str, ...] = ()
    drift: Drift | None = None
    word: str | None = None
    weak: str | None = None
    metric: dict[str, Any] | None = None
    latency: Latencies | None = None
    path: Path | None = None
    files: tuple[Path, ...] = ()
    failure: CheckError | None = None


def finish(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
) -> Written:
    """Prepare the model for its file, write it where that is asked for, and judge the file.

    Nothing is written where it misses a budget. Errors: CheckError where it fails a check.
    """
    settings = run.settings
    if is_unchanged(run, original, checked):
        product = _as_it_came(run, original, checked)
    else:
        product = _changed(
            run,
            original,
            inputs,
            verifier,
            context,
            checked,
        )
    model = product.model
    warn_of_misfits(run, model)
    out = None if settings.dry_run else settings.out
    if out is None and not original.is_run and settings.metric is None:
        with run.reporter.progress("count"):
            figures = figures_of(model, None, count_nonzero=not original.is_large)
            figures = dataclasses.replace(
                figures, bytes=expected_bytes(model), **product.counted.figures()
            )
        return Written(
            model,
            figures,
            product.requires,
            product.counted.constants,
            product.is_unchanged,
            product.changes,
        )

    judged: list[Written] = []

    def judge(path: Path) -> None:
        found = _judge(
            run,
            original,
            inputs,
            path,
            product,
        )
        judged.append(found)
        if found.failure is not None:
            raise found.failure

    files: list[Path] = []
    try:
        if out is None:
            path = run.scratch / "output.onnx"
            with run.reporter.progress("write"):
                _write(product, path, durable=False)
            judge(path)
        else:
            # judged under a temporary name: it takes its own only if nothing is raised
            with run.reporter.progress("write and judge"):
                files = _write(product, out, check=judge)
    except CheckError as error:
        # the whole account tells why a budget is missed
        if not judged or judged[0].failure is not error:
            raise
    if not files:
        # the model in memory: the file goes with the run
        return dataclasses.replace(judged[0], model=model)
    return dataclasses.replace(judged[0], path=out, files=tuple(files))


@dataclass(frozen=True)
class _Product:
    """The model that is to be written.

    `is_unchanged`: no pass changed it, and it has no record of this run. `copied`: a file that
    holds it as it is; None: there is none. `changes`: what reading alone changed, in words.
    """

    model: ir.Model
    interface: Interface
    counted: Counted
    is_exact: bool = True
    is_unchanged: bool = False
    copied: Path | None = None
    changes: tuple[str, ...] = ()

    @cached_property
    def requires(self) -> Requirements:
        """Needs of the model."""
        return requirements_of(self.model)


def _as_it_came(run: Run, original: Original, checked: Checked) -> _Product:
    """The original itself, whatever loading made of it for the passes."""
    with run.reporter.progress("read"):
        reading = reading_of(run.settings)
    source = run.settings.source
    # a copy would name the weights files of the original
    is_one_file = source is not None and len(original.files) == 1
    figures = original.figures
    return _Product(
        reading.model,
        interface_of(reading.model),
        Counted(figures.macs, stored_constants(checked.model), figures.bits),
        is_unchanged=True,
        copied=source if is_one_file else None,
        changes=() if is_one_file else tuple(reading.changes),
    )


def _changed(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    verifier: Verifier,
    context: TrainingContext,
    checked: Checked,
) -> _Product:
    """The model after the passes, at the least versions, with the record of this run."""
    with run.reporter.progress("lower versions"):
        model = _with_least_versions(run, verifier, context, checked)
    # before shapes are forgotten: counting needs them
    with run.reporter.progress("count"):
        constants = stored_constants(model)
        macs = model_macs(checked.model)
        counted = Counted(macs, constants, bits_by_count(constants))
    # the passes inferred them; a file without stays as small as it came
    if not original.has_shapes:
        forget_shapes(model)
    if is_packed_again(run, original, checked, model):
        return _as_it_came(run, original, checked)
    product = _Product(model, original.interface, counted, checked.is_exact)
    stamp(
        model,
        checked.applied,
        original.sha256,
        run.settings.seed,
        run.settings.target,
        cpu=inputs.hardware.label,
        min_runtime=product.requires.onnxruntime,
    )
    return product


def _write(
    product: _Product,
    path: Path,
    check: Callable[[Path], None] | None = None,
    durable: bool = True,
) -> list[Path]:
    if product.copied is not None:
        return copy(product.copied, path, check=check, durable=durable)
    # its size is told, also where the file goes with the run
    external = is_split(product.model)
    return save(product.model, path, external=external, check=check, durable=durable)


def _with_least_versions(
    run: Run, verifier: Verifier, context: TrainingContext, checked: Checked
) -> ir.Model:
    """Lower opset and IR version to what the content needs.

    Verified like an exact pass; left alone, with a warning, where it fails, and without one where
    nothing is run.
    """
    model = checked.model
    # kernels differ from opset to opset, and only a run shows that they are there
    if verifier.reference is None:
        return model
    # most models have little to lower, and a clone is not free
    if not lowers_opset(model):
        lower_versions(model)
        return model
    before = model.clone()
    lowering = LeastVersions()
    problem, outcome = apply_pass(run, context, model, lowering)
    if problem is None and outcome.changed:
        baseline = checked.baseline(verifier, before)
        is_counted = checked.counts is not None
        verification = verifier.verify(model, lowering.effect, baseline, is_counted)
        if verification.problem is not None:
            problem = verification.problem.text
    if problem is None:
        return model
    run.reporter.warn("opset", f"not lowered: {problem}")
    return before


# the file


def _judge(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    path: Path,
    product: _Product,
) -> Written:
    """Check and measure the file that is to be the result. Errors: CheckError if it is faulty."""
    # read back: faults of writing show only here
    with run.reporter.progress("read back"):
        model = load(path)
    problem = product.interface.difference(interface_of(model))
    if problem:
        raise own_fault(f"the written file differs from what was checked: {problem}")
    with run.reporter.progress("count"):
        figures = figures_of(model, path, count_nonzero=not original.is_large)
        figures = dataclasses.replace(figures, **product.counted.figures())
    if run.settings.zipped:
        with run.reporter.progress("zip"):
            figures.zipped_bytes = zipped_bytes(path, model)
    _warn_if_larger(run, original.figures.bytes, figures.bytes)
    drift = metric = latency = failure = word = weak = below = None
    if inputs.reference is not None:
        with run.reporter.progress("compare outputs"):
            outputs = inputs.reference.outputs(path)
        drifts = inputs.reference.measured(outputs, product.is_exact)
        drift = drifts.overall()
        parts = drifts.per_output()
        choices = choices_of(inputs.reference.original, outputs)
        usual = ON_SYNTHETIC if inputs.drift_on == "synthetic feeds" else ON_DATA
        word = worst_word(parts, choices, usual)
        weak = weak_output(parts, choices, usual)
        floor = None if product.is_exact else floor_of(run.settings, usual)
        if floor is not None:
            below = floor.problem(parts, choices)
            # a floor that was asked for is of drift alone
            if below is None and usual is ON_DATA and not is_asked(run.settings):
                below = token_problem(
                    inputs.reference.batches, inputs.reference.original, outputs
                )
        _warn_if_kernels_disagree(
            run,
            original,
            inputs,
            path,
            model,
            outputs,
        )
        failure = _sqnr_missed(run, drift)
    else:
        _refuse_unchecked(run)
    if original.path is not None:
        if inputs.run_metric is not None and inputs.baseline is not None:
            # the same file has the same score
            score = inputs.baseline
            if not product.is_unchanged:
                score = inputs.run_metric.score(path, files_of(path, model))
            scored = measure_metric(run, inputs.run_metric, inputs.baseline, score)
            metric = scored.facts
            failure = failure or scored.failure
        # a floor that was asked for holds whatever the metric says
        is_excused = not is_asked(run.settings) and is_kept(
            judgement_of(run.settings, drift, metric)
        )
        if below is not None and not is_excused:
            failure = failure or _refused(run, below)
        # what is not written need not be timed
        if failure is None:
            latency = measure_latency(
                run, inputs, original.path, path, product.is_unchanged
            )
    return Written(
        model,
        figures,
        product.requires,
        product.counted.constants,
        product.is_unchanged,
        product.changes,
        drift,
        word,
        weak,
        metric,
        latency,
        failure=failure,
    )


def _refuse_unchecked(run: Run) -> None:
    """Refuse limits on outputs that nothing can be compared with. Errors: CheckError."""
    asked = {
        "--min-sqnr": run.settings.min_sqnr is not None,
        "--floor": is_asked(run.settings),
    }
    for option, is_given in asked.items():
        if is_given:
            raise CheckError(
                option,
                "cannot be checked: there is nothing to compare with",
                f"drop {option}; the warnings say why the original cannot be compared",
            )


def _warn_if_larger(run: Run, before: int | None, after: int | None) -> None:
    if before and after and after > LARGER * before:
        run.reporter.warn(
            "size", f"the result is larger: {after:,} bytes, {before:,} before"
        )


def _sqnr_missed(run: Run, drift: Drift) -> CheckError | None:
    limit = run.settings.min_sqnr
    if limit is None or drift.sqnr_db >= limit:
        return None
    return CheckError(
        "--min-sqnr",
        f"the result has {drift.sqnr_db:.1f} dB, below the {limit:g} dB asked for",
        "lower --min-sqnr, choose gentler passes, or calibrate on more --data",
    )


def _refused(run: Run, problem: str) -> CheckError | None:
    """Refuse a result below the floor; with `force` it is only told of."""
    if run.settings.force:
        run.reporter.warn("--floor", f"{problem}: written, as --force says")
        return None
    return BelowFloor("--floor", problem, "--force writes it all the same")


def _warn_if_kernels_disagree(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    path: Path,
    model: ir.Model,
    outputs: HeldOutputs,
) -> None:
    """Warn where this CPU's integer kernels lose what the graph as written does not."""
    machine = inputs.hardware
    reference = inputs.reference
    assert reference is not None
    if machine.provider != "cpu" or not is_quantized(model):
        return

    def open_on_cpu(path: Path, optimize: bool = True, exact: bool = False) -> Session:
        return open_session(
            run.worker,
            path,
            threads=run.settings.threads,
            optimize=optimize,
            exact=exact,
        )

    # a quantized original has lost on these kernels too: it is no measure of them
    float_outputs = None if original.is_quantized else reference.original
    with run.reporter.progress("comparing kernels with the graph"):
        kernels = compare_kernels(
            open_on_cpu, path, model, machine, reference.batches, outputs, float_outputs
        )
    if kernels is not None and kernels.disagree:
        advice = remedy(model, machine, run.settings.target)
        run.reporter.warn("kernels", f"{kernels.words(machine)}; {advice}")


def with_final_drift(steps: Sequence[Step], drift: Drift | None) -> list[Step]:
    """Steps, the last measured one with the drift of the written file."""
    final = list(steps)
    # the step was measured before versions were lowered and the file was written
    if drift is None:
        return final
    for index in reversed(range(len(final))):
        if final[index].drift is not None:
            final[index] = dataclasses.replace(final[index], drift=as_figures(drift))
            break
    return final
