"""Channels that do not depend on the input."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.constants import constant_readers
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes.prune_channels import PruneChannels

HEAD = '<ir_version: 10, opset_import: ["" : 18]>\n'
DEAD = (
    HEAD
    + """
dead (float[n, 2] x) => (float[n, 2] y)
<float[2, 4] w = {1, 0, 5, 0, 2, 0, -7, 0}, float[4] b = {1, 3, 0.5, -2},
 float[4, 2] v = {1, 2, 3, 4, 5, 6, 7, 8}, float[2] c = {0.5, 0.25}>
{
    m = MatMul (x, w)
    h = Add (m, b)
    r = LeakyRelu <alpha = 0.5> (h)
    p = MatMul (r, v)
    y = Add (p, c)
}
"""
)
PADDED = (
    HEAD
    + """
padded (float[n, 1, 4] x) => (float[n, 1, 4] y)
<float[2, 1, 1] w = {1, 0}, float[2] b = {0, 3}, float[1, 2, 3] v = {1, 1, 1, 2, 2, 2}>
{ h = Conv (x, w, b)  y = Conv <pads = [1, 1]> (h, v) }
"""
)
ALIVE = DEAD.replace("w = {1, 0, 5, 0, 2, 0, -7, 0}", "w = {1, 1, 5, 1, 2, 1, -7, 1}")


def _outputs(model: ir.Model, x: np.ndarray) -> np.ndarray:
    data = ir.to_proto(model).SerializeToString()
    return onnxruntime.InferenceSession(data, providers=["CPUExecutionProvider"]).run(
        None, {"x": x}
    )[0]


def test_a_layer_that_uses_all_its_weights_has_no_constant_channels():
    assert list(constant_readers(ir.from_proto(onnx.parser.parse_model(ALIVE)))) == []


def test_readers_know_the_numbers_behind_elementwise_ops():
    model = ir.from_proto(onnx.parser.parse_model(DEAD))
    normalize(model)
    (reader,) = constant_readers(model)
    assert reader.layer.weight.name == "v"
    np.testing.assert_array_equal(reader.values, [np.nan, 3.0, np.nan, -1.0])


@pytest.mark.parametrize("importance", ["l2", "random"])
def test_constant_channels_go_first_and_their_readers_keep_what_they_gave(importance):
    model = ir.from_proto(onnx.parser.parse_model(DEAD))
    x = np.random.default_rng(0).standard_normal((5, 2)).astype(np.float32)
    expected = _outputs(model, x)
    outcome = PruneChannels(ratio=0.5, importance=importance, include=("w:1",)).run(
        model, NullContext()
    )
    assert outcome.stats["channels"] == 2
    np.testing.assert_allclose(_outputs(model, x), expected, rtol=1e-6)


def test_a_constant_beside_padding_is_not_one():
    model = ir.from_proto(onnx.parser.parse_model(PADDED))
    outcome = PruneChannels(ratio=0.5, importance="l2").run(model, NullContext())
    assert outcome.stats["channels"] == 1
    assert model.graph.node(1).inputs[2:] in ((), (None,))
