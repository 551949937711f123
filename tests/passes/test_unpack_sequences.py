"""Sequences that are only taken apart."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.unpack_sequences import UnpackSequences

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
COMPUTED = (
    HEAD
    + """
computed (float[6, 2] x, int64 at) => (float[a, b] y)
{ s = SplitToSequence <axis = 0, keepdims = 1> (x)  y = SequenceAt (s, at) }
"""
)
COUNTED = (
    HEAD
    + """
counted (float[6, 2] x) => (float[a, b] y, int64 n)
<int64 first = {0}>
{ s = SplitToSequence <axis = 0, keepdims = 1> (x)  y = SequenceAt (s,
    first)  n = SequenceLength (s) }
"""
)
OPEN = (
    HEAD
    + """
open (float[n, 2] x) => (float[a, b] y)
<int64 first = {0}>
{ s = SplitToSequence <axis = 0, keepdims = 1> (x)  y = SequenceAt (s, first) }
"""
)
CHUNKS = (
    HEAD
    + """
chunks (float[7, 2] x) => (float[a, b] y, float[c, d] z)
<int64 size = {3}, int64 first = {0}, int64 last = {-1}>
{ s = SplitToSequence <axis = 0> (x, size)  y = SequenceAt (s, first)  z = SequenceAt (s, last) }
"""
)
SIZES = (
    HEAD
    + """
sizes (float[2, 6] x) => (float[a, b] y)
<int64[2] size = {2, 4}, int64 second = {1}>
{ s = SplitToSequence <axis = 1> (x, size)  p = SequenceAt (s, second)  y = Relu (p) }
"""
)
UNBIND = (
    HEAD
    + """
unbind (float[3, 2] x) => (float[a] y)
<int64 zero = {0}, int64 two = {2}>
{ s = SplitToSequence <axis = 0, keepdims = 0> (x)  p = SequenceAt (s, zero)  q = SequenceAt (s,
    two)  y = Sub (p, q) }
"""
)
PACKED = (
    HEAD
    + """
packed (float[3, 2] x) => (float[a, b] y)
<int64 one = {1}>
{ n = Neg (x)  s = SequenceConstruct (x, n)  p = SequenceAt (s, one)  y = Relu (p) }
"""
)


def _run(model: ir.Model) -> list[np.ndarray]:
    proto = ir.to_proto(model)
    session = onnxruntime.InferenceSession(
        proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    shape = [d.dim_value for d in proto.graph.input[0].type.tensor_type.shape.dim]
    return session.run(
        None, {"x": np.arange(np.prod(shape), dtype=np.float32).reshape(shape) - 4}
    )


def _loaded(text: str) -> ir.Model:
    model = ir.from_proto(onnx.parser.parse_model(text))
    normalize(model)
    return model


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (COMPUTED, "computed positions"),
        (COUNTED, "another way"),
        (OPEN, "sizes of its parts"),
    ],
)
def test_what_is_not_certain_stays(text, reason):
    model = _loaded(text)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = UnpackSequences().run(model, NullContext())
    assert outcome.changed == 0
    assert reason in outcome.declined[0].reason
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    ("text", "ops"),
    [
        (CHUNKS, {"Split"}),
        (SIZES, {"Split", "Relu"}),
        (UNBIND, {"Split", "Squeeze", "Sub"}),
        (PACKED, {"Neg", "Relu"}),
    ],
)
def test_parts_are_tensors_with_the_same_values(text, ops):
    model = _loaded(text)
    expected = _run(model)
    assert UnpackSequences().run(model, NullContext()).stats == {"sequences": 1}
    assert {node.op_type for node in model.graph} == ops
    for want, got in zip(expected, _run(model), strict=True):
        np.testing.assert_array_equal(got, want)
