"""Disjoint sets: what belongs together, joined pair by pair."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Sets(Generic[Member]):
    """Every member is alone at first; `root` names the set that a member is in."""

    def __init__(self) -> None:
        self._parent: dict[Member, Member] = {}

    def root(self, member: Member) -> Member:
        while (parent := self._parent.get(member, member)) != member:
            self._parent[member] = self._parent.get(parent, parent)
            member = parent
        return member

    def join(self, one: Member, other: Member) -> None:
        """Put both sets together; the root of `one` stays."""
        first, second = self.root(one), self.root(other)
        if first != second:
            self._parent[second] = first
