"""Where a model keeps tensors: initializers and attributes, in the graph, its subgraphs and its
functions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import onnx
import onnx_ir as ir

from ... import OnnxOptError


@dataclass
class Slot:
    """A place in a model that holds a tensor, and how to put another one there."""

    tensor: ir.TensorProtocol
    put: Callable[[ir.TensorProtocol], None]


def slots_of(model: ir.Model) -> Iterator[Slot]:
    """Every tensor of `model` with its place. Error: OnnxOptError for an initializer without
    data.
    """
    graphs: list[ir.Graph | ir.Function] = [*model.graphs()]
    for function in model.functions.values():
        graphs += [function, *function.subgraphs()]
    for graph in graphs:
        if isinstance(graph, ir.Graph):
            for value in graph.initializers.values():
                if value.const_value is None:
                    raise OnnxOptError(
                        f"initializer '{value.name}'",
                        "has no data",
                        "set const_value, or remove it",
                    )
                yield Slot(value.const_value, _initializer_setter(value))
        for node in graph:
            for attribute in list(node.attributes.values()):
                yield from _attribute_slots(node, attribute)


def _initializer_setter(value: ir.Value) -> Callable[[ir.TensorProtocol], None]:
    def put(tensor: ir.TensorProtocol) -> None:
        value.const_value = tensor

    return put


def _attribute_slots(node: ir.Node, attribute: ir.Attr) -> Iterator[Slot]:
    if attribute.is_ref():
        return
    name, doc = attribute.name, attribute.doc_string
    if attribute.type == ir.AttributeType.TENSOR:

        def put(tensor: ir.TensorProtocol) -> None:
            node.attributes[name] = ir.AttrTensor(name, tensor, doc_string=doc)

        yield Slot(attribute.as_tensor(), put)
    elif attribute.type == ir.AttributeType.TENSORS:
        held = list(attribute.as_tensors())

        def put_at(index: int) -> Callable[[ir.TensorProtocol], None]:
            def put(tensor: ir.TensorProtocol) -> None:
                held[index] = tensor
                node.attributes[name] = ir.AttrTensors(name, held, doc_string=doc)

            return put

        for index, tensor in enumerate(list(held)):
            yield Slot(tensor, put_at(index))


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor message of a model that is not parsed into the IR yet; sparse ones as their
    values and indices.
    """
    waiting: list[Any] = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop()
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            for sparse in body.sparse_initializer:
                yield from (sparse.values, sparse.indices)
        for node in body.node:
            for attribute in node.attribute:
                waiting += [attribute.g] if attribute.HasField("g") else []
                waiting += attribute.graphs
                yield from attribute.tensors
                if attribute.HasField("t"):
                    yield attribute.t
                sparse_tensors = [*attribute.sparse_tensors]
                sparse_tensors += (
                    [attribute.sparse_tensor]
                    if attribute.HasField("sparse_tensor")
                    else []
                )
                for sparse in sparse_tensors:
                    yield from (sparse.values, sparse.indices)
