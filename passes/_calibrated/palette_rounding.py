"""Weights brought onto palettes so that each layer's outputs stay.

First GPTQ with values for steps, then codes and values in turns, each the best for the other.

Source: Frantar et al., GPTQ, ICLR 2023 (arXiv:2210.17323).
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.context import Context
from .._core.edit import Edit
from .._core.half_precision import SMALLEST, on_halves
from .._core.linear import LinearLayer
from .._core.outcome import PassOutcome
from .._quant.palettes import STORED, StoredCodes, fitted
from .compensation import compensated
from .grid import values_of
from .layers import Codes, Grams, PerChannel
from .palette_descent import refined
from .rounding import (
    DAMP,
    FittedLayer,
    covariance,
    damped,
    decibels,
    decorrelated,
    fit_layers,
    output_error,
    output_shift,
)

DECORRELATION = 0.1
"""Share of each input's own power that is added to it, where there is data: what inputs have in
common on some samples holds less on others.

Measured on rows that no pass saw, at 3 and 4 bits: ResNet-20 +0.1 dB, MiniLM +0.7 dB,
EfficientNet-Lite0 as before, beside a share of 0.01 of the mean power alone. At 0.3: -0.3, +0.8 and
+0.2 dB.
"""

UNSEEN_DECORRELATION = 0.3
UNSEEN_DAMP = 0.3
"""The same where inputs are made up, which tell less of real ones, and the share of the mean power
beside it.

Measured on ResNet-20 and ResNet-56 at 3 bits, EfficientNet-Lite0 and MiniLM at 4: 10.5, 12.5, 9.1
and 12.9 dB. Shares of 0 and 1: 10.4, 11.6, 8.6 and 12.6 dB; 0.3 and 0.01: 10.3, 12.1, 8.2 and
13.2 dB.
"""

BIAS_AS_GOOD = 1.001
"""Ratio of output errors up to which a bias of half precision, two bytes, stands for an exact one.
Chosen by hand.
"""


def round_to_palettes(
    model: ir.Model,
    context: Context,
    bits: int,
    samples: int,
    include: tuple[str, ...],
    is_real: bool,
) -> PassOutcome:
    """Round the weights that patterns name on calibration data; stats as of `fit_layers`.

    `is_real`: the data are the user's, not made up.
    """

    def fit(layer: LinearLayer, gram: Grams) -> FittedLayer:
        return _rounded(layer, believed(gram, is_real), bits)

    return fit_layers(
        model,
        context,
        _why_not,
        fit,
        samples,
        include,
        (),
    )


def believed(gram: Grams, is_real: bool) -> Grams:
    """Gram matrices (groups, K + 1, K + 1) of other samples, as far as those at hand tell."""
    share, damp = DECORRELATION, DAMP
    if not is_real:
        share, damp = UNSEEN_DECORRELATION, UNSEEN_DAMP
    likely = gram.copy()
    # the last input is the constant 1
    inputs = likely[:, :-1, :-1]
    inputs[...] = decorrelated(inputs, share)
    return damped(likely, damp)


def _why_not(layer: LinearLayer) -> str | None:
    if not np.isfinite(layer.rows()).all():
        return "its weight holds NaN or infinity"
    return None


def _rounded(layer: LinearLayer, gram: Grams, bits: int) -> FittedLayer:
    """The layer's weight on palettes, and its gain over the nearest values.

    Shapes: gram (groups, K + 1, K + 1), invertible.
    """
    rows = layer.rows()
    bias = layer.bias_row()
    hessian, mean = covariance(gram)
    power = np.einsum("gkk->gk", hessian)
    importance = np.repeat(power, len(rows) // len(gram), axis=0)
    palettes = fitted(rows, bits, importance)
    steps = (rows / palettes.scales[:, None])[None, :, :]
    plain = values_of(palettes.nearest(steps)[0], palettes.scales)
    first, _ = compensated(
        rows,
        bias,
        gram,
        palettes.scales,
        palettes,
    )
    codes, scales = refined(rows, hessian, first, palettes)
    difference = values_of(codes, scales) - rows
    # the bias takes what the outputs would shift by
    moved = bias - output_shift(difference, mean)
    before = output_error(plain - rows, np.zeros_like(bias), gram)
    after = output_error(difference, moved - bias, gram)
    halves = on_halves(moved, SMALLEST)
    # large beside what the outputs differ by, its last digits count
    if output_error(difference, halves - bias, gram) <= BIAS_AS_GOOD * after:
        moved = halves

    def store(edit: Edit) -> None:
        if (moved != bias).any():
            layer.set_bias(moved, edit)
        store_codes(layer, codes, scales)

    return FittedLayer(layer, decibels(before, after), store)


def store_codes(layer: LinearLayer, codes: Codes, scales: PerChannel) -> None:
    """Make codes (M, K) times scales (M,) the weight, for `quant` to store as they are."""
    layer.set_codes(codes, scales)
    layer.tensor.meta[STORED] = StoredCodes(
        ir.Tensor(layer.restored(codes)),
        scales,
        Layout.of(layer.shape, layer.channel_axis),
    )
