"""Answers to what passes ask of a run, found by running models in a worker.

Implements the protocol `passes._core.context.Context` by its structure.
"""

from __future__ import annotations

import contextlib
import copy
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import UsageError
from ..passes._core.context import (
    Difference,
    HeldBack,
    KernelNode,
    MomentRequest,
)
from ..passes._core.latency import SLOWER, LatencyRatio
from ..passes._core.scratch import scratch_folder
from ._worker.ipc import Observation
from .batching import RowLimit, micro_batches
from .bench import is_large, paired_latency
from .body_values import with_body_values
from .calibrate import DerivedTap
from .difference import difference
from .feeds import Batch, Feeds, StoredFeeds
from .held_out import held_out
from .kept_batches import KeptBatches, TooLarge
from .kernel_times import Profile, profiles
from .optimized import optimized_nodes
from .own_text import with_own_text
from .parallel import in_parallel
from .session import Session, open_session
from .stages import (
    CARRIED,
    BatchStore,
    CarriesTooMuch,
    Group,
    Stage,
    StoredBatch,
    part_bytes,
    stage_bytes,
    stages_of,
)
from .taps import constant_names, planned_taps
from .worker import RemoteError, Worker

Progress = Callable[
    [str, int], contextlib.AbstractContextManager[Callable[[int], None]]
]

MadeUp = Callable[[bool], Sequence[Mapping[str, NDArray[Any]]]]
"""Feeds made up without data; given is whether the model reads tokens."""

_MADE_UP = 16
"""Batches of made-up tokens that are looked at where there is no data."""

_LEAST_NOISE = 256
"""Elements of a made-up input that noise is taken for; fewer may be sizes, factors or states."""

_HELD_BACK = 4
"""One sample in so many judges what was fitted to the others. With one in eight of 100 images 12
judged, and the outputs of others drifted 3.6 dB more than theirs.
"""


class RunContext:
    """A run with a worker and, where the user gave some, calibration feeds.

    `save`: writes an ir.Model to a path. `warn`: takes (where, message). `progress`: makes a
    progress bar. `provider`: where candidates may be run and timed, on `latency_feeds`; None: they
    must not be, or cannot. `made_up`: gives feeds that the original accepts, long ones where it
    reads tokens. `runs`: True if the run compares models by running them. `float_form`:
    a clone of the model that a pass's lossy changes start from, None until one remembers it.
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
        made_up: MadeUp = lambda has_tokens: (),
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
        self._made_up = made_up
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
        """Nodes of ONNX Runtime's optimized graph; None where it is not known."""
        # other providers compile their part of the graph out of sight
        if self._provider != "cpu":
            return None
        with self.progress("look at kernels", 1), self._opened(model) as (session,):
            return optimized_nodes(session)

    def latency_ratio(
        self, model: ir.Model, other: ir.Model, limit: float = SLOWER
    ) -> LatencyRatio | None:
        """Ratio time(other) / time(model), timed in turns in one process.

        None without a provider or feeds.
        """
        return self._latency_ratio(model, other, limit)

    def is_not_slower(self, model: ir.Model, other: ir.Model) -> bool:
        """True if it is decided that `other` takes no longer than `model`."""
        ratio = self._latency_ratio(model, other, SLOWER, doubt_is_slower=True)
        return ratio is not None and ratio.verdict() == "not slower"

    def _latency_ratio(
        self,
        model: ir.Model,
        other: ir.Model,
        limit: float,
        doubt_is_slower: bool = False,
    ) -> LatencyRatio | None:
        if self._provider is None or not self._latency_feeds:
            return None
        with (
            self.progress("time candidates", 1),
            self._opened(model, other, together=False) as (first, second),
        ):
            found = paired_latency(
                first,
                second,
                self._latency_feeds,
                limit,
                doubt_is_slower,
            )
            return found.ratio

    @property
    def tells_times(self) -> bool:
        """True if kernels can be timed: other providers run many nodes at once out of sight."""
        return self._provider == "cpu" and bool(self._latency_feeds)

    def profiles(self, models: Sequence[ir.Model]) -> list[Profile]:
        """Times of models and of their kernels on the same feeds, where `tells_times`."""
        with (
            self.progress("time kernels", 1),
            self._opened(*models) as sessions,
        ):
            return profiles(sessions, self._latency_feeds)

    def difference(self, model: ir.Model, other: ir.Model) -> Difference | None:
        """Difference of both on calibration feeds, else synthetic ones, always on the CPU.

        None where the run compares nothing.
        """
        if not self._runs:
            return None
        # quantized models run as written: ONNX Runtime fuses their kernels in one form of a graph
        # and not in another, and what they compute changes with that
        as_written = _quantizes(model) or _quantizes(other)
        with self.progress("compare candidates", 1), scratch_folder() as folder:
            reference_path = Path(folder, "reference.onnx")
            other_path = Path(folder, "other.onnx")
            self._save(model, reference_path)
            self._save(other, other_path)
            return difference(
                self.worker,
                reference_path,
                other_path,
                self.feeds,
                self.seed,
                self._threads,
                optimize=not as_written,
            )

    def remember_float(self, model: ir.Model) -> None:
        self.float_form = model.clone()

    @contextlib.contextmanager
    def _opened(
        self, *models: ir.Model, together: bool = True
    ) -> Iterator[list[Session]]:
        """Open a session of each model on the run's provider.

        Files and sessions go when the block ends. `together`: all stay loaded; otherwise large ones
        are loaded anew by their next use.
        """
        assert self._provider is not None
        sessions: list[Session] = []
        with scratch_folder() as folder:
            try:
                for index, model in enumerate(models):
                    path = Path(folder, f"{index}.onnx")
                    self._save(model, path)
                    session = open_session(
                        self.worker, path, self._provider, threads=self._threads
                    )
                    sessions.append(session)
                    if not together and is_large(path):
                        session.close()
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
        """Ranges from a copy of the model with the named tensors as outputs, always on the CPU.

        `names`: those of bodies as `RunNames` gives them. Absent from the result: tensors that no
        run gave (of a branch not taken, say), tensors that are not float, and names that the model
        lacks. Errors: UsageError without data.
        """
        model = with_body_values(model, names)
        plan = planned_taps(model, names)
        constant = constant_names(model)
        fetched = [name for name, tap in plan.items() if tap is None]

        def taps_of(stage: Stage, is_first: bool) -> dict[str, DerivedTap | None]:
            # constants are the same in every run: the first one shows them
            return {
                name: tap
                for name, tap in plan.items()
                if (name if tap is None else tap.source,) in stage.groups
                and (is_first or name not in constant)
            }

        # spin=False: the thread that counts needs a core, too
        return self._in_stages(
            _Looks("observe", [(name,) for name in fetched], taps_of),
            model,
            samples,
            read=("ranges", method, percentile, levels),
            spin=False,
        )

    def collect(
        self, model: ir.Model, requests: Mapping[str, MomentRequest], samples: int
    ) -> dict[str, NDArray[np.float64]]:
        """Moments of tensors, accumulated in the child, by the keys of their requests.

        Those of bodies have names as `RunNames` gives them. Errors: UsageError without data.
        """
        model = with_body_values(model, _tensors_of(requests))
        looks = _looks_at(requests)
        return self._in_stages(looks, model, samples, read=("moments",))

    def collect_in_parts(
        self,
        model: ir.Model,
        requests: Mapping[str, MomentRequest],
        sizes: Mapping[str, int],
        most: int,
        samples: int,
    ) -> Iterator[dict[str, NDArray[np.float64]]]:
        """Moments of one part of the model after the other, by the keys of their requests.

        Errors: UsageError without data.
        """
        model = with_body_values(model, _tensors_of(requests))
        looks = _looks_at(requests)
        kept: dict[Group, int] = {}
        for key, request in requests.items():
            group = _group_of(request)
            kept[group] = kept.get(group, 0) + sizes[key]
        within = min(most, stage_bytes(model) or most)
        given: set[str] = set()
        # before anything is given, and thus changed
        stages = stages_of(model, looks.groups, within, kept)
        try:
            for found in self._each_stage(stages, looks, samples, ("moments",)):
                given.update(found)
                yield found
        except RemoteError:
            # as in _in_stages
            for found in self._each_stage(
                stages, looks, samples, ("moments",), whole=True
            ):
                yield {key: found[key] for key in found if key not in given}

    in_parallel = staticmethod(in_parallel)

    def after(
        self, model: ir.Model, tensors: Sequence[str], samples: int
    ) -> RunContext | None:
        """Make a context fed with tensors of this one's runs, batch by batch.

        None where they take too much memory and disk. Errors: UsageError without data.
        """
        with contextlib.suppress(TooLarge):
            try:
                return self._after(model, tensors, samples, whole=False)
            except RemoteError:
                # as in _in_stages
                return self._after(model, tensors, samples, whole=True)
        return None

    def _after(
        self, model: ir.Model, tensors: Sequence[str], samples: int, whole: bool
    ) -> RunContext:
        calibration = self._calibration_feeds()
        batches = KeptBatches()
        limit = RowLimit()
        with self.progress("run up to a layer", 1), scratch_folder() as folder:
            path = Path(folder, "resumed.onnx")
            self._save(model, path)
            session = open_session(self.worker, path)
            try:
                parts = micro_batches(
                    calibration, session.inputs, samples, limit, whole
                )
                for feeds, rows in parts:
                    values = feeds | session.run(feeds)
                    kept = {name: values[name] for name in tensors}
                    size = batches.add(kept)
                    limit.adapt(size, rows)
            finally:
                session.close()
        resumed = copy.copy(self)
        resumed.feeds = StoredFeeds(batches)
        return resumed

    def held_back(self) -> HeldBack | None:
        """Contexts of three quarters of the calibration samples and of the rest.

        None of fewer than 32. Errors: UsageError without data.
        """
        parts = held_out(self._calibration_feeds(), _HELD_BACK)
        if parts is None:
            return None
        fitting = copy.copy(self)
        fitting.feeds = parts.others
        judging = copy.copy(self)
        judging.feeds = StoredFeeds(parts.batches)
        return HeldBack(fitting, judging, parts.samples)

    def on_any_feeds(
        self, tokens: Mapping[str, int], least: int = 0
    ) -> RunContext | None:
        """This context with the user's data or, without any, with the run's made-up feeds.

        `tokens`: inputs that take ids, and how many there are; all occur alike. `least`: tokens
        without which None is returned, where there are such inputs; where there are none, other
        inputs are varied as many times.
        """
        if self.feeds is not None:
            return self
        samples = self._made_up(bool(tokens)) if self._runs else ()
        if not samples:
            return None
        observing = copy.copy(self)
        random = np.random.default_rng(self.seed)
        batches = []
        seen = 0
        # who asks for a number of them learns weights from them: more tell more
        wanted = _MADE_UP if tokens or least else len(samples)
        for number in range(wanted):
            feeds = dict(samples[number % len(samples)])
            if number >= len(samples) and not tokens:
                _reorder(feeds, random)
            # an input with a default value may be left out
            for name, count in tokens.items():
                if name not in feeds:
                    continue
                ids = random.integers(0, count, feeds[name].shape)
                feeds[name] = ids.astype(feeds[name].dtype)
            seen += max(
                (feeds[name].size for name in tokens if name in feeds), default=0
            )
            batches.append(Batch(feeds, None))
        if tokens and seen < least:
            return None
        observing.feeds = StoredFeeds(batches)
        return observing

    def on_own_text(
        self, model: ir.Model, tokens: Mapping[str, int], least: int = 0
    ) -> RunContext | None:
        """This context with the user's data or, without any, with text that the model writes.

        Made-up tokens stay where it writes none. Arguments: as of `on_any_feeds`.
        """
        observing = self.on_any_feeds(tokens, least)
        if observing is None or observing is self:
            return observing
        batches = list(observing.feeds or ())
        with (
            self.progress("write text to round weights by", len(batches)) as advance,
            scratch_folder() as folder,
        ):
            path = Path(folder, "writer.onnx")
            self._save(model, path)
            session = open_session(self.worker, path)
            try:
                written = with_own_text(
                    session,
                    batches,
                    tokens,
                    self.seed,
                    advance,
                )
            finally:
                session.close()
        observing.feeds = StoredFeeds(written)
        return observing

    def _calibration_feeds(self) -> Feeds:
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        return self.feeds

    def _in_stages(
        self,
        looks: _Looks,
        model: ir.Model,
        samples: int,
        read: tuple[Any, ...],
        spin: bool = True,
    ) -> dict[str, Any]:
        """Run the model on the calibration feeds, stage by stage, and look at tensors of it.

        `read`: the child's function that tells the statistics of a session, and its arguments.
        Errors: UsageError without data.
        """
        try:
            return self._run_stages(
                looks,
                model,
                samples,
                read,
                spin,
                whole=False,
            )
        except RemoteError:
            # a graph may fix the batch inside, and run on whole batches alone
            return self._run_stages(
                looks,
                model,
                samples,
                read,
                spin,
                whole=True,
            )

    def _run_stages(
        self,
        looks: _Looks,
        model: ir.Model,
        samples: int,
        read: tuple[Any, ...],
        spin: bool,
        whole: bool,
    ) -> dict[str, Any]:
        """Run the model once over the feeds; `whole`: no batch is cut."""
        most = stage_bytes(model)

        def found_in(nbytes: int | None, carried: float) -> dict[str, Any]:
            found: dict[str, Any] = {}
            stages = stages_of(model, looks.groups, nbytes)
            for part in self._each_stage(
                stages, looks, samples, read, spin, whole, carried
            ):
                found |= part
            return found

        if most is None and (part := part_bytes(model)) is not None:
            with contextlib.suppress(CarriesTooMuch):
                return found_in(part, CARRIED)
        return found_in(most, math.inf)

    def _each_stage(
        self,
        stages: Sequence[Stage],
        looks: _Looks,
        samples: int,
        read: tuple[Any, ...],
        spin: bool = True,
        whole: bool = False,
        most_carried: float = math.inf,
    ) -> Iterator[dict[str, Any]]:
        """Run stage after stage over the feeds, and tell the statistics of each.

        `most_carried`: bytes that may wait between two of them. Errors: CarriesTooMuch.
        """
        feeds = self._calibration_feeds()
        with (
            scratch_folder() as folder,
            self.progress("calibrating", samples * len(stages)) as advance,
        ):
            waiting: Iterable[StoredBatch] = ()
            for number, stage in enumerate(stages):
                path = Path(folder, "calibration.onnx")
                self._save(stage.model, path)
                session = open_session(self.worker, path, spin=spin)
                limit = RowLimit()
                if number == 0:
                    parts = micro_batches(feeds, session.inputs, samples, limit, whole)
                    waiting = (StoredBatch(*part) for part in parts)
                store = BatchStore(Path(folder, f"after_{number}"))
                try:
                    for seen, batch in self._looked(looks, stage, session, waiting):
                        limit.adapt(seen.size, batch.samples)
                        if stage.carried:
                            after = batch.after(seen.kept, stage.carried)
                            # all samples are alike
                            size = sum(array.nbytes for array in after.tensors.values())
                            if size * samples / batch.samples > most_carried:
                                raise CarriesTooMuch
                            store.add(after)
                        advance(batch.samples)
                    function, *arguments = read
                    handle = session.handle()
                    found = self.worker.call(function, handle, *arguments)
                finally:
                    session.close()
                waiting = store
                yield found

    def _looked(
        self,
        looks: _Looks,
        stage: Stage,
        session: Session,
        batches: Iterable[StoredBatch],
    ) -> Iterator[tuple[Observation, StoredBatch]]:
        """Run batches through a stage, and have the child look at what belongs to it."""
        inputs = {info.name for info in session.inputs}
        for run, batch in enumerate(batches):
            feeds = {name: a for name, a in batch.tensors.items() if name in inputs}
            extra = {"samples": batch.samples} if looks.counts_samples else {}
            seen: Observation = self.worker.call(
                looks.function,
                session.handle(),
                feeds,
                looks.argument(stage, run == 0),
                keep=stage.carried,
                **extra,
            )
            yield seen, batch


@dataclass(frozen=True)
class _Looks:
    """Tensors to look at, the child's function for it, and its argument for a run of a stage.

    `counts_samples`: the function is told how many there are in a run.
    """

    function: str
    groups: Sequence[Group]
    argument: Callable[[Stage, bool], Mapping[str, Any]]
    counts_samples: bool = False


def _tensors_of(requests: Mapping[str, MomentRequest]) -> set[str]:
    """Names of all that requests look at."""
    tensors = {request.tensor for request in requests.values()}
    targets = {request.target for request in requests.values() if request.target}
    return tensors | targets


def _looks_at(requests: Mapping[str, MomentRequest]) -> _Looks:
    groups = {key: _group_of(request) for key, request in requests.items()}

    def requests_of(stage: Stage, is_first: bool) -> dict[str, MomentRequest]:
        return {
            key: request
            for key, request in requests.items()
            if groups[key] in stage.groups
        }

    return _Looks(
        "accumulate",
        list(dict.fromkeys(groups.values())),
        requests_of,
        counts_samples=True,
    )


def _group_of(request: MomentRequest) -> Group:
    return (request.tensor, request.target) if request.target else (request.tensor,)


def _quantizes(model: ir.Model) -> bool:
    # of any domain: com.microsoft has a QuantizeLinear, too
    return any(node.op_type == "QuantizeLinear" for node in model.graph)


@contextlib.contextmanager
def _no_progress(label: str, total: int) -> Iterator[Callable[[int], None]]:
    yield lambda steps: None


def _reorder(feeds: dict[str, NDArray[Any]], random: np.random.Generator) -> None:
    """Shuffle large float inputs in place: noise in another order is other noise."""
    for name, array in feeds.items():
        if array.dtype.kind == "f" and array.size >= _LEAST_NOISE:
            feeds[name] = random.permutation(array.reshape(-1)).reshape(array.shape)
