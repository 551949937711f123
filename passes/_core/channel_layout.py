"""Weights seen around their output channel axis, block by block."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True)
class Layout:
    """A weight as (outer, channels, inner) around its output channel axis."""

    outer: int
    channels: int
    inner: int

    @classmethod
    def of(cls, shape: tuple[int, ...], axis: int) -> Layout:
        """The layout of a weight of `shape` whose output channels lie along `axis`."""
        axis %= len(shape)
        outer = math.prod(shape[:axis])
        inner = math.prod(shape[axis + 1 :])
        return cls(outer, shape[axis], inner)

    @property
    def granule(self) -> int:
        """Elements of which a streamed block must hold a multiple to reshape to whole channels."""
        return self.inner if self.outer == 1 else self.channels * self.inner

    def view(self, block: NDArray[Any], start: int) -> tuple[NDArray[Any], slice]:
        """A flat block as (outer, channels, inner), and the channels that it holds."""
        if self.outer > 1:
            return block.reshape(-1, self.channels, self.inner), slice(None)
        # channels lie one behind the other: a block holds some of them
        first = start // max(self.inner, 1)
        rows = block.reshape(1, -1, self.inner)
        return rows, slice(first, first + rows.shape[1])

    def rows(self, view: NDArray[Any]) -> NDArray[Any]:
        """(outer, channels, inner) as (channels, width).

        Copied only where the channels lie between other axes.
        """
        if len(view) == 1:
            return np.asarray(view[0])
        # a transposed view, without a copy
        if self.inner == 1:
            return np.asarray(view[:, :, 0].T)
        channels_first = np.moveaxis(view, 1, 0)
        return channels_first.reshape(view.shape[1], -1)
