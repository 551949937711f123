"""`reduce`: each kind of part goes where it can, the check decides, and errors say what to do."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, RefusedError, UsageError, reduce
from onnx_opt.tools._reduce import details, graph
from onnx_opt.tools._reduce.checks import CommandCheck, PipelineCheck, symptom_of
from onnx_opt.tools._reduce.search import Reduction, Search
from onnx_opt.tools._reduce.subject import Subject, prune_unused, size_of
from onnx_opt.tools.cli import main

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'

CHAIN = (
    HEADER
    + """
chain (float[N, 4] x, float[4] unused) => (float[N, 4] y, float[N, 4] z)
<float[4] w = {1.25, 2.5, -3.125, 0.0}, int64[2] order = {0, -1}>
{
    a = Add (x, w)
    b = Relu (a)
    c = Tanh (b)
    d = Reshape (c, order)
    y = Mul (d, w)
    e = Neg (a)
    z = Exp (e)
}
"""
)

BRANCHES = (
    HEADER
    + """
branches (bool flag, float[2] x) => (float[2] y)
{
    h = Relu (x)
    y = If (flag) <
        then_branch = first () => (float[2] t) { s = Neg (h)  t = Tanh (s) },
        else_branch = second () => (float[2] e) { s = Exp (h)  e = Abs (s) }
    >
}
"""
)


def subject(text):
    return Subject(onnx.parser.parse_model(text))


def ops(model):
    return [node.op_type for node in model.graph.node]


def saved(text, path):
    onnx.save(onnx.parser.parse_model(text), path)
    return path


def ports(model):
    return (
        [value.name for value in model.graph.input],
        [value.name for value in model.graph.output],
    )


# parts


def test_unneeded_nodes_go_and_unread_inputs_stay():
    model = onnx.parser.parse_model(CHAIN)
    del model.graph.output[0]
    prune_unused(model)
    assert ops(model) == ["Add", "Neg", "Exp"]
    assert [tensor.name for tensor in model.graph.initializer] == ["w"]
    assert ports(model) == (["x", "unused"], ["z"])


def test_outputs_go_but_for_one():
    assert ops(graph.without_outputs(subject(CHAIN), frozenset({0}))) == [
        "Add",
        "Neg",
        "Exp",
    ]
    assert graph.without_outputs(subject(CHAIN), frozenset({0, 1})) is None


def test_only_unread_inputs_go():
    assert ports(graph.without_inputs(subject(CHAIN), frozenset({1})))[0] == ["x"]
    assert graph.without_inputs(subject(CHAIN), frozenset({0})) is None


@pytest.mark.parametrize(
    ("cut", "kept", "inputs", "outputs"),
    [
        ({0}, ["Relu", "Tanh", "Reshape", "Mul", "Neg", "Exp"], ["a"], ["y", "z"]),
        ({2}, ["Add", "Relu", "Reshape", "Mul", "Neg", "Exp"], ["c"], ["y", "z", "b"]),
        ({4, 6}, ["Add", "Relu", "Tanh", "Reshape", "Neg"], [], ["d", "e"]),
        (
            {0, 1, 3, 4, 5, 6},
            ["Tanh"],
            ["b"],
            ["c"],
        ),
    ],
)
def test_nodes_are_cut_out_into_inputs_and_outputs(cut, kept, inputs, outputs):
    model = graph.without_nodes(subject(CHAIN), frozenset(cut))
    onnx.checker.check_model(model, full_check=True)
    assert ops(model) == kept
    assert ports(model) == (["x", "unused", *inputs], outputs)


def test_no_model_is_without_nodes():
    assert graph.without_nodes(subject(CHAIN), frozenset(range(7))) is None


def test_a_node_is_bypassed_where_types_are_the_same():
    assert ops(graph.bypass_nodes(subject(CHAIN), frozenset({2}))) == [
        "Add",
        "Relu",
        "Reshape",
        "Mul",
        "Neg",
        "Exp",
    ]
    # an output keeps its node
    assert graph.bypass_nodes(subject(CHAIN), frozenset({6})) is None


@pytest.mark.parametrize(
    ("branch", "kept"),
    [
        (0, ["Relu", "Neg", "Tanh", "Identity"]),
        (1, ["Relu", "Exp", "Abs", "Identity"]),
    ],
)
def test_a_branch_takes_the_place_of_its_if(branch, kept):
    model = graph.inline_branch(subject(BRANCHES), frozenset({branch}))
    onnx.checker.check_model(model, full_check=True)
    assert ops(model) == kept


def test_nodes_of_bodies_become_constants():
    both = subject(BRANCHES)
    assert graph.count_body_nodes(both) == 4
    # bodies in the order of their attributes
    bodies = [list(a.g.node) for a in both.model.graph.node[1].attribute]
    model = graph.without_body_nodes(both, frozenset({0}))
    onnx.checker.check_model(model, full_check=True)
    left = [len(a.g.node) for a in model.graph.node[-1].attribute]
    assert left == [len(bodies[0]) - 1, len(bodies[1])]
    # what a body returns has to be made by a node
    assert graph.without_body_nodes(both, frozenset({1})) is None


def test_functions_are_inlined():
    text = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.twice (x) }
    <domain: "own", opset_import: ["" : 21]> twice (a) => (b) { b = Add (a, a) }
    """
    model = graph.inline_functions(subject(text), frozenset({0}))
    assert ops(model) == ["Add"]
    assert not model.functions
    assert [opset.domain for opset in model.opset_import] == [""]


def test_constants_become_inputs():
    model = graph.initializers_as_inputs(subject(CHAIN), frozenset({0}))
    assert ports(model)[0] == ["x", "unused", "w"]
    assert [tensor.name for tensor in model.graph.initializer] == ["order"]


def test_large_constants_become_inputs_at_once():
    model = onnx.parser.parse_model(CHAIN)
    large = np.zeros(2000, np.float32)
    for name in ("l1", "l2"):
        model.graph.initializer.append(onnx.numpy_helper.from_array(large, name))
    both = Subject(model)
    assert graph.count_large(both) == 1
    left = graph.large_as_inputs(both, frozenset({0}))
    assert ports(left)[0] == ["x", "unused", "l1", "l2"]
    assert graph.count_large(Subject(left)) == 0


def test_axes_become_shorter_everywhere():
    model = details.shorter_axes(subject(CHAIN), frozenset({0}))
    onnx.checker.check_model(model, full_check=True)
    dims = [
        value.type.tensor_type.shape.dim[-1].dim_value for value in model.graph.input
    ]
    assert dims == [1, 1]
    assert list(model.graph.initializer[0].dims) == [1]


def test_numbers_become_simple():
    ones = details.simpler_numbers(subject(CHAIN), frozenset({0}))
    assert onnx.numpy_helper.to_array(ones.graph.initializer[0]).tolist() == [1] * 4
    whole = details.simpler_numbers(subject(CHAIN), frozenset({1}))
    assert onnx.numpy_helper.to_array(whole.graph.initializer[0]).tolist() == [
        1,
        2,
        -3,
        0,
    ]


def test_names_become_short():
    model = details.without_words(subject(CHAIN), frozenset({2}))
    onnx.checker.check_model(model, full_check=True)
    assert ports(model) == (["x1", "x2"], ["y5", "y6"])


def test_a_smaller_model_has_fewer_nodes_then_fewer_outputs():
    model = onnx.parser.parse_model(CHAIN)
    nodes, outputs, burden, length = size_of(model)
    # six numbers, and two inputs that weigh as much as four
    assert (nodes, outputs, burden) == (7, 2, 14)
    assert length == len(onnx.printer.to_text(model))


# the search


def test_the_search_keeps_what_the_check_wants():
    tried = []

    def check(model):
        tried.append(model)
        return "Tanh" in ops(model) and "Exp" in ops(model)

    nodes = Reduction("nodes", graph.count_nodes, graph.without_nodes)
    search = Search(check, limit=100)
    smallest = search.smallest(onnx.parser.parse_model(CHAIN), [nodes])
    assert ops(smallest) == ["Tanh", "Exp"]
    assert search.tried == len(tried)


def test_the_search_ends_at_its_limit():
    nodes = Reduction("nodes", graph.count_nodes, graph.without_nodes)
    search = Search(lambda model: False, limit=3)
    model = onnx.parser.parse_model(CHAIN)
    assert search.smallest(model, [nodes]) == model
    assert search.tried == 3


# the command


def test_a_command_decides(tmp_path):
    path = saved(CHAIN, tmp_path / "chain.onnx")
    reduced = reduce(path, check="grep -q Tanh")
    assert ops(onnx.load(reduced.path)) == ["Tanh"]
    assert reduced.path == tmp_path / "chain.reduced.onnx"
    assert reduced.text_path.read_text() == reduced.text + "\n"
    assert reduced.is_text_whole
    assert (reduced.before.nodes, reduced.after.nodes) == (7, 1)
    assert ops(onnx.parser.parse_model(reduced.text)) == ["Tanh"]


class Wrong(ir.passes.InPlacePass):
    """Takes Tanh for its own inverse."""

    def call(self, model):
        changed = False
        for node in list(model.graph):
            inner = node.inputs[0].producer() if node.inputs else None
            if node.op_type == "Tanh" and inner is not None and inner.op_type == "Tanh":
                node.outputs[0].replace_all_uses_with(inner.inputs[0])
                model.graph.remove(node, safe=True)
                changed = True
        return ir.passes.PassResult(model, changed)


def test_a_wrong_rewrite_is_reduced_to_its_nodes(tmp_path):
    text = (
        HEADER
        + """
    g (float[N, 4] x) => (float[N, 4] y)
    {
        a = Neg (x)
        b = Tanh (a)
        c = Tanh (b)
        y = Relu (c)
    }
    """
    )
    path = saved(text, tmp_path / "m.onnx")
    reduced = reduce(path, passes=[Wrong()])
    assert ops(onnx.load(reduced.path)) in (["Tanh", "Tanh"], ["Tanh", "Tanh", "Relu"])
    assert reduced.symptom.endswith(": output")


def test_a_symptom_is_without_names_and_numbers():
    error = CheckError("simplify", "output 'y3' is off by 0.25 (allowed: 1e-4)", "")
    assert symptom_of(error) == "simplify: output"


def test_a_pipeline_that_succeeds_is_not_interesting():
    check = PipelineCheck("simplify")
    assert not check(onnx.parser.parse_model(CHAIN))
    assert check.outcome == "it succeeds"


def test_the_path_stands_for_the_braces(tmp_path):
    model = onnx.parser.parse_model(CHAIN)
    assert CommandCheck("test -s {}", 10, tmp_path)(model)
    check = CommandCheck("test ! -s {}", 10, tmp_path)
    assert not check(model)
    assert check.outcome == "exit code 1"


def test_a_command_that_hangs_says_no(tmp_path):
    check = CommandCheck("sh -c 'sleep 60'", 0.2, tmp_path)
    assert not check(onnx.parser.parse_model(CHAIN))
    assert check.outcome == "it ran past 0.2 s"


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({}, UsageError, "needs either --check or --fails-with-passes"),
        ({"check": "true", "passes": "simplify"}, UsageError, "needs either"),
        ({"check": ""}, UsageError, "--check: is empty"),
        ({"check": "'a"}, UsageError, "--check: cannot be split: No closing quotation"),
        ({"check": "no-such-program"}, UsageError, "'no-such-program' cannot be run"),
        ({"check": "false"}, CheckError, "does not show the fault itself: exit code 1"),
        ({"passes": "simplify"}, CheckError, "the fault itself: it succeeds"),
        ({"passes": "simplifi"}, UsageError, "simplifi"),
    ],
)
def test_errors_say_what_to_do(tmp_path, options, error, words):
    path = saved(CHAIN, tmp_path / "chain.onnx")
    with pytest.raises(error, match=words):
        reduce(path, **options)
    assert [each.name for each in tmp_path.iterdir()] == ["chain.onnx"]


def test_a_file_that_is_no_model_is_refused(tmp_path):
    (tmp_path / "m.onnx").write_bytes(b"\x89PNG")
    with pytest.raises(RefusedError):
        reduce(tmp_path / "m.onnx", check="true")


def test_json_has_the_text_and_the_sizes(tmp_path):
    path = saved(CHAIN, tmp_path / "chain.onnx")
    out = tmp_path / "small.onnx"
    words = ["reduce", str(path), "--check", "grep -q Exp", "-o", str(out), "--json"]
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["path"] == str(out)
    assert Path(facts["text_path"]).read_text().strip() == facts["text"].strip()
    assert facts["before"]["nodes"] == 7
    assert facts["after"] == {
        "nodes": 1,
        "inputs": 1,
        "outputs": 1,
        "bytes": out.stat().st_size,
    }


def test_weights_in_another_file_are_read(tmp_path):
    model = onnx.parser.parse_model(CHAIN)
    tensor = model.graph.initializer[0]
    tensor.CopyFrom(onnx.numpy_helper.from_array(np.arange(4, dtype=np.float32), "w"))
    onnx.save(
        model,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    reduced = reduce(tmp_path / "m.onnx", check="grep -q Mul")
    assert ops(onnx.load(reduced.path)) == ["Mul"]


def test_a_model_in_memory_needs_a_file_to_be_written(tmp_path):
    model = onnx.parser.parse_model(CHAIN)
    with pytest.raises(UsageError, match="out: is not given"):
        reduce(model, check="true")
    reduced = reduce(model, check="grep -q Neg", out=tmp_path / "small.onnx")
    assert ops(onnx.load(tmp_path / "small.onnx")) == ["Neg"]
    assert reduced.before.nodes == 7
