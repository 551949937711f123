"""The IR version that a model's content needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import onnx_ir as ir

FOR_TYPE = {
    "FLOAT8E4M3FN": 9,
    "FLOAT8E4M3FNUZ": 9,
    "FLOAT8E5M2": 9,
    "FLOAT8E5M2FNUZ": 9,
    "INT4": 10,
    "UINT4": 10,
    "FLOAT4E2M1": 11,
    "FLOAT8E8M0": 12,
    "INT2": 13,
    "UINT2": 13,
    "FLOAT6E2M3": 14,
    "FLOAT6E3M2": 14,
}
"""The IR version that introduced a tensor type."""

FOR_NOTES = 10
"""The IR version that gave metadata to nodes, values, tensors, graphs and functions."""


def ir_version_of_content(model: ir.Model) -> int:
    """The lowest IR version that can express the tensors and functions of a model.

    Initializers apart from inputs need 4, functions 8, their default attributes 9, overloads of a
    name 10. Metadata is not looked at.
    """
    needed = 1
    for function in model.functions.values():
        needed = max(needed, _for_function(function))
    for graph in _graphs(model):
        if isinstance(graph, ir.Graph):
            # before IR 4 every initializer had to be an input
            for value in graph.initializers.values():
                needed = max(needed, 1 if value.is_graph_input() else 4)
        for dtype in _types(graph):
            needed = max(needed, FOR_TYPE.get(dtype.name, 1))
    return needed


def _for_function(function: ir.Function) -> int:
    if function.overload:
        return 10
    if any(attribute.value is not None for attribute in function.attributes.values()):
        return 9
    return 8


def has_notes(model: ir.Model) -> bool:
    """True if anything below the model itself holds metadata."""
    for graph in _graphs(model):
        holders: list[Any] = [graph, *graph.inputs]
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                holders.append(value)
                # the tensor has metadata of its own
                if value.const_value is not None:
                    holders.append(value.const_value)
        for node in graph:
            holders += [node, *node.outputs]
        if any(holder.metadata_props for holder in holders):
            return True
    return False


def _graphs(model: ir.Model) -> Iterator[ir.Graph | ir.Function]:
    yield from model.graphs()
    for function in model.functions.values():
        yield function
        yield from function.subgraphs()


def _types(graph: ir.Graph | ir.Function) -> Iterator[ir.DataType]:
    """The type of every value and tensor of one graph."""
    values = list(graph.inputs)
    for node in graph:
        values.extend(node.outputs)
    for value in values:
        if value.dtype is not None:
            yield value.dtype
    if isinstance(graph, ir.Graph):
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value.dtype
    for node in graph:
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR and not attribute.is_ref():
                yield attribute.as_tensor().dtype
