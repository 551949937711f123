"""Codebooks: vectors of int8 codes, of which neighbouring weights of a channel take one together.

    channel:  0.1 -0.3 0.2 0.4 | 0.0 0.2 -0.1 0.1 | ...  ->  scale x (vector 17, vector 201, ...)

Layers whose vectors are of one length have one codebook in common, each channel a scale of its own.
A vector of nine loses 0.32 of the power of normal weights, nine signs with a scale 0.36.

Source: Stock et al., And the Bit Goes Down, ICLR 2020 (arXiv:1907.05686).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.half_precision import scales_on_halves
from .._core.vector_codebooks import (
    MOST_VECTORS,
    codebook_of,
    length_for,
    vectors_of,
)
from .palette_values import HIGHEST
from .palettes import STORED, StoredCodes
from .palettes import rescaled as rescaled_steps
from .weights import Floats

MOST_BITS = 2
"""Bits a weight beyond which palettes lose no more."""

LEAST_VECTORS = 2 * MOST_VECTORS
"""Vectors of a layer below which a codebook would take as much as it saves."""

SMALL_SHARE = 0.25
"""Share of all weights, those of the smallest layers, that get 2 bits where the others have one:
ResNet-20 keeps 86.7 % instead of 83.7 % for a tenth more bytes, before training.
"""

ROUNDS = 25
"""Times that vectors move to the mean of their weights; chosen by hand."""

MOST_FITTED = 1 << 16
"""Vectors of weights that a codebook is fitted to, 256 for each of its own; chosen by hand."""

AT_ONCE = 1 << 13
"""Vectors whose distances to a codebook are held at a time."""

Rows = NDArray[np.floating]
Vectors = NDArray[np.float32]
Scales = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Codebook:
    """`codes` (count, length), whole numbers; `unit`: root mean squares of a channel in a code."""

    codes: Vectors
    unit: float

    @property
    def length(self) -> int:
        """Weights of a vector."""
        return int(self.codes.shape[1])


def fits(channels: int, width: int, bits: int) -> bool:
    """True if a layer of so many weights a channel has vectors enough for a codebook."""
    length = length_for(width, bits)
    return length is not None and channels * width >= LEAST_VECTORS * length


def fitted(parts: Sequence[Vectors]) -> Codebook:
    """The codebook with the least squared error for vectors (n, length) of weights, zeros first.

    Their unit is the root mean square of their channel. Zeros are what pruned channels need.
    Source: Lloyd, Least squares quantization in PCM, IEEE Transactions on Information Theory 28
    (1982).
    """
    together = np.concatenate(parts)
    random = np.random.default_rng(0)
    vectors = together.astype(np.float32)
    if len(vectors) > MOST_FITTED:
        vectors = random.choice(vectors, MOST_FITTED, replace=False)
    # of two equal starts one is lost
    is_few = len(vectors) < MOST_VECTORS
    means = random.choice(vectors, MOST_VECTORS, replace=is_few)
    for _ in range(ROUNDS):
        means[0] = 0
        # one that nothing is nearest to starts anew
        elsewhere = random.choice(vectors, MOST_VECTORS)
        means = _moved(means, vectors, elsewhere)
    means[0] = 0
    sizes = np.abs(means)
    largest = float(sizes.max())
    unit = largest / HIGHEST if largest > 0 else 1.0
    in_units = means / np.float32(unit)
    return Codebook(np.rint(in_units), unit)


def _moved(means: Vectors, vectors: Vectors, elsewhere: Vectors) -> Vectors:
    """Means moved to those of the vectors that are nearest to them: (count, length) each."""
    nearest = nearest_vectors(vectors, means)
    count = len(means)
    held = np.bincount(nearest, minlength=count)
    sums = [np.bincount(nearest, column, count) for column in vectors.T]
    by_vector = np.stack(sums, axis=1)
    divisors = np.maximum(held, 1)
    moved = by_vector / divisors[:, None]
    is_used = held > 0
    kept = np.where(is_used[:, None], moved, elsewhere)
    return kept.astype(np.float32)


def nearest_vectors(vectors: Vectors, codebook: Vectors) -> NDArray[np.intp]:
    """The number of the nearest one of a codebook (count, length) for each of (n, length)."""
    squares = codebook**2
    half_squares = squares.sum(axis=1) / 2
    nearest = np.empty(len(vectors), np.intp)
    for start in range(0, len(vectors), AT_ONCE):
        part = slice(start, start + AT_ONCE)
        products = vectors[part] @ codebook.T
        closeness = products - half_squares
        nearest[part] = closeness.argmax(axis=1)
    return nearest


def root_mean_squares(rows: Rows) -> Scales:
    """Root mean square of each channel's weights, 1 where all are zero: (M, K) -> (M,)."""
    squares = np.square(rows, dtype=np.float64)
    means = squares.mean(axis=1)
    roots = np.sqrt(means)
    # not finite ones stay: they refuse the weight
    return np.where(means == 0, 1.0, roots)


def relative_vectors(rows: Rows, length: int) -> Vectors:
    """Vectors of weights in root mean squares of their channel: (M, K) -> (n, length)."""
    units = root_mean_squares(rows)
    relative = rows / units[:, None]
    single = relative.astype(np.float32)
    return vectors_of(single, length)


def codes_of(tensor: ir.TensorProtocol, layout: Layout, bits: int) -> StoredCodes:
    """Codes of a weight: those that an earlier step chose, or the nearest of its own codebook.

    Scales that are not finite are those of a weight that holds NaN or infinity, for the caller to
    refuse.
    """
    stored = tensor.meta.get(STORED)
    if isinstance(stored, StoredCodes) and stored.layout == layout:
        return stored
    flat = tensor.numpy().reshape(-1)
    view, _ = layout.view(flat, 0)
    rows = layout.rows(view)
    scales = root_mean_squares(rows)
    if not np.isfinite(scales).all():
        return StoredCodes(tensor, scales, layout)
    length = length_for(rows.shape[1], bits)
    # layers whose channels no length divides have 8 bits
    assert length is not None
    vectors = relative_vectors(rows, length)
    codebook = fitted([vectors])
    relative_codes = codebook.codes * np.float32(codebook.unit)
    nearest = nearest_vectors(vectors, relative_codes)
    codes = codebook.codes[nearest].astype(np.int8)
    in_codes = scales * codebook.unit
    return StoredCodes(
        _in_place(codes, layout, tensor),
        scales_on_halves(in_codes),
        layout,
    )


def rescaled(stored: StoredCodes, scales: Floats) -> ir.TensorProtocol:
    """Codes for scales that had to be larger: of the same vectors, the nearest ones."""
    factors = (stored.scales / scales).astype(np.float32)
    is_kept = np.isclose(factors, 1.0, rtol=1e-6)
    if is_kept.all():
        return stored.codes
    found = codebook_of(stored.codes)
    if found is None:
        return rescaled_steps(stored, scales)
    layout = stored.layout
    flat = stored.codes.numpy().reshape(-1)
    view, _ = layout.view(flat, 0)
    rows = np.array(layout.rows(view))
    is_moved = ~is_kept
    own_factors = factors[is_moved]
    moved = rows[is_moved] * own_factors[:, None]
    wanted = vectors_of(moved, found.length)
    nearest = nearest_vectors(wanted, found.vectors.astype(np.float32))
    chosen = found.vectors[nearest]
    rows[is_moved] = chosen.reshape(moved.shape)
    return _in_place(rows, layout, stored.codes)


def _in_place(
    rows: NDArray[np.int8], layout: Layout, weight: ir.TensorProtocol
) -> ir.TensorProtocol:
    """Codes of channels (channels, width) in the order and shape of a weight."""
    channels_first = rows.reshape(
        layout.channels,
        layout.outer,
        layout.inner,
    )
    in_order = np.moveaxis(channels_first, 0, 1)
    contiguous = np.ascontiguousarray(in_order)
    return ir.Tensor(contiguous.reshape(weight.shape.numpy()))
