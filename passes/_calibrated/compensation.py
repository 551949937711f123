"""GPTQ's column-wise rounding: columns still to come make up for what each rounded one loses.

Source: Frantar et al., GPTQ, ICLR 2023 (arXiv:2210.17323), section 3 and its `act-order`.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from .._core.saturation import (
    LARGEST_CODE,
    PAIR_LIMIT,
    KernelPairs,
    sums_of_one_sign,
)
from .layers import Codes, Grams, PerChannel, Rows

BLOCK = 64
"""Columns after which compensation reaches the rest of the weight: matrix products instead of
rank-one updates. Even, so that no block cuts a pair apart.
"""


def compensated(
    rows: Rows,
    bias: PerChannel,
    gram: Grams,
    scales: PerChannel,
    grid: CodeSet,
) -> tuple[Codes, PerChannel]:
    """Round column by column, the most used input first; columns behind make up for the loss.

    The two columns of a limited pair follow each other. The bias counts as a last column,
    multiplied by 1 and never rounded; zeros, pruned perhaps, stay zero.

    Shapes: rows (M, K), bias (M,), gram (groups, K + 1, K + 1), invertible -> codes (M, K), bias
    (M,).
    """
    groups = len(gram)
    width = rows.shape[1]
    diagonals = np.einsum("gkk->gk", gram)
    power = diagonals[:, :width]
    order, paired = _column_order(power, grid)
    # the bias is the weight of an input that is always 1
    last = bias[:, None]
    weights = np.concatenate([rows, last], axis=1)
    weights = weights.reshape(groups, -1, width + 1)
    weights = np.take_along_axis(
        weights,
        order[:, None],
        axis=2,
    )
    sorted_gram = np.take_along_axis(
        gram,
        order[:, :, None],
        axis=1,
    )
    sorted_gram = np.take_along_axis(
        sorted_gram,
        order[:, None],
        axis=2,
    )
    # row i of this factor is the update that rounding column i asks of those behind it
    inverse = np.linalg.inv(sorted_gram)
    lower = np.linalg.cholesky(inverse)
    upper = lower.transpose(0, 2, 1)
    columns = _Columns(
        weights,
        scales.reshape(groups, -1),
        upper,
        grid,
    )
    for start in range(0, width, BLOCK):
        stop = min(start + BLOCK, width)
        block = slice(start, stop)
        columns.round_block(block, paired)
    # argsort of an order is the way back
    rounded = order[:, :width]
    back = np.argsort(rounded, axis=1, kind="stable")
    codes = np.take_along_axis(
        columns.codes,
        back[:, None],
        axis=2,
    )
    codes = codes.reshape(rows.shape)
    moved_bias = weights[:, :, width].reshape(-1)
    return codes, moved_bias


def _column_order(
    power: NDArray[np.float64], grid: CodeSet
) -> tuple[NDArray[np.intp], int]:
    """Columns from the most used input to the least, (groups, K + 1); how many are in pairs.

    Limited pairs come together and first, the bias last. Shapes: power (groups, K), the mean square
    of each input.
    """
    groups, width = power.shape
    pairs = np.zeros((0, 2), np.intp)
    if grid.limited is not None:
        pairs = grid.limited.indices()
    members = power[:, pairs]  # (groups, pairs, 2)
    inner = np.argsort(-members, axis=2, kind="stable")
    together = np.broadcast_to(pairs, members.shape)
    together = np.take_along_axis(together, inner, axis=2)
    # a pair has the rank of its more used column
    strongest = members.max(axis=2)
    ranked = np.argsort(-strongest, axis=1, kind="stable")
    together = np.take_along_axis(
        together,
        ranked[:, :, None],
        axis=1,
    )
    together = together.reshape(groups, -1)
    every = np.arange(width)
    alone = np.setdiff1d(every, pairs)
    power_alone = power[:, alone]
    by_power = np.argsort(-power_alone, axis=1, kind="stable")
    single = alone[by_power]
    bias = np.full((groups, 1), width)
    order = np.concatenate([together, single, bias], axis=1)
    return order, pairs.size


class CodeSet(Protocol):
    """Codes that weights may have: a `Grid`, or `Palettes` of each channel.

    `levels`: the largest. `limited`: pairs of them that must stay within the limit.
    """

    @property
    def levels(self) -> int: ...
    @property
    def limited(self) -> KernelPairs | None: ...
    def nearest(self, steps: Rows) -> NDArray[Any]:
        """Codes of weights in steps: (outer, channels, inner) -> the same."""


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
        grid: CodeSet,
    ) -> None:
        self.weights = weights
        self.steps = steps
        self.upper = upper
        self.grid = grid
        self.zeros: NDArray[np.bool_] = weights == 0
        width = weights.shape[2] - 1
        shape = (*steps.shape, width)
        self.codes: Codes = np.zeros(shape, np.int8)

    def round_block(self, columns: slice, paired: int) -> None:
        """Round the columns of one block, then let the columns behind it make up for all of it.

        The first `paired` columns of all are pairs; a block holds an even number of them.
        """
        first = columns.start
        stop = columns.stop
        shape = (*self.steps.shape, stop - first)
        errors = np.empty(shape)
        for column in range(first, stop):
            current = self.weights[:, :, column]
            # an odd column of a pair was chosen together with the even one before it
            if column >= paired:
                chosen = self._rounded(column, current)
            elif column % 2 == 0:
                chosen, second = self._pair(column)
            else:
                chosen = second
            self.codes[:, :, column] = chosen
            error = self._error(column, current, chosen)
            index = column - first
            errors[:, :, index] = error
            behind = slice(column + 1, stop)
            factors = self.upper[:, column, behind]
            # (groups, M, 1) times (groups, 1, columns): each row passes on its own error
            own_errors = error[:, :, None]
            own_factors = factors[:, None]
            update = own_errors * own_factors
            self.weights[:, :, behind] -= update
        # one product of matrices instead of an update for each column of the block
        rest = slice(stop, None)
        factors = self.upper[:, columns, rest]
        update = errors @ factors
        self.weights[:, :, rest] -= update

    def _rounded(self, column: int, current: Rows) -> Rows:
        in_steps = current / self.steps
        # all groups' channels, one behind the other
        by_channel = in_steps.reshape(1, -1, 1)
        chosen = self.grid.nearest(by_channel).reshape(current.shape)
        # pruned weights stay pruned
        pruned = self.zeros[:, :, column]
        return np.where(pruned, 0.0, chosen)

    def _error(self, column: int, current: Rows, chosen: Rows) -> Rows:
        """Loss that the columns behind make up for, in units in which its square is the error."""
        value = chosen * self.steps
        lost = current - value
        unit = self.upper[:, None, column, column]
        error: Rows = lost / unit
        return error

    def _pair(self, column: int) -> tuple[Rows, Rows]:
        """Codes of a column and the next, the best two within the limit if plain ones exceed it."""
        current = self.weights[:, :, column]
        after = self.weights[:, :, column + 1]
        first = self._rounded(column, current)
        error = self._error(column, current, first)
        passed = self.upper[:, None, column, column + 1]
        moved = after - error * passed
        second = self._rounded(column + 1, moved)
        # few pairs exceed the limit: only their rows are searched
        sums = sums_of_one_sign(first, second)
        beyond = sums > PAIR_LIMIT
        group, row = np.nonzero(beyond)
        if group.size:
            sign = np.sign(first[group, row])
            best_first, best_second = self._within_limit(
                column,
                group,
                row,
                sign,
            )
            first[group, row] = best_first
            second[group, row] = best_second
        return first, second

    def _within_limit(
        self,
        column: int,
        group: NDArray[np.intp],
        row: NDArray[np.intp],
        sign: PerChannel,
    ) -> tuple[PerChannel, PerChannel]:
        """Codes of a column and the next for some rows, of least loss among those within the limit.

        Every code of the first column is tried with the second column's best partner for it.
        """
        after_column = column + 1
        # each row gets an axis of its own for the codes that are tried: (rows, codes)
        sign = sign[:, None]
        step = self.steps[group, row, None]
        # all indices at once: a matrix of the factor for each row would fill the memory
        current = self.weights[group, row, column, None]
        after = self.weights[group, row, after_column, None]
        own_unit = self.upper[group, column, column, None]
        passed = self.upper[group, column, after_column, None]
        other_unit = self.upper[group, after_column, after_column, None]
        codes = np.arange(LARGEST_CODE + 1)
        tried = sign * codes
        value = tried * step
        lost = current - value
        own = lost / own_unit
        # what the second column has to stand for once it made up for the first
        made_up = own * passed
        left = after - made_up
        partner = self._best_partner(tried, left, sign, step)
        partner_value = partner * step
        still_lost = left - partner_value
        other = still_lost / other_unit
        own_loss = own**2
        other_loss = other**2
        loss = own_loss + other_loss
        best = loss.argmin(axis=1)
        each = np.arange(len(best))
        best_codes = tried[each, best]
        best_partners = partner[each, best]
        return best_codes, best_partners

    def _best_partner(self, tried: Rows, left: Rows, sign: Rows, step: Rows) -> Rows:
        """Codes nearest to what is left, within the limit beside those tried: (rows, codes)."""
        # codes of one sign share the limit; a partner of the other sign has all of it
        taken = np.abs(tried)
        room = PAIR_LIMIT - taken
        levels = self.grid.levels
        most = np.minimum(room, levels)
        along_sign = left * sign
        in_steps = along_sign / step
        wanted = np.rint(in_steps)
        clipped = np.clip(wanted, -levels, most)
        partner: Rows = sign * clipped
        return partner
