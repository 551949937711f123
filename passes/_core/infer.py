"""onnx's shape and type inference on a model whose weights stay out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

SMALL = 1024
"""Bytes up to which a tensor is shown to onnx: it reads axes, shapes and scales there, never
weights.
"""


PROTOBUF_LIMIT = 2**31
"""Bytes that a serialized model cannot reach."""

FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
"""What onnx's own functions raise on a model that they cannot handle."""


def infer_types(model: ir.Model, data_prop: bool) -> bool:
    """Set the type and shape of every value as far as onnx infers them; False if it gives up.

    Unlike onnx_ir's ShapeInferencePass this keeps sequence and optional types (it makes tensors of
    them).
    """
    with without_weights(model):
        proto = ir.to_proto(model)
    if (
        proto.ByteSize() >= PROTOBUF_LIMIT
    ):  # weights of subgraphs, or that callers may override
        return False
    try:
        proto = onnx.shape_inference.infer_shapes(
            proto, check_type=False, strict_mode=False, data_prop=data_prop
        )
    except FAILURES:
        return False
    inferred = ir.from_proto(proto)
    assert isinstance(inferred, ir.Model)
    for ours, theirs in zip(model.graphs(), inferred.graphs(), strict=True):
        found = {value.name: value for value in _values(theirs)}
        for value in _values(ours):
            other = found.get(value.name)
            if other is not None:
                value.type = other.type or value.type
                value.shape = other.shape or value.shape
    return True


def structural_problem(model: ir.Model) -> str:
    """What onnx's checker or its strict shape inference says against a model, in one line; empty if
    nothing.

    The weights stay out of it. Empty also for a model too large to be shown to them.
    """
    with without_weights(model):
        proto = ir.to_proto(model)
    if proto.ByteSize() >= PROTOBUF_LIMIT:
        return ""
    try:
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(
            proto, check_type=True, strict_mode=True, data_prop=False
        )
    except FAILURES as error:
        return " ".join(str(error).split())[:300]
    return ""


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from (value for value in node.outputs if value.name)


@contextlib.contextmanager
def without_weights(model: ir.Model) -> Iterator[None]:
    """While open, big initializers of the main graph are plain inputs behind the real ones."""
    graph = model.graph
    order = list(graph.initializers.values())
    overridable = {id(v) for v in graph.inputs}
    big = [
        v
        for v in order
        if v.const_value is not None
        and v.const_value.nbytes > SMALL
        and id(v) not in overridable
    ]
    inputs = list(graph.inputs)
    try:
        for value in big:
            assert value.name is not None
            del graph.initializers[value.name]
            graph.inputs.append(value)
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        graph.initializers.clear()
        for value in order:
            graph.initializers.add(value)
