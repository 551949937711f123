"""Optimal Brain Surgeon on the inputs of a linear layer: what they cost, the layer without them."""

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


@dataclass
class _ObsBlock:
    """One group of a layer.

    `weight` (M, K), `inverse` of the inputs' covariance (K, K), `owner` of each column (K,).
    """

    weight: Matrix
    inverse: Matrix
    owner: NDArray[np.intp]

    def costs(self, total: Scores) -> None:
        """Add to `total`, by owner, tr(W_c (H_cc)^-1 W_c^T) for the columns c of each."""
        diagonal = np.diagonal(self.inverse)
        for owners, index in _columns(self.owner):
            width = index.shape[1]
            if width == 1:
                # the common case of one column each needs no matrix inverse
                single = index[:, 0]
                weight = self.weight[:, single]
                squares = np.square(weight)
                by_column = squares.sum(axis=0)
                total[owners] += by_column / diagonal[single]
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
        gone = np.isin(self.owner, owners)
        if not gone.any():
            return
        stays = ~gone
        inverse = self.inverse
        weight = self.weight
        own = inverse[np.ix_(gone, gone)]
        cross = inverse[np.ix_(gone, stays)]
        # the rest takes over what the columns gave; the inverse loses them by a Schur complement
        step = np.linalg.solve(own, cross)
        rest = inverse[np.ix_(stays, stays)]
        taken_over = weight[:, gone] @ step
        self.weight = weight[:, stays] - taken_over
        self.inverse = rest - cross.T @ step
        self.owner = self.owner[stays]

    def restricted(self, owners: NDArray[np.intp]) -> _ObsBlock:
        """The block as these owners alone see it."""
        own = np.isin(self.owner, owners)
        both = np.ix_(own, own)
        return _ObsBlock(
            weight=self.weight[:, own],
            inverse=self.inverse[both],
            owner=self.owner[own],
        )


@dataclass
class ObsLayer:
    """A linear layer some of whose inputs go. Costs are shares of the variance of its output."""

    blocks: list[_ObsBlock]
    energy: float

    @classmethod
    def of(
        cls, weight: Matrix, gram: Matrix, owner: NDArray[np.intp], damp: float
    ) -> ObsLayer:
        """Prepare a layer from its weight and the Gram matrices of its inputs.

        Shapes: weight (groups, M, K); gram (groups, K + 1, K + 1), the mean of z z^T, z = [x, 1];
        owner (groups, K), -1 for none. `damp`: share of the mean variance added to every variance.
        Inputs that do not vary are left out: the bias makes up for them exactly.
        """
        blocks = []
        energy = 0.0
        for rows, moments, own in zip(weight, gram, owner, strict=True):
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
            rows = rows[:, alive]
            block = _ObsBlock(
                weight=rows,
                inverse=np.linalg.inv(covariance),
                owner=own[alive],
            )
            blocks.append(block)
            output = rows @ covariance
            energy += float(np.vdot(output, rows))
        return cls(blocks, energy)

    def costs(self, count: int) -> Scores:
        """Cost of each of `count` owners now, a share of the output's variance; 0 once gone."""
        total = np.zeros(count)
        for block in self.blocks:
            block.costs(total)
        if self.energy > 0:
            # rounding leaves tiny negative costs of columns that others make up for
            positive = np.maximum(total, 0)
            return positive / self.energy
        return np.zeros(count)

    def restricted(self, owners: NDArray[np.intp]) -> ObsLayer:
        """The layer as these owners alone see it.

        Their costs stay right, also after one of them goes: an inverse restricted to some inputs is
        that with the others still there to make up for what goes.
        """
        parts = [block.restricted(owners) for block in self.blocks]
        return ObsLayer(parts, self.energy)

    def remove(self, owners: Sequence[int]) -> None:
        """Take inputs out and let the rest make up for them."""
        for block in self.blocks:
            block.remove(owners)


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
