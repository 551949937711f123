"""Latency of the result beside the original."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import RefusedError
from ...runtime.bench import Latency, interleaved
from ...runtime.session import Session
from .evidence import VerificationInputs
from .run import Run

SECONDS = 2.0
"""Seconds that a latency comparison runs. Chosen by hand; not measured."""

SLOWER = 1.05
"""Ratio of latencies above which a result is called slower: both in median and at its fastest.

Below it, two runs of one model differ by noise alone. Chosen by hand; not measured.
"""


def measure_latency(
    run: Run, inputs: VerificationInputs, before: Path, after: Path
) -> tuple[float, float] | None:
    """Median latencies in ms, of both models in turns; None where they are not measured.

    Warns where the result is slower.
    """
    if not run.settings.bench or not inputs.latency_feeds:
        return None
    try:
        with run.reporter.progress("measuring latency"):
            first, second = compare_latency(
                inputs.open, [before, after], inputs.latency_feeds
            )
    except RefusedError as error:
        run.reporter.warn("bench", f"latency was not measured: {error.problem}")
        return None
    # by its fastest run, too: a median alone moves with whatever else the machine does
    is_slower = second.ratio_to_first > SLOWER
    if is_slower and second.min_ms > SLOWER * first.min_ms:
        where = ""
        if not inputs.on_target:
            where = f" on this CPU, which is not one of {run.settings.target}'s"
        run.reporter.warn(
            "latency",
            f"the result is slower{where}: {second.median_ms:.3g} ms, "
            f"{first.median_ms:.3g} ms before (ratio {second.ratio_to_first:.2f})",
        )
    return first.median_ms, second.median_ms


def compare_latency(
    open_session: Callable[[Path], Session],
    paths: Sequence[Path],
    feeds: Sequence[Mapping[str, Any]],
    seconds: float = SECONDS,
) -> list[Latency]:
    """Interleaved latency of the models at `paths` on the same feeds; ratios are to the first."""
    sessions: list[Session] = []
    try:
        # extend keeps those that opened before one fails, so that they are closed
        sessions.extend(open_session(path) for path in paths)
        same_feeds = [list(feeds)] * len(sessions)
        return interleaved(sessions, same_feeds, seconds=seconds)
    finally:
        for session in sessions:
            session.close()
