"""Elements as packed bytes, in numpy: masks, indices of few bits, distances between nonzeros."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .content import Array, Bits, Content, bit_blocks

Bytes = NDArray[np.uint8]

LARGEST_WORD = 2**31
"""Numbers that a word has at most: it is taken apart in int32, whose sign is of no use."""

LEAST_LOOKED_UP = 1 << 14
"""Digits from which the nodes that make a table of them weigh little; chosen by hand."""


def bytes_for(count: int, per_byte: int) -> int:
    """Bytes that so many elements take; the last one may be filled in part."""
    return _groups(count, per_byte)


def _groups(count: int, size: int) -> int:
    """Groups of that size that so many elements make, one of them smaller perhaps."""
    whole, rest = divmod(count, size)
    if rest:
        whole += 1
    return whole


def mask_bytes(content: Content) -> Bytes:
    """A bit for each element, 1 where it is not zero, the first in the lowest bit of a byte."""
    parts = []
    # blocks of whole bytes, so that none ends within one
    for block in content.bit_blocks(granule=8):
        is_nonzero = block != 0
        packed = np.packbits(is_nonzero, bitorder="little")
        parts.append(packed)
    return np.concatenate(parts)


def index_planes(content: Content, values: Bits, bits: int) -> Bytes:
    """Index of each element in the sorted `values`, (bits, bytes, 1).

    Plane b holds the bits of value 2^b.
    """
    places = np.arange(bits)
    by_plane = places[:, None]
    parts = []
    for block in content.bit_blocks(granule=8):
        index = np.searchsorted(values, block)
        shifted = index >> by_plane
        planes = shifted & 1
        is_set = planes.astype(np.uint8)
        packed = np.packbits(is_set, axis=1, bitorder="little")
        parts.append(packed)
    whole = np.concatenate(parts, axis=1)
    return whole[:, :, None]


BYTE_SHIFTS = np.array([0, 8, 16])
"""Places of the bytes of a word of three, in bits."""


@dataclass(frozen=True)
class Digits:
    """Words that hold several digits to one base, the first with the lowest weight.

    `word_bytes`: 1, 3 or 4. One byte has 8 digits to base 2, 5 to 3, 4 to 4, 3 to 5 and 6, 2 to 7
    to 16; three have 10 to base 5, 9 to 6, 8 to 7 and 8; four 11 to base 7, 31 bits in all.
    """

    base: int
    word_bytes: int

    @property
    def per_word(self) -> int:
        """Digits in a word."""
        words = min(256**self.word_bytes, LARGEST_WORD)
        count = 1
        next_power = self.base**2
        while next_power <= words:
            count += 1
            next_power *= self.base
        return count

    @property
    def weights(self) -> NDArray[np.int32]:
        """Weight of each digit of a word."""
        count = self.per_word
        places = np.arange(count, dtype=np.int64)
        weights = self.base**places
        return weights.astype(np.int32)

    def table(self) -> NDArray[np.int32]:
        """Digits of every word: (words, digits in a word); for bytes."""
        per_word = self.per_word
        weights = self.weights
        count = self.base**per_word
        words = np.arange(count, dtype=np.int32)
        column = words[:, None]
        shifted = column // weights
        digits: NDArray[np.int32] = shifted % self.base
        return digits

    def words_for(self, count: int) -> int:
        """Words that so many digits take; the last one may be filled in part."""
        return _groups(count, self.per_word)

    def bytes_for(self, count: int) -> int:
        """Bytes of these words."""
        words = self.words_for(count)
        return words * self.word_bytes

    def packed(self, digits: Array) -> Array:
        """Words of some digits; those behind the last one are 0.

        Shape (words,), uint8 or int32; words of three bytes are (words, 3) uint8, lowest first.
        """
        count = digits.size
        words = self.words_for(count)
        per_word = self.per_word
        shape = (words, per_word)
        filled = np.zeros(shape, np.int64)
        filled.flat[:count] = digits
        weights = self.weights
        wide_weights = weights.astype(np.int64)
        sums = filled @ wide_weights
        if self.word_bytes == 4:
            return sums.astype(np.int32)
        if self.word_bytes == 1:
            return sums.astype(np.uint8)
        by_byte: Array = sums[:, None] >> BYTE_SHIFTS
        # what lies above a byte is cut off
        return by_byte.astype(np.uint8)


def smallest_digits(base: int, count: int) -> Digits:
    """Words of one, three or four bytes, whichever hold so many digits in least; in doubt short."""
    sizes = [Digits(base, word_bytes) for word_bytes in (1, 3, 4)]
    return min(sizes, key=lambda digits: digits.bytes_for(count))


def has_table_of_digits(digits: Digits, count: int) -> bool:
    """True where a byte's digits are looked up: less is computed on the way than by division."""
    return digits.word_bytes == 1 and count >= LEAST_LOOKED_UP


def index_digits(content: Content, values: Bits, digits: Digits) -> Array:
    """Index of each element in the sorted `values`, as digits to their number as a base."""
    parts = []
    # blocks of whole words, so that none ends within one
    granule = digits.per_word
    for block in content.bit_blocks(granule):
        index = np.searchsorted(values, block)
        words = digits.packed(index)
        parts.append(words)
    return np.concatenate(parts)


def nonzeros(content: Content) -> Bits:
    """The elements that are not zero, in their order: (nonzeros,)."""
    kind = content.bit_type
    nothing = np.zeros(0, kind)
    parts: list[Bits] = [nothing]
    for block in content.bit_blocks():
        is_nonzero = block != 0
        kept = block[is_nonzero]
        parts.append(kept)
    return np.concatenate(parts)


def gap_entries(content: Content, longest: int) -> tuple[Bytes, Bits]:
    """Distances from one entry to the next, and the entries: nonzeros, and zeros as fillers.

    The first distance is from the first element, all others are at least 1. A filler is written
    where the next nonzero lies further away than `longest`.
    """
    distances: list[Bytes] = []
    entries: list[Bits] = []
    last = -1
    tensor = content.tensor
    for start, block in bit_blocks(tensor):
        inside = np.flatnonzero(block)
        if not inside.size:
            continue
        places = inside + start
        gaps = np.diff(places, prepend=last)
        last_place = places[-1]
        last = int(last_place)
        skipped = gaps - 1
        fillers = skipped // longest
        # each nonzero stands behind its fillers
        taken = fillers + 1
        counts = np.cumsum(taken)
        ends = counts - 1
        total = counts[-1]
        size = int(total)
        filled = fillers * longest
        rest = gaps - filled
        distance = np.full(size, longest, np.uint8)
        distance[ends] = rest
        distances.append(distance)
        nonzero = block[inside]
        kind = block.dtype
        entry = np.zeros(size, kind)
        entry[ends] = nonzero
        entries.append(entry)
    # counted so far from the place before the first element
    first = distances[0]
    first[0] -= 1
    all_distances = np.concatenate(distances)
    all_entries = np.concatenate(entries)
    return all_distances, all_entries
