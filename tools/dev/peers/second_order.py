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
    hessian = damped(gram)
    inverse = np.linalg.inv(hessian)
    lower = np.linalg.cholesky(inverse)
    upper = lower.T
    diagonal = np.diagonal(upper)
    width = left.shape[1]
    for start in range(0, width, BLOCK):
        end = start + BLOCK
        stop = min(end, width)
        block = left[:, start:stop]
        own = diagonal[start:stop]
        squares = block**2
        divisors = own**2
        losses = squares / divisors
        size = block.size
        zeros = sparsity * size
        count = round(zeros)
        chosen = smallest(losses, count)
        for column in range(start, stop):
            columns = left[:, column:]
            factors = upper[column, column:]
            offset = column - start
            is_gone = chosen[:, offset]
            _remove_from_first(columns, factors, is_gone)
    return left


def _remove_from_first(
    columns: Matrix, factors: Matrix, is_gone: NDArray[np.bool_]
) -> None:
    """Zero some weights of the first column; those to its right make up for them, in place."""
    first = columns[:, 0]
    lost = np.where(is_gone, first, 0.0)
    own = factors[0]
    error = lost / own
    change = np.outer(error, factors)
    columns -= change
    first[is_gone] = 0.0


def optimal_brain_compression(weights: Matrix, gram: Matrix, sparsity: float) -> Matrix:
    """In each row the weight of least loss goes, the others make up for it, and so on; rows share
    the count of zeros so that the sum of losses is least.

    Source: Frantar, Singh, Alistarh, Optimal Brain Compression, NeurIPS 2022 (arXiv:2208.11580),
    algorithms 1 and 2.
    """
    hessian = damped(gram)
    inverse: Matrix = np.linalg.inv(hessian)
    width = weights.shape[1]
    # a row never loses much more than its share; to the last weight would take twice as long
    reach = sparsity + 0.35
    most = int(width * reach)
    steps = min(width, most)
    losses = []
    orders = []
    for row in weights:
        lost, order = _removed(row, inverse, steps)
        # a row's weights go in their order, whatever a later one would lose
        rising = np.maximum.accumulate(lost)
        losses.append(rising)
        orders.append(order)
    by_row = np.array(losses)
    size = weights.size
    total = round(sparsity * size)
    is_gone = smallest(by_row, total)
    counts = is_gone.sum(axis=1)
    left = np.zeros_like(weights)
    for index, count in enumerate(counts):
        row = weights[index]
        order = orders[index]
        gone = order[:count]
        left[index] = _fitted(row, gone, hessian)
    return left


def _fitted(row: Matrix, gone: NDArray[np.intp], hessian: Matrix) -> Matrix:
    """A row without some of its weights, which the others make up for."""
    left = np.zeros_like(row)
    size = row.size
    every = np.arange(size)
    stays = np.setdiff1d(every, gone)
    across = np.ix_(stays, gone)
    within = np.ix_(stays, stays)
    removed = row[gone]
    coupling = hessian[across]
    moved = coupling @ removed
    kept_hessian = hessian[within]
    change = np.linalg.solve(kept_hessian, moved)
    kept = row[stays]
    left[stays] = kept + change
    return left


def _removed(
    row: Matrix, inverse: Matrix, steps: int
) -> tuple[Matrix, NDArray[np.intp]]:
    """Loss of each removal, and the weights in the order in which they go."""
    row = row.copy()
    inverse = inverse.copy()
    losses = np.empty(steps)
    order = np.empty(steps, np.intp)
    present = np.ones(row.size, bool)
    for step in range(steps):
        diagonal = np.diagonal(inverse)
        own = np.where(present, diagonal, 1.0)
        squares = row**2
        each = squares / own
        scores = np.where(present, each, np.inf)
        least = np.argmin(scores)
        gone = int(least)
        order[step] = gone
        loss = scores[gone]
        losses[step] = loss
        factors = inverse[gone]
        pivot = factors[gone]
        share = factors / pivot
        weight = row[gone]
        change = weight * share
        row -= change
        column = inverse[:, gone]
        moved = np.outer(column, share)
        inverse -= moved
        present[gone] = False
    return losses, order


def damped(gram: Matrix) -> Matrix:
    """The matrix with `DAMP` of its mean diagonal on the diagonal."""
    diagonal = np.diagonal(gram)
    mean = float(np.mean(diagonal))
    added = DAMP * mean
    width = len(gram)
    identity = np.eye(width)
    ridge = identity * added
    return gram + ridge


def smallest(scores: Matrix, count: int) -> NDArray[np.bool_]:
    """True for so many of the smallest scores, ties by index."""
    order = np.argsort(scores, axis=None, kind="stable")
    chosen = order[:count]
    size = scores.size
    mask = np.zeros(size, bool)
    mask[chosen] = True
    return mask.reshape(scores.shape)
