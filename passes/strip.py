"""Taking out of a model what no runtime reads: exporters' traces, doc strings, implied shapes and
attributes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx
import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._core.graph import all_nodes
from ._core.notes import drop_notes
from ._core.schemas import is_standard, schema_of, states_default


@dataclass(frozen=True)
class Strip(Pass):
    """Remove what no runtime reads: node metadata, doc strings, implied shapes and attributes at
    their defaults.

    For files that must be small: in a 1-bit ResNet-56 the exporter's stack traces weigh as much as
    the weights. Put it last: shapes of values between nodes are gone from the file until someone
    infers them again. Metadata of the model itself stays, and so do all names.

    Effect: exact. Touches no computation, no tensor and nothing of inputs and outputs but their doc
    strings.

    Shapes: unchanged.

    Stats: `metadata` (count of entries), `doc_strings` (count), `attributes` (count), `types`
    (count of values whose type and shape any reader infers).

    Source: follows from the ONNX specification: these fields do not take part in evaluation.
    """

    name: ClassVar[str] = "strip"
    effect: ClassVar[Effect] = "exact"

    types: bool = Option(True, "Also drop types and shapes of values between nodes.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        counts = drop_notes(model)
        counts.update(attributes=0, types=0)
        for node in all_nodes(model):
            counts["attributes"] += _drop_defaults(node)
            for value in node.outputs if self.types else ():
                counts["types"] += _forget_type(value)
        return PassOutcome(changed=counts.total(), stats=dict(counts))


def _drop_defaults(node: ir.Node) -> int:
    """Attributes of a standard op whose value is the one that the op has without them."""
    version = node.graph.opset_imports.get("") if node.graph is not None else None
    schema = (
        schema_of(node.op_type, version)
        if is_standard(node) and version is not None
        else None
    )
    if schema is None:
        return 0
    implied = [
        name
        for name, attribute in node.attributes.items()
        if _is_default(schema, attribute)
    ]
    for name in implied:
        del node.attributes[name]
    return len(implied)


def _is_default(schema: onnx.defs.OpSchema, attribute: ir.Attr) -> bool:
    if states_default(schema, attribute):
        return True
    windows = (
        schema.name in _WINDOWS
        and attribute.name in ("dilations", "strides")
        and not attribute.is_ref()
    )
    return windows and set(attribute.as_ints()) == {1}


_WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
"""Ops whose text, not their schema, gives dilations and strides a default: 1 along each axis."""


def _forget_type(value: ir.Value) -> bool:
    if value.is_graph_output() or (value.type is None and value.shape is None):
        return False
    value.type = value.shape = None
    return True
