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
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .channel_layout import Layout
from .lazy import blocks, map_blocks

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

COST = 0.5
"""Cost of cutting a pair by the square, h g / (h + g), where h and g are 1."""

NEAR = 1e-5
"""Share of the limit by which a pair may miss it and is still looked at: float32 errs by less."""

Index = slice | NDArray[np.intp]
Rows = NDArray[Any]
T = TypeVar("T")


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
        first = rows[:, self.first]
        second = rows[:, self.second]
        return first, second

    def of_part(self, width: int) -> KernelPairs:
        """The pairs within the first `width` columns, which cut none of them apart."""
        if isinstance(self.first, slice):
            return neighbours(width)
        return self

    def indices(self) -> NDArray[np.intp]:
        """Both columns of every pair as one array (pairs, 2)."""
        first = _as_array(self.first)
        second = _as_array(self.second)
        columns = np.stack([first, second], axis=1)
        return columns.astype(np.intp)


def _as_array(index: Index) -> NDArray[np.intp]:
    if isinstance(index, slice):
        return np.arange(index.stop)[index]
    return index


LIMITED = "pairs_within_limit"
"""Key of a tensor's `meta`: the layout and the pairs that its kernel keeps within the limit."""

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
    if op_type in NEVER_SATURATING:
        return NO_PAIRS
    if math.prod(shape) == 0:
        return NO_PAIRS
    if "Conv" in op_type:
        dims = tuple(int(dim) for dim in shape)
        return _conv_pairs(dims, groups)
    width = math.prod(shape[:-1])
    if len(shape) <= 2:
        return neighbours(width)
    inner = int(shape[-2])
    if inner % 2 == 0 or inner == width:
        return neighbours(width)
    # each matrix of a batch is read by itself: the last row of an odd one stands alone
    matrices = np.arange(0, width, inner)
    within = np.arange(0, inner - 1, 2)
    starts = matrices[:, None] + within
    first = starts.reshape(-1).astype(np.intp)
    return KernelPairs(
        first=first,
        second=first + 1,
        count=first.size,
    )


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
    flat = np.arange(width, dtype=np.intp)
    stored = flat.reshape(channels, *kernel)
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
    lowest = codes.min(initial=0)
    highest = codes.max(initial=0)
    largest = max(-int(lowest), int(highest))
    if largest > PAIR_LIMIT:
        sums = largest_sums(codes, pairs)
        beyond: NDArray[np.bool_] = sums > PAIR_LIMIT
        return beyond
    # no code is beyond the limit alone: only a sum of two with one sign is, which is the plain sum
    first, second = pairs.of(codes)
    first, second = _summable(first, second)
    return _beyond(first + second)


def largest_sums(codes: Rows, pairs: KernelPairs) -> Rows:
    """Magnitude of the larger sum of each pair, of its positive or of its negative weights."""
    first, second = pairs.of(codes)
    return sums_of_one_sign(first, second)


def sums_of_one_sign(first: Rows, second: Rows) -> Rows:
    """|a + b| where both have one sign, else the larger of |a| and |b|, elementwise."""
    first, second = _summable(first, second)
    first_above = np.maximum(first, 0)
    second_above = np.maximum(second, 0)
    highest = first_above + second_above
    first_below = np.minimum(first, 0)
    second_below = np.minimum(second, 0)
    lowest = first_below + second_below
    largest: Rows = np.maximum(highest, -lowest)
    return largest


def _summable(first: Rows, second: Rows) -> tuple[Rows, Rows]:
    # two of int8 may sum to more than it holds
    if first.dtype == np.int8:
        return first.astype(np.int16), second.astype(np.int16)
    return first, second


def _beyond(sums: Rows) -> NDArray[np.bool_]:
    """Mask of sums beyond the limit; makes them magnitudes, in place."""
    magnitudes = np.abs(sums, out=sums)
    beyond: NDArray[np.bool_] = magnitudes > PAIR_LIMIT
    return beyond


def _places(mask: NDArray[np.bool_]) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Rows and columns of the true elements, in the order in which they lie in memory."""
    rows, columns = mask.shape
    # flat, as numpy finds the places of one axis several times as fast as those of two
    if mask.flags.c_contiguous:
        flat = np.flatnonzero(mask)
        row, column = np.divmod(flat, max(columns, 1))
    else:
        flat = np.flatnonzero(mask.T)
        column, row = np.divmod(flat, max(rows, 1))
    return row, column


def keep_within(
    codes: Rows, exact: Rows, pairs: KernelPairs, importance: Rows | None = None
) -> None:
    """Cut the offending pairs of `codes` in place, with the least squared error.

    Shapes: codes, exact (channels, width), `codes` whole floats of at most 127, `exact` the weights
    in units of a code; importance (channels or 1, width) of each weight's squared error, all equal
    where it is None. Follows from the definition: with a + b = 128 the error h (a - x)^2 +
    g (b - y)^2 is least where x + y - 128 is shared out as g to h.
    """
    # none of `codes` is beyond the limit alone: only a sum of two with one sign is
    codes_of_first, codes_of_second = pairs.of(codes)
    sums = np.add(codes_of_first, codes_of_second)
    row, pair = _places(_beyond(sums))
    if not row.size:
        return
    columns = pairs.indices()[pair]
    first = (row, columns[:, 0])
    second = (row, columns[:, 1])
    # both weights of an offending pair have one sign
    sign = np.sign(codes[first])
    x = exact[first] * sign
    y = exact[second] * sign
    share = np.full(row.size, 0.5)
    if importance is not None:
        weights = np.broadcast_to(importance, exact.shape)
        h = weights[first]
        g = weights[second]
        total = h + g
        matters = total > 0
        divisor = np.where(matters, total, 1.0)
        share_of_second = g / divisor
        share = np.where(matters, share_of_second, 0.5)
    excess_of_pair = x + y - PAIR_LIMIT
    exact_best = x - excess_of_pair * share
    best = np.rint(exact_best)
    kept = np.clip(best, 1, LARGEST_CODE)
    remainder = PAIR_LIMIT - kept
    codes[first] = sign * kept
    codes[second] = sign * remainder


def excess(
    exact: Rows, pairs: KernelPairs, importance: Rows | None = None
) -> NDArray[np.float64]:
    """Histogram of the pairs of one sign that sum to more than the limit, bin i of sum 128 + i.

    Shapes: exact (channels, width) in units of a code -> (channels, 127). Each pair weighs
    h g / (h + g), the cost of cutting it by the square, with `importance` as in `keep_within`.
    Additive over parts of a row.
    """
    histograms = np.zeros((len(exact), BINS))
    first, second = pairs.of(exact)
    is_beyond = _beyond(first + second)
    row, pair = _places(is_beyond)
    a = first[row, pair]
    b = second[row, pair]
    bins, has_bin = _excess_bins(a, b, row)
    cost = np.full(bins.size, COST)
    if importance is not None:
        importance_rows = np.atleast_2d(importance)
        of_first, of_second = pairs.of(importance_rows)
        every_h = np.broadcast_to(of_first, first.shape)
        every_g = np.broadcast_to(of_second, first.shape)
        row = row[has_bin]
        pair = pair[has_bin]
        h = every_h[row, pair]
        g = every_g[row, pair]
        divisor = np.maximum(h + g, 1e-300)
        cost = h * g / divisor
    add_excess(histograms, bins, cost)
    return histograms


def add_excess(
    histograms: NDArray[np.float64],
    bins: NDArray[np.intp],
    cost: NDArray[np.float64] | None = None,
) -> None:
    """Add pairs to contiguous histograms (channels, 127) in place: few of all bins change.

    `bins`: those of the pairs, numbered over all channels; `cost`: None, where no weight matters
    more than another.
    """
    if cost is None:
        cost = np.full(bins.size, COST)
    flat = histograms.reshape(-1)
    np.add.at(flat, bins, cost)


@dataclass(frozen=True, eq=False)
class NearPairs:
    """Pairs of weights that come near the limit, or are beyond it: channel, both weights.

    Shapes: (pairs,) each.
    """

    row: NDArray[np.intp]
    a: Rows
    b: Rows

    def bins(self, factors: NDArray[np.float32]) -> NDArray[np.intp]:
        """Bins of `add_excess` of those beyond the limit, in units of a code.

        `factors`: codes of a weight of 1, by channel.
        """
        own = factors[self.row]
        a = self.a * own
        b = self.b * own
        is_beyond = _beyond(a + b)
        a_beyond = a[is_beyond]
        b_beyond = b[is_beyond]
        row = self.row[is_beyond]
        bins, _ = _excess_bins(a_beyond, b_beyond, row)
        return bins


def near_pairs(
    rows: Rows,
    limits: NDArray[np.floating[Any]],
    pairs: KernelPairs,
    first_row: int = 0,
) -> NearPairs:
    """The pairs whose magnitude of their sum is near a limit of their channel, or beyond it.

    Few are: only those need be scaled as their codes are. Shapes: rows (channels, width), limits
    (channels,). `first_row`: number of the first channel.
    """
    # sums of narrower floats err by more, and may overflow
    dtype = np.promote_types(rows.dtype, np.float32)
    wide = rows.astype(dtype, copy=False)
    first, second = pairs.of(wide)
    # infinity and NaN are for the caller to refuse
    with np.errstate(invalid="ignore", over="ignore"):
        sums = first + second
    magnitudes = np.abs(sums, out=sums)
    exact_slack = limits * (1 - NEAR)
    slack = exact_slack.astype(wide.dtype)
    is_near = magnitudes > slack[:, None]
    row, pair = _places(is_near)
    a = first[row, pair]
    b = second[row, pair]
    return NearPairs(row + first_row, a, b)


def _excess_bins(
    a: Rows, b: Rows, row: NDArray[np.intp]
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """Bins of pairs beyond the limit that have one sign, and the mask of those: (pairs,) each."""
    have_one_sign = a * b > 0
    magnitudes = np.abs(a + b)
    total = magnitudes[have_one_sign]
    sums = np.rint(total).astype(np.intp)
    beyond = sums - PAIR_LIMIT
    bins = np.minimum(beyond, BINS - 1)
    # one histogram a channel, side by side
    first_bins = row[have_one_sign] * BINS
    return first_bins + bins, have_one_sign


def channel_factors(
    spread: NDArray[np.float64], importance: NDArray[np.float64] | float
) -> NDArray[np.float64]:
    """The factor on each channel's scale with the least expected error.

    A larger scale rounds every weight more coarsely, factor**2 / 12 each, and cuts fewer pairs.
    `importance`: summed over the weights of a channel that are not zero. 1 where nothing exceeds
    the limit. Shapes: spread (channels, 127), importance (channels,) -> (channels,).
    """
    # few sums come near twice the limit
    is_occupied = spread.any(axis=0)
    occupied = np.flatnonzero(is_occupied)
    bins = 0
    if occupied.size:
        bins = occupied[-1] + 1
    sums = PAIR_LIMIT + np.arange(bins)
    limits = PAIR_LIMIT * FACTORS
    over = sums[:, None] - limits
    beyond = np.maximum(over, 0.0)
    squares = beyond**2
    # not `@`: the threads of BLAS go on spinning, beside those that compute blocks
    cutting = np.einsum("cb,bf->cf", spread[:, :bins], squares)
    weight = np.asarray(importance).reshape(-1, 1)
    # 1/12: variance of rounding to the nearest whole number
    rounding = weight * FACTORS**2 / 12
    error = cutting + rounding
    best = error.argmin(axis=1)
    factors = FACTORS[best]
    return np.asarray(factors)


def rows_of(
    tensor: ir.TensorProtocol, layout: Layout, pairs: KernelPairs | None = None
) -> Iterator[tuple[NDArray[Any], slice]]:
    """A weight block by block as (channels, width), no pair cut apart, with those channels."""
    granule = pair_granule(layout, pairs)
    for start, block in blocks(tensor, granule):
        yield _as_rows(block, start, layout)


def map_rows(
    function: Callable[[NDArray[Any], slice], T],
    tensor: ir.TensorProtocol,
    layout: Layout,
    pairs: KernelPairs | None = None,
) -> Iterator[T]:
    """Yield function(rows, channels) of each of `rows_of`, in order, several computed at once."""

    def computed(block: NDArray[Any], start: int) -> T:
        rows, channels = _as_rows(block, start, layout)
        return function(rows, channels)

    granule = pair_granule(layout, pairs)
    return map_blocks(computed, tensor, granule)


def _as_rows(
    block: NDArray[Any], start: int, layout: Layout
) -> tuple[NDArray[Any], slice]:
    view, channels = layout.view(block, start)
    return layout.rows(view), channels


def pair_granule(layout: Layout, pairs: KernelPairs | None) -> int:
    """Elements that a streamed block must hold a multiple of, so that it cuts no pair apart."""
    if pairs is None or not pairs.count:
        return layout.granule
    # with channels first a block holds whole rows, and pairs lie within a row
    if layout.outer == 1:
        return layout.granule
    # neighbours along the outer axis make pairs
    if isinstance(pairs.first, slice):
        return layout.granule * 2
    # any two places of it do
    return layout.granule * layout.outer
