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
        before = shape[:axis]
        after = shape[axis + 1 :]
        return cls(
            outer=math.prod(before),
            channels=shape[axis],
            inner=math.prod(after),
        )

    @property
    def granule(self) -> int:
        """Elements of which a streamed block must hold a multiple to reshape to whole channels."""
        if self.outer == 1:
            return self.inner
        return self.channels * self.inner

    def view(self, block: NDArray[Any], start: int) -> tuple[NDArray[Any], slice]:
        """A flat block as (outer, channels, inner), and the channels that it holds."""
        if self.outer > 1:
            all_channels = slice(None)
            view = block.reshape(-1, self.channels, self.inner)
            return view, all_channels
        # channels lie one behind the other: a block holds some of them
        view = block.reshape(1, -1, self.inner)
        held = view.shape[1]
        first = start // max(self.inner, 1)
        return view, slice(first, first + held)

    def rows(self, view: NDArray[Any]) -> NDArray[Any]:
        """(outer, channels, inner) as (channels, width).

        Copied only where the channels lie between other axes.
        """
        if len(view) == 1:
            only = view[0]
            return np.asarray(only)
        # a transposed view, without a copy
        if self.inner == 1:
            by_outer = view[:, :, 0]
            return np.asarray(by_outer.T)
        channels = view.shape[1]
        channels_first = np.moveaxis(view, 1, 0)
        return channels_first.reshape(channels, -1)
