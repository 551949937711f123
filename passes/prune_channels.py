"""Structured pruning: channels, heads and hidden units removed from every tensor that has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Effect, Option, Pass, PassOutcome, Stat
from ._channels.costs import CostKind
from ._channels.decide import BudgetLimit, SelectionRule, decide
from ._channels.importance.criteria import CRITERIA, scores_of
from ._channels.importance.scores import Aggregate, Normalise, ScoreOptions, Scores
from ._channels.overview import ChannelGroup, ChannelGroups, channel_groups
from ._channels.pruning import Pruning
from ._channels.select import Scope
from ._dims.solve import Attention

__all__ = ["ChannelGroup", "ChannelGroups", "PruneChannels", "channel_groups"]

SCORED = 128
"""Samples that scores are made from, at most; fitting uses more. Chosen by hand, not measured."""

BUDGETS: dict[str, CostKind] = {"macs": "macs", "params": "params", "size": "bytes"}
"""Cost that each option of a budget limits."""

UNSET_BY_ZERO = (*BUDGETS, "drift", "frequency", "multiple")
"""Options of which 0 means that they are not set, as pipeline text of earlier versions has it."""

CRITERION_OF = {"drift": "drift", "frequency": "stability"}
"""Criterion whose scores an option speaks of."""


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
        "(geometric-median), what their readers make of them (activation, variance, drift after "
        "refitting), how surely half of the data agrees (stability), gradients (taylor, fisher). "
        "auto: drift with data, else l2.",
    )
    aggregate: Aggregate = Option(
        "mean", "How the scores of a group's several weights become one."
    )
    normalise: Normalise = Option(
        "mean", "Figure of each weight's scores by which they are divided before."
    )
    attention: Attention = Option(
        "heads", "Take whole heads out of attention, or dimensions of every head."
    )
    macs: float | None = Option(
        None,
        "Largest fraction of the multiply-accumulates to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    params: float | None = Option(
        None,
        "Largest fraction of the parameters to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    size: float | None = Option(
        None,
        "Largest fraction of the bytes of weights to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    drift: float | None = Option(
        None,
        "Remove as long as each group's readers lose at most this share of their outputs' "
        "variance (importance=drift), instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    frequency: float | None = Option(
        None,
        "Remove only channels that at least this share of the halves of the data would "
        "(importance=stability).",
        low=0.0,
        high=1.0,
    )
    least: int = Option(
        1,
        "Channels that every group keeps; 0 lets whole branches go where the rest works without.",
        low=0,
        high=1_000_000,
    )
    multiple: int | None = Option(
        None,
        "Widths of convolutions are multiples of it; unset: of what the target computes at once "
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
        for option in UNSET_BY_ZERO:
            if getattr(self, option) == 0:
                # the only way to set a field of a frozen dataclass
                object.__setattr__(self, option, None)
        self._refuse_contradictions()

    def _refuse_contradictions(self) -> None:
        # each of them says how much goes, in place of the ratio
        aims = [name for name in (*BUDGETS, "drift") if getattr(self, name) is not None]
        if len(aims) > 1:
            raise UsageError(
                f"prune-channels.{aims[1]}",
                f"{' and '.join(aims)} are set",
                "leave one of them",
            )
        for option, criterion in CRITERION_OF.items():
            if getattr(self, option) is not None and self.importance != criterion:
                raise UsageError(
                    f"prune-channels.{option}",
                    f"importance is {self.importance}",
                    f"add importance={criterion}",
                )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        keep_batchnorm = self.importance == "bn-scale"
        pruning = Pruning(model, context, self.attention, keep_batchnorm=keep_batchnorm)
        pruning.limit_to(self.include, self.exclude)
        if not pruning.groups or pruning.repeated(str(self)):
            return PassOutcome(declined=pruning.declined)
        rule = self._rule(context)
        multiple = self.multiple
        if multiple is None and rule.weighs_losses(context):
            # losses and savings decide which widths pay
            multiple = 1
        scores = self._scores(rule.criterion, pruning, context)
        candidates = pruning.candidates(scores, multiple, self.least)
        choice = decide(rule, pruning, candidates, context)
        choice, error = pruning.verified(candidates, choice)
        if self.multiple is not None:
            # widths asked for may run worse than wider ones
            suited = pruning.candidates(scores, None, self.least)
            choice, error = pruning.widened(candidates, suited, choice, error)
        if not any(choice):
            return PassOutcome(declined=pruning.declined)
        removed = candidates.removed(choice)
        samples = self.samples if self.recover else 0
        fitted = pruning.finish(model, removed, samples, self.damp)
        pruning.record(model, str(self))
        before = pruning.before
        after = pruning.cost(choice, candidates.orders())
        groups = [count for count in choice if count > 0]
        stats: dict[str, Stat] = {
            "channels": len(removed),
            "groups": len(groups),
            "layers": fitted,
            "params_before": before.params,
            "params_after": after.params,
            "macs_before": before.macs,
            "macs_after": after.macs,
        }
        if error is not None:
            stats["error"] = error
        return PassOutcome(len(removed), stats, pruning.declined)

    def _rule(self, context: Context) -> SelectionRule:
        """The options that decide how many channels go."""
        budget = None
        for option, kind in BUDGETS.items():
            fraction = getattr(self, option)
            if fraction is not None:
                budget = BudgetLimit(option, kind, float(fraction))
        return SelectionRule(
            criterion=self._criterion(context),
            scope=self.scope,
            ratio=self.ratio,
            budget=budget,
            drift=self.drift,
            frequency=self.frequency,
            samples=self.samples,
            damp=self.damp,
        )

    def _criterion(self, context: Context) -> str:
        """Name of the criterion that scores channels. Errors: UsageError without its data."""
        if self.importance == "auto":
            return "drift" if context.has_data() else "l2"
        if CRITERIA[self.importance].needs_data and not context.has_data():
            raise UsageError(
                "prune-channels.importance",
                f"{self.importance} ranks by calibration data",
                "pass --data (command line) or data= (Python), or take importance=l2",
            )
        return self.importance

    def _scores(
        self, criterion: str, pruning: Pruning, context: Context
    ) -> list[Scores]:
        options = ScoreOptions(
            aggregate=self.aggregate,
            normalise=self.normalise,
            samples=min(self.samples, SCORED),
            ratio=self.ratio,
        )
        scores, declined = scores_of(
            criterion,
            pruning.groups,
            pruning.solution,
            pruning.whole,
            context,
            options,
        )
        pruning.declined += declined
        return scores
