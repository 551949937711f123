"""Walks over a model's protobuf messages, before it is parsed into the IR."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TypeAlias

import onnx

from ...passes._core.ops import STANDARD_DOMAINS

Body: TypeAlias = onnx.GraphProto | onnx.FunctionProto


def standard_domain(domain: str) -> str:
    """The domain, spelled "" where it is that of ONNX's own operators."""
    return "" if domain in STANDARD_DOMAINS else domain


def held_graphs(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """Graphs that a node holds as attributes."""
    for attribute in node.attribute:
        # reading .g of a message that has none would return an empty graph
        if attribute.HasField("g"):
            yield attribute.g
        yield from attribute.graphs


def bodies(proto: onnx.ModelProto) -> Iterator[Body]:
    """The graph, every function and every subgraph; no recursion, since the file sets the depth."""
    waiting: list[Body] = [proto.graph, *proto.functions]
    while waiting:
        body = waiting.pop()
        yield body
        for node in body.node:
            waiting.extend(held_graphs(node))


def tensor_protos(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    """Every tensor message of a model; sparse ones as their values and indices."""
    for body in bodies(proto):
        if isinstance(body, onnx.GraphProto):
            yield from body.initializer
            yield from _parts(body.sparse_initializer)
        for node in body.node:
            for attribute in node.attribute:
                yield from _tensors_of(attribute)


def _tensors_of(attribute: onnx.AttributeProto) -> Iterator[onnx.TensorProto]:
    yield from attribute.tensors
    if attribute.HasField("t"):
        yield attribute.t
    yield from _parts(attribute.sparse_tensors)
    if attribute.HasField("sparse_tensor"):
        yield from _parts([attribute.sparse_tensor])


def _parts(sparse: Sequence[onnx.SparseTensorProto]) -> Iterator[onnx.TensorProto]:
    for tensor in sparse:
        yield tensor.values
        yield tensor.indices
