"""What passes ask of a run, answered by running the model: implements `passes._base.Context` by
structure.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import itertools
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import UsageError
from ..passes._core.context import Difference, KernelNode, LatencyRatio, MomentRequest
from ._statistics.taps import constant_names, planned_taps, with_taps
from .bench import paired_quartiles
from .difference import difference
from .feeds import Batch, Feeds, StoredFeeds
from .session import Session, TensorInfo, open_session
from .worker import Worker

Progress = Callable[
    [str, int], contextlib.AbstractContextManager[Callable[[int], None]]
]
_MICRO_BATCH = 8
_HELD_BYTES = 1 << 30  # of tensors kept between runs
_MICRO_BYTES = 32 << 20  # of tapped outputs of one batch; two are held at once


class RunContext:
    """A run with a worker and, where the user gave some, calibration feeds.

    `save`: writes an ir.Model to a path. `warn`: takes (where, message). `progress`: makes a
    progress bar. `provider`: where candidates may be run and timed, on `latency_feeds`; None: they
    must not be, or cannot. `runs`: whether the run compares models by running them. `float_form`: a
    clone of what a pass last said that its lossy changes start from.
    """

    def __init__(
        self,
        worker: Worker,
        feeds: Feeds | None,
        target: str,
        seed: int,
        save: Callable[[ir.Model, Path], Any],
        *,
        warn: Callable[[str, str], None] | None = None,
        progress: Progress | None = None,
        provider: str | None = None,
        threads: int = 0,
        latency_feeds: Sequence[Mapping[str, NDArray[Any]]] = (),
        runs: bool = True,
    ) -> None:
        self.worker = worker
        self.feeds = feeds
        self.target = target
        self.seed = seed
        self.warnings: list[str] = []
        self._save = save
        self._warn = warn
        self._progress = progress or _no_progress
        self._provider = provider
        self._threads = threads
        self._latency_feeds = latency_feeds
        self._runs = runs
        self.float_form: ir.Model | None = None

    def has_data(self) -> bool:
        return self.feeds is not None

    def warn(self, where: str, message: str) -> None:
        self.warnings.append(f"{where}: {message}")
        if self._warn is not None:
            self._warn(where, message)

    def progress(
        self, label: str, total: int
    ) -> contextlib.AbstractContextManager[Callable[[int], None]]:
        return self._progress(label, total)

    def kernels(self, model: ir.Model) -> list[KernelNode] | None:
        """Nodes of the optimized graph. None without a provider, and for those that compile the
        graph out of sight.
        """
        if self._provider != "cpu":
            return None
        with self._opened(model) as (session,):
            return session.optimized_nodes()

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, seconds: float
    ) -> LatencyRatio | None:
        """Quartiles of time(other) / time(model), in turns in one process."""
        if self._provider is None or not self._latency_feeds:
            return None
        with self._opened(model, other) as (first, second):
            return paired_quartiles(first, second, self._latency_feeds, seconds)

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        """Of both on calibration feeds, else synthetic ones, always on the CPU. None where the run
        compares nothing.

        Quantized models run as written: ONNX Runtime fuses their kernels in one form of a graph and
        not in another.
        """
        if not self._runs:
            return None
        as_written = any(
            node.op_type == "QuantizeLinear"
            for each in (model, other)
            for node in each.graph
        )
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            paths = Path(folder, "reference.onnx"), Path(folder, "other.onnx")
            for path, each in zip(paths, (model, other), strict=True):
                self._save(each, path)
            return difference(
                self.worker,
                *paths,
                self.feeds,
                self.seed,
                self._threads,
                optimize=not as_written,
            )

    def remember_float(self, model: ir.Model) -> None:
        self.float_form = model.clone()

    @contextlib.contextmanager
    def _opened(self, *models: ir.Model) -> Iterator[list[Session]]:
        """A session of each model, on the run's provider; files and sessions go when the block
        ends.
        """
        assert self._provider is not None
        sessions: list[Session] = []
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            try:
                for index, model in enumerate(models):
                    path = Path(folder, f"{index}.onnx")
                    self._save(model, path)
                    sessions.append(
                        open_session(
                            self.worker, path, self._provider, threads=self._threads
                        )
                    )
                yield sessions
            finally:
                for session in sessions:
                    session.close()

    def activation_ranges(
        self,
        model: ir.Model,
        names: Sequence[str],
        method: str,
        percentile: float,
        samples: int,
        levels: int = 255,
    ) -> dict[str, tuple[float, float]]:
        """Run a copy of the model with the named tensors as outputs, always on the CPU; ranges come
        from the child.

        Tensors in subgraphs, tensors that are not float and names that the model lacks are absent
        from the result.
        """
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        plan, constant = planned_taps(model, names), constant_names(model)
        varying = {name: tap for name, tap in plan.items() if name not in constant}
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            path = Path(folder, "calibration.onnx")
            self._save(
                with_taps(model, [name for name, tap in plan.items() if tap is None]),
                path,
            )
            session = open_session(
                self.worker, path, spin=False
            )  # the counting thread needs a core, too
            try:
                self._observe(
                    session, itertools.chain([plan], itertools.repeat(varying)), samples
                )
                found: dict[str, tuple[float, float]] = self.worker.call(
                    "ranges", session.handle(), method, percentile, levels
                )
            finally:
                session.close()
        return found

    def collect(
        self, model: ir.Model, requests: Mapping[str, MomentRequest], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        """Moments of tensors, accumulated in the child; `requests` are `passes._base.Request` by
        any key.
        """
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        plain = {key: dataclasses.asdict(request) for key, request in requests.items()}
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            path = Path(folder, "moments.onnx")
            named = [
                r[key] for r in plain.values() for key in ("tensor", "target") if r[key]
            ]
            self._save(with_taps(model, named), path)
            session = open_session(self.worker, path)
            try:
                self._observe(session, itertools.repeat(plain), samples, "accumulate")
                found: dict[str, NDArray[np.float64]] = self.worker.call(
                    "moments", session.handle()
                )
            finally:
                session.close()
        return found

    def after(
        self, model: ir.Model, tensors: Sequence[str], samples: int
    ) -> RunContext | None:
        """A context fed with tensors of this one's runs, batch by batch; None where they take more
        than 1 GiB.
        """
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        batches: list[Batch] = []
        limit, held = RowLimit(), 0
        with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
            path = Path(folder, "resumed.onnx")
            self._save(model, path)
            session = open_session(self.worker, path)
            try:
                for feeds, rows in micro_batches(
                    self.feeds, session.inputs, samples, limit
                ):
                    values = feeds | session.run(feeds)
                    batches.append(
                        Batch({name: values[name] for name in tensors}, None)
                    )
                    size = sum(array.nbytes for array in batches[-1].feeds.values())
                    held += size
                    if held > _HELD_BYTES:
                        return None
                    limit.adapt(size, rows)
            finally:
                session.close()
        resumed = copy.copy(self)
        resumed.feeds = StoredFeeds(batches)
        return resumed

    def _observe(
        self,
        session: Session,
        wanted: Iterator[Any],
        samples: int,
        function: str = "observe",
    ) -> None:
        """Have the child take every micro-batch, and what is `wanted` of it, into its statistics by
        a function.
        """
        assert self.feeds is not None
        handle = session.handle()
        with self.progress("calibrating", samples) as advance:
            limit = RowLimit()
            for feeds, rows in micro_batches(
                self.feeds, session.inputs, samples, limit
            ):
                limit.adapt(
                    self.worker.call(function, handle, feeds, next(wanted)), rows
                )
                advance(rows)


class RowLimit:
    """How many rows to run at once: 1 at first, then as many as keep the tapped outputs within 32
    MiB, at most 8.
    """

    def __init__(self) -> None:
        self.rows = 1

    def adapt(self, size: int, rows: int) -> None:
        """Learn that `rows` rows gave `size` bytes of outputs."""
        self.rows = max(min(_MICRO_BYTES * rows // max(size, 1), _MICRO_BATCH), 1)


def micro_batches(
    feeds: Feeds, inputs: Sequence[TensorInfo], samples: int, limit: RowLimit
) -> Iterator[tuple[dict[str, NDArray[Any]], int]]:
    """(feeds, rows) of `samples` rows, `limit.rows` at a time where axis 0 of every input is one
    symbolic batch.

    Where it is not, batches stay whole, and the last may go past `samples`.
    """
    splittable, seen = batch_is_symbolic(inputs), 0
    for batch in feeds:
        rows = batch_rows(batch.feeds)
        if not (splittable and same_rows(batch.feeds)):
            yield batch.feeds, rows
        else:
            rows = min(rows, samples - seen)
            start = 0
            while start < rows:
                stop = min(start + limit.rows, rows)
                yield (
                    {name: array[start:stop] for name, array in batch.feeds.items()},
                    stop - start,
                )
                start = stop
        seen += rows
        if seen >= samples:
            return


def batch_is_symbolic(inputs: Sequence[TensorInfo]) -> bool:
    """Whether every input has a first axis of open length, the same symbol where it is named."""
    first = [i.shape[0] if i.shape else 0 for i in inputs]
    named = {dim for dim in first if isinstance(dim, str)}
    return (
        bool(first)
        and not any(isinstance(dim, int) for dim in first)
        and len(named) <= 1
    )


def batch_rows(feeds: Mapping[str, NDArray[Any]]) -> int:
    """Samples in a batch: the length of the first input's axis 0, 1 without one."""
    first = next(iter(feeds.values()), np.zeros(()))
    return len(first) if first.ndim else 1


def same_rows(feeds: Mapping[str, NDArray[Any]]) -> bool:
    """Whether axis 0 of all arrays has one length."""
    return len({len(array) if array.ndim else -1 for array in feeds.values()}) == 1


@contextlib.contextmanager
def _no_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None
