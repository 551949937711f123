"""Elements of a sample in parts: patches of an image, stretches of tokens, frames or columns."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .samples import DataSample

Random = np.random.Generator
Labels = NDArray[np.int64]

MOST = 64
"""Stretches of a row of tokens, frames or columns, at most. Chosen by hand."""


@dataclass(frozen=True)
class Division:
    """Division of samples by a method.

    `side`: patches along each side of an image. `shifts`: another explanation begins elsewhere.
    """

    side: int
    shifts: bool


STAYS = -1
"""Label of elements that belong to no part: they are never taken away."""


@dataclass(frozen=True)
class PartLabels:
    """The part of each element: `labels` (*E) from 0 to `count` - 1, or STAYS."""

    labels: Labels
    count: int

    def windows(self) -> NDArray[np.bool_]:
        """Neighbours that occlusion covers together, (W, P): 2 x 2 patches, 2 stretches, or a word.

        Windows overlap, so that little depends on where the grid begins.
        """
        single = np.eye(self.count, dtype=bool)
        if self.labels.ndim == 2:
            return _joined_patches(single, self.labels)
        free = self.labels[self.labels != STAYS]
        _, sizes = np.unique(free, return_counts=True)
        has_stretches = self.count > 1 and sizes.max() > 1
        if not has_stretches:
            return single
        before = single[:-1]
        behind = single[1:]
        return before | behind

    def kept_elements(self, kept: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """Elements that stay, (V, *E), where some parts stay, (V, P)."""
        # elements of no part find the column behind the last part
        shape = (len(kept), 1)
        always = np.ones(shape, bool)
        table = np.concatenate([kept, always], axis=1)
        elements = table[:, self.labels]
        return np.asarray(elements)

    def to_elements(self, weights: NDArray[np.float64]) -> NDArray[np.float64]:
        """The weight of its part for each element, (*E); 0 where it belongs to none."""
        table = np.append(weights, 0.0)
        return np.asarray(table[self.labels])


def _joined_patches(single: NDArray[np.bool_], labels: Labels) -> NDArray[np.bool_]:
    """All squares of 2 x 2 patches, (W, P); single ones where there is but one row of them."""
    # patches have numbers along rows
    first_row = labels[0]
    across = int(first_row[-1]) + 1
    places = np.arange(len(single))
    grid = places.reshape(-1, across)
    if min(grid.shape) < 2:
        return single
    # the upper left patch of each square
    corners = grid[:-1, :-1]
    first = corners.ravel()
    found = single[first]
    for step in (1, across, across + 1):
        other = first + step
        found = found | single[other]
    return found


def patches(shape: tuple[int, ...], side: int, phase: Random | None) -> Labels:
    """A grid of patches over an image (H, W), `side` along each. `phase`: draws its beginning."""
    height, width = shape
    rows = stretches(height, side, phase)
    columns = stretches(width, side, phase)
    across = int(columns[-1]) + 1
    firsts = rows * across
    return np.add.outer(firsts, columns)


def stretches(length: int, most: int, phase: Random | None) -> Labels:
    """Stretches of neighbours, of one length but at the ends: at most `most`, by a phase one more.

    `phase`: draws where the first ends.
    """
    size = math.ceil(length / most)
    shift = 0
    if phase is not None and size > 1:
        # a whole stretch further would be no other phase
        shift = int(phase.integers(1, size))
    places = np.arange(length)
    shifted = places + shift
    return np.asarray(shifted // size)


def numbered(labels: Labels, stays: NDArray[np.bool_]) -> PartLabels:
    """Parts with numbers from 0 on, without the elements that stay."""
    free = labels[~stays]
    found = np.unique(free)
    numbers = np.searchsorted(found, labels)
    own = np.where(stays, STAYS, numbers)
    return PartLabels(own, len(found))


@dataclass(frozen=True)
class Markers:
    """Tokens with which a tokenizer begins and ends every text; None: there is none."""

    first: int | None
    last: int | None

    @staticmethod
    def of(rows: Sequence[NDArray[Any]]) -> Markers:
        """Find what all texts have in common: rows of tokens, without padding."""
        firsts = [int(row[0]) for row in rows]
        lasts = [int(row[-1]) for row in rows]
        return Markers(_only(firsts), _only(lasts))

    def stays(self, tokens: NDArray[Any], counts: NDArray[np.bool_]) -> NDArray[Any]:
        """Places of a row (T,) without a word: padding, and the markers at both ends."""
        stays = ~counts
        places = np.flatnonzero(counts)
        # of very short texts all would be markers
        if len(places) < 3:
            return stays
        first = places[0]
        last = places[-1]
        if tokens[first] == self.first:
            stays[first] = True
        if tokens[last] == self.last:
            stays[last] = True
        return stays


def _only(tokens: Sequence[int]) -> int | None:
    """The token that all are; None where they differ."""
    different = set(tokens)
    if len(different) > 1:
        return None
    return different.pop()


def tokens_that_count(
    sample: DataSample, name: str, mask: str | None
) -> NDArray[np.bool_]:
    """Places of a row of tokens (T,) without the padding."""
    tokens = sample.row_of(name)
    everything = np.ones(tokens.shape, bool)
    if mask is None:
        return everything
    counts = sample.row_of(mask) != 0
    # a text of nothing is all padding
    return counts if counts.any() else everything
