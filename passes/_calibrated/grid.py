"""The grid of `quant` for weights in memory: codes -L..L times one scale a channel, within the
limit of pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.saturation import channel_factors, excess, keep_within
from .._core.targets import TARGETS
from .._quant.grids import Grid, held_tops
from .._quant.residual_input import reads_an_image
from .._quant.weights import channel_absmax
from .layers import Codes, Linear, Rows

RATIOS = np.linspace(1.0, 0.4, 25)
"""Shares of max|w| tried as the range of a channel."""

TINY = 1e-30
"""Channels whose weights are all smaller become zeros: no scale of `quant` is smaller."""

GridOf = Callable[[Linear], Grid]
"""The grid on which `quant` will store a layer's weight."""


@dataclass(frozen=True)
class TargetGrids:
    """The grids that `quant` uses for weights of so many bits on a target."""

    bits: int
    target: str

    def __call__(self, layer: Linear) -> Grid:
        rules = TARGETS[self.target].quant
        limited = rules.limits_pairs and not reads_an_image(
            layer.node, layer.shape, rules
        )
        return grid_of_bits(self.bits, layer if limited else None)


def grid_of_bits(bits: int, limited: Linear | None = None) -> Grid:
    """The grid of so many bits; within the pair limit of a layer where one is given."""
    return Grid((1 << (bits - 1)) - 1, limited.pairs if limited is not None else None)


def full_scales(rows: Rows, levels: int) -> Rows:
    """max|w| / L of each channel; 1 / L for a channel of zeros: (M, K) -> (M,)."""
    highest = np.abs(rows).max(axis=1)
    return np.where(highest > TINY, highest, 1.0) / levels


def best_scales(
    rows: Rows, grid: Grid, importance: NDArray[np.float64] | None = None
) -> Rows:
    """The scales that `quant` would take, each weight's error weighed by its importance where that
    is known.

    Shapes: rows (channels, width); importance (channels or 1, width) -> (channels,).
    """
    scales = full_scales(rows, grid.levels)
    if grid.limited is None:
        return scales
    rounded = np.where(
        rows != 0, 1.0 if importance is None else importance, 0.0
    )  # zeros lose nothing
    spread = excess(rows / scales[:, None], grid.limited, importance)
    return scales * channel_factors(spread, rounded.sum(axis=1))


def is_on_grid(rows: Rows, grid: Grid) -> bool:
    """Whether `quant` would not change these weights."""
    tensor, layout = ir.Tensor(rows.astype(np.float32)), Layout(1, *rows.shape)
    highest = channel_absmax(tensor, layout)
    return bool(((held_tops(tensor, layout, highest, grid) > 0) | (highest == 0)).all())


def nearest(
    rows: Rows, scales: Rows, grid: Grid, importance: NDArray[np.float64] | None = None
) -> Codes:
    """round(w / scale), clipped to the grid, pairs cut where they are beyond the limit."""
    exact = rows / scales[:, None]
    codes = np.clip(np.rint(exact), -grid.levels, grid.levels)
    if grid.limited is not None:
        keep_within(codes, exact, grid.limited, importance)
    return codes.astype(np.int8)


def clipped_scales(
    rows: Rows, grid: Grid, importance: NDArray[np.float64] | None = None
) -> Rows:
    """The scale of each channel with the least sum of importance * (w - Q(w))^2, ranges in RATIOS
    of max|w|.

    Shapes: rows (channels, width); importance (channels or 1, width) of each weight -> (channels,).
    """
    full = best_scales(rows, grid, importance)
    weights = np.ones((1, rows.shape[1])) if importance is None else importance
    best, least = full.copy(), np.full(len(rows), np.inf)
    for ratio in RATIOS:
        scales = full * ratio
        difference = rows - nearest(rows, scales, grid, importance) * scales[:, None]
        error = (weights * difference**2).sum(axis=1)
        better = error < least * (1 - 1e-9)
        best[better], least[better] = scales[better], error[better]
    return best
