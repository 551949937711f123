"""Weights below eight bits, stored packed and unpacked by plain nodes that ONNX Runtime folds when
it loads.

    signs, planes   packed uint8 (planes, ceil(n/8)) -> Cast -> Gather(table 256x8) (-> weigh and add the planes)
    trits           packed uint8 (ceil(n/5),)        -> Cast -> Gather(table 243x5)
    nibbles         packed uint8 (ceil(n/2),)        -> Cast -> Gather(table 256x2)
    int4            INT4 initializer                 -> Cast int8 (opset 21, ONNX Runtime 1.23)

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
from .inserter import Inserter

INT4_OPSET = 21
TRITS_A_BYTE = 5
NIBBLES_A_BYTE = 2


def pack_signs(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The signs of `array`, flat, eight to a byte; sign(0) = sign(-0.0) = +1.

    Shapes: any shape of n elements -> (ceil(n / 8),). Element 8*i + j is bit j (value 2**j) of byte
    i: 1 for +1, 0 for -1. Bits after the last element are 0.
    """
    return np.packbits(np.asarray(array).reshape(-1) >= 0, bitorder="little")


def sign_table() -> NDArray[np.int8]:
    """What each byte stands for: (256, 8) int8, row b holds the eight signs that `pack_signs` put
    in byte b.
    """
    bits = np.unpackbits(
        np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"
    )
    return (bits.astype(np.int8) * 2 - 1).astype(np.int8)


def pack_trits(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Values -1, 0, 1, flat, five to a byte, 1.6 bits each.

    Shapes: any shape of n elements -> (ceil(n / 5),). Element 5*i + j is digit j (value 3**j) of
    byte i, plus one. Digits after the last element are 0.
    """
    flat = np.asarray(array).reshape(-1)
    digits = np.zeros(-(-flat.size // TRITS_A_BYTE) * TRITS_A_BYTE, np.uint8)
    digits[: flat.size] = flat + 1
    return (digits.reshape(-1, TRITS_A_BYTE) @ _POWERS).astype(np.uint8)


def trit_table() -> NDArray[np.int8]:
    """(243, 5) int8: row b holds the five values that `pack_trits` put in byte b."""
    return (np.arange(3**TRITS_A_BYTE)[:, None] // _POWERS % 3 - 1).astype(np.int8)


_POWERS = 3 ** np.arange(TRITS_A_BYTE)


def pack_nibbles(array: NDArray[Any]) -> NDArray[np.uint8]:
    """Values -8..7, flat, two to a byte.

    Shapes: any shape of n elements -> (ceil(n / 2),). Element 2*i + j is nibble j (value 16**j) of
    byte i, plus eight. The nibble after the last element is 0.
    """
    flat = np.asarray(array).reshape(-1)
    digits = np.zeros(-(-flat.size // NIBBLES_A_BYTE) * NIBBLES_A_BYTE, np.uint8)
    digits[: flat.size] = flat.astype(np.int8) + 8
    return (digits[::2] | digits[1::2] << 4).astype(np.uint8)


def nibble_table() -> NDArray[np.int8]:
    """(256, 2) int8: row b holds the two values that `pack_nibbles` put in byte b."""
    byte = np.arange(256)
    return (np.stack([byte & 15, byte >> 4], axis=1) - 8).astype(np.int8)


@dataclass(frozen=True)
class Packing:
    """One way to store small codes: `per_byte` of them in a byte, `table` row b the codes of byte
    b.
    """

    key: str
    per_byte: int
    pack: Callable[[NDArray[Any]], NDArray[np.uint8]]
    table: Callable[[], NDArray[np.int8]]


SIGNS = Packing("signs", 8, pack_signs, sign_table)
TRITS = Packing("trits", TRITS_A_BYTE, pack_trits, trit_table)
NIBBLES = Packing("nibbles", NIBBLES_A_BYTE, pack_nibbles, nibble_table)


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
    count = -(-tensor.size // packing.per_byte)
    rows = [] if planes == 1 else [planes]
    packed = inserter.initializer(
        f"{stem}_packed", _packed_tensor(tensor, packing, planes)
    )
    index = _step(inserter, before, "Cast", [packed], ir.DataType.INT32, [*rows, count])
    value = _step(
        inserter,
        before,
        "Gather",
        [_table(inserter, packing), index],
        ir.DataType.INT8,
        [*rows, count, packing.per_byte],
    )
    if planes > 1:
        value = _summed(inserter, before, value, planes, [count, packing.per_byte])
    if tensor.size % packing.per_byte:
        flat = _reshaped(inserter, before, value, [count * packing.per_byte])
        bounds = [
            inserter.constant("start", np.array([0])),
            inserter.constant("end", np.array([tensor.size])),
        ]
        value = _step(
            inserter, before, "Slice", [flat, *bounds], ir.DataType.INT8, [tensor.size]
        )
    return _reshaped(inserter, before, value, dims)


def nibble_weight(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    """Store int8 `codes` in -8..7 two to a byte and look them up in front of `before`; as small as
    `int4_weight`.

    For ONNX Runtime before 1.23, which does not cast INT4. Opset: 10 or later.
    """
    return packed_weight(inserter, stem, codes, before, NIBBLES)


def int4_weight(
    inserter: Inserter, stem: str, codes: ir.TensorProtocol, before: ir.Node
) -> ir.Value:
    """Store int8 `codes` in -8..7 as INT4 (two to a byte) and cast them to int8 in front of
    `before`. Opset: 21.

    Not dequantized straight from INT4: ONNX Runtime makes no integer kernel of that.
    """
    stored = DerivedTensor(
        codes, lambda block, start: block.astype(_INT4), ir.DataType.INT4
    )
    value = inserter.initializer(f"{stem}_int4", stored)
    return _step(
        inserter,
        before,
        "Cast",
        [value],
        ir.DataType.INT8,
        [int(d) for d in codes.shape.numpy()],
    )


_INT4 = ir.DataType.INT4.numpy()


def _packed_tensor(
    tensor: ir.TensorProtocol, packing: Packing, planes: int
) -> ir.LazyTensor:
    shape = [-(-tensor.size // packing.per_byte)]

    def compute() -> ir.TensorProtocol:
        out = np.empty((planes, *shape), np.uint8)
        for plane in range(planes):
            done = 0
            for _, block in blocks(tensor, granule=packing.per_byte):
                packed = packing.pack(_plane(block, plane, planes))
                out[plane, done : done + packed.size] = packed
                done += packed.size
            assert done == shape[0], f"{tensor.name}: {done} of {shape[0]} bytes packed"
        return ir.Tensor(out if planes > 1 else out[0])

    return ir.LazyTensor(
        compute,
        dtype=ir.DataType.UINT8,
        shape=ir.Shape(shape if planes == 1 else [planes, *shape]),
    )


def _plane(codes: NDArray[Any], plane: int, planes: int) -> NDArray[Any]:
    """The signs that weigh 2**(planes - 1 - plane): bits of (code + 2**planes - 1) / 2."""
    if planes == 1:
        return codes
    levels = (codes.astype(np.int16) + 2**planes - 1) // 2
    signs: NDArray[Any] = (levels >> (planes - 1 - plane)) % 2 * 2 - 1
    return signs


def _summed(
    inserter: Inserter, before: ir.Node, signs: ir.Value, planes: int, dims: list[int]
) -> ir.Value:
    """2**i * sign_i, added up over the planes, as int8 (in int32: ONNX Runtime multiplies no
    int8).
    """
    powers = inserter.constant(
        "powers", 2 ** np.arange(planes, dtype=np.int32)[::-1].reshape(-1, 1, 1)
    )
    wide = _step(inserter, before, "Cast", [signs], ir.DataType.INT32, [planes, *dims])
    weighed = _step(
        inserter, before, "Mul", [wide, powers], ir.DataType.INT32, [planes, *dims]
    )
    axes = inserter.constant("axis", np.array([0]))
    total = _step(
        inserter,
        before,
        "ReduceSum",
        [weighed, axes],
        ir.DataType.INT32,
        dims,
        {"keepdims": 0},
    )
    return _step(inserter, before, "Cast", [total], ir.DataType.INT8, dims)


def _table(inserter: Inserter, packing: Packing) -> ir.Value:
    """The graph's table for this packing; its name is kept in `graph.meta`."""
    key = f"{packing.key}_table"
    known = inserter.graph.initializers.get(inserter.graph.meta.get(key, ""))
    if known is None:
        known = inserter.initializer(key, ir.Tensor(packing.table()))
        inserter.graph.meta[key] = known.name
    return known


def _reshaped(
    inserter: Inserter, before: ir.Node, value: ir.Value, dims: list[int]
) -> ir.Value:
    shape = inserter.constant("shape", np.array(dims))
    return _step(inserter, before, "Reshape", [value, shape], ir.DataType.INT8, dims)


def _step(
    inserter: Inserter,
    before: ir.Node,
    op: str,
    inputs: list[ir.Value],
    dtype: ir.DataType,
    dims: list[int],
    attributes: dict[str, int] | None = None,
) -> ir.Value:
    cast = {"to": int(dtype)} if op == "Cast" else None
    node = inserter.step(op, inputs, dtype, dims, attributes or cast)
    inserter.graph.insert_before(before, node)
    return node.outputs[0]
