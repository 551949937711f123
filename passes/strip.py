"""Taking out of a model what no runtime reads: exporters' traces, doc strings, implied shapes and attributes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._graph import all_graphs


@dataclass(frozen=True)
class Strip(Pass):
    """Remove what no runtime reads: node metadata, doc strings, implied shapes and attributes at their defaults.

    For files that must be small: in a 1-bit ResNet-56 the exporter's stack traces weigh as much as the weights. Put it
    last: shapes of values between nodes are gone from the file until someone infers them again. Metadata of the model
    itself stays, and so do all names.

    Effect: exact. Touches no computation, no tensor and nothing of inputs and outputs but their doc strings.

    Shapes: unchanged.

    Stats: `metadata` (count of entries), `doc_strings` (count), `attributes` (count), `types` (count of values whose
    type and shape any reader infers).

    Source: follows from the ONNX specification: these fields do not take part in evaluation.
    """

    name: ClassVar[str] = "strip"
    effect: ClassVar[Effect] = "exact"

    types: bool = Option(True, "Also drop types and shapes of values between nodes.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        counts = {"metadata": 0, "doc_strings": 0, "attributes": 0, "types": 0}
        for graph in all_graphs(model):
            for holder in (graph, *graph.inputs, *graph.outputs):
                _clear(holder, counts)
            for node in graph:
                _clear(node, counts)
                counts["attributes"] += _drop_defaults(node, graph)
                for value in node.outputs:
                    _clear(value, counts)
                    counts["types"] += self.types and _forget_type(value)
        return PassOutcome(changed=sum(counts.values()), stats=dict(counts))


def _clear(holder: ir.Graph | ir.Function | ir.Node | ir.Value, counts: dict[str, int]) -> None:
    """Metadata and the doc string of one thing."""
    counts["metadata"] += len(holder.metadata_props)
    holder.metadata_props.clear()
    if holder.doc_string:
        counts["doc_strings"] += 1
        holder.doc_string = None


def _drop_defaults(node: ir.Node, graph: ir.Graph | ir.Function) -> int:
    """Attributes of a standard op whose value is the one that the op has without them."""
    version = graph.opset_imports.get("")
    if node.domain not in ("", "ai.onnx") or version is None or not onnx.defs.has(node.op_type):
        return 0
    schema = onnx.defs.get_schema(node.op_type, version)
    implied = [name for name, attribute in node.attributes.items() if _is_default(schema, name, attribute)]
    for name in implied:
        del node.attributes[name]
    return len(implied)


def _is_default(schema: onnx.defs.OpSchema, name: str, attribute: ir.Attr) -> bool:
    known = schema.attributes.get(name)
    if known is None or known.required or attribute.is_ref():
        return False
    if known.default_value.name:  # the schema states a default
        return bool(onnx.helper.get_attribute_value(known.default_value) == _plain(attribute))
    return schema.name in _WINDOWS and name in ("dilations", "strides") and set(attribute.as_ints()) == {1}


_WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
"""Ops whose text, not their schema, gives dilations and strides a default: 1 along each axis."""


def _plain(attribute: ir.Attr) -> object:
    return attribute.value.encode() if isinstance(attribute.value, str) else attribute.value


def _forget_type(value: ir.Value) -> bool:
    if value.is_graph_output() or (value.type is None and value.shape is None):
        return False
    value.type = value.shape = None
    return True
