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
    """One group of layers that read the same inputs.

    `weight` (M, K), `inverse` of the inputs' covariance (K, K), `owner` of each column (K,),
    `stays`: False for columns that are gone (K,).
    """

    weight: Matrix
    inverse: Matrix
    owner: NDArray[np.intp]
    stays: NDArray[np.bool_]

    def costs(self, total: Scores) -> None:
        """Add to `total`, by owner, tr(W_c (H_cc)^-1 W_c^T) for the columns c of each."""
        diagonal = np.diagonal(self.inverse)
        owner = np.where(self.stays, self.owner, -1)
        for owners, index in _columns(owner):
            width = index.shape[1]
            if width == 1:
                # the common case of one column each needs no matrix inverse
                single = index[:, 0]
                squares = np.einsum("mk,mk->k", self.weight, self.weight)
                total[owners] += squares[single] / diagonal[single]
                continue
            row = index[:, :, None]
            column = index[:, None, :]
            own = self.inverse[row, column]
            inner = np.linalg.inv(own)
            slices = self.weight[:, index]
            slices = slices.transpose(1, 2, 0)
            other = slices.transpose(0, 2, 1)
            products = slices @ other
            # the trace of each product, without making it
            traces = np.einsum("cij,cji->c", inner, products)
            total[owners] += traces

    def remove(self, owners: Sequence[int]) -> None:
        """Take the owners' columns out; weight and inverse become those of the refitted rest."""
        leaves = np.isin(self.owner, owners) & self.stays
        (gone,) = leaves.nonzero()
        if not len(gone):
            return
        cross = self.inverse[gone]
        own = cross[:, gone]
        # the rest takes over what the columns gave; the inverse loses them by a Schur complement
        step = np.linalg.solve(own, cross)
        taken_over = self.weight[:, gone] @ step
        self.weight -= taken_over
        for start in range(0, len(self.inverse), PANEL):
            panel = slice(start, start + PANEL)
            own_cross = cross[:, panel]
            self.inverse[panel] -= own_cross.T @ step
        # what rounding left there
        self.weight[:, gone] = 0
        self.inverse[gone] = 0
        self.inverse[:, gone] = 0
        self.stays[gone] = False
        # in place until half of the columns are gone: a copy takes longer than the update
        staying = self.stays.sum()
        if 2 * staying <= len(self.stays):
            left = self._part(self.stays)
            self.weight = left.weight
            self.inverse = left.inverse
            self.owner = left.owner
            self.stays = left.stays

    def _part(self, columns: NDArray[np.bool_]) -> _ObsBlock:
        """A copy of some columns."""
        both = np.ix_(columns, columns)
        return _ObsBlock(
            weight=self.weight[:, columns],
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
    """Common input of some linear layers, parts of which are taken out.

    Costs are shares of the variance of a layer's output, summed over the layers; `readers`: how
    many there are.
    """

    blocks: list[_ObsBlock]
    readers: int

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
        rows_of_all = []
        energies = np.zeros(len(weights))
        for group, (moments, own) in enumerate(zip(gram, owner, strict=True)):
            covariance, alive = _live_covariance(moments)
            if not alive.any():
                continue
            usual = np.diagonal(covariance).mean()
            diagonal = np.diag_indices(len(covariance))
            # inputs that depend on each other have no inverse without it
            covariance[diagonal] += damp * usual
            rows = []
            for number, weight in enumerate(weights):
                live = weight[group][:, alive]
                few = _as_few_rows(live)
                output = few @ covariance
                energies[number] += np.vdot(output, few)
                rows.append(few)
            rows_of_all.append(rows)
            inverse = np.linalg.inv(covariance)
            block = _ObsBlock(
                weight=rows[0],
                inverse=np.asarray(inverse, np.float64),
                owner=own[alive],
                stays=np.ones(len(covariance), bool),
            )
            blocks.append(block)
        scales = _inverse_roots(energies)
        for block, rows in zip(blocks, rows_of_all, strict=True):
            scaled = [scale * each for scale, each in zip(scales, rows, strict=True)]
            joined = np.concatenate(scaled)
            block.weight = _as_few_rows(joined)
        return cls(blocks, len(weights))

    def costs(self, count: int) -> Scores:
        """Cost of each of `count` owners now, summed over the layers; 0 once gone."""
        total = np.zeros(count)
        for block in self.blocks:
            block.costs(total)
        # rounding leaves tiny negative costs of columns that others make up for
        return np.maximum(total, 0)

    def restricted(self, owners: NDArray[np.intp]) -> ObsInput:
        """The layers as these owners alone see them.

        Their costs stay right, also after one of them goes: an inverse restricted to some inputs is
        that with the others still there to make up for what goes.
        """
        parts = [block.restricted(owners) for block in self.blocks]
        return ObsInput(parts, self.readers)

    def remove(self, owners: Sequence[int]) -> None:
        """Take inputs out and let the rest make up for them."""
        for block in self.blocks:
            block.remove(owners)


def _live_covariance(moments: Matrix) -> tuple[Matrix, NDArray[np.bool_]]:
    """Covariance of the inputs that vary, and the mask of these: (K + 1, K + 1) -> (k, k), (K,)."""
    # the last row of z z^T, z = [x, 1], holds the means of x
    mean = moments[-1, :-1]
    products = moments[:-1, :-1]
    of_means = np.outer(mean, mean)
    covariance = products - of_means
    variance = np.diagonal(covariance)
    mean_square = np.diagonal(moments)[:-1]
    rounding = DEAD * mean_square
    alive = variance > rounding
    both = np.ix_(alive, alive)
    return covariance[both], alive


def _inverse_roots(energies: NDArray[np.float64]) -> NDArray[np.float64]:
    """Factors that bring the energy of each layer to 1, 0 of one without output: (layers,)."""
    roots = np.sqrt(energies)
    has_output = energies > 0
    # a layer without output has no share to lose
    scales = np.zeros(len(energies))
    np.divide(1, roots, out=scales, where=has_output)
    return scales


def _as_few_rows(weight: Matrix) -> Matrix:
    """A matrix (M, K) of the same W^T W, which is all that costs depend on, of K rows at most."""
    rows, columns = weight.shape
    if rows <= columns:
        return weight
    triangle = np.linalg.qr(weight, mode="r")
    return np.asarray(triangle)


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
