"""Casts, to small floats too: their values travel in float32, rounded as their own type would."""

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
_LARGEST = {
    D.FLOAT8E4M3FN: 448.0,
    D.FLOAT8E4M3FNUZ: 240.0,
    D.FLOAT8E5M2: 57344.0,
    D.FLOAT8E5M2FNUZ: 57344.0,
    D.FLOAT4E2M1: 6.0,
}
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
    return converted(x, call.inputs[0], D(to), bool(saturate), round_mode)


@op("CastLike", 15)
def cast_like(
    x: Tensor, like: Any, *, saturate: int = 1, round_mode: str = "up", call: Call
) -> Tensor:
    return converted(x, call.inputs[0], call.inputs[1], bool(saturate), round_mode)


def converted(
    x: Any,
    source: ir.DataType | None,
    target: ir.DataType | None,
    saturate: bool = True,
    round_mode: str = "up",
) -> Any:
    """`x` of an ONNX type as another. Integers on a trained grid (floats by now) stay floats until
    a float is asked.
    """
    if source == D.STRING or target == D.STRING:
        return _through_text(x, target)
    assert target is not None
    if target in _NATIVE:
        return x.to(_NATIVE[target]).to(torch.float32)
    if target in _LARGEST:
        return small_float(x, target, saturate)
    if target == D.FLOAT8E8M0:
        return _power_of_two(x.float(), saturate, round_mode)
    if target in RANGES:
        return _integer(x, source, target)
    return x.to(CARRIERS[target])


def _integer(x: Tensor, source: ir.DataType | None, target: ir.DataType) -> Tensor:
    if x.is_floating_point() and source in RANGES:
        return x
    carrier = CARRIERS[target]
    if not x.is_floating_point() and target == D.UINT64:
        return x.to(carrier)
    wide = x.to(torch.int64) if x.is_floating_point() or target in _WRAPPED else x
    if target in _WRAPPED:
        low, high = RANGES[target]
        wide = (wide - low) % (high - low + 1) + low
    return wide.to(carrier)


_WRAPPED = frozenset({D.INT2, D.INT4, D.UINT2, D.UINT4, D.UINT16, D.UINT32})
"""Types narrower than their carriers."""


class _Rounded(torch.autograd.Function):  # type: ignore[misc]  # torch comes without types here
    """Values rounded to a small float type; gradients pass where nothing was clipped."""

    @staticmethod
    def forward(context: Any, x: Tensor, dtype: int, saturate: bool) -> Tensor:
        context.save_for_backward(x.abs() <= _LARGEST[D(dtype)])
        return _to_grid(x, D(dtype), saturate)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (inside,) = context.saved_tensors
        return gradient * inside, None, None


def small_float(x: Tensor, dtype: ir.DataType, saturate: bool = True) -> Tensor:
    """Rounded to nearest even in `dtype`; what is too large becomes the largest, or infinity or
    NaN.
    """
    result: Tensor = _Rounded.apply(x.float(), int(dtype), saturate)
    return result


def _to_grid(x: Tensor, dtype: ir.DataType, saturate: bool) -> Tensor:
    most = _LARGEST[dtype]
    if saturate or dtype == D.FLOAT4E2M1:
        x = torch.where(x.isnan(), x, x.clamp(-most, most))
    array = x.detach().cpu().numpy().astype(dtype.numpy()).astype(np.float32)
    result = torch.from_numpy(np.asarray(array)).to(x.device)
    return (
        torch.where(result.isinf(), torch.nan, result) if dtype in _ONLY_NAN else result
    )


def _power_of_two(x: Tensor, saturate: bool, round_mode: str) -> Tensor:
    """Exponents only; by default the next power of two above."""
    mantissa, exponent = torch.frexp(x)
    whole = mantissa == 0.5
    if round_mode == "up":
        exponent = torch.where(whole, exponent - 1, exponent)
    elif round_mode == "down":
        exponent = exponent - 1
    else:
        exponent = torch.where(mantissa >= 0.75, exponent, exponent - 1)
    if saturate:
        exponent = exponent.clamp(-127, 127)
    value = torch.ldexp(torch.ones_like(x), exponent)
    broken = (
        x.isnan()
        | (x < 0)
        | (x.isinf() & (not saturate))
        | ((exponent > 127) & (not saturate))
    )
    value = torch.where(x.isinf() & saturate, 2.0**127, value)
    value = torch.where((x == 0), 2.0**-127, value)
    return torch.where(broken, torch.nan, value)


def _through_text(x: Any, target: ir.DataType | None) -> Any:
    """Numbers to text and back, as numpy prints and reads them."""
    if target == D.STRING:
        array = x.detach().cpu().numpy()
        return np.array([str(v) for v in array.reshape(-1)], dtype=object).reshape(
            array.shape
        )
    assert target is not None
    numbers = np.array([float(str(v)) for v in np.asarray(x).reshape(-1)]).reshape(
        np.shape(x)
    )
    return to_carrier(numbers.astype(target.numpy()), target)


@op("BitCast", gradient=False)
def bit_cast(x: Tensor, *, to: int, call: Call) -> Tensor:
    """The same bits read as another type."""
    source = call.inputs[0]
    assert source is not None
    target = D(to)
    array = from_carrier(x, source).view(target.numpy())
    return to_carrier(array, target).to(x.device)
