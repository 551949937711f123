"""Differences of two models: which node is which, and how far weights are apart."""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx import helper, numpy_helper
from onnx_opt.tools._diff.match import matched_nodes
from onnx_opt.tools._report.graph import graph_of, path_of
from onnx_opt.tools.cli import main
from sample_models import CNN, IF, MLP, model_from


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def saved(folder, name, model):
    path = folder / f"{name}.onnx"
    onnx.save(model, path)
    return path


def difference(a, b):
    return onnx_opt.diff(a.SerializeToString(), b.SerializeToString()).to_dict()


def named(model, prefix="node"):
    for index, node in enumerate(model.graph.node):
        node.name = f"{prefix}_{index}"
    return model


# what is the same


@pytest.mark.parametrize("text", [MLP, CNN, IF])
def test_a_model_does_not_differ_from_itself(text):
    facts = difference(model_from(text), model_from(text))
    assert facts["nodes"]["same"] > 0
    assert [facts["nodes"][kind] for kind in ("added", "removed", "changed")] == [
        []
    ] * 3
    assert facts["weights"] == facts["interface"] == facts["file"] == []
    assert all(each["a"] == each["b"] for each in facts["ops"])


@pytest.mark.parametrize("text", [MLP, CNN])
def test_other_names_are_not_another_model(text):
    """Nodes and tensors of other names are found by what they read."""
    first = named(model_from(text), "old")
    second = named(model_from(text), "new")
    ends = {value.name for value in (*second.graph.input, *second.graph.output)}

    def renamed(name):
        return name if name in ends or not name else f"other_{name}"

    for node in second.graph.node:
        node.input[:] = map(renamed, node.input)
        node.output[:] = map(renamed, node.output)
    for tensor in second.graph.initializer:
        tensor.name = renamed(tensor.name)
    del second.graph.value_info[:]
    facts = difference(first, second)
    assert facts["nodes"]["same"] == len(first.graph.node)
    assert facts["weights"] == []


# nodes


def test_nodes_that_are_added_and_removed():
    first = model_from(MLP)
    second = model_from(
        MLP.replace("r = Relu (h)", "a = Abs (h) r = Tanh (a)"),
    )
    nodes = difference(first, second)["nodes"]
    assert [each["op"] for each in nodes["added"]] == ["Abs", "Tanh"]
    assert [each["op"] for each in nodes["removed"]] == ["Relu"]
    assert (nodes["same"], nodes["changed"]) == (2, [])


def test_attributes_that_change():
    first = model_from(CNN)
    second = model_from(
        CNN.replace(
            "Conv <pads = [1, 1, 1, 1]> (r1",
            "Conv <pads = [1, 1, 1, 1], group = 1, strides = [1, 1]> (r1",
        )
    )
    (change,) = difference(first, second)["nodes"]["changed"]
    assert change == {
        "layer": "Conv c2",
        "op": "Conv",
        "changes": ["group: absent became 1", "strides: absent became (1, 1)"],
    }


def test_constants_that_are_no_weights():
    first = model_from(CNN)
    second = model_from(CNN.replace("flat = {0, -1}", "flat = {-1, 16}"))
    (change,) = difference(first, second)["nodes"]["changed"]
    assert change["changes"] == ["input 1: [0, -1] became [-1, 16]"]


def test_tensors_in_attributes():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    fill (int64[2] s) => (float[a, b] y)
    { y = ConstantOfShape <value = float[1] {1}> (s) }
    """
    first = model_from(text)
    second = model_from(text.replace("{1}", "{2}"))
    (change,) = difference(first, second)["nodes"]["changed"]
    assert change["changes"] == ["value: [1.0] became [2.0]"]


def test_numbers_of_exporters_do_not_mislead():
    """A node of another operator is another node, though it has the same number."""
    first = named(model_from(MLP))
    second = named(
        model_from(
            MLP.replace("h = MatMul", "k = Neg (x) h = MatMul").replace(
                "(x, w1)", "(k, w1)"
            )
        )
    )
    nodes = difference(first, second)["nodes"]
    assert [each["layer"] for each in nodes["added"]] == ["Neg node_0"]
    assert (nodes["same"], nodes["removed"]) == (3, [])


# weights


def changed_weight(scale=1.0, places=slice(None)):
    model = model_from(MLP)
    tensor = model.graph.initializer[0]
    weight = numpy_helper.to_array(tensor).copy()
    weight.reshape(-1)[places] *= np.float32(scale)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    return model


def test_weights_that_change_by_how_much():
    facts = difference(model_from(MLP), changed_weight(1.25))
    (weight,) = facts["weights"]
    before = numpy_helper.to_array(model_from(MLP).graph.initializer[0])
    assert weight["weight"] == "w1"
    assert weight["relative"] == pytest.approx(0.25, rel=1e-6)
    assert weight["max_abs"] == pytest.approx(0.25 * np.abs(before).max(), rel=1e-6)
    assert (weight["changed"], weight["zeros_a"], weight["zeros_b"]) == (1, 0, 0)
    assert facts["nodes"]["changed"][0]["changes"] == [
        "weight w1: 25 % of its norm away"
    ]


def test_weights_that_are_pruned():
    (weight,) = difference(model_from(MLP), changed_weight(0.0, slice(0, 32)))[
        "weights"
    ]
    assert (weight["changed"], weight["zeros_b"]) == (0.25, 0.25)


def test_the_same_numbers_in_another_type_are_told():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    half (float[n, 2] x) => (float[n, 2] y)
    <float16[2, 2] h> { w = Cast <to = 1> (h) y = MatMul (x, w) }
    """
    numbers = np.array([[1, 2], [3, 4]], np.float32)
    plain = text.replace("float16[2, 2] h", "float[2, 2] w")
    first = model_from(plain.replace("w = Cast <to = 1> (h)", ""))
    second = model_from(text)
    for model, array in ((first, numbers), (second, numbers.astype(np.float16))):
        (tensor,) = model.graph.initializer
        tensor.CopyFrom(numpy_helper.from_array(array, tensor.name))
    facts = difference(first, second)
    (weight,) = facts["weights"]
    assert (weight["changed"], weight["relative"]) == (0, 0)
    assert facts["nodes"]["changed"][0]["changes"] == [
        "weight w: the same numbers as FLOAT16 instead of FLOAT"
    ]


def test_the_farthest_comes_first_and_other_shapes_before_all():
    first = model_from(MLP)
    second = changed_weight(2.0)
    tensor = second.graph.initializer[1]
    weight = numpy_helper.to_array(tensor) * np.float32(1.5)
    tensor.CopyFrom(numpy_helper.from_array(weight, tensor.name))
    assert [each["weight"] for each in difference(first, second)["weights"]] == [
        "w1",
        "w2",
    ]
    wider = model_from(
        MLP.replace("16] w1", "20] w1").replace("[16, 4] w2", "[20, 4] w2")
    )
    weights = difference(first, wider)["weights"]
    assert [each["relative"] for each in weights] == [None, None]
    assert weights[0]["b"]["shape"] == [8, 20]


def test_quantized_weights_are_compared_as_floats(tmp_path):
    path = saved(tmp_path, "mlp", model_from(CNN))
    out = tmp_path / "out.onnx"
    data = {"x": np.random.default_rng(0).standard_normal((64, 3, 8, 8), np.float32)}
    onnx_opt.optimize(path, "quant(measure=false)", data=data, out=out, bench=False)
    facts = onnx_opt.diff(path, out)
    weights = {each["weight"]: each for each in facts["weights"]}
    assert weights["k2"]["b"]["dtype"] == "INT8"
    assert 0 < weights["k2"]["relative"] < 0.02
    ops = {each["op"]: (each["a"], each["b"]) for each in facts["ops"]}
    assert ops["Conv"] == (2, 2)
    assert ops["DequantizeLinear"][0] == 0 < ops["DequantizeLinear"][1]


# interface and file


def test_other_interfaces_are_told_not_refused(tmp_path):
    first = saved(tmp_path, "a", model_from(MLP))
    second = saved(
        tmp_path,
        "b",
        model_from(
            MLP.replace("float[batch, 8] x", "float[batch, 8] z")
            .replace("(x, w1)", "(z, w1)")
            .replace("float[batch, 4] y", "float[1, 4] y")
        ),
    )
    done = invoke("diff", first, second)
    assert done.exit_code == 0, done.stderr
    lines = done.stdout.splitlines()
    assert "input 'x' is gone" in lines
    assert "input 'z' is new: FLOAT [batch, 8]" in lines
    assert "output 'y': FLOAT [batch, 4] became FLOAT [1, 4]" in lines


def test_versions_and_metadata_that_differ():
    second = model_from(MLP)
    second.ir_version = 9
    second.producer_name = "another"
    helper.set_model_props(second, {"note": "x" * 500})
    facts = difference(model_from(MLP), second)
    assert facts["file"] == [
        "producer: by hand became another",
        "IR version: 10 became 9",
        f"metadata note: absent became {'x' * 500}",
    ]


def test_what_is_no_model_is_refused(tmp_path):
    path = saved(tmp_path, "a", model_from(MLP))
    broken = tmp_path / "broken.onnx"
    broken.write_bytes(b"no model")
    done = invoke("diff", path, broken, "--html", tmp_path / "d.html")
    assert done.exit_code == 3
    assert "broken.onnx" in done.stderr
    assert not (tmp_path / "d.html").exists()


def test_the_command_prints_json(tmp_path):
    first = saved(tmp_path, "a", model_from(MLP))
    second = saved(tmp_path, "b", changed_weight(2.0))
    facts = json.loads(invoke("diff", first, second, "--json").stdout)
    assert facts == onnx_opt.diff(first, second).to_dict()
    assert "weights that differ" in str(onnx_opt.diff(first, second))


def test_long_lists_are_cut_unless_asked_for(tmp_path):
    chain = "".join(f"h{i + 1} = Neg (h{i}) " for i in range(30))
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    chain (float[n] x) => (float[n] y) {{ h0 = Abs (x) {chain} y = Abs (h30) }}
    """
    short = model_from(text.replace(chain, "").replace("h30", "h0"))
    first = saved(tmp_path, "a", short)
    second = saved(tmp_path, "b", model_from(text))
    assert "… 20 more: -v shows them" in invoke("diff", first, second).stdout
    whole = invoke("diff", first, second, "-v").stdout
    assert "Neg h30" in whole
    assert "more: -v" not in whole


# the graph


def page_graph(a, b, tmp_path):
    first, second = saved(tmp_path, "a", a), saved(tmp_path, "b", b)
    out = tmp_path / "d.html"
    onnx_opt.diff(first, second, html=out)
    text = out.read_text(encoding="utf-8")
    data = text.partition('id="data">')[2].partition("</script>")[0]
    return json.loads(data)["graph"]["nodes"]


def test_the_graph_has_what_only_one_of_them_has(tmp_path):
    second = model_from(MLP.replace("r = Relu (h)", "r = Tanh (h)"))
    nodes = page_graph(model_from(MLP), second, tmp_path)
    found = {each["op"]: each["status"] for each in nodes}
    assert found == {
        "Input": "same",
        "MatMul": "same",
        "Tanh": "added",
        "Output": "same",
        "Relu": "removed",
    }
    removed = nodes[-1]
    assert [nodes[port["from"]]["op"] for port in removed["inputs"]] == ["MatMul"]


def test_bodies_lie_inside_of_their_nodes():
    model = ir.from_proto(model_from(IF))
    nodes = graph_of(model)["nodes"]
    inner = [node for node in nodes if node["path"] == ["body of If"]]
    assert sorted(node["op"] for node in inner) == ["Constant", "MatMul", "MatMul"]
    then = next(node for node in inner if node["outputs"][0]["name"] == "t")
    assert nodes[then["inputs"][0]["from"]]["op"] == "MatMul"


NAMES = {
    "/model/layers.0/attn/MatMul": ("model", "layers", "0", "attn"),
    "/layer1/layer1.0/conv1/Conv": ("layer1", "0", "conv1"),
    "block.2.conv": ("block", "2"),
    "//Conv": (),
    "Conv_3": (),
    "": (),
}


@pytest.mark.parametrize(("name", "path"), NAMES.items())
def test_modules_are_told_by_names(name, path):
    node = ir.node("Relu", [ir.val("x")], name=name)
    assert path_of(node) == path


def test_modules_are_told_by_metadata():
    node = ir.node("Relu", [ir.val("x")], name="node_relu_3")
    node.metadata_props["pkg.torch.onnx.name_scopes"] = "['', 'a', 'a.0', 'relu']"
    assert path_of(node) == ("a", "0")


def test_every_node_has_one_twin():
    first = ir.from_proto(model_from(CNN))
    pairs = matched_nodes(first, ir.from_proto(model_from(CNN)))
    assert len(pairs) == len(set(pairs.values())) == len(list(first.graph))
