"""Names of layers for people: by module or weight where an exporter's own name says nothing.

`node_conv2d_3`, `Conv_12` and `onnx::MatMul_214` are numbers; what a user knows is
`encoder.layers.3.conv1`.
"""

from __future__ import annotations

import re

import onnx_ir as ir

SCOPES = "pkg.torch.onnx.name_scopes"
"""Metadata of torch's exporter: names of the modules around a node, outermost first, then its own.
"""

NAMESPACE = "namespace"
"""Metadata of torch's exporter: `name: type` of the same, between slashes."""

FARTHEST = 4
"""Nodes between a layer and its weight, at most: Transpose, Cast, DequantizeLinear."""

_OF_WEIGHT = re.compile(r"\.(weight|kernel)(_\w+)?$")
"""End of a weight's name that its module's name lacks."""


def layer_name(node: ir.Node) -> str:
    """Name by which a user knows a node, as far as its file has one; "" of one without outputs."""
    own = node.name or ""
    output = (node.outputs[0].name if node.outputs else "") or ""
    # a node need have no name: then it goes by its output's
    shown = own or output
    if shown and not _is_numbered(shown, node.op_type):
        return shown
    weight = _weight_of(node)
    path = module_path(node)
    if path and weight is None:
        # one of several operations within a module
        return f"{path}.{_scopes(node)[-1]}"
    return path or _path_of_weight(weight, node.op_type) or shown


def module_path(node: ir.Node) -> str:
    """Module of torch that a node comes from, such as `layer1.0.conv1`; "" if none is noted."""
    scopes = _scopes(node)
    # the last is the operation itself, the one before it its module
    found = scopes[-2] if len(scopes) > 1 else ""
    return "" if found.startswith("_empty_nn_module_stack") else found


def _scopes(node: ir.Node) -> list[str]:
    scopes = re.findall(r"'([^',]*)'", node.metadata_props.get(SCOPES, ""))
    if scopes:
        return scopes
    parts = node.metadata_props.get(NAMESPACE, "").split("/")
    return [part.partition(":")[0].strip() for part in parts]


def _is_numbered(name: str, op_type: str) -> bool:
    """True if a name is but an operator's, or counted up by an exporter."""
    if name.lower() == op_type.lower() or name.startswith(("node_", "onnx::", "val_")):
        return True
    stem = re.sub(r"_?\d+$", "", name)
    return stem.lower() in ("", op_type.lower())


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The initializer that a node's second input is, or is made of; None where there is none."""
    value = node.inputs[1] if len(node.inputs) > 1 else None
    for _ in range(FARTHEST):
        producer = None if value is None else value.producer()
        if producer is None or not producer.inputs:
            break
        value = producer.inputs[0]
    return None if value is None or value.const_value is None else value


def _path_of_weight(weight: ir.Value | None, op_type: str) -> str:
    """Name of a weight without what only weights have; "" if it says nothing either."""
    name = "" if weight is None else weight.name or ""
    return "" if _is_numbered(name, op_type) else _OF_WEIGHT.sub("", name)
