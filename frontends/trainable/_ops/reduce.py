"""Reductions, cumulative sums, and places of extremes."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from .._registry import op

Tensor = Any
Reduction = Callable[[Any, tuple[int, ...], bool], Any]
"""(x, axes, keep the axes with one element) -> reduced."""


def _product(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    # torch multiplies along one axis at a time; the last first, so that no other moves
    for axis in sorted((a % x.ndim for a in axes), reverse=True):
        x = x.prod(axis, keepdim=keep)
    return x


def _mean(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
    if x.is_floating_point():
        return x.mean(axes, keepdim=keep)
    mean = x.double().mean(axes, keepdim=keep)
    return mean.trunc().to(x.dtype)


def _extreme(reduce: Callable[..., Any], largest: bool) -> Reduction:
    """Make a reduction to the largest or smallest, which torch refuses over no elements."""

    def apply(x: Tensor, axes: tuple[int, ...], keep: bool) -> Tensor:
        if all(x.shape[axis] for axis in axes):
            return reduce(x, axes, keep)
        shape = list(x.shape)
        for axis in axes:
            shape[axis] = 1
        full = x.new_full(shape, _neutral(x.dtype, largest))
        return full if keep else full.squeeze(axes)

    return apply


def _neutral(dtype: torch.dtype, largest: bool) -> float:
    """Return the value that the largest (or smallest) of nothing is."""
    if dtype == torch.bool:
        return 0 if largest else 1
    if dtype.is_floating_point:
        return -math.inf if largest else math.inf
    limits = torch.iinfo(dtype)
    bound: int = limits.min if largest else limits.max
    return bound


def _typed(function: Reduction) -> Reduction:
    """Give the result the type of the input: torch widens integers in sums, ONNX does not."""
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
"""Reductions by the name of their op."""


def _floating(x: Tensor) -> Tensor:
    return x if x.is_floating_point() else x.double()


def _root(x: Tensor) -> Tensor:
    return _floating(x).sqrt()


def _declare(name: str, function: Reduction) -> None:
    """Declare both forms of a reduction: axes as an attribute, and as an input."""

    @op(name)
    def by_attribute(
        x: Tensor, *, axes: list[int] | None = None, keepdims: int = 1
    ) -> Tensor:
        if not x.ndim:
            return function(x, (), False)
        chosen = tuple(axes or range(x.ndim))
        return function(x, chosen, bool(keepdims))

    # ReduceSum took its axes as an input long before the others
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
        elementwise = not chosen and noop_with_empty_axes
        if elementwise or not x.ndim:
            # over a new axis of one element nothing but the elementwise part is left
            return function(x.unsqueeze(0), (0,), False)
        return function(x, tuple(chosen or range(x.ndim)), bool(keepdims))


for _name, _function in REDUCTIONS.items():
    _declare(_name, _function)


def _place(x: Tensor, axis: int, keep: int, last: int, largest: bool) -> Tensor:
    """Return the index of the first (or last) extreme element."""
    if x.dtype == torch.bool:
        x = x.to(torch.int64)
    # torch promises the first of equal elements, so the last is found from behind
    source = x.flip(axis) if last else x
    find = source.argmax if largest else source.argmin
    index = find(axis, keepdim=bool(keep))
    if last:
        index = x.shape[axis] - 1 - index
    return index


@op("ArgMax", gradient=False)
def arg_max(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _place(
        x,
        axis,
        keep=keepdims,
        last=select_last_index,
        largest=True,
    )


@op("ArgMin", gradient=False)
def arg_min(
    x: Tensor, *, axis: int = 0, keepdims: int = 1, select_last_index: int = 0
) -> Tensor:
    return _place(
        x,
        axis,
        keep=keepdims,
        last=select_last_index,
        largest=False,
    )


def _cumulative(
    x: Tensor,
    axis: int,
    exclusive: int,
    reverse: int,
    function: Callable[..., Any],
    start: int,
) -> Tensor:
    """Accumulate along an axis.

    `exclusive`: without the element itself, so that the first result is `start`. `reverse`: from
    the end.
    """
    if reverse:
        x = x.flip(axis)
    y = function(x, axis).to(x.dtype)
    if exclusive:
        first = torch.full_like(y.narrow(axis, 0, 1), start)
        rest = y.narrow(axis, 0, y.shape[axis] - 1)
        y = torch.cat([first, rest], axis)
    return y.flip(axis) if reverse else y


def _number(axis: int | list[int]) -> int:
    """ONNX lets an axis be a number or a list of one."""
    return axis[0] if isinstance(axis, list) else axis


@op("CumSum", 11, host=(1,))
def cum_sum(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulative(
        x,
        axis=_number(axis),
        exclusive=exclusive,
        reverse=reverse,
        function=torch.cumsum,
        start=0,
    )


@op("CumProd", host=(1,))
def cum_prod(x: Tensor, axis: int, *, exclusive: int = 0, reverse: int = 0) -> Tensor:
    return _cumulative(
        x,
        axis=_number(axis),
        exclusive=exclusive,
        reverse=reverse,
        function=torch.cumprod,
        start=1,
    )
