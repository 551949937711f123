"""What a pass reports: how much it changed, figures, and what it declined to touch, with reasons."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Effect = Literal["exact", "lossy", "analysis"]


Stat = int | float | str


@dataclass(frozen=True)
class Declined:
    """Something a pass could have touched and did not: the node or tensor, and why."""

    where: str
    reason: str


@dataclass
class PassOutcome:
    """What a pass did: `changed` counts altered nodes or tensors; `stats` have their units in the
    pass's docstring.
    """

    changed: int = 0
    stats: dict[str, Stat] = dataclasses.field(default_factory=dict)
    declined: list[Declined] = dataclasses.field(default_factory=list)
