"""Palettes of weights that train: the few codes that the channels of a weight have."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.channel_palettes import channel_palettes_of

Floats = NDArray[np.float64]

LEAST_REPEATS = 2
"""Times that codes of a channel occur, in the mean, where they are a palette; chosen by hand."""


@dataclass(frozen=True, eq=False)
class ChannelValues:
    """Codes that channels may have. `axis`: channels of the weight.

    `values`: (tables, count), ascending, some perhaps twice; neighbouring channels share a table.
    """

    axis: int
    values: Floats

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest code of the whole weight."""
        return float(self.values.min()), float(self.values.max())

    def cells(self, codes: Floats, share: float) -> tuple[Floats, Floats]:
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


def palette_of(tensor: ir.TensorProtocol) -> ChannelValues | None:
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
