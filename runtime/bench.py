"""Latency of models against each other: timed in turns in one process, so that a busy machine
troubles all alike.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from ..passes._core.context import LatencyRatio
from .feeds import Batch
from .session import Session

_BATCHES = 8


@dataclass(frozen=True)
class Latency:
    """Time of one run of a model, in ms.

    ratio_to_first: median over the rounds of this model's time divided by the first model's in the
    same round (below 1 is faster than the first); robust where load drifts. runs: how many were
    timed.
    """

    median_ms: float
    p90_ms: float
    min_ms: float
    ratio_to_first: float
    runs: int


def interleaved(
    sessions: Sequence[Session],
    feeds_for_each: Sequence[Iterable[Batch | Mapping[str, NDArray[Any]]]],
    seconds: float = 2.0,
    rounds: int = 10_000,
    min_rounds: int = 5,
) -> list[Latency]:
    """Time every session once a round, in alternating order, until `seconds` or `rounds` are spent.

    The first 8 batches of each session's feeds are used in turn. Errors: UsageError unless all
    sessions live in one worker.
    """
    if not sessions:
        return []
    worker = sessions[0].worker
    if any(session.worker is not worker for session in sessions):
        raise UsageError(
            "bench",
            "the sessions live in different processes",
            "open them all in one Worker",
        )
    feeds = [
        [_arrays(batch) for batch in islice(batches, _BATCHES)]
        for batches in feeds_for_each
    ]
    if len(feeds) != len(sessions) or not all(feeds):
        raise UsageError(
            "bench", "a session has no feeds", "give each session at least one batch"
        )
    handles = [session.handle() for session in sessions]
    times = worker.call(
        "time_rounds",
        handles,
        feeds,
        seconds,
        min_rounds,
        max(rounds, min_rounds),
        timeout=worker.timeout + seconds,
    )
    return [_latency(np.array(own), np.array(times[0])) for own in times]


def paired_quartiles(
    first: Session,
    second: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    seconds: float,
    min_rounds: int = 9,
) -> LatencyRatio:
    """Quartiles over the rounds of the second session's time divided by the first's in the same
    round.
    """
    batches = [dict(batch) for batch in feeds]
    worker = first.worker
    own, other = worker.call(
        "time_rounds",
        [first.handle(), second.handle()],
        [batches, batches],
        seconds,
        min_rounds,
        10_000,
        timeout=worker.timeout + seconds,
    )
    low, middle, high = np.percentile(np.array(other) / np.array(own), [25, 50, 75])
    return LatencyRatio(float(low), float(middle), float(high))


def peak_memory(session: Session) -> int | None:
    """Peak resident memory in bytes of the process that runs the session, since it started; None if
    not told.
    """
    peak: int | None = session.worker.call("peak_memory")
    return peak


def _latency(own: NDArray[np.float64], first: NDArray[np.float64]) -> Latency:
    return Latency(
        float(np.median(own)),
        float(np.percentile(own, 90)),
        float(own.min()),
        float(np.median(own / first)),
        len(own),
    )


def _arrays(batch: Batch | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return batch.feeds if isinstance(batch, Batch) else dict(batch)
