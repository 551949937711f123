"""Figures of a model as it stands: parameters, zeros, nodes, multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from .graph import all_nodes, initializers, subgraphs
from .infer import infer_types
from .lazy import blocks
from .normalize import constant_tensor
from .ops import RECURRENT, STANDARD_DOMAINS, is_standard

NOT_PARAMETERS = {ir.DataType.INT64, ir.DataType.BOOL, ir.DataType.STRING}
"""Types that hold shapes, axes, masks and texts, not parameters."""


@dataclass(frozen=True)
class ModelStats:
    """Counts over all graphs.

    `params`: elements of initializers and tensor Constants (not int64, bool, string). `nonzero`:
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


def model_stats(model: ir.Model, count_nonzero: bool = True) -> ModelStats:
    """Figures of a model; `count_nonzero=False` leaves the weights unread.

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
        macs=model_macs(model),
        ops=dict(ops.most_common()),
    )


def _op_name(node: ir.Node) -> str:
    if is_standard(node):
        return node.op_type
    return f"{node.domain}.{node.op_type}"


def model_macs(model: ir.Model) -> int | None:
    """Multiply-accumulates of the main graph; shapes not stated are inferred, on a clone."""
    count = graph_macs(model.graph)
    if count is not None:
        return count
    if not any(_lacks_shape(node) for node in model.graph):
        return None
    # types and shapes of the model itself stay as they are
    inferred = model.clone()
    infer_types(inferred, data_prop=True)
    return graph_macs(inferred.graph)


def _lacks_shape(node: ir.Node) -> bool:
    return any(value.shape is None for value in node.outputs)


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


def _nonzero(tensor: ir.TensorProtocol) -> int:
    count = 0
    for _, block in blocks(tensor):
        count += int(np.count_nonzero(block))
    return count


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise _UnknownShapeError
    return [dim if isinstance(dim, int) else 1 for dim in value.shape]


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
    """Output elements times the summed length, the last axis of the first input."""
    # a scalar is no input of MatMul, but files may say so
    dims = _dims(node.inputs[0]) or [1]
    summed = dims[-1]
    return _size(node.outputs[0]) * summed


def _gemm(node: ir.Node) -> int:
    """Output elements times the summed length, of the first input; matrices may be transposed."""
    dims = _dims(node.inputs[0])
    is_transposed = node.attributes.get_int("transA", 0)
    summed = dims[-2] if is_transposed else dims[-1]
    return _size(node.outputs[0]) * summed


def _recurrent(node: ir.Node) -> int:
    """Steps and batch of X (T, B, I) times all weights W (D, G*H, I) and R (D, G*H, H)."""
    steps_and_batch = _dims(node.inputs[0])[:2]
    weights = _size(node.inputs[1]) + _size(node.inputs[2])
    return prod(steps_and_batch) * weights


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
    **dict.fromkeys(RECURRENT, _recurrent),
}
"""Multiply-accumulates of a node by its op, quantized and fused forms among them."""

DOMAINS = (*STANDARD_DOMAINS, "com.microsoft")
"""Domains whose ops the table means."""
