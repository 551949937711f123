"""Elementwise arithmetic, comparison and logic."""

from __future__ import annotations

import math
import operator
from functools import reduce
from typing import Any

import onnx_ir as ir
import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._dtypes import RANGES
from .._registry import Call, Kernel, op

Tensor = Any
D = ir.DataType


def aligned(a: Tensor, b: Tensor, axis: int | None) -> Tensor:
    """Return `b` as opset 6 broadcasts it.

    Its dims match those of `a` from `axis` on, or the last ones where there is no `axis`.
    """
    if axis is None or b.ndim == 0:
        return b
    first = axis % a.ndim
    dims_behind = a.ndim - first - b.ndim
    trailing = (1,) * dims_behind
    return b.reshape(*b.shape, *trailing)


def wrapped(x: Tensor, dtype: ir.DataType | None) -> Tensor:
    """Return integers that travel in a wider tensor, wrapped around at their own width."""
    # codes that train are floats by now, and do not wrap
    if dtype in (D.UINT16, D.UINT32) and not x.is_floating_point():
        largest = RANGES[dtype][1]
        return x & largest
    return x


def _binary(name: str, function: Kernel, gradient: bool = True) -> None:
    """Declare an op of two operands, and its form before opset 7, which broadcasts by an axis."""

    @op(name, gradient=gradient)
    def with_axis(
        a: Tensor, b: Tensor, *, axis: int | None = None, broadcast: int = 0
    ) -> Tensor:
        return function(a, aligned(a, b, axis))

    op(name, 7, gradient=gradient)(function)


def _wrapping(name: str, function: Kernel) -> None:
    """Declare arithmetic that may leave the range of a type carried in a wider one."""
    _binary(name, function)

    # types of 8 and 16 bits are allowed from opset 14 on
    @op(name, 14)
    def narrow(a: Tensor, b: Tensor, *, call: Call) -> Tensor:
        y = function(a, b)
        return wrapped(y, call.outputs[0])


def _divide(a: Tensor, b: Tensor) -> Tensor:
    if a.is_floating_point() or a.is_complex():
        return a / b
    return torch.div(a, b, rounding_mode="trunc")


def _power(a: Tensor, b: Tensor) -> Tensor:
    """The result has the type of the base."""
    floating = b.is_floating_point()
    if a.is_floating_point():
        # a float exponent of another width would change the type of the result
        exponent = b.to(a.dtype) if floating else b
        return torch.pow(a, exponent)
    if floating:
        return torch.pow(a.double(), b).to(a.dtype)
    return torch.pow(a, b)


for _name, _function in {
    "Add": torch.add,
    "Sub": torch.sub,
    "Mul": torch.mul,
    "Div": _divide,
}.items():
    _wrapping(_name, _function)

_binary("Pow", _power)

for _name, _function in {
    "And": torch.logical_and,
    "Or": torch.logical_or,
    "Xor": torch.logical_xor,
    "Equal": torch.eq,
    "Greater": torch.gt,
    "Less": torch.lt,
    "GreaterOrEqual": torch.ge,
    "LessOrEqual": torch.le,
    "BitwiseAnd": torch.bitwise_and,
    "BitwiseOr": torch.bitwise_or,
    "BitwiseXor": torch.bitwise_xor,
}.items():
    _binary(_name, _function, gradient=False)


@op("Mod")
def mod(a: Tensor, b: Tensor, *, fmod: int = 0) -> Tensor:
    """Sign of the divisor, or of the dividend with `fmod`."""
    if fmod:
        return torch.fmod(a, b)
    return torch.remainder(a, b)


@op("BitShift", gradient=False)
def bit_shift(a: Tensor, b: Tensor, *, direction: str, call: Call) -> Tensor:
    shifted = a << b if direction == "LEFT" else a >> b
    return wrapped(shifted, call.outputs[0])


@op("BitwiseNot", gradient=False)
def bitwise_not(x: Tensor, *, call: Call) -> Tensor:
    inverted = torch.bitwise_not(x)
    return wrapped(inverted, call.outputs[0])


for _name, _function in {
    "Neg": torch.neg,
    "Abs": torch.abs,
    "Sqrt": torch.sqrt,
    "Reciprocal": torch.reciprocal,
    "Exp": torch.exp,
    "Log": torch.log,
    "Erf": torch.erf,
    "Sin": torch.sin,
    "Cos": torch.cos,
    "Tan": torch.tan,
    "Asin": torch.asin,
    "Acos": torch.acos,
    "Atan": torch.atan,
    "Sinh": torch.sinh,
    "Cosh": torch.cosh,
    "Asinh": torch.asinh,
    "Acosh": torch.acosh,
    "Atanh": torch.atanh,
}.items():
    op(_name)(_function)

for _name, _function in {
    "Sign": torch.sign,
    "Floor": torch.floor,
    "Ceil": torch.ceil,
    "Round": torch.round,
    "Not": torch.logical_not,
    "IsNaN": torch.isnan,
}.items():
    op(_name, gradient=False)(_function)


@op("IsInf", gradient=False)
def is_inf(x: Tensor, *, detect_negative: int = 1, detect_positive: int = 1) -> Tensor:
    found = torch.isinf(x)
    if not detect_negative:
        found = found & (x > 0)
    if not detect_positive:
        found = found & (x < 0)
    return found


@op("Where")
def where(condition: Tensor, a: Tensor, b: Tensor) -> Tensor:
    return torch.where(condition, a, b)


@op("Sum")
def sum_(*xs: Tensor) -> Tensor:
    return reduce(operator.add, xs)


@op("Mean")
def mean(*xs: Tensor) -> Tensor:
    total = reduce(operator.add, xs)
    return total / len(xs)


@op("Max")
def max_(*xs: Tensor) -> Tensor:
    return reduce(torch.maximum, xs)


@op("Min")
def min_(*xs: Tensor) -> Tensor:
    return reduce(torch.minimum, xs)


@op("Clip")
def clip_by_attributes(
    x: Tensor, *, min: float | None = None, max: float | None = None
) -> Tensor:
    return _clamped(x, min, max)


@op("Clip", 11, scalars=(1, 2))
def clip(
    x: Tensor, low: Tensor | float | None = None, high: Tensor | float | None = None
) -> Tensor:
    """The result is `high` where the bounds cross."""
    if not isinstance(low, torch.Tensor) and not isinstance(high, torch.Tensor):
        return _clamped(x, low, high)
    # bounds that are computed or trained have gradients of their own
    if low is not None:
        low = torch.as_tensor(low, dtype=x.dtype, device=x.device)
        x = torch.maximum(x, low)
    if high is not None:
        high = torch.as_tensor(high, dtype=x.dtype, device=x.device)
        x = torch.minimum(x, high)
    return x


def _clamped(x: Tensor, low: float | None, high: float | None) -> Tensor:
    """Clamp by numbers, by the kernel whose gradient is fastest: several times as fast as clamp."""
    # torch refuses to clamp by nothing
    if low is None and high is None:
        return x
    if not x.is_floating_point():
        return torch.clamp(x, low, high)
    if low == 0 and high in (None, math.inf):
        return torch.relu(x)
    if low is not None and high is not None and low <= high:
        return F.hardtanh(x, low, high)
    return torch.clamp(x, low, high)
