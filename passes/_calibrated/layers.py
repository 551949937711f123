"""The linear layers that passes change by what they multiply, and the shapes of their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.bodies import bodies_of, repeated_bodies
from .._core.chains import CHAIN_OPS, made_of_constants
from .._core.graph import all_nodes, label
from .._core.linear import LinearLayer, linear_layer, multiplies_by_weight
from .._core.ops import is_standard
from .._core.outcome import Declined
from .._core.weights import other_weights

Rows = NDArray[np.float64]
"""A weight as (channels, width), one row for each output channel."""

PerChannel = NDArray[np.float64]
"""One number for each channel, (channels,)."""

Codes = NDArray[np.int8]
"""Whole numbers in the place of `Rows`."""

Grams = NDArray[np.float64]
"""Means of z z^T with z = [x, 1], (groups, K + 1, K + 1), x the K inputs of one channel."""

LARGEST_WIDTH = 8192
"""Inputs of one output channel up to which a Gram matrix is affordable: width^2 in float64 are
512 MiB then.
"""


def fittable_layers(
    model: ir.Model, *, tied: bool = False, branches: bool = False
) -> tuple[list[LinearLayer], list[Declined]]:
    """Linear layers whose weight may change by what they multiply, in order.

    Also the reason for every other node that multiplies by a constant, and for every other matrix
    of floats. `tied`: also layers of one weight that nothing else reads; whoever sets it sets it
    for all. `branches`: also layers in bodies of If, for callers that name what these read as
    `RunNames` does; what those of Loop and Scan read has another axis for the rounds.
    """
    layers: list[LinearLayer] = []
    declined: list[Declined] = []
    made = made_of_constants(model)
    graphs = {model.graph}
    if branches:
        graphs |= bodies_of(model).keys() - repeated_bodies(model)
    for node in all_nodes(model):
        if not multiplies_by_weight(node, made):
            continue
        found = linear_layer(node, made)
        if isinstance(found, str):
            declined.append(Declined(label(node), found))
            continue
        reason = found.not_fittable()
        if tied and _multiplies_only(found.weight):
            reason = found.spelling or found.view.not_a_product()
        if node.graph not in graphs:
            held = "a Loop or Scan" if branches else "an If, Loop or Scan"
            reason = f"it lies in the body of {held}, where calibration does not reach"
        if reason is None:
            layers.append(found)
        else:
            declined.append(Declined(found.name, reason))
    declined += other_weights(model)
    return layers, declined


def _multiplies_only(weight: ir.Value) -> bool:
    """Return whether all that reads a weight are linear layers, and read it alike."""
    kinds = set()
    waiting = [weight]
    while waiting:
        value = waiting.pop()
        if value.is_graph_output() or value.dtype != ir.DataType.FLOAT:
            return False
        for use in value.uses():
            node = use.node
            if is_standard(node, *CHAIN_OPS):
                waiting.append(node.outputs[0])
                continue
            layer = linear_layer(node)
            if use.idx != 1 or isinstance(layer, str):
                return False
            kinds.add((node.op_type, layer.channel_axis, layer.groups))
    return len(kinds) == 1
