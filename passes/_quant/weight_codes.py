"""How a form writes weights: int8 codes times one scale an output channel, and the way the codes
are stored.
"""

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
from .grids import Grid, scales_on
from .inserter import Inserter
from .packing import TRITS, int4_weight, nibble_weight, packed_weight
from .scales import channel_sums, least_squares_scales
from .weights import Floats, channel_absmax, quantize_weight

Fit = Literal["mse", "mean"]
Store = Callable[[Inserter, str, ir.TensorProtocol, ir.Node], ir.Value]
"""(inserter, stem, int8 codes, node to stand before) -> the codes as an int8 value."""

TWN_THRESHOLD = 0.7
"""Ternary weight networks: a weight counts where it exceeds 0.7 of the channel's mean |w|."""
PACKED_BITS = 4
"""Codes of at most this many bits are stored packed."""


Storage = Literal["auto", "int4", "table"]
STORES: dict[Storage, Store] = {
    "auto": int4_weight,
    "int4": int4_weight,
    "table": nibble_weight,
}
"""How 3- and 4-bit codes are kept: in ONNX's own type, or looked up, which runtimes before 1.23
need.
"""


@dataclass(frozen=True, eq=False)
class Codes:
    """A weight as scale * code. `codes(scales)` gives the int8 tensor for the final scales, lazily.

    `packed`: whether a code takes less than a byte in the file. `has_zero`: whether a channel of
    zeros has all codes 0 (one bit has no zero: there the scale must vanish).
    """

    scales: Floats
    codes: Callable[[Floats], ir.TensorProtocol]
    store: Store
    packed: bool = True
    has_zero: bool = True


def integer_codes(
    tensor: ir.TensorProtocol,
    layout: Layout,
    bits: int,
    fit: Fit,
    pairs: KernelPairs | None = None,
    storage: Storage = "auto",
) -> Codes:
    """Codes of +-(2**(bits-1) - 1); the scale makes the largest weight of a channel the largest
    code.

    Weights that an earlier pass rounded keep their grid. `pairs` stay within the limit of CPUs
    without VNNI, with a larger scale where that loses less than cutting them. Not the scale of
    least squared weight error: at 3 and 4 bits that clips weights which matter most to the output
    (measured on the ResNets: 1 to 5 dB worse). 2 bits are ternary.
    """
    if bits == 2:
        return ternary_codes(tensor, layout, fit)
    grid = Grid(2 ** (bits - 1) - 1, pairs)
    packed = bits <= PACKED_BITS
    return Codes(
        scales_on(tensor, layout, grid),
        lambda final: quantize_weight(tensor, layout, final, grid.levels, grid.limited),
        STORES[storage] if packed else _store_int8,
        packed,
    )


def ternary_codes(tensor: ir.TensorProtocol, layout: Layout, fit: Fit) -> Codes:
    """W ~ alpha * {-1, 0, 1}; fit=mean: the threshold 0.7 mean|w| of TWN; fit=mse: threshold and
    alpha of least error.

    Source: Li et al., Ternary Weight Networks, arXiv:1605.04711.
    """
    count = layout.outer * layout.inner
    mean = channel_sums(tensor, layout, np.abs) / max(count, 1)
    if fit == "mse":
        alpha = least_squares_scales(
            tensor, layout, mean, channel_absmax(tensor, layout), nearest(1)
        )
        return Codes(
            alpha,
            lambda scales: quantize_weight(tensor, layout, scales, 1),
            _store_trits,
        )
    threshold = (TWN_THRESHOLD * mean).astype(np.float32)
    beyond = _per_channel(layout, threshold, lambda w, t: np.abs(w) > t)
    number = channel_sums(tensor, layout, beyond)
    total = channel_sums(tensor, layout, lambda w, at: np.abs(w) * beyond(w, at))
    kernel = _flat(layout, lambda view, at: np.sign(view) * beyond(view, at))
    mean_beyond = (total / np.maximum(number, 1)).astype(np.float32)
    return Codes(
        mean_beyond, lambda scales: _int8(tensor, layout, kernel), _store_trits
    )


def sign_codes(
    tensor: ir.TensorProtocol, layout: Layout, planes: int, fit: Fit
) -> Codes:
    """W ~ alpha * (sum of 2**i * sign_i, i < planes): odd codes up to 2**planes - 1, one scale a
    channel.

    One plane: alpha = mean|w| is the least-squares scale (XNOR-Net), so both fits are the same.
    More planes: residual binarization with scales alpha, 2 alpha, 4 alpha, so that the sum stays an
    int8 code; fit=mean halves mean|w| a plane, fit=mse finds the alpha of least squared error.

    Source: Rastegari et al., XNOR-Net (arXiv:1603.05279); residual planes: Lin et al., ABC-Net
    (arXiv:1711.11294), its scales tied to powers of two.
    """
    count = layout.outer * layout.inner
    mean = (channel_sums(tensor, layout, np.abs) / max(count, 1)).astype(np.float32)
    top = 2**planes - 1
    alpha = mean / np.float32(2 ** (planes - 1))
    if planes > 1 and fit == "mse":
        highest = (channel_absmax(tensor, layout) / top).astype(np.float32)
        alpha = least_squares_scales(
            tensor,
            layout,
            alpha * np.float32(0.5),
            np.maximum(highest, alpha),
            odd(planes),
        )

    def codes(scales: Floats) -> DerivedTensor:
        inverse = _inverse(scales)
        kernel = _flat(
            layout, lambda view, at: odd(planes)(view * inverse[at][:, None])
        )
        return _int8(tensor, layout, kernel)

    def store(
        inserter: Inserter, stem: str, tensor: ir.TensorProtocol, before: ir.Node
    ) -> ir.Value:
        return packed_weight(inserter, stem, tensor, before, planes=planes)

    return Codes(alpha, codes, store, has_zero=False)


def nearest(levels: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """W / scale -> the nearest whole number within +-levels."""
    return lambda scaled: np.clip(np.rint(scaled), -levels, levels)


def odd(planes: int) -> Callable[[NDArray[Any]], NDArray[Any]]:
    """W / scale -> the nearest odd number below 2**planes; 0 goes to +1."""
    top = 2**planes - 1
    return lambda scaled: np.clip(2 * np.floor(scaled / 2) + 1, -top, top)


def _inverse(scales: Floats) -> Floats:
    return (1.0 / np.maximum(scales.astype(np.float64), 1e-38)).astype(np.float32)


Elementwise = Callable[[NDArray[Any], slice], NDArray[Any]]
"""((outer, channels, inner) view, its channels) -> the same shape."""


def _per_channel(
    layout: Layout,
    numbers: Floats,
    function: Callable[[NDArray[Any], Floats], NDArray[Any]],
) -> Elementwise:
    return lambda view, at: function(view, numbers[at][:, None])


def _flat(
    layout: Layout, function: Elementwise
) -> Callable[[NDArray[Any], int], NDArray[Any]]:
    """An elementwise function as a kernel of flat blocks, int8 out."""

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, at = layout.view(block, start)
        return np.asarray(function(view, at).astype(np.int8).reshape(-1))

    return kernel


def _int8(
    tensor: ir.TensorProtocol,
    layout: Layout,
    kernel: Callable[[NDArray[Any], int], NDArray[Any]],
) -> DerivedTensor:
    return DerivedTensor(tensor, kernel, ir.DataType.INT8, layout.granule)


def _store_int8(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    return inserter.initializer(f"{stem}_q", codes)


def _store_trits(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    return packed_weight(inserter, stem, codes, before, TRITS)
