"""Account of a training: how far it is, its scores and its best state, as checkpoints store it."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .learner import State
from .score import Score


class StopReason(enum.Enum):
    """Reasons for which a training ends before its budget; values are stored in checkpoints."""

    NOT_FINITE = "not finite"
    NO_PROGRESS = "no progress"


@dataclass(frozen=True)
class Stop:
    """An end before the budget: its reason, and the message for people."""

    reason: StopReason
    message: str


@dataclass
class Account:
    """Account of a training so far; all of it is stored in checkpoints.

    `first`, `best`: scores of the start and of the best state, which `state` holds; `best_step` is
    its step. `losses`: means between checks. `scores`: held out, at each check. `checks`: number of
    the recipe's checks that progress has passed. `idle`: checks since the best state. `skipped`:
    part of the budget that was left out for want of progress. `regrown`: zeros that changed places
    with nonzeros. `stop`: None where the rest of it was spent.
    """

    first: Score
    best: Score
    state: State
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_step: int = 0
    checks: int = 0
    idle: int = 0
    skipped: float = 0.0
    regrown: int = 0
    stop: Stop | None = None

    def stored(self) -> dict[str, Any]:
        """Return the account as plain values, which a checkpoint reads without running code."""
        stop = self.stop
        return {
            "first": [self.first.value, self.first.closeness],
            "best": [self.best.value, self.best.closeness],
            "state": self.state,
            "steps": self.steps,
            "seconds": self.seconds,
            "losses": self.losses,
            "scores": self.scores,
            "best_step": self.best_step,
            "checks": self.checks,
            "idle": self.idle,
            "skipped": self.skipped,
            "regrown": self.regrown,
            "stop": None if stop is None else [stop.reason.value, stop.message],
        }

    @classmethod
    def of_stored(cls, stored: Mapping[str, Any]) -> Account:
        """Return the account that `stored` gave."""
        values = dict(stored)
        values["first"] = Score(*values["first"])
        values["best"] = Score(*values["best"])
        if values["stop"] is not None:
            reason, message = values["stop"]
            values["stop"] = Stop(StopReason(reason), message)
        return cls(**values)
