"""One run as a table of contents: each step takes values from those before it and changes none.

`load`: the original and its facts. `evidence`: the data, and the original's outputs on it.
`context`: services that passes may ask for. `step`: each pass, verified, kept or rolled back.
`mend`: gentler forms of one that is worthless.
`packing`: the last pass, which runs unasked.
`finish`: the file, written, judged and measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ... import CheckError, OnnxOptError
from ...passes._core.latency import LatencyRatio
from .blame import blame
from .budgets import budgets_of
from .command import command_of
from .context import context_of
from .drift import as_figures, sample_count
from .evidence import VerificationInputs, gather_inputs
from .explain_loss import as_rows, explain
from .finish import Written, finish, with_final_drift
from .floor import BelowFloor
from .garbage import rare_collections
from .harm import harm_of, judgement_of
from .largest import largest_parts
from .layers import LayerTable
from .load import Original, description, load_original
from .loss_balance import parting
from .mend import Mender
from .packing import end_packed
from .provenance import hashed
from .result import RunAccount, RunResult, Step
from .run import Run, open_run
from .settings import RunSettings
from .step import (
    Checked,
    check_loaded,
    warn_if_unchanged,
    warn_of_order,
    with_metric,
)
from .unchanged import is_unchanged
from .verify import Verifier
from .versions import versions


@dataclass
class RunSoFar:
    """The run so far: what its account is made of, also where it ends early."""

    original: Original | None = None
    inputs: VerificationInputs | None = None
    checked: Checked | None = None
    written: Written | None = None
    losses: list[dict[str, Any]] | None = None
    layers: LayerTable | None = None


def optimize_model(settings: RunSettings) -> RunResult:
    """Run the pipeline of the settings over their model.

    Errors: UsageError, RefusedError (model, data), CheckError (a check or a budget). The `account`
    of each is what was known; of a missed budget it is the whole result.
    """
    with rare_collections(), open_run(settings) as run:
        known = RunSoFar()
        try:
            written = _optimized(run, known)
            if written.failure is not None:
                raise written.failure
        except OnnxOptError as error:
            error.account = _account(run, known)
            raise
        result = _account(run, known)
        assert isinstance(result, RunResult)
        return result


def _optimized(run: Run, known: RunSoFar) -> Written:
    """The steps of a run; what each finds is `known` at once."""
    step = run.reporter.progress
    with step("load"):
        original, model = load_original(run)
        known.original = original
    if run.settings.layers:
        known.layers = LayerTable()
        with step("layers"):
            known.layers.add_before(model)
    with step("original"):
        inputs = gather_inputs(run, original, model)
        known.inputs = inputs
        context = context_of(run, original, inputs, model)
        verifier = Verifier(run.scratch, original, inputs.reference, run.reporter)
    with step("check as loaded"):
        effects = {pass_.effect for pass_ in run.settings.pipeline.passes}
        checked = check_loaded(verifier, model, is_counted="exact" in effects)
        known.checked = checked
    # each pass starts from what is left of the one before: a model that was verified
    mender = Mender(
        run,
        original,
        inputs,
        verifier,
        context,
    )
    passes = run.settings.pipeline.passes
    for index, pass_ in enumerate(passes):
        later = passes[index + 1 :]
        known.checked = checked = mender.run_step(checked, pass_, later)
        known.checked = checked = with_metric(run, inputs, verifier, checked)
    warn_if_unchanged(run, checked.steps)
    warn_of_order(run, checked.steps)
    if not is_unchanged(run, original, checked):
        checked = end_packed(run, original, verifier, context, checked, inputs)
    known.checked = with_metric(run, inputs, verifier, checked)
    # before anything is written: the weights may lie in the file that is replaced
    if known.layers is not None:
        with step("layers"):
            known.layers.add_after(known.checked.model)
    with step("finish"):
        written = finish(run, original, inputs, verifier, context, known.checked)
        known.written = written
    # after the file is written: its figures do not depend on the explanation
    known.losses = _explained(run, inputs, known.checked, written)
    _warn_of_data(run, inputs)
    failure = _tell_of_harm(
        run,
        original,
        inputs,
        known.checked,
        written,
        known.losses,
    )
    known.written = dataclasses.replace(written, failure=failure)
    return known.written


def _explained(
    run: Run, inputs: VerificationInputs, checked: Checked, written: Written
) -> list[dict[str, Any]] | None:
    """Loss of each layer, where that was asked for; empty with a warning if nothing was run."""
    if not run.settings.explain_loss:
        return None
    if inputs.reference is None:
        # the warning that models are not run says enough for a page
        if run.settings.report is not None:
            return None
        run.reporter.warn("--explain-loss", "nothing to explain: the model was not run")
        return []
    with run.reporter.progress("explaining the loss"):
        stages = explain(run.worker, checked.stages, inputs.reference.batches)
    if stages and written.drift is not None:
        words = parting(stages, written.drift.sqnr_db)
        if words is not None:
            run.reporter.warn("--explain-loss", words)
    return as_rows(stages)


def _warn_of_data(run: Run, inputs: VerificationInputs) -> None:
    """Warn of what was adapted or left out; known only once the data was read."""
    for feeds in (inputs.calibration, inputs.labelled):
        if feeds is not None:
            for message in feeds.warnings:
                run.reporter.warn("data", message)


def _tell_of_harm(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    checked: Checked,
    written: Written,
    losses: list[dict[str, Any]] | None,
) -> CheckError | None:
    """Name what lost most, in a warning of a poor result or in the failure of a worthless one.

    Gives the failure of the result; None where it has none.
    """
    failure = written.failure
    judgement = judgement_of(run.settings, written.drift, written.metric, written.weak)
    harm = harm_of(judgement)
    is_below = isinstance(failure, BelowFloor)
    if harm is None and not is_below:
        return failure
    found = blame(run, inputs, checked, original.figures.bytes, losses)
    if failure is not None and is_below:
        problem = f"{failure.problem}{found.words}"
        return BelowFloor(failure.where, problem, f"{found.remedy}; {failure.fix}")
    run.reporter.warn("result", f"{harm}{found.words}: {found.remedy}")
    return failure


def _samples_of(inputs: VerificationInputs) -> int | None:
    """Count the samples that results are compared on."""
    if inputs.reference is None:
        return None
    return sum(sample_count(batch) for batch in inputs.reference.batches)


def _account(run: Run, known: RunSoFar) -> RunAccount:
    """The account of a run as far as it is known; a RunResult where the result is there."""
    settings = run.settings
    facts: dict[str, Any] = {
        "about": description(settings),
        # before that nothing was run
        "versions": versions(None if known.inputs is None else run.worker),
        "command": command_of(settings),
        "budgets": budgets_of(settings, known.written),
        "warnings": run.reporter.warnings,
        "loss": known.losses,
        "layers": None if known.layers is None else known.layers.as_rows(),
    }
    if known.original is not None:
        facts["about"] = known.original.about
        facts["input"] = known.original.figures
    if known.inputs is not None:
        facts["drift_on"] = known.inputs.drift_on
        facts["hardware"] = known.inputs.hardware
    steps = () if known.checked is None else known.checked.steps
    facts["passes"] = [*steps, *run.reporter.refused]
    if known.inputs is not None and known.written is not None:
        facts["drift"] = _drift_facts(known.inputs, known.written)
    if known.original is None or known.written is None:
        return RunAccount(**facts, time=run.clock.whole())
    facts |= _facts_of_result(known.original, known.written, steps)
    if settings.layers:
        facts["written"] = [hashed(path) for path in known.written.files]
    return RunResult(**facts, time=run.clock.whole())


def _facts_of_result(
    original: Original, written: Written, steps: Sequence[Step]
) -> dict[str, Any]:
    before = original.figures
    after = written.figures
    # both were timed in turns, once the result was there
    latency = written.latency
    if latency is not None:
        first = latency.first
        step = latency.step
        before = dataclasses.replace(before, latency_ms=first.first_ms)
        after = dataclasses.replace(after, latency_ms=first.second_ms)
        if step is not None:
            before = dataclasses.replace(before, step_ms=step.first_ms)
            after = dataclasses.replace(after, step_ms=step.second_ms)
    return {
        "model": written.model,
        "about": {**original.about, "changes": _changes(original, written)},
        "input": before,
        "output": after,
        "passes": with_final_drift(steps, written.drift),
        "metric": written.metric,
        "latency": None if latency is None else latency.first.ratio,
        "latency_samples": None if latency is None else latency.samples,
        "step_latency": _ratio_of_steps(written),
        "largest": largest_parts(written.constants, steps),
        "output_path": None if written.path is None else str(written.path),
        "files": list(written.files),
        "requires": written.requires.as_dict(),
    }


def _ratio_of_steps(written: Written) -> LatencyRatio | None:
    latency = written.latency
    if latency is None or latency.step is None:
        return None
    return latency.step.ratio


def _drift_facts(inputs: VerificationInputs, written: Written) -> dict[str, Any] | None:
    drift = written.drift
    if drift is None:
        return None
    return {
        **as_figures(drift),
        "agreement": drift.top1_agreement,
        "word": written.word,
        "samples": _samples_of(inputs),
        "on": inputs.drift_on,
    }


def _changes(original: Original, written: Written) -> list[str]:
    """Changes that no pass made: those of loading, and the versions that the result asks for."""
    # what loading made of it went with the run
    if written.is_unchanged:
        return list(written.changes)
    about = original.about
    requires = written.requires
    versions = (
        ("opset", about["opset"].get("ai.onnx"), requires.opset),
        ("IR version", about["ir_version"], requires.ir_version),
    )
    changed = [
        f"{what} {before} became {after}"
        for what, before, after in versions
        if before != after
    ]
    return [*original.changes, *changed]
