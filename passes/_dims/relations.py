"""What the rules of the ops say about the axes of the tensors they read and make.

An axis is (value, index). Every axis is an index space; its elements are slots. Rules state
equalities: of whole axes (`same`), of single slots (`link`), of the factors of a reshape (`block`);
or that slots must stay (`freeze`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import accumulate, pairwise
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .trace import Trace

Axis = tuple[ir.Value, int]
Slots = NDArray[np.intp]
MixKind = Literal["contract", "normalise"]


@dataclass(frozen=True)
class Link:
    """Slots `mine` of class `axis` are slots `theirs` of `other`, one by one."""

    axis: int
    mine: Slots
    other: int
    theirs: Slots


@dataclass(frozen=True)
class Block:
    """Axes that hold the same elements cut differently: each axis is a run of common factors,
    outermost first.

    `options`: sets of factors along which channels may go, one set to be chosen. An axis has at
    most one of them. `heads`: factors that are known to count attention heads.
    """

    where: str
    sizes: tuple[int, ...]
    axes: tuple[tuple[int, tuple[int, ...]], ...]
    options: tuple[tuple[int, ...], ...]
    heads: tuple[int, ...] = ()

    def coordinate(self, factors: tuple[int, ...], wanted: int) -> Slots:
        """The coordinate along one factor of every slot of an axis made of `factors`."""
        shape = [self.sizes[f] for f in factors]
        grid = np.arange(self.sizes[wanted]).reshape(
            [-1 if f == wanted else 1 for f in factors]
        )
        return np.broadcast_to(grid, shape).reshape(-1)


@dataclass(frozen=True)
class Mix:
    """A node that sums (`contract`) or normalises over axes of its inputs: (input index, axis) of
    each.
    """

    node: ir.Node
    kind: MixKind
    axes: tuple[tuple[int, int], ...]


@dataclass
class Relations:
    """All that was said so far. Axes of width 1 take part in nothing: they cannot shrink."""

    trace: Trace
    sizes: list[int] = field(default_factory=list)
    frozen: list[tuple[int, str]] = field(default_factory=list)
    partly_frozen: list[tuple[int, Slots, str]] = field(default_factory=list)
    links: list[Link] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    heads: set[int] = field(default_factory=set)
    mixes: list[Mix] = field(default_factory=list)
    _ids: dict[Axis, int] = field(default_factory=dict)
    _parent: list[int] = field(default_factory=list)

    def shape(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """The shape of a value under the probe sizes."""
        return self.trace.shape(value)

    def known(self, *values: ir.Value | None) -> bool:
        """Whether the shapes of all given values are known (absent ones count as known)."""
        return all(value is None or value in self.trace.shapes for value in values)

    def find(self, value: ir.Value, axis: int) -> int:
        """The class of an axis: one number for all axes that are the same. Negative axes count from
        the end.
        """
        shape = self.trace.shapes[value]
        key = (value, axis % len(shape))
        if key not in self._ids:
            self._ids[key] = len(self._parent)
            self._parent.append(len(self._parent))
            self.sizes.append(shape[key[1]])
        return self.root(self._ids[key])

    def root(self, index: int) -> int:
        """The class that an axis number belongs to now."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def axes(self) -> list[tuple[Axis, int]]:
        """Every axis that was mentioned, with its class."""
        return [(axis, self.root(index)) for axis, index in self._ids.items()]

    def same(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        """Two axes are one index space; axes of width 1, and of widths that differ (broadcast), are
        not related.
        """
        a, b = self.find(value, axis), self.find(other, other_axis)
        if self.sizes[a] == self.sizes[b] and self.sizes[a] != 1 and a != b:
            self._parent[max(a, b)] = min(a, b)

    def summed(
        self, value: ir.Value, axis: int, other: ir.Value, other_axis: int
    ) -> None:
        """As `same`, of axes summed over together: where an open dim of an input has no right size,
        both stay.
        """
        self.same(value, axis, other, other_axis)
        if self.trace.shapes[value][axis] != self.trace.shapes[other][other_axis]:
            for each, index in ((value, axis), (other, other_axis)):
                self.freeze(each, index, "summed with an axis of open size")

    def link(
        self,
        value: ir.Value,
        axis: int,
        mine: Slots,
        other: ir.Value,
        other_axis: int,
        theirs: Slots,
    ) -> None:
        """Slot mine[i] of one axis goes with slot theirs[i] of the other; the only slot of an axis
        stays.
        """
        if self.trace.shapes[other][other_axis] == 1:
            self.freeze(value, axis, "one channel by itself", mine)
        elif self.trace.shapes[value][axis] == 1:
            self.freeze(other, other_axis, "one channel by itself", theirs)
        else:
            self.links.append(
                Link(self.find(value, axis), mine, self.find(other, other_axis), theirs)
            )

    def freeze(
        self, value: ir.Value | None, axis: int, reason: str, slots: Slots | None = None
    ) -> None:
        """The axis (or some of its slots) stays as it is. `reason` is a clause for the report."""
        if (
            value is None
            or value not in self.trace.shapes
            or not self.trace.shapes[value]
        ):
            return
        if slots is None:
            self.frozen.append((self.find(value, axis), reason))
        else:
            self.partly_frozen.append((self.find(value, axis), slots, reason))

    def freeze_all(self, value: ir.Value | None, reason: str) -> None:
        """Every axis of the value stays."""
        for axis in range(len(self.shape(value) or ())):
            self.freeze(value, axis, reason)

    def block(self, where: str, before: Sequence[Axis], after: Sequence[Axis]) -> None:
        """The axes of `before`, flattened together, are the axes of `after`: a reshape of equal
        products.
        """
        order = sorted(_cuts(self._sizes(before)) | _cuts(self._sizes(after)))
        if any(big % small for small, big in pairwise(order)):
            for value, axis in (*before, *after):
                self.freeze(value, axis, f"{where} cuts it across its channels")
            return
        sizes = tuple(big // small for small, big in pairwise(order))[::-1]
        axes = []
        for side in (before, after):
            position = 0
            for (value, axis), size in zip(side, self._sizes(side), strict=True):
                product, taken = 1, []
                while product < size:
                    product *= sizes[position]
                    taken.append(position)
                    position += 1
                axes.append((self.find(value, axis), tuple(taken)))
        options = tuple((factor,) for factor in range(len(sizes)))
        self.blocks.append(Block(where, sizes, tuple(a for a in axes if a[1]), options))

    def grouped(
        self,
        where: str,
        sizes: tuple[int, ...],
        axes: Sequence[tuple[Axis, tuple[int, ...]]],
        options: Sequence[tuple[int, ...]],
        heads: tuple[int, ...] = (),
    ) -> None:
        """A block given by its factors: their sizes, which make up each axis, and which may lose
        channels together.
        """
        named = tuple((self.find(*axis), factors) for axis, factors in axes)
        self.blocks.append(Block(where, sizes, named, tuple(options), heads))

    def _sizes(self, axes: Sequence[Axis]) -> list[int]:
        return [self.trace.shapes[value][index] for value, index in axes]

    def tag_heads(self, value: ir.Value, axis: int) -> None:
        """The axis counts attention heads: activations are multiplied separately for each of its
        slots.
        """
        self.heads.add(self.find(value, axis))

    def mix(self, node: ir.Node, kind: MixKind, *axes: tuple[int, int]) -> None:
        """The node sums or normalises over these (input index, axis)."""
        self.mixes.append(Mix(node, kind, axes))


def _cuts(sizes: Sequence[int]) -> set[int]:
    """Where the axes of a flattened run of axes begin, counted from the right: 1, last, last *
    second last ...
    """
    return {1, *accumulate(reversed(sizes), lambda a, b: a * b)}
