"""Weights brought onto palettes so that each layer's outputs stay: GPTQ with values for steps.

Without data, inputs of a convolution are taken to be alike all over its window, and positive in the
mean, as behind a Relu: rounding errors of a channel, and of a kernel, then have to add up to zero.

Source: Frantar et al., GPTQ, ICLR 2023 (arXiv:2210.17323); without data: Guo et al., SQuant, ICLR
2022 (arXiv:2202.07471), its three terms.
"""

from __future__ import annotations

import math
from collections.abc import Collection

import numpy as np
import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.context import Context
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._core.outcome import PassOutcome
from .._quant.palettes import STORED, Palettes, StoredCodes, fitted
from .compensation import compensated
from .grid import values_of
from .layers import LARGEST_WIDTH, Codes, Grams, PerChannel, fittable_layers
from .rounding import covariance, damped, decibels, fit_layers, output_error

DAMP = 0.01
"""Share of its mean diagonal added to the diagonal of the inputs' Gram matrix, as in `gptq`."""

ALIKE = 0.5
"""Power that all inputs of a channel have in common, and again those of a kernel, in units of what
each has alone. Chosen by hand: from 0.3 to 1, accuracy changed by less than its noise.
"""


def round_to_palettes(
    model: ir.Model,
    context: Context,
    bits: int,
    samples: int,
    include: tuple[str, ...],
) -> PassOutcome:
    """Round the weights that patterns name on calibration data; stats as of `fit_layers`."""

    def fit(layer: LinearLayer, gram: Grams, edit: Edit) -> float:
        bias = layer.bias_row()
        gain, moved = _round(layer, gram, bits)
        if (moved != bias).any():
            layer.set_bias(moved, edit)
        return gain

    return fit_layers(
        model,
        context,
        _why_not,
        fit,
        samples,
        include,
        (),
    )


def round_without_data(
    model: ir.Model, bits: int, weights: Collection[ir.Value]
) -> int:
    """Round those weights that are of convolutions; the count. Of other layers nothing is known."""
    layers, _ = fittable_layers(model)
    count = 0
    for layer in layers:
        if layer.weight not in weights or len(layer.shape) < 3:
            continue
        if _why_not(layer) is not None:
            continue
        if layer.width <= LARGEST_WIDTH:
            _round(layer, _supposed(layer), bits)
            count += 1
    return count


def _why_not(layer: LinearLayer) -> str | None:
    if not np.isfinite(layer.rows()).all():
        return "its weight holds NaN or infinity"
    return None


def _supposed(layer: LinearLayer) -> Grams:
    """Gram matrices of inputs of which nothing is known: (groups, K + 1, K + 1)."""
    width = layer.width
    window = math.prod(layer.shape[2:])
    kernels = np.arange(width) // window
    # of a window of one input, that input's own power
    same_kernel = (kernels[:, None] == kernels) & (window > 1)
    gram = np.eye(width + 1)
    gram[:width, :width] += ALIKE + ALIKE * same_kernel
    return np.broadcast_to(gram, (layer.groups, *gram.shape)).copy()


def _round(layer: LinearLayer, gram: Grams, bits: int) -> tuple[float, PerChannel]:
    """Store the layer's weight on palettes; the gain in dB over the nearest values, and its bias.

    Shapes: gram (groups, K + 1, K + 1) -> a number, (M,).
    """
    rows = layer.rows()
    bias = layer.bias_row()
    hessian, _ = covariance(gram)
    power = np.einsum("gkk->gk", damped(hessian, DAMP))
    importance = np.repeat(power, len(rows) // len(gram), axis=0)
    palettes = fitted(rows, bits, importance)
    codes, moved = compensated(
        rows,
        bias,
        damped(gram, DAMP),
        palettes.scales,
        palettes,
    )
    scales = palettes.scales
    steps = (rows / scales[:, None])[None, :, :]
    plain = values_of(palettes.nearest(steps)[0], scales)
    before = output_error(plain - rows, np.zeros_like(bias), gram)
    after = output_error(values_of(codes, scales) - rows, moved - bias, gram)
    _store(layer, codes, palettes)
    return decibels(before, after), moved


def _store(layer: LinearLayer, codes: Codes, palettes: Palettes) -> None:
    layer.set_codes(codes, palettes.scales)
    layer.tensor.meta[STORED] = StoredCodes(
        ir.Tensor(layer.restored(codes)),
        palettes.scales,
        Layout.of(layer.shape, layer.channel_axis),
    )
