"""Nodes and initializers that decode one constant, before they are part of a graph."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.graph import Names
from .constant_graph import PREFIX

Shared = dict[object, ir.Value]
"""Values that all decoders of a graph use: constants by type, shape and content; nodes by a key."""

PLACEHOLDER = f"{PREFIX}999"
"""Name that costs are counted with."""


class Draft:
    """A decoder under construction: what it would add to a graph, and how many bytes that takes.

    Nothing is named or registered until `commit`, so that alternatives can be compared.
    """

    def __init__(self, shared: Shared) -> None:
        self._shared = shared
        self._own: list[ir.Value] = []
        self._constants: Shared = {}
        self._new_shared: Shared = {}
        self._nodes: list[ir.Node] = []

    def copy(self) -> Draft:
        """An empty draft of the same graph, to try something out."""
        return Draft(self._shared)

    def stored(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer, which may be lazy."""
        value = _constant_value(tensor)
        self._own.append(value)
        return value

    def constant(self, array: NDArray[np.generic]) -> ir.Value:
        """Add a small constant; equal ones of the graph are stored once."""
        key = (array.dtype.name, array.shape, array.tobytes())
        known = self._shared.get(key) or self._constants.get(key)
        if known is not None:
            return known
        value = _constant_value(ir.Tensor(np.asarray(array, order="C")))
        self._constants[key] = value
        return value

    def shared(self, key: str, make: Callable[[], ir.Value]) -> ir.Value:
        """The value of that key, which `make` adds the first time that a graph needs it."""
        known = self._shared.get(key) or self._new_shared.get(key)
        if known is None:
            known = self._new_shared[key] = make()
        return known

    def node(
        self, op_type: str, inputs: Sequence[ir.Value], **attributes: int
    ) -> ir.Value:
        """Add a node with one output."""
        node = ir.node(op_type, list(inputs), attributes=attributes, name="")
        self._nodes.append(node)
        return node.outputs[0]

    def nbytes(self) -> int:
        """Bytes that the decoder takes in a file: values, names, shapes and nodes."""
        added = [*self._own, *self._constants.values()]
        return sum(map(_initializer_bytes, added)) + sum(map(_node_bytes, self._nodes))

    def commit(
        self,
        graph: ir.Graph,
        first: ir.Node,
        names: Names,
        decoded: ir.Value,
        name: str,
    ) -> None:
        """Put the decoder before the node `first`; the value `decoded` is called `name`.

        `first`: the same node for all decoders of a graph, so that shared nodes come before those
        that use them.
        """
        for value in [*self._own, *self._constants.values()]:
            value.name = names.numbered(PREFIX)
            assert value.const_value is not None
            value.const_value.name = value.name
            graph.register_initializer(value)
        self._shared |= self._constants | self._new_shared
        for node in self._nodes:
            output = node.outputs[0]
            output.name = name if output is decoded else names.numbered(PREFIX)
        graph.insert_before(first, self._nodes)


def initializer_bytes(name: str, tensor: ir.TensorProtocol) -> int:
    """Bytes that an initializer takes in a file, with its name, type and shape."""
    dims = [int(d) for d in tensor.shape.numpy()]
    head = onnx.TensorProto(
        name=name, dims=dims, data_type=int(tensor.dtype)
    ).ByteSize()
    content = _field(tensor.nbytes)
    return _field(head + content)


def _initializer_bytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return initializer_bytes(PLACEHOLDER, value.const_value)


def _node_bytes(node: ir.Node) -> int:
    proto = onnx.NodeProto(op_type=node.op_type)
    proto.input.extend([PLACEHOLDER] * len(node.inputs))
    proto.output.append(PLACEHOLDER)
    for attribute in node.attributes.values():
        proto.attribute.append(ir.to_proto(attribute))
    return _field(proto.ByteSize())


def _field(length: int) -> int:
    """Bytes of a protobuf field of that many bytes: tag, length and content."""
    return 1 + max(1, -(-length.bit_length() // 7)) + length


def _constant_value(tensor: ir.TensorProtocol) -> ir.Value:
    return ir.Value(
        shape=ir.Shape(tensor.shape.numpy()),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
