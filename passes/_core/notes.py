"""Metadata and doc strings that exporters leave for people in a model, and no runtime reads."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import onnx_ir as ir

from .graph import all_graphs

Holder = ir.Graph | ir.Function | ir.Node | ir.Value


def drop_notes(model: ir.Model, ports: bool = True) -> Counter[str]:
    """Remove the metadata and doc strings of graphs, functions, nodes and values; count what went.

    Names, and what the model itself and its tensors say, stay; so do the doc strings of inputs and
    outputs, unless `ports`. Counts: `metadata` (entries), `doc_strings`.
    """
    counts = Counter(metadata=0, doc_strings=0)
    # users read those of the interface
    described = set() if ports else {*model.graph.inputs, *model.graph.outputs}
    for graph in all_graphs(model):
        for holder in _holders(graph):
            counts["metadata"] += len(holder.metadata_props)
            holder.metadata_props.clear()
            if holder.doc_string and holder not in described:
                counts["doc_strings"] += 1
                holder.doc_string = None
    return counts


def _holders(graph: ir.Graph | ir.Function) -> Iterator[Holder]:
    yield graph
    yield from graph.inputs
    if isinstance(graph, ir.Graph):
        yield from graph.initializers.values()
    for node in graph:
        yield node
        yield from node.outputs
