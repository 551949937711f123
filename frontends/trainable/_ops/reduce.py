"""Reductions, cumulative sums, and where the largest is."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .._registry import op

Tensor = Any
Reduction = Callable[[Any, tuple[int, ...], bool], Any]


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    return x.double().mean(axes, keepdim=keep).trunc().to(x.dtype)


def _extreme(reduce: Callable[..., Any], largest: bool) -> Reduction:
    def apply(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if all(x.shape[a] for a in axes):
            return reduce(x, axes, keep)
        shape = [
            1 if d in [a % x.ndim for a in axes] else n for d, n in enumerate(x.shape)
        ]
        if x.is_floating_point():
            empty = -math.inf if largest else math.inf
        else:
            info = torch.iinfo(x.dtype) if x.dtype != torch.bool else None
            empty = (
                (0 if largest else 1)
                if info is None
                else info.min
                if largest
                else info.max
            )
        full = x.new_full(shape, empty)
        return full if keep else full.squeeze(axes)

    return apply


def _typed(function: Reduction) -> Reduction:
    """Torch widens integers in sums; ONNX does not."""
    return lambda x, axes, keep: function(x, axes, keep).to(x.dtype)


REDUCTIONS: dict[str, Reduction] = {
    "ReduceSum": _typed(lambda x, axes, keep: x.sum(axes, keepdim=keep)),
    "ReduceMean": _mean,
    "ReduceProd": _typed(_product),
    "ReduceMax": _extreme(torch.amax, True),
    "ReduceMin": _extreme(torch.amin, False),
    "ReduceL1": _typed(lambda x, axes, keep: x.abs().sum(axes, keepdim=keep)),
    "ReduceL2": _typed(lambda x, axes, keep: _root(x.square().sum(axes, keepdim=keep))),
    "ReduceSumSquare": _typed(lambda x, axes, keep: x.square().sum(axes, keepdim=keep)),
    "ReduceLogSum": _typed(
        lambda x, axes, keep: _floating(x).sum(axes, keepdim=keep).log()
    ),
    "ReduceLogSumExp": _typed(
        lambda x, axes, keep: torch.logsumexp(_floating(x), axes, keepdim=keep)
    ),
}


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def _root(x: Tensor) -> Tensor:
    return _floating(x).sqrt()


def _declare(name: str, function: Reduction) -> None:
    @op(name)
    def by_attribute(
        x: Tensor, *, axes: list[int] | None = None, keepdims: int = 1
    ) -> Tensor:
        return (
            function(x, tuple(axes or range(x.ndim)), bool(keepdims))
            if x.ndim
            else function(x, (), False)
        )

    @op(name, 13 if name == "ReduceSum" else 18, host=(1,))
    def by_input(
        x: Tensor,
        axes: list[int] | None = None,
        *,
        keepdims: int = 1,
        noop_with_empty_axes: int = 0,
    ) -> Tensor:
        """Without axes everything is reduced, or only the elementwise part is done."""
        chosen = axes if isinstance(axes, list) or axes is None else [axes]
        if not chosen:
            if noop_with_empty_axes:
                return function(x.unsqueeze(0), (0,), False)
            chosen = list(range(x.ndim))
        return (
            function(x, tuple(chosen), bool(keepdims))
            if x.ndim
            else function(x.unsqueeze(0), (0,), False)
        )


for _name, _function in REDUCTIONS.items():
    _declare(_name, _function)


def _place(x: Tensor, axis: int, keep: int, last: int, largest: bool) -> Tensor:
    """Index of the first (or last) extreme element."""
    x = x.to(torch.int64) if x.dtype == torch.bool else x
    size = x.shape[axis]
    source = x.flip(axis) if last else x
    index = (
        source.argmax(axis, keepdim=bool(keep))
        if largest
        else source.argmin(axis, keepdim=bool(keep))
    )
    return size - 1 - index if last else index


@op("ArgMax", gradient=False)
def arg_max(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, True)


@op("ArgMin", gradient=False)
def arg_min(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _place(x, axis, keepdims, select_last_index, False)


def _cumulative(
    x: Tensor,
    axis: int,
    exclusive: int,
    reverse: int,
    function: Callable[..., Any],
    start: int,
) -> Tensor:
    x = x.flip(axis) if reverse else x
    y = function(x, axis).to(x.dtype)
    if exclusive:
        first = torch.full_like(y.narrow(axis, 0, 1), start)
        y = torch.cat([first, y.narrow(axis, 0, y.shape[axis] - 1)], axis)
    return y.flip(axis) if reverse else y


def _number(axis: int | list[int]) -> int:
    return axis[0] if isinstance(axis, list) else axis


@op("CumSum", 11, host=(1,))
def cum_sum(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulative(x, _number(axis), exclusive, reverse, torch.cumsum, 0)


@op("CumProd", host=(1,))
def cum_prod(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulative(x, _number(axis), exclusive, reverse, torch.cumprod, 1)
