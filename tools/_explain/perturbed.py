"""A sample that can be run with any of its parts taken away."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Weights = NDArray[np.float64]
Kept = NDArray[np.bool_]
"""Parts that stay in each of several variants, (V, P)."""


@dataclass(frozen=True)
class Perturbed:
    """A sample of `parts` parts; `scores` runs variants (V, P) and gives the number of each, (V,).

    `windows`: neighbours that occlusion takes away together, (W, P). `runs`: variants that a method
    may draw. `random`: draws them.
    """

    scores: Callable[[Kept], Weights]
    parts: int
    windows: Kept
    runs: int
    random: np.random.Generator
