"""Pruned forms of one model: made, fitted where there is data, and told of."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import onnx_ir as ir

from .._base import Context, Declined, PassOutcome, Stat
from .._core.lazy import set_tensor
from .._core.weights import Weight
from .fit import fit_pruned
from .pools import Criteria, PrunedWeight, prune_weights, stats_of


@dataclass(frozen=True)
class Candidate:
    """A pruned model, with the account of what became of it."""

    model: ir.Model
    pruned: list[PrunedWeight]
    criteria: Criteria
    fitted: dict[str, Stat]
    declined: list[Declined]

    @property
    def zeros(self) -> int:
        """Zeros of all its weights."""
        return sum(each.zeros for each in self.pruned)

    def outcome(self) -> PassOutcome:
        """Account of the pass that made it."""
        changed = [each for each in self.pruned if each.tensor is not None]
        stats = {**stats_of(self.pruned, self.criteria), **self.fitted}
        return PassOutcome(len(changed), stats, list(self.declined))


@dataclass(frozen=True)
class Pruner:
    """Maker of candidates.

    `original`: a copy of the model before the pass. `weights_of`: weights to prune, of any copy of
    it. `fits`: whether what stays is fitted where there is data, on at most `samples` samples.
    """

    original: ir.Model
    weights_of: Callable[[ir.Model], list[Weight]]
    criteria: Criteria
    fits: bool
    samples: int

    def prune(
        self,
        model: ir.Model,
        context: Context,
        counts: Mapping[str, int] | None = None,
    ) -> Candidate:
        """Prune a copy of the original in place; `counts`: zeros of each weight, by name."""
        weights = self.weights_of(model)
        criteria = dataclasses.replace(self.criteria, counts=counts)
        pruned, declined = prune_weights(weights, criteria, context)
        changed = [each for each in pruned if each.tensor is not None]
        for each in changed:
            set_tensor(each.weight.value, each.tensor)
        fitted: dict[str, Stat] = {}
        if self.fits and changed and context.has_data():
            names = [each.weight.name for each in changed]
            fitted, left = fit_pruned(
                self.original,
                model,
                names,
                criteria.frees_places,
                context,
                self.samples,
            )
            declined += left
        return Candidate(
            model,
            pruned,
            criteria,
            fitted,
            declined,
        )
