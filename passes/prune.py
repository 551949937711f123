"""Magnitude pruning of weights, in place, shapes unchanged."""

from __future__ import annotations

import math
import re
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal, NoReturn

import numpy as np
import onnx_ir as ir

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, Stat
from ._core.graph import Weight, weights_of
from ._core.lazy import DerivedTensor, blocks, set_tensor
from ._core.ops import WEIGHTED_OPS
from ._core.patterns import left_out, require_matches, weight_names, weighted_names
from ._core.weight_axes import NoAxisError, elements_after, input_axis, rows_of
from ._sparsity.allocation import allocate, share
from ._sparsity.fit import fit_pruned
from ._sparsity.magnitude import (
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
from ._sparsity.masks import (
    Select,
    clip_at,
    clip_rows_at,
    keep_n_of_m,
    zero_beyond,
    zero_beyond_rows,
)
from ._sparsity.rows import row_cuts, row_limits

_ZIP_LIMIT = 256 << 20
"""Bytes of weights above which zipping them would cost more than the pruning."""


@dataclass(frozen=True)
class Prune(Pass):
    """Zero the weights of smallest magnitude, layer by layer or over the whole model.

    As a control, and for outliers, zero or clip the largest.

    Effect: lossy. Touches float weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN, in
    every subgraph; shapes, dtypes and names stay. A weight that several nodes share is one weight.
    Already zero entries count.

    Shapes: any weight -> same. With `sparsity` exactly floor(sparsity * size) entries of each pool
    (layer, row, model) are zero, ties by index; without data every kept |w| >= every pruned |w|.
    With `pattern=N:M` each group of M along the op's input axis keeps N. With `threshold` |w| <=
    threshold goes (select=max: |w| >= threshold, or is clipped to it).

    With data the weights that stay are fitted (`fit`): layer by layer, by least squares on the
    inputs that the pruned model gives, towards the original's outputs, biases included (a MatMul
    without one gets an Add). Each layer keeps its count of zeros. Their places follow `pattern`,
    `threshold` and `scope=row`; else they are chosen by magnitude, activation or second order.
    Choice and fit are made on one half of the data and judged on the other. A layer whose fit does
    no better there stays as it was pruned, and is named, as are layers that cannot be fitted.

    Errors: UsageError where options contradict each other, or a pattern of include or exclude
    matches no layer.

    Stats: `weights` (count), `zeros` (count), `sparsity` (fraction), `clipped` (count, mode=clip),
    `fitted` (count of layers), `by_…` (count of layers by the criterion of their mask), `select`,
    `zipped_bytes` (all these weights under zlib level 1; absent above 256 MiB of weights).

    Source: Han et al., Learning both Weights and Connections, NeurIPS 2015 (arXiv:1506.02626);
    allocations: Evci et al. 2020 (arXiv:1911.11134), Lee et al. 2021 (arXiv:2010.07611); N:M:
    Mishra et al. 2021 (arXiv:2104.08378).
    """

    name: ClassVar[str] = "prune"
    effect: ClassVar[Effect] = "lossy"

    sparsity: float = Option(
        0.5,
        "Fraction of weights to zero (select=max, mode=clip: to clip).",
        low=0.0,
        high=0.99,
    )
    threshold: float | None = Option(
        None, "Absolute magnitude to prune at, instead of a sparsity.", low=0.0
    )
    select: Literal["min", "max"] = Option(
        "min", "Prune the smallest magnitudes, or the largest."
    )
    mode: Literal["zero", "clip"] = Option(
        "zero", "Zero what is selected, or saturate it (select=max only)."
    )
    scope: Literal["layer", "model", "row"] = Option(
        "layer",
        "Rank weights within each layer, across the model, or within each output row.",
    )
    pattern: str | None = Option(
        None,
        "N:M, keep N of every M along the input axis, e.g. 2:4; sets the sparsity.",
    )
    allocation: Literal["uniform", "erk", "lamp"] = Option(
        "uniform",
        "Sparsity by layer: all alike, by Erdos-Renyi kernel, or by LAMP score.",
    )
    fit: bool = Option(
        True,
        "Solve for the weights that stay by least squares towards the original's outputs, where "
        "there is data.",
    )
    samples: int = Option(
        512, "Calibration samples to fit to at most.", low=1, high=10_000_000
    )
    include: tuple[str, ...] = Option(
        (),
        "Only weights of layers whose node, weight or output name matches a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )
    ops: tuple[str, ...] = Option(
        (), "Only weights of these op types; all weighted ops by default."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        _check_combinations(self)

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        weights, declined = _chosen(model, self)
        if self.select == "max" and self.mode == "zero":
            context.warn(
                "prune.select",
                "max zeroes the largest weights: a control experiment, outputs suffer most",
            )
        together = self.scope == "model" or self.allocation != "uniform"
        pools = [weights] if together else [[weight] for weight in weights]
        pruned: list[_Pruned] = []
        prune_pool = partial(_prune_pool, self)
        with (
            context.progress("prune", len(weights)) as advance,
            ThreadPoolExecutor(2) as threads,
        ):
            results = threads.map(prune_pool, pools)
            for pool, (done, refused) in zip(pools, results, strict=True):
                pruned += done
                declined += refused
                advance(len(pool))
        fits = self.fit and self.select == "min" and context.has_data()
        original = model.clone() if fits else None
        changed = [each for each in pruned if each.tensor is not None]
        for each in changed:
            set_tensor(each.weight.value, each.tensor)
        fitted: dict[str, Stat] = {}
        if original is not None and changed:
            names = [each.weight.name for each in changed]
            fitted, left = fit_pruned(
                original, model, names, self._frees_places(), context, self.samples
            )
            declined += left
        return PassOutcome(len(changed), {**_stats(pruned, self), **fitted}, declined)

    def _frees_places(self) -> bool:
        """Return whether only the count of zeros is asked for, not which weights they are."""
        return not self.pattern and not self.threshold and self.scope != "row"


@dataclass(frozen=True)
class _Pruned:
    """A weight, the tensor that it becomes (None: it stays), and its zeros and clipped elements."""

    weight: Weight
    tensor: DerivedTensor | None
    zeros: int
    clipped: int = 0


def _check_combinations(options: Prune) -> None:
    threshold = options.threshold
    if threshold is not None and not math.isfinite(threshold):
        problem = f"{threshold} is not finite"
        _refuse("threshold", problem, "give a magnitude, for example 0.01")
    if options.mode == "clip" and options.select != "max":
        _refuse("mode", "clip saturates the largest magnitudes only", "add select=max")
    if options.pattern:
        _parse_pattern(options.pattern)
    _check_criteria(options)
    for op in options.ops:
        if op not in WEIGHTED_OPS:
            problem = f"'{op}' is not an op with weights"
            _refuse("ops", problem, f"choose among {', '.join(WEIGHTED_OPS)}")


def _check_criteria(options: Prune) -> None:
    """Raise UsageError unless at most one option says how many weights go, and where."""
    chosen = []
    # 0 and "" are what pipeline text of older files calls off
    if options.threshold:
        chosen.append(f"threshold={options.threshold}")
    if options.pattern:
        chosen.append(f"pattern={options.pattern}")
    if options.scope != "layer":
        chosen.append(f"scope={options.scope}")
    if options.allocation != "uniform":
        chosen.append(f"allocation={options.allocation}")
    if len(chosen) > 1:
        first, second = chosen[:2]
        option = first.split("=")[0]
        _refuse(option, f"{first} contradicts {second}", "keep one of them")
    if options.pattern and options.sparsity != 0.5:
        problem = f"{options.sparsity} contradicts pattern={options.pattern}"
        _refuse("sparsity", problem, "leave one of them out")
    if options.select == "max" and (options.pattern or options.allocation != "uniform"):
        _refuse("select", f"max contradicts {chosen[0]}", "keep one of them")


def _refuse(option: str, problem: str, fix: str) -> NoReturn:
    raise UsageError(f"prune.{option}", problem, fix)


def _parse_pattern(text: str) -> tuple[int, int]:
    """(N, M) of `N:M`. Errors: UsageError."""
    match = re.fullmatch(r"(\d{1,2}):(\d{1,2})", text)
    if match:
        keep, of = int(match[1]), int(match[2])
        if keep >= 1 and keep < of and of <= 64:
            return keep, of
    problem = f"'{text}' is not N:M with 1 <= N < M <= 64"
    _refuse("pattern", problem, "write for example pattern=2:4")


def _chosen(model: ir.Model, options: Prune) -> tuple[list[Weight], list[Declined]]:
    """The weights to prune, and the reason for each other one.

    Errors: UsageError for a pattern that matches no layer.
    """
    found, declined = weights_of(model)
    if options.include or options.exclude:
        names = weighted_names(model)
        require_matches("prune.include", options.include, names)
        require_matches("prune.exclude", options.exclude, names)
    chosen = []
    for weight in found:
        reason = _why_not(weight, options)
        if reason is None:
            chosen.append(weight)
        else:
            declined.append(Declined(weight.name, reason))
    return chosen, declined


def _why_not(weight: Weight, options: Prune) -> str | None:
    """Reason why this weight is not to be pruned; None if it is."""
    # nothing to rank
    if not weight.size:
        return "is empty"
    ops = [node.op_type for node, _ in weight.uses]
    if options.ops and not set(ops) & set(options.ops):
        return f"no use is one of ops=[{', '.join(options.ops)}]"
    return left_out(weight_names(weight), options.include, options.exclude)


def _prune_pool(
    options: Prune, pool: list[Weight]
) -> tuple[list[_Pruned], list[Declined]]:
    """Prune the weights of a pool that can be, and decline the others.

    Without a weight that is not finite the rest is ranked anew.
    """
    declined: list[Declined] = []
    while pool:
        try:
            return _pruned(pool, options), declined
        except NonFiniteError as error:
            bad = pool[error.index]
            reason = "holds NaN or infinity: magnitudes have no order"
            declined.append(Declined(bad.name, reason))
            pool = [weight for weight in pool if weight is not bad]
        except NoAxisError as error:
            declined.append(Declined(pool[0].name, str(error)))
            break
    return [], declined


def _pruned(pool: list[Weight], options: Prune) -> list[_Pruned]:
    """The weights of a pool after pruning. Errors: NonFiniteError, NoAxisError."""
    if options.scope == "model":
        size = sum(weight.size for weight in pool)
        return _ranked(pool, share(options.sparsity, size), options)
    if options.threshold:
        key = options.threshold
        return [_measured(w, _beyond_threshold(w.tensor, key, options)) for w in pool]
    if options.pattern:
        keep, of = _parse_pattern(options.pattern)
        return [_measured(weight, _patterned(weight, keep, of)) for weight in pool]
    if options.scope == "row":
        return [_measured(weight, _by_rows(weight, options)) for weight in pool]
    found: list[_Pruned] = []
    tensors = [weight.tensor for weight in pool]
    counts = allocate(options.allocation, tensors, options.sparsity)
    for index, count in enumerate(counts):
        try:
            found += _ranked([pool[index]], count, options)
        except NonFiniteError:
            # the index is that in the pool of one
            raise NonFiniteError(index) from None
    return found


def _ranked(pool: list[Weight], count: int, options: Prune) -> list[_Pruned]:
    """Zero or clip `count` elements of the pool by their rank."""
    if options.mode == "clip":
        return _clipped(pool, count)
    return _zeroed(pool, count, options.select)


def _zeroed(pool: list[Weight], count: int, select: Select) -> list[_Pruned]:
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
            found.append(_Pruned(weight, masked, count))
        else:
            found.append(_measured(weight, masked))
    return found


def _unchanged(weight: Weight) -> _Pruned:
    return _Pruned(weight, None, count_zeros([weight.tensor]))


def _clipped(pool: list[Weight], count: int) -> list[_Pruned]:
    """Saturate the `count` largest magnitudes of the pool at the largest that remains."""
    tensors = [weight.tensor for weight in pool]
    kind = key_kind(tensors)
    size = sum(tensor.size for tensor in tensors)
    key = kth_smallest(tensors, size - count).key
    return [_measured(weight, clip_at(weight.tensor, key, kind)) for weight in pool]


def _beyond_threshold(
    tensor: ir.TensorProtocol, threshold: float, options: Prune
) -> DerivedTensor:
    kind = key_kind([tensor])
    # rounded to the weight's own type first, as its elements are
    rounded = np.array([threshold]).astype(tensor.dtype.numpy())
    key = key_of(float(rounded[0]), kind)
    if options.mode == "clip":
        return clip_at(tensor, key, kind)
    return zero_beyond(tensor, options.select, key, tensor.size, kind)


def _patterned(weight: Weight, keep: int, of: int) -> DerivedTensor:
    axis = input_axis(weight, of)
    return keep_n_of_m(
        weight.tensor,
        keep,
        of,
        elements_after(weight, axis),
    )


def _by_rows(weight: Weight, options: Prune) -> DerivedTensor:
    tensor = weight.tensor
    view = rows_of(weight)
    count = share(options.sparsity, view.length)
    if options.mode == "clip":
        return clip_rows_at(tensor, view, row_limits(tensor, view, count))
    keys, cuts = row_cuts(
        tensor,
        view,
        options.select,
        count,
    )
    return zero_beyond_rows(tensor, options.select, view, keys, cuts)


def _measured(weight: Weight, derived: DerivedTensor) -> _Pruned:
    """Count in one pass the elements that a kernel alters; one that alters none is dropped.

    Errors: NonFiniteError.
    """
    kind: KeyKind = key_kind([weight.tensor])
    zeros = altered = clipped = 0
    pairs = zip(
        blocks(weight.tensor, derived.granule),
        derived.blocks(),
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
    return _Pruned(weight, tensor, zeros, clipped)


def _stats(pruned: list[_Pruned], options: Prune) -> dict[str, int | float | str]:
    size = sum(each.weight.size for each in pruned)
    zeros = sum(each.zeros for each in pruned)
    stats: dict[str, int | float | str] = {
        "weights": size,
        "zeros": zeros,
        "sparsity": zeros / size if size else 0.0,
    }
    if options.mode == "clip":
        stats["clipped"] = sum(each.clipped for each in pruned)
    stats["select"] = options.select
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
