"""Choice of layers by name: equality, wildcards, include and exclude, and patterns for nothing."""

import onnx
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._core.patterns import (
    layer_names,
    left_out,
    matches,
    require_matches,
    weight_names,
    weighted_names,
)
from onnx_opt.passes._core.weights import weights_of

TIED = """
<ir_version: 10, opset_import: ["" : 21]>
tied (float[2, 2] x, float[2, 2] z) => (float[2, 2] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    [first] a = MatMul (x, w)
    [second] b = MatMul (a, w)
    [scores] y = MatMul (b, z)
}
"""


def model_of(text):
    return ir.from_proto(onnx.parser.parse_model(text))


@pytest.mark.parametrize(
    ("names", "patterns", "expected"),
    [
        (["conv1"], ["conv1"], True),
        (["conv1"], ["conv2"], False),
        (["conv1"], ["conv"], False),
        (["conv1"], ["conv*"], True),
        (["conv1"], ["conv?"], True),
        (["conv1"], ["conv[12]"], True),
        (["conv1"], ["conv[!1]"], False),
        (["conv1"], ["Conv1"], False),
        (["conv1"], ["fc", "*1"], True),
        (["fc", "conv1"], ["conv1"], True),
        (["conv1"], [], False),
        ([], ["*"], False),
        (["blocks/0/conv"], ["blocks*conv"], True),
    ],
)
def test_matches_by_the_rules_of_the_shell(names, patterns, expected):
    assert matches(names, patterns) is expected


@pytest.mark.parametrize(
    ("name", "pattern", "expected"),
    [
        ("w[0]", "w[0]", True),
        ("w0", "w[0]", True),
        ("w[0]", "w[1]", False),
        ("w[0]", "w[[]0]", True),
        ("a*b", "a*b", True),
    ],
)
def test_a_name_equal_to_the_pattern_matches_before_wildcards(name, pattern, expected):
    assert matches([name], [pattern]) is expected


@pytest.mark.parametrize(
    ("include", "exclude", "reason"),
    [
        ([], [], None),
        (["conv*"], [], None),
        (["weight"], [], None),
        (["fc"], [], "not matched by include"),
        ([], ["conv1"], "matched by exclude"),
        ([], ["fc"], None),
        (["conv*"], ["*1"], "matched by exclude"),
        (["fc"], ["conv1"], "not matched by include"),
    ],
)
def test_reason_for_leaving_a_layer_out(include, exclude, reason):
    assert left_out(iter(["conv1", "weight"]), include, exclude) == reason


@pytest.mark.parametrize(
    "patterns", [[], ["conv1"], ["conv*", "fc"], ["*"], ["conv[12]"]]
)
def test_patterns_that_match_are_accepted(patterns):
    assert require_matches("prune.include", patterns, ["conv1", "conv2", "fc"]) is None


@pytest.mark.parametrize(
    ("pattern", "shown"),
    [
        ("conv3", "conv2, conv1"),
        ("*conv3*", "conv2, conv1"),
        ("head", "head.bias, head.weight"),
        ("zzz", "conv1, conv2, head.bias"),
    ],
)
def test_a_pattern_for_nothing_names_the_nearest(pattern, shown):
    names = ["head.weight", "head.bias", "conv2", "conv1", "conv1"]
    with pytest.raises(UsageError) as caught:
        require_matches("prune.include", ["conv1", pattern], names)
    assert caught.value.where == "prune.include"
    assert caught.value.problem == f"'{pattern}' matches no layer"
    assert caught.value.fix == f"the nearest names are {shown}"


def test_a_model_without_layers_is_no_error():
    assert require_matches("prune.include", ["conv1"], []) is None
    # one layer, and the same pattern is held to it
    with pytest.raises(UsageError, match="'conv1' matches no layer"):
        require_matches("prune.include", ["conv1"], ["fc"])


def test_a_layer_goes_by_its_node_its_weight_and_its_output():
    node = ir.node("MatMul", [ir.Value(name="x"), ir.Value(name="w")], name="first")
    node.outputs[0].name = "a"
    assert layer_names(node) == ["first", "w", "a"]
    assert layer_names(node, ir.Value(name="stored")) == ["first", "stored", "a"]


def test_a_layer_without_a_name_or_a_weight_goes_by_its_output():
    node = ir.node("Relu", [ir.Value(name="x")])
    node.outputs[0].name = "a"
    assert layer_names(node) == ["a"]


def test_a_shared_weight_goes_by_every_layer_that_uses_it():
    (weight,), _ = weights_of(model_of(TIED))
    assert weight_names(weight) == ["first", "w", "a", "second", "w", "b"]


def test_every_layer_that_may_have_a_weight_is_named():
    assert set(weighted_names(model_of(TIED))) == {
        *("first", "w", "a"),
        *("second", "b"),
        *("scores", "y"),
    }


def test_a_weight_keeps_its_name_behind_transposes_and_computed():
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        computed (float[2, 2] x) => (float[2, 2] y) <float16[2, 2] half = {1, 2, 3, 4}>
        { w = Cast <to = 1> (half)  t = Transpose (w)  y = Gemm (x, t) }
        """
    assert set(weighted_names(model_of(text))) == {"w", "y"}


@pytest.mark.parametrize(("tables", "names"), [(False, set()), (True, {"w", "y"})])
def test_tables_are_named_on_request(tables, names):
    text = """
        <ir_version: 10, opset_import: ["" : 21]>
        lookup (int64[n] x) => (float[n, 2] y)
        <float[2, 2] w = {1, 2, 3, 4}, int64[2] sizes = {1, 2}>
        { y = Gather (w, x)  size = Gather (sizes, x) }
        """
    assert set(weighted_names(model_of(text), tables)) == names
