"""Removal of parts that no runtime reads: exporters' traces, doc strings, implied attributes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar, Literal

import onnx
import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._core.graph import all_nodes
from ._core.notes import drop_notes
from ._core.ops import is_standard
from ._core.rewrites import permit
from ._core.schemas import schema_of, states_default
from ._core.short_names import shorten_names
from ._packing.constant_graph import is_own_name


@dataclass(frozen=True)
class Strip(Pass):
    """Remove parts that no runtime reads: metadata, doc strings, implied shapes and attributes.

    For files that must be small: in a 1-bit ResNet-56, the exporter's stack traces weigh as much as
    the weights. Put it last: the file then lacks the shapes of values between nodes until someone
    infers them again. Metadata of the model itself stays. Names stay too, unless `names=short`: in
    a file of few bits, names can also weigh more than some weights, but without them reports and
    comparisons no longer find layers.

    Effect: exact. Touches no computation and no tensor; of inputs and outputs, only the doc
    strings.

    Shapes: unchanged.

    Stats: `metadata` (count of entries), `doc_strings` (count), `attributes` (count), `types`
    (count of values whose type and shape any reader can infer), `names` (count of shortened names).

    Source: follows from the ONNX specification: these fields do not take part in evaluation.
    """

    name: ClassVar[str] = "strip"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "entries"

    types: bool = Option(True, "Also drop types and shapes of values between nodes.")

    names: Literal["keep", "short"] = Option(
        "keep",
        "Names of nodes and of values between inputs and outputs: keep them, or give values the "
        "shortest names and nodes none (short).",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        counts = _drop_notes(model)
        counts.update(attributes=0, types=0, names=0)
        for node in all_nodes(model):
            counts["attributes"] += _drop_defaults(node)
            if not self.types:
                continue
            for value in node.outputs:
                counts["types"] += _forget_type(value)
        if self.names == "short":
            counts["names"] = shorten_names(model, is_own_name)
        return PassOutcome(changed=counts.total(), stats=dict(counts))


def _drop_notes(model: ir.Model) -> Counter[str]:
    leave = permit(Strip.name, "notes", "the model")
    if leave is None:
        return Counter(metadata=0, doc_strings=0)
    leave.used()
    return drop_notes(model)


def _drop_defaults(node: ir.Node) -> int:
    """Drop attributes of a standard op that say what it does without them; the number of them."""
    if node.graph is None or not is_standard(node):
        return 0
    version = node.graph.opset_imports.get("")
    schema = None if version is None else schema_of(node.op_type, version)
    if schema is None:
        return 0
    implied = []
    for name, attribute in node.attributes.items():
        if _is_default(schema, attribute):
            implied.append(name)
    leave = permit(Strip.name, "attributes", node)
    if not implied or leave is None:
        return 0
    for name in implied:
        del node.attributes[name]
    leave.used()
    return len(implied)


def _is_default(schema: onnx.defs.OpSchema, attribute: ir.Attr) -> bool:
    if states_default(schema, attribute):
        return True
    if schema.name not in _WINDOWS or attribute.is_ref():
        return False
    if attribute.name not in ("dilations", "strides"):
        return False
    return set(attribute.as_ints()) == {1}


_WINDOWS = ("Conv", "ConvTranspose", "MaxPool", "AveragePool")
"""Ops whose text, not their schema, gives dilations and strides a default: 1 along each axis."""


def _forget_type(value: ir.Value) -> bool:
    # the interface stays
    if value.is_graph_output():
        return False
    if value.type is None and value.shape is None:
        return False
    leave = permit(Strip.name, "type", value)
    if leave is None:
        return False
    value.type = None
    value.shape = None
    leave.used()
    return True
