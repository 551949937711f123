"""Constants of a graph, initializers and Constant nodes alike, and the ops that pass them on."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import onnx_ir as ir

from ...passes._core.graph import subgraphs
from ...passes._core.ops import COPIES, VIEWS

PASSING = COPIES | VIEWS | {"Transpose", "Slice", "Concat", "Expand", "Cast"}
"""Ops whose result is still the same weight: its users decide if it is trained.

Less than `MOVES` of passes/_core/ops.py, since Gather and Split learn by their data, and Cast on
top: it changes the type of a weight, not what it stands for.
"""


def constants_of(model: ir.Model) -> Iterator[tuple[str, ir.Value, ir.TensorProtocol]]:
    """Yield (graph name, value, tensor) of every constant that callers cannot override."""
    # Breadth first, functions before subgraphs. Parameters are named and ordered as
    # they are met here, and stored states of optimizers follow that order.
    waiting: deque[ir.Graph | ir.Function] = deque()
    waiting.append(model.graph)
    waiting.extend(model.functions.values())
    while waiting:
        graph = waiting.popleft()
        name = graph.name or ""
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                tensor = value.const_value
                if tensor is not None and not _is_overridable(value, model):
                    yield name, value, tensor
        for node in graph:
            if node.op_type == "Constant":
                tensor = tensor_of(node)
                if tensor is not None:
                    yield name, node.outputs[0], tensor
            waiting.extend(subgraphs(node))


def _is_overridable(value: ir.Value, model: ir.Model) -> bool:
    """Return whether callers may give an initializer as an input."""
    # Before IR 4 every initializer had to be listed as an input, and no runtime let
    # callers override it.
    lists_all = model.ir_version is not None and model.ir_version < 4
    return value.is_graph_input() and not lists_all


def tensor_of(node: ir.Node) -> ir.TensorProtocol | None:
    """Return the dense numeric tensor of a Constant node; None for text and sparse tensors."""
    attribute = node.attributes.get("value")
    if (
        attribute is not None
        and not attribute.is_ref()
        and attribute.type == ir.AttributeType.TENSOR
    ):
        return attribute.as_tensor()
    floats = node.attributes.get("value_floats")
    if floats is not None and not floats.is_ref():
        return ir.Tensor(np.array(floats.as_floats(), np.float32))
    return None


def stored_tensor(value: ir.Value) -> ir.TensorProtocol:
    """Return the tensor of an initializer or of a Constant node's output."""
    producer = value.producer()
    tensor = value.const_value if producer is None else tensor_of(producer)
    assert tensor is not None, f"{value.name} is not constant"
    return tensor
