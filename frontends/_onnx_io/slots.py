"""Places of a model that hold a tensor: initializers and attributes of every graph and function."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from ... import OnnxOptError
from ...passes._core.graph import all_graphs

Setter = Callable[[ir.TensorProtocol], None]


@dataclass
class Slot:
    """A place in a model that holds a tensor, and the function that puts another one there."""

    tensor: ir.TensorProtocol
    put: Setter


def slots_of(model: ir.Model) -> Iterator[Slot]:
    """Every tensor of `model` with its place.

    Errors: OnnxOptError for an initializer without data.
    """
    for graph in all_graphs(model):
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                yield _initializer_slot(value)
        for node in graph:
            # a copy: putting a tensor replaces the attribute
            for attribute in list(node.attributes.values()):
                yield from _attribute_slots(node, attribute)


def _initializer_slot(value: ir.Value) -> Slot:
    if value.const_value is None:
        raise OnnxOptError(
            f"initializer '{value.name}'",
            "has no data",
            "set const_value, or remove it",
        )
    return Slot(value.const_value, initializer_setter(value))


def _attribute_slots(node: ir.Node, attribute: ir.Attr) -> Iterator[Slot]:
    # a reference names an attribute of the function's caller and holds nothing itself
    if attribute.is_ref():
        return
    if attribute.type == ir.AttributeType.TENSOR:
        yield Slot(attribute.as_tensor(), attribute_setter(node, attribute))
    elif attribute.type == ir.AttributeType.TENSORS:
        held = list(attribute.as_tensors())
        for index, tensor in enumerate(tuple(held)):
            yield Slot(tensor, _list_setter(node, attribute, held, index))


def initializer_setter(value: ir.Value) -> Setter:
    """A function that gives an initializer another tensor."""

    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def attribute_setter(node: ir.Node, attribute: ir.Attr) -> Setter:
    """A function that gives a tensor attribute of a node another tensor."""
    name = attribute.name
    doc_string = attribute.doc_string

    def put(tensor: ir.TensorProtocol) -> None:
        node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=doc_string)

    return put


def _list_setter(
    node: ir.Node, attribute: ir.Attr, held: list[ir.TensorProtocol], index: int
) -> Setter:
    """A function that replaces one of the tensors of an attribute; `held` is shared by all."""
    name = attribute.name
    doc_string = attribute.doc_string

    def put(tensor: ir.TensorProtocol) -> None:
        held[index] = tensor
        node.attributes[name] = ir.AttrTensors(name, held, doc_string=doc_string)

    return put
