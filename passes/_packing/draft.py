"""Nodes and initializers that decode one constant, before they are part of a graph."""

from __future__ import annotations

from collections.abc import Callable, Mapping, MutableMapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.graph import Names
from .constant_graph import PREFIX

Array = NDArray[Any]

Operand = ir.Value | Array | list[int]
"""An input of a node: a value, the array of a small constant, or a shape or axes in int64."""

Shared = MutableMapping[object, ir.Value]
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
        self._constants: dict[object, ir.Value] = {}
        self._new_shared: dict[object, ir.Value] = {}
        self._nodes: list[ir.Node] = []

    def copy(self) -> Draft:
        """An empty draft of the same graph, to try something out."""
        return Draft(self._shared)

    def stored(self, tensor: ir.TensorProtocol) -> ir.Value:
        """Add an initializer, which may be lazy."""
        value = _constant_value(tensor)
        self._own.append(value)
        return value

    def constant(self, array: Array) -> ir.Value:
        """Add a small constant; equal ones of the graph are stored once."""
        kind = array.dtype.name
        content = array.tobytes()
        key = (kind, array.shape, content)
        for known in (self._shared, self._constants):
            if key in known:
                return known[key]
        # a copy: the array may be one that several models use
        own = np.array(array, order="C")
        tensor = ir.Tensor(own)
        value = _constant_value(tensor)
        self._constants[key] = value
        return value

    def shared(self, key: str, make: Callable[[Draft], ir.Value]) -> ir.Value:
        """The value of that key, which `make` adds the first time that a graph needs it."""
        for known in (self._shared, self._new_shared):
            if key in known:
                return known[key]
        value = make(self)
        self._new_shared[key] = value
        return value

    def node(
        self, op_type: str, *operands: Operand, **attributes: int | list[int]
    ) -> ir.Value:
        """Add a node with one output; arrays and shapes among its operands become constants."""
        inputs = [self._input(operand) for operand in operands]
        node = ir.node(op_type, inputs, attributes=attributes, name="")
        self._nodes.append(node)
        return node.outputs[0]

    def split(self, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
        """Add a Split along the first axis into pieces of those sizes."""
        inputs = [value, self._input(sizes)]
        node = ir.node("Split", inputs, num_outputs=len(sizes), name="")
        self._nodes.append(node)
        return list(node.outputs)

    def _input(self, operand: Operand) -> ir.Value:
        if isinstance(operand, ir.Value):
            return operand
        if isinstance(operand, list):
            operand = np.array(operand, np.int64)
        return self.constant(operand)

    def nbytes(self) -> int:
        """Bytes that the decoder takes in a file: values, names, shapes and nodes."""
        total = 0
        for value in self._initializers():
            total += _initializer_bytes(value)
        for node in self._nodes:
            total += _node_bytes(node)
        return total

    def new_shared(self) -> dict[object, ir.Value]:
        """The values that it adds for all decoders of the graph."""
        return self._constants | self._new_shared

    def _initializers(self) -> list[ir.Value]:
        constants = self._constants.values()
        return [*self._own, *constants]

    def commit(
        self,
        graph: ir.Graph,
        first: ir.Node,
        names: Names,
        decoded: Mapping[ir.Value, str],
    ) -> None:
        """Put the decoder before the node `first`; `decoded`: its results, and their names.

        `first`: the same node for all decoders of a graph, so that shared nodes come before those
        that use them.
        """
        for value in self._initializers():
            value.name = names.numbered(PREFIX)
            tensor = value.const_value
            assert tensor is not None
            tensor.name = value.name
            graph.register_initializer(value)
        self._shared.update(self.new_shared())
        for node in self._nodes:
            for output in node.outputs:
                name = decoded.get(output)
                output.name = name or names.numbered(PREFIX)
        graph.insert_before(first, self._nodes)


def initializer_bytes(name: str, tensor: ir.TensorProtocol) -> int:
    """Bytes that an initializer takes in a file, with its name, type and shape."""
    shape = tensor.shape.numpy()
    dims = [int(dim) for dim in shape]
    data_type = int(tensor.dtype)
    head = onnx.TensorProto(name=name, dims=dims, data_type=data_type)
    content = _field(tensor.nbytes)
    head_length = head.ByteSize()
    length = head_length + content
    return _field(length)


def _initializer_bytes(value: ir.Value) -> int:
    assert value.const_value is not None
    return initializer_bytes(PLACEHOLDER, value.const_value)


def _node_bytes(node: ir.Node) -> int:
    proto = onnx.NodeProto(op_type=node.op_type)
    for _ in node.inputs:
        proto.input.append(PLACEHOLDER)
    for _ in node.outputs:
        proto.output.append(PLACEHOLDER)
    for attribute in node.attributes.values():
        stored = ir.to_proto(attribute)
        proto.attribute.append(stored)
    length = proto.ByteSize()
    return _field(length)


def _field(length: int) -> int:
    """Bytes of a protobuf field of that many bytes: tag, length and content."""
    bits = length.bit_length()
    # seven bits of the length in a byte; a length of 0 takes one too
    septets = -(-bits // 7)
    length_bytes = max(1, septets)
    return 1 + length_bytes + length


def _constant_value(tensor: ir.TensorProtocol) -> ir.Value:
    dims = tensor.shape.numpy()
    return ir.Value(
        shape=ir.Shape(dims),
        type=ir.TensorType(tensor.dtype),
        const_value=tensor,
    )
