"""Pruning of one layer as published: OBC's exact removal in order of loss, and SparseGPT.

Written anew from the papers, to be compared with; each takes weights (M, K) and the Gram matrix
(K, K) of the layer's inputs, and returns the weights (M, K) that it leaves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Matrix = NDArray[np.float64]

DAMP = 0.01
"""Share of the mean diagonal that is added to it, as in SparseGPT's own code."""

BLOCK = 128
"""Columns that get their mask together, as SparseGPT has it."""


def sparsegpt(weights: Matrix, gram: Matrix, sparsity: float) -> Matrix:
    """Columns from left to right: what pruning one loses, those to its right make up for.

    Source: Frantar and Alistarh, SparseGPT, ICML 2023 (arXiv:2301.00774), algorithm 1.
    """
    left = weights.copy()
    inverse = np.linalg.inv(damped(gram))
    upper = np.linalg.cholesky(inverse).T
    width = left.shape[1]
    for start in range(0, width, BLOCK):
        columns = range(start, min(start + BLOCK, width))
        own = np.diagonal(upper)[columns.start : columns.stop]
        block = left[:, columns.start : columns.stop]
        gone = smallest(block**2 / own**2, round(sparsity * block.size))
        for offset, column in enumerate(columns):
            lost = np.where(gone[:, offset], left[:, column], 0.0)
            error = lost / upper[column, column]
            left[:, column:] -= np.outer(error, upper[column, column:])
            left[gone[:, offset], column] = 0.0
    return left


def optimal_brain_compression(weights: Matrix, gram: Matrix, sparsity: float) -> Matrix:
    """In each row the weight of least loss goes, the others make up for it, and so on; rows share
    the count of zeros so that the sum of losses is least.

    Source: Frantar, Singh, Alistarh, Optimal Brain Compression, NeurIPS 2022 (arXiv:2208.11580),
    algorithms 1 and 2.
    """
    hessian = damped(gram)
    inverse: Matrix = np.linalg.inv(hessian)
    # a row never loses much more than its share; to the last weight would take twice as long
    steps = min(weights.shape[1], int(weights.shape[1] * (sparsity + 0.35)))
    traces = [_removed(row, inverse, steps) for row in weights]
    # a row's weights go in their order, whatever a later one would lose
    losses = np.array([np.maximum.accumulate(losses) for losses, _ in traces])
    counts = smallest(losses, round(sparsity * weights.size)).sum(axis=1)
    left = np.zeros_like(weights)
    for index, (row, count) in enumerate(zip(weights, counts, strict=True)):
        gone = traces[index][1][:count]
        stays = np.setdiff1d(np.arange(row.size), gone)
        moved = hessian[np.ix_(stays, gone)] @ row[gone]
        left[index, stays] = row[stays] + np.linalg.solve(
            hessian[np.ix_(stays, stays)], moved
        )
    return left


def _removed(
    row: Matrix, inverse: Matrix, steps: int
) -> tuple[Matrix, NDArray[np.intp]]:
    """Loss of each removal, and the weights in the order in which they go."""
    row, inverse = row.copy(), inverse.copy()
    losses, order = np.empty(steps), np.empty(steps, np.intp)
    present = np.ones(row.size, bool)
    for step in range(steps):
        own = np.where(present, np.diagonal(inverse), 1.0)
        scores = np.where(present, row**2 / own, np.inf)
        gone = int(np.argmin(scores))
        losses[step], order[step] = scores[gone], gone
        column = inverse[gone] / inverse[gone, gone]
        row -= row[gone] * column
        inverse -= np.outer(inverse[:, gone], column)
        present[gone] = False
    return losses, order


def damped(gram: Matrix) -> Matrix:
    """The matrix with `DAMP` of its mean diagonal on the diagonal."""
    mean = float(np.mean(np.diagonal(gram)))
    return gram + np.eye(len(gram)) * (DAMP * mean)


def smallest(scores: Matrix, count: int) -> NDArray[np.bool_]:
    """True for so many of the smallest scores, ties by index."""
    order = np.argsort(scores, axis=None, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[:count]] = True
    return mask.reshape(scores.shape)
