"""Independent computations side by side."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from onnx_opt.runtime import parallel
from onnx_opt.runtime.parallel import HELD, in_parallel
from threadpoolctl import threadpool_info

SMALL = 1000


def _one(usual: set[int]) -> set[int]:
    """Threads of a limit of one; none where no library of matrices is known here."""
    return {1} if usual else set()


def _blas_threads() -> set[int]:
    return {
        int(library["num_threads"])
        for library in threadpool_info()
        if library["user_api"] == "blas"
    }


def _size(item: int) -> int:
    return item


def test_results_come_in_the_order_of_the_items() -> None:
    def slow_if_early(item: int) -> int:
        time.sleep(0.02 / (item + 1))
        return item * 2

    found = list(in_parallel(slow_if_early, range(20), lambda item: SMALL))
    assert found == [item * 2 for item in range(20)]


def test_each_has_one_core_and_all_are_there_again_behind_them() -> None:
    usual = _blas_threads()
    seen = list(in_parallel(lambda item: _blas_threads(), [SMALL] * 3, _size))
    assert seen == [_one(usual)] * 3
    assert _blas_threads() == usual


def test_a_large_one_is_alone_with_all_cores() -> None:
    usual = _blas_threads()
    at_work: set[int] = set()

    def beside(item: int) -> tuple[set[int], set[int]]:
        at_work.add(item)
        time.sleep(0.01)
        others = at_work - {item}
        at_work.discard(item)
        return others, _blas_threads()

    sizes = [1, 2, HELD + 1, 3, 4]
    found = list(in_parallel(beside, sizes, _size))
    assert found[2] == (set(), usual)
    assert [threads for _, threads in found[:2] + found[3:]] == [_one(usual)] * 4


def test_no_more_are_taken_than_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parallel.os, "cpu_count", lambda: 8)
    given = 0
    most = 0
    half = HELD // 2

    def items() -> Iterator[int]:
        nonlocal given
        for _ in range(10):
            given += 1
            yield half

    for done, _ in enumerate(in_parallel(_size, items(), _size)):
        most = max(most, given - done)
    # two at work, and one taken that waits for its place
    assert most == 3


def test_an_error_ends_all_of_them() -> None:
    usual = _blas_threads()

    def fails(item: int) -> int:
        if item == 3:
            raise ValueError("the third")
        return item

    with pytest.raises(ValueError, match="the third"):
        list(in_parallel(fails, range(10), lambda item: SMALL))
    assert _blas_threads() == usual
    names = [thread.name for thread in threading.enumerate()]
    assert not any(name.startswith("ThreadPoolExecutor") for name in names)


def test_who_stops_early_leaves_nothing_at_work() -> None:
    usual = _blas_threads()
    results = in_parallel(_size, range(1, 10), _size)
    assert next(results) == 1
    results.close()
    assert _blas_threads() == usual


def test_runs_beside_each_other_leave_the_threads_that_there_were() -> None:
    usual = _blas_threads()
    first = in_parallel(_size, range(1, 10), _size)
    second = in_parallel(_size, range(1, 10), _size)
    assert (next(first), next(second)) == (1, 1)
    first.close()
    assert _blas_threads() == _one(usual)
    second.close()
    assert _blas_threads() == usual
