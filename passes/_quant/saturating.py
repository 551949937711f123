"""Counts of the weight pairs that may saturate, in a model that anyone quantized."""

from __future__ import annotations

import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.graph import all_nodes, label
from .._core.integer_layers import IntegerLayer, integer_layers
from .._core.saturation import offending
from .grids import rows_of


def offending_pairs(model: ir.Model) -> dict[str, int]:
    """Pairs that may saturate on x86 CPUs without VNNI, by layer, those without any left out."""
    counts: dict[str, int] = {}
    for layer in integer_layers(all_nodes(model)):
        count = offending_in(layer)
        if count:
            name = label(layer.node)
            # layers of different graphs may have one name
            counts[name] = counts.get(name, 0) + count
    return counts


def weight_pairs(model: ir.Model) -> int:
    """Pairs of 8-bit weights that the model's integer layers have (count)."""
    total = 0
    for layer in integer_layers(all_nodes(model)):
        channels = layer.shape[layer.channel_axis]
        total += layer.pairs.count * channels
    return total


def offending_in(layer: IntegerLayer) -> int:
    """Pairs of a layer that saturate for some input (count)."""
    pairs = layer.pairs
    if not pairs.count:
        return 0
    layout = Layout.of(layer.shape, layer.channel_axis)
    total = 0
    for rows, _ in rows_of(layer.tensor, layout, pairs):
        found = offending(rows, pairs.of_part(rows.shape[1]))
        total += int(found.sum())
    return total
