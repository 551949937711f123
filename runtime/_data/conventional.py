"""Inputs with one conventional value, which data may leave out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from ..session import TensorInfo
from .decoders import CachedDecoder

_Shape = tuple[int, ...]


def _ones(shape: _Shape) -> NDArray[np.int64]:
    return np.ones(shape, np.int64)


def _zeros(shape: _Shape) -> NDArray[np.int64]:
    return np.zeros(shape, np.int64)


def _positions(shape: _Shape) -> NDArray[np.int64]:
    return np.broadcast_to(np.arange(shape[-1]), shape)


_MAKERS: dict[str, tuple[str, Callable[[_Shape], NDArray[np.int64]]]] = {
    "attention_mask": ("ones", _ones),
    "input_mask": ("ones", _ones),
    "token_type_ids": ("zeros", _zeros),
    "segment_ids": ("zeros", _zeros),
    "position_ids": ("0, 1, 2, …", _positions),
}
"""Value of an input by its name, in words and as an array of the tokens' shape (B, T)."""


def is_conventional(name: str) -> bool:
    """Return whether an input of that name may be left out, beside tokens (B, T)."""
    return name in _MAKERS


def left_out(inputs: Sequence[TensorInfo]) -> set[str]:
    """Names of the inputs that data may leave out, beside tokens (B, T).

    Of a decoder with a cache: the empty cache and what tells its length, too.
    """
    names = {info.name for info in inputs if is_conventional(info.name)}
    decoder = CachedDecoder.of(inputs)
    if decoder is None:
        return names
    given = decoder.names(
        "tokens",
        "embeddings",
        "encoder states",
    )
    if not decoder.has_branch:
        given += decoder.names("cross cache")
    names.update(decoder.roles)
    return names.difference(given)


def filled(
    missing: Sequence[str],
    given: Mapping[str, NDArray[np.generic]],
    inputs: Mapping[str, TensorInfo],
) -> dict[str, NDArray[np.generic]]:
    """Arrays of the conventional inputs among `missing`, as long as the tokens that are given.

    Empty where no input given is a matrix of integers.
    """
    tokens = _tokens(given, inputs)
    if tokens is None:
        return {}
    arrays: dict[str, NDArray[np.generic]] = {}
    for name in missing:
        if name in _MAKERS and len(inputs[name].shape) == tokens.ndim:
            _, make = _MAKERS[name]
            arrays[name] = make(tokens.shape)
    return arrays


def in_words(name: str) -> str:
    """The conventional value of an input, for people."""
    words, _ = _MAKERS[name]
    return words


def _tokens(
    given: Mapping[str, NDArray[np.generic]], inputs: Mapping[str, TensorInfo]
) -> NDArray[np.generic] | None:
    """The first matrix of integers that is not itself of a conventional value."""
    for name, info in inputs.items():
        array = given.get(name)
        if array is None or is_conventional(name) or not info.dtype.startswith("int"):
            continue
        if array.ndim == 2:
            return array
    return None
