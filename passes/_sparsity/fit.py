"""Least-squares fit of a pruned model's weights, layer by layer, to the original's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import onnx_ir as ir

from .._base import Context, Declined, Stat
from .._calibrated.layers import LARGEST_WIDTH, fittable_layers
from .._core.edit import Edit
from .._core.graph import initializers
from .._core.linear import LinearLayer
from .._reconstruct.layers import Moments, fit_layers
from .._reconstruct.masked import fit_masked


def fit_pruned(
    original: ir.Model,
    pruned: ir.Model,
    weights: Collection[str],
    free_mask: bool,
    context: Context,
    samples: int,
) -> tuple[dict[str, Stat], list[Declined]]:
    """Fit the layers of `pruned` whose weights are named, in place; no other layer changes.

    Each layer sees the inputs that the pruned model really gives it. Zeros stay as many as they
    are; with `free_mask` other weights may be zero. Returns the stats `fitted` (count of layers)
    and `by_...` (how many took each criterion), and the reason for each weight that stays as it
    was pruned.
    """
    dense = {layer.weight.name: layer for layer in fittable_layers(original)[0]}
    reasons = _usual_reasons(pruned, weights)
    chosen: list[LinearLayer] = []
    for layer in fittable_layers(pruned)[0]:
        name = layer.weight.name or ""
        if name not in reasons:
            continue
        if layer.width > LARGEST_WIDTH:
            reasons[name] = f"its {layer.width} inputs are too many to fit"
            continue
        reasons[name] = "the calibration data never reaches it"
        chosen.append(layer)
    criteria = Counter[str]()

    def fit(layer: LinearLayer, halves: Sequence[Moments], edit: Edit) -> bool:
        name = layer.weight.name or ""
        criterion = fit_masked(dense[name], layer, halves, free_mask, edit)
        if criterion is None:
            reasons[name] = "fitting did not help on data kept back from it"
            return False
        del reasons[name]
        criteria[f"by_{criterion.replace(' ', '_')}"] += 1
        return True

    fitted, _ = fit_layers(original, pruned, {}, context, samples, chosen, fit)
    left = [
        Declined(name, f"pruned, not fitted: {why}") for name, why in reasons.items()
    ]
    return {"fitted": fitted, **criteria}, left


def _usual_reasons(pruned: ir.Model, weights: Collection[str]) -> dict[str, str]:
    """Reasons by weight for not being fitted, unless a layer is found for it."""
    reasons = dict.fromkeys(
        weights, "it is not the weight of exactly one Conv, Gemm or MatMul"
    )
    for value in initializers(pruned):
        name = value.name or ""
        if name in reasons and value.dtype != ir.DataType.FLOAT:
            reasons[name] = (
                f"it is {value.dtype}, not FLOAT: export the model in float32"
            )
    return reasons
