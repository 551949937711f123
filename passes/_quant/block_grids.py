"""The grid of weights in blocks: whole numbers of 4 or 8 bits, times one scale a block and output.

Blocks lie along the inputs. What lies on such a grid already keeps its scale, so that values which
an earlier pass chose are stored as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .grids import ON_GRID
from .weights import Floats

BLOCK_BITS = 4
"""Bits of the grids of blocks that data pays for: 8 bits lose too little to be won back."""

LEVELS = {4: (-8, 7), 8: (-127, 127)}
DTYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
TRIED = {4: (-8.0, 7.0), 8: (127.0,)}
"""Integers that the largest weight of a block may become; the one of least squared error wins. At 4
bits one level more lies below zero, so scales may be negative.

The largest is never clipped, though that has the least squared error: a cut has one sign, and adds
up over layers (measured on a language model of 210: perplexity +20.7 % with -8.5, 7.5, -9 and 8
among them, +7.3 % without).
"""

HELD = {4: (-8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0), 8: ()}
"""Integers that the largest weight of a block may be already. Not looked for at 8 bits: a grid of
fewer levels than 127 is rounded to a finer one there.
"""

FEW = 4
"""Weights of a block that are looked at first (count): those that were never rounded are on no grid
after so many.
"""

_HALF = np.finfo(np.float16)

_SMALLEST = 1e-30
"""Scales stay this far from zero: a block of zeros or denormals has none of its own."""


@dataclass(frozen=True)
class BlockGrid:
    """Codes of so many bits, and one scale for every `block` inputs of an output channel."""

    bits: int
    block: int


def best_scales(view: Floats, bits: int) -> Floats:
    """The scale of each block: of the grid that it lies on already, or of least squared error.

    Shapes: (..., block, columns) -> (..., columns).
    """
    largest_at = np.abs(view).argmax(-2)
    at = largest_at[..., None, :]
    extreme = np.take_along_axis(view, at, -2)
    targets = TRIED[bits]
    # 8 bits are fine enough for one try
    if len(targets) == 1:
        largest = np.abs(extreme[..., 0, :])
        levels = np.float32(targets[0])
        return _usable(largest / levels)
    best = _usable(extreme)
    least = np.full(extreme.shape, np.inf, np.float32)
    for target in targets:
        scale = _usable(extreme / np.float32(target))
        scaled = np.divide(view, scale, dtype=np.float32)
        rounding = rounded(scaled, bits) - scaled
        squares = np.square(rounding)
        total = squares.sum(-2, keepdims=True)
        # in units of the extreme weight, the same for every target: extreme = target * scale
        error = total / np.float32(target * target)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    found = short_scales(np.asarray(best[..., 0, :]))
    largest = extreme[..., 0, :]
    tops = held_tops(
        view,
        largest,
        bits,
    )
    is_held = tops != 0
    held = largest[is_held] / tops[is_held]
    found[is_held] = _usable(held)
    return found


def short_scales(scales: Floats) -> Floats:
    """Scales as half precision has them, which `pack` stores in two bytes: off by 2**-12 at most.

    Those beyond its normal numbers stay.
    """
    magnitudes = np.abs(scales)
    is_normal = (magnitudes >= _HALF.tiny) & (magnitudes <= _HALF.max)
    with np.errstate(over="ignore"):
        short = scales.astype(np.float16).astype(np.float32)
    return np.where(is_normal, short, scales)


def held_tops(view: Floats, extreme: Floats, bits: int) -> Floats:
    """The code of each block's largest weight on the grid that the block lies on already.

    0 where it lies on none. Shapes: view (..., block, columns), extreme (..., columns) -> (...,
    columns).
    """
    tops = np.zeros(extreme.shape, np.float32)
    by_block = np.moveaxis(view, -2, -1)
    is_open = np.abs(extreme) > _SMALLEST
    divisors = np.where(is_open, extreme, np.float32(1))
    divisors = divisors[..., None]
    few = by_block[..., :FEW] / divisors
    for top in HELD[bits]:
        # a few weights rule out nearly every block that was never rounded
        factor = np.float32(top)
        candidates = is_open & _is_whole(few * factor, bits)
        if not candidates.any():
            continue
        whole = by_block[candidates] / divisors[candidates]
        fits = _is_whole(whole * factor, bits)
        found = np.zeros_like(is_open)
        found[candidates] = fits
        tops[found] = top
        is_open &= ~found
    return tops


def _is_whole(steps: NDArray[Any], bits: int) -> NDArray[np.bool_]:
    """Return whether all weights of a block are codes: (..., block) -> (...)."""
    distance = np.abs(steps - rounded(steps, bits))
    return np.asarray(distance.max(axis=-1) < ON_GRID)


def rounded(scaled: NDArray[Any], bits: int) -> Floats:
    """The nearest codes of so many bits."""
    low, high = LEVELS[bits]
    codes = np.rint(scaled)
    return np.asarray(np.clip(codes, low, high))


def _usable(scale: NDArray[Any]) -> Floats:
    is_small = np.abs(scale) < _SMALLEST
    raised = np.where(
        is_small,
        np.float32(_SMALLEST),
        scale,
    )
    return raised.astype(np.float32)
