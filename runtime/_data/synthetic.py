"""Made-up inputs from shapes, types and names.

Deterministic by seed, in ranges that models usually accept.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..session import Dim, TensorInfo

Overrides = Mapping[str, int | Sequence[int]]
"""Length by symbol (`{"seq": 64}`), or a whole shape by input name (`{"x": (1, 3, 64, 64)}`)."""


Values = Literal["likely", "modest"]
"""Values that inputs are given.

likely: as models of common kinds read them. modest: floats in [0, 1), integers 0 and 1, which suit
logarithms, roots and small tables.
"""

LIKELY: Values = "likely"
MODEST: Values = "modest"


class _IntegerRange(NamedTuple):
    """Integers in [low, high) for inputs whose name has a pattern."""

    pattern: str
    low: int
    high: int


# the first that fits decides, so that a mask of tokens is a mask
_INTEGER_RANGES = (
    _IntegerRange(r"mask", 1, 2),
    _IntegerRange(r"type_ids|token_type|segment", 0, 1),
    _IntegerRange(r"(^|_)(sr|sample_?rate)$", 16000, 16001),
    _IntegerRange(r"bytes|pixel|image", 0, 256),
    _IntegerRange(r"ids|token", 1, 100),
)
"""Ranges that models of common kinds accept: nothing is masked, one segment, speech at 16 kHz,
bytes, tokens of any vocabulary. Chosen by hand; not measured.
"""

_STATE = r"state|hidden|cell|^[hc]_?\d*n?$"
"""Names of recurrent states, which are (layers, batch, features)."""


def shape_of(
    info: TensorInfo, sizes: Mapping[str, int], overrides: Overrides
) -> tuple[int, ...]:
    """Choose a concrete shape; `sizes`: lengths for `batch`, `spatial` and `sequence` axes."""
    given = overrides.get(info.name)
    if given is not None and not isinstance(given, int):
        return tuple(given)
    lengths = []
    for axis, dim in enumerate(info.shape):
        length = _length(
            dim,
            axis,
            info,
            sizes,
            overrides,
        )
        lengths.append(length)
    return tuple(lengths)


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
    # what the symbol is called says more than where it stands
    word = (dim or "").lower()
    if re.search(r"batch|^n$|^b$|^bs$", word):
        return sizes["batch"]
    if re.search(r"height|width|^h$|^w$", word):
        return sizes["spatial"]
    if re.search(r"seq|len|time|token|sample|^t$|^l$", word):
        return sizes["sequence"]
    rank = len(info.shape)
    if axis == 0 and rank > 1:
        return sizes["batch"]
    if axis == 1 and _has_word(info, _STATE):
        return sizes["batch"]
    if rank < 4:
        return sizes["sequence"]
    # an image: three channels, if they are not told, before height and width
    if axis == 1:
        return 3
    return sizes["spatial"]


def _has_word(info: TensorInfo, pattern: str) -> bool:
    name = info.name.lower()
    return re.search(pattern, name) is not None


def array_for(
    info: TensorInfo,
    shape: tuple[int, ...],
    random: np.random.Generator,
    values: Values = LIKELY,
) -> NDArray[Any]:
    """Make up an array of an input's type.

    Floats from N(0, 1), integers by name or in [0, 2), bytes in [0, 256), booleans, short texts;
    modest ones: floats and integers in [0, 1) and [0, 2).
    """
    if info.dtype == "object":
        return _texts(shape, random)
    if info.dtype == "bool":
        bits = random.integers(0, 2, shape)
        return bits.astype(bool)
    if "int" in info.dtype:
        if values == MODEST:
            return random.integers(0, 2, shape).astype(info.dtype)
        return _integers(info, shape, random)
    if info.dtype == "bfloat16":
        # registers bfloat16 with numpy
        import ml_dtypes  # noqa: F401
    draw = random.random if values == MODEST else random.standard_normal
    # without a shape they give a Python float
    floats = np.asarray(draw(shape))
    return floats.astype(info.dtype)


def _texts(shape: tuple[int, ...], random: np.random.Generator) -> NDArray[Any]:
    count = math.prod(shape)
    numbers = random.integers(0, 9, count)
    texts = [f"text {number}" for number in numbers]
    return np.array(texts, object).reshape(shape)


def _integers(
    info: TensorInfo, shape: tuple[int, ...], random: np.random.Generator
) -> NDArray[Any]:
    if shape and _has_word(info, "^position"):
        positions = np.arange(shape[-1])
        integers = np.broadcast_to(positions, shape)
    else:
        low, high = _integer_bounds(info)
        integers = random.integers(low, high, shape)
    return integers.astype(info.dtype)


def _integer_bounds(info: TensorInfo) -> tuple[int, int]:
    """Bounds [low, high) of the integers that an input may hold."""
    for pattern, low, high in _INTEGER_RANGES:
        if _has_word(info, pattern):
            if info.dtype == "int8":
                # larger ones would wrap around
                high = min(high, 128)
            return low, high
    if info.dtype == "uint8":
        return 0, 256
    return 0, 2
