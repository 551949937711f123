"""Spellings that the int8 kernels want, each equal to what it replaces."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import onnx_ir as ir

from .._core.graph import Names
from .inserter import Inserter, take_over
from .layers import int_attribute


def mean_to_pool(graph: ir.Graph, names: Names) -> int:
    """ReduceMean over H, W of (N, C, H, W) -> GlobalAveragePool (-> Flatten): only that has an int8
    kernel.
    """
    count = 0
    for node in list(graph):
        if node.op_type != "ReduceMean" or node.domain not in ("", "ai.onnx"):
            continue
        value = node.inputs[0]
        if (
            value is None
            or value.shape is None
            or len(value.shape) != 4
            or _axes(node) not in ({2, 3}, {-1, -2})
        ):
            continue
        inserter = Inserter(graph, names)
        old = node.outputs[0]
        n, c = value.shape[0], value.shape[1]
        f32 = value.dtype or ir.DataType.FLOAT
        pool = inserter.node(
            "GlobalAveragePool", [value], "pool", f32, ir.Shape([n, c, 1, 1])
        )
        new = [pool]
        if not int_attribute(node, "keepdims", 1):
            new.append(
                inserter.node(
                    "Flatten", [pool.outputs[0]], "flat", f32, old.shape, {"axis": 1}
                )
            )
        node.prepend(new)
        take_over(node, new[-1])
        count += 1
    return count


def _axes(node: ir.Node) -> set[int]:
    attribute = node.attributes.get("axes")
    if attribute is not None:
        return set(attribute.as_ints())
    value = node.inputs[1] if len(node.inputs) > 1 else None
    if value is None or value.const_value is None or value.is_graph_input():
        return set()
    return set(np.asarray(value.const_value.numpy()).reshape(-1).tolist())


def drop_unused_initializers(graphs: Iterable[ir.Graph | ir.Function]) -> int:
    """Remove initializers that nothing reads and that no caller may set."""
    count = 0
    for graph in graphs:
        if not isinstance(graph, ir.Graph):
            continue
        for name, value in list(graph.initializers.items()):
            if (
                not value.uses()
                and not value.is_graph_input()
                and not value.is_graph_output()
            ):
                del graph.initializers[name]
                count += 1
    return count
