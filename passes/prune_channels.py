"""Structured pruning: channels, heads and hidden units removed from every tensor that has them."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import onnx_ir as ir

from .. import UsageError
from ._base import Chosen, Context, Effect, Option, Pass, PassOutcome, Stat
from ._channels.bearable import Attempt, Terms, most_bearable
from ._channels.costs import CostKind
from ._channels.decide import BudgetLimit, SelectionRule, surely_superfluous
from ._channels.importance.criteria import CRITERIA, scores_of
from ._channels.importance.scores import Aggregate, Normalise, ScoreOptions, Scores
from ._channels.keep_budget import made_as_asked
from ._channels.overview import ChannelGroup, ChannelGroups, channel_groups
from ._channels.pruning import Pruned, Pruning
from ._channels.select import Candidates, Choice, Scope
from ._core.drift_budget import CHANNELS_WITH_DATA, WITHOUT_DATA, sqnr_of
from ._core.options import AUTO, Auto
from ._core.weights import held_models
from ._dims.solve import Attention
from ._reconstruct.evidence import Evidence, measured_loss

__all__ = ["ChannelGroup", "ChannelGroups", "PruneChannels", "channel_groups"]

SCORED = 128
"""Samples that scores are made from, at most; fitting uses more. Chosen by hand, not measured."""

BUDGETS: dict[str, CostKind] = {"macs": "macs", "params": "params", "size": "bytes"}
"""Cost that each option of a budget limits."""

AIMS = (*BUDGETS, "drift", "min_sqnr")
"""Options that say how much goes, in place of a ratio."""

UNSET_BY_ZERO = (*BUDGETS, "drift", "frequency", "multiple")
"""Options of which 0 means that they are not set, as pipeline text of earlier versions has it."""

CRITERION_OF = {"drift": "drift", "frequency": "stability"}
"""Criterion whose scores an option speaks of."""


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, hidden units and attention heads from every tensor that has them.

    Without options, it removes from each group of channels as many as the outputs can bear, and
    says for each group what went and why no more. `ratio`, `macs`, `params`, `size` or `drift` set
    the amount.

    Effect: lossy. A rule for each operator says which slices of which tensors belong to one
    channel. The pass removes the least important channels with everything that only served them,
    and adapts attributes and constant shapes. It then checks that the result computes what the
    whole model does with those channels switched off; a group that fails this check stays and is
    named. Inputs and outputs of the model keep their shapes. With calibration data, each layer that
    lost inputs is then fitted to what it computed before. Ratios are relative to the widths before
    the first prune-channels.

    ratio=auto with data: the loss of every group at the outputs is measured, and choices that save
    most for a given loss are compared. The one that is made keeps `min_sqnr` on calibration samples
    that it was not fitted to (from 32 samples on), with a margin of two standard errors because
    these are few.

    ratio=auto without data: losses are estimated as shares of the weights, and results are compared
    on synthetic inputs.

    Either way, savings below 2 % are not worth the drift: then, or if nothing can be run, only
    constant channels go. If you set the amount yourself and the result keeps less than 12 dB, it is
    made all the same, with a warning.

    Shapes: every axis of a group of n channels: n -> the allowed width nearest to n - floor(ratio *
    n), the wider one if two are equally near; ratio=auto: n -> any width that `least` and
    `multiple` allow.

    Errors: UsageError if a criterion needs data and there is none, if patterns match nothing, or if
    options contradict each other.

    Stats: `channels` removed, `groups` that lost some, `layers` fitted (counts), `params_before`,
    `params_after`, `macs_before`, `macs_after` (counts, symbolic dims as 1), `error` of the check
    (relative, root mean square; absent if the model could not be run), `predicted_sqnr` and
    `measured_sqnr` of the outputs (dB; absent if unknown or infinite).

    Source: groups: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900), here on index spaces;
    fitting: He et al., Channel Pruning, ICCV 2017 (arXiv:1707.06168); criteria: docs/channels.md
    names the source of each.
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "channels"

    ratio: float | Auto = Option(
        AUTO,
        "Fraction of the channels to remove; auto: from each group as many as the outputs can "
        "bear.",
        low=0.0,
        high=0.99,
    )
    min_sqnr: float | None = Option(
        None,
        "SQNR that the outputs must keep with ratio=auto, of what varies between samples; unset: "
        f"{CHANNELS_WITH_DATA:g} on data, {WITHOUT_DATA:g} on synthetic inputs.",
        low=0.0,
        high=100.0,
        unit="dB",
    )
    scope: Scope = Option(
        "layer",
        "Apply the ratio to each group, to all channels ranked together (global), or to groups of "
        "the same shape ranked together (isomorphic).",
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
        "(geometric-median), the scale of the BatchNormalization after them (bn-scale), their "
        "effect on the layers that read them (activation, variance, drift after refitting), how "
        "often halves of the data agree (stability), gradients (taylor, fisher), or chance "
        "(random). auto: drift with data, else l2.",
    )
    aggregate: Aggregate = Option(
        "mean", "How the scores of a group's several weights are combined into one."
    )
    normalise: Normalise = Option(
        "mean",
        "Statistic that each weight's scores are divided by before they are combined.",
    )
    attention: Attention = Option(
        "heads", "Remove whole heads from attention, or dimensions of every head."
    )
    macs: float | None = Option(
        None,
        "Maximum fraction of the multiply-accumulates to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    params: float | None = Option(
        None,
        "Maximum fraction of the parameters to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    size: float | None = Option(
        None,
        "Maximum fraction of the weights' bytes to leave, instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    drift: float | None = Option(
        None,
        "Remove channels as long as each group's readers lose at most this share of their outputs'"
        " variance (importance=drift), instead of a ratio.",
        low=0.0,
        high=1.0,
    )
    frequency: float | None = Option(
        None,
        "Remove only channels that at least this share of the halves of the data would remove "
        "(importance=stability).",
        low=0.0,
        high=1.0,
    )
    least: int = Option(
        1,
        "Channels that every group keeps; 0 lets whole branches go if the rest works without them.",
        low=0,
        high=1_000_000,
    )
    multiple: int | None = Option(
        None,
        "Widths are multiples of this. Unset: for convolutions, multiples of what the target "
        "computes at once; with ratio=auto, or scope=global and a budget, any width that pays.",
        low=0,
        high=1024,
    )
    include: tuple[str, ...] = Option(
        (),
        "Only groups in which a weight (WEIGHT, or WEIGHT:AXIS) or its node matches a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (),
        "Leave out groups in which a weight (WEIGHT, or WEIGHT:AXIS) or its node matches a "
        "pattern.",
    )
    recover: bool = Option(
        True,
        "With data, fit each layer that lost inputs to what it computes in the whole model.",
    )
    samples: int = Option(
        512, "Maximum number of calibration samples to use.", low=1, high=10_000_000
    )
    damp: float = Option(
        1e-3,
        "Damping of the fit: share of the inputs' mean square that is added to it.",
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
        # each of them says how much goes
        aims = [name for name in AIMS if getattr(self, name) is not None]
        if self.ratio != AUTO and self.min_sqnr is not None:
            aims.insert(0, "ratio")
        if len(aims) > 1:
            raise UsageError(
                f"prune-channels.{aims[1]}",
                f"{' and '.join(aims)} are set",
                "leave one of them",
            )
        if self._is_automatic and self.scope != "layer":
            raise UsageError(
                "prune-channels.scope",
                "ratio is auto: what the outputs bear decides over all groups at once",
                "add ratio=0.5, or leave scope out",
            )
        for option, criterion in CRITERION_OF.items():
            if getattr(self, option) is not None and self.importance != criterion:
                raise UsageError(
                    f"prune-channels.{option}",
                    f"importance is {self.importance}",
                    f"add importance={criterion}",
                )

    @classmethod
    def has_parts(cls) -> bool:
        """False: `exclude` is of groups of channels, and the pass runs its results itself."""
        return False

    def milder(self) -> PruneChannels | None:
        """The pass without an amount of its own: only what the outputs bear goes."""
        if self._is_automatic:
            return None
        changes: dict[str, Any] = dict.fromkeys(AIMS)
        changes |= {"ratio": AUTO, "scope": "layer"}
        return replace(self, **changes)

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        keep_batchnorm = self.importance == "bn-scale"
        pruning = Pruning(model, context, self.attention, keep_batchnorm=keep_batchnorm)
        pruning.limit_to(self.include, self.exclude)
        pruning.declined += held_models(model)
        if not pruning.groups or pruning.repeated(str(self)):
            return PassOutcome(declined=pruning.declined)
        candidates = self._candidates(pruning, context)
        chosen: list[Chosen] = []
        if self._is_automatic:
            found = most_bearable(pruning, candidates, self._terms(context), context)
            attempt = found.attempt
            chosen = found.chosen
            pruning.declined += found.declined
        else:
            attempt = self._as_asked(pruning, candidates, context)
        if attempt is None:
            return PassOutcome(declined=pruning.declined, chosen=chosen)
        pruning.finish(model, attempt.pruned)
        pruning.record(model, str(self))
        return PassOutcome(
            changed=sum(attempt.choice),
            stats=_stats(pruning, candidates, attempt),
            declined=pruning.declined,
            chosen=chosen,
        )

    @property
    def _is_automatic(self) -> bool:
        """True where the outputs decide how much goes."""
        aims = [getattr(self, name) for name in (*BUDGETS, "drift")]
        return self.ratio == AUTO and all(aim is None for aim in aims)

    def _candidates(self, pruning: Pruning, context: Context) -> Candidates:
        rule = self._rule(context)
        multiple = self.multiple
        if multiple is None and (self._is_automatic or rule.weighs_losses(context)):
            # losses and savings decide which widths pay
            multiple = 1
        scores = self._scores(rule.criterion, pruning, context)
        candidates = pruning.candidates(scores, multiple, self.least)
        if self._is_automatic and self.frequency is not None:
            return surely_superfluous(candidates, self.frequency)
        return candidates

    def _terms(self, context: Context) -> Terms:
        return Terms(
            min_sqnr=self.min_sqnr,
            samples=self.samples if self.recover else 0,
            damp=self.damp,
            counts_up=self._criterion(context) == "drift",
        )

    def _as_asked(
        self, pruning: Pruning, candidates: Candidates, context: Context
    ) -> Attempt | None:
        """Make what a ratio or a budget asks for, and warn where that breaks the model."""
        rule = self._rule(context)
        samples = self.samples if self.recover else 0

        def build(choice: Choice) -> Pruned:
            removed = candidates.removed(choice)
            return pruning.built(removed, samples, self.damp)

        made = made_as_asked(rule, pruning, candidates, context, build)
        if made is None:
            return None
        choice, pruned, error = made
        judging = Evidence.of(context).judging
        loss = measured_loss(pruning.whole, pruned.model, judging)
        return Attempt(
            choice,
            pruned,
            error,
            math.nan,
            loss,
        )

    @property
    def _ratio(self) -> float:
        """The ratio; a half for what wants one where the outputs decide."""
        return 0.5 if self.ratio == AUTO else float(self.ratio)

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
            ratio=self._ratio,
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
            ratio=self._ratio,
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


def _stats(
    pruning: Pruning, candidates: Candidates, attempt: Attempt
) -> dict[str, Stat]:
    """Figures of a result, as the pass's docstring names them."""
    choice = attempt.choice
    before = pruning.before
    after = pruning.cost(choice, candidates.orders())
    groups = [count for count in choice if count > 0]
    stats: dict[str, Stat] = {
        "channels": sum(choice),
        "groups": len(groups),
        "layers": attempt.pruned.fitted,
        "params_before": before.params,
        "params_after": after.params,
        "macs_before": before.macs,
        "macs_after": after.macs,
    }
    if attempt.error is not None:
        stats["error"] = attempt.error
    for name, loss in (("predicted", attempt.predicted), ("measured", attempt.loss)):
        sqnr = sqnr_of(loss)
        if math.isfinite(sqnr):
            stats[f"{name}_sqnr"] = sqnr
    return stats
