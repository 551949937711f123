"""The sums of ONNX Runtime's integer kernels in numpy, as either class of CPU adds them.

x86 without VNNI multiplies u8 codes by s8 weights with an instruction that adds two neighbouring
products in a saturating int16 (`saturating`); other CPUs, and other pairs of types, add in int32
(`exact`). Laid out in kernel order and numbered from 0, weights 2j and 2j+1 of an output channel
are a pair: along K for products of matrices; for Conv kernel position by kernel position, each with
the channels of its group. Depthwise Conv and ConvInteger have kernels of their own, exact on all.

Nothing here is taken from the product: what tests expect of it is counted apart.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import onnx.parser
import onnxruntime
from numpy.typing import NDArray

Arithmetic = Literal["exact", "saturating"]
ARITHMETICS: tuple[Arithmetic, ...] = ("exact", "saturating")
Array = NDArray[Any]
INT16 = np.iinfo(np.int16)
LARGEST_CODE = 255

PROBE = """
<ir_version: 8, opset_import: ["" : 13]>
probe (uint8[1, 2] x) => (int32[1, 1] y) <int8[2, 1] w = {127, 127}> { y = MatMulInteger (x, w) }
"""


@functools.cache
def arithmetic_of_this_cpu() -> Arithmetic:
    """Result of ONNX Runtime for 255 * 127 + 255 * 127 on this CPU."""
    model = onnx.parser.parse_model(PROBE).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    found = int(
        session.run(None, {"x": np.full((1, 2), LARGEST_CODE, np.uint8)})[0][0, 0]
    )
    return {2 * LARGEST_CODE * 127: "exact", int(INT16.max): "saturating"}[found]


def pairs_of(weight: Array) -> tuple[Array, Array]:
    """First and second weights of all pairs: (K, N) -> (K // 2, N) each; an odd one is left."""
    even = len(weight) // 2 * 2
    return weight[0:even:2].astype(np.int64), weight[1:even:2].astype(np.int64)


def may_saturate(weight: Array) -> Array:
    """Pairs that leave int16 for some u8 codes, the extremes 0 and 255: (K, N) -> (K // 2, N)."""
    first, second = pairs_of(weight)
    highest = LARGEST_CODE * (np.maximum(first, 0) + np.maximum(second, 0))
    lowest = LARGEST_CODE * (np.minimum(first, 0) + np.minimum(second, 0))
    return np.asarray((highest > INT16.max) | (lowest < INT16.min))


def lost_by_saturation(codes: Array, weight: Array) -> Array:
    """By how much sums of (M, K) u8 by (K, N) s8 exceed what saturating pairs add up to: (M, N)."""
    lost = np.zeros((len(codes), weight.shape[1]), np.int64)
    first, second = pairs_of(weight)
    risky = may_saturate(weight)
    for pair in np.flatnonzero(risky.any(axis=1)):
        columns = np.flatnonzero(risky[pair])
        left, right = (codes[:, 2 * pair + i, None].astype(np.int64) for i in (0, 1))
        sums = left * first[pair, columns] + right * second[pair, columns]
        lost[:, columns] += sums - np.clip(sums, INT16.min, INT16.max)
    return lost


def sums_of_products(codes: Array, weight: Array, arithmetic: Arithmetic) -> Array:
    """(M, K) by (K, N), zero points not taken off: (M, N) int64."""
    sums = (codes.astype(np.float64) @ weight.astype(np.float64)).astype(
        np.int64
    )  # exact below 2**53
    if (
        arithmetic == "saturating"
        and codes.dtype == np.uint8
        and weight.dtype == np.int8
    ):
        sums -= lost_by_saturation(codes, weight)
    return sums


def matmul(
    codes: Array, weight: Array, zero: Array, weight_zero: Array, arithmetic: Arithmetic
) -> Array:
    """(…, K) by (K, N) -> (…, N) int64. Kernels add raw codes and take zero points off the sums."""
    if weight.ndim > 2:
        return _batched(codes, weight, zero, weight_zero, arithmetic)
    rows, x_zero = codes.reshape(-1, codes.shape[-1]), int(zero.reshape(()))
    w_zero = weight_zero.astype(np.int64).reshape(-1)
    sums = sums_of_products(rows, weight, arithmetic)
    sums -= (
        x_zero * weight.sum(axis=0, dtype=np.int64)
        + w_zero * rows.sum(axis=1, dtype=np.int64)[:, None]
    )
    sums += len(weight) * x_zero * w_zero
    return sums.reshape(*codes.shape[:-1], -1)


def _batched(
    codes: Array, weight: Array, zero: Array, weight_zero: Array, arithmetic: Arithmetic
) -> Array:
    batch = np.broadcast_shapes(codes.shape[:-2], weight.shape[:-2])
    left = np.broadcast_to(codes, (*batch, *codes.shape[-2:]))
    right = np.broadcast_to(weight, (*batch, *weight.shape[-2:]))
    found = [
        matmul(left[i], right[i], zero, weight_zero, arithmetic)
        for i in np.ndindex(*batch)
    ]
    return np.stack(found).reshape(*batch, *found[0].shape)


@dataclass(frozen=True)
class Geometry:
    """The attributes of a Conv."""

    group: int
    strides: tuple[int, ...]
    dilations: tuple[int, ...]
    pads: tuple[int, ...]

    @classmethod
    def of(cls, attributes: dict[str, Any], rank: int) -> Geometry:
        if attributes.get("auto_pad", b"NOTSET") != b"NOTSET":
            raise NotImplementedError("auto_pad: write the pads out")
        ones = (1,) * rank
        return cls(
            attributes.get("group", 1),
            tuple(attributes.get("strides", ones)),
            tuple(attributes.get("dilations", ones)),
            tuple(attributes.get("pads", (0,) * 2 * rank)),
        )


def kernel_order(weight: Array, group: int = 1) -> Array:
    """(M, C / group, *K) -> (group, K, M / group): rows in the order in which kernels read them."""
    rows = np.moveaxis(weight, 1, -1).reshape(group, len(weight) // group, -1)
    return np.ascontiguousarray(rows.transpose(0, 2, 1))


def is_depthwise(weight: Array, group: int) -> bool:
    return weight.shape[1] == 1 and len(weight) == group


def conv(
    codes: Array,
    weight: Array,
    zero: Array,
    weight_zero: Array,
    geometry: Geometry,
    arithmetic: Arithmetic,
) -> Array:
    """(N, C, *S) by (M, C / group, *K) -> (N, M, *out) int64."""
    group = geometry.group
    read = _windows(codes, weight.shape[2:], int(zero.reshape(())), geometry)
    out = read.shape[: weight.ndim - 1]
    rows = read.reshape(
        *out, -1, group, weight.shape[1]
    )  # (N, *out, kernel positions, group, channels of it)
    columns = kernel_order(weight, group)
    zeros = np.broadcast_to(weight_zero.reshape(-1), (len(weight),)).reshape(group, -1)
    added: Arithmetic = "exact" if is_depthwise(weight, group) else arithmetic
    sums = [
        matmul(rows[..., g, :].reshape(*out, -1), columns[g], zero, zeros[g], added)
        for g in range(group)
    ]
    return np.moveaxis(np.concatenate(sums, axis=-1), -1, 1)


def _windows(
    codes: Array, kernel: tuple[int, ...], zero: int, geometry: Geometry
) -> Array:
    """Inputs of each output, padding as the zero point: (N, C, *S) -> (N, *out, *kernel, C)."""
    rank = len(kernel)
    margins = [
        (0, 0),
        (0, 0),
        *zip(geometry.pads[:rank], geometry.pads[rank:], strict=True),
    ]
    padded = np.pad(codes, margins, constant_values=zero)
    reach = tuple(
        d * (k - 1) + 1 for k, d in zip(kernel, geometry.dilations, strict=True)
    )
    found = np.lib.stride_tricks.sliding_window_view(
        padded, reach, tuple(range(2, 2 + rank))
    )
    steps = (
        slice(None, None, step) for step in (*geometry.strides, *geometry.dilations)
    )
    return np.moveaxis(found[(slice(None), slice(None), *steps)], 1, -1)


def quantized(values: Array, scale: Array, zero: Array) -> Array:
    """QuantizeLinear of float32, one scale."""
    return rounded(values.astype(np.float32) / scale.astype(np.float32), zero)


def rounded(steps: Array, zero: Array) -> Array:
    """Codes of float32 numbers of steps from the zero point, halves to even."""
    limits = np.iinfo(zero.dtype)
    return np.clip(
        np.rint(steps) + zero.astype(np.float32), limits.min, limits.max
    ).astype(zero.dtype)


def dynamic_range(values: Array) -> tuple[Array, Array]:
    """Scale and zero point that DynamicQuantizeLinear takes."""
    low, high = np.float32(min(values.min(), 0)), np.float32(max(values.max(), 0))
    scale = np.float32(1) if low == high else (high - low) / np.float32(LARGEST_CODE)
    return np.asarray(scale), np.rint(np.clip(-low / scale, 0, LARGEST_CODE)).astype(
        np.uint8
    )
