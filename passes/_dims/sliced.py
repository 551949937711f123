"""A tensor of which only some slots of some axes are kept: weights are re-described, not copied."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import DerivedTensor, Part, blocks


class SlicedTensor(DerivedTensor):
    """A tensor that streams some slots of another, in whole rows of the first axis.

    Shapes: (d0, d1, ...) -> (len(kept[0]) or d0, ...). `kept`: by axis, the indices that stay,
    ascending. Errors: none beyond those of reading the source.
    """

    def __init__(
        self,
        source: ir.TensorProtocol,
        kept: Mapping[int, NDArray[np.intp]],
    ) -> None:
        super().__init__(source, _unused, source.dtype)
        self.kept = dict(kept)
        self._before = [int(size) for size in source.shape.numpy()]
        self._after = list(self._before)
        for axis, slots in self.kept.items():
            self._after[axis] = len(slots)
        self.shape = ir.Shape(self._after)

    @property
    def size(self) -> int:
        return prod(self._after)

    def parts(self, granule: int = 1, every: int = 1) -> Iterator[tuple[int, Part]]:
        """Yield (start, part) in order; of `every` so many one, computed already.

        Lengths are multiples of `granule`; the last may be short.
        """
        # each begins where the one before ends: none can be passed over unread
        found = itertools.islice(self._every_block(granule), 0, None, every)
        for start, block in found:
            yield start, functools.partial(np.asarray, block)

    def _every_block(self, granule: int) -> Iterator[tuple[int, NDArray[Any]]]:
        start = 0
        rest = np.empty(0, self.dtype.numpy())
        for rows in self._rows():
            if rest.size:
                rows = np.concatenate([rest, rows])
            rest = rows
            # what does not fill a granule waits for the next rows
            whole = rest.size // granule * granule
            if whole:
                yield start, rest[:whole]
                start += whole
                rest = rest[whole:]
        if rest.size:
            yield start, rest

    def _rows(self) -> Iterator[NDArray[Any]]:
        wanted = self.kept.get(0)
        if wanted is None:
            wanted = np.arange(self._before[0])
        inner = self._before[1:]
        row_size = max(prod(inner), 1)
        row = 0
        for _, block in blocks(self.source, row_size):
            # blocks of the source are whole rows, as many as it likes
            slab = block.reshape(-1, *inner)
            end = row + len(slab)
            first, last = np.searchsorted(wanted, (row, end))
            here = wanted[first:last] - row
            row = end
            if len(here):
                taken = self._taken(slab, here)
                yield taken.reshape(-1)

    def _taken(self, slab: NDArray[Any], rows: NDArray[np.intp]) -> NDArray[Any]:
        """Take the slots of some rows, axis by axis: each take reads what the one before left."""
        taken = slab
        if len(rows) < len(slab):
            taken = slab[rows]
        for axis in range(1, slab.ndim):
            if axis in self.kept:
                taken = np.take(taken, self.kept[axis], axis)
        return taken


def _unused(block: NDArray[Any], start: int) -> NDArray[Any]:
    raise AssertionError("a sliced tensor makes its own blocks")
