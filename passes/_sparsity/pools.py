"""Weights of smallest or largest magnitude zeroed or clipped, in pools that are ranked together."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
import onnx_ir as ir

from .._base import Context, Declined, Stat
from .._core.lazy import DerivedTensor, blocks
from .._core.weight_axes import NoAxisError, elements_after, input_axis, rows_of
from .._core.weights import Weight
from .allocation import Allocation, allocate, share
from .magnitude import (
    KeyKind,
    NonFiniteError,
    count_zeros,
    cut_ties,
    is_finite,
    key_kind,
    key_of,
    kth_smallest,
    magnitudes,
)
from .masks import (
    Select,
    clip_at,
    clip_rows_at,
    keep_n_of_m,
    zero_beyond,
    zero_beyond_rows,
)
from .rows import row_cuts, row_limits

_ZIP_LIMIT = 256 << 20
"""Bytes of weights above which zipping them would cost more than the pruning."""


@dataclass(frozen=True)
class Criteria:
    """Criteria by which weights go: at most one of threshold, pattern, a scope and an allocation.

    `pattern`: (N, M). `counts`: zeros by the name of each weight, in place of a sparsity.
    """

    sparsity: float = 0.0
    threshold: float | None = None
    select: Select = "min"
    mode: Literal["zero", "clip"] = "zero"
    scope: Literal["layer", "model", "row"] = "layer"
    pattern: tuple[int, int] | None = None
    allocation: Allocation = "uniform"
    counts: Mapping[str, int] | None = None

    @property
    def ranks_together(self) -> bool:
        """True if the number of zeros of one weight depends on the others."""
        return self.scope == "model" or self.allocation != "uniform"

    @property
    def frees_places(self) -> bool:
        """True if only the count of zeros is asked for, not which weights they are."""
        by_value = self.threshold or self.pattern
        return not by_value and self.scope != "row"


@dataclass(frozen=True)
class PrunedWeight:
    """A weight, the tensor that it becomes (None: it stays), and its zeros and clipped elements."""

    weight: Weight
    tensor: DerivedTensor | None
    zeros: int
    clipped: int = 0


def prune_weights(
    weights: Sequence[Weight], criteria: Criteria, context: Context
) -> tuple[list[PrunedWeight], list[Declined]]:
    """Work out what weights become, and why others cannot be ranked; no weight changes yet."""
    together = criteria.ranks_together
    pools = [list(weights)] if together else [[weight] for weight in weights]
    pruned: list[PrunedWeight] = []
    declined: list[Declined] = []
    with (
        context.progress("prune", len(weights)) as advance,
        ThreadPoolExecutor(2) as threads,
    ):
        results = threads.map(partial(_prune_pool, criteria), pools)
        for pool, (done, refused) in zip(pools, results, strict=True):
            pruned += done
            declined += refused
            advance(len(pool))
    return pruned, declined


def _prune_pool(
    criteria: Criteria, pool: list[Weight]
) -> tuple[list[PrunedWeight], list[Declined]]:
    """Prune the weights of a pool that can be, and decline the others.

    Without a weight that is not finite the rest is ranked anew.
    """
    declined: list[Declined] = []
    while pool:
        try:
            return _pruned(pool, criteria), declined
        except NonFiniteError as error:
            bad = pool[error.index]
            reason = "it holds NaN or infinity, which cannot be ranked by magnitude"
            declined.append(Declined(bad.name, reason))
            pool = [weight for weight in pool if weight is not bad]
        except NoAxisError as error:
            declined.append(Declined(pool[0].name, str(error)))
            break
    return [], declined


def _pruned(pool: list[Weight], criteria: Criteria) -> list[PrunedWeight]:
    """The weights of a pool after pruning. Errors: NonFiniteError, NoAxisError."""
    if criteria.scope == "model":
        size = sum(weight.size for weight in pool)
        return _ranked(pool, share(criteria.sparsity, size), criteria)
    if criteria.threshold:
        key = criteria.threshold
        return [_measured(w, _beyond_threshold(w.tensor, key, criteria)) for w in pool]
    if criteria.pattern is not None:
        keep, of = criteria.pattern
        return [_measured(weight, _patterned(weight, keep, of)) for weight in pool]
    if criteria.scope == "row":
        return [_measured(weight, _by_rows(weight, criteria)) for weight in pool]
    found: list[PrunedWeight] = []
    for index, count in enumerate(_counts(pool, criteria)):
        try:
            found += _ranked([pool[index]], count, criteria)
        except NonFiniteError:
            # the index is that in the pool of one
            raise NonFiniteError(index) from None
    return found


def _counts(pool: list[Weight], criteria: Criteria) -> list[int]:
    """Number of zeros that each weight of a pool is to have. Errors: NonFiniteError."""
    if criteria.counts is not None:
        return [criteria.counts.get(weight.name, 0) for weight in pool]
    tensors = [weight.tensor for weight in pool]
    return allocate(criteria.allocation, tensors, criteria.sparsity)


def _ranked(pool: list[Weight], count: int, criteria: Criteria) -> list[PrunedWeight]:
    """Zero or clip `count` elements of the pool by their rank."""
    if criteria.mode == "clip":
        return _clipped(pool, count)
    return _zeroed(pool, count, criteria.select)


def _zeroed(pool: list[Weight], count: int, select: Select) -> list[PrunedWeight]:
    """Bring the zeros of the pool to `count`; where there are as many already nothing changes."""
    tensors = [weight.tensor for weight in pool]
    missing = count
    # among the smallest the zeros come first, so that they are counted by rank
    if select == "max":
        missing -= count_zeros(tensors)
    if missing <= 0:
        return [_unchanged(weight) for weight in pool]
    size = sum(tensor.size for tensor in tensors)
    if select == "min":
        ranked = kth_smallest(tensors, missing)
        ties = missing - ranked.below
    else:
        ranked = kth_smallest(tensors, size - missing + 1)
        above = size - ranked.below - ranked.equal
        ties = missing - above
    # the elements to go are zero already
    if not ranked.key:
        return [_unchanged(weight) for weight in pool]
    if ties == ranked.equal:
        cuts = [tensor.size for tensor in tensors]
    else:
        cuts = cut_ties(tensors, ranked.key, ties)
    kind = key_kind(tensors)
    found = []
    for weight, cut in zip(pool, cuts, strict=True):
        masked = zero_beyond(
            weight.tensor,
            select,
            ranked.key,
            cut,
            kind,
        )
        # the zeros of a single weight are known without counting them
        if len(pool) == 1:
            found.append(PrunedWeight(weight, masked, count))
        else:
            found.append(_measured(weight, masked))
    return found


def _unchanged(weight: Weight) -> PrunedWeight:
    return PrunedWeight(weight, None, count_zeros([weight.tensor]))


def _clipped(pool: list[Weight], count: int) -> list[PrunedWeight]:
    """Saturate the `count` largest magnitudes of the pool at the largest that remains."""
    tensors = [weight.tensor for weight in pool]
    kind = key_kind(tensors)
    size = sum(tensor.size for tensor in tensors)
    key = kth_smallest(tensors, size - count).key
    return [_measured(weight, clip_at(weight.tensor, key, kind)) for weight in pool]


def _beyond_threshold(
    tensor: ir.TensorProtocol, threshold: float, criteria: Criteria
) -> DerivedTensor:
    kind = key_kind([tensor])
    # rounded to the weight's own type first, as its elements are
    rounded = np.array([threshold]).astype(tensor.dtype.numpy())
    key = key_of(float(rounded[0]), kind)
    if criteria.mode == "clip":
        return clip_at(tensor, key, kind)
    return zero_beyond(tensor, criteria.select, key, tensor.size, kind)


def _patterned(weight: Weight, keep: int, of: int) -> DerivedTensor:
    axis = input_axis(weight, of)
    return keep_n_of_m(
        weight.tensor,
        keep,
        of,
        elements_after(weight, axis),
    )


def _by_rows(weight: Weight, criteria: Criteria) -> DerivedTensor:
    tensor = weight.tensor
    view = rows_of(weight)
    count = share(criteria.sparsity, view.length)
    if criteria.mode == "clip":
        return clip_rows_at(tensor, view, row_limits(tensor, view, count))
    keys, cuts = row_cuts(
        tensor,
        view,
        criteria.select,
        count,
    )
    return zero_beyond_rows(tensor, criteria.select, view, keys, cuts)


def _measured(weight: Weight, derived: DerivedTensor) -> PrunedWeight:
    """Count in one pass the elements that a kernel alters; one that alters none is dropped.

    Errors: NonFiniteError.
    """
    kind: KeyKind = key_kind([weight.tensor])
    zeros = altered = clipped = 0
    pairs = zip(
        blocks(weight.tensor, derived.granule),
        blocks(derived),
        strict=True,
    )
    for (_, old), (_, new) in pairs:
        before = magnitudes(old, kind)
        if not is_finite(before):
            raise NonFiniteError(0)
        after = magnitudes(new, kind, scratch=True)
        zeros += after.size - int(np.count_nonzero(after))
        differs = before != after
        altered += int(np.count_nonzero(differs))
        clipped += int(np.count_nonzero(after[differs]))
    tensor = derived if altered else None
    return PrunedWeight(weight, tensor, zeros, clipped)


def zeroed(weight: Weight, count: int) -> ir.TensorProtocol:
    """A weight's tensor with its `count` smallest elements zero. Errors: NonFiniteError."""
    (pruned,) = _zeroed([weight], count, "min")
    return pruned.tensor or weight.tensor


def stats_of(pruned: Sequence[PrunedWeight], criteria: Criteria) -> dict[str, Stat]:
    """Figures of the account: see the pass `prune`."""
    size = sum(each.weight.size for each in pruned)
    zeros = sum(each.zeros for each in pruned)
    stats: dict[str, Stat] = {
        "weights": size,
        "zeros": zeros,
        "sparsity": zeros / size if size else 0.0,
    }
    if criteria.mode == "clip":
        stats["clipped"] = sum(each.clipped for each in pruned)
    stats["select"] = criteria.select
    tensors = [each.weight.tensor for each in pruned]
    if sum(tensor.nbytes for tensor in tensors) <= _ZIP_LIMIT:
        stats["zipped_bytes"] = _zipped_bytes(tensors)
    return stats


def _zipped_bytes(tensors: Sequence[ir.TensorProtocol]) -> int:
    packer = zlib.compressobj(level=1)
    size = 0
    for tensor in tensors:
        for _, block in blocks(tensor):
            data = np.ascontiguousarray(block).view(np.uint8).data
            size += len(packer.compress(data))
    return size + len(packer.flush())
