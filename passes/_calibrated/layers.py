"""The linear layers that passes change by what they multiply, and the shapes of their weights."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.graph import label
from .._core.linear import LINEAR_OPS, LinearLayer, linear_layer
from .._core.ops import is_standard
from .._core.outcome import Declined

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
    model: ir.Model,
) -> tuple[list[LinearLayer], list[Declined]]:
    """Linear layers of the main graph whose weight may change by what they multiply, in order.

    Also the reason for every other layer with a constant at hand. Layers within subgraphs are left
    out: the context cannot observe what they read.
    """
    layers: list[LinearLayer] = []
    declined: list[Declined] = []
    for node in model.graph:
        if not is_standard(node, *LINEAR_OPS) or not _reads_constant(node):
            continue
        found = linear_layer(node)
        if isinstance(found, str):
            declined.append(Declined(label(node), found))
            continue
        reason = found.not_fittable()
        if reason is None:
            layers.append(found)
        else:
            declined.append(Declined(found.name, reason))
    return layers, declined


def _reads_constant(node: ir.Node) -> bool:
    """Return whether a factor of the product is stored; an attention's MatMul has none."""
    factors = [value for value in node.inputs[:2] if value is not None]
    return any(value.const_value is not None for value in factors)
