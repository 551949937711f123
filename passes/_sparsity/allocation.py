"""Number of weights that each layer loses: uniform, by Erdos-Renyi kernel, or by LAMP scores."""

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
    """Number of elements of each tensor to zero; all but `uniform` add up to floor(sparsity * all).

    Every tensor keeps at least one element under `erk` and `lamp`. Errors: NonFiniteError (lamp
    only).
    """
    if allocation == "uniform":
        return [share(sparsity, tensor.size) for tensor in tensors]
    elements = sum(tensor.size for tensor in tensors)
    total = share(sparsity, elements)
    if allocation == "lamp":
        return _lamp(tensors, total)
    shapes = []
    for tensor in tensors:
        shape = tuple(int(dim) for dim in tensor.shape.numpy())
        shapes.append(shape)
    return _erk(shapes, total)


def _erk(shapes: Sequence[tuple[int, ...]], total: int) -> list[int]:
    """Density proportional to sum(shape) / prod(shape); a layer whose density exceeds 1 is dense.

    The others then share what is left to prune.

    Source: Evci et al., Rigging the Lottery, ICML 2020 (arXiv:1911.11134), section 3 and appendix.
    """
    elements = [int(np.prod(shape)) for shape in shapes]
    sizes = np.array(elements, np.float64)
    # elements kept at a density of sum / prod: the size cancels the product
    dim_sums = [sum(shape) for shape in shapes]
    raw = np.array(dim_sums, np.float64)
    dense = np.zeros(len(shapes), bool)
    kept = sizes.sum() - total
    while True:
        kept_of_dense = sizes[dense].sum()
        kept_of_sparse = kept - kept_of_dense
        raw_of_sparse = raw[~dense].sum()
        scale = kept_of_sparse / max(raw_of_sparse, 1)
        kept_by_layer = scale * raw
        over = ~dense & (kept_by_layer > sizes)
        if not over.any():
            break
        dense |= over
    pruned = np.where(
        dense,
        0.0,
        sizes - kept_by_layer,
    )
    most = sizes.astype(np.int64) - 1
    exact = pruned.astype(np.float64)
    return whole_counts(exact, most, total)


def whole_counts(
    exact: NDArray[np.float64], most: NDArray[np.int64], total: int
) -> list[int]:
    """Whole numbers near `exact`, each within [0, most], with the sum `total` if `most` allows it.

    By largest remainders.
    """
    # 1e-9: a whole number that arithmetic left just below itself is not to lose one
    whole = np.floor(exact + 1e-9).astype(np.int64)
    counts = np.clip(whole, 0, most)
    remainders = exact - counts
    by_remainder = np.argsort(-remainders, kind="stable")
    wanted = min(total, int(most.sum()))
    missing = wanted - int(counts.sum())
    while missing:
        step = 1 if missing > 0 else -1
        for i in by_remainder:
            if not missing:
                break
            changed = counts[i] + step
            if changed < 0 or changed > most[i]:
                continue
            counts[i] = changed
            missing -= step
    return [int(count) for count in counts]


def _lamp(tensors: Sequence[ir.TensorProtocol], total: int) -> list[int]:
    """Zero the smallest LAMP scores, over all layers together.

    The score of w is w^2 / sum of v^2 over |v| >= |w| of its layer. It grows with |w| within a
    layer, so counts suffice. Magnitudes are grouped by their upper 16 bits (8 of the significand);
    a group shares one score, and the group on the border gives as many as are missing. Source: Lee
    et al., Layer-adaptive Sparsity for Magnitude-based Pruning, ICLR 2021 (arXiv:2010.07611).
    """
    layer_parts = []
    score_parts = []
    count_parts = []
    for index, tensor in enumerate(tensors):
        of_groups, sizes = _scored_groups(tensor, index)
        layer = np.full(of_groups.size, index)
        layer_parts.append(layer)
        score_parts.append(of_groups)
        count_parts.append(sizes)
    scores = np.concatenate(score_parts)
    order = np.argsort(scores, kind="stable")
    layers = np.concatenate(layer_parts)[order]
    counts = np.concatenate(count_parts)[order]
    up_to = np.cumsum(counts)
    before = up_to - counts
    taken = np.clip(total - before, 0, counts)
    pruned = np.bincount(
        layers,
        weights=taken,
        minlength=len(tensors),
    )
    most = np.array([max(tensor.size - 1, 0) for tensor in tensors])
    exact = pruned.astype(np.float64)
    return whole_counts(exact, most, total)


def _scored_groups(
    tensor: ir.TensorProtocol, index: int
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """LAMP score and size of each occupied group of magnitudes, from the smallest up."""
    try:
        squares, counts = squares_by_magnitude(tensor)
    except NonFiniteError:
        raise NonFiniteError(index) from None
    # sums from the largest magnitude down, each with its own group
    largest_first = squares[::-1]
    not_smaller = np.cumsum(largest_first)[::-1]
    # 0 where a layer has nothing but zeros, whose scores are 0 too
    divisor = np.where(not_smaller > 0, not_smaller, 1)
    mean_square = squares / counts
    return mean_square / divisor, counts


def squares_by_magnitude(
    tensor: ir.TensorProtocol,
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Sum of squares and size of each occupied group of magnitudes, from the smallest up.

    A group shares the upper 16 bits of |w|. Errors: NonFiniteError.
    """
    kind = key_kind([tensor])
    bits = np.dtype(kind).itemsize * 8
    shift = kind(bits - 16)
    groups = 1 << 16
    counts = np.zeros(groups, np.int64)
    squares = np.zeros(groups)
    for _, block in blocks(tensor):
        keys = magnitudes(block, kind)
        exact = value_of(keys, kind)
        values = exact.astype(np.float64)
        if not np.isfinite(values).all():
            raise NonFiniteError(0)
        group = (keys >> shift).astype(np.intp)
        counts += np.bincount(group, minlength=groups)
        squares += np.bincount(
            group,
            weights=values * values,
            minlength=groups,
        )
    occupied = np.flatnonzero(counts)
    return squares[occupied], counts[occupied]
