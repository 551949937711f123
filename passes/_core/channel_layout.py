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
        axis %= len(shape)
        return cls(math.prod(shape[:axis]), shape[axis], math.prod(shape[axis + 1 :]))

    @property
    def granule(self) -> int:
        """Elements that a streamed block must hold a multiple of, so that it reshapes to whole
        channels.
        """
        return self.inner if self.outer == 1 else self.channels * self.inner

    def view(self, block: NDArray[Any], start: int) -> tuple[NDArray[Any], slice]:
        """A flat block as (outer, channels, inner), and which channels it holds."""
        if self.outer > 1:
            return block.reshape(-1, self.channels, self.inner), slice(None)
        first = start // max(self.inner, 1)
        rows = block.reshape(1, -1, self.inner)
        return rows, slice(first, first + rows.shape[1])

    def rows(self, view: NDArray[Any]) -> NDArray[Any]:
        """(outer, channels, inner) as (channels, width); a view but where the channels lie between
        other axes.
        """
        if len(view) == 1:
            rows = view[0]
        elif self.inner == 1:
            rows = view[:, :, 0].T
        else:
            rows = np.moveaxis(view, 1, 0).reshape(view.shape[1], -1)
        return np.asarray(rows)
