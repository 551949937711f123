"""First steps of a run on files that other tools write: loading, normalizing, made-up inputs, and
the account of it.
"""

import json

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import helper, parser
from onnx_opt import RefusedError, optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.tools._run.checks import (
    Validity,
    interface_of,
    interface_of_file,
    validity_of,
)
from onnx_opt.tools.tables import result_tables
from sample_models import model_from

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def file_of(tmp_path, model):
    path = tmp_path / "model.onnx"
    onnx.save(model_from(model) if isinstance(model, str) else model, path)
    return path


def run(tmp_path, model, **options):
    """Simplify a model; the result, and the file that was written."""
    out = tmp_path / "out.onnx"
    path = file_of(tmp_path, model)
    result = optimize(path, "simplify", out=out, bench=False, **options)
    return result, onnx.load(out)


def without(text, field):
    """A model in which the first output or the first attribute of the first node lacks a field."""
    model = parser.parse_model(text)
    holder = model.graph.output[0]
    if field != "type":
        holder = model.graph.node[0].attribute[0]
    holder.ClearField(field)
    return model


UNTYPED = f"{HEAD} g (float[2,3] x) => (float[1] y) {{ y = Relu (x) }}"
NO_AXIS = f"""{HEAD} g (float[1,2] a, float[1,2] b) => (float[2,2] y)
{{ y = Concat <axis = 0> (a, b) }}"""
NOT_IMPORTED = (
    f"{HEAD} g (float[4,8] x) => (float[4,8] y) {{ y = com.microsoft.Gelu (x) }}"
)
GROUPS = """<ir_version: 8, opset_import: ["": 18]> g (float[N,4,6] x) => (float[N,4,6] y)
<float[2] s, float[2] b> { y = GroupNormalization <num_groups = 2> (x, s, b) }"""
ONE_SYMBOL = f"""{HEAD} g (float[K,M,3,2] x, float[2,3,K,N] w) => (float[2,3,M,N] y) {{
    t = Transpose <perm = [3,2,1,0]> (x)
    y = MatMul (t, w)
}}"""
SMALL_TABLE = f"""{HEAD} g (int64[N] input_ids) => (float[N,4] y) <float[3,4] t>
{{ y = Gather (t, input_ids) }}"""
ROOT = f"{HEAD} g (float[N,4] x) => (float[N,4] y) {{ y = Sqrt (x) }}"
SIXTEEN_ROWS = f"""{HEAD} g (float[N,4] x) => (float[4,16] y) <int64[2] s = {{4, 16}}>
{{ y = Reshape (x, s) }}"""
FITTED = f"""{HEAD} g (float[N,K] x, float[N,K] z) => (float[N,5] y) <float[12,5] w>
{{ a = Add (x, z)  y = MatMul (a, w) }}"""


@pytest.mark.parametrize(
    "model",
    [
        without(UNTYPED, "type"),
        without(NO_AXIS, "i"),
        NOT_IMPORTED,
        GROUPS,
        ONE_SYMBOL,
        SMALL_TABLE,
        ROOT,
        SIXTEEN_ROWS,
        FITTED,
    ],
    ids=[
        "an output without a type",
        "an attribute that is 0",
        "a domain that is not imported",
        "a deprecated operator",
        "one symbol in two inputs",
        "a table of three rows",
        "no negative values",
        "sixteen rows",
        "lengths that operators ask for",
    ],
)
def test_runs_and_is_checked(tmp_path, model):
    result, _ = run(tmp_path, model, strict=True)
    assert result.drift_on == "synthetic feeds"
    assert validity_of(load(tmp_path / "out.onnx")) == Validity(None, None)
    assert result.passes[0].drift["max_abs"] == 0


def test_an_output_gets_the_type_that_is_inferred(tmp_path):
    _, after = run(tmp_path, without(UNTYPED, "type"))
    y = helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [2, 3])
    assert list(after.graph.output) == [y]


# interface and declarations

TWICE = """<ir_version: 8, opset_import: ["": 17]>
g (float[N,4] x) => (float[?,?] x, float[N,4] y)
{ two = Constant <value_float = 2.0> ()  y = Mul (x, two) }"""
LOOP = """<ir_version: 8, opset_import: ["": 13]>
g (float[a,b] x, int64 n) => (float[k,p,q] y) <bool go = {1}> {
    y = Loop (n, go) <body = b (int64 i, bool c) => (bool co, float[p,q] z)
        <int64[1] zero = {0}, int64[1] one = {1}, int64[1] eight = {8}> {
        co = Identity (c)
        shape = Shape (x)
        first = Slice (shape, zero, one)
        target = Concat <axis = 0> (first, eight)
        z = Expand (x, target)
    }>
}"""


def test_an_input_that_is_an_output_keeps_both_declarations(tmp_path):
    _, after = run(tmp_path, TWICE)
    before = parser.parse_model(TWICE)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_the_interface_is_that_of_the_file(tmp_path):
    model = load(file_of(tmp_path, TWICE))
    of_file = interface_of_file(model)
    assert [str(port) for port in of_file.inputs] == ["x: FLOAT [N, 4]"]
    assert [str(port) for port in of_file.outputs] == [
        "x: FLOAT [?, ?]",
        "y: FLOAT [N, 4]",
    ]
    assert interface_of(model) == of_file
    model.graph.inputs[0].shape = ir.Shape([1, 4])
    assert of_file.difference(interface_of(model)) == (
        "input 'x: FLOAT [N, 4]' became 'x: FLOAT [1, 4]'"
    )


def test_a_type_may_be_added_but_not_changed(tmp_path):
    path = file_of(tmp_path, without(UNTYPED, "type"))
    of_file = interface_of_file(load(path))
    typed = load(path)
    typed.graph.outputs[0].type = ir.TensorType(ir.DataType.FLOAT)
    assert of_file.difference(interface_of(typed)) is None
    assert interface_of(typed).difference(of_file) == (
        "output 'y: FLOAT unranked' became 'y: None unranked'"
    )


@pytest.mark.parametrize("turns", [0, 2])
def test_a_loop_gives_what_it_gave(tmp_path, turns):
    data = {"x": np.ones((1, 3, 1), np.float32), "n": np.array([turns])}
    feeds = [{name: array[0] for name, array in data.items()}]
    result, _ = run(tmp_path, LOOP, data=feeds, strict=True)
    assert result.passes[0].drift["max_abs"] == 0


def test_declared_dims_inside_stay(tmp_path):
    proto = parser.parse_model(
        f"""{HEAD} g (float[batch,seq,8] x, int64[3] e) => (float[batch,seq,8] y)
        <int64[3] z = {{0, 0, 0}}> {{ a = Slice (x, z, e)  y = Sigmoid (a) }}"""
    )
    a = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["batch", "seq", 8])
    proto.graph.value_info.append(a)
    _, after = run(tmp_path, proto)
    assert list(after.graph.value_info) == [a]


# models that nothing runs


def ill_typed_inside():
    model = parser.parse_model(
        f"{HEAD} g (float[2] x) => (float[2] y) {{ h = Neg (x)  y = Relu (h) }}"
    )
    inner = helper.make_tensor_value_info("h", onnx.TensorProto.INT64, [2])
    model.graph.value_info.append(inner)
    return model


ILL_TYPED = {
    "operands of two types": f"""{HEAD} g (float[2,4] x) => (float[2,4] y)
        <int64[1] k = {{1}}> {{ y = Add (x, k) }}""",
    "a declared output": f"{HEAD} g (float[2] x) => (int64[2] y) {{ y = Relu (x) }}",
    "a declared value": ill_typed_inside(),
    "a type that the operator has not": f"""{HEAD} g (string[2] x) => (string[2] y)
        {{ y = Relu (x) }}""",
    "two branches": f"""{HEAD} g (float[2] x, bool c) => (float[2] y) {{
        y = If (c) <then_branch = t () => (float[2] a) {{ a = Neg (x) }},
                    else_branch = e () => (int64[2] b) {{ b = Cast <to = 7> (x) }}> }}""",
    "shapes": f"""{HEAD} g (float[2,4] x, float[3,4] z) => (float[2,4] y)
        {{ y = MatMul (x, z) }}""",
}


@pytest.mark.parametrize("kind", ILL_TYPED)
def test_wrong_types_are_refused(tmp_path, kind):
    with pytest.raises(RefusedError, match="types or shapes do not fit") as error:
        run(tmp_path, ILL_TYPED[kind])
    assert error.value.where == str(tmp_path / "model.onnx")
    assert not (tmp_path / "out.onnx").exists()


def test_what_only_onnx_finds_wrong_is_no_reason(tmp_path):
    wrong_shape = f"{HEAD} g (float[2,4] x) => (float[2,5] y) {{ y = Relu (x) }}"
    result, _ = run(tmp_path, wrong_shape)
    assert result.drift_on == "synthetic feeds"


def test_an_input_that_cannot_be_made_up_is_said(tmp_path):
    text = f"""{HEAD} g (seq(float[2]) x) => (float[2] y) <int64 i = {{0}}>
    {{ y = SequenceAt (x, i) }}"""
    result, _ = run(tmp_path, text)
    assert result.drift_on is None
    assert result.warnings[0] == (
        "verify: checked in structure only: input 'x' is a seq(tensor(float)): it cannot "
        "be made up"
    )


# the account

CHANGED = [
    "Constant nodes made initializers: 1",
    "opset 17 became 13",
    "IR version 8 became 7",
]


def test_what_no_pass_changed_is_told(tmp_path):
    needless = TWICE.replace("y = Mul (x, two)", "h = Identity (x)  y = Mul (h, two)")
    result, _ = run(tmp_path, needless)
    facts = json.loads(result.to_json())
    assert facts["model"]["changes"] == CHANGED
    assert f"besides the passes: {'; '.join(CHANGED)}" in result_tables(result)
    assert facts["passes"][0]["changed"] == 1


def test_nothing_is_told_where_nothing_changed(tmp_path):
    text = """<ir_version: 7, opset_import: ["": 13]>
    g (float[N,4] x) => (float[N,4] y) { y = Relu (x) }"""
    result, _ = run(tmp_path, text)
    assert result.as_dict()["model"]["changes"] == []
    assert not [t for t in result_tables(result) if "besides" in str(t)]


def test_an_added_import_is_warned_of(tmp_path):
    result, after = run(tmp_path, NOT_IMPORTED)
    assert result.warnings[0] == (
        "model: uses operators of com.microsoft without importing it: version 1 is taken"
    )
    imports = {opset.domain: opset.version for opset in after.opset_import}
    assert imports == {"": 13, "com.microsoft": 1}
