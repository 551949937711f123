"""Training of the graph as it is, towards the outputs of the model that the run began with.

The pass declares the options and the rounds; the context runs the training loop.
"""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, Trains
from ._core.training_recipe import TrainingRecipe
from .prune import Prune

HIGHEST_SPARSITY = 0.99
"""Fraction of zeros above which `prune` takes no target either."""

LAST_SHARE = 0.5
"""Fraction of the budget for the last round of a schedule: its weights are the result.

Three rounds with this share gave ResNet-20 83.9 % top-1 at 90 % sparsity, one round 82.4 %
(docs/finetune.md); other shares were not measured.
"""


@dataclass(frozen=True)
class Finetune(TrainingRecipe, Pass):
    """Train the weights to reproduce the outputs of the original model; labels are optional.

    Effect: lossy. Touches float weights, and the integers of a quantized graph, which are trained
    as floats that are rounded whenever they are used. Shapes, types and grids stay; tied weights
    stay tied. Pruned weights keep their zeros; with `regrow` they keep only the number of zeros.
    The teacher is the model that the run began with. Part of the data is held out: trained weights
    replace the old ones only if ONNX Runtime finds them better on it. Without data (and without
    `synthesize`), or if the run cannot train, nothing changes.

    Shapes: any -> same.

    Errors: UsageError without torch; RefusedError for too little data, labels that do not fit, or
    nothing to train; CheckError if the loss stops being finite before any check is better.

    Stats: `preset`; `rows`, `held_out`, `batch` (samples); `rate`; `steps`, `best_step`, `epochs`;
    `loss_first`, `loss_last` (means between checks), `losses` (all of them); `scores` (on held-out
    data at each check, by torch); `before`, `after` (the same score by ONNX Runtime); `stopped`
    (why it ended before its budget); `seconds`; `sparsity` (with `schedule`); `regrown` (zeros that
    changed places). With preset block: `blocks`, `better_blocks`.

    Source: Hinton et al. 2015 (arXiv:1503.02531); DIST: Huang et al. 2022 (arXiv:2205.10536); DKD:
    Zhao et al. 2022 (arXiv:2203.08679); attention: Zagoruyko and Komodakis 2017 (arXiv:1612.03928);
    block: Nagel et al. 2020 (arXiv:2004.10568), Li et al. 2021 (arXiv:2102.05426), Wei et al. 2022
    (arXiv:2203.05740); schedule: Zhu and Gupta 2017 (arXiv:1710.01878); regrow: Evci et al. 2020
    (arXiv:1911.11134); attribution: Park et al. 2020 (arXiv:2010.15054).
    """

    name: ClassVar[str] = "finetune"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "weights"

    schedule: tuple[str, ...] = Option(
        (),
        "Sparsities to prune to before each round, e.g. [0.5, 0.8, 0.9]; the last round gets half "
        "of the budget.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        self._sparsities()

    @classmethod
    def has_parts(cls) -> bool:
        """False: `exclude` is of weights, of which only the values change."""
        return False

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        where = model.graph.name or "graph"
        if not isinstance(context, Trains):
            reason = (
                "models are not trained here: use onnx-opt run, or optimize() in Python"
            )
            return PassOutcome(declined=[Declined(where, reason)])
        if not context.has_data() and not self.synthesize:
            context.warn(
                "finetune", "nothing to train on: give --data, labels are not needed"
            )
            return PassOutcome(
                declined=[
                    Declined(
                        where,
                        "there is no data to train on: give --data, labels are not needed",
                    )
                ]
            )
        if self.schedule:
            return self._prune_and_train(model, context)
        return context.train(model, self._recipe())

    def _recipe(self) -> TrainingRecipe:
        """The options without the pass around them: trainers know nothing of schedules."""
        values = {}
        for field in dataclasses.fields(TrainingRecipe):
            values[field.name] = getattr(self, field.name)
        return TrainingRecipe(**values)

    def _prune_and_train(self, model: ir.Model, context: Context) -> PassOutcome:
        """Prune to each sparsity of the schedule in turn and train after it.

        Returns the stats of the last round, with what any round declined.
        """
        assert isinstance(context, Trains)
        outcome = PassOutcome()
        declined: list[Declined] = []
        changed = 0
        shares = _budget_shares(len(self.schedule))
        for sparsity, share in zip(self._sparsities(), shares, strict=True):
            # rounded up: a share of a step would be no budget at all, which means the preset's
            recipe = dataclasses.replace(
                self._recipe(),
                steps=math.ceil(self.steps * share),
                epochs=self.epochs * share,
                minutes=self.minutes * share,
            )
            # training is the fit
            prune = Prune(sparsity=sparsity, allocation="lamp", fit=False)
            pruned = prune.run_within(model, context)
            # training holds zeros, so that the next round prunes on from here
            outcome = context.train(model, recipe)
            outcome.stats["sparsity"] = pruned.stats["sparsity"]
            declined.extend(outcome.declined)
            # rounds change the same tensors: a sum would count them several times
            changed = max(changed, pruned.changed, outcome.changed)
        return PassOutcome(changed, outcome.stats, declined, outcome.chosen)

    def _sparsities(self) -> list[float]:
        """The schedule as numbers. Errors: UsageError unless they rise, from 0 to 0.99."""
        try:
            sparsities = [float(text) for text in self.schedule]
        except ValueError:
            sparsities = [-1.0]
        # written so that NaN, which compares with nothing, lies outside
        inside = all(0 <= sparsity <= HIGHEST_SPARSITY for sparsity in sparsities)
        if not inside or sparsities != sorted(sparsities):
            raise UsageError(
                "finetune.schedule",
                f"[{', '.join(self.schedule)}] are not rising fractions up to 0.99",
                "write for example schedule=[0.5, 0.8, 0.9]",
            )
        return sparsities


def _budget_shares(rounds: int) -> list[float]:
    """Fraction of the budget for each round; those before the last share its rest evenly."""
    if rounds == 1:
        return [1.0]
    each = (1 - LAST_SHARE) / (rounds - 1)
    return [each] * (rounds - 1) + [LAST_SHARE]
