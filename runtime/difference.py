"""How far apart two models compute: both run on the same feeds, at two batch sizes, in the
worker.
"""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import OnnxOptError, RefusedError
from ..passes._core.context import Difference
from .feeds import Feeds, candidate_feeds, sized_feeds
from .session import Session, TensorInfo, open_session
from .worker import Worker, WorkerDied

Arrays = Mapping[str, NDArray[Any]]
Outputs = list[dict[str, NDArray[Any]]]
_ROWS = (1, 3)


def difference(
    worker: Worker,
    reference: Path,
    other: Path,
    feeds: Feeds | None,
    seed: int,
    threads: int = 0,
    optimize: bool = True,
) -> Difference:
    """(error, failure of `other`, failure of `reference`) of two model files, on the CPU; see
    `largest_error`.

    Run on batches of 1 and of 3 samples of `feeds`, or made up without them; on whole batches where
    the reference accepts no others. The error is infinite where there is a failure.
    """
    with contextlib.ExitStack() as stack:
        first, reference_failure = _opened(stack, worker, reference, threads, optimize)
        second, failure = _opened(stack, worker, other, threads, optimize)
        if first is None or second is None:
            return Difference(math.inf, failure, reference_failure)
        batches, expected, reference_failure = _reference_outputs(first, feeds, seed)
        if reference_failure:
            return Difference(math.inf, "", reference_failure)
        try:
            got = [second.run(batch) for batch in batches]
        except OnnxOptError as error:
            return Difference(math.inf, _line(error), "")
    failure = unlike(expected, got)
    if failure:
        return Difference(math.inf, failure, "")
    return Difference(largest_error(expected, got), "", "")


def unlike(expected: Outputs, got: Outputs) -> str:
    """Why outputs cannot be compared: other names, types or shapes; "" where they can."""
    for reference, other in zip(expected, got, strict=True):
        if reference.keys() != other.keys():
            return (
                f"its outputs are {', '.join(other)} instead of {', '.join(reference)}"
            )
        for name, array in reference.items():
            have, want = (
                f"{a.dtype.name}{list(a.shape)}" for a in (other[name], array)
            )
            if have != want:
                return f"output '{name}' is {have} instead of {want}"
    return ""


def largest_error(expected: Outputs, got: Outputs) -> float:
    """The largest error of an output of a batch: 0 where equal, infinite where only one has a value
    not finite.

    Of floats: root mean square of y - y' over that of y. Of integers, booleans and texts: the
    fraction that differs.
    """
    pairs = (
        (array, other[name])
        for reference, other in zip(expected, got, strict=True)
        for name, array in reference.items()
    )
    return max((_error(array, other) for array, other in pairs), default=0.0)


def _error(expected: NDArray[Any], got: NDArray[Any]) -> float:
    if not _is_float(expected):
        return float(np.mean(expected != got)) if expected.size else 0.0
    y, z = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(y) & np.isfinite(z)
    if not np.array_equal(y[~finite], z[~finite], equal_nan=True):
        return math.inf
    y, z = y[finite], z[finite]
    scale = max(np.abs(y).max(initial=0), np.abs(z).max(initial=0))
    if np.array_equal(y, z):
        return 0.0
    noise, signal = (
        np.linalg.norm(y / scale - z / scale),
        np.linalg.norm(y / scale),
    )  # squares stay in range
    return float(noise / signal) if signal else math.inf


def _opened(
    stack: contextlib.ExitStack,
    worker: Worker,
    path: Path,
    threads: int,
    optimize: bool,
) -> tuple[Session | None, str]:
    """A session that goes with the stack, or why there is none."""
    try:
        session = open_session(worker, path, threads=threads, optimize=optimize)
    except OnnxOptError as error:
        return None, _line(error)
    stack.callback(session.close)
    return session, ""


def _reference_outputs(
    session: Session, feeds: Feeds | None, seed: int
) -> tuple[list[Arrays], Outputs, str]:
    """Batches that the reference accepts, what it makes of them, and why there are none."""
    if feeds is not None:
        return _first_accepted(session, _of_data(feeds), any_value=True)
    try:
        return _first_accepted(session, _made_up(session.inputs, seed), any_value=False)
    except RefusedError as error:  # an input that cannot be made up
        return [], [], _line(error)


def _first_accepted(
    session: Session, kinds: Iterable[list[Arrays]], any_value: bool
) -> tuple[list[Arrays], Outputs, str]:
    """The first kind of batches that runs; unless `any_value`, rather one with finite outputs."""
    failure, second_best = "", None
    for batches in kinds:
        try:
            outputs = [session.run(batch) for batch in batches]
        except OnnxOptError as error:
            failure = failure or _line(error)
            if isinstance(error, WorkerDied):
                break  # each further kind could cost as much time or memory
            continue
        if any_value or all(
            np.isfinite(a.astype(np.float64)).all()
            for o in outputs
            for a in o.values()
            if _is_float(a)
        ):
            return batches, outputs, ""
        second_best = second_best or (batches, outputs, "")
    return second_best or ([], [], failure)


def _of_data(feeds: Feeds) -> Iterator[list[Arrays]]:
    """The first two batches cut to 1 and repeated to 3 samples, where every input has as many; then
    as they are.
    """
    given: list[Arrays] = [batch.feeds for batch in itertools.islice(feeds, 2)]
    if all(
        len({len(a) if a.ndim else 0 for a in batch.values()} - {0}) == 1
        for batch in given
    ):
        yield [
            {
                name: np.take(a, np.arange(rows) % len(a), axis=0) if a.ndim else a
                for name, a in batch.items()
            }
            for rows, batch in zip(_ROWS, (given[0], given[-1]), strict=True)
        ]
    yield given


def _made_up(inputs: Sequence[TensorInfo], seed: int) -> Iterator[list[Arrays]]:
    for sized in sized_feeds(inputs, seed, _ROWS):
        yield [batch.feeds for feeds in sized for batch in feeds]
    for feeds in candidate_feeds(inputs, seed):
        yield [batch.feeds for batch in feeds]


def _is_float(array: NDArray[Any]) -> bool:
    return array.dtype.kind in "fV"  # V: bfloat16


def _line(error: OnnxOptError) -> str:
    return " ".join(error.problem.split())
