"""Tolerances for outputs that should be equal: of float graphs, and of those that round inside."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tolerance:
    """Limits on the drift of outputs that should be equal.

    `max_abs`: largest error, relative to max(1, largest magnitude of the output). `sqnr_db`: least
    SQNR. An output whose errors all stay below `floor` passes whatever its SQNR: it is zero for all
    purposes.
    """

    max_abs: float
    sqnr_db: float
    floor: float = 1e-6


FLOAT32 = Tolerance(1e-4, 80.0)
COARSE = Tolerance(1e-2, 40.0)
"""Tolerance of graphs that round between layers (half precision, quantized parts).

There, noise at a rounding edge moves a value by one step. Chosen by hand; not measured.
"""


NOISE_FACTOR = 4.0
"""Multiple of the original's own noise by which equal outputs may drift.

That noise is what the original drifts when it is evaluated in another order. Chosen by hand; not
measured.
"""
