"""Coordinate descent on the error of a layer's outputs: weights flip up or down while that pays.

Source: the quadratic problem of Nagel et al., Up or Down?, ICML 2020 (arXiv:2004.10568), section 3,
solved without its relaxation.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from .._core.saturation import PAIR_LIMIT, sums_of_one_sign
from .._quant.grids import Grid
from .grid import nearest
from .layers import Codes, PerChannel, Rows

NOISE = 1e-12
"""Fraction of a flip's first-order term below which its gain is float noise: without it flips could
go back and forth.
"""

ALONE = -1
"""Partner of a column that is in no limited pair."""


def descended(
    rows: Rows,
    hessian: NDArray[np.float64],
    scales: PerChannel,
    grid: Grid,
    sweeps: int,
) -> Codes:
    """Flip codes up or down from the nearest ones, column by column, where that lowers the error.

    Shapes: rows (M, K), hessian (groups, K, K) -> codes (M, K), each floor or ceil of w / scale,
    but where a pair had to be cut; no flip brings a pair beyond the limit. Deterministic.
    """
    groups = len(hessian)
    width = rows.shape[1]
    weights = rows.reshape(groups, -1, width)
    steps = scales.reshape(groups, -1)
    codes = nearest(rows, scales, grid).astype(np.float64)
    codes = codes.reshape(weights.shape)
    descent = _Descent(
        weights,
        steps,
        hessian,
        codes,
        grid,
    )
    for _ in range(sweeps):
        if not descent.sweep():
            break
    final = descent.codes.astype(np.int8)
    return final.reshape(rows.shape)


class _Descent:
    """Codes (groups, M, K) on their way down, and half the slope of the error at each of them."""

    def __init__(
        self,
        weights: Rows,
        steps: Rows,
        hessian: NDArray[np.float64],
        codes: Rows,
        grid: Grid,
    ) -> None:
        self.steps = steps
        self.hessian = hessian
        self.codes = codes
        scales = steps[:, :, None]
        exact = weights / scales
        self.low = np.floor(exact)
        self.high = np.ceil(exact)
        # a code that a pair's cut moved farther than to a neighbour has nowhere to flip to
        at_low = codes == self.low
        at_high = codes == self.high
        beside = at_low | at_high
        above = self.low >= -grid.levels
        below = self.high <= grid.levels
        between = self.high > self.low
        self.movable = above & below & between & beside
        difference = codes * scales - weights
        self.slope = difference @ hessian
        width = weights.shape[2]
        self.partner = np.full(width, ALONE)
        if grid.limited is not None:
            first, second = grid.limited.indices().T
            self.partner[first] = second
            self.partner[second] = first

    def sweep(self) -> int:
        """Flip codes column by column, all rows at once; return how many flipped."""
        flips = 0
        width = self.codes.shape[2]
        for column in range(width):
            flips += self._flip_column(column)
        return flips

    def _flip_column(self, column: int) -> int:
        codes = self.codes[:, :, column]
        low = self.low[:, :, column]
        high = self.high[:, :, column]
        # of two neighbours the one that the code is not
        both = low + high
        other = both - codes
        difference = other - codes
        move = difference * self.steps
        flip = self._pays(column, move)
        flip &= self.movable[:, :, column]
        partner = self.partner[column]
        if partner != ALONE:
            # no flip may bring a pair beyond what kernels can add
            partner_codes = self.codes[:, :, partner]
            sums = sums_of_one_sign(other, partner_codes)
            flip &= sums <= PAIR_LIMIT
        if not flip.any():
            return 0
        self.codes[:, :, column] = np.where(flip, other, codes)
        group, row = np.nonzero(flip)
        # one flip changes the slope at every column of its row
        made = move[group, row, None]
        curvatures = self.hessian[group, column]
        change = made * curvatures
        self.slope[group, row] += change
        return len(row)

    def _pays(self, column: int, move: Rows) -> NDArray[np.bool_]:
        """Mask of the moves of a column that lower the error, by more than float noise."""
        slope = self.slope[:, :, column]
        # the error is quadratic: a move changes it by 2 * slope * move + curvature * move^2
        curvature = self.hessian[:, None, column, column]
        second_order = move * curvature
        change_per_move = 2 * slope + second_order
        gain = move * change_per_move
        first_order = np.abs(move * slope)
        noise = NOISE * first_order
        pays: NDArray[np.bool_] = gain < -noise
        return pays
