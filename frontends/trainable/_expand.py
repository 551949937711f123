"""Expansion of ops without a torch kernel into the function body that the ONNX standard defines."""

from __future__ import annotations

from typing import Any

import onnx
import onnx.defs
import onnx_ir as ir

from ._program import Known
from ._types import schema_of


def function_of(
    domain: str,
    node: ir.Node,
    opset: int,
    attributes: dict[str, Any],
    inputs: list[Known | None],
) -> ir.Function | None:
    """Return the body of an op's schema for this node; None if the standard has none."""
    schema = schema_of(domain, node.op_type, opset)
    if schema is None:
        return None
    if schema.has_function:
        return _fixed(schema, domain, opset)
    if schema.has_context_dependent_function:
        return _dependent(
            schema,
            node,
            domain,
            opset,
            attributes,
            inputs,
        )
    return None


def _fixed(schema: Any, domain: str, opset: int) -> ir.Function | None:
    """Return a body that is the same for every node."""
    versions = schema.function_opset_versions
    fitting = [version for version in versions if version <= opset]
    # Bodies may use ops that are newer than the op itself; a model older than all of
    # them gets the first.
    version = max(fitting) if fitting else versions[0]
    data = schema.get_function_with_opset_version(version)
    return _function(data, schema, domain, opset)


def _dependent(
    schema: Any,
    node: ir.Node,
    domain: str,
    opset: int,
    attributes: dict[str, Any],
    inputs: list[Known | None],
) -> ir.Function | None:
    """Return a body that onnx writes for this node: for its attributes, inputs and their types."""
    versions = schema.context_dependent_function_opset_versions
    fitting = [version for version in versions if version <= opset]
    if not fitting:
        return None
    proto = _node_proto(node, attributes, inputs)
    types = [_type_of(known).SerializeToString() for known in inputs]
    data = schema.get_context_dependent_function_with_opset_version(
        max(fitting),
        proto.SerializeToString(),
        types,
    )
    return _function(data, schema, domain, opset)


def _node_proto(
    node: ir.Node, attributes: dict[str, Any], inputs: list[Known | None]
) -> onnx.NodeProto:
    """Write a node on its own; empty names say which inputs and outputs it leaves out."""
    resolved = []
    for name, value in attributes.items():
        kind = node.attributes[name].type
        resolved.append(ir.Attr(name, kind, value))
    outputs = len(node.outputs)
    plain = ir.Node(
        node.domain,
        node.op_type,
        [],
        resolved,
        num_outputs=outputs,
    )
    proto = ir.to_proto(plain)
    for index, known in enumerate(inputs):
        name = "" if known is None else f"i{index}"
        proto.input.append(name)
    del proto.output[:]
    for index, value in enumerate(node.outputs):
        name = "" if value.name == "" else f"o{index}"
        proto.output.append(name)
    return proto


def _type_of(known: Known | None) -> onnx.TypeProto:
    """Return the type of a value with its shape, as far as they are known."""
    proto = onnx.TypeProto()
    if known is None:
        return proto
    if known.type is not None and not isinstance(known.type, ir.TensorType):
        return ir.serde.serialize_type(known.type)
    proto.tensor_type.elem_type = int(known.dtype or 0)
    dims = known.shape if known.constant is None else known.constant.shape
    if dims is None:
        return proto
    # present even without dims: a scalar's shape is not an unknown one
    proto.tensor_type.shape.SetInParent()
    for dim in dims:
        entry = proto.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
    return proto


def _function(data: bytes, schema: Any, domain: str, opset: int) -> ir.Function | None:
    """Read a body; the schema's defaults become those of the function."""
    if not data:
        return None
    proto = onnx.FunctionProto.FromString(data)
    _make_unwanted(proto)
    function = ir.from_proto(proto)
    assert isinstance(function, ir.Function)
    # in case the body does not import the domain of its own op
    function.opset_imports.setdefault(domain, opset)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            function.attributes[name] = ir.from_proto(attribute.default_value)
    return function


def _make_unwanted(proto: onnx.FunctionProto) -> None:
    """Stand something in for outputs that a body leaves out, since the node does not want them.

    Nobody reads it.
    """
    made = set(proto.input)
    for node in proto.node:
        made.update(node.output)
    for name in proto.output:
        if name not in made:
            copy = onnx.helper.make_node("Identity", [proto.output[0]], [name])
            proto.node.append(copy)
