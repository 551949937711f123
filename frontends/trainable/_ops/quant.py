"""Quantization with straight-through gradients: codes that train stay floats on their grid.

The gradient of rounding is one, that of clipping zero outside the range; both together give a scale
that is trained the gradient of LSQ. Source: Esser et al., Learned Step Size Quantization, ICLR 2020
(arXiv:1902.08153).
"""

from __future__ import annotations

from typing import Any

import onnx_ir as ir
import torch

from .._dtypes import RANGES, carrier
from .._registry import Call, op
from .._rounding import Round
from .cast import small_float
from .conv import by_channel, conv

Tensor = Any
D = ir.DataType


class _Codes(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """round(x / scale) + shift, clipped, in as few passes over memory as that takes.

    Only `x` has a gradient.
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
        clipped = codes.clamp(low, high)
        context.save_for_backward(clipped == codes, scale)
        return clipped

    @staticmethod
    def backward(
        context: Any, gradient: Tensor
    ) -> tuple[Tensor, None, None, None, None]:
        inside, scale = context.saved_tensors
        # a product with the mask would first make floats of it
        of_x = torch.where(inside, gradient, 0.0).div_(scale)
        return of_x, None, None, None, None


def spread(parameter: Tensor, x: Tensor, axis: int, block: int = 0) -> Tensor:
    """Reshape a scale or zero point to broadcast over `x`.

    There is one for all, one a channel of `axis`, or one a block along it.
    """
    if parameter.ndim <= 1 and parameter.numel() == 1:
        return parameter.reshape(())
    if parameter.ndim == 1 and x.ndim != 1:
        dims_behind = x.ndim - axis % x.ndim - 1
        return by_channel(parameter, dims_behind)
    if block:
        # the last block may be cut short by the end of the axis
        repeated = parameter.repeat_interleave(block, axis)
        size = x.shape[axis]
        return repeated.narrow(axis, 0, size)
    return parameter


def lsq_scaled(scale: Tensor, x: Tensor, highest: float) -> Tensor:
    """Return a trained scale whose gradient is weighed by 1 / sqrt(elements * highest).

    `elements`: how many of `x` one scale serves. Source: LSQ, section 2.2.
    """
    if not scale.requires_grad:
        return scale
    elements = x.numel() / scale.numel()
    weight = (elements * highest) ** -0.5
    # the value stays, the gradient is multiplied
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
        _, highest = RANGES[target]
        scale = lsq_scaled(scale, x, highest)
    x = x.to(scale.dtype)
    scale = spread(scale, x, axis, block_size)
    if target not in RANGES:
        steps = x / scale
        return small_float(steps, target, bool(saturate))
    low, high = RANGES[target]
    shift = 0
    if zero is not None:
        shift = spread(zero, x, axis, block_size)
    if scale.requires_grad:
        steps = x / scale
        codes = Round.apply(steps) + shift
        codes = codes.clamp(low, high)
    else:
        # nobody asks for the gradient of the scale, which would take more passes over memory
        codes = _Codes.apply(x, scale, shift, low, high)
    if call.qat:
        return codes
    return codes.to(carrier(target))


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
    source = None if call is None else call.inputs[0]
    if source in RANGES:
        _, highest = RANGES[source]
        scale = lsq_scaled(scale, x, highest)
    wide = scale.dtype
    # 32-bit codes are more than float32 has digits for
    if x.dtype in (torch.int32, torch.float64):
        wide = torch.float64
    codes = x.to(wide)
    scale = spread(scale, x, axis, block_size)
    if zero is None:
        values = codes * scale
        return values.to(scale.dtype)
    shift = spread(zero, x, axis, block_size)
    codes = codes - shift
    # the difference is new, so that it may be overwritten unless the scale's gradient needs it
    values = codes * scale if scale.requires_grad else codes.mul_(scale)
    return values.to(scale.dtype)


@op("DynamicQuantizeLinear", many=True)
def dynamic_quantize(x: Tensor, *, call: Call) -> tuple[Tensor, ...]:
    """To uint8 over the range of `x`, zero included; range and zero point take no gradient."""
    exact = x.detach()
    smallest = exact.amin()
    largest = exact.amax()
    low = smallest.clamp(max=0.0)
    high = largest.clamp(min=0.0)
    scale = (high - low) / 255
    # all zeros have no range
    one = torch.ones_like(scale)
    scale = torch.where(scale == 0, one, scale)
    steps_below_zero = -low / scale
    zero = steps_below_zero.round().clamp(0, 255)
    steps = x / scale
    codes = Round.apply(steps) + zero
    codes = codes.clamp(0, 255)
    if not call.qat:
        codes = codes.to(torch.uint8)
    return codes, scale, zero.to(torch.uint8)


def _shifted(x: Tensor, zero: Tensor | None, axis: int) -> Tensor:
    """Subtract the zero point from codes: in double where they are integers, as floats where they
    train.
    """
    # products of 8 bits, summed, are exact in double and may not be in float32
    codes = x if x.is_floating_point() else x.double()
    if zero is None:
        return codes
    shift = spread(zero, x, axis)
    return codes - shift


def _integers(y: Tensor, trained: bool) -> Tensor:
    if trained:
        return y
    return y.to(torch.int32)


def _pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """Return both in one float type."""
    dtype = torch.promote_types(a.dtype, b.dtype)
    return a.to(dtype), b.to(dtype)


@op("MatMulInteger", 10)
def matmul_integer(
    a: Tensor, b: Tensor, a_zero: Tensor | None = None, b_zero: Tensor | None = None
) -> Tensor:
    left = _shifted_rows(a, a_zero)
    right = _shifted(b, b_zero, -1)
    left, right = _pair(left, right)
    y = torch.matmul(left, right)
    trained = a.is_floating_point() or b.is_floating_point()
    return _integers(y, trained)


def _shifted_rows(a: Tensor, zero: Tensor | None) -> Tensor:
    """Subtract the zero points of a left matrix: one for all, or one a row."""
    if zero is None:
        return _shifted(a, None, -1)
    if zero.ndim == 1 and zero.numel() > 1:
        zero = zero[:, None]
    if zero.ndim >= 2:
        return a.double() - zero
    return _shifted(a, zero, -1)


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
    codes = _shifted(x, x_zero, 0)
    weights = _shifted(w, w_zero, 0)
    codes, weights = _pair(codes, weights)
    y = conv(
        codes,
        weights,
        auto_pad=auto_pad,
        dilations=dilations,
        group=group,
        pads=pads,
        strides=strides,
    )
    trained = x.is_floating_point() or w.is_floating_point()
    return _integers(y, trained)


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
    inputs = dequantize(x, x_scale, x_zero)
    weights = dequantize(w, w_scale, w_zero, axis=0)
    # the bias is stored in units of input scale x weight scale
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
    # several scales are one a row on the left, one a column on the right
    rows = -2 if a.ndim > 1 else -1
    left = dequantize(
        a,
        a_scale,
        a_zero,
        axis=rows,
    )
    right = dequantize(
        b,
        b_scale,
        b_zero,
        axis=-1,
    )
    y = torch.matmul(left, right)
    return quantize(
        y,
        y_scale,
        y_zero,
        axis=-1,
        call=call,
    )
