"""Latency of models against each other.

They are timed in turns in one process, so that a busy machine troubles all alike.
"""

from __future__ import annotations

import contextlib
import glob
import math
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import UsageError
from ..passes._core.latency import SLOWER, LatencyRatio
from .feeds import Batch
from .paired import ratio_of, timed_until_decided
from .session import Session, open_session
from .worker import Worker

_BATCHES = 8
"""Batches of feeds that are timed in turn, so that no single one decides. Chosen by hand; not
measured.
"""

_MAX_ROUNDS = 100_000
"""Rounds after which a timing ends before its seconds are over: it bounds the memory.

Two models of 10 us a run take 2 s for as many. Chosen by hand; not measured.
"""


_BRIEF_SECONDS = 0.02
_BRIEF_ROUNDS = 8
"""Seconds and rounds at the least that figures take where nothing is to be decided. Chosen by hand;
not measured.
"""

LARGE = 256 << 20
"""Bytes of a model file (256 MiB) above which it is timed without another one in memory. Chosen by
hand: two models and what runs them may be more than the machine has.
"""

_TURNS = 2
"""Turns of each of two models that are timed one at a time, so that either is first and last. More
would be more loads. Chosen by hand; not measured.
"""

_LOADS = 3
_LOAD_SECONDS = 0.25
"""Loads that are timed, and seconds of them after which there are no more. Chosen by hand; not
measured.
"""


@dataclass(frozen=True)
class Latency:
    """Time of one run of a model, in ms.

    `ratio`: of this model's time to the first model's in the same round (below 1 is faster than the
    first); robust where load drifts. `runs`: how many were timed.
    """

    median_ms: float
    p90_ms: float
    min_ms: float
    ratio: LatencyRatio
    runs: int

    @property
    def ratio_to_first(self) -> float:
        """The median ratio."""
        return self.ratio.median


@dataclass(frozen=True)
class PairedLatency:
    """Median times of two models in ms, and the ratio of the second's to the first's."""

    first_ms: float
    second_ms: float
    ratio: LatencyRatio | None


def interleaved(
    sessions: Sequence[Session],
    feeds_for_each: Sequence[Iterable[Batch | Mapping[str, NDArray[Any]]]],
    seconds: float = 2.0,
    rounds: int = _MAX_ROUNDS,
    min_rounds: int = 6,
) -> list[Latency]:
    """Time every session once a round, in alternating order, until `seconds` or `rounds` are spent.

    The first 8 batches of each session's feeds are used in turn. At least `min_rounds` are timed.
    Errors: UsageError unless all sessions live in one worker.
    """
    if not sessions:
        return []
    # handles are of one child, and runs in two of them could not take turns
    worker = sessions[0].worker
    if any(session.worker is not worker for session in sessions):
        raise UsageError(
            "bench",
            "the sessions live in different processes",
            "open them all in one Worker",
        )
    feeds = []
    for batches in feeds_for_each:
        first = islice(batches, _BATCHES)
        feeds.append([_arrays(batch) for batch in first])
    if len(feeds) != len(sessions) or not all(feeds):
        raise UsageError(
            "bench", "a session has no feeds", "give each session at least one batch"
        )
    handles = [session.handle() for session in sessions]
    times = _timed(
        worker,
        handles,
        feeds,
        seconds,
        min_rounds,
        max(rounds, min_rounds),
    )
    round_ms = np.sum(times, axis=0)
    latencies = []
    for index, own in enumerate(times):
        # paired: a round's load troubles both of its times; the first's own needs no samples
        ratio = ratio_of(times[0], own, round_ms) if index else LatencyRatio(1, 1, 1)
        latencies.append(_latency(own, ratio))
    return latencies


def paired_latency(
    first: Session,
    second: Session,
    feeds: Sequence[Mapping[str, NDArray[Any]]],
    limit: float = SLOWER,
    doubt_is_slower: bool = False,
) -> PairedLatency:
    """Time two sessions in turns until it is decided whether the second is slower than `limit`.

    `limit`: ratio to the first's time. `doubt_is_slower`: ends earlier where it stays undecided.
    Errors: as those of the worker's calls, and of loading.
    """
    pair = _Pair.of(first, second, feeds)
    times, ratio = timed_until_decided(pair.rounds, limit, doubt_is_slower)
    first_ms, second_ms = np.median(times, axis=1)
    return PairedLatency(float(first_ms), float(second_ms), ratio)


def brief_latency(
    first: Session, second: Session, feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> PairedLatency:
    """Time two sessions in turns, too shortly to tell one of them from the other: no ratio."""
    pair = _Pair.of(first, second, feeds)
    times = pair.rounds(_BRIEF_SECONDS, _BRIEF_ROUNDS)
    first_ms, second_ms = np.median(times, axis=1)
    return PairedLatency(float(first_ms), float(second_ms), None)


@dataclass(frozen=True)
class _Pair:
    """Two sessions that are timed in turns, and the feeds of both."""

    first: Session
    second: Session
    batches: list[dict[str, NDArray[Any]]]

    @classmethod
    def of(
        cls,
        first: Session,
        second: Session,
        feeds: Sequence[Mapping[str, NDArray[Any]]],
    ) -> _Pair:
        return cls(first, second, [dict(batch) for batch in feeds])

    def rounds(self, seconds: float, least: int) -> NDArray[np.float64]:
        """Times in ms, (2, rounds), of which there are at least so many."""
        if is_large(self.first.path) or is_large(self.second.path):
            return self._one_at_a_time(seconds, least)
        times = _timed(
            self.first.worker,
            [self.first.handle(), self.second.handle()],
            [self.batches, self.batches],
            seconds,
            least,
            _MAX_ROUNDS,
        )
        return np.array(times)

    def _one_at_a_time(self, seconds: float, least: int) -> NDArray[np.float64]:
        """The same with one model in memory: some runs of each, and then of the other."""
        parts: list[NDArray[np.float64]] = []
        # of each model and turn
        own_seconds = seconds / (2 * _TURNS)
        own_least = math.ceil(least / _TURNS)
        pair = (self.first, self.second)
        for turn in range(_TURNS):
            # what is loaded already goes first
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            runs: dict[int, NDArray[np.float64]] = {}
            for index in order:
                other = pair[1 - index]
                runs[index] = self._runs(pair[index], other, own_seconds, own_least)
            rounds = min(len(own) for own in runs.values())
            part = np.stack([runs[0][:rounds], runs[1][:rounds]])
            parts.append(part)
        return np.concatenate(parts, axis=1)

    def _runs(
        self, session: Session, other: Session, seconds: float, least: int
    ) -> NDArray[np.float64]:
        """Times of a session in ms, (runs,), while the other one is not in memory."""
        other.close()
        (times,) = _timed(
            session.worker,
            [session.handle()],
            [self.batches],
            seconds,
            least,
            _MAX_ROUNDS,
        )
        return times


def is_large(path: Path) -> bool:
    """True for a model that is timed without another one in memory."""
    size = 0
    # weights in files beside it have its name in front
    for file in path.parent.glob(f"{glob.escape(path.name)}*"):
        # one may be a link to nothing, or go meanwhile
        with contextlib.suppress(OSError):
            size += file.stat().st_size
    return size > LARGE


def _timed(
    worker: Worker,
    handles: list[int],
    feeds: list[list[dict[str, NDArray[Any]]]],
    seconds: float,
    min_rounds: int,
    max_rounds: int,
) -> list[NDArray[np.float64]]:
    """Time of each run in ms, one array a session."""
    times = worker.call(
        "time_rounds",
        handles,
        feeds,
        seconds,
        min_rounds,
        max_rounds,
        timeout=worker.timeout + seconds,
    )
    return [np.array(own) for own in times]


def peak_memory(session: Session) -> int | None:
    """Peak resident memory, in bytes, of the process that runs the session, since it started.

    None where the system does not tell.
    """
    peak: int | None = session.worker.call("peak_memory")
    return peak


@dataclass(frozen=True)
class LoadCost:
    """Cost of loading a model: time, and peak memory of the process that did; None: not told."""

    ms: float
    peak_bytes: int | None


def load_cost(path: Path, threads: int = 0, provider: str = "cpu") -> LoadCost:
    """Load a model in a process of its own, a few times where it is quick; the fastest counts.

    Errors: as those of `open_session`.
    """

    def load(worker: Worker) -> Session:
        return open_session(worker, path, provider, threads=threads, as_deployed=True)

    with Worker() as worker:
        # the first time takes libraries in
        session = load(worker)
        peak = peak_memory(session)
        session.close()
        times = []
        for _ in range(_LOADS):
            start = time.perf_counter()
            session = load(worker)
            times.append(time.perf_counter() - start)
            session.close()
            if sum(times) > _LOAD_SECONDS:
                break
    return LoadCost(1000 * min(times), peak)


def _latency(own: NDArray[np.float64], ratio: LatencyRatio) -> Latency:
    return Latency(
        median_ms=float(np.median(own)),
        p90_ms=float(np.percentile(own, 90)),
        min_ms=float(own.min()),
        ratio=ratio,
        runs=len(own),
    )


def _arrays(batch: Batch | Mapping[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    return batch.feeds if isinstance(batch, Batch) else dict(batch)
