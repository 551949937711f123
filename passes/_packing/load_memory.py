"""Memory that a runtime takes for a decoder while it loads a model, beside the constant itself.

ONNX Runtime keeps what it folds until the whole model is loaded: these bytes add up over all
constants, and decoding one in pieces would save nothing (measured). MiniLM in int8 with a mask on
each of 10.6 million weights takes 122 MB more than without (154 by this estimate), half a byte of
distance on a fifth of them 18 MB (56); palettes of 21.8 million, tables included, 273 MB (218).
"""

from __future__ import annotations

from collections.abc import Callable

from .._core.channel_palettes import channel_palettes_of
from .._core.vector_codebooks import codebook_of
from .bit_packing import has_table_of_digits, smallest_digits
from .content import Content

INDEX = 4
"""Bytes of an index: int32 is the least type that runtimes add and gather by."""


def load_bytes(codec: str, content: Content) -> int:
    """Bytes of all intermediate results of a decoder; 0 where it makes the constant at once."""
    estimate = _ESTIMATES.get(codec)
    if estimate is None:
        return 0
    return estimate(content)


def _palette(content: Content) -> int:
    assert content.palette is not None
    return _digits(content.palette.size, content.size) + _item(content) * content.size


def _digits(base: int, size: int) -> int:
    """Bytes of the digits of words, in int32."""
    # to base 1 there is nothing to tell apart
    digits = smallest_digits(max(base, 2), size)
    # three bytes and their sum, or a word
    numbers = 4 if digits.word_bytes == 3 else 1
    words = INDEX * numbers * digits.words_for(size)
    if has_table_of_digits(digits, size):
        return words
    # the quotient and the remainder of each digit
    return words + 2 * INDEX * size


def _channel_palettes(content: Content) -> int:
    found = channel_palettes_of(content.tensor)
    assert found is not None
    values = found.table.shape[1]
    indices = max(_digits(values, content.size), INDEX * content.size)
    # the values in the order of channels, and in their own
    return indices + 2 * _item(content) * content.size


def _codebook(content: Content) -> int:
    found = codebook_of(content.tensor)
    assert found is not None
    # a number for each vector, the elements in the order of channels, and in their own
    return INDEX * found.index.size + 2 * _item(content) * content.size


def _bit_planes(content: Content) -> int:
    assert content.palette is not None
    last_index = int(content.palette.size - 1)
    planes = last_index.bit_length()
    # quotient, remainder and its weighed form for each plane, the index, the values in order
    indices = 3 * planes + 1
    by_element = INDEX * indices + _item(content)
    return content.size * by_element


def _mask(content: Content) -> int:
    # byte, count and sum for 8 elements; rank, ordinal and its maximum for each; values in order
    counts = 3 * INDEX
    by_byte = counts * content.size // 8
    by_element = counts + _item(content)
    return by_byte + content.size * by_element


def _gaps(content: Content) -> int:
    # a distance and its sum for each entry
    entries = content.gap_entries[255]
    distances = 2 * INDEX * entries
    return distances + _blank_and_filled(content)


def _short_gaps(content: Content) -> int:
    entries = content.gap_entries[15]
    # half a byte, quotient, remainder, their flat order and the sum for each entry
    by_pair = INDEX * entries // 2
    distances = 4 * INDEX * entries
    return by_pair + distances + _blank_and_filled(content)


def _blank_and_filled(content: Content) -> int:
    # filling in the entries makes a new tensor beside the blank one
    tensor = _item(content) * content.size
    return 2 * tensor


def _grid(content: Content) -> int:
    # at most: its numbers under a mask, in their order, and as floats
    floats = INDEX * content.size
    return _mask(content) + floats


def _item(content: Content) -> int:
    return content.dtype.bitwidth // 8


_ESTIMATES: dict[str, Callable[[Content], int]] = {
    "palette": _palette,
    "bit planes": _bit_planes,
    "channel palettes": _channel_palettes,
    "codebook": _codebook,
    "mask": _mask,
    "gaps": _gaps,
    "short gaps": _short_gaps,
    "grid": _grid,
}
