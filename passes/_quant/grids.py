"""The scale of each channel of an integer weight: grids that it lies on already, and grids that
cannot saturate.

Everything is streamed: a few passes over a weight, a bounded number of figures for each channel.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.saturation import (
    PAIR_LIMIT,
    KernelPairs,
    largest_sums,
    map_rows,
    rows_of,
)
from .survey import limited_scales, survey
from .weights import Floats

ON_GRID = 1e-4
"""Distance (steps) within which weights count as lying on a grid: far above float noise, far below
rounding.
"""

SAMPLE = 16
"""Weights of a channel that are looked at first (count): weights that were never rounded are on no
grid after so many.
"""

ROUNDS = 4
"""Grids that a channel is tried on in full (count), largest codes first; chosen by hand."""


@dataclass(frozen=True)
class Grid:
    """Codes -levels … levels.

    `pairs`: those that must stay within the limit, or None where the whole range may be used.
    """

    levels: int
    pairs: KernelPairs | None = None

    @property
    def limited(self) -> KernelPairs | None:
        """The pairs that codes of this grid could bring beyond the limit."""
        if self.pairs is None or not self.pairs.count:
            return None
        largest_sum = 2 * self.levels
        if largest_sum <= PAIR_LIMIT:
            return None
        return self.pairs

    def nearest(self, steps: NDArray[Any]) -> NDArray[Any]:
        """The nearest code of each weight that is given in steps of its scale."""
        rounded = np.rint(steps)
        clipped: NDArray[Any] = np.clip(rounded, -self.levels, self.levels)
        return clipped


def scales_on(tensor: ir.TensorProtocol, layout: Layout, grid: Grid) -> Floats:
    """The scale of each channel: of the grid that its weights lie on already, or of least expected
    error.

    That makes the largest weight the largest code; where pairs are limited, a larger scale may lose
    less than cutting pairs would. Channels of zeros get 0; a weight with NaN or infinity gets what
    it holds.

    Shapes: -> (channels,) float32.
    """
    found = survey(tensor, layout, grid.limited, grid.levels)
    highest = found.highest
    scales = (highest / grid.levels).astype(np.float32)
    usable = highest > 0
    # for the caller to refuse
    if not np.isfinite(highest).all() or not usable.any():
        return scales
    tops = held_tops(
        tensor,
        layout,
        highest,
        grid,
    )
    is_new = usable & (tops == 0)
    if grid.limited is not None and is_new.any():
        scales = limited_scales(
            tensor,
            layout,
            scales,
            grid.limited,
            found,
        )
    # max|w| is the top code times the scale
    held = usable & (tops > 0)
    steps = highest[held] / tops[held]
    scales[held] = steps.astype(np.float32)
    return scales


def held_tops(
    tensor: ir.TensorProtocol, layout: Layout, highest: Floats, grid: Grid
) -> NDArray[np.int64]:
    """The largest code of the grid that each channel's weights lie on already, 0 for none.

    What an earlier pass rounded is found again, whatever its largest code was: max|w| is that code
    times the scale.
    """
    possible = _candidates(
        tensor,
        layout,
        highest,
        grid,
    )
    found = np.zeros(layout.channels, np.int64)
    tops = np.arange(grid.levels, 0, -1)
    for _ in range(ROUNDS):
        first = tops[possible.argmax(axis=1)]
        has_one = possible.any(axis=1)
        tried = np.where(has_one, first, 0)
        if not tried.any():
            break
        whole, highest_sum = _tried(
            tensor,
            layout,
            highest,
            tried,
            grid,
        )
        fits = whole & (highest_sum <= PAIR_LIMIT)
        found = np.where(fits, tried, found)
        # codes grow with the top: a top whose pairs exceed the limit rules out the tops in between
        shrink = PAIR_LIMIT / np.maximum(highest_sum, PAIR_LIMIT)
        allowed = tried * np.where(whole, shrink, 1.0)
        possible &= tops <= allowed[:, None]
        possible &= tops != tried[:, None]
        possible &= ~fits[:, None]
    return found


def _candidates(
    tensor: ir.TensorProtocol, layout: Layout, highest: Floats, grid: Grid
) -> NDArray[np.bool_]:
    """Largest codes (levels, levels - 1 … 1) that the first weights of each channel allow.

    Shapes: -> (channels, levels).
    """
    usable = highest > 0
    possible = np.repeat(usable[:, None], grid.levels, axis=1)
    # weights still to be looked at: zeros lie on every grid, and do not count
    left = np.where(usable, SAMPLE, 0)
    for rows, channels in rows_of(tensor, layout):
        width = rows.shape[1]
        first_channel = channels.start or 0
        for start in range(0, width, SAMPLE):
            is_open = left[channels] > 0
            open_rows = np.flatnonzero(is_open)
            if not open_rows.size:
                break
            at = open_rows + first_channel
            few = rows[open_rows, start : start + SAMPLE]
            largest = highest[at].astype(np.float64)
            shares = few / largest[:, None]
            possible[at] &= _allowed(shares, grid.levels)
            seen = np.count_nonzero(shares, axis=1)
            has_one = possible[at].any(axis=1)
            left[at] -= np.where(has_one, seen, SAMPLE)
        # with channels first each block brings other channels
        if layout.outer == 1:
            continue
        # a block with all channels says enough
        if not (left > 0).any():
            break
    return possible


def _allowed(shares: NDArray[np.float64], levels: int) -> NDArray[np.bool_]:
    """Largest codes that make all of a few weights whole.

    Shapes: (channels, few), shares of max|w| -> (channels, levels).
    """
    tops = np.arange(levels, 0, -1)
    allowed = np.ones((len(shares), levels), bool)
    still_open = np.arange(len(shares))
    # one weight after the other: the first two close nearly all channels that were never rounded
    for weights in shares.T:
        steps = weights[still_open, None] * tops
        distance = np.abs(steps - np.rint(steps))
        allowed[still_open] &= distance < ON_GRID
        has_one = allowed[still_open].any(axis=1)
        still_open = still_open[has_one]
    return allowed


def _tried(
    tensor: ir.TensorProtocol,
    layout: Layout,
    highest: Floats,
    tops: NDArray[np.int64],
    grid: Grid,
) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
    """True where all weights of a channel lie on the grid with that largest code; the largest sum
    of one of its pairs.
    """
    tried = tops > 0
    divisors = np.where(tried, highest, 1.0).astype(np.float64)
    inverse = np.where(tried, tops / divisors, 0.0)
    pairs = grid.limited

    def measured(
        rows: NDArray[Any], channels: slice
    ) -> tuple[slice, NDArray[np.bool_], NDArray[np.float64]]:
        own = inverse[channels]
        steps = rows * own[:, None]
        codes = np.rint(steps)
        distance = np.abs(steps - codes)
        farthest = distance.max(axis=1, initial=0.0)
        largest = np.zeros(len(rows))
        if pairs is not None:
            part = pairs.of_part(rows.shape[1])
            sums_of_pairs = largest_sums(codes, part)
            largest = sums_of_pairs.max(axis=1, initial=0.0)
        return channels, farthest < ON_GRID, largest

    whole = tried.copy()
    sums = np.zeros(layout.channels)
    for channels, is_whole, largest in map_rows(measured, tensor, layout, pairs):
        whole[channels] &= is_whole
        sums[channels] = np.maximum(sums[channels], largest)
    return whole, sums
