"""Optimal Brain Surgeon on the inputs of linear layers: what they cost, the layers without them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .scores import Scores

Matrix = NDArray[np.float64]

DEAD = 1e-12
"""Share of its mean square below which an input's variance is rounding: it costs nothing, the bias
has its mean.
"""


PANEL = 256
"""Rows of an inverse that are updated at a time: the update then stays in the cache."""


@dataclass
class _ObsBlock:
    """One group of layers that read the same input.

    `weights`: (M, K) of each layer, `inverse` of the inputs' covariance (K, K), `owner` of each
    column (K,), `stays`: False for columns that are gone (K,).
    """

    weights: list[Matrix]
    inverse: Matrix
    owner: NDArray[np.intp]
    stays: NDArray[np.bool_]

    def costs(self, totals: Sequence[Scores]) -> None:
        """Add to the total of each layer, by owner, tr(W_c (H_cc)^-1 W_c^T) of its columns c."""
        diagonal = np.diagonal(self.inverse)
        owner = np.where(self.stays, self.owner, -1)
        for owners, index in _columns(owner):
            width = index.shape[1]
            if width == 1:
                # the common case of one column each needs no matrix inverse
                single = index[:, 0]
                for weight, total in zip(self.weights, totals, strict=True):
                    squares = np.einsum("mk,mk->k", weight, weight)
                    total[owners] += squares[single] / diagonal[single]
                continue
            row = index[:, :, None]
            column = index[:, None, :]
            own = self.inverse[row, column]
            inner = np.linalg.inv(own)
            for weight, total in zip(self.weights, totals, strict=True):
                slices = weight[:, index]
                slices = slices.transpose(1, 2, 0)
                other = slices.transpose(0, 2, 1)
                products = slices @ other
                # the trace of each product, without making it
                traces = np.einsum("cij,cji->c", inner, products)
                total[owners] += traces

    def remove(self, owners: Sequence[int]) -> None:
        """Take the owners' columns out; weights and inverse become those of the refitted rest."""
        leaves = np.isin(self.owner, owners) & self.stays
        (gone,) = leaves.nonzero()
        if not len(gone):
            return
        cross = self.inverse[gone]
        own = cross[:, gone]
        # the rest takes over what the columns gave; the inverse loses them by a Schur complement
        step = np.linalg.solve(own, cross)
        for weight in self.weights:
            weight -= weight[:, gone] @ step
            weight[:, gone] = 0
        for start in range(0, len(self.inverse), PANEL):
            panel = slice(start, start + PANEL)
            self.inverse[panel] -= cross[:, panel].T @ step
        # what rounding left there
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.stays[gone] = False
        # in place until half of the columns are gone: a copy takes longer than the update
        if 2 * self.stays.sum() <= len(self.stays):
            self._become(self.stays)

    def _become(self, columns: NDArray[np.bool_]) -> None:
        other = self._part(columns)
        self.weights = other.weights
        self.inverse = other.inverse
        self.owner = other.owner
        self.stays = other.stays

    def _part(self, columns: NDArray[np.bool_]) -> _ObsBlock:
        """A copy of some columns."""
        both = np.ix_(columns, columns)
        return _ObsBlock(
            weights=[weight[:, columns] for weight in self.weights],
            inverse=self.inverse[both],
            owner=self.owner[columns],
            stays=self.stays[columns],
        )

    def restricted(self, owners: NDArray[np.intp]) -> _ObsBlock:
        """The block as these owners alone see it."""
        own = np.isin(self.owner, owners) & self.stays
        return self._part(own)


@dataclass
class ObsInput:
    """What some linear layers read, of which inputs go.

    Costs are shares of the variance of each layer's output.
    """

    blocks: list[_ObsBlock]
    energies: list[float]

    @classmethod
    def of(
        cls,
        weights: Sequence[Matrix],
        gram: Matrix,
        owner: NDArray[np.intp],
        damp: float,
    ) -> ObsInput:
        """Prepare layers from their weights and the Gram matrices of their common inputs.

        Shapes: weights (groups, M, K) each; gram (groups, K + 1, K + 1), the mean of z z^T, z = [x,
        1]; owner (groups, K), -1 for none. `damp`: share of the mean variance added to every
        variance. Inputs that do not vary are left out: the bias makes up for them exactly.
        """
        blocks = []
        energies = [0.0 for _ in weights]
        for group, (moments, own) in enumerate(zip(gram, owner, strict=True)):
            # the last row of z z^T, z = [x, 1], holds the means of x
            mean = moments[-1, :-1]
            products = moments[:-1, :-1]
            covariance = products - np.outer(mean, mean)
            variance = np.diagonal(covariance)
            mean_square = np.diagonal(moments)[:-1]
            rounding = DEAD * mean_square
            alive = variance > rounding
            if not alive.any():
                continue
            covariance = covariance[np.ix_(alive, alive)]
            usual = np.diagonal(covariance).mean()
            diagonal = np.diag_indices(len(covariance))
            # inputs that depend on each other have no inverse without it
            covariance[diagonal] += damp * usual
            every = []
            for number, weight in enumerate(weights):
                rows = _as_few_rows(weight[group][:, alive])
                output = rows @ covariance
                energies[number] += float(np.vdot(output, rows))
                every.append(rows)
            block = _ObsBlock(
                weights=every,
                inverse=np.linalg.inv(covariance),
                owner=own[alive],
                stays=np.ones(len(covariance), bool),
            )
            blocks.append(block)
        return cls(blocks, energies)

    def costs(self, count: int) -> list[Scores]:
        """Cost of each of `count` owners now to each layer, a share of the variance of its output.

        0 once gone.
        """
        totals = [np.zeros(count) for _ in self.energies]
        for block in self.blocks:
            block.costs(totals)
        shares = []
        for total, energy in zip(totals, self.energies, strict=True):
            # rounding leaves tiny negative costs of columns that others make up for
            positive = np.maximum(total, 0)
            shares.append(positive / energy if energy > 0 else np.zeros(count))
        return shares

    def restricted(self, owners: NDArray[np.intp]) -> ObsInput:
        """The layers as these owners alone see them.

        Their costs stay right, also after one of them goes: an inverse restricted to some inputs is
        that with the others still there to make up for what goes.
        """
        parts = [block.restricted(owners) for block in self.blocks]
        return ObsInput(parts, self.energies)

    def remove(self, owners: Sequence[int]) -> None:
        """Take inputs out and let the rest make up for them."""
        for block in self.blocks:
            block.remove(owners)


def _as_few_rows(weight: Matrix) -> Matrix:
    """A matrix (M, K) of the same W^T W, which is all that costs depend on, of K rows at most."""
    rows, columns = weight.shape
    if rows <= columns:
        return weight
    triangle: Matrix = np.linalg.qr(weight, mode="r")
    return triangle


def _columns(
    owner: NDArray[np.intp],
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(owners, their columns as (owners, width)) for each width that occurs."""
    order = np.argsort(owner, kind="stable")
    owned = owner[order] >= 0
    order = order[owned]
    names, starts, counts = np.unique(
        owner[order],
        return_index=True,
        return_counts=True,
    )
    found = []
    for width in np.unique(counts):
        alike = counts == width
        first = starts[alike]
        runs = first[:, None] + np.arange(width)
        owners = names[alike]
        columns = order[runs]
        found.append((owners, columns))
    return found
