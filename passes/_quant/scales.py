"""The scale of least squared error of each output channel, without sorting: a few streaming passes
over a weight.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import blocks
from .weights import Floats

CANDIDATES = 12
"""Scales tried in one pass over the weight, a geometric ladder from low to high."""
ROUNDS = 3
"""Passes: each narrows the ladder to the two neighbours of the best."""


def channel_sums(
    tensor: ir.TensorProtocol, layout: Layout, function: Callable[..., NDArray[Any]]
) -> NDArray[np.float64]:
    """The sum of function(w) over each output channel: (channels,) float64.

    `function` takes the (outer, channels, inner) view, and its channels where it is no numpy ufunc.
    """
    total = np.zeros(layout.channels, np.float64)
    for start, block in blocks(tensor, layout.granule):
        view, channels = layout.view(block, start)
        values = (
            function(view)
            if isinstance(function, np.ufunc)
            else function(view, channels)
        )
        total[channels] += values.sum(axis=(0, 2), dtype=np.float64)
    return total


def least_squares_scales(
    tensor: ir.TensorProtocol,
    layout: Layout,
    low: NDArray[Any],
    high: NDArray[Any],
    codes: Callable[[NDArray[Any]], NDArray[Any]],
) -> Floats:
    """The scale s within [low, high] that minimizes sum (w - s * codes(w / s))**2, channel by
    channel.

    Each candidate is judged with the best factor for its codes, <w, c> / <c, c>; the winner's is
    returned. A channel whose weights lie on the grid of `high` already keeps `high` exactly.

    Shapes: low, high (channels,) -> (channels,) float32. Source: follows from the definition
    (alternating least squares, started from every rung).
    """
    if not np.isfinite(high).all():
        return high.astype(
            np.float32
        )  # no scale fits NaN or infinity: for the caller to see
    low = np.maximum(low.astype(np.float64), 1e-30)
    high = np.maximum(high.astype(np.float64), low)
    power = channel_sums(
        tensor, layout, lambda view, at: np.square(view, dtype=np.float64)
    )
    best, least = high.copy(), np.full(layout.channels, np.inf)
    rungs = np.geomspace(high, low, CANDIDATES)
    for _ in range(ROUNDS):
        dot, norm = _products(tensor, layout, rungs, codes)
        error = power - dot**2 / np.maximum(norm, 1e-300)
        at = error.argmin(axis=0)
        channels = np.arange(layout.channels)
        better = error[at, channels] < least
        fitted = dot[at, channels] / np.maximum(norm[at, channels], 1e-300)
        exact = (error[0] <= 1e-9 * power) & (rungs[0] == high)
        best = np.where(better & (fitted > 0), np.where(exact, high, fitted), best)
        least = np.where(exact, -np.inf, np.minimum(least, error[at, channels]))
        above = rungs[np.maximum(at - 1, 0), channels]
        below = rungs[np.minimum(at + 1, CANDIDATES - 1), channels]
        rungs = np.geomspace(above, below, CANDIDATES)
    return best.astype(np.float32)


def _products(
    tensor: ir.TensorProtocol,
    layout: Layout,
    rungs: NDArray[np.float64],
    codes: Callable[[NDArray[Any]], NDArray[Any]],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """<w, c> and <c, c> of each channel for each rung's codes c: two (rungs, channels) arrays."""
    dot, norm = np.zeros(rungs.shape), np.zeros(rungs.shape)
    inverse = (1.0 / rungs).astype(np.float32)
    for start, block in blocks(tensor, layout.granule):
        view, channels = layout.view(block, start)
        for row in range(len(rungs)):
            code = codes(view * inverse[row, channels][:, None])
            dot[row, channels] += np.einsum("ocj,ocj->c", view, code, dtype=np.float64)
            norm[row, channels] += np.einsum("ocj,ocj->c", code, code, dtype=np.float64)
    return dot, norm
