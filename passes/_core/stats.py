"""Figures of a model as it stands: parameters, zeros, nodes, multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .graph import all_nodes, initializers, refresh_shapes, subgraphs
from .infer import infer_types
from .lazy import map_blocks
from .normalize import constant_tensor
from .ops import MICROSOFT, RECURRENT, STANDARD_DOMAINS, is_standard
from .tabular import ML, held_numbers

NOT_PARAMETERS = {ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING}
"""Types that hold shapes, axes, masks and texts, not parameters."""


@dataclass(frozen=True)
class ModelStats:
    """Counts over all graphs.

    `params`: elements of initializers and tensor Constants (not int64, bool, string), and floats in
    attributes of ai.onnx.ml. `nonzero`:
    those that are not zero, None if not counted. `nodes`: with those of subgraphs and functions.
    `macs`: multiply-accumulates of one run with symbolic dims taken as 1, the larger branch of an
    If, one turn of a Loop or Scan; None where a shape is unknown. `ops`: op type (with its domain,
    unless standard) to count, most frequent first.
    """

    params: int
    nonzero: int | None
    nodes: int
    macs: int | None
    ops: dict[str, int]


def model_stats(
    model: ir.Model, count_nonzero: bool = True, count_macs: bool = True
) -> ModelStats:
    """Figures of a model; `count_nonzero=False` leaves the weights unread.

    `count_macs=False`: the model is not cloned, nor its shapes inferred.

    Weights are streamed, never held whole.
    """
    tensors = [t for t in _tensors(model) if t.dtype not in NOT_PARAMETERS]
    nonzero = None
    if count_nonzero:
        nonzero = sum(_nonzero(tensor) for tensor in tensors)
    ops = Counter(_op_name(node) for node in all_nodes(model))
    return ModelStats(
        params=sum(tensor.size for tensor in tensors),
        nonzero=nonzero,
        nodes=ops.total(),
        macs=model_macs(model) if count_macs else None,
        ops=dict(ops.most_common()),
    )


def _op_name(node: ir.Node) -> str:
    if is_standard(node):
        return node.op_type
    return f"{node.domain}.{node.op_type}"


def model_macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of the main graph; shapes not stated are inferred, on a clone."""
    count = graph_macs(model.graph)
    if count is not None and not _has_computed_dims(model.graph):
        return count
    if count is None and not any(_lacks_shape(node) for node in model.graph):
        return None
    sample = _of_ones(model)
    of_sample = graph_macs(sample.graph)
    if of_sample is not None and _has_room(sample.graph):
        return of_sample
    if count is None:
        # types and shapes of the model itself stay as they are
        inferred = model.clone()
        infer_types(inferred, data_prop=True)
        count = graph_macs(inferred.graph)
    return count


def _of_ones(model: ir.Model) -> ir.Model:
    """A clone whose inputs have axes of one for symbols, and whose other shapes follow from them.

    An axis of batch x heads is as long as there are heads.
    """
    clone = model.clone()
    for value in clone.graph.inputs:
        if value.shape is not None:
            value.shape = ir.Shape(_sizes(value))
    for value in clone.graph.outputs:
        if value.producer() is not None:
            value.type = None
            value.shape = None
    refresh_shapes(clone)
    return clone


def _lacks_shape(node: ir.Node) -> bool:
    return any(value.shape is None for value in node.outputs)


def _has_computed_dims(graph: ir.Graph) -> bool:
    """True if a node that is counted makes an axis of open size that no input has by that name."""
    named = set[int | ir.SymbolicDim]()
    for value in graph.inputs:
        named.update(value.shape or ())
    for node in graph:
        if node.op_type not in _MACS:
            continue
        for dim in node.outputs[0].shape or ():
            if not isinstance(dim, int) and dim not in named:
                return True
    return False


def _has_room(graph: ir.Graph) -> bool:
    """True unless an axis is none long: a window that is larger than the one element of an axis."""
    for node in graph:
        for value in node.outputs:
            if any(isinstance(dim, int) and dim < 1 for dim in value.shape or ()):
                return False
    return True


def graph_macs(graph: ir.Graph) -> int | None:
    """Multiply-accumulates of one run of `graph` and its subgraphs; None for an unknown shape."""
    total = 0
    for node in graph:
        count = node_macs(node)
        if count is None:
            return None
        total += count
    return total


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one node, symbolic dims as 1.

    0 for ops without, None where a shape is unknown.
    """
    # an op of the same name in another domain may be anything
    if node.op_type in _MACS and node.domain in DOMAINS:
        try:
            return _MACS[node.op_type](node)
        except _UnknownShapeError:
            return None
    largest = 0
    for graph in subgraphs(node):
        count = graph_macs(graph)
        if count is None:
            return None
        # one branch of an If runs; a Loop or Scan has one body
        largest = max(largest, count)
    return largest


class _UnknownShapeError(Exception):
    pass


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in initializers(model):
        assert value.const_value is not None
        yield value.const_value
    for node in all_nodes(model):
        if is_standard(node, "Constant"):
            tensor = constant_tensor(node)
            if tensor is not None:
                yield tensor
        yield from held_numbers(node)


def _nonzero(tensor: ir.TensorProtocol) -> int:
    return sum(map_blocks(_nonzero_of, tensor))


def _nonzero_of(block: NDArray[Any], start: int) -> int:
    # numpy counts true values ten times as fast as floats, and compares without the GIL
    is_nonzero = block != 0
    return int(np.count_nonzero(is_nonzero))


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise _UnknownShapeError
    return _sizes(value)


def _sizes(value: ir.Value) -> list[int]:
    """Sizes of the axes of a value, of symbolic ones 1."""
    return [dim if isinstance(dim, int) else 1 for dim in value.shape or ()]


def _size(value: ir.Value | None) -> int:
    return prod(_dims(value))


def _conv(weight: int) -> Callable[[ir.Node], int]:
    """Output elements times the weights that each sums over.

    `weight`: its input. Shape (M, C / group, *K) gives C / group * prod(K).
    """

    def count(node: ir.Node) -> int:
        outputs = _size(node.outputs[0])
        summed = _dims(node.inputs[weight])[1:]
        return outputs * prod(summed)

    return count


def _conv_transpose(node: ir.Node) -> int:
    """Input elements times the weights that each meets.

    Shape (C, M / group, *K) of the weight gives M / group * prod(K).
    """
    inputs = _size(node.inputs[0])
    met = _dims(node.inputs[1])[1:]
    return inputs * prod(met)


def _matmul(node: ir.Node) -> int:
    """Output elements times the summed length, which either input tells."""
    first, second = node.inputs[:2]
    # a scalar is no input of MatMul, but files may say so
    summed = (_dims(first) or [1])[-1]
    is_open = first is not None and first.shape and not isinstance(first.shape[-1], int)
    if is_open and second is not None and second.shape:
        # behind a computed Reshape only the weight knows
        summed = _sizes(second)[-2:][0]
    return _size(node.outputs[0]) * summed


def _gemm(node: ir.Node) -> int:
    """Output elements times the summed length, of the first input; matrices may be transposed."""
    dims = _dims(node.inputs[0])
    is_transposed = node.attributes.get_int("transA", 0)
    summed = dims[-2] if is_transposed else dims[-1]
    return _size(node.outputs[0]) * summed


def _recurrent(node: ir.Node) -> int:
    """Steps and batch of X (T, B, I) times all weights W (D, G*H, I) and R (D, G*H, H).

    Integer forms have them with the last two axes the other way round.
    """
    steps_and_batch = _dims(node.inputs[0])[:2]
    weights = _size(node.inputs[1]) + _size(node.inputs[2])
    return prod(steps_and_batch) * weights


def _attention(node: ir.Node) -> int:
    """Products of queries with keys (.., T, d), and of the weights with values, as many as keys."""
    if node.domain == MICROSOFT:
        return _packed_attention(node)
    length = _dims(node.inputs[1])[-2]
    elements = _size(node.inputs[0]) + _size(node.outputs[0])
    return elements * length


def _packed_attention(node: ir.Node) -> int:
    """Input (N, L, C) times a weight (C, 3*h*d), then attention of L positions."""
    _, length, _ = _dims(node.inputs[0])
    *_, columns = _dims(node.inputs[1])
    rows = _size(node.inputs[0])
    return rows * columns + 2 * _size(node.outputs[0]) * length


def _heads_attention(node: ir.Node) -> int:
    """Attention of separate queries and keys, or of all three on one axis (N, L, width)."""
    if len(node.inputs) > 1 and node.inputs[1] is not None:
        length = _dims(node.inputs[1])[-2]
    else:
        length = _dims(node.inputs[0])[1]
    return 2 * _size(node.outputs[0]) * length


def _held(*attributes: str) -> Callable[[ir.Node], int]:
    """Samples times the factors that an operator of ai.onnx.ml holds in these attributes."""

    def count(node: ir.Node) -> int:
        dims = _dims(node.inputs[0])
        samples = dims[0] if len(dims) > 1 else 1
        factors = sum(len(node.attributes.get_floats(name, ())) for name in attributes)
        return samples * factors

    return count


_MACS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "QGemm": _gemm,
    "MatMul": _matmul,
    "FusedGemm": _gemm,
    "FusedMatMul": _gemm,
    "FusedMatMulActivation": _gemm,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulNBits": _matmul,
    "QLinearMatMul": _matmul,
    "Attention": _attention,
    "MultiHeadAttention": _heads_attention,
    "GroupQueryAttention": _heads_attention,
    **dict.fromkeys((*RECURRENT, "DynamicQuantizeLSTM"), _recurrent),
    **dict.fromkeys(("LinearClassifier", "LinearRegressor"), _held("coefficients")),
    # a product with every support vector, then one of the results with the coefficients
    **dict.fromkeys(
        ("SVMClassifier", "SVMRegressor"), _held("support_vectors", "coefficients")
    ),
}
"""Multiply-accumulates of a node by its op, quantized and fused forms among them."""

DOMAINS = (*STANDARD_DOMAINS, MICROSOFT, ML)
"""Domains whose ops the table means."""
