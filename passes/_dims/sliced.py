"""A tensor of which only some slots of some axes are kept, lazily: weights are re-described, not
copied.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import DerivedTensor, blocks


class SlicedTensor(DerivedTensor):
    """Shapes: (d0, d1, ...) -> (len(kept[0]) or d0, ...). Streams in whole rows of the first axis.

    `kept`: by axis, the indices that stay, ascending. Errors: none beyond those of reading the
    source.
    """

    def __init__(
        self, source: ir.TensorProtocol, kept: Mapping[int, NDArray[np.intp]]
    ) -> None:
        super().__init__(source, _unused, source.dtype)
        before = [int(d) for d in source.shape.numpy()]
        self.kept = dict(kept)
        self._after = [
            len(kept[i]) if i in kept else size for i, size in enumerate(before)
        ]
        self.shape = ir.Shape(self._after)
        self._before = before

    @property
    def size(self) -> int:
        return prod(self._after)

    def blocks(self, granule: int = 1) -> Iterator[tuple[int, NDArray[Any]]]:
        """Yield (start, flat block) in order; lengths are multiples of `granule`, the last may be
        short.
        """
        start, rest = 0, np.empty(0, self.dtype.numpy())
        for rows in self._rows():
            rest = np.concatenate([rest, rows]) if rest.size else rows
            whole = rest.size // granule * granule
            if whole:
                yield start, rest[:whole]
                start, rest = start + whole, rest[whole:]
        if rest.size:
            yield start, rest

    def _rows(self) -> Iterator[NDArray[Any]]:
        inner = [np.arange(n) for n in self._before[1:]]
        for axis, slots in self.kept.items():
            if axis:
                inner[axis - 1] = slots
        wanted = self.kept.get(0, np.arange(self._before[0]))
        row = 0
        for _, block in blocks(self.source, max(prod(self._before[1:]), 1)):
            slab = block.reshape(-1, *self._before[1:])
            here = wanted[(wanted >= row) & (wanted < row + len(slab))] - row
            row += len(slab)
            if len(here):
                yield _taken(slab, here, inner, self.kept).reshape(-1)


def _taken(
    slab: NDArray[Any],
    rows: NDArray[np.intp],
    inner: list[NDArray[np.intp]],
    kept: Mapping[int, Any],
) -> Any:
    """Axis by axis, the outermost first: each take reads no more than the one before left."""
    out = slab if len(rows) == len(slab) else slab[rows]
    for axis, slots in enumerate(inner, 1):
        if axis in kept:
            out = np.take(out, slots, axis)
    return out


def _unused(block: NDArray[Any], start: int) -> NDArray[Any]:
    raise AssertionError("a sliced tensor makes its own blocks")
