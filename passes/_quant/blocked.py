"""Weight-only quantization in blocks along K: int4 or int8 values, one scale per block and output,
activations float.

    MatMul(x, w)  ->  MatMul(x, DequantizeLinear(q, scales, axis=0, block_size))

ONNX Runtime makes one MatMulNBits of both nodes (1.31.1: accuracy level 4, that is activations
rounded to 8 bits inside the kernel; the session option session.qdq_matmulnbits_accuracy_level
changes that). Its kernels take blocks of 16 or more inputs, a power of two; the last block may be
short.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError
from .._core.graph import Names
from .._core.lazy import DerivedTensor, blocks
from .inserter import Inserter
from .layers import Layer, int_attribute
from .weights import Floats, transposed

BLOCKED_OPSET = 21
MIN_BLOCK = 16
LEVELS = {4: (-8, 7), 8: (-127, 127)}
DTYPES = {4: ir.DataType.INT4, 8: ir.DataType.INT8}
TRIED = {4: (-8.0, 7.0, -8.5, 7.5, -9.0, 8.0), 8: (127.0,)}
"""Integers that the largest weight of a block may become; the one of least squared error wins. At 4
bits one level more lies below zero, so scales may be negative (measured: +1 dB over 7.0 alone), and
clipping the largest may pay.
"""

_SMALLEST = 1e-30
"""Scales stay this far from zero: a block of zeros or denormals has none of its own."""


def why_not_blocked(layer: Layer, bits: int, block: int) -> str | None:
    """Why the weight of this layer has no blocked form, or None."""
    if bits not in DTYPES:
        return f"blocked weights have 4 or 8 bits, not {bits}"
    if block < MIN_BLOCK or block & (block - 1):
        return (
            f"the runtime has no kernel for blocks of {block}: a power of two from "
            f"{MIN_BLOCK} up is needed"
        )
    if layer.node.op_type not in ("MatMul", "Gemm"):
        return f"{layer.node.op_type} has no kernel for blocked weights"
    inputs = _inputs(layer)
    return (
        f"its {inputs} inputs are fewer than one block of {MIN_BLOCK}"
        if inputs < MIN_BLOCK
        else None
    )


def insert_blocked(
    graph: ir.Graph, names: Names, layers: list[Layer], bits: int, block: int
) -> dict[str, int]:
    """Give MatMul and Gemm layers blocked weights; opset 21 is the caller's. Returns `layers`,
    `weights`, `pairs` (0).

    Shapes: weight (K, N), or (N, K) where a Gemm says transB -> q (K, N) of `bits` bits, scales
    (ceil(K / block), N). Layers are such that `why_not_blocked` is None. Errors: RefusedError where
    a weight holds NaN or infinity.
    """
    inserter = Inserter(graph, names)
    for layer in layers:
        _replace(inserter, layer, bits, _fitting(layer, block))
    return {
        "layers": len(layers),
        "weights": sum({v.weight: v.tensor.size for v in layers}.values()),
        "pairs": 0,
    }


def _fitting(layer: Layer, block: int) -> int:
    """The block, halved while one half already holds all inputs."""
    inputs = _inputs(layer)
    while block // 2 >= max(inputs, MIN_BLOCK):
        block //= 2
    return block


def _replace(inserter: Inserter, layer: Layer, bits: int, block: int) -> None:
    """A shared weight is stored once for each layer: the runtime fuses no DequantizeLinear whose
    weight is shared.
    """
    tensor, stem, by_rows = layer.tensor, layer.weight.name or "weight", _flipped(layer)
    scales = block_scales(tensor, bits, block, by_rows)
    quantized: ir.TensorProtocol = quantize_blocks(tensor, scales, bits, block, by_rows)
    if by_rows:
        quantized, scales = transposed(quantized), np.ascontiguousarray(scales.T)
    dequantize = inserter.node(
        "DequantizeLinear",
        [
            inserter.initializer(f"{stem}_q{bits}", quantized),
            inserter.initializer(f"{stem}_block_scale", ir.Tensor(scales)),
        ],
        "dequantized",
        ir.DataType.FLOAT,
        ir.Shape(quantized.shape.numpy()),
        {"axis": 0, "block_size": block},
    )
    layer.node.prepend([dequantize])
    layer.node.replace_input_with(layer.rule.weight, dequantize.outputs[0])
    if by_rows:
        layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)


def block_scales(
    tensor: ir.TensorProtocol, bits: int, block: int, by_rows: bool = False
) -> Floats:
    """The scale of each block, least squared error among `TRIED`, streamed.

    Shapes: (K, N) -> (ceil(K / block), N); with `by_rows` (N, K) -> (N, ceil(K / block)).
    Errors: RefusedError for NaN or infinity.
    """
    first, second = (int(d) for d in tensor.shape.numpy())
    across = (first, -(-second // block)) if by_rows else (-(-first // block), second)
    out = np.empty(across, np.float32)
    for start, view in _block_views(tensor, block, by_rows):
        if not np.isfinite(view).all():
            raise RefusedError(
                tensor.name or "weight",
                "holds NaN or infinity: it has no integer form",
                "repair the weight, or name the layer in exclude",
            )
        out[start : start + len(view)] = best_scales(view, bits).reshape(len(view), -1)
    return out


def best_scales(view: Floats, bits: int) -> Floats:
    """Shapes: (..., block, columns) -> (..., columns); `_block_views` says what they are."""
    at = np.abs(view).argmax(-2)[..., None, :]
    extreme = np.take_along_axis(view, at, -2)
    if len(TRIED[bits]) == 1:
        return _usable(np.abs(extreme[..., 0, :]) / np.float32(TRIED[bits][0]))
    best, least = _usable(extreme), np.full(extreme.shape, np.inf, np.float32)
    for target in TRIED[bits]:
        scale = _usable(extreme / np.float32(target))
        scaled = np.divide(view, scale, dtype=np.float32)
        error = np.square(_rounded(scaled, bits) - scaled).sum(
            -2, keepdims=True
        ) / np.float32(target * target)
        best = np.where(error < least, scale, best)
        least = np.minimum(error, least)
    return np.asarray(best[..., 0, :])


def _usable(scale: NDArray[Any]) -> Floats:
    small = np.abs(scale) < _SMALLEST
    return np.where(small, np.float32(_SMALLEST), scale).astype(np.float32)


def _rounded(scaled: Floats, bits: int) -> Floats:
    low, high = LEVELS[bits]
    return np.asarray(np.clip(np.rint(scaled), low, high))


def quantize_blocks(
    tensor: ir.TensorProtocol,
    scales: Floats,
    bits: int,
    block: int,
    by_rows: bool = False,
) -> DerivedTensor:
    """round(w / scale of its block) as int4 or int8, lazily. Shapes: as the tensor. Exact zeros
    stay zeros.
    """
    length = int(tensor.shape.numpy()[1])
    dtype = DTYPES[bits]

    def kernel(flat: NDArray[Any], start: int) -> NDArray[Any]:
        view, whole = _as_blocks(flat, length, block, by_rows)
        first = start // length if by_rows else start // (length * block)
        scale = np.expand_dims(scales[first : first + len(view)], -1 if by_rows else 1)
        scaled = np.divide(
            view, scale[..., None] if by_rows else scale, dtype=np.float32
        )
        values = _rounded(scaled, bits).astype(dtype.numpy())
        return _flat(values, whole, length, by_rows)

    return DerivedTensor(tensor, kernel, dtype, length if by_rows else length * block)


def _block_views(
    tensor: ir.TensorProtocol, block: int, by_rows: bool
) -> Iterator[tuple[int, Floats]]:
    """(index of the first row or block, the part as blocks), a short last block filled up with
    zeros.
    """
    length = int(tensor.shape.numpy()[1])
    granule = length if by_rows else length * block
    for start, flat in blocks(tensor, granule):
        yield start // granule, _as_blocks(flat, length, block, by_rows)[0]


def _as_blocks(
    flat: NDArray[Any], length: int, block: int, by_rows: bool
) -> tuple[Floats, int]:
    """Whole rows (n, K) as (n, blocks, block, 1), or rows (k, N) as (blocks, block, N); and how
    many rows there are.
    """
    rows = flat.reshape(-1, length).astype(np.float32, copy=False)
    if by_rows:
        padded = np.pad(rows, ((0, 0), (0, -length % block)))
        return padded.reshape(len(rows), -1, block, 1), len(rows)
    padded = np.pad(rows, ((0, -len(rows) % block), (0, 0)))
    return padded.reshape(-1, block, length), len(rows)


def _flat(values: NDArray[Any], rows: int, length: int, by_rows: bool) -> NDArray[Any]:
    """The inverse of `_as_blocks`."""
    if by_rows:
        return np.asarray(values.reshape(rows, -1)[:, :length]).reshape(-1)
    return np.asarray(values.reshape(-1, length)[:rows]).reshape(-1)


def _flipped(layer: Layer) -> bool:
    return layer.node.op_type == "Gemm" and bool(int_attribute(layer.node, "transB", 0))


def _inputs(layer: Layer) -> int:
    return int(layer.tensor.shape.numpy()[1 if _flipped(layer) else 0])
