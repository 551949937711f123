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
    # a node need have no name: then it goes by its output's
    shown = node.name or _output_name(node)
    if shown and not _is_numbered(shown, node.op_type):
        return shown
    weight = _weight_of(node)
    path = module_path(node)
    if path and weight is None:
        # one of several operations within a module
        operation = _scopes(node)[-1]
        return f"{path}.{operation}"
    if path:
        return path
    return _path_of_weight(weight, node.op_type) or shown


def _output_name(node: ir.Node) -> str:
    """Name of a node's first output; "" where it has none."""
    if not node.outputs:
        return ""
    return node.outputs[0].name or ""


def module_path(node: ir.Node) -> str:
    """Module of torch that a node comes from, such as `layer1.0.conv1`; "" if none is noted."""
    scopes = _scopes(node)
    if len(scopes) < 2:
        return ""
    # the last is the operation itself, the one before it its module
    found = scopes[-2]
    if found.startswith("_empty_nn_module_stack"):
        return ""
    return found


def _scopes(node: ir.Node) -> list[str]:
    quoted = node.metadata_props.get(SCOPES, "")
    scopes = re.findall(r"'([^',]*)'", quoted)
    if scopes:
        return scopes
    namespace = node.metadata_props.get(NAMESPACE, "")
    names = []
    for part in namespace.split("/"):
        name, _, _ = part.partition(":")
        names.append(name.strip())
    return names


def _is_numbered(name: str, op_type: str) -> bool:
    """True if a name is but an operator's, or counted up by an exporter."""
    operator = op_type.lower()
    if name.lower() == operator:
        return True
    if name.startswith(("node_", "onnx::", "val_")):
        return True
    stem = re.sub(r"_?\d+$", "", name)
    return stem.lower() in ("", operator)


def _weight_of(node: ir.Node) -> ir.Value | None:
    """The initializer that a node's second input is, or is made of; None where there is none."""
    if len(node.inputs) < 2:
        return None
    value = node.inputs[1]
    for _ in range(FARTHEST):
        if value is None:
            return None
        producer = value.producer()
        if producer is None or not producer.inputs:
            break
        value = producer.inputs[0]
    if value is None or value.const_value is None:
        return None
    return value


def _path_of_weight(weight: ir.Value | None, op_type: str) -> str:
    """Name of a weight without what only weights have; "" if it says nothing either."""
    if weight is None:
        return ""
    name = weight.name or ""
    if _is_numbered(name, op_type):
        return ""
    return _OF_WEIGHT.sub("", name)
