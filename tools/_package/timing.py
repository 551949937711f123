"""Times of a bundle's model on this machine, and whether ORT format pays.

They are measured once for a model: bundles that are made again have the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ... import __version__
from ...passes._core.latency import SLOWER
from ...runtime.bench import interleaved
from ...runtime.session import Session, open_session
from ...runtime.worker import Worker
from .._run.cache import Cache, cache_folder

FASTER = 0.8
LARGER = 1.25
"""Ratios to the ONNX file: cold start below which ORT format pays, and bytes above which it does
not. Chosen by hand: less than a fifth of a cold start is lost in the noise of a busy machine.
"""

STARTS = 7
SECONDS = 1.0
"""Cold starts of each file, and seconds in which runs are timed. Chosen by hand."""


@dataclass(frozen=True)
class Times:
    """Times in ms: of loading, of loading and the first run, of a run; None: not measured.

    `ort_pays`: the model in ORT format starts faster, is no slower and not much larger.
    `ort_start`: its cold start over the ONNX file's, where its bytes alone speak against it.
    """

    load_ms: float | None = None
    cold_start_ms: float | None = None
    latency_ms: float | None = None
    ort_pays: bool = False
    ort_start: float | None = None


def times_of(
    session: Session,
    feeds: Mapping[str, Any],
    ort_format: Path | None,
    key: Sequence[str],
    use_cache: bool,
) -> Times:
    """Measure a model and its form of ORT, or take what an earlier call measured.

    `key`: everything besides this machine's software that the times depend on.
    """
    cache = Cache(cache_folder() / "bundles")
    text = json.dumps([__version__, *key])
    name = hashlib.sha256(text.encode()).hexdigest()
    if use_cache:
        known = _times_from(cache.read(name))
        if known is not None:
            return known
    found = _measured(session, feeds, ort_format)
    cache.write(name, asdict(found))
    return found


def _times_from(facts: Mapping[str, Any] | None) -> Times | None:
    if facts is None:
        return None
    try:
        return Times(**facts)
    # of another version, or damaged
    except TypeError:
        return None


def _measured(
    session: Session, feeds: Mapping[str, Any], ort_format: Path | None
) -> Times:
    worker = session.worker
    if session.provider.name != "cpu":
        (latency,) = interleaved([session], [[feeds]], seconds=SECONDS)
        return Times(latency_ms=latency.median_ms)
    files = [session.path]
    sessions = [session]
    if ort_format is not None:
        files.append(ort_format)
        opened = open_session(worker, ort_format, as_deployed=True)
        sessions.append(opened)
    starts = _starts(worker, files, feeds)
    own_feeds = [[feeds] for _ in sessions]
    latencies = interleaved(sessions, own_feeds, seconds=SECONDS)
    own = starts[session.path]
    pays = False
    ort_start = None
    if ort_format is not None:
        sessions[1].close()
        start_ratio = starts[ort_format].cold / own.cold
        size = session.path.stat().st_size
        size_ratio = ort_format.stat().st_size / size
        is_slower = latencies[1].ratio.median > SLOWER
        is_faster = start_ratio < FASTER and not is_slower
        pays = is_faster and size_ratio <= LARGER
        if is_faster and not pays:
            ort_start = start_ratio
    return Times(
        load_ms=1e3 * own.load,
        cold_start_ms=1e3 * own.cold,
        latency_ms=latencies[0].median_ms,
        ort_pays=pays,
        ort_start=ort_start,
    )


class StartTimes(NamedTuple):
    """Seconds until a session is there, and until it has run once."""

    load: float
    cold: float


def _starts(
    worker: Worker, files: Sequence[Path], feeds: Mapping[str, Any]
) -> dict[Path, StartTimes]:
    """Median times of a start of each file, which take turns."""
    times: dict[Path, list[StartTimes]] = {file: [] for file in files}
    for _ in range(STARTS):
        for file in files:
            seconds = worker.call("time_load", str(file), dict(feeds))
            times[file].append(StartTimes(*seconds))
    medians = {}
    for file, own in times.items():
        # the first takes the file in
        rest = own[1:]
        load = statistics.median(each.load for each in rest)
        cold = statistics.median(each.cold for each in rest)
        medians[file] = StartTimes(load, cold)
    return medians
