"""Weights brought onto vectors of a codebook so that each layer's outputs stay.

GPTQ with vectors for columns: what one loses, those behind it make up for. The nearest vector is
that by the error of the outputs.

Source: van Baalen et al., GPTVQ, 2024 (arXiv:2402.15319), with whole errors in place of diagonal
ones.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.context import Context
from .._core.edit import Edit
from .._core.half_precision import SMALLEST, on_halves, scales_on_halves
from .._core.linear import LinearLayer
from .._core.outcome import PassOutcome
from .._core.vector_codebooks import length_for
from .._quant.codebooks import (
    MOST_FITTED,
    Codebook,
    Vectors,
    fitted,
    nearest_vectors,
    relative_vectors,
    root_mean_squares,
)
from .grid import values_of
from .layers import Codes, Grams, PerChannel, Rows
from .palette_rounding import believed, store_codes
from .rounding import (
    FittedLayer,
    covariance,
    decibels,
    fit_layers,
    output_error,
    output_shift,
)
from .select import layers_to_round

TURNS = 3
"""Times that vectors are chosen, each for the scales that fit the choice before; chosen by hand."""

Hessians = NDArray[np.floating]


def round_to_codebooks(
    model: ir.Model,
    context: Context,
    bits: int,
    samples: int,
    include: tuple[str, ...],
    is_real: bool,
) -> PassOutcome:
    """Round the weights that patterns name on calibration data; stats as of `fit_layers`.

    Layers of one length of vectors get one codebook. `is_real`: the data are the user's, not made
    up.
    """

    def why_not(layer: LinearLayer) -> str | None:
        return _why_not(layer, bits)

    layers, _ = layers_to_round(model, why_not, include, ())
    codebooks = _codebooks(layers, bits)

    def fit(layer: LinearLayer, gram: Grams) -> FittedLayer:
        length = length_for(layer.width, bits)
        assert length is not None
        return _rounded(layer, believed(gram, is_real), codebooks[length])

    return fit_layers(
        model,
        context,
        why_not,
        fit,
        samples,
        include,
        (),
    )


def _why_not(layer: LinearLayer, bits: int) -> str | None:
    if length_for(layer.width, bits) is None:
        return "no vectors of a codebook divide its channels"
    if not np.isfinite(layer.rows()).all():
        return "its weight holds NaN or infinity"
    return None


def _codebooks(layers: Sequence[LinearLayer], bits: int) -> dict[int, Codebook]:
    """The codebook for each length of vectors."""
    parts: dict[int, list[Vectors]] = {}
    for layer in layers:
        length = length_for(layer.width, bits)
        assert length is not None
        vectors = relative_vectors(layer.rows(), length)
        # of a large weight as many as all are fitted to: no copy of the model is held
        stride = max(len(vectors) // MOST_FITTED, 1)
        some = vectors[::stride].copy()
        parts.setdefault(length, []).append(some)
    return {length: fitted(vectors) for length, vectors in parts.items()}


def _rounded(layer: LinearLayer, gram: Grams, codebook: Codebook) -> FittedLayer:
    """The layer's weight in vectors, and its gain over the nearest ones.

    Shapes: gram (groups, K + 1, K + 1), invertible.
    """
    rows = layer.rows()
    bias = layer.bias_row()
    hessian, mean = covariance(gram)
    start = root_mean_squares(rows) * codebook.unit
    codes, scales = _compensated(rows, hessian, start, codebook.codes)
    difference = values_of(codes, scales) - rows
    # the bias takes what the outputs would shift by
    shifted = bias - output_shift(difference, mean)
    moved = on_halves(shifted, SMALLEST)
    plain = _plain(rows, start, codebook)
    unmoved = np.zeros_like(bias)
    before = output_error(plain - rows, unmoved, gram)
    after = output_error(difference, moved - bias, gram)
    gain = decibels(before, after)

    def store(edit: Edit) -> None:
        if (moved != bias).any():
            layer.set_bias(moved, edit)
        store_codes(layer, codes, scales)

    return FittedLayer(layer, gain, store)


def _plain(rows: Rows, scales: PerChannel, codebook: Codebook) -> Rows:
    """Weights (M, K) in the vectors that are nearest to them."""
    column = scales[:, None]
    as_they_are = np.eye(codebook.length)
    nearest = _nearest(rows / column, codebook.codes, as_they_are)
    plain: Rows = nearest.reshape(rows.shape) * column
    return plain


def _compensated(
    rows: Rows, hessian: Hessians, start: PerChannel, codes: Vectors
) -> tuple[Codes, PerChannel]:
    """Codes of all channels, and the scales that fit them best, in half precision.

    Shapes: rows (M, K), hessian (groups, K, K), scales (M,).
    """
    chosen = np.empty(rows.shape, np.int8)
    scales = np.empty(len(rows))
    channels = len(rows) // len(hessian)
    for group, own_hessian in enumerate(hessian):
        first = group * channels
        part = slice(first, first + channels)
        own_codes, own_scales = _in_group(
            rows[part],
            own_hessian,
            start[part],
            codes,
        )
        chosen[part] = own_codes
        scales[part] = own_scales
    return chosen, scales_on_halves(scales)


def _in_group(
    rows: Rows, hessian: Hessians, start: PerChannel, codes: Vectors
) -> tuple[Rows, PerChannel]:
    """Codes of a group's channels, and the scales that fit them best.

    Shapes: rows (M, K), hessian (K, K), positive definite, scales (M,).
    """
    # rows of this factor are the updates that the columns behind get
    inverse = np.linalg.inv(hessian)
    upper = np.linalg.cholesky(inverse).T
    scales = start
    for _ in range(TURNS):
        chosen = _vector_by_vector(rows, upper, scales, codes)
        outputs = chosen @ hessian
        products = (rows * outputs).sum(axis=1)
        squares = (chosen * outputs).sum(axis=1)
        # a channel of zeros keeps its scale, and one that would turn its sign
        is_fit = (products > 0) & (squares > 0)
        divisors = np.where(is_fit, squares, 1)
        fitting = products / divisors
        scales = np.where(is_fit, fitting, scales)
    return chosen, scales


def _vector_by_vector(
    rows: Rows, upper: Hessians, scales: PerChannel, codes: Vectors
) -> Rows:
    """Choose vectors from the first columns to the last: (M, K)."""
    left = rows.copy()
    chosen = np.empty_like(left)
    length = codes.shape[1]
    width = rows.shape[1]
    column = scales[:, None]
    for start in range(0, width, length):
        stop = start + length
        own = slice(start, stop)
        behind = slice(stop, width)
        # in these coordinates the error of the outputs is a plain distance
        to_error = np.linalg.inv(upper[own, own])
        wanted = left[:, own]
        vectors = _nearest(wanted / column, codes, to_error)
        chosen[:, own] = vectors
        lost = wanted - vectors * column
        update = to_error @ upper[own, behind]
        left[:, behind] -= lost @ update
    return chosen


def _nearest(rows: Rows, codes: Vectors, to_error: Hessians) -> Vectors:
    """The vector for each of rows that is nearest once both are in other coordinates."""
    length = codes.shape[1]
    vectors = rows.reshape(-1, length) @ to_error
    others = codes @ to_error
    # of one size, whatever the power of the inputs
    size = np.abs(others).max() or 1.0
    vectors /= size
    others /= size
    nearest = nearest_vectors(
        vectors.astype(np.float32),
        others.astype(np.float32),
    )
    return codes[nearest]
