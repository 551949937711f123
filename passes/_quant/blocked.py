"""Weight-only quantization in blocks along K, activations float.

Values are int4 or int8, with one scale per block and output:

    MatMul(x, w)  ->  MatMul(x, DequantizeLinear(q, scales, axis=0, block_size))

ONNX Runtime makes one MatMulNBits of both nodes (1.31.1: accuracy level 4, that is activations
rounded to 8 bits inside the kernel; the session option session.qdq_matmulnbits_accuracy_level
changes that). Its kernels take blocks of 16 or more inputs, a power of two; the last block may be
short.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import RefusedError
from .._core.channel_layout import Layout
from .._core.graph import Names
from .._core.lazy import DerivedTensor, blocks, transposed
from .block_grids import DTYPES, best_scales, rounded
from .engine import Counts, Insertion, LayerCase, StoredRows
from .guards import insert_guard
from .inserter import Inserter, turned
from .layers import WEIGHT_INPUT, QuantLayer
from .weights import (
    INT8_LEVELS,
    Floats,
    channel_absmax,
    quantize_weight,
    wide_enough,
)

BLOCKED_OPSET = 21
"""Opset in which DequantizeLinear takes blocks."""

MIN_BLOCK = 16
"""Least inputs of a block: the runtime has no kernel for fewer."""


def why_not_blocked(case: LayerCase) -> str | None:
    """Reason why the weight of a layer has no blocked form, or None."""
    if case.bits not in DTYPES:
        return f"blocked weights have 4 or 8 bits, not {case.bits}"
    block = case.block
    is_power_of_two = block & (block - 1) == 0
    if block < MIN_BLOCK or not is_power_of_two:
        return (
            f"the runtime has no kernel for blocks of {block}: a power of two from "
            f"{MIN_BLOCK} up is needed"
        )
    layer = case.layer
    if layer.node.op_type not in ("MatMul", "Gemm"):
        return f"{layer.node.op_type} has no kernel for blocked weights"
    if layer.width < MIN_BLOCK:
        return f"its {layer.width} inputs are fewer than one block of {MIN_BLOCK}"
    return None


def insert_blocked(insertion: Insertion, layers: list[QuantLayer]) -> Counts:
    """Give MatMul and Gemm layers blocked weights; opset 21 is the caller's.

    Layers are such that `why_not_blocked` is None. Errors: RefusedError where a weight holds NaN or
    infinity.
    """
    counts = {"layers": 0, "weights": 0, "pairs": 0}
    for bits in DTYPES:
        chosen = [layer for layer in layers if insertion.bits[layer] == bits]
        found = insert_blocks(
            insertion.graph,
            insertion.names,
            chosen,
            bits,
            insertion.block,
            insertion.tables,
            insertion.rows,
        )
        for key, count in found.items():
            counts[key] += count
    if insertion.rules.guard_float:
        _guard(insertion, layers)
    return counts


def _guard(insertion: Insertion, layers: list[QuantLayer]) -> None:
    """Part layers from the Relu or Clip behind them, with which the runtime fuses no MatMulNBits.

    It takes them for a pair with QuantizeLinear, and looks no further (1.32.0).
    """
    inserter = Inserter(insertion.graph, insertion.names)
    for layer in layers:
        output = layer.node.outputs[0]
        uses = list(output.uses())
        if len(uses) == 1 and uses[0].node.op_type in ("Relu", "Clip"):
            insert_guard(inserter, output)


def insert_blocks(
    graph: ir.Graph,
    names: Names,
    layers: list[QuantLayer],
    bits: int,
    block: int,
    tables: Collection[ir.Value] = (),
    rows: dict[ir.Value, StoredRows] | None = None,
) -> Counts:
    """Store the weights of layers in blocks of `bits` bits.

    `tables`: weights that are tables too; those stored in 8 bits are added to `rows`.

    Shapes: weight (K, N), or (N, K) where a Gemm or a Transpose turns it -> q (K, N) of `bits`
    bits, scales (ceil(K / block), N).
    """
    inserter = Inserter(graph, names)
    rows = {} if rows is None else rows
    for layer in layers:
        fitting = _fitting(layer.width, block)
        if bits == 8 and layer.channel_axis == 0 and layer.weight in tables:
            rows[layer.weight] = _read_rows(inserter, layer, fitting)
        else:
            _replace(inserter, layer, bits, fitting)
    sizes = {layer.weight: layer.tensor.size for layer in layers}
    return {"layers": len(layers), "weights": sum(sizes.values()), "pairs": 0}


def _fitting(inputs: int, block: int) -> int:
    """The block, halved while one half already holds all inputs."""
    # a smaller block that holds the same inputs needs less padding
    while block // 2 >= max(inputs, MIN_BLOCK):
        block //= 2
    return block


def _replace(inserter: Inserter, layer: QuantLayer, bits: int, block: int) -> None:
    """Let a layer read its weight dequantized from blocks.

    A shared weight is stored once for each layer: the runtime fuses no DequantizeLinear whose
    weight is shared.
    """
    tensor = layer.tensor
    stem = layer.weight.name or "weight"
    # a Transpose, or transB: the stored weight is (N, K), its blocks lie along rows
    by_rows = layer.channel_axis == 0
    scales = block_scales(
        tensor,
        bits,
        block,
        by_rows,
    )
    quantized: ir.TensorProtocol = quantize_blocks(
        tensor,
        scales,
        bits,
        block,
        by_rows,
    )
    if by_rows:
        quantized = transposed(quantized)
        scales = np.ascontiguousarray(scales.T)
    stored = inserter.encoded(stem, f"q{bits}", quantized)
    stored_scales = inserter.initializer(f"{stem}_block_scale", ir.Tensor(scales))
    dequantize = inserter.node(
        "DequantizeLinear",
        [stored, stored_scales],
        "dequantized",
        ir.DataType.FLOAT,
        ir.Shape(quantized.shape.numpy()),
        {"axis": 0, "block_size": block},
    )
    layer.node.prepend([dequantize])
    # the blocks are (K, N), however the weight was stored
    _take(layer, dequantize.outputs[0])


def _read_rows(inserter: Inserter, layer: QuantLayer, block: int) -> StoredRows:
    """Let a layer read its weight, a table, from rows in 8 bits that the table is stored as too.

    All blocks of a row have its one scale: both are brought into the form of blocks at load.
    """
    tensor = layer.tensor
    layout = Layout.of(layer.shape, 0)
    largest = channel_absmax(tensor, layout)
    if not np.isfinite(largest).all():
        raise _not_finite(tensor)
    scales = wide_enough(largest / np.float32(INT8_LEVELS), None, 1.0)
    codes = quantize_weight(tensor, layout, scales)
    stem = layer.weight.name or "weight"
    stored = inserter.encoded(stem, "rows", codes)
    matrix = turned(inserter, layer.node, stored)
    blocks_of_row = -(-layer.width // block)
    one = inserter.initializer(f"{stem}_scale", ir.Tensor(scales[None]))
    dims = [blocks_of_row, len(scales)]
    expand = inserter.step(
        "Expand",
        [one, inserter.constant("dims", np.array(dims, np.int64))],
        ir.DataType.FLOAT,
        dims,
    )
    dequantize = inserter.node(
        "DequantizeLinear",
        [matrix, expand.outputs[0]],
        "dequantized",
        ir.DataType.FLOAT,
        ir.Shape([layer.width, len(scales)]),
        {"axis": 0, "block_size": block},
    )
    layer.node.prepend([expand, dequantize])
    _take(layer, dequantize.outputs[0])
    return StoredRows(stored, scales)


def _take(layer: QuantLayer, weight: ir.Value) -> None:
    """Let a layer read a weight (K, N)."""
    layer.node.replace_input_with(WEIGHT_INPUT, weight)
    if layer.read_axis == 0:
        layer.node.attributes["transB"] = ir.AttrInt64("transB", 0)


def _not_finite(tensor: ir.TensorProtocol) -> RefusedError:
    return RefusedError(
        tensor.name or "weight",
        "holds NaN or infinity: it has no integer form",
        "repair the weight, or name the layer in exclude",
    )


def block_scales(
    tensor: ir.TensorProtocol, bits: int, block: int, by_rows: bool = False
) -> Floats:
    """The scale of each block, that of `best_scales`, streamed.

    Shapes: (K, N) -> (ceil(K / block), N); with `by_rows` (N, K) -> (N, ceil(K / block)).
    Errors: RefusedError for NaN or infinity.
    """
    first, second = (int(d) for d in tensor.shape.numpy())
    inputs = second if by_rows else first
    count = -(-inputs // block)
    shape = (first, count) if by_rows else (count, second)
    out = np.empty(shape, np.float32)
    for start, view in _block_views(tensor, block, by_rows):
        if not np.isfinite(view).all():
            raise _not_finite(tensor)
        found = best_scales(view, bits)
        parts = len(view)
        end = start + parts
        out[start:end] = found.reshape(parts, -1)
    return out


def quantize_blocks(
    tensor: ir.TensorProtocol,
    scales: Floats,
    bits: int,
    block: int,
    by_rows: bool = False,
) -> DerivedTensor:
    """round(w / scale of its block) as int4 or int8, lazily.

    Shapes: as the tensor. Exact zeros stay zeros.
    """
    length = int(tensor.shape.numpy()[1])
    granule = _granule(length, block, by_rows)
    dtype = DTYPES[bits]

    def kernel(flat: NDArray[Any], start: int) -> NDArray[Any]:
        view, rows = _as_blocks(
            flat,
            length,
            block,
            by_rows,
        )
        first = start // granule
        own = scales[first : first + len(view)]
        # (rows, blocks) beside (rows, blocks, block, 1), or (blocks, N) beside (blocks, block, N)
        divisors = own[:, :, None, None] if by_rows else own[:, None, :]
        scaled = np.divide(view, divisors, dtype=np.float32)
        values = rounded(scaled, bits).astype(dtype.numpy())
        return _flat(
            values,
            rows,
            length,
            by_rows,
        )

    return DerivedTensor(
        tensor,
        kernel,
        dtype,
        granule,
    )


def _granule(length: int, block: int, by_rows: bool) -> int:
    """Elements that hold whole blocks: one row, or as many rows as a block has inputs."""
    return length if by_rows else length * block


def _block_views(
    tensor: ir.TensorProtocol, block: int, by_rows: bool
) -> Iterator[tuple[int, Floats]]:
    """(index of the first row or block, the part as blocks), a short last block filled up with
    zeros.
    """
    length = int(tensor.shape.numpy()[1])
    granule = _granule(length, block, by_rows)
    for start, flat in blocks(tensor, granule):
        view, _ = _as_blocks(
            flat,
            length,
            block,
            by_rows,
        )
        yield start // granule, view


def _as_blocks(
    flat: NDArray[Any], length: int, block: int, by_rows: bool
) -> tuple[Floats, int]:
    """Whole rows as blocks, and the number of rows.

    Shapes: rows (n, K) -> (n, blocks, block, 1); rows (k, N) -> (blocks, block, N).
    """
    rows = flat.reshape(-1, length).astype(np.float32, copy=False)
    count = len(rows)
    untouched = (0, 0)
    if by_rows:
        fill = (0, -length % block)
        padded = np.pad(rows, (untouched, fill))
        by_row = padded.reshape(
            count,
            -1,
            block,
            1,
        )
        return by_row, count
    fill = (0, -count % block)
    padded = np.pad(rows, (fill, untouched))
    by_block = padded.reshape(-1, block, length)
    return by_block, count


def _flat(values: NDArray[Any], rows: int, length: int, by_rows: bool) -> NDArray[Any]:
    """The inverse of `_as_blocks`."""
    if by_rows:
        padded_rows = values.reshape(rows, -1)
        kept = padded_rows[:, :length]
        return np.asarray(kept).reshape(-1)
    # the fill of a short last block lies behind all rows
    padded = values.reshape(-1, length)
    kept = padded[:rows]
    return np.asarray(kept).reshape(-1)
