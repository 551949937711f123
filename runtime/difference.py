"""Difference of two models: both run on the same feeds, at two batch sizes, in the worker."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import OnnxOptError, RefusedError
from ..passes._core.context import Difference
from ..passes._core.variation import ColumnSums
from .compare import has_classes
from .feeds import Feeds, candidate_feeds, sized_feeds
from .rows import common_rows, differ_in_rows, padded_rows
from .session import Session, open_session
from .worker import Worker, WorkerDied

Arrays = Mapping[str, NDArray[Any]]
BatchOutputs = list[dict[str, NDArray[Any]]]

_ROWS = (1, 3)
"""Samples of the two batches: a graph that is right for one length of an open batch may be wrong
for another. Chosen by hand; not measured.
"""

_MADE_UP_ROWS = (*_ROWS, 12)
"""The same of made-up batches. A few made-up samples may all be easy: of a classifier of 64 inputs
four showed 37 dB where others showed 5 to 15.
"""


class _Reference(NamedTuple):
    """Batches that the reference accepts, its outputs, and the failure where there are none."""

    batches: list[Arrays]
    outputs: BatchOutputs
    failure: str


def difference(
    worker: Worker,
    reference: Path,
    other: Path,
    feeds: Feeds | None,
    seed: int,
    threads: int = 0,
    optimize: bool = True,
) -> Difference:
    """Compare two model files on the CPU; see `largest_error`.

    Run on batches of 1 and of 3 samples of `feeds`, or made up without them; on whole batches where
    the reference accepts no others. The error is infinite where there is a failure.
    """
    # one after the other: together, two large models take twice the memory
    with contextlib.ExitStack() as stack:
        first, reference_failure = _opened(
            stack,
            worker,
            reference,
            threads,
            optimize,
        )
        expected = _Reference([], [], reference_failure)
        if first is not None:
            expected = _reference_outputs(first, feeds, seed)
    if expected.failure:
        return _failed(reference_failure=expected.failure)
    with contextlib.ExitStack() as stack:
        second, failure = _opened(
            stack,
            worker,
            other,
            threads,
            optimize,
        )
        if second is None:
            return _failed(failure)
        try:
            got = [second.run(batch) for batch in expected.batches]
        except OnnxOptError as error:
            return _failed(_line(error))
    failure = unlike(expected.outputs, got)
    if failure:
        return _failed(failure)
    distance = largest_error(expected.outputs, got)
    lost = largest_loss(expected.outputs, got)
    return Difference(distance, failure="", reference_failure="", lost=lost)


def _failed(failure: str = "", reference_failure: str = "") -> Difference:
    return Difference(math.inf, failure, reference_failure)


def unlike(expected: BatchOutputs, got: BatchOutputs) -> str:
    """Say why outputs cannot be compared: other names, types or shapes; "" where they can.

    Other numbers of rows can be compared: a lossy pass may change them where the data decides them.
    """
    for reference, other in zip(expected, got, strict=True):
        if reference.keys() != other.keys():
            have = ", ".join(other)
            want = ", ".join(reference)
            return f"its outputs are {have} instead of {want}"
        for name, array in reference.items():
            have = _described(other[name])
            want = _described(array)
            is_loose = differ_in_rows(array, other[name])
            if have != want and not (is_loose and array.dtype == other[name].dtype):
                return f"output '{name}' is {have} instead of {want}"
    return ""


def _described(array: NDArray[Any]) -> str:
    return f"{array.dtype.name}{list(array.shape)}"


def largest_error(expected: BatchOutputs, got: BatchOutputs) -> float:
    """Largest error of an output of a batch.

    0 where equal, infinite where only one has a value that is not finite. Of floats: root mean
    square of y - y' over that of y. Of integers, booleans and texts: the fraction that differs. A
    row that only one of them has is an error as a whole.
    """
    largest = 0.0
    for reference, other in zip(expected, got, strict=True):
        for name, array in reference.items():
            error = _error(array, other[name])
            largest = max(largest, error)
    return largest


def _error(expected: NDArray[Any], got: NDArray[Any]) -> float:
    if not _is_float(expected):
        if differ_in_rows(expected, got):
            rows = max(len(expected), len(got))
            return 1 - common_rows(expected, got) / rows
        differs = expected != got
        return float(np.mean(differs)) if expected.size else 0.0
    y, z = padded_rows(expected.astype(np.float64), got.astype(np.float64))
    finite = np.isfinite(y) & np.isfinite(z)
    others = ~finite
    if not np.array_equal(y[others], z[others], equal_nan=True):
        return math.inf
    y = y[finite]
    z = z[finite]
    if np.array_equal(y, z):
        return 0.0
    # scaled by the largest magnitude, so that squares stay in range
    y_largest = np.abs(y).max(initial=0)
    z_largest = np.abs(z).max(initial=0)
    scale = max(y_largest, z_largest)
    y_scaled = y / scale
    z_scaled = z / scale
    noise = np.linalg.norm(y_scaled - z_scaled)
    signal = np.linalg.norm(y_scaled)
    if not signal:
        return math.inf
    return float(noise / signal)


def largest_loss(expected: BatchOutputs, got: BatchOutputs) -> float:
    """Largest share of what varies that an output loses; NaN where none tells.

    Outputs that may choose among classes are left out: a classifier that is given noise may find
    the same class in all of it.
    """
    sums: dict[str, ColumnSums] = {}
    for reference, other in zip(expected, got, strict=True):
        for name, array in reference.items():
            if _is_float(array):
                own = sums.setdefault(name, ColumnSums())
                own.update(*padded_rows(array, other[name]))
    losses = []
    for name, array in expected[-1].items():
        if name in sums and not _may_choose(array, sums[name]):
            losses.append(sums[name].lost())
    told = [lost for lost in losses if not math.isnan(lost)]
    return max(told, default=math.nan)


def _may_choose(array: NDArray[Any], sums: ColumnSums) -> bool:
    """True for columns that may be scores of classes: not those of maps, or of other units."""
    return has_classes(array) and array.ndim <= 3 and not sums.have_other_units


def _opened(
    stack: contextlib.ExitStack,
    worker: Worker,
    path: Path,
    threads: int,
    optimize: bool,
) -> tuple[Session | None, str]:
    """Open a session that goes with the stack; None and the failure where that fails."""
    try:
        session = open_session(worker, path, threads=threads, optimize=optimize)
    except OnnxOptError as error:
        return None, _line(error)
    stack.callback(session.close)
    return session, ""


def _reference_outputs(session: Session, feeds: Feeds | None, seed: int) -> _Reference:
    """Find batches that the reference accepts: of the data, or made up without it."""
    if feeds is not None:
        return _first_accepted(session, _cut_from(feeds), any_value=True)
    made_up = _made_up(session, seed)
    try:
        return _first_accepted(session, made_up, any_value=False)
    except RefusedError as error:
        # an input that cannot be made up
        return _Reference([], [], _line(error))


def _first_accepted(
    session: Session, kinds: Iterable[list[Arrays]], any_value: bool
) -> _Reference:
    """Take the first kind of batches that runs; unless `any_value`, one with finite outputs.

    Where no kind has finite outputs, the first that ran.
    """
    failure = ""
    second_best: _Reference | None = None
    for batches in kinds:
        try:
            outputs = [session.run(batch) for batch in batches]
        except OnnxOptError as error:
            failure = failure or _line(error)
            if isinstance(error, WorkerDied):
                # each further kind could cost as much time or memory
                break
            continue
        found = _Reference(batches, outputs, failure="")
        if any_value or _all_finite(outputs):
            return found
        if second_best is None:
            second_best = found
    return second_best or _Reference([], [], failure)


def _all_finite(outputs: BatchOutputs) -> bool:
    for batch in outputs:
        for array in batch.values():
            if not _is_float(array):
                continue
            # numpy's functions do not know bfloat16 without the cast
            wide = array.astype(np.float64)
            if not np.isfinite(wide).all():
                return False
    return True


def _cut_from(feeds: Feeds) -> Iterator[list[Arrays]]:
    """Yield the first two batches, of 1 and 3 samples where every input has as many, and as they
    are.
    """
    first_two = itertools.islice(feeds, 2)
    given: list[Arrays] = [batch.feeds for batch in first_two]
    if all(_have_one_length(batch) for batch in given):
        few, more = _ROWS
        yield [
            _resized(given[0], few),
            _resized(given[-1], more),
        ]
    yield given


def _have_one_length(batch: Arrays) -> bool:
    """True if all arrays with axes have one length, which is not 0."""
    lengths = {len(array) for array in batch.values() if array.ndim}
    lengths.discard(0)
    return len(lengths) == 1


def _resized(batch: Arrays, rows: int) -> Arrays:
    """Cut a batch to so many samples, or repeat its samples in turn."""
    resized = {}
    for name, array in batch.items():
        if array.ndim:
            chosen = np.arange(rows) % len(array)
            array = np.take(array, chosen, axis=0)
        resized[name] = array
    return resized


def _made_up(session: Session, seed: int) -> Iterator[list[Arrays]]:
    # another seed than that of the feeds by which a run judges its result
    for sized in sized_feeds(session.inputs, seed + 1, _MADE_UP_ROWS):
        batches = itertools.chain.from_iterable(sized)
        yield [batch.feeds for batch in batches]
    # a model that is exported for one batch size may accept neither
    for feeds in candidate_feeds(session.inputs, seed, path=session.path):
        yield [batch.feeds for batch in feeds]


def _is_float(array: NDArray[Any]) -> bool:
    # kind V is bfloat16
    return array.dtype.kind in "fV"


def _line(error: OnnxOptError) -> str:
    return " ".join(error.problem.split())
