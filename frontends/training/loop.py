"""The loop of a training: steps under a budget, checks on rows held out, the best state kept."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from .account import Account, Stop, StopReason
from .augment import Augment
from .data import Example, Order, Units
from .interrupt import Interruption, deferred_interrupts
from .optimizer import make_optimizer, parameter_groups, penalty, set_rate
from .presets import batch_rows
from .regrowth import exchange, exchanged_share
from .score import Score, Scorer
from .session import TrainingSession

Tensor = Any

ROWS_AT_A_TIME = 128
"""Rows that go through the module together; larger batches add up gradients of several parts."""

STEP_STREAM = 3
"""Second word of the seed that a step draws numpy's numbers by; see `data` for others."""

MIXED_PART = 0.5
"""Part of a block's input that is the teacher's: the probability that QDrop uses."""

IDLE_CHECKS = 2
"""Checks in a row without a better state from which a budget is shortened: one may be chance."""

UNITS_SHOWN = 5
"""Rows that a message about a step names."""

SECONDS_BETWEEN_WORDS = 0.5
"""Seconds between two reports of steps: a bar is read by people."""


class Loop:
    """One training from its first step, or from its checkpoint, to the end of its budget.

    `batch`: rows of a batch; `order`: the units of each step; `account`: how far it is. Errors:
    those of the model on its data.
    """

    def __init__(self, session: TrainingSession) -> None:
        began = time.monotonic()
        recipe = session.recipe
        split = session.split
        self.session = session
        self.augment = Augment.of(recipe)
        rows_per_unit = session.samples.rows_per_unit()
        rows = round(len(split.train) * rows_per_unit)
        self.batch = batch_rows(recipe, rows)
        units = max(round(self.batch / rows_per_unit), 1)
        self.order = Order(
            units=split.train,
            each=units * recipe.accumulate,
            seed=session.environment.seed,
        )
        self.optimizer = _optimizer(session)
        self.account = self._first_account()
        self._total_steps = self._budget_in_steps()
        self._started = began - self.account.seconds
        self._recent_losses: list[float] = []
        self._told = -math.inf
        session.group.broadcast(session.learner.runs.parameters())
        session.group.broadcast(session.objective.parameters())

    def _budget_in_steps(self) -> int:
        """Return the smaller of the budgets in steps and epochs, 0 where there is neither."""
        recipe = self.session.recipe
        budgets = []
        if recipe.steps:
            budgets.append(recipe.steps)
        if recipe.epochs:
            steps = round(recipe.epochs * self.order.steps)
            budgets.append(max(steps, 1))
        return min(budgets, default=0)

    def _first_account(self) -> Account:
        checkpoint = self.session.checkpoint
        saved = None if checkpoint is None else checkpoint.load()
        if saved is not None:
            return self._resumed(saved)
        first = self._score()
        state = self.session.learner.state()
        return Account(
            first=first,
            best=first,
            state=state,
            scores=[first.value],
        )

    def run(self) -> Account:
        """Train, and leave the learner in the best state.

        Errors: KeyboardInterrupt, where there is a checkpoint after the state has been saved.
        """
        if self.session.checkpoint is None:
            return self._trained(None)
        with deferred_interrupts() as interruption:
            return self._trained(interruption)

    def _trained(self, interruption: Interruption | None) -> Account:
        """Do steps and checks until the budget is spent, or an interruption is asked for."""
        recipe = self.session.recipe
        learner = self.session.learner
        while True:
            progress = self._progress()
            if progress >= 1 or self.account.stop is not None:
                break
            self.step(progress)
            if interruption is not None and interruption.asked:
                self._save()
                raise KeyboardInterrupt(
                    "nothing was written; the same command goes on from step "
                    f"{self.account.steps} of the training"
                )
            progress = self._progress()
            self._tell(progress)
            next_check = min((self.account.checks + 1) / recipe.checks, 1.0)
            if self.account.stop is not None or progress >= next_check:
                self._check(progress)
        learner.restore(self.account.state)
        return self.account

    def _progress(self) -> float:
        """Return the part of the budget that is gone: of steps or of time, the larger one."""
        spent = self.account.skipped
        if self._total_steps:
            spent += self.account.steps / self._total_steps
        minutes = self.session.recipe.minutes
        if not minutes:
            return spent
        seconds = time.monotonic() - self._started
        # clocks differ, and processes that stop at different steps wait for each other forever
        (passed,) = self.session.group.from_leader(seconds / (60 * minutes))
        return max(spent, passed + self.account.skipped)

    def step(self, progress: float) -> None:
        """Do one step at a point of the run, 0 to 1; the account tells if it failed."""
        session = self.session
        set_rate(self.optimizer, progress, session.recipe.warmup)
        session.learner.anneal_rounding(progress)
        group = session.group
        step = self.account.steps
        seed = session.environment.seed
        units = self.order.units(step)
        rows = session.samples.rows_in(units)
        # random numbers depend on the step alone: a resumed training draws the same ones
        torch.manual_seed(_step_seed(seed, step))
        stream = [seed, STEP_STREAM, step, group.rank]
        random = np.random.default_rng(stream)
        self.optimizer.zero_grad(set_to_none=True)
        own_loss = 0.0
        for example in session.samples.take(group.shard(units), ROWS_AT_A_TIME):
            loss = self._loss(example, random)
            # parts and processes add up to the mean over all rows of the step
            share = example.rows / rows
            part = loss * share
            part.backward()
            own_loss += float(part.detach())
        total = group.sum(own_loss)
        group.sum_gradients(_parameters(self.optimizer))
        if not math.isfinite(total):
            self._stop_at(units, "loss")
        elif not self._move(progress):
            self._stop_at(units, "gradient")
        else:
            self.account.steps += 1
            self._recent_losses.append(total)

    def _loss(self, example: Example, random: np.random.Generator) -> Tensor:
        session = self.session
        mixture = None
        targets: Mapping[str, Any] = example.targets
        if self.augment:
            example, mixture = self.augment(example, random)
        if session.live_teacher is not None:
            targets = session.live_teacher(example.feeds)
        if session.mixed_input:
            example = self._with_mixed_input(example, targets, random)
        with session.device.halved():
            values = session.learner.learn(example.feeds)
        wanted = {}
        for name, value in targets.items():
            tensor = torch.as_tensor(value)
            wanted[name] = tensor.to(session.device.name)
        loss = session.objective(
            student=values,
            teacher=wanted,
            labels=example.labels,
            mixture=mixture,
        )
        recipe = session.recipe
        if recipe.l1 or recipe.group_lasso:
            loss = loss + penalty(session.learner.runs, recipe)
        return loss

    def _with_mixed_input(
        self, example: Example, targets: Mapping[str, Any], random: np.random.Generator
    ) -> Example:
        name = self.session.mixed_input
        own = example.feeds[name]
        theirs = targets[name]
        coins = random.random(own.shape)
        feeds = dict(example.feeds)
        feeds[name] = np.where(coins < MIXED_PART, theirs, own)
        return Example(feeds, example.labels)

    def _move(self, progress: float) -> bool:
        """Do one step of the optimizer; False where the gradients are not finite."""
        gradients = [p.grad for p in _parameters(self.optimizer) if p.grad is not None]
        # without a limit the norm is still needed, to see whether it is finite
        norm = float(torch.nn.utils.get_total_norm(gradients))
        if not math.isfinite(norm):
            return False
        recipe = self.session.recipe
        limit = recipe.clip
        if limit and norm > limit:
            factor = limit / norm
            for gradient in gradients:
                gradient.mul_(factor)
        share = exchanged_share(recipe.regrow, self.account.steps, progress)
        if share:
            self.account.regrown += exchange(self.session.learner.runs, share)
        self.optimizer.step()
        self.session.learner.constrain()
        return True

    def _check(self, progress: float) -> None:
        """Score, keep the best state, save, report, and stop where nothing comes of it any more."""
        session = self.session
        account = self.account
        # products of floats may fall short of the number of this check
        passed = int(progress * session.recipe.checks)
        account.checks = max(passed, account.checks + 1)
        # a state that is not finite has no score; that of the best one stands in the report
        score = account.best
        if account.stop is None:
            score = self._score()
        if self._recent_losses:
            mean = np.mean(self._recent_losses)
            account.losses.append(float(mean))
            self._recent_losses = []
        account.scores.append(score.value)
        if score.finite and score > account.best:
            account.best = score
            account.best_step = account.steps
            account.state = session.learner.state()
            account.idle = 0
        else:
            account.idle += 1
        self._lose_patience(progress)
        self._save()
        self._report(score, progress)

    def _save(self) -> None:
        session = self.session
        self.account.seconds = time.monotonic() - self._started
        if session.checkpoint is not None and session.group.is_leader:
            session.checkpoint.save(self._stored())

    def _lose_patience(self, progress: float) -> None:
        """Stop where as many checks as the recipe allows gave nothing better.

        Where it names no number, each check after the first of them takes as much again off the
        budget: the rate, which falls with what is left, may be all that is too high.
        """
        account = self.account
        patience = self.session.recipe.patience
        if isinstance(patience, str):
            if account.idle >= IDLE_CHECKS and progress < 1:
                account.skipped += 1 / self.session.recipe.checks
                # the check that is left out is not made up for after the next step
                account.checks += 1
            return
        if not patience or account.idle < patience or account.stop is not None:
            return
        account.stop = Stop(
            StopReason.NO_PROGRESS,
            f"no better for {account.idle} checks",
        )

    def _report(self, score: Score, progress: float) -> None:
        (first_group, *_) = self.optimizer.param_groups
        figures = {
            "held out": score.value,
            "rate": first_group["lr"],
        }
        if self.account.losses:
            figures["loss"] = self.account.losses[-1]
        self.session.log(self.account.steps, figures)
        self._told = -math.inf
        self._tell(progress)

    def _tell(self, progress: float) -> None:
        """Tell people how far it is, not more often than they can read."""
        now = time.monotonic()
        if now - self._told < SECONDS_BETWEEN_WORDS:
            return
        self._told = now
        account = self.account
        words = f"step {account.steps}"
        if self._total_steps:
            words += f" of {self._total_steps}"
        losses = self._recent_losses or account.losses
        if losses:
            words += f", loss {losses[-1]:.3g}"
        # the score of the start, until there is another one
        words += f", held out {account.scores[-1]:.4f}"
        # the clock may have run a little over the budget
        self.session.progress(min(progress, 1.0), words)

    def _score(self) -> Score:
        """Return the score of the learner as it is, on the rows held out; the leader's, for all."""
        score = Score(0.0, 0.0)
        if self.session.group.is_leader:
            score = self._own_score()
        value, closeness = self.session.group.from_leader(score.value, score.closeness)
        return Score(value, closeness)

    def _own_score(self) -> Score:
        session = self.session
        learner = session.learner
        with session.device.halved():
            learner.recalibrate_batchnorm()
        heads = session.objective.compared.heads
        scorer = Scorer(heads, session.recipe.watch)
        for example in session.samples.take(session.split.held, ROWS_AT_A_TIME):
            values = learner.values(example.feeds)
            scorer.add(values, example.targets, example.labels)
        return scorer.score()

    def _stop_at(self, units: Units, what: str) -> None:
        """End the training at a step whose loss or gradient is not finite."""
        step = self.account.steps
        epoch, batch = divmod(step, self.order.steps)
        shown = ", ".join(map(str, units[:UNITS_SHOWN]))
        if len(units) > UNITS_SHOWN:
            shown += ", …"
        kind = "rows"
        if self.session.samples.ragged:
            kind = "batches"
        self.account.stop = Stop(
            StopReason.NOT_FINITE,
            f"the {what} is not finite at step {step + 1} "
            f"(epoch {epoch + 1}, batch {batch + 1}: {kind} {shown} of the data)",
        )

    def _stored(self) -> dict[str, Any]:
        return {
            "account": self.account.stored(),
            "now": self.session.learner.state(),
            "optimizer": self.optimizer.state_dict(),
            "projections": self.session.objective.state_dict(),
        }

    def _resumed(self, saved: Mapping[str, Any]) -> Account:
        """Go on from a checkpoint: the steps that follow see the data that they would have seen."""
        self.session.learner.restore(saved["now"])
        self.optimizer.load_state_dict(saved["optimizer"])
        self.session.objective.load_state_dict(saved["projections"])
        return Account.of_stored(saved["account"])


def _optimizer(session: TrainingSession) -> Any:
    groups = parameter_groups(
        session.learner.runs,
        session.recipe,
        session.objective.parameters(),
    )
    trained = []
    for group in groups:
        (first, *_) = group["params"]
        # running statistics are parameters, too, but no optimizer's
        if first.requires_grad:
            trained.append(group)
    return make_optimizer(trained, session.recipe)


def _parameters(optimizer: Any) -> list[Tensor]:
    found: list[Tensor] = []
    for group in optimizer.param_groups:
        found.extend(group["params"])
    return found


def _step_seed(seed: int, step: int) -> int:
    """Return torch's seed of a step, the same in every process and every version of Python."""
    sequence = np.random.SeedSequence([seed, step])
    (state,) = sequence.generate_state(1, np.uint64)
    return int(state)
