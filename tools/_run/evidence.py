"""Second step of a run: the data, and the outputs of the original that passes are verified by."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from ... import OnnxOptError, RefusedError
from ...passes._core.targets import target_named
from ...runtime.cached_run import step_after
from ...runtime.feeds import Feeds, open_feeds
from ...runtime.fitness import unfit
from ...runtime.hardware import Hardware, covers, hardware
from ...runtime.held_out import held_out
from ...runtime.held_outputs import Arrays, HeldOutputs
from ...runtime.installed import conflict, installed
from ...runtime.metrics import MetricScore
from ...runtime.session import Session, open_session
from ...runtime.tolerance import FLOAT32
from ...runtime.worker import RemoteError
from .drift import (
    MAX_BATCHES,
    NoFiniteOutputs,
    Reference,
    first_batches,
    inexact,
    none_finite,
    synthetic_batches,
)
from .figures import input_infos, output_infos
from .load import Original
from .run import Run
from .scoring import RunMetric, baseline_of, run_metric_of
from .settings import RunSettings

DriftOn = Literal[
    "held-out data", "evaluation data", "calibration data", "synthetic feeds"
]
"""Data that drift is measured on.

Only the first two say how a model does on data that no pass has seen.
"""


_ILL_TYPED = ("Type Error", "[TypeInferenceError]", "[ShapeInferenceError]")
"""Words in which ONNX Runtime refuses a graph whose types or shapes do not fit each other."""


@dataclass(frozen=True)
class VerificationInputs:
    """Data, hardware and reference outputs that a run calibrates, verifies and measures with.

    `open(path, optimize=True)`: opens a model file in the worker, on the provider that verifies it.
    `provider`: that of the target; None where it is not here. `on_target`: this CPU is one that the
    result is made for, so that its timings decide something. `calibration`: the user's feeds,
    without those held out. `labelled`: data for the metric, or to compare outputs on without one.
    `run_metric`, `baseline`: the metric, and the original's score; None where none was asked for.
    `reference`: None where nothing can be compared. `drift_on`: data of the reference; None without
    one. `step_feeds`: of one token behind the first of `latency_feeds`, of a model with a cache.
    """

    open: Callable[..., Session]
    provider: str | None
    hardware: Hardware
    on_target: bool
    calibration: Feeds | None = None
    labelled: Feeds | None = None
    run_metric: RunMetric | None = None
    baseline: MetricScore | None = None
    reference: Reference | None = None
    latency_feeds: Sequence[Arrays] = ()
    step_feeds: Sequence[Arrays] = ()
    drift_on: DriftOn | None = None


def gather_inputs(run: Run, original: Original, model: ir.Model) -> VerificationInputs:
    """Open the data, find feeds that the original accepts, and run it on them.

    Warns of what cannot be proved. Errors: RefusedError for data that does not fit the model, and
    with `strict` for what cannot be proved.
    """
    settings = run.settings
    path = original.path if original.is_run else None
    step = run.reporter.progress
    with step("start the runtime"):
        provider = _available_provider(run, path)
    infos = input_infos(model)
    outputs = output_infos(model)
    calibration = labelled = None
    with step("open the data"):
        if settings.data is not None:
            calibration = open_feeds(settings.data, infos, settings.folder, outputs)
        if settings.metric is not None or settings.eval_data is not None:
            labelled = open_feeds(
                settings.labelled_data, infos, settings.folder, outputs
            )
    if settings.metric is None and settings.eval_data is not None:
        run.reporter.warn(
            "--eval-data",
            "nothing says what to measure on it: outputs are compared on it, but its labels are "
            "not used; --metric scores them",
        )
    target = target_named(settings.target)
    # a worker would only be started for this
    runs_models = original.is_run or settings.metric is not None
    if runs_models:
        _warn_of_two_wheels(run)
    with step("start the runtime"):
        machine = hardware(run.worker if runs_models else None, provider)
    inputs = VerificationInputs(
        open=_opener(run, provider),
        provider=provider if provider == target.provider else None,
        hardware=machine,
        on_target=covers(target, machine),
        calibration=calibration,
        labelled=labelled,
    )
    if path is not None:
        with step("run the original"):
            inputs = _with_reference(run, original, inputs, path)
    _warn_if_other_cpu(run, inputs)
    return _with_baseline(run, original, inputs)


def _with_baseline(
    run: Run, original: Original, inputs: VerificationInputs
) -> VerificationInputs:
    """Add the metric of the original: a run that cannot be judged ends before its costly part."""
    run_metric = run_metric_of(run, inputs.labelled, inputs.open, inputs.hardware)
    if run_metric is None or original.path is None:
        return inputs
    # one that is to learn from a teacher may know nothing yet
    must_know = run.settings.teacher is None
    baseline = baseline_of(run_metric, original.path, original.files, must_know)
    return dataclasses.replace(inputs, run_metric=run_metric, baseline=baseline)


def _available_provider(run: Run, path: Path | None) -> str:
    """The target's provider, or the CPU with a warning where that is not here."""
    settings = run.settings
    provider = target_named(settings.target).provider
    if provider == "cpu" or path is None:
        return provider
    try:
        # only a session that opens shows that libraries and a device are here
        session = open_session(run.worker, path, provider, threads=settings.threads)
    except RefusedError as error:
        if settings.strict:
            raise
        run.reporter.warn(
            f"target {settings.target}",
            f"checked and measured on the CPU instead: {error.problem} ({error.fix})",
        )
        return "cpu"
    session.close()
    return provider


def _warn_of_two_wheels(run: Run) -> None:
    warning = conflict(installed(run.worker))
    if warning is not None:
        run.reporter.warn("onnxruntime", warning)


def _opener(run: Run, provider: str) -> Callable[..., Session]:
    def open_in_worker(path: Path, optimize: bool = True) -> Session:
        threads = run.settings.threads
        return open_session(
            run.worker, path, provider, threads=threads, optimize=optimize
        )

    return open_in_worker


def _warn_if_other_cpu(run: Run, inputs: VerificationInputs) -> None:
    machine = inputs.hardware
    # None: not known to saturate or not, as no model is run
    if inputs.on_target or machine.saturates is None:
        return
    target = target_named(run.settings.target)
    figures = "drift, metric and latency are" if machine.saturates else "latency is"
    run.reporter.warn(
        f"target {target.name}",
        f"made for {target.cpus}, but this is {machine.label}: {figures} "
        "this CPU's, and no layer stays float for being slow here",
    )


# the original's outputs


def _with_reference(
    run: Run, original: Original, inputs: VerificationInputs, path: Path
) -> VerificationInputs:
    """Add the original's outputs, where it runs and says twice the same.

    Errors: RefusedError where its types or shapes do not fit each other.
    """
    try:
        session = inputs.open(path)
    except OnnxOptError as error:
        _refuse_if_ill_typed(original, error)
        return _unproved(run, inputs, f"{error.where}: {error.problem}")
    try:
        return _run_original(run, inputs, session)
    finally:
        session.close()


def _refuse_if_ill_typed(original: Original, error: OnnxOptError) -> None:
    """Refuse a model of which the runtime and onnx's own inference say that its types are wrong."""
    says_so = any(words in error.problem for words in _ILL_TYPED)
    if says_so and original.complaint is not None:
        raise RefusedError(
            str(original.about["path"] or original.about["name"]),
            "its types or shapes do not fit each other, both onnx and ONNX Runtime say: "
            f"{original.complaint}",
            "export the model again",
        )


def _run_original(
    run: Run, inputs: VerificationInputs, session: Session
) -> VerificationInputs:
    # all of it, as the user gave it: some is held out below
    data = inputs.labelled if inputs.calibration is None else inputs.calibration
    choice = _verification_data(run.settings, inputs)
    if choice is not None:
        batches = choice.batches
        outputs = _outputs_on_data(session, batches)
        problem = unfit(batches)
        if problem is not None:
            run.reporter.warn("data", problem)
        inputs = dataclasses.replace(
            inputs, calibration=choice.calibration, drift_on=choice.drift_on
        )
    else:
        try:
            batches, outputs = synthetic_batches(session, run.settings.seed)
        except NoFiniteOutputs as error:
            return _unproved(run, inputs, f"it {error.problem}; give --data")
        except RefusedError as error:
            return _unproved(run, inputs, f"{error.where} {error.problem}")
        inputs = dataclasses.replace(inputs, drift_on="synthetic feeds")
        run.reporter.warn(
            "data",
            "none given: checked on synthetic feeds; --data checks on real ones and "
            "calibrates quantization",
        )
    # latency depends on the batch size: the user's first batch as given, none that was cut up
    latency_feeds = batches[:1] if data is None else [next(iter(data)).feeds]
    inputs = dataclasses.replace(inputs, latency_feeds=latency_feeds)
    step = _step_feeds(run, session, latency_feeds[0])
    if step is not None:
        inputs = dataclasses.replace(inputs, step_feeds=[step])
        # made-up feeds have a step already; of data it is judged, too
        if choice is not None:
            batches = [*batches, step]
            outputs.append(session.run(step))
    # random ops make any comparison meaningless; the same feeds twice show them
    problem = inexact(outputs.first(1), [session.run(batches[0])], FLOAT32)
    if problem:
        reason = f"two runs of the original differ ({problem})"
        return _unproved(run, inputs, reason)
    reference = Reference(inputs.open, batches, session.path, outputs)
    return dataclasses.replace(inputs, reference=reference)


def _step_feeds(run: Run, session: Session, feeds: Arrays) -> Arrays | None:
    """Feeds of one token behind `feeds`, of a model with a cache; None where it takes none."""
    try:
        return step_after(session, feeds)
    except OnnxOptError as error:
        run.reporter.warn("cache", f"no step behind the first feed: {error.problem}")
        return None


@dataclass(frozen=True)
class _VerificationData:
    """A few batches to verify by, and the calibration data that is left."""

    batches: list[Arrays]
    drift_on: DriftOn
    calibration: Feeds | None


def _verification_data(
    settings: RunSettings, inputs: VerificationInputs
) -> _VerificationData | None:
    """A few batches of the user's data that no pass sees, where there is enough of it.

    None without any data.
    """
    calibration = inputs.calibration
    labelled = inputs.labelled
    is_unseen = calibration is None or _has_other_labelled_data(settings)
    if labelled is not None and is_unseen:
        batches = first_batches(batch.feeds for batch in labelled)
        return _VerificationData(batches, "evaluation data", calibration)
    if calibration is None:
        return None
    parts = held_out(calibration)
    if parts is None:
        batches = first_batches(batch.feeds for batch in calibration)
        return _VerificationData(batches, "calibration data", calibration)
    # spread over all of it: sorted data must not be judged at its beginning
    step = max(len(parts.batches) // MAX_BATCHES, 1)
    batches = first_batches(batch.feeds for batch in parts.batches[::step])
    return _VerificationData(batches, "held-out data", parts.others)


def _has_other_labelled_data(settings: RunSettings) -> bool:
    """True if the data with labels was given apart from the data to calibrate on."""
    data = settings.data
    other = settings.eval_data
    # a path may be given once as text and once as Path
    if isinstance(data, (str, Path)) and isinstance(other, (str, Path)):
        return str(data) != str(other)
    return other is not None and other is not data


def _outputs_on_data(session: Session, batches: list[Arrays]) -> HeldOutputs:
    """Errors: RefusedError where the model fails, or gives nothing that is finite."""
    try:
        outputs = HeldOutputs(session.run(feeds) for feeds in batches)
    except RemoteError as error:
        raise RefusedError(
            "data", f"the model fails on it: {error.problem}", error.fix
        ) from None
    if none_finite(outputs):
        raise RefusedError(
            "data",
            "the model gives nothing but NaN and infinite values on it",
            "check that values are scaled as the model expects, and that the model itself is sound",
        )
    return outputs


def _unproved(run: Run, inputs: VerificationInputs, why: str) -> VerificationInputs:
    """Warn that nothing can be compared. Errors: RefusedError with `strict`."""
    if run.settings.strict:
        raise RefusedError(
            "verify",
            f"the result cannot be compared with the original: {why}",
            "run without --strict: the structure is checked all the same",
        )
    run.reporter.warn("verify", f"checked in structure only: {why}")
    return inputs
