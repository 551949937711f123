"""Survey of a weight: all that its scales follow from, gathered in one pass over it.

The pairs that saturate depend on the scale, and that on the largest weight, which is known at the
end. But it only grows on the way: a pair below the limit of the largest weight so far stays below.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import in_order
from .._core.saturation import (
    BINS,
    PAIR_LIMIT,
    KernelPairs,
    NearPairs,
    add_excess,
    channel_factors,
    map_rows,
    near_pairs,
)
from .weights import LEAST_SCALE, Floats, channel_absmax

MOST_KEPT = 1 / 8
"""Pairs that are kept at most, a share of the elements: more take another pass over the weight."""

BATCH = 8
"""Blocks whose pairs a thread scales at a time. Chosen by hand; not measured."""

MOST_IN_BYTE = 255
"""Largest count that a byte holds."""


@dataclass(frozen=True, eq=False)
class Survey:
    """Facts about a weight, by channel: max|w|, nonzeros, and the pairs that may saturate.

    `nonzeros`, `near`: of limited pairs only; `near` None: they are too many to keep.
    """

    highest: Floats
    nonzeros: NDArray[np.int64]
    near: list[NearPairs] | None


def survey(
    tensor: ir.TensorProtocol, layout: Layout, pairs: KernelPairs | None, levels: int
) -> Survey:
    """Gather what `limited_scales` needs; `levels`: the largest code, that of the largest weight.

    Where no pairs are limited, max|w| alone.
    """
    counts = np.zeros(layout.channels, np.int64)
    if pairs is None:
        absmax = channel_absmax(tensor, layout)
        return Survey(absmax, counts, None)
    highest = np.zeros(layout.channels, np.float32)
    per_weight = PAIR_LIMIT / levels

    def looked_at(
        rows: NDArray[Any], channels: slice
    ) -> tuple[slice, Floats, NDArray[np.int32], NearPairs]:
        largest = largest_of(rows)
        # blocks before this one may still be on other threads: any of them narrows the search
        so_far = np.maximum(highest[channels], largest)
        limits = so_far * per_weight
        near = _near_of_rows(rows, channels, limits, pairs)
        nonzero = nonzeros(rows)
        return channels, largest, nonzero, near

    kept: list[NearPairs] | None = []
    size = 0
    most = MOST_KEPT * tensor.size
    for found in map_rows(looked_at, tensor, layout, pairs):
        channels, largest, nonzero, near = found
        so_far = highest[channels]
        highest[channels] = np.maximum(so_far, largest)
        # zeros, pruned perhaps, lose nothing by rounding
        counts[channels] += nonzero
        size += near.row.size
        if size > most:
            kept = None
        if kept is not None:
            kept.append(near)
    return Survey(highest, counts, kept)


def _near_of_rows(
    rows: NDArray[Any],
    channels: slice,
    limits: NDArray[np.floating[Any]],
    pairs: KernelPairs,
) -> NearPairs:
    """Pairs of some channels' rows that are near the limits: (channels, width), (channels,)."""
    width = rows.shape[1]
    part = pairs.of_part(width)
    first_row = channels.start or 0
    return near_pairs(rows, limits, part, first_row)


def largest_of(rows: NDArray[Any]) -> Floats:
    """Return max|w| of each row, NaN where it holds NaN: (channels, width) -> (channels,)."""
    # not np.abs: it would copy the whole block
    highest = rows.max(axis=1, initial=0)
    lowest = rows.min(axis=1, initial=0)
    exact = np.maximum(highest, -lowest)
    return np.asarray(exact, np.float32)


def nonzeros(rows: NDArray[Any]) -> NDArray[np.int32]:
    """Number of nonzeros of each row: (channels, width) -> (channels,)."""
    is_nonzero = rows != 0
    channels, width = rows.shape
    counts = np.zeros(channels, np.int32)
    if rows.flags.c_contiguous:
        is_nonzero.sum(axis=1, dtype=np.int32, out=counts)
        return counts
    # each of few long columns is added to the counts: in bytes, several times as fast
    ones = is_nonzero.view(np.uint8)
    for first in range(0, width, MOST_IN_BYTE):
        last = first + MOST_IN_BYTE
        few = ones[:, first:last]
        counts += few.sum(axis=1, dtype=np.uint8)
    return counts


def limited_scales(
    tensor: ir.TensorProtocol,
    layout: Layout,
    scales: Floats,
    pairs: KernelPairs,
    found: Survey,
) -> Floats:
    """Scales enlarged where that costs less than cutting the pairs beyond the limit.

    The expected error counts, without data. `found`: the weight's survey.
    """
    usable = scales > LEAST_SCALE
    divisors = np.where(usable, scales, 1.0)
    reciprocals = 1.0 / divisors
    inverse = np.where(usable, reciprocals, 0.0)
    factors = inverse.astype(np.float32)
    near: Iterable[NearPairs] | None = found.near
    if near is None:
        limits = scales * PAIR_LIMIT
        near = _near(tensor, layout, limits, pairs)
    spread = np.zeros((layout.channels, BINS))
    tasks = (partial(each.bins, factors) for each in near)
    for bins in in_order(tasks, BATCH):
        add_excess(spread, bins)
    counts = found.nonzeros.astype(np.float64)
    growth = channel_factors(spread, counts)
    enlarged = scales * growth
    return enlarged.astype(np.float32)


def _near(
    tensor: ir.TensorProtocol, layout: Layout, limits: Floats, pairs: KernelPairs
) -> Iterator[NearPairs]:
    """Pairs near the limits of their channels, block by block."""

    def searched(rows: NDArray[Any], channels: slice) -> NearPairs:
        own_limits = limits[channels]
        return _near_of_rows(rows, channels, own_limits, pairs)

    return map_rows(searched, tensor, layout, pairs)
