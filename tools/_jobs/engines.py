"""Engines: where jobs run. In this process, in several of this machine, or on a Ray cluster.

A job is a function of what all jobs share and of an item of its own.
"""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Protocol, TypeVar

from ... import UsageError

Shared = TypeVar("Shared")
Item = TypeVar("Item")
Result = TypeVar("Result")


class JobEngine(Protocol):
    """Runs jobs, several at once where it can."""

    def run(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
    ) -> Iterator[Result]:
        """The results of the items, in their order, each as soon as it is there."""
        ...

    def close(self) -> None:
        """Free what it holds."""
        ...


class HereEngine:
    """One job after the other, in this process."""

    def run(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
    ) -> Iterator[Result]:
        for item in items:
            yield work(shared, item)

    def close(self) -> None:
        return None


class ProcessEngine:
    """Jobs in so many processes of this machine."""

    def __init__(self, jobs: int) -> None:
        # a fresh interpreter each: threads of this one do not survive a fork
        self._pool = ProcessPoolExecutor(jobs, mp_context=get_context("spawn"))

    def run(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
    ) -> Iterator[Result]:
        require_sendable(shared)
        each = []
        for item in items:
            future = self._pool.submit(
                work,
                shared,
                item,
            )
            each.append(future)
        for future in each:
            yield future.result()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)


class RayEngine:
    """Jobs on a Ray cluster, each on a worker that reads the same files."""

    def __init__(self, address: str) -> None:
        try:
            import ray
        except ImportError:
            raise UsageError(
                "--ray", "Ray is not installed", "pip install 'onnx-opt[ray]'"
            ) from None
        self._ray = ray
        local = address == "local"
        if not ray.is_initialized():
            ray.init(
                address=None if local else address,
                include_dashboard=False,
                log_to_driver=False,
            )

    def run(
        self,
        work: Callable[[Shared, Item], Result],
        shared: Shared,
        items: Sequence[Item],
    ) -> Iterator[Result]:
        require_sendable(shared)
        remote = self._ray.remote(work)
        sent = self._ray.put(shared)
        each = []
        for item in items:
            one = remote.remote(sent, item)
            each.append(one)
        for one in each:
            result: Result = self._ray.get(one)
            yield result

    def close(self) -> None:
        self._ray.shutdown()


def require_sendable(shared: object) -> None:
    """Raise UsageError for data or a metric that other processes cannot be given."""
    try:
        pickle.dumps(shared)
    # whatever the objects of a caller raise
    except Exception as error:
        raise UsageError(
            "--jobs",
            f"data or metric cannot be sent to other processes ({type(error).__name__})",
            "give a path, module:callable or file.py:callable, or --jobs 1",
        ) from None
