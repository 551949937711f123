"""Importance from gradients of the loss: first order (Taylor), second order (Fisher's diagonal)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .... import UsageError
from ..._base import Context, Differentiates, Gradient
from ..._core.ops import FLOATS
from ..._dims.groups import Group
from ..._dims.relations import Axis
from ..._dims.solve import Solution
from .scores import Found, ScoreOptions, Scores, by_channel, combined, matrices


def taylor(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """|Sum of g w| over a channel's slices: the change of the loss to first order.

    Source: Molchanov et al., Importance Estimation for Neural Network Pruning, CVPR 2019
    (arXiv:1906.10771), eq. 8 before squaring.
    """
    gradients = _gradients(
        groups,
        model,
        context,
        options,
    )
    found: Found = []
    for group in groups:
        found.append(
            _combined(
                group,
                solution,
                gradients,
                options,
                square=False,
            )
        )
    return found


def fisher(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Sum of w^2 E[g^2] / 2 over a channel's slices: the change to second order at a minimum.

    Source: LeCun et al., Optimal Brain Damage, NeurIPS 1989, eq. 5, its diagonal being that of the
    empirical Fisher matrix: Theis et al., Faster gaze prediction with dense networks and Fisher
    pruning, 2018 (arXiv:1801.05787).
    """
    gradients = _gradients(
        groups,
        model,
        context,
        options,
    )
    found: Found = []
    for group in groups:
        found.append(
            _combined(
                group,
                solution,
                gradients,
                options,
                square=True,
            )
        )
    return found


def _gradients(
    groups: Sequence[Group], model: ir.Model, context: Context, options: ScoreOptions
) -> Mapping[str, Gradient]:
    if not isinstance(context, Differentiates):
        raise UsageError(
            "importance",
            "this run cannot differentiate the model",
            "choose a criterion without gradients: drift, variance, activation or l2",
        )
    names: dict[str, None] = {}
    for group in groups:
        for value, _ in matrices(group):
            # gradients exist by float weights only; a shared one is asked for once
            if value.name and value.dtype in FLOATS:
                names[value.name] = None
    return context.gradients(model, list(names), options.samples)


def _combined(
    group: Group,
    solution: Solution,
    gradients: Mapping[str, Gradient],
    options: ScoreOptions,
    *,
    square: bool,
) -> Scores | str:
    parts = []
    for axis in matrices(group):
        gradient = gradients.get(axis[0].name or "")
        if gradient is not None:
            terms = _per_slot(axis, gradient, square)
            change = by_channel(group, solution, axis, terms)
            parts.append(np.abs(change))
    if not parts:
        return "the loss has no gradient by its weights"
    return combined(parts, options)


def _per_slot(axis: Axis, gradient: Gradient, square: bool) -> Scores:
    """Change of the loss by the elements of each slot of a weight's axis, summed."""
    value, index = axis
    assert value.const_value is not None
    weight = value.const_value.numpy().astype(np.float64)
    terms = weight * gradient.mean
    if square:
        terms = np.square(weight) * gradient.square / 2
    slots = np.moveaxis(terms, index, 0).reshape(terms.shape[index], -1)
    sums: Scores = slots.sum(axis=1)
    return sums
