"""Ops without a kernel, as the function of simpler ops that the ONNX standard itself gives them."""

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
    """The body of an op's schema for this node; None if the standard has none."""
    schema = schema_of(domain, node.op_type, opset)
    if schema is None:
        return None
    if schema.has_function:
        return _fixed(schema, domain, opset)
    if schema.has_context_dependent_function:
        return _dependent(schema, node, domain, opset, attributes, inputs)
    return None


def _fixed(schema: Any, domain: str, opset: int) -> ir.Function | None:
    versions = [
        v for v in schema.function_opset_versions if v <= opset
    ] or schema.function_opset_versions
    data = schema.get_function_with_opset_version(
        max(versions) if versions[0] <= opset else versions[0]
    )
    return _function(data, schema, domain, opset)


def _dependent(
    schema: Any,
    node: ir.Node,
    domain: str,
    opset: int,
    attributes: dict[str, Any],
    inputs: list[Known | None],
) -> ir.Function | None:
    resolved = [
        ir.Attr(name, node.attributes[name].type, value)
        for name, value in attributes.items()
    ]
    plain = ir.Node(domain, node.op_type, [], resolved, num_outputs=len(node.outputs))
    proto = ir.to_proto(plain)
    proto.input.extend(
        f"i{n}" if known is not None else "" for n, known in enumerate(inputs)
    )
    del proto.output[:]
    proto.output.extend(
        "" if value.name == "" else f"o{n}" for n, value in enumerate(node.outputs)
    )
    types = [_type_of(known).SerializeToString() for known in inputs]
    versions = [
        v for v in schema.context_dependent_function_opset_versions if v <= opset
    ]
    if not versions:
        return None
    data = schema.get_context_dependent_function_with_opset_version(
        max(versions), proto.SerializeToString(), types
    )
    return _function(data, schema, domain, opset)


def _type_of(known: Known | None) -> onnx.TypeProto:
    proto = onnx.TypeProto()
    if known is None:
        return proto
    if known.type is not None and not isinstance(known.type, ir.TensorType):
        return ir.serde.serialize_type(known.type)
    proto.tensor_type.elem_type = int(known.dtype or 0)
    dims = known.shape if known.constant is None else known.constant.shape
    if dims is None:
        return proto
    proto.tensor_type.shape.SetInParent()
    for dim in dims:
        entry = proto.tensor_type.shape.dim.add()
        if isinstance(dim, int):
            entry.dim_value = dim
    return proto


def _function(data: bytes, schema: Any, domain: str, opset: int) -> ir.Function | None:
    if not data:
        return None
    proto = onnx.FunctionProto.FromString(data)
    _make_unwanted(proto)
    function = ir.from_proto(proto)
    assert isinstance(function, ir.Function)
    function.opset_imports.setdefault(domain, opset)
    for name, attribute in schema.attributes.items():
        if attribute.default_value.type:
            function.attributes[name] = ir.from_proto(attribute.default_value)
    return function


def _make_unwanted(proto: onnx.FunctionProto) -> None:
    """Bodies leave out outputs that the node does not want; something must stand in their place,
    read by nobody.
    """
    made = {name for node in proto.node for name in node.output} | {*proto.input}
    for name in proto.output:
        if name not in made:
            proto.node.append(
                onnx.helper.make_node("Identity", [proto.output[0]], [name])
            )
