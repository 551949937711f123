"""Values that separate a graph: all that depends on its inputs passes through them."""

from __future__ import annotations

import onnx_ir as ir


def separators(model: ir.Model) -> list[str]:
    """Values through which all that depends on the inputs passes, in order: the input first if it is alone."""
    place = {inner: index for index, node in enumerate(model.graph) for inner in _with_bodies(node)}
    outputs = set(model.graph.outputs)
    made = {value for value in model.graph.inputs if value.const_value is None}
    found = [value.name or "" for value in made] if len(made) == 1 else []
    for index, node in enumerate(model.graph):
        if not any(value in made for inner in _with_bodies(node) for value in inner.inputs):
            continue
        made.update(node.outputs)
        made = {v for v in made if v in outputs or any(place[user] > index for user, _ in v.uses())}
        only = next(iter(made)) if len(made) == 1 else None
        if only is not None and only in node.outputs and only.dtype == ir.DataType.FLOAT:
            found.append(only.name or "")
    return found


def _with_bodies(node: ir.Node) -> list[ir.Node]:
    """A node and those of its bodies and branches."""
    found = [node]
    for attribute in node.attributes.values():
        if attribute.type == ir.AttributeType.GRAPH:
            found += ir.traversal.RecursiveGraphIterator(attribute.as_graph())
    return found
