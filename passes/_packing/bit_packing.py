"""Elements as packed bytes, in numpy: masks, indices of few bits, distances between nonzeros."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .content import Bits, Content, bit_blocks

Bytes = NDArray[np.uint8]


def bytes_for(count: int, per_byte: int) -> int:
    """Bytes that so many elements take; the last one may be filled in part."""
    return -(-count // per_byte)


def mask_bytes(content: Content) -> Bytes:
    """A bit for each element, 1 where it is not zero, the first in the lowest bit of a byte."""
    parts = []
    # blocks of whole bytes, so that none ends within one
    for _, block in bit_blocks(content.tensor, granule=8):
        is_nonzero = block != 0
        parts.append(np.packbits(is_nonzero, bitorder="little"))
    return np.concatenate(parts)


def index_planes(content: Content, values: Bits, bits: int) -> Bytes:
    """Index of each element in the sorted `values`, (bits, bytes, 1).

    Plane b holds the bits of value 2^b.
    """
    places = np.arange(bits)[:, None]
    parts = []
    for _, block in bit_blocks(content.tensor, granule=8):
        index = np.searchsorted(values, block)
        planes = index[None, :] >> places & 1
        packed = np.packbits(
            planes.astype(np.uint8),
            axis=1,
            bitorder="little",
        )
        parts.append(packed)
    whole = np.concatenate(parts, axis=1)
    return whole[:, :, None]


@dataclass(frozen=True)
class Digits:
    """Words that hold several digits to one base, the first with the lowest weight."""

    base: int
    word: np.dtype[Any]

    @property
    def per_word(self) -> int:
        """Digits in a word. A byte: 8 to base 2, 5 to 3, 4 to 4, 3 to 5 and 6, 2 to 7 to 16."""
        count = 1
        while self.base ** (count + 1) <= np.iinfo(self.word).max + 1:
            count += 1
        return count

    @property
    def weights(self) -> NDArray[np.int32]:
        """Weight of each digit of a word."""
        weights = self.base ** np.arange(self.per_word, dtype=np.int64)
        return weights.astype(np.int32)

    def table(self) -> NDArray[np.int32]:
        """Digits of every word: (words, digits in a word); for bytes."""
        words = np.arange(self.base**self.per_word, dtype=np.int32)
        digits: NDArray[np.int32] = words[:, None] // self.weights % self.base
        return digits

    def words_for(self, count: int) -> int:
        """Words that so many digits take; the last one may be filled in part."""
        return -(-count // self.per_word)

    def bytes_for(self, count: int) -> int:
        """Bytes of these words."""
        return self.words_for(count) * self.word.itemsize

    def packed(self, digits: NDArray[Any]) -> NDArray[Any]:
        """Words of some digits; those behind the last one are 0."""
        filled = np.zeros(self.words_for(digits.size) * self.per_word, np.int64)
        filled[: digits.size] = digits
        words = filled.reshape(-1, self.per_word) @ self.weights.astype(np.int64)
        return words.astype(self.word)


def smallest_digits(base: int, count: int) -> Digits:
    """Bytes or words of 32 bits, whichever hold so many digits in less; in doubt bytes."""
    forms = [Digits(base, np.dtype(word)) for word in (np.uint8, np.int32)]
    return min(forms, key=lambda form: form.bytes_for(count))


def index_digits(content: Content, values: Bits, digits: Digits) -> NDArray[Any]:
    """Index of each element in the sorted `values`, as digits to their number as a base."""
    parts = []
    for _, block in bit_blocks(content.tensor, granule=digits.per_word):
        index = np.searchsorted(values, block)
        parts.append(digits.packed(index))
    return np.concatenate(parts)


def nonzeros(content: Content) -> Bits:
    """A zero, and the elements that are none in their order: (nonzeros + 1,)."""
    parts = []
    for _, block in bit_blocks(content.tensor):
        parts.append(block[block != 0])
    zero = np.zeros(1, parts[0].dtype)
    return np.concatenate([zero, *parts])


def gap_entries(content: Content, longest: int) -> tuple[Bytes, Bits]:
    """Distances from one entry to the next, and the entries: nonzeros, and zeros as fillers.

    The first distance is from the first element, all others are at least 1. A filler is written
    where the next nonzero lies further away than `longest`.
    """
    distances: list[Bytes] = []
    entries: list[Bits] = []
    last = -1
    for start, block in bit_blocks(content.tensor):
        places = np.flatnonzero(block)
        if not places.size:
            continue
        gaps = np.diff(places + start, prepend=last)
        last = int(places[-1]) + start
        fillers = (gaps - 1) // longest
        # where each nonzero stands among the entries, behind its fillers
        ends = np.cumsum(fillers + 1) - 1
        size = int(ends[-1]) + 1
        distance = np.full(size, longest, np.uint8)
        distance[ends] = gaps - fillers * longest
        entry = np.zeros(size, block.dtype)
        entry[ends] = block[places]
        distances.append(distance)
        entries.append(entry)
    # counted so far from the place before the first element
    distances[0][0] -= 1
    return np.concatenate(distances), np.concatenate(entries)
