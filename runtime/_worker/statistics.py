"""Statistics of tensors that the child gathers while its sessions run."""

from __future__ import annotations

import functools
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...passes._core.context import MomentRequest
from ..calibrate import ClippedObserver, DerivedTap, RangeObserver
from ..moments import MomentObserver
from . import ort_values
from .background import BackgroundExecutor
from .ipc import Observation
from .sessions import Feeds, session_at

_HELD_BYTES = 256 << 20
"""Bytes of outputs above which counting does not overlap with the next run, so that only one batch
of them is held. Chosen by hand; not measured.
"""

_OBSERVERS: dict[int, dict[str, RangeObserver]] = {}
_MOMENTS: dict[int, dict[str, MomentObserver]] = {}
_BACKGROUND = BackgroundExecutor()


def forget(handle: int) -> None:
    """Drop the statistics of a session."""
    _BACKGROUND.abandon()
    _OBSERVERS.pop(handle, None)
    _MOMENTS.pop(handle, None)


def observe(
    handle: int,
    feeds: Feeds,
    taps: Mapping[str, DerivedTap | None],
    keep: Sequence[str] = (),
) -> Observation:
    """Run the feeds and count tapped outputs (or inputs) in the session's observers.

    `keep`: outputs that are given back. A name with a `DerivedTap` is not fetched: it follows from
    the tap's source. Counting goes on while the next feeds run; an error in it is raised by the
    next call.
    """
    fetched = [name for name, tap in taps.items() if tap is None]
    outputs = _run_for(handle, [*fetched, *keep], feeds)
    size = _bytes_of(outputs)
    # graph inputs are no outputs: they are looked at as they were fed
    values = {**feeds, **outputs}
    count = functools.partial(
        _count,
        observers=_OBSERVERS.setdefault(handle, {}),
        arrays={name: values.get(name) for name in fetched},
        taps=taps,
    )
    _BACKGROUND.start(count)
    if size > _HELD_BYTES:
        _BACKGROUND.finish()
    return Observation(size, _kept(outputs, keep))


def _kept(outputs: Mapping[str, Any], keep: Sequence[str]) -> dict[str, Any]:
    return {name: outputs[name] for name in keep if name in outputs}


def _run_for(handle: int, names: Iterable[str], feeds: Feeds) -> dict[str, Any]:
    """Run a session for those of the names that are its outputs; nothing is run for none."""
    session = session_at(handle)
    produced = {output.name for output in session.get_outputs()}
    # one that is both looked at and kept is fetched once
    wanted = [name for name in dict.fromkeys(names) if name in produced]
    if not wanted:
        return {}
    outputs = ort_values.run(session, wanted, feeds)
    pairs = zip(wanted, outputs, strict=True)
    return dict(pairs)


def _bytes_of(outputs: Mapping[str, Any]) -> int:
    return sum(array.nbytes for array in outputs.values())


def _count(
    observers: dict[str, RangeObserver],
    arrays: dict[str, Any],
    taps: Mapping[str, DerivedTap | None],
) -> None:
    """Update the observers, emptying `arrays`."""
    clipped: defaultdict[str, list[ClippedObserver]] = defaultdict(list)
    for name, tap in taps.items():
        if tap is None:
            continue
        source = arrays.get(tap.source)
        if not _is_float(source):
            continue
        follower = ClippedObserver(
            _observer_of(observers, name),
            tap.low,
            tap.high,
        )
        clipped[tap.source].append(follower)
    for name in list(arrays):
        # taken out, so that each array is freed as soon as it is counted
        array = arrays.pop(name)
        if _is_float(array):
            observer = _observer_of(observers, name)
            observer.update(array, clipped[name])


def _observer_of(observers: dict[str, RangeObserver], name: str) -> RangeObserver:
    if name not in observers:
        observers[name] = RangeObserver(name)
    return observers[name]


def _is_float(array: Any) -> bool:
    if array is None:
        return False
    dtype = np.asarray(array).dtype
    return np.issubdtype(dtype, np.floating)


def ranges(
    handle: int, method: str, percentile: float, levels: int
) -> dict[str, tuple[float, float]]:
    """Range (low, high) of every tensor that was observed in this session."""
    _BACKGROUND.finish()
    observers = _OBSERVERS.get(handle, {})
    found = {}
    for name, observer in observers.items():
        if observer.count:
            found[name] = observer.range(
                method,
                percentile,
                levels,
            )
    return found


def accumulate(
    handle: int,
    feeds: Feeds,
    requests: Mapping[str, MomentRequest],
    samples: int,
    keep: Sequence[str] = (),
) -> Observation:
    """Run the feeds, of `samples` samples, and take what the requests name into the moments.

    `keep`: outputs that are given back.
    """
    observers = _MOMENTS.setdefault(handle, {})
    names: dict[str, None] = {}
    for request in requests.values():
        names[request.tensor] = None
        if request.target:
            names[request.target] = None
    outputs = _run_for(handle, [*names, *keep], feeds)
    values = {**feeds, **outputs}
    for key, request in requests.items():
        array: Any = values.get(request.tensor)
        if not _is_float(array):
            continue
        if key not in observers:
            observers[key] = MomentObserver(request)
        observers[key].update(
            array,
            # no tensor has an empty name
            target=values.get(request.target),
            samples=samples,
        )
    return Observation(_bytes_of(outputs), _kept(outputs, keep))


def moments(handle: int) -> dict[str, NDArray[np.float64]]:
    """Every moment that was observed in this session, by the request's key."""
    observers = _MOMENTS.get(handle, {})
    found = {}
    for key, observer in observers.items():
        if observer.count:
            found[key] = observer.value()
    return found
