"""Choosing codes by what the layer multiplies: column-wise compensation, and coordinate descent on
the same error.

Both minimise the layer's squared output error tr(dW H dW^T) over the calibration data, H its Gram
matrix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, PassOutcome
from .._core.edit import Edit
from .._core.saturation import LARGEST_CODE, PAIR_LIMIT, sums_of_one_sign
from .._quant.grids import Grid
from .grid import GridOf, best_scales, clipped_scales, nearest
from .layers import Codes, Rows
from .select import layers_to_round, moments_of

LEAST_POWER = 0.01
"""Share of the mean square of all inputs that each is believed to have on other samples: an input
that was silent on some hundred samples may wake up on one in a hundred. Without it pairs with such
an input cost 0.4 to 0.8 dB on nets whose inputs are rarely active; from 0.01 to 0.1 it makes no
difference there (0.2 dB), while 0.1 costs 0.5 dB of a text recognizer (measured).
"""

BLOCK = 64
"""Columns after which compensation reaches the rest of the weight: matrix products instead of
rank-one updates.
"""


@dataclass(frozen=True)
class Solution:
    """Codes (M, K), the scale of each channel (M,) and the bias (M,)."""

    codes: Codes
    scales: Rows
    bias: Rows


Clip = Literal["auto", "always", "never"]
CLIP_LEVELS = 7
"""Largest code up to which a narrower range pays: measured, at 8 bits it gains nothing, at 4 it
gains 0.2 to 1.5 dB.
"""

Solver = Callable[[Rows, Rows, Rows, Grid], Solution]
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
    layers, declined = layers_to_round(model, grid_of, include, exclude)
    edit, weights, gains = Edit(model), 0, list[float]()
    for layer, gram in moments_of(model, context, layers, "gram", samples, declined):
        rows, bias, grid = layer.rows(), layer.bias_row(), grid_of(layer)
        solution = solve(rows, bias, gram, grid)
        gains.append(_gain_db(rows, bias, gram, solution, grid))
        if (solution.bias != bias).any():
            layer.set_bias(solution.bias, edit)
        layer.set_codes(solution.codes, solution.scales)
        weights += rows.size
    gain = float(np.mean(gains)) if gains else 0.0
    return PassOutcome(
        len(gains),
        {"layers": len(gains), "weights": weights, "gain_db": round(gain, 2)},
        declined,
    )


def _gain_db(
    rows: Rows, bias: Rows, gram: NDArray[np.float64], solution: Solution, grid: Grid
) -> float:
    """How many dB the output error lies below that of plain rounding; 0 where plain rounding loses
    nothing.
    """
    scales = best_scales(rows, grid)
    before = _output_error(
        nearest(rows, scales, grid) * scales[:, None] - rows, np.zeros_like(bias), gram
    )
    after = _output_error(
        solution.codes * solution.scales[:, None] - rows, solution.bias - bias, gram
    )
    return 10 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0


def _output_error(difference: Rows, shift: Rows, gram: NDArray[np.float64]) -> float:
    """Mean squared change of the layer's outputs, summed over channels."""
    change = np.concatenate([difference, shift[:, None]], axis=1).reshape(
        len(gram), -1, gram.shape[1]
    )
    return float(((change @ gram) * change).sum())


def scales_for(rows: Rows, gram: NDArray[np.float64], grid: Grid, clip: Clip) -> Rows:
    """The scale of each channel, or that of the range with the least error; weights count by their
    input's power.
    """
    each = len(rows) // len(gram)
    if clip == "never" or (clip == "auto" and grid.levels > CLIP_LEVELS):
        return best_scales(rows, grid, np.repeat(input_power(gram), each, axis=0))
    power = np.einsum("gkk->gk", gram)[:, : rows.shape[1]]
    return clipped_scales(rows, grid, np.repeat(power, each, axis=0))


def input_power(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean square of each input, silent ones not taken for granted: (groups, K + 1, K + 1) ->
    (groups, K).
    """
    return np.asarray(np.einsum("gkk->gk", damped(gram[:, :-1, :-1], LEAST_POWER)))


def damped(gram: NDArray[np.float64], share: float) -> NDArray[np.float64]:
    """The Gram matrices with `share` of their mean diagonal (and a little for inputs never seen) on
    the diagonal.
    """
    diagonal = np.einsum("gkk->gk", gram)
    extra = share * diagonal.mean(axis=1, keepdims=True)
    extra = np.where(extra > 0, extra, 1.0)
    out = gram.copy()
    np.einsum("gkk->gk", out)[...] += extra
    return out


def compensated(
    rows: Rows, bias: Rows, gram: NDArray[np.float64], scales: Rows, grid: Grid
) -> tuple[Codes, Rows]:
    """Round column by column, the most used input first; what each loses is given to the columns
    still to come.

    The two columns of a limited pair follow each other. The bias counts as a last column,
    multiplied by 1 and never rounded; zeros, pruned perhaps, stay zero. Shapes: rows (M, K), bias
    (M,), gram (groups, K + 1, K + 1) -> codes (M, K), bias (M,). Source: arXiv:2210.17323, with its
    `act-order`.
    """
    groups, width = len(gram), rows.shape[1]
    weights = np.concatenate([rows, bias[:, None]], axis=1).reshape(
        groups, -1, width + 1
    )
    order, paired = _column_order(np.einsum("gkk->gk", gram)[:, :width], grid)
    weights = np.take_along_axis(weights, order[:, None], axis=2)
    sorted_gram = np.take_along_axis(
        np.take_along_axis(gram, order[:, :, None], axis=1), order[:, None], axis=2
    )
    upper = np.linalg.cholesky(np.linalg.inv(sorted_gram)).transpose(0, 2, 1)
    columns = _Columns(
        weights, scales.reshape(groups, -1), upper, grid.levels, weights == 0
    )
    for start in range(0, width, BLOCK):
        columns.round_block(slice(start, min(start + BLOCK, width)), paired)
    back = np.argsort(order[:, :width], axis=1, kind="stable")
    codes = np.take_along_axis(columns.codes, back[:, None], axis=2)
    return codes.reshape(rows.shape), weights[:, :, width].reshape(-1)


def _column_order(
    power: NDArray[np.float64], grid: Grid
) -> tuple[NDArray[np.intp], int]:
    """Columns from the most used input to the least, limited pairs together and first, the bias
    last: (groups, K + 1).

    Also how many columns are in pairs. Shapes: power (groups, K), the mean square of each input.
    """
    groups, width = power.shape
    pairs = (
        np.zeros((0, 2), np.intp) if grid.limited is None else grid.limited.indices()
    )
    members = power[:, pairs]  # (groups, pairs, 2)
    ranked = np.argsort(-members.max(axis=2), axis=1, kind="stable")
    inner = np.argsort(-members, axis=2, kind="stable")
    together = np.take_along_axis(np.broadcast_to(pairs, members.shape), inner, axis=2)
    together = np.take_along_axis(together, ranked[:, :, None], axis=1).reshape(
        groups, -1
    )
    alone = np.setdiff1d(np.arange(width), pairs)
    single = alone[np.argsort(-power[:, alone], axis=1, kind="stable")]
    return np.concatenate(
        [together, single, np.full((groups, 1), width)], axis=1
    ), pairs.size


class _Columns:
    """The columns of a weight while they are rounded one after another.

    Shapes: weights (groups, M, K + 1), changed in place; steps (groups, M); upper (groups, K + 1, K
    + 1), the Cholesky factor of the inverse Gram matrix; zeros (groups, M, K + 1); codes (groups,
    M, K).
    """

    def __init__(
        self,
        weights: Rows,
        steps: Rows,
        upper: Rows,
        top: int,
        zeros: NDArray[np.bool_],
    ) -> None:
        self.weights, self.steps, self.upper, self.top, self.zeros = (
            weights,
            steps,
            upper,
            top,
            zeros,
        )
        self.codes: Codes = np.zeros((*steps.shape, weights.shape[2] - 1), np.int8)

    def round_block(self, columns: slice, paired: int) -> None:
        """Round the columns of one block, then let the columns behind it make up for all of it.

        The first `paired` columns of all are pairs; a block holds an even number of them.
        """
        errors = np.empty((*self.steps.shape, columns.stop - columns.start))
        for column in range(columns.start, columns.stop):
            if column >= paired:
                chosen = self._rounded(column, self.weights[:, :, column])
            elif column % 2 == 0:
                chosen, second = self._pair(column)
            else:
                chosen = second
            self.codes[:, :, column] = chosen
            error = self._error(column, self.weights[:, :, column], chosen)
            errors[:, :, column - columns.start] = error
            behind = slice(column + 1, columns.stop)
            self.weights[:, :, behind] -= (
                error[:, :, None] * self.upper[:, None, column, behind]
            )
        self.weights[:, :, columns.stop :] -= (
            errors @ self.upper[:, columns, columns.stop :]
        )

    def _rounded(self, column: int, current: Rows) -> Rows:
        chosen = np.clip(np.rint(current / self.steps), -self.top, self.top)
        return np.where(self.zeros[:, :, column], 0.0, chosen)

    def _error(self, column: int, current: Rows, chosen: Rows) -> Rows:
        """What the columns behind have to make up for, in units in which its square is the loss."""
        error: Rows = (current - chosen * self.steps) / self.upper[
            :, None, column, column
        ]
        return error

    def _pair(self, column: int) -> tuple[Rows, Rows]:
        """The codes of a column and the next; where they are beyond the limit, the best two that
        are not.
        """
        current, after = self.weights[:, :, column], self.weights[:, :, column + 1]
        passed = self.upper[:, None, column, column + 1]
        first = self._rounded(column, current)
        second = self._rounded(
            column + 1, after - self._error(column, current, first) * passed
        )
        group, row = np.nonzero(sums_of_one_sign(first, second) > PAIR_LIMIT)
        if group.size:
            step, sign = self.steps[group, row, None], np.sign(first[group, row, None])
            tried = sign * np.arange(LARGEST_CODE + 1)
            own = (current[group, row, None] - tried * step) / self.upper[
                group, column, column
            ][:, None]
            left = (
                after[group, row, None]
                - own * self.upper[group, column, column + 1][:, None]
            )
            most = np.minimum(PAIR_LIMIT - np.abs(tried), self.top)
            partner = sign * np.clip(np.rint(left * sign / step), -self.top, most)
            other = (left - partner * step) / self.upper[group, column + 1, column + 1][
                :, None
            ]
            best = (own**2 + other**2).argmin(axis=1)
            at = np.arange(len(best))
            first[group, row], second[group, row] = tried[at, best], partner[at, best]
        return first, second


def descended(
    rows: Rows, hessian: NDArray[np.float64], scales: Rows, grid: Grid, sweeps: int
) -> Codes:
    """Start at the nearest codes and flip up or down, one column at a time for all rows, where that
    lowers the error.

    Shapes: rows (M, K), hessian (groups, K, K) -> codes (M, K), each floor or ceil of w / scale,
    but where a pair had to be cut; no flip brings a pair beyond the limit. Deterministic.
    """
    groups, width = len(hessian), rows.shape[1]
    weights, steps = rows.reshape(groups, -1, width), scales.reshape(groups, -1)
    codes = nearest(rows, scales, grid).reshape(weights.shape).astype(np.float64)
    exact = weights / steps[:, :, None]
    low, high = np.floor(exact), np.ceil(exact)
    movable = (
        (high > low)
        & (low >= -grid.levels)
        & (high <= grid.levels)
        & ((codes == low) | (codes == high))
    )
    slope = (codes * steps[:, :, None] - weights) @ hessian
    partner = np.full(width, -1)
    if grid.limited is not None:
        first, second = grid.limited.indices().T
        partner[first], partner[second] = second, first
    for _ in range(sweeps):
        if not _sweep(codes, low, high, movable, steps, slope, hessian, partner):
            break
    return codes.astype(np.int8).reshape(rows.shape)


def _sweep(
    codes: Rows,
    low: Rows,
    high: Rows,
    movable: NDArray[np.bool_],
    steps: Rows,
    slope: Rows,
    hessian: Any,
    partner: NDArray[np.intp],
) -> int:
    """One pass over the columns; how many codes flipped."""
    flips = 0
    for column in range(codes.shape[2]):
        other = low[:, :, column] + high[:, :, column] - codes[:, :, column]
        move = (other - codes[:, :, column]) * steps
        gain = move * (
            2 * slope[:, :, column] + move * hessian[:, None, column, column]
        )
        flip = movable[:, :, column] & (
            gain < -1e-12 * np.abs(move * slope[:, :, column])
        )
        if partner[column] >= 0:
            flip &= sums_of_one_sign(other, codes[:, :, partner[column]]) <= PAIR_LIMIT
        if flip.any():
            move = np.where(flip, move, 0.0)
            codes[:, :, column] = np.where(flip, other, codes[:, :, column])
            group, row = np.nonzero(flip)
            slope[group, row] += move[group, row, None] * hessian[group, column]
            flips += len(row)
    return flips


def covariance(
    gram: NDArray[np.float64],
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """(groups, K, K) covariance and (groups, K) mean of the inputs, from the Gram matrix of [x,
    1].
    """
    mean = gram[:, :-1, -1]
    return gram[:, :-1, :-1] - mean[:, :, None] * mean[:, None], mean


def output_shift(difference: Rows, mean: NDArray[np.float64]) -> Rows:
    """What a change of the weights adds to each output channel on average: (M, K), (groups, K) ->
    (M,).
    """
    groups = len(mean)
    shift: Rows = np.einsum(
        "gmk,gk->gm", difference.reshape(groups, -1, difference.shape[1]), mean
    ).reshape(-1)
    return shift
