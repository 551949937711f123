"""How many weights each layer loses: uniform, by the Erdos-Renyi kernel, or by LAMP scores."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import blocks
from .magnitude import NonFiniteError, key_kind, magnitudes, value_of

Allocation = Literal["uniform", "erk", "lamp"]


def share(sparsity: float, size: int) -> int:
    """floor(sparsity * size) for the decimal number as it is written: 0.29 of 100 is 29."""
    return int(Fraction(repr(sparsity)) * size)


def allocate(
    allocation: Allocation, tensors: Sequence[ir.TensorProtocol], sparsity: float
) -> list[int]:
    """How many elements of each tensor to zero; all but `uniform` add up to floor(sparsity * all).

    Every tensor keeps at least one element under `erk` and `lamp`. Errors: NonFiniteError (lamp
    only).
    """
    if allocation == "uniform":
        return [share(sparsity, t.size) for t in tensors]
    total = share(sparsity, sum(t.size for t in tensors))
    if allocation == "erk":
        return _erk([tuple(int(d) for d in t.shape.numpy()) for t in tensors], total)
    return _lamp(tensors, total)


def _erk(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """Density proportional to sum(shape) / prod(shape), at most 1; what dense layers cannot give
    the others do.

    Source: Evci et al., Rigging the Lottery, ICML 2020 (arXiv:1911.11134), section 3 and appendix.
    """
    sizes = np.array([int(np.prod(s)) for s in shapes], np.float64)
    weight = np.array([sum(s) for s in shapes], np.float64)  # size * sum / prod
    dense = np.zeros(len(shapes), bool)
    kept = sizes.sum() - total
    while True:
        scale = (kept - sizes[dense].sum()) / max(weight[~dense].sum(), 1)
        over = ~dense & (scale * weight > sizes)
        if not over.any():
            break
        dense |= over
    pruned = np.where(dense, 0.0, sizes - scale * weight)
    return _rounded(pruned.astype(np.float64), sizes.astype(np.int64) - 1, total)


def _rounded(
    exact: NDArray[np.float64], most: NDArray[np.int64], total: int
) -> list[int]:
    """Whole numbers near `exact`, each within [0, most], that add up to `total` where `most`
    allows.
    """
    counts = np.clip(np.floor(exact + 1e-9).astype(np.int64), 0, most)
    by_remainder = np.argsort(-(exact - counts), kind="stable")
    missing = min(total, int(most.sum())) - int(counts.sum())
    while missing:
        step = 1 if missing > 0 else -1
        for i in by_remainder:
            if missing and 0 <= counts[i] + step <= most[i]:
                counts[i] += step
                missing -= step
    return [int(c) for c in counts]


def _lamp(tensors: Sequence[ir.TensorProtocol], total: int) -> list[int]:
    """Zero the smallest LAMP scores w^2 / sum of v^2 over |v| >= |w| of the layer, over all layers
    together.

    The score grows with |w| within a layer, so counts suffice. Magnitudes are grouped by their
    upper 16 bits (8 of the significand); a group shares one score, and the group on the border
    gives as many as are missing. Source: Lee et al., Layer-adaptive Sparsity for Magnitude-based
    Pruning, ICLR 2021 (arXiv:2010.07611).
    """
    layer, score, count = [], [], []
    for index, tensor in enumerate(tensors):
        scores, counts = _scored_groups(tensor, index)
        layer.append(np.full(scores.size, index))
        score.append(scores)
        count.append(counts)
    layers, counts = np.concatenate(layer), np.concatenate(count)
    order = np.argsort(np.concatenate(score), kind="stable")
    before = np.cumsum(counts[order]) - counts[order]
    taken = np.clip(total - before, 0, counts[order])
    pruned = np.bincount(layers[order], weights=taken, minlength=len(tensors))
    return _rounded(
        pruned.astype(np.float64),
        np.array([max(t.size - 1, 0) for t in tensors]),
        total,
    )


def _scored_groups(
    tensor: ir.TensorProtocol, index: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """LAMP score and number of elements of each occupied group of magnitudes, from the smallest
    up.
    """
    kind = key_kind([tensor])
    shift = kind(np.dtype(kind).itemsize * 8 - 16)
    counts, squares = np.zeros(1 << 16, np.int64), np.zeros(1 << 16)
    for _, block in blocks(tensor):
        keys = magnitudes(block, kind)
        values = value_of(keys, kind).astype(np.float64)
        if not np.isfinite(values).all():
            raise NonFiniteError(index)
        group = (keys >> shift).astype(np.intp)
        counts += np.bincount(group, minlength=1 << 16)
        squares += np.bincount(group, weights=values * values, minlength=1 << 16)
    occupied = np.flatnonzero(counts)
    counts, squares = counts[occupied], squares[occupied]
    rest = np.cumsum(squares[::-1])[::-1]
    return squares / counts / np.where(rest > 0, rest, 1), counts
