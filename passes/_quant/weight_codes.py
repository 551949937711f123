"""Weights as int8 codes times one scale an output channel, and the way the codes are stored."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.lazy import DerivedTensor
from .._core.saturation import KernelPairs
from . import codebooks
from .grids import Grid, scales_on
from .inserter import Inserter
from .packing import TRITS, int4_weight, nibble_weight, packed_weight
from .palettes import StoredCodes, codes_of, rescaled
from .scales import (
    Elementwise,
    channel_sums,
    least_squares_scales,
    magnitudes,
)
from .weights import Floats, channel_absmax, quantize_weight

Fit = Literal["mse", "mean"]
Store = Callable[[Inserter, str, ir.TensorProtocol, ir.Node], ir.Value]
"""(inserter, stem, int8 codes, node to stand before) -> the codes as an int8 value."""

TWN_THRESHOLD = 0.7
"""Share of the channel's mean |w| that a weight must exceed to count (Ternary Weight Networks)."""

PACKED_BITS = 4
"""Largest width (bits) of codes that are stored packed: two fit into a byte."""

LEAST_DIVISOR = 1e-38
"""Least scale that is inverted, so that a channel of zeros gives no infinity."""

Storage = Literal["auto", "int4", "table"]
STORES: dict[Storage, Store] = {
    "auto": int4_weight,
    "int4": int4_weight,
    "table": nibble_weight,
}
"""Stores of 3- and 4-bit codes: in ONNX's own type, or looked up for runtimes before 1.23."""


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as scale * code. `codes(scales)` gives the int8 tensor for the final scales, lazily.

    `packed`: a code takes less than a byte in the file. `has_zero`: a channel of zeros has all
    codes 0 (one bit has no zero: there the scale must vanish).
    """

    scales: Floats
    codes: Callable[[Floats], ir.TensorProtocol]
    store: Store
    packed: bool = True
    has_zero: bool = True

    @property
    def is_plain(self) -> bool:
        """True if codes are stored as int8, for `pack` to find a smaller form perhaps."""
        return self.store is _store_int8


def integer_codes(
    tensor: ir.TensorProtocol,
    layout: Layout,
    bits: int,
    fit: Fit,
    pairs: KernelPairs | None = None,
    storage: Storage = "auto",
) -> Codes:
    """Codes up to +-(2**(bits-1) - 1); a channel's largest weight becomes the largest code.

    Weights that an earlier pass rounded keep their grid. `pairs` stay within the limit of CPUs
    without VNNI, with a larger scale where that loses less than cutting them. Not the scale of
    least squared weight error: at 3 and 4 bits that clips weights which matter most to the output
    (measured on the ResNets: 1 to 5 dB worse). 2 bits are ternary.
    """
    # symmetric codes of 2 bits are -1, 0 and 1
    if bits == 2:
        return ternary_codes(tensor, layout, fit)
    # symmetric: the lowest code of the type is left out
    grid = Grid(2 ** (bits - 1) - 1, pairs)
    packed = bits <= PACKED_BITS

    def codes(scales: Floats) -> DerivedTensor:
        return quantize_weight(
            tensor,
            layout,
            scales,
            grid.levels,
            grid.limited,
        )

    store = STORES[storage] if packed else _store_int8
    return Codes(
        scales_on(tensor, layout, grid),
        codes,
        store,
        packed,
    )


def palette_codes(tensor: ir.TensorProtocol, layout: Layout, bits: int) -> Codes:
    """Codes of which a channel has 2**bits different ones at most, see palettes.py."""
    return _stored_codes(codes_of(tensor, layout, bits), rescaled)


def codebook_codes(tensor: ir.TensorProtocol, layout: Layout, bits: int) -> Codes:
    """Codes of which neighbours are one of few vectors, see codebooks.py."""
    stored = codebooks.codes_of(tensor, layout, bits)
    return _stored_codes(stored, codebooks.rescaled)


def _stored_codes(
    stored: StoredCodes,
    rescale: Callable[[StoredCodes, Floats], ir.TensorProtocol],
) -> Codes:
    def codes(scales: Floats) -> ir.TensorProtocol:
        return rescale(stored, scales)

    return Codes(
        stored.scales.astype(np.float32),
        codes,
        _store_int8,
    )


def ternary_codes(tensor: ir.TensorProtocol, layout: Layout, fit: Fit) -> Codes:
    """W ~ alpha * {-1, 0, 1}.

    fit=mean: the threshold 0.7 mean|w| of TWN; fit=mse: threshold and alpha of least squared error.

    Source: Li et al., Ternary Weight Networks, arXiv:1605.04711.
    """
    count = layout.outer * layout.inner
    mean = channel_sums(tensor, layout, magnitudes) / max(count, 1)
    if fit == "mean":
        return _twn_codes(tensor, layout, mean)
    highest = channel_absmax(tensor, layout)
    # alpha lies between the mean and the largest |w|: it is the mean of those that count
    alpha = least_squares_scales(
        tensor,
        layout,
        mean,
        highest,
        nearest(1),
    )

    def codes(scales: Floats) -> DerivedTensor:
        return quantize_weight(
            tensor,
            layout,
            scales,
            1,
        )

    return Codes(alpha, codes, _store_trits)


def _twn_codes(
    tensor: ir.TensorProtocol, layout: Layout, mean: NDArray[np.float64]
) -> Codes:
    """Codes by the paper's threshold; they do not depend on the final scales."""
    exact = TWN_THRESHOLD * mean
    threshold = exact.astype(np.float32)

    def counts(view: NDArray[Any], channels: slice) -> NDArray[Any]:
        own = threshold[channels]
        magnitudes = np.abs(view)
        is_above = magnitudes > own[:, None]
        return np.asarray(is_above)

    def counted(view: NDArray[Any], channels: slice) -> NDArray[Any]:
        magnitudes = np.abs(view)
        kept = magnitudes * counts(view, channels)
        return np.asarray(kept)

    def signs(view: NDArray[Any], channels: slice) -> NDArray[Any]:
        every_sign = np.sign(view)
        codes = every_sign * counts(view, channels)
        return np.asarray(codes)

    number = channel_sums(tensor, layout, counts)
    total = channel_sums(tensor, layout, counted)
    divisors = np.maximum(number, 1)
    mean_of_counted = total / divisors
    alpha = mean_of_counted.astype(np.float32)

    # the threshold alone decides the codes, whatever the final scales are
    def codes(scales: Floats) -> DerivedTensor:
        return _int8(tensor, layout, signs)

    return Codes(alpha, codes, _store_trits)


def sign_codes(
    tensor: ir.TensorProtocol, layout: Layout, planes: int, fit: Fit
) -> Codes:
    """W ~ alpha * (sum of 2**i * sign_i, i < planes): odd codes up to 2**planes - 1.

    One plane: alpha = mean|w| is the least-squares scale (XNOR-Net), so both fits are the same.
    More planes: residual binarization with scales alpha, 2 alpha, 4 alpha, so that the sum stays an
    int8 code; fit=mean halves mean|w| a plane, fit=mse finds the alpha of least squared error.

    Source: Rastegari et al., XNOR-Net (arXiv:1603.05279); residual planes: Lin et al., ABC-Net
    (arXiv:1711.11294), its scales tied to powers of two.
    """
    count = layout.outer * layout.inner
    sums = channel_sums(tensor, layout, magnitudes)
    mean = (sums / max(count, 1)).astype(np.float32)
    alpha = mean / np.float32(2 ** (planes - 1))
    to_odd = odd(planes)
    # of one plane mean|w| is the least-squares scale already
    if planes > 1 and fit == "mse":
        top = 2**planes - 1
        highest = (channel_absmax(tensor, layout) / top).astype(np.float32)
        # up to the scale that makes the largest weight the top code
        low = alpha * np.float32(0.5)
        high = np.maximum(highest, alpha)
        alpha = least_squares_scales(
            tensor,
            layout,
            low,
            high,
            to_odd,
        )

    def codes(scales: Floats) -> DerivedTensor:
        divisors = np.maximum(scales.astype(np.float64), LEAST_DIVISOR)
        inverse = (1.0 / divisors).astype(np.float32)

        def signs(view: NDArray[Any], channels: slice) -> NDArray[Any]:
            return to_odd(view * inverse[channels][:, None])

        return _int8(tensor, layout, signs)

    def store(
        inserter: Inserter, stem: str, tensor: ir.TensorProtocol, before: ir.Node
    ) -> ir.Value:
        return packed_weight(
            inserter,
            stem,
            tensor,
            before,
            planes=planes,
        )

    return Codes(
        alpha,
        codes,
        store,
        has_zero=False,
    )


def nearest(levels: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Codes of w / scale: the nearest whole number within +-levels."""
    return lambda scaled: np.clip(np.rint(scaled), -levels, levels)


def odd(planes: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """Codes of w / scale: the nearest odd number below 2**planes; 0 goes to +1."""
    # halved, rounded down and doubled plus one: the odd number nearest from either side
    top = 2**planes - 1
    return lambda scaled: np.clip(
        2 * np.floor(scaled / 2) + 1,
        -top,
        top,
    )


def _int8(
    tensor: ir.TensorProtocol, layout: Layout, function: Elementwise
) -> DerivedTensor:
    """The tensor of `function`'s codes, lazily."""

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, channels = layout.view(block, start)
        codes = function(view, channels).astype(np.int8)
        return np.asarray(codes.reshape(-1))

    return DerivedTensor(
        tensor,
        kernel,
        ir.DataType.INT8,
        layout.granule,
    )


def _store_int8(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    return inserter.encoded(stem, "q", codes)


def _store_trits(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    return packed_weight(
        inserter,
        stem,
        codes,
        before,
        TRITS,
    )
