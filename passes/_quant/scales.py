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
"""Scales tried in one pass over the weight (count), a geometric ladder from low to high; chosen by
hand, tests hold the result to brute force.
"""

ROUNDS = 3
"""Passes over the weight (count): each narrows the ladder to the two neighbours of the best; chosen
by hand, as above.
"""

ON_GRID = 1e-9
"""Share of a channel's power (0-1) that the grid of `high` may miss and still hold its weights."""

TINY = 1e-300
"""Least divisor, so that an empty code gives 0 and no NaN."""

Elementwise = Callable[[NDArray[Any], slice], NDArray[Any]]
"""((outer, channels, inner) view, its channels) -> the same shape."""

WeightCodes = Callable[[NDArray[Any]], NDArray[Any]]
"""w / scale -> codes, elementwise."""


def channel_sums(
    tensor: ir.TensorProtocol, layout: Layout, function: Elementwise
) -> NDArray[np.float64]:
    """The sum of function(w) over each output channel: (channels,) float64."""
    total = np.zeros(layout.channels, np.float64)
    for start, block in blocks(tensor, layout.granule):
        view, channels = layout.view(block, start)
        values = function(view, channels)
        sums = values.sum(axis=(0, 2), dtype=np.float64)
        total[channels] += sums
    return total


def least_squares_scales(
    tensor: ir.TensorProtocol,
    layout: Layout,
    low: NDArray[Any],
    high: NDArray[Any],
    codes: WeightCodes,
) -> Floats:
    """The scale s within [low, high] that minimizes sum (w - s * codes(w / s))**2, by channel.

    Each candidate is judged with the best factor for its codes, <w, c> / <c, c>; the winner's is
    returned. A channel whose weights lie on the grid of `high` already keeps `high` exactly.

    Shapes: low, high (channels,) -> (channels,) float32. Source: follows from the definition
    (alternating least squares, started from every rung).
    """
    if not np.isfinite(high).all():
        # no scale fits NaN or infinity: for the caller to see
        return high.astype(np.float32)
    low = low.astype(np.float64)
    low = np.maximum(low, 1e-30)
    high = high.astype(np.float64)
    high = np.maximum(high, low)
    power = channel_sums(tensor, layout, _squares)
    channels = np.arange(layout.channels)
    best = high.copy()
    least = np.full(layout.channels, np.inf)
    rungs = np.geomspace(high, low, CANDIDATES)
    for _ in range(ROUNDS):
        dot, norm = _products(
            tensor,
            layout,
            rungs,
            codes,
        )
        # with the best factor for codes c, |w|^2 - <w, c>^2 / <c, c> of the weight remains
        divisor = np.maximum(norm, TINY)
        error = power - dot**2 / divisor
        at = error.argmin(axis=0)
        best_rung = (at, channels)
        lowest = error[best_rung]
        fitted = dot[best_rung] / divisor[best_rung]
        # the first rung is `high` itself, in the first round only
        is_high = rungs[0] == high
        fits = error[0] <= ON_GRID * power
        exact = fits & is_high
        winner = np.where(exact, high, fitted)
        better = (lowest < least) & (fitted > 0)
        best = np.where(better, winner, best)
        least = np.minimum(least, lowest)
        # -inf: no later round can beat a grid that fits exactly
        least = np.where(exact, -np.inf, least)
        rungs = _between_neighbours(rungs, at)
    return best.astype(np.float32)


def magnitudes(view: NDArray[Any], channels: slice) -> NDArray[Any]:
    """|w|, for `channel_sums`."""
    return np.asarray(np.abs(view))


def _squares(view: NDArray[Any], channels: slice) -> NDArray[np.float64]:
    squares = np.square(view, dtype=np.float64)
    return np.asarray(squares)


def _between_neighbours(
    rungs: NDArray[np.float64], at: NDArray[np.intp]
) -> NDArray[np.float64]:
    """A finer ladder between the neighbours of each channel's best rung: (rungs, channels)."""
    channels = np.arange(rungs.shape[1])
    last = CANDIDATES - 1
    before = np.maximum(at - 1, 0)
    after = np.minimum(at + 1, last)
    above = rungs[before, channels]
    below = rungs[after, channels]
    finer = np.geomspace(
        above,
        below,
        CANDIDATES,
    )
    return np.asarray(finer, np.float64)


def _products(
    tensor: ir.TensorProtocol,
    layout: Layout,
    rungs: NDArray[np.float64],
    codes: WeightCodes,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """<w, c> and <c, c> of each channel for each rung's codes c: two (rungs, channels) arrays."""
    dot = np.zeros(rungs.shape)
    norm = np.zeros(rungs.shape)
    inverse = (1.0 / rungs).astype(np.float32)
    # a block is read once for all rungs: it may come from a file, or from a chain of kernels
    for start, block in blocks(tensor, layout.granule):
        view, channels = layout.view(block, start)
        for rung in range(len(rungs)):
            place = (rung, channels)
            factors = inverse[place][:, None]
            scaled = view * factors
            code = codes(scaled)
            dot[place] += _row_dots(view, code)
            norm[place] += _row_dots(code, code)
    return dot, norm


def _row_dots(first: NDArray[Any], second: NDArray[Any]) -> NDArray[np.float64]:
    """Products of two (outer, channels, inner) views summed over each channel, in float64."""
    dots = np.einsum(
        "ocj,ocj->c",
        first,
        second,
        dtype=np.float64,
    )
    return np.asarray(dots, np.float64)
