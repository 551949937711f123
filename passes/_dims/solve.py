"""From relations to channel groups: a union of slots, and one choice per reshape of which factor
carries the channels.

An axis that a reshape cuts into several factors (heads x head size, groups x channels) can lose
slots along one of them only. The choice is forced where the other factors are frozen; else heads or
head sizes as asked, else the factor with more free channels. Linear in slots but for the few rounds
in which choices settle.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .relations import Axis, Block, Relations, Slots

Attention = Literal["heads", "dims"]
FROZEN = -1


@dataclass(frozen=True)
class Solution:
    """Which slots go together. `classes`: the class of every axis; `channels`: per class, the
    channel of every slot.

    A channel is a number below `count`; slots of one channel go together, in every class where it
    appears. `FROZEN` marks slots that stay; `reasons` says why, per class.
    """

    relations: Relations
    classes: dict[Axis, int]
    channels: dict[int, NDArray[np.intp]]
    reasons: dict[int, str]
    count: int

    def slots(self, value: ir.Value, axis: int) -> NDArray[np.intp]:
        """The channel of every slot of an axis, `FROZEN` where it stays."""
        return self.channels[self.classes[value, axis]]


def solve(relations: Relations, attention: Attention = "heads") -> Solution:
    """The finest partition of all slots that the relations allow under the choices made."""
    unions = _Unions(relations)
    unions.settle(attention)
    return unions.solution()


class _Unions:
    """Labels of slots, merged eagerly; classes that are frozen whole have none."""

    def __init__(self, relations: Relations) -> None:
        self.relations = relations
        self.reasons: dict[int, str] = {}
        for index, reason in relations.frozen:
            self.reasons.setdefault(relations.root(index), reason)
        self._spread_whole_classes()
        self.start: dict[int, int] = {}
        total = 0
        for root in self._involved():
            self.start[root] = total
            total += relations.sizes[root]
        self.labels = np.arange(total)
        self.frozen = np.zeros(total, bool)  # by label
        self.slot_reason: dict[int, str] = {}  # by class
        self._apply_links()

    def _spread_whole_classes(self) -> None:
        """Freeze classes made of frozen factors only, and those linked to frozen classes slot by
        slot.
        """
        changed = True
        while changed:
            changed = False
            for block in self.relations.blocks:
                dead = self._dead(block)
                for index, factors in block.axes:
                    root = self.relations.root(index)
                    if root not in self.reasons and dead.issuperset(factors):
                        self.reasons[root] = (
                            f"{block.where} makes it of axes that stay: {self._why(block, factors)}"
                        )
                        changed = True

    def _why(self, block: Block, factors: Iterable[int]) -> str:
        wanted = set(factors)
        for index, own in block.axes:
            root = self.relations.root(index)
            if wanted & set(own) and root in self.reasons:
                return self.reasons[root]
        return "coupled axes"

    def _dead(self, block: Block) -> set[int]:
        """Factors of which some axis is frozen whole."""
        dead = {f for f, size in enumerate(block.sizes) if size == 1}
        for index, factors in block.axes:
            if self.relations.root(index) in self.reasons:
                dead.update(factors)
        return dead

    def _involved(self) -> Iterator[int]:
        """Classes that links, blocks or partial freezes speak of, unless frozen whole; each once,
        in order.
        """
        relations = self.relations
        roots = dict.fromkeys(
            relations.root(i)
            for i in (
                *(x for link in relations.links for x in (link.axis, link.other)),
                *(x for block in relations.blocks for x, _ in block.axes),
                *(x for x, _, _ in relations.partly_frozen),
            )
        )
        return (root for root in roots if root not in self.reasons)

    def _apply_links(self) -> None:
        relations = self.relations
        for link in relations.links:
            self._join(
                relations.root(link.axis),
                link.mine,
                relations.root(link.other),
                link.theirs,
            )
        for index, slots, reason in relations.partly_frozen:
            self.freeze(relations.root(index), reason, slots)

    def _join(self, a: int, mine: Slots, b: int, theirs: Slots) -> None:
        if a in self.start and b in self.start:
            self._union(self.start[a] + mine, self.start[b] + theirs)
        elif a in self.start:
            self.freeze(a, self.reasons[b], mine)
        elif b in self.start:
            self.freeze(b, self.reasons[a], theirs)

    def _union(self, left: Slots, right: Slots) -> None:
        a, b = self.labels[left], self.labels[right]
        differ = a != b
        if not differ.any():
            return
        names, edges = np.unique(np.stack([a[differ], b[differ]]), return_inverse=True)
        target = _components(len(names), *edges.reshape(2, -1))
        final = np.arange(len(self.labels))
        final[names] = names[target]
        self.labels = final[self.labels]
        np.logical_or.at(self.frozen, final[names], self.frozen[names])

    def freeze(self, root: int, reason: str, slots: Slots | None = None) -> None:
        """Freeze a class, or some of its slots and with them all that they are joined to."""
        if root not in self.start:
            self.reasons.setdefault(root, reason)
            return
        index = self.start[root] + (
            np.arange(self.relations.sizes[root]) if slots is None else slots
        )
        self.frozen[self.labels[index]] = True
        self.slot_reason.setdefault(root, reason)

    def _range(self, root: int) -> slice:
        return slice(self.start[root], self.start[root] + self.relations.sizes[root])

    # choices
    # ----------------------------------------------------------------------------------------------------

    def settle(self, attention: Attention) -> None:
        """Choose a factor for every block: forced choices first, then those of heads, then the
        rest.
        """
        waiting = self.relations.blocks
        while waiting:
            left = [block for block in waiting if not self._forced(block)]
            if len(left) == len(waiting):
                tagged = [block for block in left if self._heads(block)]
                for block in tagged or left:
                    self._choose(block, self._preferred(block, attention))
                chosen = {id(block) for block in tagged or left}
                left = [block for block in left if id(block) not in chosen]
            waiting = left

    def _forced(self, block: Block) -> bool:
        candidates = self._candidates(block)
        if len(candidates) > 1:
            return False
        self._choose(block, next(iter(candidates), None))
        return True

    def _candidates(self, block: Block) -> dict[int, int]:
        """Options of factors along which channels can go, with how many free channels each has."""
        free = {}
        dead = self._dead(block)
        for option, factors in enumerate(block.options):
            count = sum(
                self._free(block, f, block.sizes[f]) for f in factors if f not in dead
            )
            if count:
                free[option] = count
        return free

    def _free(self, block: Block, factor: int, size: int) -> int:
        """Channels that stay apart and free when the block is cut along `factor`; 0 if none could
        go.
        """
        labels, coordinates = [], []
        for index, factors in block.axes:
            if factor in factors:
                labels.append(self.labels[self._range(self.relations.root(index))])
                coordinates.append(block.coordinate(factors, factor))
        names, position = np.unique(np.concatenate(labels), return_inverse=True)
        where = np.concatenate(coordinates)
        merged = _components(size + len(names), where, size + position)
        stays = np.zeros(size + len(names), bool)
        stays[merged[size:][self.frozen[names]]] = True
        parts = np.unique(merged[:size])
        return int((~stays[parts]).sum()) if len(parts) > 1 else 0

    def _heads(self, block: Block) -> set[int]:
        """Options that count attention heads, as an axis by themselves or as a factor known for
        it.
        """
        heads = {self.relations.root(index) for index in self.relations.heads}
        alone = {
            f[0]
            for index, f in block.axes
            if len(f) == 1 and self.relations.root(index) in heads
        }
        alone.update(block.heads)
        return {
            option
            for option, factors in enumerate(block.options)
            if alone.issuperset(factors)
        }

    def _preferred(self, block: Block, attention: Attention) -> int | None:
        candidates, heads = self._candidates(block), self._heads(block)
        if heads and len(candidates) > 1:
            wanted = {
                f: n
                for f, n in candidates.items()
                if (f in heads) == (attention == "heads")
            }
            candidates = wanted or candidates
        return max(candidates, key=lambda f: (candidates[f], f), default=None)

    def _choose(self, block: Block, option: int | None) -> None:
        """Let channels go along the factors of one option of a block; axes that have none of them
        stay.
        """
        dead = self._dead(block)
        live = (
            ()
            if option is None
            else tuple(f for f in block.options[option] if f not in dead)
        )
        first: dict[int, Slots] = {}
        for index, factors in block.axes:
            root = self.relations.root(index)
            factor = next((f for f in live if f in factors), None)
            if factor is None or root not in self.start:
                reason = (
                    f"{block.where} couples all of it"
                    if option is None
                    else f"{block.where} cuts it another way"
                )
                self.freeze(root, self.reasons.get(root, reason))
                continue
            slots, where = (
                np.arange(self.relations.sizes[root]) + self.start[root],
                block.coordinate(factors, factor),
            )
            if factor not in first:
                first[factor] = np.empty(block.sizes[factor], np.intp)
                first[factor][where[::-1]] = slots[::-1]
            self._union(slots, first[factor][where])

    # result
    # -----------------------------------------------------------------------------------------------------

    def solution(self) -> Solution:
        """Number the channels that are left free."""
        relations = self.relations
        free = (
            np.unique(self.labels[~self.frozen[self.labels]])
            if len(self.labels)
            else np.empty(0, np.intp)
        )
        number = np.full(len(self.labels), FROZEN)
        number[free] = np.arange(len(free))
        classes = dict(relations.axes())
        channels, count = {}, len(free)
        for root in dict.fromkeys(classes.values()):
            size = relations.sizes[root]
            if root in self.start:
                slots = number[self.labels[self._range(root)]]
                if (slots == FROZEN).all():
                    self.reasons.setdefault(
                        root, self.slot_reason.get(root, "coupled with slots that stay")
                    )
            elif root in self.reasons or size == 1:
                self.reasons.setdefault(root, "one channel wide")
                slots = np.full(size, FROZEN)
            else:
                slots = np.arange(count, count + size)
                count += size
            channels[root] = slots
        return Solution(relations, classes, channels, self.reasons, count)


def _components(count: int, a: Slots, b: Slots) -> Slots:
    """The smallest member of the connected part of each of `count` nodes, under the edges a[i] -
    b[i].
    """
    label = np.arange(count)
    while True:
        low = np.minimum(label[a], label[b])
        before = label.copy()
        np.minimum.at(label, label[a], low)
        np.minimum.at(label, label[b], low)
        np.minimum.at(label, a, low)
        np.minimum.at(label, b, low)
        label = label[label]
        if (label == before).all():
            return label
