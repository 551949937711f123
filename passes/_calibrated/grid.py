"""The symmetric grid of `quant`: codes -L..L times one scale a channel, the largest weight of a channel at +-L."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .layers import Codes, Rows

ON_GRID = 1e-4
"""Steps from the grid within which weights count as lying on it: far above float noise, far below rounding."""

RATIOS = np.linspace(1.0, 0.4, 25)
"""Shares of max|w| tried as the range of a channel."""


def levels(bits: int) -> int:
    """The largest code: 127 for 8 bits, 7 for 4."""
    return (1 << (bits - 1)) - 1


TINY = 1e-30
"""Channels whose weights are all smaller become zeros: no scale of `quant` is smaller."""


def full_scales(rows: Rows, bits: int) -> Rows:
    """max|w| / L of each channel, as `quant` takes it; 1 / L for a channel of zeros: (M, K) -> (M,)."""
    highest = np.abs(rows).max(axis=1)
    return np.where(highest > TINY, highest, 1.0) / levels(bits)


def is_on_grid(rows: Rows, bits: int) -> bool:
    """Whether `quant` would not change these weights."""
    steps = rows / full_scales(rows, bits)[:, None]
    return bool(np.abs(steps - np.rint(steps)).max() < ON_GRID)


def nearest(rows: Rows, scales: Rows, bits: int) -> Codes:
    """round(w / scale), clipped to the grid."""
    top = levels(bits)
    codes: Codes = np.clip(np.rint(rows / scales[:, None]), -top, top).astype(np.int8)
    return codes


def clipped_scales(rows: Rows, bits: int, importance: NDArray[np.float64] | None = None) -> Rows:
    """The scale of each channel with the least sum of importance * (w - Q(w))^2, ranges in RATIOS of max|w|.

    Shapes: rows (channels, width); importance (channels or 1, width) of each weight -> (channels,).
    """
    full = full_scales(rows, bits)
    weights = np.ones((1, rows.shape[1])) if importance is None else importance
    best, least = full.copy(), np.full(len(rows), np.inf)
    for ratio in RATIOS:
        scales = full * ratio
        error = (weights * (rows - nearest(rows, scales, bits) * scales[:, None]) ** 2).sum(axis=1)
        better = error < least * (1 - 1e-9)
        best[better], least[better] = scales[better], error[better]
    return best


def pinned(rows: Rows, bits: int) -> Codes:
    """+-L at the largest |w| of each channel, 0 elsewhere: codes that must stay, or `quant` sees another scale."""
    out = np.zeros(rows.shape, np.int8)
    index = np.arange(len(rows))
    largest = np.abs(rows).argmax(axis=1)
    values = rows[index, largest]
    out[index, largest] = np.sign(values) * (np.abs(values) > TINY) * levels(bits)
    return out
