"""Quantization with straight-through gradients: what QuantizeLinear gives stays a float on its
grid.

The gradient of rounding is one, that of clipping zero outside the range; both together give a scale
that is trained the gradient of LSQ. Source: Esser et al., Learned Step Size Quantization, ICLR 2020
(arXiv:1902.08153).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from ....passes._core.saturation import LARGEST_CODE, PAIR_LIMIT, KernelPairs
from .._dtypes import RANGES, carrier
from .._registry import Call, op
from .cast import small_float
from .conv import conv

Tensor = Any
D = ir.DataType


class _Round(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Half to even; the gradient passes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return x.round()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


def on_grid(x: Tensor, low: float, high: float, step: float = 1.0) -> Tensor:
    """The nearest of low, low + step … high, straight through; at the ends gradients pass. Halves
    go to even, on wider grids up (a sign of zero is +1).
    """
    if step == 1.0:
        result: Tensor = _Round.apply(x).clamp(low, high)
        return result
    level = (x - low) / step
    return (low + step * _HalfUp.apply(level)).clamp(low, high)


@dataclass(frozen=True)
class PairLimit:
    """Codes of a weight that may not saturate integer kernels: which columns of its rows meet, and
    its channel axis.
    """

    axis: int
    first: Any
    second: Any

    @classmethod
    def of(cls, axis: int, pairs: KernelPairs) -> PairLimit:
        sides = (
            side if isinstance(side, slice) else torch.from_numpy(side)
            for side in (pairs.first, pairs.second)
        )
        return cls(axis, *sides)


def within_limit(x: Tensor, code: Tensor, limit: PairLimit) -> Tensor:
    """The codes of `x`, pairs beyond the limit cut with the least squared error; straight
    through.
    """
    result: Tensor = _WithinLimit.apply(code, x, limit)
    return result


class _WithinLimit(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """What `keep_within` of passes/_core/saturation.py does to arrays; the gradient passes."""

    @staticmethod
    def forward(context: Any, code: Tensor, x: Tensor, limit: PairLimit) -> Tensor:
        kept = code.clone()
        rows, exact = (t.movedim(limit.axis, 0).flatten(1) for t in (kept, x.detach()))
        a, b = rows[:, limit.first], rows[:, limit.second]
        over = (a * b > 0) & (a.abs() + b.abs() > PAIR_LIMIT)
        larger, other = exact[:, limit.first].abs(), exact[:, limit.second].abs()
        share = (
            (larger - (larger + other - PAIR_LIMIT) / 2).round().clamp(1, LARGEST_CODE)
        )
        rows[:, limit.first] = torch.where(over, a.sign() * share, a)
        rows[:, limit.second] = torch.where(over, b.sign() * (PAIR_LIMIT - share), b)
        return kept

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        return gradient, None, None


def softened(x: Tensor, code: Tensor, rounding: Tensor) -> Tensor:
    """Between a weight and its code: the first at 0, the second at 1. Source: alpha-blending,
    arXiv:1903.01061.
    """
    return x + (code - x) * rounding


class _HalfUp(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Halves up; the gradient passes."""

    @staticmethod
    def forward(context: Any, x: Tensor) -> Tensor:
        return (x + 0.5).floor()

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> Tensor:
        return gradient


class _Codes(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """round(x / scale) + shift, clipped; as few passes over memory as that takes. Only `x` has a
    gradient.
    """

    @staticmethod
    def forward(
        context: Any,
        x: Tensor,
        scale: Tensor,
        shift: Tensor | int,
        low: float,
        high: float,
    ) -> Tensor:
        codes = (x / scale).round_().add_(shift)
        context.save_for_backward((codes >= low).logical_and_(codes <= high), scale)
        return codes.clamp_(low, high)

    @staticmethod
    def backward(
        context: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        inside, scale = context.saved_tensors
        return (gradient * inside).div_(scale), None, None, None, None


def spread(parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """A scale or zero point in the rank of `x`: one for all, one a channel of `axis`, or one a
    block along it.
    """
    if parameter.ndim == 0 or (parameter.numel() == 1 and parameter.ndim <= 1):
        return parameter.reshape(())
    if parameter.ndim == 1 and x.ndim != 1:
        return parameter.reshape(-1, *(1,) * (x.ndim - axis % x.ndim - 1))
    if block:
        return parameter.repeat_interleave(block, axis).narrow(axis, 0, x.shape[axis])
    return parameter


def eased(scale: Tensor, x: Tensor, highest: float) -> Tensor:
    """A trained scale whose gradient is weighed by 1 / sqrt(elements * highest), as LSQ weighs
    it.
    """
    if not scale.requires_grad:
        return scale
    weight = (x.numel() / scale.numel() * highest) ** -0.5
    fixed = scale.detach()
    return fixed + (scale - fixed) * weight


@op("QuantizeLinear")
def quantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    precision: int = 0,
    saturate: int = 1,
    call: Call,
) -> Tensor:
    target = call.outputs[0]
    assert target is not None
    if call.qat and target in RANGES:
        scale = eased(scale, x, RANGES[target][1])
    x, scale = x.to(scale.dtype), spread(scale, x, axis, block_size)
    if target not in RANGES:
        return small_float(x / scale, target, bool(saturate))
    shift = 0 if zero is None else spread(zero, x, axis, block_size)
    if scale.requires_grad:
        codes = (_Round.apply(x / scale) + shift).clamp(*RANGES[target])
    else:
        codes = _Codes.apply(x, scale, shift, *RANGES[target])
    return codes if call.qat else codes.to(carrier(target))


@op("DequantizeLinear")
def dequantize(
    x: Tensor,
    scale: Tensor,
    zero: Tensor | None = None,
    *,
    axis: int = 1,
    block_size: int = 0,
    output_dtype: int = 0,
    call: Call | None = None,
) -> Tensor:
    if call is not None and call.inputs[0] in RANGES:
        scale = eased(scale, x, RANGES[call.inputs[0]][1])
    wide = torch.float64 if x.dtype in (torch.int32, torch.float64) else scale.dtype
    codes, scale = x.to(wide), spread(scale, x, axis, block_size)
    if zero is None:
        return (codes * scale).to(scale.dtype)
    codes = codes - spread(zero, x, axis, block_size)
    return (codes * scale if scale.requires_grad else codes.mul_(scale)).to(scale.dtype)


@op("DynamicQuantizeLinear", many=True)
def dynamic_quantize(x: Tensor, *, call: Call) -> tuple[Tensor, ...]:
    """To uint8 over the range of `x`, zero included; range and zero point take no gradient."""
    low, high = x.detach().amin().clamp(max=0.0), x.detach().amax().clamp(min=0.0)
    scale = (high - low) / 255
    scale = torch.where(scale == 0, torch.ones_like(scale), scale)
    zero = (-low / scale).round().clamp(0, 255)
    codes = (_Round.apply(x / scale) + zero).clamp(0, 255)
    return codes if call.qat else codes.to(torch.uint8), scale, zero.to(torch.uint8)


def _shifted(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Codes less their zero point: exact in double where they are integers, in float32 where they
    train.
    """
    codes = x if x.is_floating_point() else x.double()
    return codes if zero is None else codes - spread(zero, x, axis)


def _integers(y: Tensor, trained: bool) -> Tensor:
    return y if trained else y.to(torch.int32)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Both in one float type."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


@op("MatMulInteger", 10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    if a_zero is not None and a_zero.ndim == 1 and a_zero.numel() > 1:
        a_zero = a_zero[:, None]
    left = (
        _shifted(a, a_zero, -1)
        if a_zero is None or a_zero.ndim < 2
        else a.double() - a_zero
    )
    y = torch.matmul(*_pair(left, _shifted(b, b_zero, -1)))
    return _integers(y, a.is_floating_point() or b.is_floating_point())


@op("ConvInteger", 10)
def conv_integer(
    x: Tensor,
    w: Tensor,
    x_zero: Tensor | None = None,
    w_zero: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    codes, weights = _pair(_shifted(x, x_zero, 0), _shifted(w, w_zero, 0))
    y = conv(
        codes,
        weights,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return _integers(y, x.is_floating_point() or w.is_floating_point())


@op("QLinearConv", 10)
def qlinear_conv(
    x: Tensor,
    x_scale: Tensor,
    x_zero: Tensor,
    w: Tensor,
    w_scale: Tensor,
    w_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    bias: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
    call: Call,
) -> Tensor:
    inputs, weights = (
        dequantize(x, x_scale, x_zero),
        dequantize(w, w_scale, w_zero, axis=0),
    )
    added = None if bias is None else bias * (x_scale * w_scale)
    y = conv(
        inputs,
        weights,
        added,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    return quantize(y, y_scale, y_zero, call=call)


@op("QLinearMatMul", 10)
def qlinear_matmul(
    a: Tensor,
    a_scale: Tensor,
    a_zero: Tensor,
    b: Tensor,
    b_scale: Tensor,
    b_zero: Tensor,
    y_scale: Tensor,
    y_zero: Tensor,
    *,
    call: Call,
) -> Tensor:
    y = torch.matmul(_rows(a, a_scale, a_zero), dequantize(b, b_scale, b_zero, axis=-1))
    return quantize(y, y_scale, y_zero, axis=-1, call=call)


def _rows(a: Tensor, scale: Tensor, zero: Tensor) -> Tensor:
    return dequantize(a, scale, zero, axis=-2 if a.ndim > 1 else -1)
