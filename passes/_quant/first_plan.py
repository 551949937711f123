"""Plans for a model as it came, or simplified where that uncovers layers."""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .._core.context import Context
from .._core.rewrites import tried
from .._simplify.plain_weights import hides_weights, plain_weights
from ..simplify import Simplify
from .other_layers import OtherPlan, OtherRequest, plan_others
from .plan import PlanRequest, QuantPlan, plan


@dataclass(frozen=True)
class FirstPlan:
    """A form of a model that computes the same, and its plans.

    `model`: the one that was given, or a copy that shares its tensors.
    """

    model: ir.Model
    planned: QuantPlan
    others: OtherPlan

    @property
    def is_empty(self) -> bool:
        """True where nothing may change."""
        return not self.planned.graphs and self.others.is_empty

    @property
    def size(self) -> int:
        """Count of layers and tables that are to be stored in fewer bits."""
        layers = sum(len(graph_plan.layers) for graph_plan in self.planned.graphs)
        return layers + self.others.size


def first_plan(
    model: ir.Model, request: PlanRequest, others: OtherRequest, context: Context
) -> FirstPlan:
    """The plans for a model; nothing of it changes."""
    first = _of(plain_weights(model), request, others)
    is_hidden = hides_weights(first.model)
    # with data layers may stand behind other nodes, too
    is_bare = first.is_empty and context.has_data()
    if not is_hidden and not is_bare:
        return first
    simplified = model.clone()
    with tried() as keep:
        Simplify().run_within(simplified, context)
    uncovered = _of(simplified, request, others)
    # weights that an earlier pass stored small stay so, but for calibrated integers
    is_wanted = is_hidden or uncovered.planned.needs_ranges
    if not is_wanted or uncovered.size <= first.size:
        return first
    keep()
    return uncovered


def _of(model: ir.Model, request: PlanRequest, others: OtherRequest) -> FirstPlan:
    planned = plan(model, request)
    return FirstPlan(model, planned, plan_others(model, others))
