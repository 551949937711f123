"""Models cut into stages that run one after the other, for weights that would fill the memory.

Each stage is a model of its own with a part of the weights. What a stage computes and a later one
reads waits on the disk, batch by batch.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir
from numpy.typing import NDArray

from ..passes._core.graph import initializers, subgraphs
from ..passes._core.limits import limit
from ._worker import ipc
from .taps import may_be_observed, with_taps

WHOLE = 0.4
"""Share of the available memory up to which weights run as a whole: a runtime lays them out anew,
and holds activations beside them. Chosen by hand; not measured.
"""

PART = 0.2
"""Share of the available memory that the weights of one stage take. Chosen by hand; not
measured.
"""

LARGE = 256 << 20
"""Bytes of weights (256 MiB) from which a model runs in parts although memory holds it whole.

Of a smaller one, what a run takes beside its weights is more than they are. Chosen by hand.
"""

PARTS = 4
"""Parts of such a model: activations and statistics are added to one of them. Chosen by hand; with
4, calibrating a language model of 538 MB is not what a run takes most memory for.
"""

CARRIED = 1 << 30
"""Bytes (1 GiB) that wait on the disk between two such parts at the most. Chosen by hand."""

Group = tuple[str, ...]
"""Names of tensors that are looked at together, in the same run."""

NOTHING_KEPT: Mapping[Group, int] = {}
"""For statistics that take no memory to speak of."""


class CarriesTooMuch(Exception):
    """Raised where what later stages read would fill the disk."""


@dataclass(frozen=True)
class Stage:
    """A part of a model. `groups`: what is looked at in it; `carried`: what later stages read."""

    model: ir.Model
    groups: tuple[Group, ...]
    carried: tuple[str, ...] = ()


def stage_bytes(model: ir.Model) -> int | None:
    """Bytes of weights that a stage of this model may have; None where it runs as a whole.

    By the limit STAGE_BYTES, whatever memory there is, where that is set.
    """
    fixed = limit("STAGE_BYTES")
    if fixed:
        return fixed
    available = available_memory()
    if _weight_bytes(model) <= WHOLE * available:
        return None
    return int(PART * available)


def part_bytes(model: ir.Model) -> int | None:
    """Bytes of weights that a stage had better have of a model that could run as a whole.

    None: it is small.
    """
    total = _weight_bytes(model)
    return None if total < LARGE else total // PARTS


def _weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights, each counted once."""
    sizes: dict[int, int] = {}
    for value in initializers(model):
        assert value.const_value is not None
        sizes[id(value.const_value)] = value.const_value.nbytes
    return sum(sizes.values())


def available_memory() -> int:
    """Bytes that a new process can take without swapping."""
    import psutil

    available = int(psutil.virtual_memory().available)
    limit = _container_limit()
    return available if limit is None else min(available, limit)


def _container_limit() -> int | None:
    """Bytes that the container leaves; None outside of one, or where it sets no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = int((folder / "memory.max").read_text())
        used = int((folder / "memory.current").read_text())
    # "max" is no number
    except (OSError, ValueError):
        return None
    return max(most - used, 0)


def stages_of(
    model: ir.Model,
    groups: Sequence[Group],
    most: int | None,
    sizes: Mapping[Group, int] = NOTHING_KEPT,
) -> list[Stage]:
    """Cut a model into stages with at most `most` bytes of weights each, so far as it can be cut.

    The model is one stage where `most` is None or holds all of it. Cuts are where fewest tensors
    cross. Weights are shared with the model, nodes are not. `groups`: tensors to look at; the
    stages end with the last of them. `sizes`: bytes of what is kept of each, which count as weights
    do.
    """
    names = set(itertools.chain.from_iterable(groups))
    whole = [Stage(with_taps(model, names), tuple(groups))]
    if most is None:
        return whole
    lives = _Lives(model, groups)
    cuts = _cuts(model, lives, most, sizes)
    if not cuts:
        return whole
    edges = [0, *cuts, len(lives.nodes)]
    stages = []
    for start, end in itertools.pairwise(edges):
        stage = _stage(model, lives, start, end)
        if stage is not None:
            stages.append(stage)
    return stages


class _Lives:
    """Nodes of a main graph in order, and from which to which of them each value lives.

    `inputs`: those that are fed. `born`: number of the node that makes a value, -1 of an input.
    `ends`: that of the last that reads it. `groups`: each with the number of the node from which on
    all of it is there.
    """

    def __init__(self, model: ir.Model, groups: Sequence[Group]) -> None:
        self.nodes = list(model.graph)
        self.born: dict[ir.Value, int] = {}
        self.ends: dict[ir.Value, int] = {}
        self.inputs = [v for v in model.graph.inputs if not v.is_initializer()]
        self.born.update(dict.fromkeys(self.inputs, -1))
        for number, node in enumerate(self.nodes):
            for value in node.outputs:
                self.born[value] = number
            for value in reads(node):
                if value in self.born:
                    self.ends[value] = number
        self._named = {value.name: value for value in self.born}
        self.groups = {group: self._meet(group) for group in groups}

    def _meet(self, group: Group) -> int:
        """Number of the node from which on all of a group is there; each lives at least so long."""
        # what is not in the main graph is looked at nowhere
        values = [self._named[name] for name in group if name in self._named]
        latest = max((self.born[value] for value in values), default=0)
        for value in values:
            end = self.ends.get(value, 0)
            self.ends[value] = max(end, latest)
        return max(latest, 0)

    def crossing(self, cut: int) -> list[ir.Value]:
        """Values made before the node of that number, and read by it or later."""
        return [
            value
            for value, born in self.born.items()
            if born < cut <= self.ends.get(value, -1)
        ]

    def crossings(self) -> list[int | None]:
        """Count the values that cross in front of each node; None where one is no plain tensor."""
        count = len(self.nodes) + 2
        begins = [0] * count
        bad = [0] * count
        for value, born in self.born.items():
            end = self.ends.get(value, -1)
            weight = 0 if _can_wait(value) else 1
            for changes, change in ((begins, 1), (bad, weight)):
                changes[born + 1] += change
                changes[max(end, born) + 1] -= change
        found: list[int | None] = []
        crossing = unfit = 0
        for cut in range(len(self.nodes)):
            crossing += begins[cut]
            unfit += bad[cut]
            found.append(None if unfit else crossing)
        return found


def reads(node: ir.Node) -> Iterator[ir.Value]:
    """Values that a node reads, those that its subgraphs take from outside included."""
    waiting = [node]
    while waiting:
        reader = waiting.pop()
        for value in reader.inputs:
            if value is not None:
                yield value
        for graph in subgraphs(reader):
            waiting.extend(graph)


def _can_wait(value: ir.Value) -> bool:
    """True for a tensor whose type is known: it can be an input of a later stage."""
    return isinstance(value.type, ir.TensorType) and value.dtype is not None


def _cuts(
    model: ir.Model, lives: _Lives, most: int, kept: Mapping[Group, int]
) -> list[int]:
    """Numbers of the nodes that stages after the first begin with."""
    sizes: list[dict[int | Group, int]] = [
        dict(_weights_of(model, node).items()) for node in lives.nodes
    ]
    for group, number in lives.groups.items():
        sizes[number][group] = kept.get(group, 0)
    crossings = lives.crossings()
    last = max(lives.groups.values(), default=0)
    cuts: list[int] = []
    held: set[int | Group] = set()
    totals: list[int] = []
    start = number = 0
    while number <= last:
        added = [size for key, size in sizes[number].items() if key not in held]
        held.update(sizes[number])
        totals.append(sum(added) + (totals[-1] if totals else 0))
        if totals[-1] <= most or number == start:
            number += 1
            continue
        # a stage of at least half of that; a larger one where nothing can be cut before
        candidates = [
            cut
            for cut in range(start + 1, number + 1)
            if crossings[cut] is not None and totals[cut - start - 1] >= most / 2
        ]
        if not candidates:
            number += 1
            continue
        best = min(candidates, key=lambda cut: (crossings[cut], -cut))
        cuts.append(best)
        start = number = best
        held = set()
        totals = []
    return cuts


def _weights_of(model: ir.Model, node: ir.Node) -> dict[int, int]:
    """Bytes of the weights that a node reads, by tensor: a tied one counts once a stage."""
    found = {}
    for value in reads(node):
        tensor = value.const_value
        if value.is_initializer() and tensor is not None:
            found[id(tensor)] = int(tensor.nbytes)
    return found


def _stage(model: ir.Model, lives: _Lives, start: int, end: int) -> Stage | None:
    """The nodes from `start` to before `end`; None where nothing of them is wanted."""
    numbers = range(start, end)
    groups = [group for group, number in lives.groups.items() if number in numbers]
    looked_at = set(itertools.chain.from_iterable(groups))
    carried = lives.crossing(end)
    outputs = []
    for value, born in lives.born.items():
        is_tap = value.name in looked_at and may_be_observed(value)
        if start <= born < end and (is_tap or value in carried):
            outputs.append(value)
    if not outputs:
        if not groups:
            return None
        # inputs of the model alone are looked at; a runtime takes no model without an output
        outputs = [lives.nodes[end - 1].outputs[0]]
    own_reads: set[ir.Value] = set()
    for node in lives.nodes[start:end]:
        own_reads.update(reads(node))
    # the first stage is fed as the model is
    inputs = list(lives.inputs)
    if start:
        crossing = lives.crossing(start)
        inputs = [v for v in crossing if v in own_reads or v.name in looked_at]
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    functions = [function.clone() for function in model.functions.values()]
    part = ir.Model(graph, ir_version=model.ir_version or 10, functions=functions)
    names = [value.name or "" for value in carried]
    return Stage(part, tuple(groups), tuple(names))


class StoredBatch(NamedTuple):
    """Tensors of one batch that later stages read, and its samples."""

    tensors: Mapping[str, NDArray[Any]]
    samples: int

    def after(
        self, made: Mapping[str, NDArray[Any]], carried: Sequence[str]
    ) -> StoredBatch:
        """The batch behind a stage that made some tensors: those that later stages read."""
        here = {**self.tensors, **made}
        kept = {name: here[name] for name in carried}
        return StoredBatch(kept, self.samples)


class BatchStore:
    """Batches in a folder, one file each, in the order in which they were added."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        folder.mkdir()

    def add(self, batch: StoredBatch) -> None:
        """Write one batch."""
        with self._path(self._count).open("wb") as file:
            ipc.send(file, batch)
        self._count += 1

    def __iter__(self) -> Iterator[StoredBatch]:
        """Read the batches; each is gone from the disk once the next is asked for."""
        for number in range(self._count):
            path = self._path(number)
            with path.open("rb") as file:
                batch: StoredBatch = ipc.receive(file)
            yield batch
            path.unlink()

    def _path(self, number: int) -> Path:
        return self._folder / f"{number}.batch"
