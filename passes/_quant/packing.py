"""Weights below eight bits, stored packed and unpacked by plain nodes that ONNX Runtime folds when
it loads.

    signs    packed uint8 (ceil(n/8),)         -> Cast -> Gather(table 256x8)
    planes   packed uint8 (planes, ceil(n/8))  -> the same -> weigh and add the planes
    trits    packed uint8 (ceil(n/5),)         -> Cast -> Gather(table 243x5)
    nibbles  packed uint8 (ceil(n/2),)         -> Cast -> Gather(table 256x2)
    int4     INT4 initializer                  -> Cast int8 (opset 21, ONNX Runtime 1.23)

then, but for int4, Reshape (and Slice where n is no multiple of 8, 5 or 2) to the weight's shape.
All give the same int8 codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import DerivedTensor, blocks
from .._packing.bit_packing import Digits, bytes_for
from .inserter import Inserter

BITS, TRITS_OF_BYTES, HALVES = Digits(2, 1), Digits(3, 1), Digits(16, 1)


def pack_signs(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack the signs of `array`, flat, eight to a byte; sign(0) = sign(-0.0) = +1.

    Shapes: any shape of n elements -> (ceil(n / 8),). Element 8*i + j is bit j (value 2**j) of byte
    i: 1 for +1, 0 for -1. Bits after the last element are 0.
    """
    flat = np.asarray(array).reshape(-1)
    is_positive = flat >= 0
    return np.packbits(is_positive, bitorder="little")


def sign_table() -> NDArray[np.int8]:
    """(256, 8) int8: row b holds the eight signs that `pack_signs` put in byte b."""
    signs = 2 * BITS.table() - 1
    return signs.astype(np.int8)


def pack_trits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack values -1, 0, 1, flat, five to a byte, 1.6 bits each.

    Shapes: any shape of n elements -> (ceil(n / 5),). Element 5*i + j is digit j (value 3**j) of
    byte i, plus one. Digits after the last element are 0.
    """
    flat = np.asarray(array).reshape(-1)
    # digits 0, 1, 2; the fill of the last byte is cut off when it is unpacked
    digits = flat.astype(np.int8) + 1
    packed: NDArray[np.uint8] = TRITS_OF_BYTES.packed(digits)
    return packed


def trit_table() -> NDArray[np.int8]:
    """(243, 5) int8: row b holds the five values that `pack_trits` put in byte b."""
    trits = TRITS_OF_BYTES.table() - 1
    return trits.astype(np.int8)


def pack_nibbles(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Pack values -8..7, flat, two to a byte.

    Shapes: any shape of n elements -> (ceil(n / 2),). Element 2*i + j is nibble j (value 16**j) of
    byte i, plus eight. The nibble after the last element is 0.
    """
    flat = np.asarray(array).reshape(-1)
    # unsigned nibbles
    digits = flat.astype(np.int8) + 8
    packed: NDArray[np.uint8] = HALVES.packed(digits)
    return packed


def nibble_table() -> NDArray[np.int8]:
    """(256, 2) int8: row b holds the two values that `pack_nibbles` put in byte b."""
    signed = HALVES.table() - 8
    return signed.astype(np.int8)


@dataclass(frozen=True)
class Packing:
    """One way to store small codes: `per_byte` of them in a byte.

    Row b of `table` holds the codes of byte b.
    """

    key: str
    per_byte: int
    pack: Callable[[NDArray[Any]], NDArray[np.uint8]]
    table: Callable[[], NDArray[np.int8]]


SIGNS = Packing("signs", BITS.per_word, pack_signs, sign_table)
TRITS = Packing("trits", TRITS_OF_BYTES.per_word, pack_trits, trit_table)
NIBBLES = Packing("nibbles", HALVES.per_word, pack_nibbles, nibble_table)


def packed_weight(
    inserter: Inserter,
    stem: str,
    codes: ir.TensorProtocol | NDArray[Any],
    before: ir.Node,
    packing: Packing = SIGNS,
    planes: int = 1,
) -> ir.Value:
    """Store `codes` packed and unpack them in front of the node `before`.

    Shapes: `codes` of any shape -> the returned int8 value has the same shape. `planes`: with
    SIGNS, codes are the odd numbers from 1 - 2**planes to 2**planes - 1, the sum of 2**i * sign_i.
    The table is one initializer a graph. Nothing is computed until the model is written; then one
    weight's packed bytes are held. Opset: 10 or later (13 for planes).
    """
    tensor = ir.Tensor(codes) if isinstance(codes, np.ndarray) else codes
    dims = [int(d) for d in tensor.shape.numpy()]
    count = bytes_for(tensor.size, packing.per_byte)
    rows = [] if planes == 1 else [planes]
    unpack = _Unpacking(inserter, before)

    stored = _packed_tensor(tensor, packing, planes)
    packed = inserter.encoded(stem, "packed", stored)
    # indices of Gather are int32 or int64
    index = unpack.step(
        "Cast",
        [packed],
        ir.DataType.INT32,
        [*rows, count],
    )
    table = _table(inserter, packing)
    looked_up = [*rows, count, packing.per_byte]
    value = unpack.step(
        "Gather",
        [table, index],
        ir.DataType.INT8,
        looked_up,
    )
    if planes > 1:
        value = _summed(
            unpack,
            value,
            planes,
            [count, packing.per_byte],
        )
    if tensor.size % packing.per_byte:
        # the last byte holds fewer codes: cut those that only fill it up
        flat = unpack.reshaped(value, [count * packing.per_byte])
        start = inserter.constant("start", np.array([0]))
        end = inserter.constant("end", np.array([tensor.size]))
        value = unpack.step(
            "Slice",
            [flat, start, end],
            ir.DataType.INT8,
            [tensor.size],
        )
    return unpack.reshaped(value, dims)


def nibble_weight(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    """Store int8 `codes` in -8..7 two to a byte and look them up in front of `before`.

    As small as `int4_weight`.

    For ONNX Runtime before 1.23, which does not cast INT4. Opset: 10 or later.
    """
    return packed_weight(
        inserter,
        stem,
        codes,
        before,
        NIBBLES,
    )


def int4_weight(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    """Store int8 `codes` in -8..7 as INT4 and cast them to int8 in front of `before`.

    Two to a byte. Opset: 21.

    Not dequantized straight from INT4: ONNX Runtime makes no integer kernel of that.
    """
    stored = DerivedTensor(codes, _as_int4, ir.DataType.INT4)
    value = inserter.encoded(stem, "int4", stored)
    dims = [int(d) for d in codes.shape.numpy()]
    return _Unpacking(inserter, before).step(
        "Cast",
        [value],
        ir.DataType.INT8,
        dims,
    )


def _as_int4(block: NDArray[Any], start: int) -> NDArray[Any]:
    return block.astype(ir.DataType.INT4.numpy())


def _packed_tensor(
    tensor: ir.TensorProtocol, packing: Packing, planes: int
) -> ir.LazyTensor:
    """The packed bytes, computed when they are written."""
    count = bytes_for(tensor.size, packing.per_byte)

    def compute() -> ir.TensorProtocol:
        out = np.empty((planes, count), np.uint8)
        for plane in range(planes):
            done = 0
            # blocks of whole bytes, so that packed blocks can be laid end to end
            for _, block in blocks(tensor, granule=packing.per_byte):
                codes = _plane(block, plane, planes)
                packed = packing.pack(codes)
                end = done + packed.size
                out[plane, done:end] = packed
                done = end
            assert done == count, f"{tensor.name}: {done} of {count} bytes packed"
        if planes == 1:
            return ir.Tensor(out[0])
        return ir.Tensor(out)

    shape = [count] if planes == 1 else [planes, count]
    return ir.LazyTensor(
        compute,
        dtype=ir.DataType.UINT8,
        shape=ir.Shape(shape),
    )


def _plane(codes: NDArray[Any], plane: int, planes: int) -> NDArray[Any]:
    """The signs that weigh 2**(planes - 1 - plane): bits of (code + 2**planes - 1) / 2."""
    if planes == 1:
        return codes
    from_zero = codes.astype(np.int16) + 2**planes - 1
    levels = from_zero // 2
    place = planes - 1 - plane
    bits = (levels >> place) % 2
    signs: NDArray[Any] = bits * 2 - 1
    return signs


class _Unpacking:
    """Nodes that unpack one weight, each put in front of the node `before`."""

    def __init__(self, inserter: Inserter, before: ir.Node) -> None:
        self.inserter = inserter
        self.before = before

    def step(
        self,
        op: str,
        inputs: list[ir.Value],
        dtype: ir.DataType,
        dims: list[int],
        attributes: dict[str, int] | None = None,
    ) -> ir.Value:
        """Insert a node; a Cast casts to `dtype`."""
        if op == "Cast":
            attributes = {"to": int(dtype)}
        node = self.inserter.step(
            op,
            inputs,
            dtype,
            dims,
            attributes,
        )
        self.inserter.graph.insert_before(self.before, node)
        return node.outputs[0]

    def reshaped(self, value: ir.Value, dims: list[int]) -> ir.Value:
        """Insert a Reshape of int8 codes."""
        shape = self.inserter.constant("shape", np.array(dims))
        return self.step(
            "Reshape",
            [value, shape],
            ir.DataType.INT8,
            dims,
        )


def _summed(
    unpack: _Unpacking, signs: ir.Value, planes: int, dims: list[int]
) -> ir.Value:
    """2**i * sign_i, added up over the planes, as int8.

    In int32, since ONNX Runtime multiplies no int8.
    """
    int32 = ir.DataType.INT32
    weights = 2 ** np.arange(planes, dtype=np.int32)[::-1]
    by_plane = weights.reshape(-1, 1, 1)
    powers = unpack.inserter.constant("powers", by_plane)
    wide = unpack.step(
        "Cast",
        [signs],
        int32,
        [planes, *dims],
    )
    weighed = unpack.step(
        "Mul",
        [wide, powers],
        int32,
        [planes, *dims],
    )
    axes = unpack.inserter.constant("axis", np.array([0]))
    total = unpack.step(
        "ReduceSum",
        [weighed, axes],
        int32,
        dims,
        {"keepdims": 0},
    )
    return unpack.step(
        "Cast",
        [total],
        ir.DataType.INT8,
        dims,
    )


def _table(inserter: Inserter, packing: Packing) -> ir.Value:
    """The graph's table for this packing; its name is kept in `graph.meta`."""
    key = f"{packing.key}_table"
    graph = inserter.graph
    # looked up by name: an earlier pass may have removed the table since
    name = graph.meta.get(key, "")
    known = graph.initializers.get(name)
    if known is None:
        table = ir.Tensor(packing.table())
        known = inserter.initializer(key, table)
        graph.meta[key] = known.name
    return known
