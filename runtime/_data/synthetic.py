"""Made-up inputs from shapes, types and names: deterministic by seed, in ranges that models usually
accept.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..session import Dim, TensorInfo

Overrides = Mapping[str, int | Sequence[int]]
"""Length by symbol (`{"seq": 64}`), or a whole shape by input name (`{"x": (1, 3, 64, 64)}`)."""

_INT_HINTS: tuple[tuple[str, int, int], ...] = (
    (r"mask", 1, 2),
    (r"type_ids|token_type|segment", 0, 1),
    (r"(^|_)(sr|sample_?rate)$", 16000, 16001),
    (r"bytes|pixel|image", 0, 256),
    (r"ids|token", 1, 100),
)
"""Name pattern -> integers in [low, high)."""
_STATE = r"state|hidden|cell|^[hc]_?\d*n?$"
"""Recurrent states are (layers, batch, features)."""
_STATE = r"state|hidden|cell|^[hc]_?\d*n?$"
"""Recurrent states are (layers, batch, features)."""


def shape_of(
    info: TensorInfo, sizes: Mapping[str, int], overrides: Overrides
) -> tuple[int, ...]:
    """A concrete shape; `sizes` has lengths for `batch`, `spatial` and `sequence` axes."""
    given = overrides.get(info.name)
    if given is not None and not isinstance(given, int):
        return tuple(given)
    return tuple(
        _length(dim, axis, info, sizes, overrides)
        for axis, dim in enumerate(info.shape)
    )


def _length(
    dim: Dim,
    axis: int,
    info: TensorInfo,
    sizes: Mapping[str, int],
    overrides: Overrides,
) -> int:
    if isinstance(dim, int):
        return dim
    given = overrides.get(dim) if dim else None
    if isinstance(given, int):
        return given
    word = (dim or "").lower()
    if re.search(r"batch|^n$|^b$|^bs$", word):
        return sizes["batch"]
    if re.search(r"height|width|^h$|^w$", word):
        return sizes["spatial"]
    if re.search(r"seq|len|time|token|sample|^t$|^l$", word):
        return sizes["sequence"]
    if axis == 0 and len(info.shape) > 1:
        return sizes["batch"]
    if axis == 1 and re.search(_STATE, info.name.lower()):
        return sizes["batch"]
    if axis == 1 and re.search(_STATE, info.name.lower()):
        return sizes["batch"]
    if len(info.shape) >= 4:
        return 3 if axis == 1 else sizes["spatial"]
    return sizes["sequence"]


def array_for(
    info: TensorInfo, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[Any]:
    """Floats from N(0, 1), integers by name or in [0, 2), bytes in [0, 256), booleans, short
    texts.
    """
    if info.dtype == "object":
        return np.array(
            [f"text {n}" for n in random.integers(0, 9, int(np.prod(shape)))], object
        ).reshape(shape)
    if info.dtype == "bool":
        return random.integers(0, 2, shape).astype(bool)
    if "int" in info.dtype:
        low, high = _int_range(info)
        if info.name.lower().startswith("position") and shape:
            return np.broadcast_to(np.arange(shape[-1]), shape).astype(info.dtype)
        return random.integers(low, high, shape).astype(info.dtype)
    if info.dtype == "bfloat16":
        import ml_dtypes

        return random.standard_normal(shape).astype(ml_dtypes.bfloat16)
    return np.asarray(random.standard_normal(shape)).astype(info.dtype)


def _int_range(info: TensorInfo) -> tuple[int, int]:
    for pattern, low, high in _INT_HINTS:
        if re.search(pattern, info.name.lower()):
            return (low, high) if info.dtype != "int8" else (low, min(high, 128))
    return (0, 256) if info.dtype == "uint8" else (0, 2)
