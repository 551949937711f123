"""Relations between the axes of tensors, as the rules of the ops state them.

An axis is (value, index). Every axis is an index space; its elements are slots. Rules state
equalities: of whole axes (`same`), of single slots (`link`), of the factors of a reshape (`block`);
or that slots must stay (`freeze`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .shapes import Shape
from .trace import Trace

Axis = tuple[ir.Value, int]

Factors = tuple[int, ...]
"""Numbers of the factors whose product an axis is, outermost first."""

Slots = NDArray[np.intp]

SPATIAL = "it is spatial (a height, width or time), not a channel"
"""Reason of axes that every convolution has, and no channel lies on."""

MixKind = Literal["contract", "normalise"]


@dataclass(frozen=True)
class Link:
    """Slots `mine` of class `axis` are slots `theirs` of `other`, one by one."""

    axis: int
    mine: Slots
    other: int
    theirs: Slots


@dataclass(frozen=True)
class Factorization:
    """Axes that hold the same elements cut differently: each is a run of common factors.

    `options`: sets of factors along which channels may go, one set to be chosen. An axis has at
    most one of them. `heads`: factors that are known to count attention heads.
    """

    where: str
    sizes: tuple[int, ...]
    axes: tuple[tuple[int, Factors], ...]
    options: tuple[Factors, ...]
    heads: Factors = ()

    def coordinate(self, factors: Factors, wanted: int) -> Slots:
        """Coordinate along one factor of every slot of an axis made of `factors`."""
        shape = [self.sizes[factor] for factor in factors]
        aligned = [-1 if factor == wanted else 1 for factor in factors]
        coordinates = np.arange(self.sizes[wanted])
        grid = coordinates.reshape(aligned)
        whole = np.broadcast_to(grid, shape)
        return whole.reshape(-1)


@dataclass(frozen=True)
class Mix:
    """A node that sums (`contract`) or normalises over axes of its inputs.

    `axes`: (input index, axis) of each.
    """

    node: ir.Node
    kind: MixKind
    axes: tuple[tuple[int, int], ...]


@dataclass
class Relations:
    """All that was stated so far. Axes of width 1 take part in nothing: they cannot shrink.

    `sizes` is by class; `frozen`, `links`, `blocks` and `heads` name axes by numbers, which `root`
    turns into their class of now.
    """

    trace: Trace
    sizes: list[int] = field(default_factory=list)
    frozen: list[tuple[int, str]] = field(default_factory=list)
    partly_frozen: list[tuple[int, Slots, str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    blocks: list[Factorization] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    mixes: list[Mix] = field(default_factory=list)
    _ids: dict[Axis, int] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)

    # --- shapes -----------------------------------------------------------------

    def shape(self, value: ir.Value | None) -> Shape | None:
        """Shape of a value under the probe sizes; None if unknown or absent."""
        return self.trace.shape(value)

    def dims(self, value: ir.Value | None) -> Shape:
        """Shape of a value under the probe sizes; () if unknown or absent."""
        return self.trace.shape(value) or ()

    def rank(self, value: ir.Value | None) -> int:
        """Number of axes of a value; 0 if unknown or absent."""
        return len(self.dims(value))

    def size(self, value: ir.Value | None, axis: int) -> int:
        """Slots of an axis of a value whose shape is known."""
        return self.dims(value)[axis]

    def slots(self, value: ir.Value, axis: int) -> Slots:
        """Numbers of all slots of an axis, in order."""
        return np.arange(self.size(value, axis))

    # --- classes of axes --------------------------------------------------------

    def find(self, value: ir.Value, axis: int) -> int:
        """Class of an axis: one number for all axes that are the same.

        Negative axes count from the end.
        """
        shape = self.trace.shapes[value]
        position = axis % len(shape)
        key = (value, position)
        if key not in self._ids:
            number = len(self._parent)
            self._ids[key] = number
            self._parent.append(number)
            self.sizes.append(shape[position])
        return self.root(self._ids[key])

    def root(self, index: int) -> int:
        """Class that an axis number belongs to now."""
        parent = self._parent
        while parent[index] != index:
            # halving the path keeps later walks short
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def axes(self) -> list[tuple[Axis, int]]:
        """Every axis that was mentioned, with its class."""
        return [(axis, self.root(index)) for axis, index in self._ids.items()]

    # --- statements of rules ----------------------------------------------------

    def same(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        """State that two axes are one index space.

        Axes of width 1, and of widths that differ (broadcast), are not related.
        """
        a = self.find(value, axis)
        b = self.find(other, other_axis)
        size = self.sizes[a]
        if size == 1 or size != self.sizes[b]:
            return
        # a class is called by its oldest axis
        older = min(a, b)
        younger = max(a, b)
        self._parent[younger] = older

    def aligned(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        """State `same` of axes of two tensors that are computed with element by element.

        One of width 1 is broadcast. Other widths that differ are equal when the model runs: one
        of them is open, and its probe size was not the right one. Both stay then.
        """
        self.same(value, axis, other, other_axis)
        size = self.trace.shapes[value][axis]
        other_size = self.trace.shapes[other][other_axis]
        if 1 not in (size, other_size):
            self._freeze_unequal(value, axis, other, other_axis)

    def summed(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        """State `same` of axes that are summed over together.

        Where the probe size of an open dim is not the right one, both stay.
        """
        self.same(value, axis, other, other_axis)
        self._freeze_unequal(value, axis, other, other_axis)

    def _freeze_unequal(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        size = self.trace.shapes[value][axis]
        if size != self.trace.shapes[other][other_axis]:
            reason = "it goes with an axis whose size follows the input"
            self.freeze(value, axis, reason)
            self.freeze(other, other_axis, reason)

    def link(
        self,
        value: ir.Value,
        axis: int,
        mine: Slots,
        other: ir.Value,
        other_axis: int,
        theirs: Slots,
    ) -> None:
        """State that slot mine[i] of one axis goes with slot theirs[i] of the other.

        The only slot of an axis stays.
        """
        reason = "it goes with an axis that has only one channel"
        if self.trace.shapes[other][other_axis] == 1:
            self.freeze(value, axis, reason, mine)
        elif self.trace.shapes[value][axis] == 1:
            self.freeze(other, other_axis, reason, theirs)
        else:
            first = self.find(value, axis)
            second = self.find(other, other_axis)
            link = Link(
                axis=first,
                mine=mine,
                other=second,
                theirs=theirs,
            )
            self.links.append(link)

    def freeze(
        self,
        value: ir.Value | None,
        axis: int,
        reason: str,
        slots: Slots | None = None,
    ) -> None:
        """State that an axis, or some of its slots, stays. `reason` is a clause for the report."""
        if value is None or not self.dims(value):
            return
        number = self.find(value, axis)
        if slots is None:
            self.frozen.append((number, reason))
        else:
            self.partly_frozen.append((number, slots, reason))

    def freeze_all(self, value: ir.Value | None, reason: str) -> None:
        """State that every axis of a value stays."""
        for axis in range(self.rank(value)):
            self.freeze(value, axis, reason)

    def freeze_node(self, node: ir.Node, reason: str) -> None:
        """State that every axis of all that a node reads and makes stays."""
        for value in (*node.inputs, *node.outputs):
            self.freeze_all(value, reason)

    def freeze_further_inputs(self, node: ir.Node) -> None:
        """State that every axis of all inputs but the first stays: what they hold steers the op."""
        for value in node.inputs[1:]:
            self.freeze_all(value, f"{node.op_type} reads it as a setting, not as data")

    def block(self, where: str, before: Sequence[Axis], after: Sequence[Axis]) -> None:
        """State that the axes of `before`, flattened together, are those of `after`: a reshape."""
        sides = (before, after)
        # every border of either side is one of a factor, and no other is
        borders = set[int]()
        for side in sides:
            own_sizes = self._sizes(side)
            borders |= _borders(own_sizes)
        order = sorted(borders)
        factors = []
        for small, big in pairwise(order):
            # as (2, 3) to (3, 2): no factor is common to both sides
            if big % small:
                reason = f"{where} divides it across its channels"
                for value, axis in (*before, *after):
                    self.freeze(value, axis, reason)
                return
            factors.append(big // small)
        sizes = tuple(reversed(factors))
        axes: list[tuple[int, Factors]] = []
        for side in sides:
            axes.extend(self._factored(side, sizes))
        options = tuple((factor,) for factor in range(len(sizes)))
        block = Factorization(
            where=where,
            sizes=sizes,
            axes=tuple(axes),
            options=options,
        )
        self.blocks.append(block)

    def _factored(
        self, side: Sequence[Axis], sizes: tuple[int, ...]
    ) -> list[tuple[int, Factors]]:
        """Class and factors of each axis of a flattened run; axes of width 1 have no factors."""
        found = []
        position = 0
        for value, axis in side:
            start = position
            product = 1
            # factors are taken until their product is the axis
            while product < self.trace.shapes[value][axis]:
                product *= sizes[position]
                position += 1
            number = self.find(value, axis)
            if position > start:
                own = tuple(range(start, position))
                found.append((number, own))
        return found

    def grouped(
        self,
        where: str,
        sizes: tuple[int, ...],
        axes: Sequence[tuple[Axis, Factors]],
        options: Sequence[Factors],
        heads: Factors = (),
    ) -> None:
        """State a block by the sizes of its factors, those of each axis, and the options."""
        numbered = []
        for (value, axis), factors in axes:
            number = self.find(value, axis)
            numbered.append((number, factors))
        block = Factorization(
            where=where,
            sizes=sizes,
            axes=tuple(numbered),
            options=tuple(options),
            heads=heads,
        )
        self.blocks.append(block)

    def _sizes(self, axes: Sequence[Axis]) -> list[int]:
        return [self.trace.shapes[value][index] for value, index in axes]

    def tag_heads(self, value: ir.Value, axis: int) -> None:
        """State that an axis counts attention heads: each slot is multiplied by itself."""
        self.heads.add(self.find(value, axis))

    def mix(self, node: ir.Node, kind: MixKind, *axes: tuple[int, int]) -> None:
        """State that the node sums or normalises over these (input index, axis)."""
        self.mixes.append(Mix(node, kind, axes))


def _borders(sizes: Sequence[int]) -> set[int]:
    """Elements behind each border between the axes of a flattened run: 1, last, last * second last
    and so on.
    """
    product = 1
    found = {product}
    for size in reversed(sizes):
        product *= size
        found.add(product)
    return found


def required_input(node: ir.Node, index: int) -> ir.Value:
    """Input of a node that its schema requires."""
    value = node.inputs[index]
    assert value is not None
    return value


def optional_input(node: ir.Node, index: int) -> ir.Value | None:
    """Input of a node; None where it is left out."""
    if index >= len(node.inputs):
        return None
    return node.inputs[index]


def axis_attribute(node: ir.Node, default: int, rank: int) -> int:
    """Attribute `axis` as a non-negative number of an axis of a tensor of that rank."""
    axis = node.attributes.get_int("axis", default)
    # a scalar has no axes: the remainder by 0 would fail
    return axis % max(rank, 1)


def name_of(node: ir.Node) -> str:
    """Name of a node in reasons: its op and its name."""
    return f"{node.op_type} {node.name}"
