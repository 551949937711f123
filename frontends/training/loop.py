"""The loop: steps under a budget, checks on rows held out, the best kept, interruptions
survived.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from .augment import Augment
from .checkpoint import Checkpoint
from .data import Example, Order, Samples, Split
from .device import Device
from .distributed import Team
from .objective import Objective
from .optimizer import make_optimizer, parameter_groups, penalty, set_rate
from .recipe import Recipe
from .score import Score, Scorer
from .student import State, Student
from .teacher import Said
from .tensorboard import Log

Tensor = Any
Tell = Callable[[float, str], None]
"""Takes how far the run is, 0 to 1, and a few words on it."""
MICRO_ROWS = 128


@dataclass
class Account:
    """How a training went. `first`, `best`: scores of the start and of the best state, which
    `state` holds.

    `trouble`: why it stopped before its budget; "" where it did not. `losses`: means between
    checks.
    """

    first: Score
    best: Score
    state: State
    steps: int = 0
    seconds: float = 0.0
    losses: list[float] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)
    best_step: int = 0
    trouble: str = ""


@dataclass
class Job:
    """What is trained, on what, and who says how it goes on.

    `teacher`: asked at every step; None where what is kept of it is enough.
    `drop`: an input of which half the elements, drawn anew for each step, are the teacher's.
    """

    student: Student
    objective: Objective
    samples: Samples
    split: Split
    recipe: Recipe
    teacher: Said | None
    team: Team
    seed: int
    tell: Tell
    checkpoint: Checkpoint | None = None
    device: Device = field(default_factory=Device)
    drop: str = ""
    log: Log = lambda step, figures: None


class Loop:
    """One training from its first step, or from its checkpoint, to the end of its budget."""

    def __init__(self, job: Job) -> None:
        self.job, recipe = job, job.recipe
        self.augment = Augment.of(recipe)
        rows = job.samples.rows_of_a_unit()
        self.batch = recipe.batch_of(round(len(job.split.train) * rows))
        self.order = Order(
            job.split.train,
            max(round(self.batch / rows), 1) * recipe.accumulate,
            job.seed,
        )
        whole = [recipe.steps] if recipe.steps else []
        whole += (
            [max(round(recipe.epochs * self.order.steps), 1)] if recipe.epochs else []
        )
        self.total = min(whole, default=0)
        groups = parameter_groups(job.student.runs, recipe, job.objective.parameters())
        self.optimizer = make_optimizer(
            [g for g in groups if g["params"][0].requires_grad], recipe
        )
        self.trained = [p for g in self.optimizer.param_groups for p in g["params"]]

    def run(self) -> Account:
        """Train. Errors: those of the model on its data."""
        self._begin()
        while (progress := self._progress()) < 1 and not self.account.trouble:
            set_rate(self.optimizer, progress, self.job.recipe.warmup)
            self.job.student.harden(progress)
            self._step()
            progress = self._progress()
            if (
                self.account.trouble
                or progress >= (self.checks + 1) / self.job.recipe.checks
                or progress >= 1
            ):
                self._check(progress)
        self.job.student.restore(self.account.state)
        return self.account

    def _begin(self) -> None:
        self.started, self.checks, self.idle = time.monotonic(), 0, 0
        self.recent: list[float] = []
        saved = self.job.checkpoint.load() if self.job.checkpoint is not None else None
        if saved is not None:
            self._resume(saved)
        else:
            first = self._score()
            self.account = Account(
                first, first, self.job.student.state(), scores=[first.value]
            )
        self.job.team.spread(self.job.student.runs.parameters())
        self.job.team.spread(self.job.objective.parameters())

    def _progress(self) -> float:
        """How much of the budget is spent, 0 to 1: of steps or of time, whichever is further."""
        spent = self.account.steps / self.total if self.total else 0.0
        if not self.job.recipe.minutes:
            return spent
        passed = (time.monotonic() - self.started) / (60 * self.job.recipe.minutes)
        (passed,) = self.job.team.of_leader(passed)
        return max(spent, passed)

    def _step(self) -> None:
        units = self.order.units(self.account.steps)
        rows = self.job.samples.rows_in(units)
        loss = 0.0
        self.optimizer.zero_grad(set_to_none=True)
        torch.manual_seed(hash((self.job.seed, self.account.steps)) % 2**63)
        random = np.random.default_rng(
            [self.job.seed, 3, self.account.steps, self.job.team.rank]
        )
        for example in self.job.samples.take(self.job.team.share(units), MICRO_ROWS):
            part = self._loss(example, random) * (example.rows / rows)
            part.backward()
            loss += float(part.detach())
        loss = self.job.team.total(loss)
        self.job.team.add_gradients(self.trained)
        if not math.isfinite(loss):
            self._stop_at(units, "loss")
            return
        if not self._move():
            self._stop_at(units, "gradient")
            return
        self.account.steps += 1
        self.recent.append(loss)

    def _loss(self, example: Example, random: np.random.Generator) -> Tensor:
        partner = None
        targets: dict[str, Any] = example.targets
        if self.augment:
            example, partner = self.augment(example, random)
        if self.job.teacher is not None:
            targets = self.job.teacher(example.feeds)
        if self.job.drop:
            own, name = example.feeds[self.job.drop], self.job.drop
            mixed = np.where(random.random(own.shape) < 0.5, targets[name], own)
            example = Example({**example.feeds, name: mixed}, example.labels)
        with self.job.device.halved():
            values = self.job.student.learn(example.feeds)
        loss = self.job.objective(
            values, self._tensors(targets), example.labels, partner
        )
        if self.job.recipe.l1 or self.job.recipe.group_lasso:
            loss = loss + penalty(self.job.student.runs, self.job.recipe)
        return loss

    def _move(self) -> bool:
        """One step of the optimizer; whether the gradients were finite."""
        limit = self.job.recipe.clip or math.inf
        norm = torch.nn.utils.clip_grad_norm_(self.trained, limit)
        if not bool(torch.isfinite(norm)):
            return False
        self.optimizer.step()
        self.job.student.constrain()
        return True

    def _check(self, progress: float) -> None:
        """Score, keep the best, save, say how it goes, stop where nothing comes of it any more."""
        account, student = self.account, self.job.student
        self.checks = int(progress * self.job.recipe.checks)
        score = self._score() if not account.trouble else account.best
        account.seconds = time.monotonic() - self.started
        if self.recent:
            account.losses.append(float(np.mean(self.recent)))
            self.recent = []
        account.scores.append(score.value)
        if score > account.best and score.finite:
            account.best, account.state, account.best_step, self.idle = (
                score,
                student.state(),
                account.steps,
                0,
            )
        else:
            self.idle += 1
        if (
            self.job.recipe.patience
            and self.idle >= self.job.recipe.patience
            and not account.trouble
        ):
            account.trouble = f"no better for {self.idle} checks"
        if self.job.checkpoint is not None and self.job.team.leads:
            self.job.checkpoint.save(self._state())
        figures = {
            "held out": score.value,
            "rate": self.optimizer.param_groups[0]["lr"],
        }
        self.job.log(
            account.steps,
            figures | ({"loss": account.losses[-1]} if account.losses else {}),
        )
        loss = f"loss {account.losses[-1]:.3g}, " if account.losses else ""
        self.job.tell(min(progress, 1.0), f"{loss}held out {score.value:.4f}")

    def _score(self) -> Score:
        """Of the student as it is, on the rows held out; the leader's, for all."""
        values = (0.0, 0.0)
        if self.job.team.leads:
            with self.job.device.halved():
                self.job.student.settle()
            scorer = Scorer(self.job.objective.heads, self.job.recipe.watch)
            for example in self.job.samples.take(self.job.split.held, MICRO_ROWS):
                scorer.add(
                    self.job.student.values(example.feeds),
                    example.targets,
                    example.labels,
                )
            score = scorer.score()
            values = (score.value, score.closeness)
        return Score(*self.job.team.of_leader(*values))

    def _stop_at(self, units: Any, what: str) -> None:
        epoch, batch = divmod(self.account.steps, self.order.steps)
        shown = ", ".join(map(str, units[:5])) + (", …" if len(units) > 5 else "")
        kind = "batches" if self.job.samples.ragged else "rows"
        self.account.trouble = (
            f"the {what} is not finite at step {self.account.steps + 1} "
            f"(epoch {epoch + 1}, batch {batch + 1}: {kind} {shown} of the data)"
        )

    def _state(self) -> dict[str, Any]:
        account = self.account
        return {
            "steps": account.steps,
            "seconds": account.seconds,
            "checks": self.checks,
            "idle": self.idle,
            "losses": account.losses,
            "scores": account.scores,
            "best_step": account.best_step,
            "trouble": account.trouble,
            "first": [account.first.value, account.first.closeness],
            "best": [account.best.value, account.best.closeness],
            "state": account.state,
            "now": self.job.student.state(),
            "optimizer": self.optimizer.state_dict(),
            "projections": self.job.objective.state_dict(),
        }

    def _resume(self, saved: dict[str, Any]) -> None:
        """Go on from a checkpoint: the steps that follow see the data that they would have seen."""
        self.account = Account(
            Score(*saved["first"]),
            Score(*saved["best"]),
            saved["state"],
            saved["steps"],
            saved["seconds"],
            saved["losses"],
            saved["scores"],
            saved["best_step"],
            saved["trouble"],
        )
        self.checks, self.idle = saved["checks"], saved["idle"]
        self.started = time.monotonic() - saved["seconds"]
        self.job.student.restore(saved["now"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.job.objective.load_state_dict(saved["projections"])

    def _tensors(self, targets: dict[str, Any]) -> dict[str, Tensor]:
        return {
            name: torch.as_tensor(value).to(self.job.device.name)
            for name, value in targets.items()
        }
