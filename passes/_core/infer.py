"""onnx's shape and type inference on a model whose weights stay out of it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import onnx
import onnx_ir as ir

SMALL = 1024
"""Bytes up to which a tensor is shown to onnx: it reads axes, shapes and scales, never weights."""

PROTOBUF_LIMIT = 2**31
"""Bytes that a serialized model cannot reach."""

FAILURES = (
    onnx.shape_inference.InferenceError,
    onnx.checker.ValidationError,
    RuntimeError,
    ValueError,
)
"""Exceptions of onnx's own functions on a model that they cannot handle."""


def infer_types(model: ir.Model, data_prop: bool) -> bool:
    """Set the type and shape of every value as far as onnx infers them; False if it gives up.

    Unlike onnx_ir's ShapeInferencePass this keeps sequence and optional types (it makes tensors of
    them).
    """
    with without_weights(model):
        proto = ir.to_proto(model)
    # weights of subgraphs, and those that callers may override, are still there
    if proto.ByteSize() >= PROTOBUF_LIMIT:
        return False
    try:
        proto = onnx.shape_inference.infer_shapes(
            proto, check_type=False, strict_mode=False, data_prop=data_prop
        )
    except FAILURES:
        return False
    inferred = ir.from_proto(proto)
    assert isinstance(inferred, ir.Model)
    # by name: inference keeps names and may add values
    for ours, theirs in zip(model.graphs(), inferred.graphs(), strict=True):
        found = {value.name: value for value in _values(theirs)}
        for value in _values(ours):
            other = found.get(value.name)
            if other is not None:
                # what onnx does not find stays as it was
                value.type = other.type or value.type
                value.shape = other.shape or value.shape
    return True


def is_invented(name: str | None) -> bool:
    """True if a symbol is onnx's own name for a dim that it does not know."""
    return name is not None and name.startswith("unk__")


def _values(graph: ir.Graph) -> Iterator[ir.Value]:
    yield from graph.inputs
    for node in graph:
        yield from (value for value in node.outputs if value.name)


@contextlib.contextmanager
def without_weights(model: ir.Model) -> Iterator[None]:
    """While open, big initializers of the main graph are plain inputs behind the real ones."""
    graph = model.graph
    order = list(graph.initializers.values())
    inputs = list(graph.inputs)
    try:
        for value in _big(order, inputs):
            assert value.name is not None
            del graph.initializers[value.name]
            graph.inputs.append(value)
        yield
    finally:
        graph.inputs.clear()
        graph.inputs.extend(inputs)
        # all of them, so that their order stays
        graph.initializers.clear()
        for value in order:
            graph.initializers.add(value)


def _big(initializers: list[ir.Value], inputs: list[ir.Value]) -> list[ir.Value]:
    """Initializers too big to be shown to onnx that are no inputs already."""
    overridable = {id(value) for value in inputs}
    big = []
    for value in initializers:
        if value.const_value is None or id(value) in overridable:
            continue
        if value.const_value.nbytes > SMALL:
            big.append(value)
    return big
