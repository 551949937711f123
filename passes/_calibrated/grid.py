"""The grid of `quant` for weights in memory: codes -L..L times one scale a channel.

Where kernels may saturate, pairs of codes stay within the limit of `_core/saturation.py` too.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.linear import LinearLayer
from .._core.saturation import channel_factors, excess, keep_within
from .._core.targets import TARGETS
from .._quant.grids import Grid, held_tops
from .._quant.residual_input import reads_an_image
from .._quant.weights import channel_absmax
from .layers import Codes, PerChannel, Rows

RATIOS = np.linspace(1.0, 0.4, 25)
"""Fractions of max|w| tried as the range of a channel, the widest first: chosen by hand; not
measured.
"""

TINY = 1e-30
"""Channels whose weights are all smaller become zeros: no scale of `quant` is smaller."""

LESS = 1 - 1e-9
"""Fraction of the least error below which another range counts as better: more is float noise."""

GridOf = Callable[[LinearLayer], Grid]
"""The grid on which `quant` will store a layer's weight."""


@dataclass(frozen=True)
class TargetGrids:
    """The grids that `quant` uses for weights of so many bits on a target."""

    bits: int
    target: str

    def __call__(self, layer: LinearLayer) -> Grid:
        rules = TARGETS[self.target].quant
        # quant gives an image to its layer in two terms, whose products cannot saturate
        if not rules.limits_pairs or reads_an_image(layer.node, layer.shape, rules):
            return grid_of_bits(self.bits)
        return grid_of_bits(self.bits, layer)


def grid_of_bits(bits: int, limited: LinearLayer | None = None) -> Grid:
    """Return the grid of so many bits, within the pair limit of a layer where one is given."""
    levels = 2 ** (bits - 1) - 1
    if limited is None:
        return Grid(levels)
    return Grid(levels, limited.pairs)


def full_scales(rows: Rows, levels: int) -> PerChannel:
    """max|w| / L of each channel; 1 / L for a channel of zeros: (M, K) -> (M,)."""
    highest = np.abs(rows).max(axis=1)
    # any scale stores zeros
    has_weights = highest > TINY
    usable = np.where(has_weights, highest, 1.0)
    return usable / levels


def best_scales(
    rows: Rows,
    grid: Grid,
    importance: NDArray[np.float64] | None = None,
) -> PerChannel:
    """Scales that `quant` would take, each weight's error weighed by its importance if known.

    Shapes: rows (channels, width); importance (channels or 1, width) -> (channels,).
    """
    scales = full_scales(rows, grid.levels)
    if grid.limited is None:
        return scales
    each = 1.0 if importance is None else importance
    # zeros lie on every grid: a larger scale costs them nothing
    rounded = np.where(rows != 0, each, 0.0)
    exact = rows / scales[:, None]
    spread = excess(exact, grid.limited, importance)
    total = rounded.sum(axis=1)
    return scales * channel_factors(spread, total)


def is_on_grid(rows: Rows, grid: Grid) -> bool:
    """Return whether `quant` would leave these weights as they are."""
    # `quant` sees the weight as it is stored
    tensor = ir.Tensor(rows.astype(np.float32))
    layout = Layout(1, *rows.shape)
    highest = channel_absmax(tensor, layout)
    tops = held_tops(
        tensor,
        layout,
        highest,
        grid,
    )
    unchanged = (tops > 0) | (highest == 0)
    return bool(unchanged.all())


def nearest(
    rows: Rows,
    scales: PerChannel,
    grid: Grid,
    importance: NDArray[np.float64] | None = None,
) -> Codes:
    """round(w / scale), clipped to the grid, pairs cut where they are beyond the limit."""
    exact = rows / scales[:, None]
    rounded = np.rint(exact)
    largest = grid.levels
    codes = np.clip(rounded, -largest, largest)
    if grid.limited is not None:
        keep_within(
            codes,
            exact,
            grid.limited,
            importance,
        )
    return codes.astype(np.int8)


def values_of(codes: Codes, scales: PerChannel) -> Rows:
    """Weights that codes stand for: (channels, width), (channels,) -> (channels, width)."""
    return codes * scales[:, None]


def clipped_scales(
    rows: Rows,
    grid: Grid,
    importance: NDArray[np.float64] | None = None,
) -> PerChannel:
    """Scales with the least sum of importance * (w - Q(w))^2, of ranges in RATIOS of max|w|.

    Shapes: rows (channels, width); importance (channels or 1, width) of each weight -> (channels,).
    """
    full = best_scales(rows, grid, importance)
    weights = importance
    if weights is None:
        weights = np.ones((1, rows.shape[1]))
    best = full.copy()
    least = np.full(len(rows), np.inf)
    for ratio in RATIOS:
        scales = full * ratio
        codes = nearest(
            rows,
            scales,
            grid,
            importance,
        )
        difference = rows - values_of(codes, scales)
        weighed = weights * difference**2
        error = weighed.sum(axis=1)
        # of ranges that lose the same the widest stays: it is tried first
        better = error < least * LESS
        best[better] = scales[better]
        least[better] = error[better]
    return best
