"""Least-squares fit of a pruned model's weights, layer by layer, to the original's outputs."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Sequence

import onnx_ir as ir

from .._base import Context, Stat
from .._calibrated.layers import fittable_layers
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._reconstruct.layers import Moments, fit_layers
from .._reconstruct.masked import fit_masked


def fit_pruned(
    original: ir.Model,
    pruned: ir.Model,
    names: Collection[str],
    free_mask: bool,
    context: Context,
    samples: int,
) -> dict[str, Stat]:
    """Fit the layers of `pruned` whose weights are named, and those behind them, in place.

    Each layer sees the inputs that the pruned model really gives it. Zeros stay as many as they
    are; with `free_mask` other weights may be zero. Stats: `fitted` (count of layers), and how many
    took each criterion.
    """
    layers, _ = fittable_layers(original)
    dense = {layer.weight.name: layer for layer in layers}
    criteria = Counter[str]()

    def changed(layer: LinearLayer) -> bool:
        return layer.weight.name in names

    def fit(layer: LinearLayer, halves: Sequence[Moments], edit: Edit) -> None:
        found = fit_masked(dense[layer.weight.name], layer, halves, free_mask, edit)
        if found is not None and changed(layer):
            criteria[f"by_{found.criterion.replace(', ', '_').replace(' ', '_')}"] += 1

    fitted, _ = fit_layers(original, pruned, {}, context, samples, changed, fit)
    return {"fitted": fitted, **criteria}
