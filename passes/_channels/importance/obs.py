"""Optimal Brain Surgeon on the inputs of one linear layer: what columns cost, and the layer without
them.
"""

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
class _Block:
    """One group of a layer: `weight` (M, K), `inverse` of the inputs' covariance (K, K), `owner` of
    each column.
    """

    weight: Matrix
    inverse: Matrix
    owner: NDArray[np.intp]

    def costs(self, total: Scores) -> None:
        """Add to `total`, by owner, tr(W_c (H_cc)^-1 W_c^T) for the columns c of each."""
        for owners, index in _columns(self.owner):
            if index.shape[1] == 1:
                column = index[:, 0]
                total[owners] += (
                    np.square(self.weight[:, column]).sum(0)
                    / np.diagonal(self.inverse)[column]
                )
                continue
            inner = np.linalg.inv(self.inverse[index[:, :, None], index[:, None, :]])
            slices = self.weight[:, index].transpose(1, 2, 0)
            total[owners] += np.einsum(
                "cij,cji->c", inner, slices @ slices.transpose(0, 2, 1)
            )

    def remove(self, owners: Sequence[int]) -> None:
        """Take the columns of the owners out; weight and inverse become those of the refitted
        rest.
        """
        gone = np.isin(self.owner, owners)
        if not gone.any():
            return
        stays = ~gone
        cross = self.inverse[np.ix_(gone, stays)]
        step = np.linalg.solve(self.inverse[np.ix_(gone, gone)], cross)
        self.weight = self.weight[:, stays] - self.weight[:, gone] @ step
        self.inverse = self.inverse[np.ix_(stays, stays)] - cross.T @ step
        self.owner = self.owner[stays]


@dataclass
class Surgeon:
    """A linear layer some of whose inputs go. Costs are shares of the variance of its whole
    output.
    """

    blocks: list[_Block]
    energy: float

    @classmethod
    def of(
        cls, weight: Matrix, gram: Matrix, owner: NDArray[np.intp], damp: float
    ) -> Surgeon:
        """Weight (groups, M, K); gram (groups, K + 1, K + 1), the mean of z z^T, z = [x, 1]; owner
        (groups, K), or -1.

        Inputs that do not vary are left out: the bias makes up for them exactly.
        """
        blocks, energy = [], 0.0
        for rows, moments, own in zip(weight, gram, owner, strict=True):
            mean = moments[-1, :-1]
            covariance = moments[:-1, :-1] - np.outer(mean, mean)
            alive = np.diagonal(covariance) > DEAD * np.diagonal(moments)[:-1]
            if alive.any():
                covariance = covariance[np.ix_(alive, alive)]
                covariance[np.diag_indices(len(covariance))] += (
                    damp * np.diagonal(covariance).mean()
                )
                blocks.append(
                    _Block(rows[:, alive], np.linalg.inv(covariance), own[alive])
                )
                energy += float(np.vdot(rows[:, alive] @ covariance, rows[:, alive]))
        return cls(blocks, energy)

    def costs(self, count: int) -> Scores:
        """What each of `count` owners costs now, as a share of the output's variance; 0 for those
        that are gone.
        """
        total = np.zeros(count)
        for block in self.blocks:
            block.costs(total)
        return (
            np.maximum(total, 0) / self.energy if self.energy > 0 else np.zeros(count)
        )

    def restricted(self, owners: NDArray[np.intp]) -> Surgeon:
        """The same layer seen by these owners alone: their costs, and those after one of them goes,
        stay right.
        """
        parts = []
        for block in self.blocks:
            own = np.isin(block.owner, owners)
            parts.append(
                _Block(
                    block.weight[:, own],
                    block.inverse[np.ix_(own, own)],
                    block.owner[own],
                )
            )
        return Surgeon(parts, self.energy)

    def remove(self, owners: Sequence[int]) -> None:
        """Take inputs out and let the rest make up for them."""
        for block in self.blocks:
            block.remove(owners)


def _columns(
    owner: NDArray[np.intp],
) -> list[tuple[NDArray[np.intp], NDArray[np.intp]]]:
    """(owners, their columns as (owners, width)) for each width that occurs."""
    order = np.argsort(owner, kind="stable")
    order = order[owner[order] >= 0]
    names, starts, counts = np.unique(
        owner[order], return_index=True, return_counts=True
    )
    return [
        (
            names[counts == width],
            order[starts[counts == width][:, None] + np.arange(width)],
        )
        for width in np.unique(counts)
    ]
