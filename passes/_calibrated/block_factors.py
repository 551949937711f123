"""Factors of a value's channels with which weights in blocks lose least of what layers give.

Weights of channels that are loud matter more: made larger, they round better, at the cost of those
that share a block with them.

Source: Lin et al., AWQ: Activation-aware Weight Quantization for LLM Compression and Acceleration,
MLSys 2024 (arXiv:2306.00978), section 3.2.
"""

from __future__ import annotations

import numpy as np

from .._core.linear import LinearLayer
from .._quant.block_grids import BlockGrid
from .block_compensation import nearest_in_blocks, values_in_blocks
from .layers import PerChannel, Rows
from .levels import FEWEST_FOLDS
from .rounding import decibels
from .scaling import Readers, Smoothing, input_maxima

LEAST_LOUDNESS = 2.0**-16
"""Mean |x| of a channel, as a share of the loudest one's, below which it is float noise."""

MOST = 1e30
"""Magnitude of weights from which none are scaled: far beyond those of any trained model."""

EXPONENTS = np.arange(1, 10) / 10
"""Powers of the mean |x| to try for factors. The paper tries twenty, from 0 to 0.95."""

TOLD = 64
"""Channels of a layer by which its error is told, at most. Chosen by hand."""


def factors_for_blocks(
    readers: Readers, seen: Rows | None, grid: BlockGrid
) -> Smoothing | None:
    """The factors of least error among powers of each channel's mean |x|, and their gain.

    Exponents are chosen on every other fold of the samples, and the gain is that on the rest. None
    where too little was seen, or weights are not finite.

    Shapes: seen (folds, 3, C), means of x, |x| and x^2.
    """
    if seen is None or len(seen) < FEWEST_FOLDS:
        return None
    layers = readers.layers
    if seen.shape[2] != readers.channels:
        return None
    if not all(_is_moderate(layer) for layer in layers):
        return None
    weights = [_some_rows(layer) for layer in layers]
    loudness = seen[:, 1].mean(axis=0)
    # a channel that is silent here needs its weights on other samples
    is_heard = loudness > LEAST_LOUDNESS * loudness.max()
    if not is_heard.any():
        return None
    loudness[~is_heard] = loudness[is_heard].min()
    chosen_by = seen[::2, 2].mean(axis=0)
    judged_by = seen[1::2, 2].mean(axis=0)
    unscaled = np.ones(readers.channels)
    least = _error(weights, unscaled, chosen_by, grid)
    best = unscaled
    for exponent in EXPONENTS:
        raw = loudness**exponent
        factors = raw / np.sqrt(raw.max() * raw.min())
        error = _error(weights, factors, chosen_by, grid)
        if error < least:
            least = error
            best = factors
    before = _error(weights, unscaled, judged_by, grid)
    after = _error(weights, best, judged_by, grid)
    return Smoothing(best, decibels(before, after))


def _is_moderate(layer: LinearLayer) -> bool:
    """True if no weight is so large that a factor could take it out of its type."""
    largest = input_maxima(layer).max(initial=0.0)
    return bool(largest < MOST)


def _some_rows(layer: LinearLayer) -> Rows:
    """Weights of some channels of a layer, far apart, for the power that all of them have."""
    rows = layer.rows()
    step = -(-len(rows) // TOLD)
    some = rows[::step]
    weighed: Rows = some * np.sqrt(len(rows) / len(some))
    return weighed


def _error(
    weights: list[Rows], factors: PerChannel, power: PerChannel, grid: BlockGrid
) -> float:
    """Power of what rounding adds to the layers' outputs, channels taken for uncorrelated.

    Shapes: weights (M, C) each; factors and power, mean x^2 without factors, (C,).
    """
    total = 0.0
    seen_power = power / factors**2
    # of weights near the end of their type the error is no number, and no factor is taken
    with np.errstate(over="ignore", invalid="ignore"):
        for rows in weights:
            scaled = rows * factors
            codes = nearest_in_blocks(scaled, grid)
            difference = values_in_blocks(codes, grid) - scaled
            squares = np.einsum("mk,mk->k", difference, difference)
            total += float(squares @ seen_power)
    return total
