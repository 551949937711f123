"""Time of models and of each of their kernels, as ONNX Runtime's own profiler tells it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx
from numpy.typing import NDArray

from ..passes._core.context import KernelNode
from ..passes._core.scratch import scratch_folder
from .bench import interleaved
from .optimized import kernel
from .session import Session

PROFILED_MS = 1500.0
"""Time for which a model is profiled, in ms. Chosen by hand; not measured."""

TIMED_S = 2.0
FEWEST_ROUNDS = 15
"""Seconds for which whole runs are timed, for each model, and rounds at the least."""

FEWEST_RUNS = 8
MOST_RUNS = 200
"""Runs that are profiled at the least and at most: every node of every run is an event."""


@dataclass(frozen=True)
class Profile:
    """Time of one run of a model, and the time of each kernel within it, in ms.

    `kernels`: as many as ONNX Runtime's optimized graph has, with their times, which are scaled so
    that they add up to `latency_ms`: what a run takes between its kernels is shared out among them.
    """

    latency_ms: float
    kernels: list[tuple[KernelNode, float]]


def profiles(
    sessions: Sequence[Session], feeds: Sequence[Mapping[str, NDArray[Any]]]
) -> list[Profile]:
    """Profiles of models that take the same feeds.

    Whole runs are timed in turns; each model is profiled by itself. Errors: RemoteError;
    WorkerDied.
    """
    latencies = interleaved(
        sessions,
        [feeds] * len(sessions),
        seconds=TIMED_S * len(sessions),
        min_rounds=FEWEST_ROUNDS,
    )
    first_ms = latencies[0].median_ms
    found = []
    for session, latency in zip(sessions, latencies, strict=True):
        # the ratio is of rounds, and holds where the load of the machine changes
        latency_ms = first_ms * latency.ratio.median
        profile = _profile(session, feeds, latency_ms)
        found.append(profile)
    return found


def _profile(
    session: Session, feeds: Sequence[Mapping[str, NDArray[Any]]], latency_ms: float
) -> Profile:
    wanted = round(PROFILED_MS / max(latency_ms, 1e-3))
    runs = min(max(wanted, FEWEST_RUNS), MOST_RUNS)
    with scratch_folder() as folder:
        path = Path(folder, "optimized.onnx")
        times = session.profile(feeds, runs, path)
        optimized = onnx.load(path, load_external_data=False)
    # the time of a node is that of its bodies, too
    nodes = [kernel(node) for node in optimized.graph.node]
    total = sum(times.get(node.name, 0.0) for node in nodes)
    scale = latency_ms / total if total else 0.0
    return Profile(
        latency_ms, [(node, scale * times.get(node.name, 0.0)) for node in nodes]
    )
