"""Provenance of quantized layers, kept in memory: the float layer and weight that each comes from.

It is written once, where a layer is made, into the `meta` of IR objects. Clones keep it, files do
not: in a file of few bits it would weigh as much as weights.
"""

from __future__ import annotations

from typing import NamedTuple

import onnx_ir as ir

LAYER = "onnx_opt.float_layer"
"""Key of `Node.meta`: the float layer that a node computes."""

WEIGHT = "onnx_opt.float_weight"
"""Key of `Value.meta`: name of the float initializer that a stored tensor encodes."""


class FloatLayer(NamedTuple):
    """A layer of the float model. `name`: patterns find it by that; `label`: for reports."""

    name: str
    label: str


def set_float_layer(node: ir.Node, layer: FloatLayer) -> None:
    """Note which float layer a node computes."""
    node.meta[LAYER] = layer


def float_layer(node: ir.Node) -> FloatLayer | None:
    """The float layer that a node computes; None for a node that no pass of this run quantized."""
    found = node.meta.get(LAYER)
    if not isinstance(found, FloatLayer):
        return None
    return found


def set_float_weight(stored: ir.Value, name: str) -> None:
    """Note the float initializer that a stored tensor encodes."""
    stored.meta[WEIGHT] = name


def float_weight(stored: ir.Value) -> str | None:
    """Name of the float initializer that a stored tensor encodes; None where nothing is noted."""
    found = stored.meta.get(WEIGHT)
    if not isinstance(found, str):
        return None
    return found
