"""Figures of a model as it stands: parameters, zeros, nodes, multiply-accumulates."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from .graph import all_nodes, initializers
from .infer import infer_types
from .lazy import blocks
from .normalize import constant_tensor

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
    """The figures of `model`; `count_nonzero=False` leaves the weights unread. Streams, never holds
    a weight whole.
    """
    tensors = [t for t in _tensors(model) if t.dtype not in NOT_PARAMETERS]
    ops = Counter(
        f"{n.domain}.{n.op_type}" if n.domain not in ("", "ai.onnx") else n.op_type
        for n in all_nodes(model)
    )
    return ModelStats(
        params=sum(t.size for t in tensors),
        nonzero=sum(map(_nonzero, tensors)) if count_nonzero else None,
        nodes=ops.total(),
        macs=model_macs(model),
        ops=dict(ops.most_common()),
    )


def model_macs(model: ir.Model) -> int | None:
    """Those of the main graph; shapes that the file does not state are inferred, on a clone."""
    count = graph_macs(model.graph)
    if count is None and any(
        v.shape is None for node in model.graph for v in node.outputs
    ):
        inferred = model.clone()
        infer_types(inferred, data_prop=True)
        count = graph_macs(inferred.graph)
    return count


def graph_macs(graph: ir.Graph) -> int | None:
    """Multiply-accumulates of one run of `graph`, subgraphs included; None where a shape is
    unknown.
    """
    total = 0
    for node in graph:
        count = node_macs(node)
        if count is None:
            return None
        total += count
    return total


def node_macs(node: ir.Node) -> int | None:
    """Multiply-accumulates of one node, symbolic dims as 1; 0 for ops without, None where a shape
    is unknown.
    """
    if node.op_type in _MACS and node.domain in ("", "ai.onnx", "com.microsoft"):
        try:
            return _MACS[node.op_type](node)
        except _UnknownShapeError:
            return None
    branches = [graph_macs(graph) for graph in _subgraphs(node)]
    if any(count is None for count in branches):
        return None
    return max((count for count in branches if count is not None), default=0)


class _UnknownShapeError(Exception):
    pass


def _subgraphs(node: ir.Node) -> Iterator[ir.Graph]:
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            yield attribute.as_graph()
        elif attribute.type == ir.AttributeType.GRAPHS:
            yield from attribute.as_graphs()


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for value in initializers(model):
        assert value.const_value is not None
        yield value.const_value
    for node in all_nodes(model):
        if node.op_type == "Constant" and node.domain in ("", "ai.onnx"):
            tensor = constant_tensor(node)
            if tensor is not None:
                yield tensor


def _nonzero(tensor: ir.TensorProtocol) -> int:
    return sum(int(np.count_nonzero(block)) for _, block in blocks(tensor))


def _dims(value: ir.Value | None) -> list[int]:
    if value is None or value.shape is None:
        raise _UnknownShapeError
    return [d if isinstance(d, int) else 1 for d in value.shape]


def _conv(weight: int) -> Callable[[ir.Node], int]:
    """Output elements times the weights that each sums over: weight (M, C/group, *K) gives C/group
    * prod(K).
    """
    return lambda node: (
        prod(_dims(node.outputs[0])) * prod(_dims(node.inputs[weight])[1:])
    )


def _conv_transpose(node: ir.Node) -> int:
    """Every input element meets every weight of its channel: weight (C, M/group, *K) gives M/group
    * prod(K).
    """
    return prod(_dims(node.inputs[0])) * prod(_dims(node.inputs[1])[1:])


def _matmul(node: ir.Node) -> int:
    """Output elements times the summed length, the last axis of the first input."""
    return prod(_dims(node.outputs[0])) * (_dims(node.inputs[0]) or [1])[-1]


def _gemm(node: ir.Node) -> int:
    rows = _dims(node.inputs[0])
    summed = rows[0] if node.attributes.get_int("transA", 0) else rows[-1]
    return prod(_dims(node.outputs[0])) * summed


def _recurrent(node: ir.Node) -> int:
    """Steps and batch of X (T, B, I) times all weights W (D, G*H, I) and R (D, G*H, H)."""
    return prod(_dims(node.inputs[0])[:2]) * (
        prod(_dims(node.inputs[1])) + prod(_dims(node.inputs[2]))
    )


_MACS: dict[str, Callable[[ir.Node], int]] = {
    "Conv": _conv(1),
    "FusedConv": _conv(1),
    "ConvInteger": _conv(1),
    "QLinearConv": _conv(3),
    "ConvTranspose": _conv_transpose,
    "Gemm": _gemm,
    "QGemm": _gemm,
    "MatMul": _matmul,
    "FusedMatMul": _matmul,
    "MatMulInteger": _matmul,
    "MatMulIntegerToFloat": _matmul,
    "DynamicQuantizeMatMul": _matmul,
    "MatMulNBits": _matmul,
    "QLinearMatMul": _matmul,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
