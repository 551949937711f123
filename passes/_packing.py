"""One-bit weights: +1/-1 stored eight to a byte, unpacked by plain nodes that ONNX Runtime folds when it loads.

    packed uint8 (ceil(n/8),) -> Cast int32 -> Gather(table 256x8 int8) -> Reshape (-> Slice -> Reshape) -> int8 weight
"""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ._graph import Names
from ._lazy import blocks

_TABLE = "sign_table"
"""Key of `graph.meta` that holds the name of the graph's table, and the stem of that name."""


def pack_signs(array: NDArray[Any]) -> NDArray[np.uint8]:
    """The signs of `array`, flat, eight to a byte; sign(0) = sign(-0.0) = +1.

    Shapes: any shape of n elements -> (ceil(n / 8),). Element 8*i + j is bit j (value 2**j) of byte i: 1 for +1,
    0 for -1. Bits after the last element are 0.
    """
    return np.packbits(np.asarray(array).reshape(-1) >= 0, bitorder="little")


def sign_table() -> NDArray[np.int8]:
    """What each byte stands for: (256, 8) int8, row b holds the eight signs that `pack_signs` put in byte b."""
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return (bits.astype(np.int8) * 2 - 1).astype(np.int8)


def packed_weight(
    graph: ir.Graph,
    names: Names,
    value_name: str,
    signs: ir.TensorProtocol | NDArray[Any],
    before: ir.Node,
) -> ir.Value:
    """Store the signs of `signs` packed in `graph` and unpack them in front of the node `before`.

    Shapes: `signs`, float of any shape -> the returned int8 value of +1/-1 has the same shape. The table is one
    initializer a graph. Nothing is computed until the model is written; then one weight's packed bytes are held.
    Opset: 10 or later (Slice with inputs).
    """
    tensor = ir.Tensor(signs) if isinstance(signs, np.ndarray) else signs
    dims = [int(d) for d in tensor.shape.numpy()]
    packed = _initializer(graph, names.fresh(f"{value_name}_packed"), _packed_tensor(tensor))
    index = _step(graph, names, before, "Cast", value_name, [packed], ir.DataType.INT32, [-(-tensor.size // 8)],
                  {"to": int(ir.DataType.INT32)})
    eights = _step(graph, names, before, "Gather", value_name, [_table(graph, names), index], ir.DataType.INT8,
                   [-(-tensor.size // 8), 8])
    if tensor.size % 8:
        flat = _reshaped(graph, names, before, value_name, eights, [-(-tensor.size // 8) * 8])
        bounds = [_integers(graph, names, f"{value_name}_{what}", [at]) for what, at in
                  (("start", 0), ("end", tensor.size))]
        eights = _step(graph, names, before, "Slice", value_name, [flat, *bounds], ir.DataType.INT8, [tensor.size])
    return _reshaped(graph, names, before, value_name, eights, dims)


def _packed_tensor(tensor: ir.TensorProtocol) -> ir.LazyTensor:
    size = -(-tensor.size // 8)

    def compute() -> ir.TensorProtocol:
        out = np.empty(size, np.uint8)
        for start, block in blocks(tensor, granule=8):
            bits = pack_signs(block)
            out[start // 8 : start // 8 + bits.size] = bits
        assert start + block.size == tensor.size, f"{tensor.name}: {start + block.size} of {tensor.size} signs packed"
        return ir.Tensor(out)

    return ir.LazyTensor(compute, dtype=ir.DataType.UINT8, shape=ir.Shape([size]))


def _table(graph: ir.Graph, names: Names) -> ir.Value:
    known = graph.initializers.get(graph.meta.get(_TABLE, ""))
    if known is None:
        known = _initializer(graph, names.fresh(_TABLE), ir.Tensor(sign_table()))
        graph.meta[_TABLE] = known.name
    return known


def _reshaped(graph: ir.Graph, names: Names, before: ir.Node, stem: str, value: ir.Value, dims: list[int]) -> ir.Value:
    shape = _integers(graph, names, f"{stem}_shape", dims)
    return _step(graph, names, before, "Reshape", stem, [value, shape], ir.DataType.INT8, dims)


def _step(
    graph: ir.Graph, names: Names, before: ir.Node, op: str, stem: str, inputs: list[ir.Value],
    dtype: ir.DataType, dims: list[int], attributes: dict[str, Any] | None = None,
) -> ir.Value:
    name = names.fresh(f"{stem}_{op.lower()}")
    node = ir.node(op, inputs, attributes, name=names.fresh(f"{name}_node"))
    output = node.outputs[0]
    output.name, output.shape, output.type = name, ir.Shape(dims), ir.TensorType(dtype)
    graph.insert_before(before, node)
    return output


def _integers(graph: ir.Graph, names: Names, stem: str, values: list[int]) -> ir.Value:
    return _initializer(graph, names.fresh(stem), ir.Tensor(np.array(values, np.int64)))


def _initializer(graph: ir.Graph, name: str, tensor: Any) -> ir.Value:
    tensor.name = name
    value = ir.Value(name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype),
                     const_value=tensor)
    graph.register_initializer(value)
    return value
