"""Latency of the result beside the original."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import RefusedError
from ...runtime.bench import PairedLatency, paired_latency
from ...runtime.session import Session
from ...runtime.worker import WorkerDied
from .evidence import VerificationInputs
from .run import Run


def measure_latency(
    run: Run, inputs: VerificationInputs, before: Path, after: Path
) -> PairedLatency | None:
    """Latencies of both models in turns; None where they are not measured.

    Warns where the result is slower, by the rule that passes decide by, or may be.
    """
    if not run.settings.bench or not inputs.latency_feeds:
        return None
    try:
        with run.reporter.progress("measuring latency"):
            found = compare_latency(inputs.open, before, after, inputs.latency_feeds)
    except (RefusedError, WorkerDied) as error:
        run.reporter.warn("bench", f"latency was not measured: {error.problem}")
        return None
    verdict = found.ratio.verdict()
    times = f"{found.second_ms:.3g} ms, {found.first_ms:.3g} ms before (ratio {found.ratio})"
    where = ""
    if not inputs.on_target:
        where = f" on this CPU, which is not one of {run.settings.target}'s"
    if verdict == "slower":
        run.reporter.warn("latency", f"the result is slower{where}: {times}")
    if verdict == "undecided":
        run.reporter.warn(
            "latency",
            f"undecided whether the result is slower{where}: {times}; this machine is too "
            "busy, `onnx-opt bench` with more --seconds may decide",
        )
    return found


def compare_latency(
    open_session: Callable[[Path], Session],
    first: Path,
    second: Path,
    feeds: Sequence[Mapping[str, Any]],
) -> PairedLatency:
    """Latency of the models at two paths in turns, on the same feeds.

    Errors: RefusedError and WorkerDied, where one of them does not run.
    """
    with (
        contextlib.closing(open_session(first)) as one,
        contextlib.closing(open_session(second)) as other,
    ):
        return paired_latency(one, other, feeds)
