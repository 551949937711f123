"""Disjoint sets of members that belong together, joined pair by pair (union-find)."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Generic, TypeVar

Member = TypeVar("Member", bound=Hashable)


class Sets(Generic[Member]):
    """Every member is alone at first; `root` names the set that a member is in."""

    def __init__(self) -> None:
        self._parent: dict[Member, Member] = {}

    def root(self, member: Member) -> Member:
        """The member that names the set of `member`."""
        parent = self._parent.get(member, member)
        while parent != member:
            # path halving: every second member on the way points past its parent from now on
            grandparent = self._parent.get(parent, parent)
            self._parent[member] = grandparent
            member = parent
            parent = grandparent
        return member

    def join(self, one: Member, other: Member) -> None:
        """Put both sets together; the root of `one` stays."""
        first = self.root(one)
        second = self.root(other)
        if first != second:
            self._parent[second] = first
