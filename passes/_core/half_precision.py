"""Numbers of half precision in wider types, which two bytes store without losing a bit."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

SMALLEST = float(np.finfo(np.float16).smallest_normal)
"""Least magnitude that half precision holds with all of its digits."""


LEAST = float(np.finfo(np.float16).smallest_subnormal)
"""Least magnitude that it holds at all."""


def on_halves(numbers: NDArray[Any], least: float = 0.0) -> NDArray[Any]:
    """The nearest numbers of half precision, in the type that is given.

    Numbers beyond its range stay as they are, and so do those of a magnitude below `least`.
    """
    halves = _halves(numbers)
    is_held = np.isfinite(halves) & (np.abs(numbers) >= least)
    return np.where(is_held, halves, numbers)


def scales_on_halves(scales: NDArray[Any]) -> NDArray[Any]:
    """Scales of channels in half precision, those of nearly silent ones with fewer digits.

    What these lose is less than 1 in 2000 of the largest scale. Where all are small, they keep
    theirs. None becomes zero.
    """
    sizes = np.abs(scales)
    if sizes.max(initial=0.0) < 2 * SMALLEST:
        return on_halves(scales, SMALLEST)
    # scales that trained may be negative
    halves = np.maximum(on_halves(sizes), LEAST)
    return np.asarray(np.copysign(halves, scales))


def are_halves(numbers: NDArray[Any]) -> bool:
    """True if half precision holds all of these, which are more than whole numbers."""
    if np.array_equal(numbers, np.rint(numbers)):
        return False
    return np.array_equal(numbers, _halves(numbers))


def _halves(numbers: NDArray[Any]) -> NDArray[Any]:
    with np.errstate(over="ignore"):
        return numbers.astype(np.float16).astype(numbers.dtype)
