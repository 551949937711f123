"""Structured pruning: whole channels, heads and hidden units taken out of every tensor that has
them.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Effect, Option, Pass, PassOutcome, Stat
from ._channels.budget import thriftiest
from ._channels.costs import CostKind
from ._channels.importance.criteria import CRITERIA, scores_of
from ._channels.importance.scores import Aggregate, Normalise, ScoreOptions, Scores
from ._channels.importance.stability import removal_frequencies
from ._channels.pruning import Pruning
from ._channels.select import Candidates, Choice, Scope, choose, increments, within
from ._channels.sensitivity import output_losses
from ._dims.solve import Attention

SCORED = 128
"""Samples that scores are made from, at most; fitting uses more."""

MEASURED = 64
"""Samples on which losses of parts of each group are measured at the model's outputs, at most."""

KINDS: dict[str, CostKind] = {"macs": "macs", "params": "params", "size": "bytes"}
"""What each option of a budget limits."""

MOST_RUNS = 2048
"""Samples times groups there, at most: models of many groups take fewer."""


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, hidden units and attention heads from every tensor that has them.

    Effect: lossy. What only served them goes, too. Solves which slices of which tensors must go
    together (no patterns: every op says how its axes are related), takes the least important, fits
    attributes and shape constants, and proves on the way that the result computes what the whole
    model does with those channels shut off; a group for which that fails stays and is named. Inputs
    and outputs of the model keep their shapes. With calibration data each layer that lost inputs is
    then fitted to what it computed before. Ratios count from the widths before the first
    prune-channels.

    Shapes: every axis of a group of n channels, n -> the allowed width nearest to n - floor(ratio *
    n), the wider of two as near.

    Errors: UsageError where a criterion needs data, where patterns match nothing, where options
    contradict each other.

    Stats: `channels` removed, `groups` that lost some, `layers` fitted (counts), `params_before`,
    `params_after`, `macs_before`, `macs_after` (counts, symbolic dims as 1), `error` of the proof
    (relative, root mean square; absent where the model could not be run).

    Source: groups: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900), here on index spaces;
    fitting: He et al., Channel Pruning, ICCV 2017 (arXiv:1707.06168); criteria: docs/channels.md
    names each with its own.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = "lossy"

    ratio: float = Option(
        0.5, "Fraction of the channels to remove.", low=0.0, high=0.99
    )
    scope: Scope = Option(
        "layer",
        "Take the ratio of each group, of all channels ranked together (global), or of "
        "groups of the same shape ranked together (isomorphic).",
    )
    importance: Literal[
        "auto",
        "l1",
        "l2",
        "geometric-median",
        "bn-scale",
        "random",
        "activation",
        "variance",
        "drift",
        "stability",
        "taylor",
        "fisher",
    ] = Option(
        "auto",
        "What channels are ranked by: norms of their weights (l1, l2), how replaceable they are "
        "(geometric-median), what their readers make of them (activation, variance, "
        "drift after refitting), how "
        "surely half of the data agrees (stability), gradients (taylor, fisher). "
        "auto: drift with data, "
        "else l2.",
    )
    aggregate: Aggregate = Option(
        "mean", "How the scores of a group's several weights become one."
    )
    normalise: Normalise = Option(
        "mean", "What the scores of each weight are divided by before."
    )
    attention: Attention = Option(
        "heads", "Take whole heads out of attention, or dimensions of every head."
    )
    macs: float = Option(
        0.0,
        "Largest fraction of the multiply-accumulates to leave, instead of a ratio; 0 is off.",
        low=0.0,
        high=1.0,
    )
    params: float = Option(
        0.0,
        "Largest fraction of the parameters to leave, instead of a ratio; 0 is off.",
        low=0.0,
        high=1.0,
    )
    size: float = Option(
        0.0,
        "Largest fraction of the bytes of weights to leave, instead of a ratio; 0 is off.",
        low=0.0,
        high=1.0,
    )
    drift: float = Option(
        0.0,
        "Remove as long as each group's readers lose at most this share of their outputs' "
        "variance (importance=drift), instead of a ratio; 0 is off.",
        low=0.0,
        high=1.0,
    )
    frequency: float = Option(
        0.0,
        "Remove only channels that at least this share of the halves of the data would "
        "(importance=stability); 0 is off.",
        low=0.0,
        high=1.0,
    )
    least: int = Option(
        1,
        "Channels that every group keeps; 0 lets whole branches go where the rest works without.",
        low=0,
        high=1_000_000,
    )
    multiple: int = Option(
        0,
        "Widths of convolutions are multiples of it; 0: of what the target computes at once "
        "(scope=global within a budget: any that pay there).",
        low=0,
        high=1024,
    )
    include: tuple[str, ...] = Option(
        (),
        "Only groups of which a weight (WEIGHT, or WEIGHT:AXIS) or its node matches one of these.",
    )
    exclude: tuple[str, ...] = Option(
        (),
        "Not the groups of which a weight (WEIGHT, or WEIGHT:AXIS) or its node "
        "matches one of these.",
    )
    recover: bool = Option(
        True,
        "Fit layers that lost inputs to the whole model's outputs, where there is data.",
    )
    samples: int = Option(
        512, "Calibration samples to use at most.", low=1, high=10_000_000
    )
    damp: float = Option(
        1e-3,
        "Share of the inputs' mean square added to it when fitting.",
        low=1e-9,
        high=1.0,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        budgets = [name for name in (*KINDS, "drift") if getattr(self, name)]
        if len(budgets) > 1:
            raise UsageError(
                f"prune-channels.{budgets[1]}",
                f"{' and '.join(budgets)} are set",
                "leave one of them",
            )
        for option, wanted in (("drift", "drift"), ("frequency", "stability")):
            if getattr(self, option) and self.importance != wanted:
                raise UsageError(
                    f"prune-channels.{option}",
                    f"importance is {self.importance}",
                    f"add importance={wanted}",
                )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        pruning = Pruning(
            model, context, self.attention, keep_batchnorm=self.importance == "bn-scale"
        )
        pruning.limit_to(self.include, self.exclude)
        if not pruning.groups or pruning.repeated(str(self)):
            return PassOutcome(declined=pruning.declined)
        scores = self._scores(pruning, context)
        candidates = pruning.candidates(
            scores, self.multiple or int(self._priced(context)), self.least
        )
        choice, error = pruning.proved(
            candidates, self._choice(pruning, candidates, context)
        )
        if self.multiple:
            choice, error = pruning.widened(
                candidates, pruning.candidates(scores, 0, self.least), choice, error
            )
        if not any(choice):
            return PassOutcome(declined=pruning.declined)
        removed = candidates.removed(choice)
        fitted = pruning.finish(
            model, removed, self.samples if self.recover else 0, self.damp
        )
        pruning.remember(model, str(self))
        after = pruning.cost(choice, candidates.orders())
        stats: dict[str, Stat] = {
            "channels": len(removed),
            "groups": sum(map(bool, choice)),
            "layers": fitted,
            "params_before": pruning.before.params,
            "params_after": after.params,
            "macs_before": pruning.before.macs,
            "macs_after": after.macs,
        }
        if error is not None:
            stats["error"] = error
        return PassOutcome(len(removed), stats, pruning.declined)

    def _scores(self, pruning: Pruning, context: Context) -> list[Scores]:
        name = self._criterion(context)
        options = ScoreOptions(
            self.aggregate, self.normalise, min(self.samples, SCORED), self.ratio
        )
        scores, declined = scores_of(
            name, pruning.groups, pruning.solution, pruning.whole, context, options
        )
        pruning.declined += declined
        return scores

    def _criterion(self, context: Context) -> str:
        if self.importance != "auto":
            if CRITERIA[self.importance].needs_data and not context.has_data():
                raise UsageError(
                    "prune-channels.importance",
                    f"{self.importance} ranks by calibration data",
                    "pass --data (command line) or data= (Python), or take importance=l2",
                )
            return self.importance
        return "drift" if context.has_data() else "l2"

    def _budget(self) -> str:
        return next((name for name in KINDS if getattr(self, name)), "")

    def _priced(self, context: Context) -> bool:
        """Whether widths follow from what losses measure at the model's outputs and channels save
        on the target.
        """
        return (
            bool(self._budget())
            and self.scope == "global"
            and (self._criterion(context) == "drift" and context.has_data())
        )

    def _choice(
        self, pruning: Pruning, candidates: Candidates, context: Context
    ) -> Choice:
        """How many channels of each group go."""
        if self.drift:
            return [
                candidates.fitted(i, int((s <= self.drift).sum()))
                for i, s in enumerate(candidates.scores)
            ]
        if (
            self.scope != "layer"
            and self._criterion(context) == "drift"
            and not self._priced(context)
        ):
            candidates = replace(
                candidates, scores=[increments(scores) for scores in candidates.scores]
            )
        if not self._budget():
            choice = choose(candidates, self.scope, self.ratio)
        else:
            choice = self._within(self._budget(), pruning, candidates, context)
        if self.frequency:
            sure = (
                int(
                    (
                        removal_frequencies(s, ScoreOptions.rounds) >= self.frequency
                    ).sum()
                )
                for s in candidates.scores
            )
            choice = [
                candidates.fitted(i, min(c, n))
                for i, (c, n) in enumerate(zip(choice, sure, strict=True))
            ]
        return choice

    def _within(
        self, budget: str, pruning: Pruning, candidates: Candidates, context: Context
    ) -> Choice:
        """The smallest ratio that meets a budget; under scope=global channels count by what they
        take, too.
        """
        whole, fraction = (
            pruning.memory.cost or pruning.before,
            float(getattr(self, budget)),
        )
        orders = candidates.orders()
        kind = KINDS[budget]

        def taken(choice: Choice) -> float:
            left, all_of_it = (
                int(getattr(cost, kind))
                for cost in (pruning.cost(choice, orders), whole)
            )
            return left / max(all_of_it, 1)

        if self._priced(context):
            samples = min(
                self.samples, MEASURED, max(MOST_RUNS // len(pruning.groups), 1)
            )
            losses = output_losses(
                pruning.groups,
                pruning.solution,
                pruning.whole,
                candidates.scores,
                context,
                samples,
                self.damp,
            )
            choice = thriftiest(candidates, losses, taken, fraction, context.target)
            met = taken(choice) <= fraction
        else:
            ranked = candidates
            if self.scope == "global":
                ranked = candidates.per_gain(
                    pruning.costs.saved_by_one(pruning.groups, kind)
                )
            choice, met = within(
                taken, fraction, lambda ratio: choose(ranked, self.scope, ratio)
            )
        if not met:
            context.warn(
                "prune-channels",
                f"{taken(choice):.0%} of the {budget} stay, not {fraction:.0%}: "
                "the rest is in what cannot lose channels",
            )
        return choice
