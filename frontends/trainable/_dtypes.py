"""ONNX element types in torch: which dtype carries each, and how values get there and back.

torch lacks arithmetic for 16 to 64 bit unsigned integers and has no types below eight bits: those
travel in wider tensors, their ONNX type stays known beside them. Half precision is computed in
float32, so that it can be trained.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
import torch
from numpy.typing import NDArray

from ...passes._core.ops import FLOATS, SMALL_FLOATS

D = ir.DataType

CARRIERS: dict[ir.DataType, torch.dtype] = {
    D.FLOAT: torch.float32,
    D.FLOAT16: torch.float32,
    D.BFLOAT16: torch.float32,
    D.DOUBLE: torch.float64,
    D.INT8: torch.int8,
    D.INT16: torch.int16,
    D.INT32: torch.int32,
    D.INT64: torch.int64,
    D.UINT8: torch.uint8,
    D.UINT16: torch.int32,
    D.UINT32: torch.int64,
    # of the same width: values from 2**63 on travel as negative numbers
    D.UINT64: torch.int64,
    D.BOOL: torch.bool,
    D.INT4: torch.int8,
    D.UINT4: torch.uint8,
    D.INT2: torch.int8,
    D.UINT2: torch.uint8,
    D.FLOAT8E4M3FN: torch.float32,
    D.FLOAT8E4M3FNUZ: torch.float32,
    D.FLOAT8E5M2: torch.float32,
    D.FLOAT8E5M2FNUZ: torch.float32,
    D.FLOAT8E8M0: torch.float32,
    D.FLOAT4E2M1: torch.float32,
    D.COMPLEX64: torch.complex64,
    D.COMPLEX128: torch.complex128,
}
"""Torch dtype that holds the values of each ONNX type."""

DIFFERENTIABLE = FLOATS | SMALL_FLOATS | {D.FLOAT8E8M0, D.COMPLEX64, D.COMPLEX128}
"""Types whose carriers have gradients: the floats of a model, and those that serve as codes."""

RANGES: dict[ir.DataType, tuple[int, int]] = {
    D.INT2: (-2, 1),
    D.INT4: (-8, 7),
    D.INT8: (-128, 127),
    D.INT16: (-32768, 32767),
    D.INT32: (-(2**31), 2**31 - 1),
    D.INT64: (-(2**63), 2**63 - 1),
    D.UINT2: (0, 3),
    D.UINT4: (0, 15),
    D.UINT8: (0, 255),
    D.UINT16: (0, 65535),
    D.UINT32: (0, 2**32 - 1),
    D.UINT64: (0, 2**64 - 1),
}
"""Lowest and highest value of each integer type."""

_NUMPY: dict[torch.dtype, Any] = {
    torch.float32: np.float32,
    torch.float64: np.float64,
    torch.int8: np.int8,
    torch.int16: np.int16,
    torch.int32: np.int32,
    torch.int64: np.int64,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
    torch.complex64: np.complex64,
    torch.complex128: np.complex128,
}
"""numpy's type for each carrier."""


def carrier(dtype: ir.DataType) -> torch.dtype:
    """Return the torch dtype that holds values of `dtype`."""
    return CARRIERS[dtype]


def to_carrier(array: NDArray[Any], dtype: ir.DataType) -> torch.Tensor:
    """Copy a numpy array of an ONNX type (ml_dtypes for the small ones) into a tensor."""
    if dtype == D.UINT64:
        # a cast would refuse the upper half of the range; its bits fit
        unsigned = array.astype(np.uint64)
        signed = unsigned.view(np.int64)
        return torch.from_numpy(signed.copy())
    torch_dtype = carrier(dtype)
    wanted = _NUMPY[torch_dtype]
    plain = np.array(array, dtype=wanted)
    return torch.from_numpy(plain)


def from_carrier(tensor: torch.Tensor, dtype: ir.DataType) -> NDArray[Any]:
    """Return the values of a tensor as a numpy array of the ONNX type.

    Integers carried in floats, as trained codes are, are rounded and clamped.
    """
    exact = tensor.detach().cpu()
    array: NDArray[Any] = exact.numpy()
    is_float = array.dtype.kind == "f"
    if is_float and dtype in RANGES:
        low, high = RANGES[dtype]
        rounded = np.rint(array)
        array = np.clip(rounded, low, high)
    if dtype == D.UINT64:
        signed = array.astype(np.int64)
        return signed.view(np.uint64)
    own_type = dtype.numpy()
    return array.astype(own_type)
