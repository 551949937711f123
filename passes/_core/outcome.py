"""The report of a pass: changes, figures, and reasons for everything it declined to touch."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

Effect = Literal["exact", "lossy", "analysis"]
"""`exact`: outputs stay up to float noise; `lossy`: they drift; `analysis`: nothing changes."""

Stat = int | float | str


@dataclass(frozen=True)
class Declined:
    """Something a pass could have touched and did not: the node or tensor, and why."""

    where: str
    reason: str


@dataclass(frozen=True)
class Chosen:
    """Something that a pass decided itself: the layer or group, what it takes, and why."""

    where: str
    choice: str
    reason: str


@dataclass
class PassOutcome:
    """Account of one run of a pass.

    `changed` counts altered nodes or tensors; the pass's docstring gives the units of `stats`.
    `unit`: of what `changed` counts, where that is not the `unit` of the pass.
    """

    changed: int = 0
    stats: dict[str, Stat] = dataclasses.field(default_factory=dict)
    declined: list[Declined] = dataclasses.field(default_factory=list)
    chosen: list[Chosen] = dataclasses.field(default_factory=list)
    unit: str = ""
