"""Counts of the weight pairs that may saturate, in a model that anyone quantized."""

from __future__ import annotations

import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.graph import all_nodes, label
from .._core.integer_layers import IntegerLayer, integer_layers
from .._core.saturation import offending
from .grids import rows_of


def offending_pairs(model: ir.Model) -> dict[str, int]:
    """Pairs that may saturate on x86 CPUs without VNNI, by layer; layers without any are left
    out.
    """
    counts: dict[str, int] = {}
    for layer in integer_layers(all_nodes(model)):
        if count := offending_in(layer):
            name = label(layer.node)
            counts[name] = counts.get(name, 0) + count
    return counts


def weight_pairs(model: ir.Model) -> int:
    """How many pairs of 8-bit weights the model's integer layers have."""
    layers = integer_layers(all_nodes(model))
    return sum(layer.pairs.count * layer.shape[layer.channel_axis] for layer in layers)


def offending_in(layer: IntegerLayer) -> int:
    """How many pairs of a layer saturate for some input."""
    pairs = layer.pairs
    if not pairs.count:
        return 0
    parts = rows_of(layer.tensor, Layout.of(layer.shape, layer.channel_axis), pairs)
    return sum(
        int(offending(rows, pairs.of_part(rows.shape[1])).sum()) for rows, _ in parts
    )
