"""Layers before and after a run: bytes, bits, zeros, shape, and a histogram of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.graph import all_nodes
from ...passes._core.layer_names import layer_name
from ...passes._core.lazy import BLOCK, blocks
from ...passes._core.ops import WEIGHTED_OPS
from ...passes._core.provenance import float_layer
from ...passes._core.stored import StoredConstant, stored_constants
from ...passes.unpack import without_packing
from .._decoded import DecodedWeight, decoded

BINS = 64
"""Bins of a histogram."""

MOST_BLOCKS = 64
"""Blocks of a weight that are read: 16 million elements. Of a larger one every so many is."""

LEAST = 64
"""Elements of the smallest matrix that has a row of its own where no layer multiplies by it."""

OTHERS = "all else"
"""Name of the row of constants that have none of their own."""


@dataclass(frozen=True)
class Histogram:
    """Counts of the weights that are not zero, in bins of one width from `low` to `high`."""

    low: float
    high: float
    counts: list[int]


@dataclass
class LayerState:
    """A layer at one end of a run; `tensor`: its largest weight.

    `bytes`: of all that is stored for it, with bias and scales. `bits`, `elements`, `shape`,
    `sparsity` and `histogram`: of that weight; None where they are not known.
    """

    tensor: str = ""
    bytes: int = 0
    bits: int | None = None
    elements: int | None = None
    shape: list[int] | None = None
    sparsity: float | None = None
    histogram: Histogram | None = None


@dataclass
class LayerRow:
    """A layer before and after; None where it is not there.

    `node`: its name in the file. `tensor`: its largest weight.
    """

    layer: str
    node: str
    op: str
    tensor: str = ""
    before: LayerState | None = None
    after: LayerState | None = None

    def as_dict(self) -> dict[str, Any]:
        """The JSON form."""
        found = dataclasses.asdict(self)
        for end in (found["before"], found["after"]):
            if end is not None:
                # told once, by the row
                del end["tensor"]
        return found


@dataclass
class LayerTable:
    """Rows in graph order: first those of the original, then layers that are new.

    `known`: rows of the original by all names that their layer goes by.
    """

    rows: list[LayerRow] = field(default_factory=list)
    known: dict[str, LayerRow] = field(default_factory=dict)

    def as_rows(self) -> list[dict[str, Any]]:
        """The JSON form."""
        return [row.as_dict() for row in self.rows]

    def add_before(self, model: ir.Model) -> None:
        """Add the layers of the original, after it was read."""
        for node, state in _states(model):
            row = self._added(node, state)
            row.before = state
            for name in _names(node, state.tensor):
                self.known.setdefault(name, row)

    def add_after(self, model: ir.Model) -> None:
        """Add those of the result: to the row of the layer that each was, else to a new one."""
        for node, state in _states(model):
            row = self._row_before(node, state)
            if row is None:
                row = self._added(node, state)
            row.after = state

    def _row_before(self, node: ir.Node | None, state: LayerState) -> LayerRow | None:
        """The original's row of a layer, unless another layer has it."""
        for name in _names(node, state.tensor):
            row = self.known.get(name)
            if row is not None and row.after is None:
                return row
        return None

    def _added(self, node: ir.Node | None, state: LayerState) -> LayerRow:
        row = LayerRow(OTHERS, OTHERS, "", state.tensor)
        if node is not None:
            own = node.name or ""
            row = LayerRow(layer_name(node), own, node.op_type, state.tensor)
        self.rows.append(row)
        return row


def _names(node: ir.Node | None, tensor: str) -> list[str]:
    """Names that a layer goes by, in this graph or in the one before, the surest first."""
    if node is None:
        return [OTHERS]
    names = [
        node.name or "",
        layer_name(node),
    ]
    origin = float_layer(node)
    if origin is not None:
        names.insert(0, origin.name)
    # passes name nodes that have no name
    outputs = [value.name or "" for value in node.outputs]
    names += [*outputs, tensor]
    return [name for name in names if name]


def _states(model: ir.Model) -> Iterator[tuple[ir.Node | None, LayerState]]:
    """Layers that read constants of size, then None with all other constants together."""
    plain = _values_by_name(model)
    states: dict[ir.Node, LayerState] = {}
    others = LayerState()
    for constant in stored_constants(model):
        reader = next((use.node for use in constant.value.uses()), None)
        if reader is None:
            continue
        state = states.get(reader)
        if state is None and _has_row(constant, reader):
            state = states[reader] = LayerState()
            _describe(state, constant, plain)
        elif state is not None and _is_larger(constant, state):
            _describe(state, constant, plain)
        counted = others if state is None else state
        counted.bytes += constant.nbytes
    yield from states.items()
    if others.bytes:
        yield None, others


def _values_by_name(model: ir.Model) -> dict[str, tuple[ir.Value, ir.Node]]:
    """Constants that nodes read, unpacked, and a reader of each."""
    found: dict[str, tuple[ir.Value, ir.Node]] = {}
    for node in all_nodes(without_packing(model)):
        for value in node.inputs:
            if value is not None and value.name:
                found.setdefault(value.name, (value, node))
    return found


def _has_row(constant: StoredConstant, reader: ir.Node) -> bool:
    if not constant.is_parameter:
        return False
    if reader.op_type in WEIGHTED_OPS or float_layer(reader) is not None:
        return True
    dims = constant.value.shape
    rank = 0 if dims is None else sum(dim != 1 for dim in dims)
    return constant.elements >= LEAST and rank > 1


def _is_larger(constant: StoredConstant, state: LayerState) -> bool:
    return constant.is_parameter and constant.elements > (state.elements or 0)


def _describe(
    state: LayerState,
    constant: StoredConstant,
    plain: dict[str, tuple[ir.Value, ir.Node]],
) -> None:
    """Fill in what is told of the largest weight."""
    state.tensor = constant.name
    state.bits = constant.bits or None
    state.elements = constant.elements
    state.shape = None
    state.sparsity = None
    state.histogram = None
    name = constant.value.name or ""
    if name not in plain:
        return
    value, reader = plain[name]
    weight = decoded(value, reader)
    if weight is None or prod(weight.shape) == 0:
        return
    state.shape = list(weight.shape)
    state.sparsity, state.histogram = _distribution(weight)


def _distribution(weight: DecodedWeight) -> tuple[float, Histogram | None]:
    """Share of zeros, and the histogram of the rest; None where nothing finite is left."""
    most = 0.0
    counted = 0
    nonzero = 0
    for block in _sample(weight):
        most = max(most, _largest(block))
        counted += block.size
        nonzero += int(np.count_nonzero(block))
    sparsity = 1 - nonzero / counted
    if most == 0.0:
        return sparsity, None
    # around zero on both sides: the two ends of a run can be compared
    counts = np.zeros(BINS, np.int64)
    for block in _sample(weight):
        counts += _counts(block, most)
    return sparsity, Histogram(-most, most, counts.tolist())


def _largest(block: NDArray[Any]) -> float:
    magnitudes = np.abs(block)
    largest = float(magnitudes.max(initial=0.0))
    if np.isfinite(largest):
        return largest
    finite = magnitudes[np.isfinite(magnitudes)]
    return float(finite.max(initial=0.0))


def _counts(block: NDArray[Any], most: float) -> NDArray[Any]:
    """Numbers of the elements in each bin from -most to most, but for zeros."""
    inside = np.abs(block) <= most
    if not inside.all():
        # no bin for NaN and infinity
        block = block[inside]
    places = block / np.float32(most)
    places += 1
    places *= BINS // 2
    bins = np.minimum(places.astype(np.int64), BINS - 1)
    counts = np.bincount(bins, minlength=BINS)
    counts[BINS // 2] -= block.size - int(np.count_nonzero(block))
    return counts


def _sample(weight: DecodedWeight) -> Iterator[NDArray[Any]]:
    size = int(weight.tensor.size)
    most = MOST_BLOCKS * BLOCK
    # rounded up
    every = max(-(-size // most), 1)
    for _, block in blocks(weight.tensor, every=every):
        yield block.astype(np.float32)
