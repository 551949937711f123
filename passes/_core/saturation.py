"""Pairs of 8-bit weights that saturate integer kernels of x86 CPUs without VNNI, and remedies.

Those kernels multiply unsigned 8-bit activations by signed 8-bit weights with an instruction that
adds two neighbouring products in a *saturating* 16-bit integer. Two weights that meet in it are a
pair; a pair is safe for every input if its positive weights sum to at most 128, and its negative
ones to at least -128.

Weights are seen here as rows (channels, width): the output channel axis first, the others flattened
in order.

Source: Intel's VPMADDUBSW; the order of weights in ONNX Runtime's kernels was probed pair by pair.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .channel_layout import Layout
from .lazy import blocks

PAIR_LIMIT = 128
"""Largest sum of two weights of one sign.

255 * 128 = 32640 still fits into 16 bits, 255 * 129 does not.
"""

LARGEST_CODE = 127
"""Largest magnitude of a weight's code: int8 without -128, so that ranges are symmetric."""

SATURATING_CPUS = "x86 CPUs without VNNI (AVX2, and AVX-512 before Cascade Lake)"

NEVER_SATURATING = frozenset({"ConvInteger"})
"""Ops on 8-bit integers whose kernels add products in 32 bits on every CPU."""

FACTORS = np.linspace(1.0, 2.0, 33)
"""Scales tried for a channel, in units of the one that makes its largest weight 127.

With twice that no two codes reach the limit. The number of steps was chosen by hand.
"""

BINS = 2 * LARGEST_CODE - PAIR_LIMIT + 1
"""Bins of a histogram over the sum of a pair: one for each of 128 … 254."""

Index = slice | NDArray[np.intp]
Rows = NDArray[Any]


@dataclass(frozen=True, eq=False)
class KernelPairs:
    """Columns of a weight's rows that meet in one instruction: `first[i]` and `second[i]`.

    The rest stand alone. Slices where the pairs are neighbours, so that taking them copies nothing.
    """

    first: Index
    second: Index
    count: int

    def of(self, rows: Rows) -> tuple[Rows, Rows]:
        """Both columns of every pair: (channels, width) -> two arrays (channels, pairs)."""
        return rows[:, self.first], rows[:, self.second]

    def of_part(self, width: int) -> KernelPairs:
        """The pairs within the first `width` columns, which cut none of them apart."""
        return neighbours(width) if isinstance(self.first, slice) else self

    def indices(self) -> NDArray[np.intp]:
        """Both columns of every pair as one array (pairs, 2)."""
        columns = [_as_array(self.first), _as_array(self.second)]
        return np.stack(columns, axis=1).astype(np.intp)


def _as_array(index: Index) -> NDArray[np.intp]:
    if isinstance(index, slice):
        return np.arange(index.stop)[index]
    return index


NO_PAIRS = KernelPairs(slice(0, 0), slice(0, 0), 0)
"""Pairs of a weight whose elements never meet in a saturating instruction: none."""


@functools.lru_cache(256)
def neighbours(width: int) -> KernelPairs:
    """Pairs of weights that lie next to each other in a row of `width`."""
    count = width // 2
    if count == 0:
        return NO_PAIRS
    end = 2 * count
    return KernelPairs(
        slice(0, end, 2),
        slice(1, end, 2),
        count,
    )


def kernel_pairs(op_type: str, shape: Sequence[int], groups: int = 1) -> KernelPairs:
    """The pairs in which ONNX Runtime's kernels read a weight of an op.

    Shapes: Conv (M, C / groups, *K); MatMul and Gemm (..., K, N), also where it is stored
    transposed. A Conv runs through (kernel row, kernel column, channel), channel fastest, whatever
    the layout of its images; an odd number of channels makes pairs run over to the next position. A
    depthwise Conv has a kernel of its own.
    """
    if op_type in NEVER_SATURATING or math.prod(shape) == 0:
        return NO_PAIRS
    if "Conv" in op_type:
        dims = tuple(int(dim) for dim in shape)
        return _conv_pairs(dims, groups)
    width = math.prod(shape[:-1])
    inner = int(shape[-2]) if len(shape) > 2 else width
    if inner % 2 == 0 or inner == width:
        return neighbours(width)
    # each matrix of a batch is read by itself: the last row of an odd one stands alone
    matrices = np.arange(0, width, inner)
    within = np.arange(0, inner - 1, 2)
    starts = matrices[:, None] + within
    first = starts.reshape(-1).astype(np.intp)
    return KernelPairs(first, first + 1, first.size)


@functools.lru_cache(256)
def _conv_pairs(shape: tuple[int, ...], groups: int) -> KernelPairs:
    outputs, channels, *kernel = shape
    is_depthwise = channels == 1 and groups == outputs and groups > 1
    if is_depthwise:
        return NO_PAIRS
    positions = math.prod(kernel)
    width = channels * positions
    if channels == 1 or positions == 1:
        return neighbours(width)
    stored = np.arange(width, dtype=np.intp).reshape(channels, *kernel)
    order = np.moveaxis(stored, 0, -1).reshape(-1)
    count = width // 2
    end = 2 * count
    return KernelPairs(
        order[0:end:2],
        order[1:end:2],
        count,
    )


def offending(codes: Rows, pairs: KernelPairs) -> NDArray[np.bool_]:
    """Mask of pairs that saturate for some input.

    Shapes: codes (channels, width), whole numbers -> (channels, pairs).
    """
    beyond: NDArray[np.bool_] = largest_sums(codes, pairs) > PAIR_LIMIT
    return beyond


def largest_sums(codes: Rows, pairs: KernelPairs) -> Rows:
    """Magnitude of the larger sum of each pair, of its positive or of its negative weights."""
    return sums_of_one_sign(*pairs.of(codes))


def sums_of_one_sign(first: Rows, second: Rows) -> Rows:
    """|a + b| where both have one sign, else the larger of |a| and |b|, elementwise."""
    # two of int8 may sum to more than it holds
    if first.dtype == np.int8:
        first = first.astype(np.int16)
        second = second.astype(np.int16)
    highest = np.maximum(first, 0) + np.maximum(second, 0)
    lowest = np.minimum(first, 0) + np.minimum(second, 0)
    largest: Rows = np.maximum(highest, -lowest)
    return largest


def keep_within(
    codes: Rows, exact: Rows, pairs: KernelPairs, importance: Rows | None = None
) -> None:
    """Cut the offending pairs of `codes` in place, with the least squared error.

    Shapes: codes, exact (channels, width), `exact` the weights in units of a code; importance
    (channels or 1, width) of each weight's squared error, all equal where it is None. Follows from
    the definition: with a + b = 128 the error h (a - x)^2 + g (b - y)^2 is least where x + y - 128
    is shared out as g to h.
    """
    row, pair = np.nonzero(offending(codes, pairs))
    if not row.size:
        return
    first, second = pairs.indices()[pair].T
    # both weights of an offending pair have one sign
    sign = np.sign(codes[row, first])
    x = exact[row, first] * sign
    y = exact[row, second] * sign
    share = np.full(row.size, 0.5)
    if importance is not None:
        weights = np.broadcast_to(importance, exact.shape)
        h = weights[row, first]
        g = weights[row, second]
        total = h + g
        divisor = np.where(total > 0, total, 1.0)
        share = np.where(
            total > 0,
            g / divisor,
            0.5,
        )
    excess_of_pair = x + y - PAIR_LIMIT
    best = np.rint(x - excess_of_pair * share)
    kept = np.clip(best, 1, LARGEST_CODE)
    codes[row, first] = sign * kept
    codes[row, second] = sign * (PAIR_LIMIT - kept)


def excess(
    exact: Rows, pairs: KernelPairs, importance: Rows | None = None
) -> NDArray[np.float64]:
    """Histogram of the pairs of one sign that sum to more than the limit, bin i of sum 128 + i.

    Shapes: exact (channels, width) in units of a code -> (channels, 127). Each pair weighs
    h g / (h + g), the cost of cutting it by the square, with `importance` as in `keep_within`.
    Additive over parts of a row.
    """
    first, second = pairs.of(exact)
    magnitude = np.abs(first) + np.abs(second)
    total = np.where(
        first * second > 0,
        magnitude,
        0.0,
    )
    row, pair = np.nonzero(total > PAIR_LIMIT)
    cost: Any = 0.5
    if importance is not None:
        of_first, of_second = pairs.of(np.atleast_2d(importance))
        h = np.broadcast_to(of_first, total.shape)[row, pair]
        g = np.broadcast_to(of_second, total.shape)[row, pair]
        cost = h * g / np.maximum(h + g, 1e-300)
    sums = np.rint(total[row, pair]).astype(np.intp)
    bins = np.minimum(sums - PAIR_LIMIT, BINS - 1)
    # one histogram a channel, side by side
    flat = row * BINS + bins
    weights = np.broadcast_to(cost, flat.shape)
    counted = np.bincount(
        flat,
        weights=weights,
        minlength=len(exact) * BINS,
    )
    return counted.reshape(len(exact), BINS).astype(np.float64)


def channel_factors(
    spread: NDArray[np.float64], importance: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """The factor on each channel's scale with the least expected error.

    A larger scale rounds every weight more coarsely, factor**2 / 12 each, and cuts fewer pairs.
    `importance`: summed over the weights of a channel that are not zero. 1 where nothing exceeds
    the limit. Shapes: spread (channels, 127), importance (channels,) -> (channels,).
    """
    sums = PAIR_LIMIT + np.arange(BINS)
    beyond = np.maximum(sums[:, None] - PAIR_LIMIT * FACTORS, 0.0)
    cutting = spread @ beyond**2
    # 1/12: variance of rounding to the nearest whole number
    rounding = np.asarray(importance).reshape(-1, 1) * FACTORS**2 / 12
    best = (cutting + rounding).argmin(axis=1)
    return np.asarray(FACTORS[best])


def rows_of(
    tensor: ir.TensorProtocol, layout: Layout, pairs: KernelPairs | None = None
) -> Iterator[tuple[NDArray[Any], slice]]:
    """A weight block by block as (channels, width), no pair cut apart, with those channels."""
    for start, block in blocks(tensor, pair_granule(layout, pairs)):
        view, channels = layout.view(block, start)
        yield layout.rows(view), channels


def pair_granule(layout: Layout, pairs: KernelPairs | None) -> int:
    """Elements that a streamed block must hold a multiple of, so that it cuts no pair apart."""
    # with channels first a block holds whole rows, and pairs lie within a row
    if layout.outer == 1 or pairs is None or not pairs.count:
        return layout.granule
    # neighbours along the outer axis make pairs, or any two places of it
    outer = 2 if isinstance(pairs.first, slice) else layout.outer
    return layout.granule * outer
