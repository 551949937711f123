"""Casts, to small floats too: they travel in float32, rounded as their own type would be."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from .._dtypes import CARRIERS, RANGES, from_carrier, to_carrier
from .._registry import Call, op

Tensor = Any
D = ir.DataType

_NATIVE = {D.FLOAT16: torch.float16, D.BFLOAT16: torch.bfloat16}
"""Half precision travels in float32, and is rounded where something is cast to it."""

_LARGEST = {
    D.FLOAT8E4M3FN: 448.0,
    D.FLOAT8E4M3FNUZ: 240.0,
    D.FLOAT8E5M2: 57344.0,
    D.FLOAT8E5M2FNUZ: 57344.0,
    D.FLOAT4E2M1: 6.0,
}
"""Largest finite value of each small float type."""

_ONLY_NAN = frozenset({D.FLOAT8E4M3FN, D.FLOAT8E4M3FNUZ, D.FLOAT8E5M2FNUZ})
"""Types without infinity."""


@op("Cast")
def cast_by_name(x: Tensor, *, to: Any, call: Call) -> Tensor:
    return converted(x, call.inputs[0], call.outputs[0])


@op("Cast", 6)
@op("Cast", 19)
def cast(
    x: Tensor, *, to: int, saturate: int = 1, round_mode: str = "up", call: Call
) -> Tensor:
    return converted(
        x,
        source=call.inputs[0],
        target=D(to),
        saturate=bool(saturate),
        round_mode=round_mode,
    )


@op("CastLike", 15)
def cast_like(
    x: Tensor, like: Any, *, saturate: int = 1, round_mode: str = "up", call: Call
) -> Tensor:
    return converted(
        x,
        source=call.inputs[0],
        target=call.inputs[1],
        saturate=bool(saturate),
        round_mode=round_mode,
    )


def converted(
    x: Any,
    source: ir.DataType | None,
    target: ir.DataType | None,
    saturate: bool = True,
    round_mode: str = "up",
) -> Any:
    """Convert `x` of one ONNX type to another.

    Integers on a trained grid (floats by now) stay floats until a float is asked for. `saturate`:
    what a small float type cannot hold becomes its largest value. `round_mode`: of exponents.
    """
    if source == D.STRING or target == D.STRING:
        return _through_text(x, target)
    assert target is not None
    if target in _NATIVE:
        rounded = x.to(_NATIVE[target])
        return rounded.to(torch.float32)
    if target in _LARGEST:
        return small_float(x, target, saturate)
    if target == D.FLOAT8E8M0:
        return _power_of_two(x.float(), saturate, round_mode)
    if target in RANGES:
        return _integer(x, source, target)
    return x.to(CARRIERS[target])


def _integer(x: Tensor, source: ir.DataType | None, target: ir.DataType) -> Tensor:
    floating = x.is_floating_point()
    if floating and source in RANGES:
        # codes that train
        return x
    if floating or target in _WRAPPED:
        # torch's own cast of a float to a narrow integer is undefined beyond its range
        x = x.to(torch.int64)
    if target in _WRAPPED:
        low, high = RANGES[target]
        period = high - low + 1
        x = (x - low) % period + low
    return x.to(CARRIERS[target])


_WRAPPED = frozenset({D.INT2, D.INT4, D.UINT2, D.UINT4, D.UINT16, D.UINT32})
"""Types narrower than their carriers."""


class _Rounded(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Values rounded to a small float type; gradients pass where nothing was clipped."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: int, saturate: bool) -> Tensor:
        inside = x.abs() <= _LARGEST[D(dtype)]
        context.save_for_backward(inside)
        return _to_grid(x, D(dtype), saturate)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None, None


def small_float(x: Tensor, dtype: ir.DataType, saturate: bool = True) -> Tensor:
    """Round to nearest even in `dtype`.

    What is too large becomes the largest value, or infinity or NaN without `saturate`.
    """
    result: Tensor = _Rounded.apply(x.float(), int(dtype), saturate)
    return result


def _to_grid(x: Tensor, dtype: ir.DataType, saturate: bool) -> Tensor:
    # 4 bits have neither infinity nor NaN, so that they always saturate
    if saturate or dtype == D.FLOAT4E2M1:
        largest = _LARGEST[dtype]
        clamped = x.clamp(-largest, largest)
        x = torch.where(x.isnan(), x, clamped)
    # numpy's types (ml_dtypes) know how each of them rounds; torch has not all of them
    exact = x.detach().cpu().numpy()
    small = exact.astype(dtype.numpy())
    rounded = np.asarray(small.astype(np.float32))
    result = torch.from_numpy(rounded)
    result = result.to(x.device)
    if dtype in _ONLY_NAN:
        infinite = result.isinf()
        result = torch.where(infinite, torch.nan, result)
    return result


def _power_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """Round to a type that has exponents only, -127 to 127; by default to the next one above."""
    # x = mantissa * 2**exponent, with mantissas from 0.5 to below 1
    mantissa, exponent = torch.frexp(x)
    below = exponent - 1
    if round_mode == "up":
        is_power = mantissa == 0.5
        exponent = torch.where(is_power, below, exponent)
    elif round_mode == "down":
        exponent = below
    else:
        nearer_above = mantissa >= 0.75
        exponent = torch.where(nearer_above, exponent, below)
    # the type has no sign, and no zero either
    negative = x < 0
    broken = x.isnan() | negative
    if saturate:
        exponent = exponent.clamp(-127, 127)
    else:
        too_large = exponent > 127
        broken = broken | x.isinf() | too_large
    one = torch.ones_like(x)
    value = torch.ldexp(one, exponent)
    if saturate:
        value = torch.where(x.isinf(), 2.0**127, value)
    value = torch.where(x == 0, 2.0**-127, value)
    return torch.where(broken, torch.nan, value)


def _through_text(x: Any, target: ir.DataType | None) -> Any:
    """Convert numbers to text or back, as numpy prints and Python reads them."""
    if target == D.STRING:
        values = x.detach().cpu().numpy()
        printed = [str(value) for value in values.reshape(-1)]
        texts = np.array(printed, dtype=object)
        return texts.reshape(values.shape)
    assert target is not None
    source = np.asarray(x)
    numbers = []
    for text in source.reshape(-1):
        number = float(str(text))
        numbers.append(number)
    array = np.array(numbers).reshape(source.shape)
    array = array.astype(target.numpy())
    return to_carrier(array, target)


@op("BitCast", gradient=False)
def bit_cast(x: Tensor, *, to: int, call: Call) -> Tensor:
    """The same bits read as another type."""
    source = call.inputs[0]
    assert source is not None
    target = D(to)
    # carriers may be wider than the type: the bits are those of numpy's array
    array = from_carrier(x, source)
    read_again = array.view(target.numpy())
    return to_carrier(read_again, target).to(x.device)
