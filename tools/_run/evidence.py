"""What a run can prove with: the user's data or synthetic feeds, and the original's outputs on
them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import onnx_ir as ir

from ... import OnnxOptError, RefusedError
from ...runtime.feeds import Feeds, candidate_feeds, open_feeds
from ...runtime.held_out import held_out
from ...runtime.session import Session, open_session
from ...runtime.targets import target_named
from ...runtime.worker import RemoteError, Worker
from .drift import (
    FLOAT32,
    MAX_BATCHES,
    Arrays,
    Outputs,
    Referee,
    all_finite,
    inexact,
    limited,
)
from .figures import input_infos
from .result import Settings

Warn = Callable[[str, str], None]
DriftOn = Literal[
    "held-out data", "evaluation data", "calibration data", "synthetic feeds"
]
"""What drift is measured on. Only the first two say how a model does on data that no pass has
seen.
"""


@dataclass
class Evidence:
    """`calibration`: the user's feeds. `labelled`: data for the metric. `referee`: None where
    nothing can be compared.

    `open(path, optimize=True)`: opens a model file in the worker, on the provider that verifies it.
    `provider`: that of the target, where it is here. `drift_on`: which data the referee's is, None
    without one.
    """

    open: Callable[..., Session]
    calibration: Feeds | None = None
    labelled: Feeds | None = None
    referee: Referee | None = None
    latency_feeds: list[Arrays] = field(default_factory=list)
    provider: str | None = None
    drift_on: DriftOn | None = None


def gather_evidence(
    settings: Settings,
    worker: Worker,
    model: ir.Model,
    original: Path | None,
    warn: Warn,
) -> Evidence:
    """Open the data, find feeds that the original accepts, and run it on them.

    `original` None: nothing is run. What cannot be proved is said through `warn`; with `strict` it
    is an error. Errors: RefusedError for data that does not fit the model.
    """
    opener, provider = _opener(settings, worker, original, warn)
    evidence = Evidence(opener, provider=provider)
    inputs = input_infos(model)
    if settings.data is not None:
        evidence.calibration = open_feeds(settings.data, inputs)
    labelled = settings.eval_data if settings.eval_data is not None else settings.data
    if settings.metric is not None:
        evidence.labelled = open_feeds(labelled, inputs)
    if original is None:
        return evidence
    try:
        session = evidence.open(original)
    except OnnxOptError as error:
        return _unproved(settings, evidence, f"{error.where}: {error.problem}", warn)
    try:
        return _run_original(settings, evidence, session, warn)
    finally:
        session.close()


def _opener(
    settings: Settings, worker: Worker, original: Path | None, warn: Warn
) -> tuple[Callable[..., Session], str | None]:
    """How this run opens sessions: on the target's provider, or on the CPU with a warning where
    that is not there.

    Also that provider's name; None where it is not there.
    """
    provider = target_named(settings.target).provider
    if provider != "cpu" and original is not None:
        try:
            open_session(worker, original, provider, threads=settings.threads).close()
        except RefusedError as error:
            if settings.strict:
                raise
            warn(
                f"target {settings.target}",
                f"checked and measured on the CPU instead: {error.problem} ({error.fix})",
            )
            provider = "cpu"

    def open_in_worker(path: Path, optimize: bool = True) -> Session:
        return open_session(
            worker, path, provider, threads=settings.threads, optimize=optimize
        )

    return open_in_worker, provider if provider == target_named(
        settings.target
    ).provider else None


def _run_original(
    settings: Settings, evidence: Evidence, session: Session, warn: Warn
) -> Evidence:
    whole = evidence.calibration or evidence.labelled
    found = _batches_to_judge_by(settings, evidence)
    if found is not None:
        batches, evidence.drift_on = found
        outputs = _outputs_on_data(session, batches)
    else:
        synthetic = _synthetic(session, settings.seed)
        if synthetic is None:
            return _unproved(
                settings,
                evidence,
                "it gives no finite outputs on synthetic feeds; give --data",
                warn,
            )
        batches, outputs = synthetic
        evidence.drift_on = "synthetic feeds"
        warn(
            "data",
            "none given: checked on synthetic feeds; --data checks on real ones and "
            "calibrates quantization",
        )
    evidence.latency_feeds = batches[:1] if whole is None else [next(iter(whole)).feeds]
    problem = inexact(outputs[:1], [session.run(batches[0])], FLOAT32)
    if problem:
        return _unproved(
            settings, evidence, f"two runs of the original differ ({problem})", warn
        )
    evidence.referee = Referee(evidence.open, batches, session.path, outputs)
    return evidence


def _batches_to_judge_by(
    settings: Settings, evidence: Evidence
) -> tuple[list[Arrays], DriftOn] | None:
    """A few batches of the user's data that no pass sees, where there is enough of it; None without
    any data.

    What is held out of the calibration data is taken from it: `evidence.calibration` is the rest.
    """
    if evidence.calibration is None:
        if evidence.labelled is None:
            return None
        return limited(batch.feeds for batch in evidence.labelled), "evaluation data"
    if evidence.labelled is not None and _is_other_data(settings):
        return limited(batch.feeds for batch in evidence.labelled), "evaluation data"
    parts = held_out(evidence.calibration)
    if parts is None:
        return limited(
            batch.feeds for batch in evidence.calibration
        ), "calibration data"
    evidence.calibration = parts.others
    spread = (
        len(parts.batches) // MAX_BATCHES or 1
    )  # sorted data must not be judged at its beginning
    return limited(batch.feeds for batch in parts.batches[::spread]), "held-out data"


def _is_other_data(settings: Settings) -> bool:
    """Whether the data with labels was given apart from the data to calibrate on."""
    data, other = settings.data, settings.eval_data
    if isinstance(data, (str, Path)) and isinstance(other, (str, Path)):
        return str(data) != str(other)
    return other is not None and other is not data


def _outputs_on_data(session: Session, batches: list[Arrays]) -> Outputs:
    try:
        return [session.run(feeds) for feeds in batches]
    except RemoteError as error:
        raise RefusedError(
            "data", f"the model fails on it: {error.problem}", error.fix
        ) from None


def _synthetic(session: Session, seed: int) -> tuple[list[Arrays], Outputs] | None:
    """The first kind of synthetic feeds on which the original gives finite outputs, and those
    outputs.
    """
    for feeds in candidate_feeds(session.inputs, seed):
        try:
            batches = limited(batch.feeds for batch in feeds)
            outputs = [session.run(batch) for batch in batches]
        except OnnxOptError:
            continue  # this kind of feeds is not for this model; the next may be
        if all_finite(outputs):
            return batches, outputs
    return None


def _unproved(settings: Settings, evidence: Evidence, why: str, warn: Warn) -> Evidence:
    if settings.strict:
        raise RefusedError(
            "verify",
            f"the result cannot be compared with the original: {why}",
            "run without --strict: the structure is checked all the same",
        )
    warn("verify", f"checked in structure only: {why}")
    return evidence
