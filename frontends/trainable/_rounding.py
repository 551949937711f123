"""Rounding of weights that train as floats: to a grid, a palette, vectors, within a limit of pairs.

The gradient of rounding is one. Every function takes floats in units of the grid.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from ...passes._core.saturation import LARGEST_CODE, PAIR_LIMIT, KernelPairs

Tensor = Any


AT_ONCE = 1 << 14
"""Vectors whose distances to a whole codebook are held at a time."""


class Round(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Half to even; the gradient passes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class _HalfUp(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Halves up; the gradient passes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return (x + 0.5).floor()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def on_grid(x: Tensor, low: float, high: float, step: float = 1.0) -> Tensor:
    """Round to the nearest of low, low + step … high, straight through.

    At the ends, too, gradients pass: clamping by torch lets them at the bounds themselves.

    Halves go to even, on wider grids up (a sign of zero is +1).
    """
    if step == 1.0:
        result: Tensor = Round.apply(x).clamp(low, high)
        return result
    # half to even would make -1 of zero on a grid of two signs
    level = (x - low) / step
    rounded = low + step * _HalfUp.apply(level)
    return rounded.clamp(low, high)


@dataclass(frozen=True)
class PairLimit:
    """Pairs of columns whose codes may not saturate integer kernels.

    `axis`: output channels of the weight; its other axes, flattened in order, are the columns.
    `first`, `second`: the two columns of each pair.
    """

    axis: int
    first: Any
    second: Any

    @classmethod
    def of(cls, axis: int, pairs: KernelPairs) -> PairLimit:
        """Make the limit of a layer's pairs, for tensors."""
        return cls(axis, _columns(pairs.first), _columns(pairs.second))


def _columns(side: Any) -> Any:
    """Return one side of pairs as an index of tensors; slices serve as they are."""
    if isinstance(side, slice):
        return side
    return torch.from_numpy(side)


def within_limit(x: Tensor, code: Tensor, limit: PairLimit) -> Tensor:
    """Return the codes of `x`, pairs beyond the limit cut with the least squared error.

    Gradients pass straight through.
    """
    result: Tensor = _WithinLimit.apply(code, x, limit)
    return result


def _saturates(a: Tensor, b: Tensor) -> Tensor:
    """Mask of the pairs of codes that saturate for some input."""
    # codes of opposite signs cancel, and saturate nothing
    products = a * b
    same_sign = products > 0
    sums = a.abs() + b.abs()
    too_large = sums > PAIR_LIMIT
    return same_sign & too_large


class _WithinLimit(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Does to tensors what `keep_within` of passes/_core/saturation.py does to arrays."""

    @staticmethod
    def forward(context: Any, code: Tensor, x: Tensor, limit: PairLimit) -> Tensor:
        first = limit.first
        second = limit.second
        # A view, through which `kept` changes: weights of convolutions (axis 0) and
        # matrices flatten without a copy, once they are in their natural layout.
        kept = code.clone(memory_format=torch.contiguous_format)
        rows = kept.movedim(limit.axis, 0).flatten(1)
        exact = x.detach()
        exact_rows = exact.movedim(limit.axis, 0).flatten(1)
        a = rows[:, first]
        b = rows[:, second]
        over = _saturates(a, b)
        exact_a = exact_rows[:, first].abs()
        exact_b = exact_rows[:, second].abs()
        # both give way by the same amount: the least squared error
        excess = exact_a + exact_b - PAIR_LIMIT
        wanted = exact_a - excess / 2
        nearest = wanted.round()
        size_a = nearest.clamp(1, LARGEST_CODE)
        size_b = PAIR_LIMIT - size_a
        cut_a = a.sign() * size_a
        cut_b = b.sign() * size_b
        rows[:, first] = torch.where(over, cut_a, a)
        rows[:, second] = torch.where(over, cut_b, b)
        # in the layout of the codes
        result = torch.empty_like(code)
        return result.copy_(kept)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def on_palette(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """Round to the nearest code that its channel may have; gradients pass straight through.

    `values`: (tables, count), rounded to whole codes here; each is shared by neighbouring channels
    of `axis`. Its gradient is the sum over all that take it. Source: Han, Mao, Dally, Deep
    Compression, ICLR 2016 (arXiv:1510.00149), section 3.
    """
    whole = Round.apply(values)
    # values that are trained may have passed each other
    ascending, _ = whole.sort(dim=1)
    result: Tensor = _OnPalette.apply(x, ascending, axis)
    return result


class _OnPalette(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Looks the codes up by the bounds halfway between them: (tables, count), ascending."""

    @staticmethod
    def forward(context: Any, x: Tensor, ascending: Tensor, axis: int) -> Tensor:
        values = ascending.to(x)
        bounds = (values[:, 1:] + values[:, :-1]) / 2
        channels_first = x.movedim(axis, 0)
        rows = channels_first.reshape(len(values), -1).contiguous()
        index = torch.searchsorted(bounds, rows)
        codes = values.gather(1, index).reshape(channels_first.shape)
        context.save_for_backward(index, ascending)
        context.axis = axis
        return codes.movedim(0, axis)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        index, ascending = context.saved_tensors
        if not context.needs_input_grad[1]:
            return gradient, None, None
        rows = gradient.movedim(context.axis, 0).reshape(index.shape)
        of_values = torch.zeros_like(ascending)
        of_values.scatter_add_(1, index, rows.to(of_values))
        return gradient, of_values, None


def on_codebook(x: Tensor, values: Tensor, axis: int) -> Tensor:
    """Round neighbouring weights of a channel to the nearest vector; gradients pass through.

    `values`: (count, length), rounded to whole codes here; channels lie along `axis`. The gradient
    of a vector is the sum over all that take it. Source: Stock et al., And the Bit Goes Down, ICLR
    2020 (arXiv:1907.05686), section 3.
    """
    whole = Round.apply(values)
    result: Tensor = _OnCodebook.apply(x, whole, axis)
    return result


class _OnCodebook(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Looks for the nearest of all vectors: (count, length)."""

    @staticmethod
    def forward(context: Any, x: Tensor, whole: Tensor, axis: int) -> Tensor:
        values = whole.to(x)
        channels_first = x.movedim(axis, 0)
        vectors = channels_first.reshape(-1, values.shape[1])
        index = _nearest(vectors, values)
        codes = values[index].reshape(channels_first.shape).movedim(0, axis)
        context.save_for_backward(index, whole)
        context.axis = axis
        # in the layout of the weight
        return torch.empty_like(x).copy_(codes)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, Tensor | None, None]:
        index, whole = context.saved_tensors
        if not context.needs_input_grad[1]:
            return gradient, None, None
        vectors = gradient.movedim(context.axis, 0).reshape(-1, whole.shape[1])
        of_values = torch.zeros_like(whole)
        of_values.index_add_(0, index, vectors.to(of_values))
        return gradient, of_values, None


def _nearest(vectors: Tensor, values: Tensor) -> Tensor:
    """The number of the nearest value (count, length) for each vector (n, length)."""
    half_squares = (values**2).sum(dim=1) / 2
    parts = []
    # in single precision, as the codes that are written: some are nearly as near as others
    with torch.autocast(vectors.device.type, enabled=False):
        for part in vectors.split(AT_ONCE):
            # the nearest: of least |value|^2 / 2 - value . x
            closeness = torch.addmm(-half_squares, part, values.T)
            parts.append(closeness.argmax(dim=1))
    return torch.cat(parts)


def softened(x: Tensor, code: Tensor, rounding: Tensor) -> Tensor:
    """Blend a weight with its code: the weight at 0, the code at 1.

    Source: alpha-blending, arXiv:1903.01061.
    """
    return x + (code - x) * rounding
