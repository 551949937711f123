"""Palettes and codebooks of weights that train: the few codes that weights may have."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.channel_palettes import channel_palettes_of
from ...passes._core.saturation import PAIR_LIMIT
from ...passes._core.vector_codebooks import (
    MOST_VECTORS,
    VectorCodebook,
    codebook_of,
    merged,
)
from ._rounding import Tensor, on_codebook, on_palette

Floats = NDArray[np.float64]

LEAST_REPEATS = 2
"""Times that codes of a channel occur, in the mean, where they are a palette; chosen by hand."""


LEAST_NONZEROS = 0.5
"""Share of the elements of a codebook that are not zero; chosen by hand: of pruned ones few are."""

AT_ONCE = 1 << 12
"""Vectors for which the distances to a whole codebook are held."""


@dataclass(frozen=True, eq=False)
class CodeValues(abc.ABC):
    """The codes that a weight may have, which train with it. `axis`: channels of the weight.

    `values`: all of them, two axes.
    """

    axis: int
    values: Floats

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest code of the whole weight."""
        return float(self.values.min()), float(self.values.max())

    @property
    @abc.abstractmethod
    def steps(self) -> float:
        """Steps between the values that a weight may have: 1 of one bit, 15 of four."""

    @abc.abstractmethod
    def rounding(self, parameter: str, values: str) -> str:
        """Source that rounds the parameter to the values, by what both are called there."""

    @abc.abstractmethod
    def rounded(self, x: Tensor, values: Tensor) -> Tensor:
        """The tensor `x` rounded to trained values."""

    @abc.abstractmethod
    def inside(self, exact: Floats, codes: Floats, share: float) -> Floats:
        """Numbers that are rounded to the codes, `share` of the way to where others begin.

        As near `exact` as they can be. Shapes: those of the weight.
        """

    @abc.abstractmethod
    def beside(self, numbers: Floats) -> tuple[Floats, Floats]:
        """Numbers between which each may move where it takes one of two values."""

    @abc.abstractmethod
    def may_move(self) -> NDArray[np.bool_]:
        """True for values that may train: zeros that pruned weights have must stay."""


class ChannelValues(CodeValues):
    """Codes that channels may have.

    `values`: (tables, count), ascending, some perhaps twice; neighbouring channels share a table.
    """

    @property
    def steps(self) -> float:
        """Steps between the values of a channel."""
        return float(self.values.shape[1] - 1)

    def rounding(self, parameter: str, values: str) -> str:
        """Source that rounds the parameter to the values of its channels."""
        return f"on_palette({parameter}, {values}, {self.axis})"

    def rounded(self, x: Tensor, values: Tensor) -> Tensor:
        """The tensor rounded to the values of its channels."""
        return on_palette(x, values, self.axis)

    def may_move(self) -> NDArray[np.bool_]:
        """False for zeros: one that moved would leave the pruned weights without one."""
        return np.asarray(self.values != 0)

    def inside(self, exact: Floats, codes: Floats, share: float) -> Floats:
        """Numbers within the cells of the codes: between those halfway to the next values."""
        lowest, highest = self._cells(codes, share)
        return np.clip(exact, lowest, highest)

    def _cells(self, codes: Floats, share: float) -> tuple[Floats, Floats]:
        """Lowest and highest number that is rounded to each code, `share` of the way there."""
        bounds = _bounds(self.values)
        rows = self._rows(codes)
        lowest = np.empty(rows.shape)
        highest = np.empty(rows.shape)
        for index, row in enumerate(rows):
            own_bounds = bounds[index]
            # a value that is there twice has one cell
            places = np.searchsorted(own_bounds, row)
            lowest[index] = own_bounds[places - 1]
            highest[index] = own_bounds[places]
        to_lowest = lowest - rows
        to_highest = highest - rows
        low = rows + share * to_lowest
        high = rows + share * to_highest
        return self._shaped(low, codes), self._shaped(high, codes)

    def beside(self, numbers: Floats) -> tuple[Floats, Floats]:
        """The values below and above each number; beyond the ends twice the end."""
        rows = self._rows(numbers)
        below = np.empty(rows.shape)
        above = np.empty(rows.shape)
        last = self.values.shape[1] - 1
        for index, row in enumerate(rows):
            own_values = self.values[index]
            # how many values are below: the place of the first that is not
            places = np.searchsorted(own_values, row)
            lower = np.clip(places - 1, 0, last)
            upper = np.clip(places, 0, last)
            below[index] = own_values[lower]
            above[index] = own_values[upper]
        return self._shaped(below, numbers), self._shaped(above, numbers)

    def _rows(self, weight: Floats) -> Floats:
        """Elements by the table that they share: (tables, elements)."""
        channels_first = np.moveaxis(weight, self.axis, 0)
        return channels_first.reshape(len(self.values), -1)

    def _shaped(self, rows: Floats, weight: Floats) -> Floats:
        """Rows in the shape of the weight that they were."""
        channels_first = np.moveaxis(weight, self.axis, 0)
        shaped = rows.reshape(channels_first.shape)
        return np.moveaxis(shaped, 0, self.axis)


class VectorValues(CodeValues):
    """Vectors that neighbouring weights of a channel may be.

    `values`: (count, length); weights of one codebook have the same array.
    """

    @property
    def steps(self) -> float:
        """Steps of as many bits a weight as the number of a vector takes."""
        length = self.values.shape[1]
        return float(MOST_VECTORS ** (1 / length) - 1)

    def rounding(self, parameter: str, values: str) -> str:
        """Source that rounds the parameter to the nearest vectors."""
        return f"on_codebook({parameter}, {values}, {self.axis})"

    def rounded(self, x: Tensor, values: Tensor) -> Tensor:
        """The tensor rounded to the nearest vectors."""
        return on_codebook(x, values, self.axis)

    def may_move(self) -> NDArray[np.bool_]:
        """False for the vector of zeros, which pruned channels have."""
        is_used = (self.values != 0).any(axis=1, keepdims=True)
        return np.broadcast_to(is_used, self.values.shape)

    def inside(self, exact: Floats, codes: Floats, share: float) -> Floats:
        """Numbers on the way from the vectors to `exact`, which no other vector is nearer to."""
        chosen = self._vectors(codes)
        wanted = self._vectors(exact)
        way = wanted - chosen
        reach = np.ones((len(way), 1))
        for start in range(0, len(way), AT_ONCE):
            part = slice(start, start + AT_ONCE)
            bound = self._bound(chosen[part], way[part])
            within = share * bound
            reach[part] = np.minimum(within, 1)
        moved = chosen + reach * way
        channels_first = np.moveaxis(codes, self.axis, 0)
        shaped = moved.reshape(channels_first.shape)
        return np.moveaxis(shaped, 0, self.axis)

    def _vectors(self, weight: Floats) -> Floats:
        """A weight cut into vectors: (n, length)."""
        length = self.values.shape[1]
        channels_first = np.moveaxis(weight, self.axis, 0)
        return channels_first.reshape(-1, length)

    def _bound(self, chosen: Floats, way: Floats) -> Floats:
        """Share of each way at which another vector becomes the nearest: (n, length) -> (n, 1)."""
        values = self.values.T
        squares = (values**2).sum(axis=0)
        own_squares = (chosen**2).sum(axis=1, keepdims=True)
        products = chosen @ values
        distances = squares + own_squares - 2 * products
        # how far the way leads to each of the others
        own_part = (way * chosen).sum(axis=1, keepdims=True)
        towards = way @ values - own_part
        leads_there = (towards > 0) & (distances > 0)
        bounds = np.full(distances.shape, np.inf)
        np.divide(
            distances,
            2 * towards,
            out=bounds,
            where=leads_there,
        )
        return np.asarray(bounds.min(axis=1, keepdims=True))

    def beside(self, numbers: Floats) -> tuple[Floats, Floats]:
        """The range of all codes: vectors have no two neighbours."""
        low, high = self.range
        return np.full(numbers.shape, low), np.full(numbers.shape, high)


def values_of(
    tensors: Iterable[tuple[ir.Value, ir.TensorProtocol]],
) -> dict[ir.Value, CodeValues]:
    """The few codes of each weight that has some: palettes of channels, or vectors.

    Weights whose vectors are of one length and few together have them in common.
    """
    found: dict[ir.Value, CodeValues] = {}
    by_length: dict[int, dict[ir.Value, VectorCodebook]] = {}
    for value, tensor in tensors:
        palette = _channel_values(tensor)
        codebook = codebook_of(tensor)
        if codebook is not None and _is_codebook(codebook, palette):
            alike = by_length.setdefault(codebook.length, {})
            alike[value] = codebook
        elif palette is not None:
            found[value] = palette
    for alike in by_length.values():
        found.update(_vector_values(alike))
    return found


def _vector_values(
    alike: Mapping[ir.Value, VectorCodebook],
) -> dict[ir.Value, VectorValues]:
    """Values of codebooks of one length, which become one where that is small enough."""
    every = [codebook.vectors for codebook in alike.values()]
    together = merged(every)
    common = together.astype(np.float64)
    found = {}
    for value, codebook in alike.items():
        vectors = common
        if len(common) > MOST_VECTORS:
            vectors = codebook.vectors.astype(np.float64)
        found[value] = VectorValues(codebook.axis, vectors)
    return found


def _is_codebook(codebook: VectorCodebook, palette: ChannelValues | None) -> bool:
    """True if vectors are what a weight was made of; other codes may have few by chance."""
    vectors = codebook.vectors.astype(np.int16)
    sizes = np.abs(vectors)
    largest = sizes.max()
    # plain codes of 8 bits, of kernels that repeat
    if largest > PAIR_LIMIT // 2:
        return False
    # pruned weights, whose zeros must stay
    nonzeros = np.count_nonzero(sizes)
    if nonzeros < LEAST_NONZEROS * sizes.size:
        return False
    if palette is None:
        return True
    # few values of channels make few vectors, too, but take fewer bits
    bits_of_palette = math.log2(palette.steps + 1)
    bits_of_vectors = math.log2(MOST_VECTORS)
    return bits_of_vectors / codebook.length < bits_of_palette


def _channel_values(tensor: ir.TensorProtocol) -> ChannelValues | None:
    """Few codes that channels have over and over; None where that may be chance."""
    found = channel_palettes_of(tensor)
    if found is None:
        return None
    shape = tuple(int(dim) for dim in tensor.shape.numpy())
    # most of many zeros are pruned, and what is left is there once or twice
    nonzeros = int(np.count_nonzero(tensor.numpy()))
    if found.table.size * LEAST_REPEATS > nonzeros:
        return None
    values = np.sort(found.table, axis=1).astype(np.float64)
    axis = 0 if found.layout.outer == 1 else len(shape) - 1
    return ChannelValues(axis, values)


def _bounds(values: Floats) -> Floats:
    """Bounds of the cells of ascending values: (channels, n) -> (channels, n + 1)."""
    far = np.full((len(values), 1), np.inf)
    lower = values[:, :-1]
    upper = values[:, 1:]
    between = (upper + lower) / 2
    return np.concatenate([-far, between, far], axis=1)
