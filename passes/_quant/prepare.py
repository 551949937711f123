"""Spellings that the int8 kernels want, each equal to what it replaces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from .._core.graph import Names
from .._core.ops import is_standard
from .inserter import Inserter, take_over


def mean_to_pool(graph: ir.Graph, names: Names) -> int:
    """ReduceMean over H, W of (N, C, H, W) -> GlobalAveragePool (-> Flatten).

    Only that has an int8 kernel. Returns how many were replaced.
    """
    count = 0
    for node in list(graph):
        if not is_standard(node, "ReduceMean"):
            continue
        value = node.inputs[0]
        if value is None or value.shape is None or len(value.shape) != 4:
            continue
        if _axes(node) not in ({2, 3}, {-1, -2}):
            continue
        new = _pool(
            graph,
            names,
            node,
            value,
            value.shape,
        )
        node.prepend(new)
        take_over(node, new[-1])
        count += 1
    return count


def _pool(
    graph: ir.Graph, names: Names, mean: ir.Node, value: ir.Value, shape: ir.Shape
) -> list[ir.Node]:
    """The nodes that stand for a mean over H and W."""
    inserter = Inserter(graph, names)
    dtype = value.dtype or ir.DataType.FLOAT
    pooled = ir.Shape([shape[0], shape[1], 1, 1])
    pool = inserter.node(
        "GlobalAveragePool",
        [value],
        "pool",
        dtype,
        pooled,
    )
    if mean.attributes.get_int("keepdims", 1):
        return [pool]
    old = mean.outputs[0]
    # Flatten, not Squeeze: its axis is an attribute in every opset
    flat = inserter.node(
        "Flatten",
        [pool.outputs[0]],
        "flat",
        dtype,
        old.shape,
        {"axis": 1},
    )
    return [pool, flat]


def _axes(node: ir.Node) -> set[int]:
    """Axes of a reduction; none where they are computed at run time or left out."""
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return set(attribute.as_ints())
    # an input since opset 18
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None or value.is_graph_input():
        return set()
    axes = np.asarray(value.const_value.numpy()).reshape(-1)
    return set(axes.tolist())


def drop_unused_initializers(graphs: Iterable[ir.Graph | ir.Function]) -> int:
    """Remove initializers that nothing reads and that no caller may set; returns how many."""
    count = 0
    for graph in graphs:
        if not isinstance(graph, ir.Graph):
            continue
        for name, value in list(graph.initializers.items()):
            is_port = value.is_graph_input() or value.is_graph_output()
            if not value.uses() and not is_port:
                del graph.initializers[name]
                count += 1
    return count
