"""From relations to channel groups: a union of slots, and one choice of a factor for each reshape.

An axis that a reshape cuts into several factors (heads x head size, groups x channels) can lose
slots along one of them only. The choice is forced where the other factors are frozen; else heads or
head sizes as asked, else the factor with more free channels. Linear in slots but for the few rounds
in which choices settle.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .relations import Axis, Factorization, Factors, Relations, Slots

Attention = Literal["heads", "dims"]

FROZEN = -1
"""In the place of a channel: the slot stays."""

COUPLED = "it is tied to channels that stay"
"""Reason for a class that nothing froze by itself."""


@dataclass(frozen=True)
class Solution:
    """Slots that go together. `classes`: the class of every axis; `channels`: the channel of every
    slot, by class.

    A channel is a number below `count`; slots of one channel go together, in every class where it
    appears. `FROZEN` marks slots that stay; `reasons` says why, by class.
    """

    relations: Relations
    classes: dict[Axis, int]
    channels: dict[int, NDArray[np.intp]]
    reasons: dict[int, str]
    count: int

    def slots(self, value: ir.Value, axis: int) -> NDArray[np.intp]:
        """Channel of every slot of an axis, `FROZEN` where it stays."""
        return self.channels[self.classes[value, axis]]


def solve(relations: Relations, attention: Attention = "heads") -> Solution:
    """The finest partition of all slots that the relations allow under the choices made."""
    unions = _Unions(relations)
    unions.settle(attention)
    return unions.solution()


class _Unions:
    """Labels of slots, merged eagerly; classes that are frozen whole have none.

    `start`: by class, the place of its first slot in `labels`. `frozen` is by label, `slot_reason`
    by class.
    """

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
        self.frozen = np.zeros(total, bool)
        self.slot_reason: dict[int, str] = {}
        self._apply_links()

    # --- frozen classes ---------------------------------------------------------

    def _spread_whole_classes(self) -> None:
        """Freeze classes made of frozen factors only, until no more become so."""
        changed = True
        while changed:
            changed = False
            for block in self.relations.blocks:
                dead = self._dead(block)
                for index, factors in block.axes:
                    root = self.relations.root(index)
                    if root in self.reasons or not dead.issuperset(factors):
                        continue
                    # the reason of one frozen axis stands for all
                    why = self._why(block, factors)
                    self.reasons[root] = (
                        f"{block.where} forms it from an axis that stays: {why}"
                    )
                    changed = True

    def _why(self, block: Factorization, factors: Iterable[int]) -> str:
        wanted = set(factors)
        for index, own in block.axes:
            root = self.relations.root(index)
            if wanted & set(own) and root in self.reasons:
                return self.reasons[root]
        return "they are tied to each other"

    def _dead(self, block: Factorization) -> set[int]:
        """Factors of which some axis is frozen whole, and those of size 1."""
        dead = {factor for factor, size in enumerate(block.sizes) if size == 1}
        for index, factors in block.axes:
            root = self.relations.root(index)
            if root in self.reasons:
                dead.update(factors)
        return dead

    def _involved(self) -> list[int]:
        """Classes that links, blocks or partial freezes speak of, unless frozen whole.

        Each once, in that order.
        """
        relations = self.relations
        numbers: list[int] = []
        for link in relations.links:
            numbers += (link.axis, link.other)
        for block in relations.blocks:
            numbers += (index for index, _ in block.axes)
        for index, _, _ in relations.partly_frozen:
            numbers.append(index)
        # a dict drops repeats and keeps the order
        roots = dict.fromkeys(relations.root(number) for number in numbers)
        return [root for root in roots if root not in self.reasons]

    # --- unions of slots --------------------------------------------------------

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
            left = self.start[a] + mine
            right = self.start[b] + theirs
            self._union(left, right)
        elif a in self.start:
            self.freeze(a, self.reasons[b], mine)
        elif b in self.start:
            self.freeze(b, self.reasons[a], theirs)

    def _union(self, left: Slots, right: Slots) -> None:
        """Make slot left[i] one with slot right[i]; frozen ones freeze what they join."""
        a = self.labels[left]
        b = self.labels[right]
        differ = a != b
        if not differ.any():
            return
        pairs = np.stack([a[differ], b[differ]])
        # only labels that meet are numbered: the work is that of the link, not of the model
        names, edges = np.unique(pairs, return_inverse=True)
        first, second = edges.reshape(2, -1)
        target = _components(len(names), first, second)
        merged = names[target]
        final = np.arange(len(self.labels))
        final[names] = merged
        self.labels = final[self.labels]
        frozen = self.frozen[names]
        # unlike `|=` through an index, this takes every entry of a label that occurs twice
        np.logical_or.at(self.frozen, merged, frozen)

    def freeze(self, root: int, reason: str, slots: Slots | None = None) -> None:
        """Freeze a class, or some of its slots and with them all that they are joined to."""
        if root not in self.start:
            self.reasons.setdefault(root, reason)
            return
        # labels are frozen, not slots: what is joined to them later is frozen too
        if slots is None:
            slots = np.arange(self.relations.sizes[root])
        places = self.start[root] + slots
        labels = self.labels[places]
        self.frozen[labels] = True
        self.slot_reason.setdefault(root, reason)

    def _labels_of(self, root: int) -> Slots:
        """Labels of the slots of a class."""
        start = self.start[root]
        stop = start + self.relations.sizes[root]
        return self.labels[start:stop]

    # --- choices of factors -----------------------------------------------------

    def settle(self, attention: Attention) -> None:
        """Choose a factor for every block: forced choices first, then heads, then the rest."""
        waiting = self.relations.blocks
        while waiting:
            left = [block for block in waiting if not self._forced(block)]
            if len(left) == len(waiting):
                # nothing is forced any more: a choice may force others, so heads come first
                with_heads = [block for block in left if self._head_options(block)]
                chosen = with_heads or left
                for block in chosen:
                    option = self._preferred(block, attention)
                    self._choose(block, option)
                done = {id(block) for block in chosen}
                left = [block for block in left if id(block) not in done]
            waiting = left

    def _forced(self, block: Factorization) -> bool:
        """Choose for a block that leaves no choice; return whether it was such a one."""
        candidates = self._candidates(block)
        if len(candidates) > 1:
            return False
        self._choose(block, next(iter(candidates), None))
        return True

    def _candidates(self, block: Factorization) -> dict[int, int]:
        """Options of factors along which channels can go, with the free channels of each."""
        candidates = {}
        dead = self._dead(block)
        for option, factors in enumerate(block.options):
            live = [factor for factor in factors if factor not in dead]
            count = sum(self._free_channels(block, factor) for factor in live)
            if count:
                candidates[option] = count
        return candidates

    def _free_channels(self, block: Factorization, factor: int) -> int:
        """Channels that stay apart and free when the block is cut along `factor`.

        0 if none could go.
        """
        size = block.sizes[factor]
        labels = []
        coordinates = []
        for index, factors in block.axes:
            if factor not in factors:
                continue
            root = self.relations.root(index)
            labels.append(self._labels_of(root))
            coordinates.append(block.coordinate(factors, factor))
        every_label = np.concatenate(labels)
        names, position = np.unique(every_label, return_inverse=True)
        where = np.concatenate(coordinates)
        # coordinates and labels as the two sides of one graph: an edge for every slot
        count = size + len(names)
        merged = _components(count, where, size + position)
        of_coordinates = merged[:size]
        of_labels = merged[size:]
        stays = np.zeros(count, bool)
        frozen = of_labels[self.frozen[names]]
        stays[frozen] = True
        parts = np.unique(of_coordinates)
        # all are one channel: it would take the whole axis along
        if len(parts) == 1:
            return 0
        free = ~stays[parts]
        return int(free.sum())

    def _head_options(self, block: Factorization) -> set[int]:
        """Options that count attention heads, as an axis by themselves or as a known factor."""
        head_classes = {self.relations.root(index) for index in self.relations.heads}
        head_factors = set(block.heads)
        for index, factors in block.axes:
            root = self.relations.root(index)
            if len(factors) == 1 and root in head_classes:
                head_factors.add(factors[0])
        found = set()
        for option, own in enumerate(block.options):
            if head_factors.issuperset(own):
                found.add(option)
        return found

    def _preferred(self, block: Factorization, attention: Attention) -> int | None:
        candidates = self._candidates(block)
        heads = self._head_options(block)
        if heads and len(candidates) > 1:
            asks_for_heads = attention == "heads"
            wanted = {}
            for option, count in candidates.items():
                is_heads = option in heads
                if is_heads == asks_for_heads:
                    wanted[option] = count
            # where none is as asked, another choice is better than none
            candidates = wanted or candidates

        def free_channels(option: int) -> tuple[int, int]:
            return candidates[option], option

        return max(candidates, key=free_channels, default=None)

    def _choose(self, block: Factorization, option: int | None) -> None:
        """Let channels go along the factors of one option; axes that have none of them stay."""
        live: Factors = ()
        reason = f"{block.where} ties all of it together"
        if option is not None:
            dead = self._dead(block)
            chosen = block.options[option]
            live = tuple(factor for factor in chosen if factor not in dead)
            reason = f"{block.where} divides it in another way"
        representatives: dict[int, Slots] = {}
        for index, factors in block.axes:
            root = self.relations.root(index)
            factor = next((f for f in live if f in factors), None)
            if factor is None or root not in self.start:
                own_reason = self.reasons.get(root, reason)
                self.freeze(root, own_reason)
                continue
            size = self.relations.sizes[root]
            numbers = np.arange(size)
            slots = self.start[root] + numbers
            where = block.coordinate(factors, factor)
            if factor not in representatives:
                # written backwards, the first slot of each coordinate stays
                count = block.sizes[factor]
                first = np.empty(count, np.intp)
                coordinates = where[::-1]
                first[coordinates] = slots[::-1]
                representatives[factor] = first
            representative = representatives[factor]
            joined_to = representative[where]
            self._union(slots, joined_to)

    # --- result -----------------------------------------------------------------

    def solution(self) -> Solution:
        """Number the channels that are left free."""
        relations = self.relations
        stays = self.frozen[self.labels]
        free = np.unique(self.labels[~stays])
        # labels have gaps since they merged: channels are numbered without
        count = len(free)
        number = np.full(len(self.labels), FROZEN)
        number[free] = np.arange(count)
        classes = dict(relations.axes())
        channels = {}
        for root in dict.fromkeys(classes.values()):
            size = relations.sizes[root]
            if root in self.start:
                slots = number[self._labels_of(root)]
                if (slots == FROZEN).all():
                    why = self.slot_reason.get(root, COUPLED)
                    self.reasons.setdefault(root, why)
            elif root in self.reasons or size == 1:
                self.reasons.setdefault(root, "it has only one channel")
                slots = np.full(size, FROZEN)
            else:
                # nothing relates its slots to others: each is a channel by itself
                slots = np.arange(count, count + size)
                count += size
            channels[root] = slots
        return Solution(
            relations,
            classes,
            channels,
            self.reasons,
            count,
        )


def _components(count: int, a: Slots, b: Slots) -> Slots:
    """Smallest member of the connected part of each of `count` nodes, under the edges a[i] - b[i].

    Labels fall along edges and labels of labels are followed, so that long chains take few rounds.
    """
    label = np.arange(count)
    while True:
        low = np.minimum(label[a], label[b])
        before = label.copy()
        np.minimum.at(label, label[a], low)
        np.minimum.at(label, label[b], low)
        np.minimum.at(label, a, low)
        np.minimum.at(label, b, low)
        # a label that fell lets those that point to it fall in the same round
        label = label[label]
        if np.array_equal(label, before):
            return label
