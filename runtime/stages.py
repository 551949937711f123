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
    if total < LARGE:
        return None
    return total // PARTS


def _weight_bytes(model: ir.Model) -> int:
    """Bytes of all weights, each counted once."""
    sizes: dict[int, int] = {}
    for value in initializers(model):
        tensor = value.const_value
        assert tensor is not None
        sizes[id(tensor)] = tensor.nbytes
    return sum(sizes.values())


def available_memory() -> int:
    """Bytes that a new process can take without swapping."""
    import psutil

    memory = psutil.virtual_memory()
    available = int(memory.available)
    limit = _container_limit()
    if limit is None:
        return available
    return min(available, limit)


def _container_limit() -> int | None:
    """Bytes that the container leaves; None outside of one, or where it sets no limit."""
    folder = Path("/sys/fs/cgroup")
    try:
        most = _number_in(folder / "memory.max")
        used = _number_in(folder / "memory.current")
    # "max" is no number
    except (OSError, ValueError):
        return None
    left = most - used
    return max(left, 0)


def _number_in(path: Path) -> int:
    """Number that a file holds. Errors: OSError, ValueError."""
    text = path.read_text()
    return int(text)


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
        for value in self.inputs:
            self.born[value] = -1
        for number, node in enumerate(self.nodes):
            for value in node.outputs:
                self.born[value] = number
            for value in reads(node):
                if value in self.born:
                    self.ends[value] = number
        self._named = {value.name: value for value in self.born}
        self.groups: dict[Group, int] = {}
        for group in groups:
            self.groups[group] = self._meet(group)

    def _meet(self, group: Group) -> int:
        """Number of the node from which on all of a group is there; each lives at least so long."""
        # what is not in the main graph is looked at nowhere
        values = [self._named[name] for name in group if name in self._named]
        births = [self.born[value] for value in values]
        latest = max(births, default=0)
        for value in values:
            end = self.ends.get(value, 0)
            self.ends[value] = max(end, latest)
        return max(latest, 0)

    def crossing(self, cut: int) -> list[ir.Value]:
        """Values made before the node of that number, and read by it or later."""
        found = []
        for value, born in self.born.items():
            end = self.ends.get(value, -1)
            if born < cut <= end:
                found.append(value)
        return found

    def crossings(self) -> list[int | None]:
        """Count the values that cross in front of each node; None where one is no plain tensor."""
        count = len(self.nodes) + 2
        begins = [0] * count
        bad = [0] * count
        for value, born in self.born.items():
            last = self.ends.get(value, -1)
            end = max(last, born)
            begins[born + 1] += 1
            begins[end + 1] -= 1
            if not _can_wait(value):
                bad[born + 1] += 1
                bad[end + 1] -= 1
        found: list[int | None] = []
        crossing = 0
        unfit = 0
        for cut in range(len(self.nodes)):
            crossing += begins[cut]
            unfit += bad[cut]
            if unfit:
                found.append(None)
            else:
                found.append(crossing)
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
    if not isinstance(value.type, ir.TensorType):
        return False
    return value.dtype is not None


def _cuts(
    model: ir.Model, lives: _Lives, most: int, kept: Mapping[Group, int]
) -> list[int]:
    """Numbers of the nodes that stages after the first begin with."""
    sizes = _sizes(model, lives, kept)
    crossings = lives.crossings()
    last = max(lives.groups.values(), default=0)
    cuts: list[int] = []
    held: set[int | Group] = set()
    totals: list[int] = []
    total = 0
    start = 0
    number = 0
    while number <= last:
        own = sizes[number]
        for key, size in own.items():
            if key not in held:
                total += size
        held.update(own)
        totals.append(total)
        best = None
        if total > most and number > start:
            best = _best_cut(crossings, totals, start, most)
        if best is None:
            number += 1
            continue
        cuts.append(best)
        start = best
        number = best
        held = set()
        totals = []
        total = 0
    return cuts


def _sizes(
    model: ir.Model, lives: _Lives, kept: Mapping[Group, int]
) -> list[dict[int | Group, int]]:
    """Bytes of what each node reads and what is kept there, by tensor and by group."""
    sizes: list[dict[int | Group, int]] = []
    for node in lives.nodes:
        weights = _weights_of(model, node)
        own: dict[int | Group, int] = dict(weights.items())
        sizes.append(own)
    for group, number in lives.groups.items():
        sizes[number][group] = kept.get(group, 0)
    return sizes


def _best_cut(
    crossings: Sequence[int | None], totals: Sequence[int], start: int, most: int
) -> int | None:
    """Number of the node to cut before: where fewest values cross, the last of such places.

    `totals`: bytes of a stage from `start` to each node after it. It is at least half of the most;
    None where nothing can be cut so far: the stage is to be larger.
    """
    least = most / 2
    candidates = []
    for cut, total in enumerate(totals[:-1], start + 1):
        crossing = crossings[cut]
        if crossing is not None and total >= least:
            candidates.append((crossing, -cut))
    if not candidates:
        return None
    _, negative = min(candidates)
    return -negative


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
    outputs = _outputs(lives, numbers, looked_at, carried)
    if not outputs:
        if not groups:
            return None
        # inputs of the model alone are looked at; a runtime takes no model without an output
        last = lives.nodes[end - 1]
        outputs = [last.outputs[0]]
    inputs = _inputs(lives, numbers, looked_at)
    graph = ir.convenience.extract(model.graph, inputs, outputs)
    functions = [function.clone() for function in model.functions.values()]
    part = ir.Model(
        graph,
        ir_version=model.ir_version or 10,
        functions=functions,
    )
    names = [value.name or "" for value in carried]
    return Stage(part, tuple(groups), tuple(names))


def _outputs(
    lives: _Lives, numbers: range, looked_at: set[str], carried: Sequence[ir.Value]
) -> list[ir.Value]:
    """Values that nodes of these numbers make and that are looked at, or read by later stages."""
    outputs = []
    for value, born in lives.born.items():
        if born not in numbers:
            continue
        is_tap = value.name in looked_at and may_be_observed(value)
        if is_tap or value in carried:
            outputs.append(value)
    return outputs


def _inputs(lives: _Lives, numbers: range, looked_at: set[str]) -> list[ir.Value]:
    """Values that a stage of the nodes of these numbers is fed."""
    start = numbers.start
    # the first stage is fed as the model is
    if start == 0:
        return list(lives.inputs)
    own_reads: set[ir.Value] = set()
    for number in numbers:
        node = lives.nodes[number]
        own_reads.update(reads(node))
    crossing = lives.crossing(start)
    return [v for v in crossing if v in own_reads or v.name in looked_at]


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
