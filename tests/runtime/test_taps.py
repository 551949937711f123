import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt.runtime.calibrate import DerivedTap
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo
from onnx_opt.runtime.taps import constant_names, planned_taps, with_taps

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[N, 4] x, int64[N, 4] n) => (float[N, 4] y)
<float low = {0}, float high = {6}, float one = {1}>
{
    k = Constant <value = float[4] {1, -9, 2, 0}> ()
    h = Mul (x, k)
    relu = Relu (h)
    clip = Clip (h, low, high)
    off_zero = Clip (h, one, high)
    open = Clip (h)
    bound = ReduceMax <keepdims = 0> (x)
    unknown = Clip (h, bound)
    moved = Transpose (h)
    again = Relu (moved)
    input = Relu (x)
    integers = Relu (n)
    weight = Relu (one)
    y = ReduceMax (relu)
}
"""
NAMES = [
    "x",
    "h",
    "relu",
    "clip",
    "off_zero",
    "open",
    "unknown",
    "moved",
    "again",
    "input",
    "y",
    "k",
]


def model_of(text: str) -> ir.Model:
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize("name", ["h", "off_zero", "unknown", "again", "y", "k", "x"])
def test_what_does_not_follow_from_another_is_looked_at(name):
    assert planned_taps(model_of(NET), NAMES)[name] is None


@pytest.mark.parametrize(
    ("name", "tap"),
    [
        ("relu", DerivedTap("h", 0, math.inf)),
        ("clip", DerivedTap("h", 0, 6)),
        ("open", DerivedTap("h", -math.inf, math.inf)),
        ("moved", DerivedTap("h", -math.inf, math.inf)),
        ("input", DerivedTap("x", 0, math.inf)),
    ],
)
def test_what_clips_or_moves_an_observed_tensor_follows_from_it(name, tap):
    assert planned_taps(model_of(NET), NAMES)[name] == tap


def test_what_follows_from_nothing_observed_is_looked_at():
    names = ["relu", "integers", "weight", "n", "one"]
    assert planned_taps(model_of(NET), names) == dict.fromkeys(names)


def test_bounds_of_old_models_are_attributes():
    text = """
    <ir_version: 3, opset_import: ["" : 6]>
    net (float[4] x) => (float[4] y) { y = Clip <min = -1.0, max = 2.0> (x) }
    """
    assert planned_taps(model_of(text), ["x", "y"]) == {
        "x": None,
        "y": DerivedTap("x", -1, 2),
    }


def test_only_named_floats_become_outputs_and_the_model_stays():
    model = model_of(NET)
    next(node for node in model.graph if node.outputs[0].name == "integers").outputs[
        0
    ].dtype = ir.DataType.INT64
    tapped = with_taps(model, ["h", "y", "integers"])
    assert [value.name for value in tapped.graph.outputs] == ["y", "h"]
    assert [value.name for value in model.graph.outputs] == ["y"]


def test_constants_are_known():
    assert constant_names(model_of(NET)) == {"k"}


SMALL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 400] x) => (float[N, 400] y)
<float low = {-1}, float high = {2}>
{
    k = Constant <value_float = 0.5> ()
    h = Mul (x, k)
    r = Relu (h)
    c = Clip (h, low, high)
    f = Flatten (h)
    y = Add (r, c)
}
"""


@pytest.mark.parametrize("method", ["minmax", "percentile", "entropy", "mse", "auto"])
def test_ranges_are_those_of_every_tensor_looked_at(worker, method, monkeypatch):
    inputs = [TensorInfo("x", "float32", ("N", 400))]
    x = np.random.default_rng(0).standard_t(3, (150, 400)).astype(np.float32)
    names = ["x", "k", "h", "r", "c", "f", "y"]

    def ranges():
        run = RunContext(
            worker,
            open_feeds({"x": x}, inputs),
            "cpu",
            0,
            lambda model, path: ir.save(model, path),
        )
        return run.activation_ranges(model_of(SMALL), names, method, 99.0, 150)

    found = ranges()
    monkeypatch.setattr(
        "onnx_opt.runtime.context.planned_taps",
        lambda model, names: dict.fromkeys(names),
    )
    monkeypatch.setattr("onnx_opt.runtime.context.constant_names", lambda model: set())
    assert found == ranges()
    assert found["k"] == (0, 0.5)
    assert set(found) == set(names)
