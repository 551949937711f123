"""Common ground of rounding passes: the walk over layers, ranges, algebra of Gram matrices.

They minimise the squared error of each layer's outputs, tr(dW H dW^T) over the calibration data, H
the Gram matrix of the layer's inputs.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.context import Context, in_parallel
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._core.outcome import PassOutcome
from .._quant.grids import Grid
from .grid import GridOf, best_scales, clipped_scales, nearest, values_of
from .layers import Codes, Grams, PerChannel, Rows
from .select import layers_to_round, moments_of, why_not_rounded

LEAST_POWER = 0.01
"""Share of the mean square of all inputs that each is believed to have on other samples: an input
that was silent on some hundred samples may wake up on one in a hundred. Without it pairs with such
an input cost 0.4 to 0.8 dB on nets whose inputs are rarely active; from 0.01 to 0.1 it makes no
difference there (0.2 dB), while 0.1 costs 0.5 dB of a text recognizer (measured).
"""

DAMP = 0.01
"""Share of its mean diagonal added to the diagonal of the inputs' Gram matrix, for one scale a
channel and palettes. Frantar et al. (GPTQ, 2023) have the same.
"""

CLIP_LEVELS = 7
"""Largest code up to which a narrower range pays: measured, at 8 bits it gains nothing, at 4 it
gains 0.2 to 1.5 dB.
"""

Clip = Literal["auto", "always", "never"]


@dataclass(frozen=True)
class RoundedLayer:
    """Codes (M, K), the scale of each channel (M,) and the bias (M,)."""

    codes: Codes
    scales: PerChannel
    bias: PerChannel


Solver = Callable[[Rows, PerChannel, Grams, Grid], RoundedLayer]
"""(weight rows (M, K), bias (M,), Gram matrices (groups, K + 1, K + 1), grid) -> what to store."""


def round_layers(
    model: ir.Model,
    context: Context,
    grid_of: GridOf,
    samples: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    solve: Solver,
) -> PassOutcome:
    """Store what `solve` finds for every layer; stats `layers`, `weights` and `gain_db`."""

    def why_not(layer: LinearLayer) -> str | None:
        return why_not_rounded(layer, grid_of(layer))

    def fit(layer: LinearLayer, gram: Grams) -> FittedLayer:
        rows = layer.rows()
        bias = layer.bias_row()
        grid = grid_of(layer)
        solution = solve(
            rows,
            bias,
            gram,
            grid,
        )
        gain = _gain_db(
            rows,
            bias,
            gram,
            solution,
            grid,
        )

        def store(edit: Edit) -> None:
            # a layer without a bias is not given one for nothing
            if (solution.bias != bias).any():
                layer.set_bias(solution.bias, edit)
            layer.set_codes(solution.codes, solution.scales)

        return FittedLayer(layer, gain, store)

    return fit_layers(
        model,
        context,
        why_not,
        fit,
        samples,
        include,
        exclude,
    )


@dataclass(frozen=True)
class FittedLayer:
    """Outcome of fitting a layer: its gain in decibels, and the change of the model."""

    layer: LinearLayer
    gain: float
    store: Callable[[Edit], None]


Fit = Callable[[LinearLayer, Grams], FittedLayer]
"""(layer, its Gram matrices (groups, K + 1, K + 1)): changes nothing, on any thread."""


def fit_layers(
    model: ir.Model,
    context: Context,
    why_not: Callable[[LinearLayer], str | None],
    fit: Fit,
    samples: int,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> PassOutcome:
    """Fit every layer that `why_not` has no reason against, by what it reads on the data.

    Stats: `layers` and `weights` (counts), `gain_db` (dB, mean over the layers).
    """
    layers, declined = layers_to_round(
        model,
        why_not,
        include,
        exclude,
    )
    edit = Edit(model)
    weights = 0
    gains: list[float] = []
    moments = moments_of(
        model,
        context,
        layers,
        "gram",
        samples,
        declined,
    )

    def fitted(layer_with_gram: tuple[LinearLayer, Grams]) -> FittedLayer:
        return fit(*layer_with_gram)

    def gram_bytes(layer_with_gram: tuple[LinearLayer, Grams]) -> int:
        return layer_with_gram[1].nbytes

    for found in in_parallel(context, fitted, moments, gram_bytes):
        weights += found.layer.tensor.size
        gains.append(found.gain)
        found.store(edit)
    mean_gain = float(np.mean(gains)) if gains else 0.0
    stats: dict[str, int | float | str] = {
        "layers": len(gains),
        "weights": weights,
        "gain_db": round(mean_gain, 2),
    }
    return PassOutcome(len(gains), stats, declined)


def _gain_db(
    rows: Rows,
    bias: PerChannel,
    gram: Grams,
    solution: RoundedLayer,
    grid: Grid,
) -> float:
    """Decibels by which the output error lies below that of plain rounding."""
    scales = best_scales(rows, grid)
    codes = nearest(rows, scales, grid)
    plain = values_of(codes, scales)
    unmoved = np.zeros_like(bias)
    before = output_error(
        plain - rows,
        unmoved,
        gram,
    )
    solved = values_of(solution.codes, solution.scales)
    shift = solution.bias - bias
    after = output_error(
        solved - rows,
        shift,
        gram,
    )
    return decibels(before, after)


def decibels(before: float, after: float) -> float:
    """Decibels by which an error fell; 0 where either is 0: a ratio with 0 says nothing."""
    if before > 0 and after > 0:
        gain = np.log10(before / after)
        return 10 * float(gain)
    return 0.0


def output_error(
    difference: NDArray[Any], shift: PerChannel, gram: NDArray[Any]
) -> float:
    """Mean squared change of the layer's outputs, summed over channels; as exact as `gram` is."""
    # the last input of a Gram matrix is the constant 1, which the bias multiplies
    change = np.concatenate([difference, shift[:, None]], axis=1, dtype=gram.dtype)
    groups, inputs, _ = gram.shape
    change = change.reshape(groups, -1, inputs)
    squares = (change @ gram) * change
    return float(squares.sum(dtype=np.float64))


def scales_for(rows: Rows, gram: Grams, grid: Grid, clip: Clip) -> PerChannel:
    """Scales of the full range of each channel, or of the range with the least error.

    Weights count by the power of their input.
    """
    groups = len(gram)
    channels_each = len(rows) // groups
    clips = grid.levels <= CLIP_LEVELS if clip == "auto" else clip == "always"
    if not clips:
        power = input_power(gram)
        importance = np.repeat(power, channels_each, axis=0)
        return best_scales(rows, grid, importance)
    width = rows.shape[1]
    measured = _diagonals(gram)[:, :width]
    importance = np.repeat(measured, channels_each, axis=0)
    return clipped_scales(rows, grid, importance)


def input_power(gram: Grams) -> NDArray[np.float64]:
    """Mean square of each input, silent ones not taken for granted.

    Shapes: (groups, K + 1, K + 1) -> (groups, K).
    """
    inputs = gram[:, :-1, :-1]
    return np.asarray(_diagonals(damped(inputs, LEAST_POWER)))


def damped(gram: Grams, share: float) -> Grams:
    """Gram matrices with `share` of their mean diagonal added to the diagonal.

    It keeps them invertible where inputs depend on each other; all-zero ones become the identity.
    """
    means = _diagonals(gram).mean(axis=1, keepdims=True)
    extra = share * means
    extra = np.where(extra > 0, extra, 1.0)
    out = gram.copy()
    _diagonals(out)[...] += extra
    return out


def decorrelated(gram: Grams, share: float) -> Grams:
    """Gram matrices with `share` of each input's own power added to it.

    Inputs then go together by 1 / (1 + share) of what they did.
    """
    out = gram.copy()
    _diagonals(out)[...] *= 1 + share
    return out


def _diagonals(matrices: NDArray[np.float64]) -> NDArray[np.float64]:
    """The diagonals of (groups, K, K) as (groups, K): a view, through which they can be set."""
    view: NDArray[np.float64] = np.einsum("gkk->gk", matrices)
    return view


def covariance(gram: Grams) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Covariance (groups, K, K) and mean (groups, K) of x, from Gram matrices of [x, 1]."""
    mean = gram[:, :-1, -1]
    squares = gram[:, :-1, :-1]
    column = mean[:, :, None]
    row = mean[:, None]
    return squares - column * row, mean


def output_shift(difference: Rows, mean: NDArray[np.float64]) -> PerChannel:
    """Mean change of each output channel after a change of the weights.

    Shapes: difference (M, K), mean of the inputs (groups, K) -> (M,).
    """
    groups, inputs = mean.shape
    by_group = difference.reshape(groups, -1, inputs)
    # groups after each other are the output channels in their order
    shift: PerChannel = np.einsum("gmk,gk->gm", by_group, mean)
    return shift.reshape(-1)
