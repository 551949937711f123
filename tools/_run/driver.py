"""One run as a table of contents: each step takes values from those before it and changes none.

`load`: the original and its facts. `evidence`: the data, and the original's outputs on it.
`context`: services that passes may ask for. `step`: each pass, verified, kept or rolled back.
`packing`: the last pass, which runs unasked.
`finish`: the file, written, judged and measured.
"""

from __future__ import annotations

import dataclasses

from ...runtime.metrics import metric_named
from .context import context_of
from .drift import sample_count
from .evidence import VerificationInputs, gather_inputs
from .explain_loss import as_rows, explain
from .finish import Written, finish, with_final_drift
from .harm import Judgement, harm_of
from .load import Original, load_original
from .loss_balance import parting
from .packing import end_packed
from .result import RunResult
from .run import Run, open_run
from .settings import RunSettings
from .step import (
    Checked,
    check_loaded,
    run_step,
    warn_if_unchanged,
    warn_of_order,
)
from .unchanged import is_unchanged
from .verify import Verifier


def optimize_model(settings: RunSettings) -> RunResult:
    """Run the pipeline of the settings over their model.

    Errors: UsageError, RefusedError (model, data), CheckError (a check or a budget; of a missed
    budget, `account` is the whole result).
    """
    with open_run(settings) as run:
        original, model = load_original(run)
        inputs = gather_inputs(run, original, model)
        context = context_of(run, original, inputs, model)
        verifier = Verifier(run.scratch, original, inputs.reference)
        checked = check_loaded(verifier, model)
        # each pass starts from what is left of the one before: a model that was verified
        for pass_ in settings.pipeline.passes:
            checked = run_step(run, verifier, context, checked, pass_)
        warn_if_unchanged(run, checked.steps)
        warn_of_order(run, checked.steps)
        if not is_unchanged(run, original, checked):
            checked = end_packed(run, original, verifier, context, checked, inputs)
        written = finish(run, original, inputs, verifier, context, checked)
        # after the file is written: its figures do not depend on the explanation
        losses = _explained(run, inputs, checked, written)
        _warn_of_data(run, inputs)
        _warn_of_harm(run, checked, written)
        result = _result(run, original, inputs, checked, written, losses)
        if written.failure is not None:
            written.failure.account = result
            raise written.failure
        return result


def _explained(
    run: Run, inputs: VerificationInputs, checked: Checked, written: Written
) -> list[dict[str, object]] | None:
    """Loss of each layer, where that was asked for; empty with a warning if nothing was run."""
    if not run.settings.explain_loss:
        return None
    if inputs.reference is None:
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


def _warn_of_harm(run: Run, checked: Checked, written: Written) -> None:
    metric = run.settings.metric
    judgement = Judgement(
        written.drift,
        written.metric,
        metric is None or metric_named(metric).higher_is_better,
    )
    harm = harm_of(judgement, checked.steps)
    if harm is not None:
        run.reporter.warn("result", harm)


def _samples_of(inputs: VerificationInputs) -> int | None:
    """Count the samples that results are compared on."""
    if inputs.reference is None:
        return None
    return sum(sample_count(batch) for batch in inputs.reference.batches)


def _result(
    run: Run,
    original: Original,
    inputs: VerificationInputs,
    checked: Checked,
    written: Written,
    losses: list[dict[str, object]] | None,
) -> RunResult:
    before = original.figures
    after = written.figures
    # both were timed in turns, once the result was there
    latency = written.latency
    if latency is not None:
        before = dataclasses.replace(before, latency_ms=latency.first_ms)
        after = dataclasses.replace(after, latency_ms=latency.second_ms)
    return RunResult(
        model=written.model,
        about={**original.about, "changes": _changes(original, written)},
        input=before,
        output=after,
        passes=with_final_drift(checked.steps, written.drift),
        metric=written.metric,
        latency=None if latency is None else latency.ratio,
        warnings=run.reporter.warnings,
        output_path=None if written.path is None else str(written.path),
        files=list(written.files),
        loss=losses,
        requires=written.requires.as_dict(),
        drift_on=inputs.drift_on,
        drift_samples=_samples_of(inputs),
        hardware=inputs.hardware,
    )


def _changes(original: Original, written: Written) -> list[str]:
    """Changes that no pass made: those of loading, and the versions that the result asks for."""
    # what loading made of it went with the run
    if written.is_unchanged:
        return []
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
