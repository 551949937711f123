"""Declarations of a file: what it says of values is written again, whatever inference finds."""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from builders import written
from onnx import helper, parser
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.passes._core.declared import declare_as_is, forget_inner_declarations
from onnx_opt.passes._core.normalize import normalize

HEAD = '<ir_version: 8, opset_import: ["": 17]>'


def rewritten(tmp_path, model, between=normalize):
    """The file of a model, and the file that is written after reading and `between`."""
    proto = parser.parse_model(model) if isinstance(model, str) else model
    model = load(written(tmp_path, proto))
    between(model)
    save(model, tmp_path / "again.onnx")
    return proto, onnx.load(tmp_path / "again.onnx")


def dims(info):
    if not info.type.tensor_type.HasField("shape"):
        return None
    return [d.dim_param or d.dim_value or "?" for d in info.type.tensor_type.shape.dim]


def all_dims(infos):
    return [(info.name, dims(info)) for info in infos]


# inputs and outputs

TWICE = "(float[N,4] x) => (float[?,?] x, float[N,4] y) { y = Relu (x) }"


@pytest.mark.parametrize(
    "graph",
    [
        TWICE,
        "(float[?,?] x) => (float[?,4] y, float[N,4] x) { y = Relu (x) }",
        "(float[N,4] x) => (float[N,4] y, float[?,4] y, float[?,?] x) { y = Relu (x) }",
        "(float[N,4] x) => (float[?,?] y) { y = Relu (x) }",
    ],
)
def test_inputs_and_outputs_keep_every_declaration(tmp_path, graph):
    before, after = rewritten(tmp_path, f"{HEAD} g {graph}")
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)


def test_an_output_without_a_type_gets_the_inferred_one(tmp_path):
    proto = parser.parse_model(
        f"{HEAD} g (float[N,4] x, float[?,4] z) => (float[1] y, float[1] c)"
        "{ y = Relu (x)  c = Concat <axis = 0> (x, z) }"
    )
    for output in proto.graph.output:
        output.ClearField("type")
    _, after = rewritten(tmp_path, proto)
    # a name that inference invents for the length of `c` says nothing
    assert all_dims(after.graph.output) == [("y", ["N", 4]), ("c", ["?", 4])]


def test_an_output_of_an_unknown_operator_keeps_no_type(tmp_path):
    proto = parser.parse_model(
        '<ir_version: 8, opset_import: ["": 17, "own": 1]>'
        "g (float[N,4] x) => (float[1] y) { y = own.Thing (x) }"
    )
    proto.graph.output[0].ClearField("type")
    before, after = rewritten(tmp_path, proto)
    assert list(after.graph.output) == list(before.graph.output)


# values inside

INNER = f"""{HEAD} g (float[batch,seq,8] x, int64[3] e) => (float[?,?,?] y)
<int64[3] z = {{0, 0, 0}}> {{ a = Slice (x, z, e)  b = Relu (x)  c = Add (a, b)  y = Neg (c) }}"""


@pytest.mark.parametrize(
    ("name", "declared", "expected"),
    [
        # inference knows nothing of a slice of unknown ends but its rank
        ("a", ["batch", "seq", 8], ["batch", "seq", 8]),
        ("a", ["batch", None, 8], ["batch", "?", 8]),
        ("a", [2, None, None], [2, "?", "?"]),
        ("a", ["batch", 8], ["?", "?", "?"]),
        # what inference knows stands, above what is wrong or says less
        ("b", ["batch", "seq", 9], ["batch", "seq", 8]),
        ("b", [1, 4, 8], ["batch", "seq", 8]),
        ("b", [None, None, None], ["batch", "seq", 8]),
        ("b", ["batch", 8], ["batch", "seq", 8]),
    ],
)
def test_dims_inside_are_filled_one_by_one(tmp_path, name, declared, expected):
    proto = parser.parse_model(INNER)
    info = helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, declared)
    proto.graph.value_info.append(info)
    _, after = rewritten(tmp_path, proto)
    (found,) = [dims(i) for i in after.graph.value_info if i.name == name]
    invented = [d if not str(d).startswith("unk__") else "?" for d in found]
    assert invented == expected


def test_passes_do_not_believe_declared_dims(tmp_path):
    proto = parser.parse_model(INNER)
    info = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, [2, 3, 8])
    proto.graph.value_info.append(info)
    model = load(written(tmp_path, proto))
    normalize(model)
    (slice_,) = [node for node in model.graph if node.op_type == "Slice"]
    assert not any(isinstance(dim, int) for dim in slice_.outputs[0].shape)


def test_dims_inside_go_where_shapes_have_changed(tmp_path):
    def surgery(model):
        forget_inner_declarations(model)
        normalize(model)

    proto = parser.parse_model(INNER)
    info = helper.make_tensor_value_info("a", onnx.TensorProto.FLOAT, ["batch", 2, 8])
    proto.graph.value_info.append(info)
    before, after = rewritten(tmp_path, proto, surgery)
    assert list(after.graph.output) == list(before.graph.output)
    assert 8 not in dims(next(i for i in after.graph.value_info if i.name == "a"))


# subgraphs

LOOP = """<ir_version: 8, opset_import: ["": 13]>
g (float[2,b] x, int64 n) => (float[?,?] out, float[?,?,?] y) <bool go = {{1}}> {{
    out, y = Loop (n, go, x) <body = t (int64 i, bool c, float[p,q] v) => (bool co, {outputs})
        <int64[1] zero = {{0}}, int64[1] one = {{1}}, int64[1] eight = {{8}}> {{
        co = Identity (c)
        shape = Shape (x)
        first = Slice (shape, zero, one)
        target = Concat <axis = 0> (first, eight)
        wide = Expand (v, target)
        z = Relu (wide)
        u = Identity (v)
    }}>
}}"""
IF = f"""{HEAD} g (float[N,4] x, bool c) => (float[?,?] y) {{
    y = If (c) <then_branch = t () => (float[p,q] u) {{ u = Relu (x) }},
                else_branch = e () => (float[?,?] v)
                {{ w = Neg (x)  v = Concat <axis = 0> (w, w) }}>
}}"""
SCAN = f"""{HEAD} g (float[T,4] x, float[4] s) => (float[4] last, float[T,?] y) {{
    last, y = Scan (s, x) <num_scan_inputs = 1, body = t (float[4] a, float[q] v)
        => (float[4] next, float[q] o) {{ w = Add (a, v)  next = Identity (w)  o = Relu (w) }}>
}}"""
PASSED_THROUGH = """<ir_version: 8, opset_import: ["": 13]>
g (float[2,b] x, int64 n) => (float[?,?] out, float[?,?,?] y) <bool go = {1}> {
    out, y = Loop (n, go, x) <body = t (int64 i, bool c, float[2,q] v)
        => (bool c, float[?,?] v, float[2,8] v) { }>
}"""


def body_of(proto):
    return next(
        attribute.g
        for node in proto.graph.node
        for attribute in node.attribute
        if attribute.HasField("g")
    )


@pytest.mark.parametrize(
    "text",
    [
        LOOP.format(outputs="float[r,s] u, float[p,q] z"),
        LOOP.format(outputs="float[r,s] u, float[?,?] z"),
        LOOP.format(outputs="float[2,?] u, float[2,8] z"),
        PASSED_THROUGH,
        IF,
        SCAN,
    ],
)
@pytest.mark.parametrize("times", [1, 2])
def test_subgraphs_keep_their_declarations(tmp_path, text, times):
    def between(model):
        for _ in range(times):
            normalize(model)

    before, after = rewritten(tmp_path, text, between)
    for part in ("input", "output", "value_info"):
        own = all_dims(getattr(body_of(before), part))
        assert all_dims(getattr(body_of(after), part)) == own


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (["k", 4], ["k", 4]),
        (["k", None], ["k", "?"]),
        ([2, 4], [2, 4]),
        (None, None),
        # what inference knows to be wrong
        (["k", 7], ["k", 4]),
        ([3, 4, 5], ["N", 4]),
    ],
)
def test_declared_values_of_a_subgraph_stay(tmp_path, declared, expected):
    proto = parser.parse_model(IF)
    info = helper.make_tensor_value_info("w", onnx.TensorProto.FLOAT, declared)
    body = next(a.g for a in proto.graph.node[0].attribute if a.name == "else_branch")
    body.value_info.append(info)
    _, after = rewritten(tmp_path, proto)
    body = next(a.g for a in after.graph.node[0].attribute if a.name == "else_branch")
    assert all_dims(body.value_info) == [("w", expected)]


@pytest.mark.parametrize("turns", [0, 1, 3])
@pytest.mark.parametrize(
    "outputs",
    ["float[r,s] u, float[p,q] z", "float[r,s] u, float[?,8] z", "u, z"],
)
def test_a_loop_gives_the_same_shapes_after_any_number_of_turns(
    tmp_path, outputs, turns
):
    def run(proto):
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        x = np.ones((2, 1), np.float32)
        return [out.shape for out in session.run(None, {"x": x, "n": np.array(turns)})]

    before, after = rewritten(tmp_path, LOOP.format(outputs=outputs))
    assert run(after) == run(before)


# models in memory


def test_a_model_in_memory_says_itself_what_it_declares(tmp_path):
    model = load(written(tmp_path, parser.parse_model(f"{HEAD} g {TWICE}")))
    # what its file said of the input is out of date
    model.graph.inputs[0].shape = ir.Shape(["M", 4])
    declare_as_is(model)
    normalize(model)
    save(model, tmp_path / "again.onnx")
    after = onnx.load(tmp_path / "again.onnx").graph
    assert all_dims(after.input) == [("x", ["M", 4])]
    assert all_dims(after.output) == [("x", ["?", "?"]), ("y", ["N", 4])]
