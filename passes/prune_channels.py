"""Structured pruning: whole channels, heads and hidden units taken out of every tensor that has them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._channels.costs import costs_of
from ._channels.gate import judge
from ._channels.importance_weights import magnitude
from ._channels.prepare import prepare, share_again
from ._dims.groups import Group, channel_groups, frozen_weights, kept_slots
from ._dims.remove import remove_slots
from ._dims.rules import relate
from ._dims.solve import Solution, solve
from ._dims.trace import traced
from .remove_identities import RemoveIdentities
from .remove_unused import RemoveUnused


@dataclass(frozen=True)
class PruneChannels(Pass):
    """Remove whole channels, attention heads and hidden units, with everything that depends on them.

    Effect: lossy.

    Shapes: smaller.

    Stats: `channels` removed (count).

    Source: Fang et al., DepGraph, CVPR 2023 (arXiv:2301.12900).
    """

    name: ClassVar[str] = "prune-channels"
    effect: ClassVar[Effect] = "lossy"

    ratio: float = Option(0.5, "Fraction of the channels of each group to remove.", low=0.0, high=0.99)
    attention: Literal["heads", "dims"] = Option("heads", "Take whole heads out of attention, or head dimensions.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        origins = prepare(model, context)
        solution = solve(relate(model, traced(model)), self.attention)
        groups = channel_groups(solution)
        declined = [Declined(f"{v.name}[{i}]", reason) for (v, i), reason in frozen_weights(solution)]
        costs = costs_of(model, solution)
        scores = magnitude(groups, solution, 2)
        channels = [g.channels[np.argsort(s, kind="stable")[: int(self.ratio * len(s))]] for g, s in zip(groups, scores, strict=True)]
        removed = np.concatenate(channels) if channels else np.empty(0, np.intp)
        verdict = judge(model, solution, removed, context)
        if verdict.problem:
            raise RuntimeError(verdict.problem)
        mask = np.zeros(solution.count + 1, bool)
        before = costs.of(mask)
        mask[removed] = True
        after = costs.of(mask)
        if len(removed):
            remove_slots(model, kept_slots(solution, removed), solution.relations.trace)
        share_again(model, origins)
        for step in (RemoveIdentities(), RemoveUnused()):
            step.run(model, context)
        stats = {"channels": len(removed), "groups": len(groups), "params_before": before.params,
                 "params_after": after.params, "macs_before": before.macs, "macs_after": after.macs}
        if verdict.error is not None:
            stats["error"] = verdict.error
        return PassOutcome(len(removed), stats, declined)
