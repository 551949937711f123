"""load(): what is accepted, and that everything else is refused with a place, a reason and a
fix.
"""

import os
from collections.abc import Callable

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from builders import DATA, SMALL, calling, external, node, small, sparse, written
from onnx import TensorProto, helper, parser
from onnx_opt import OnnxOptError, RefusedError
from onnx_opt.frontends.onnx_file import load, read
from onnx_opt.passes._core.limits import LIMITS


def refusal(path, **options) -> RefusedError:
    """The refusal that `path` meets; checks its form."""
    with pytest.raises(RefusedError) as caught:
        load(path, **options)
    error = caught.value
    assert error.where == str(path)
    assert error.problem
    assert error.fix
    assert "\n" not in error.problem + error.fix
    return error


# --- accepted


def test_a_model_loads_unchanged(tmp_path):
    model = load(written(tmp_path, small()))
    assert [n.op_type for n in model.graph] == ["MatMul", "Relu"]
    np.testing.assert_array_equal(
        model.graph.initializers["w"].const_value.numpy(), [[1, 2], [3, 4]]
    )
    assert model.graph.inputs[0].shape[0].value == "N"


ACCEPTED = {
    "custom domain": """<ir_version: 10, opset_import: ["" : 21, "my.domain" : 1]>
        g (float[2] x) => (float[2] y) { y = my.domain.Fancy <depth = 3> (x) }""",
    "runtime's own operator": """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2, 4] x, float[4] s) => (float[2,
            4] y) { y = SimplifiedLayerNormalization <axis = -1> (x, s) }""",
    "a subgraph's initializer shadows": """<ir_version: 10, opset_import: ["" : 21]>
        g (bool c, float[2] x) => (float[2] y) <float[2] w = {1, 2}> {
            y = If (c) <then_branch = t () => (float[2] z) <float[2] w = {3, 4}> {
                            z = Add (x, w)
                        },
                        else_branch = e () => (float[2] z) { z = Neg (x) }> }""",
    "an input is the output": """<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x) => (float[2] x) { }""",
    "one domain imported twice alike": """<ir_version: 10, opset_import: ["" : 21, "ai.onnx" : 21]>
        g (float[2] x) => (float[2] y) { y = Relu (x) }""",
    "initializers that are no inputs, IR 3": """<ir_version: 3, opset_import: ["" : 9]>
        g (float[2] x) => (float[2] y) <float[2] w = {1, 2}> { y = Add (x, w) }""",
    "sequences and optionals": """<ir_version: 10, opset_import: ["" : 21]>
        g (seq(float[2]) s, optional(float[2]) o) => (float[2] y) { y = OptionalGetElement (o) }""",
}


@pytest.mark.parametrize("name", ACCEPTED)
def test_accepts(tmp_path, name):
    proto = parser.parse_model(ACCEPTED[name])
    model = load(written(tmp_path, proto))
    assert [n.op_type for n in model.graph] == [n.op_type for n in proto.graph.node]


def test_nodes_out_of_order_are_sorted(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["" : 21]>
        g (float[2] x) => (float[2] y) { y = Relu (h)
            h = Neg (x) }""")
    assert [n.op_type for n in load(written(tmp_path, proto)).graph] == ["Neg", "Relu"]


def test_the_long_name_of_the_standard_domain_is_the_short_one(tmp_path):
    proto = parser.parse_model("""<ir_version: 10, opset_import: ["ai.onnx" : 21]>
        g (float[2] x) => (float[2] y) { y = Relu (x) }""")
    assert load(written(tmp_path, proto)).opset_imports == {"": 21}


def test_negative_dims_become_unknown_and_a_nameless_graph_gets_a_name(tmp_path):
    proto = small()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = -1
    proto.graph.ClearField("name")
    model = load(written(tmp_path, proto))
    assert model.graph.inputs[0].shape[0].value is None
    assert model.graph.name == "graph"


def test_a_bare_file_name_is_as_safe_as_a_full_one(tmp_path, monkeypatch):
    path = written(tmp_path, external(small(), "../outside.data"))
    (tmp_path.parent / "outside.data").write_bytes(bytes(16))
    monkeypatch.chdir(tmp_path)
    assert "outside the model's folder" in refusal(path.name).problem


def test_a_chain_of_20000_nodes_loads(tmp_path):
    nodes = [helper.make_node("Relu", [f"v{i}"], [f"v{i + 1}"]) for i in range(20_000)]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, [2])
        for n in ("v0", "v20000")
    ]
    proto = helper.make_model(
        helper.make_graph(nodes, "g", ends[:1], ends[1:]),
        ir_version=10,
        opset_imports=[helper.make_opsetid("", 21)],
    )
    assert len(load(written(tmp_path, proto)).graph) == 20_000


# --- files that are no models

NOT_MODELS = {
    "empty": (b"", "is empty"),
    "lfs": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n",
        "Git LFS pointer",
    ),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG image"),
    "zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "gzip": (b"\x1f\x8b\x08" + bytes(40), "gzip"),
    "pickle": (b"\x80\x02}q\x00.", "pickle"),
    "ort": (b"\x20\x00\x00\x00ORTM" + bytes(40), ".ort format"),
    "tflite": (b"\x20\x00\x00\x00TFL3" + bytes(40), "TensorFlow Lite"),
    "html": (b"<!DOCTYPE html><html></html>", "HTML"),
    "json": (b'{"irVersion": "10"}', "is text"),
    "text": (b"hello, this is my model\n", "text file"),
    "onnx text": (SMALL.encode(), "is text"),
    "zeros": (bytes(1000), "is not an ONNX model"),
    "noise": (bytes(range(255, 127, -1)) * 9, "is not an ONNX model"),
    "no graph": (
        onnx.ModelProto(
            ir_version=10, opset_import=[helper.make_opsetid("", 21)]
        ).SerializeToString(),
        "holds no graph",
    ),
    "a tensor": (
        helper.make_tensor("t", TensorProto.FLOAT, [3], [1, 2, 3]).SerializeToString(),
        "",
    ),
}


@pytest.mark.parametrize("name", NOT_MODELS)
def test_what_is_no_model_is_named(tmp_path, name):
    data, reason = NOT_MODELS[name]
    assert reason in refusal(written(tmp_path, data)).problem


def test_missing_file_names_its_neighbours(tmp_path):
    written(tmp_path, small(), "other.onnx")
    error = refusal(tmp_path / "m.onnx")
    assert error.problem == "no such file"
    assert "other.onnx" in error.fix


def test_folders_fifos_and_impossible_names_are_refused(tmp_path):
    assert refusal(tmp_path).problem == "is a folder"
    os.mkfifo(tmp_path / "fifo.onnx")
    assert refusal(tmp_path / "fifo.onnx").problem == "is not a regular file"
    assert "folder" in refusal(tmp_path / "none" / "m.onnx").fix
    with pytest.raises(RefusedError, match="file name"):
        load("a\0b.onnx")


@pytest.mark.parametrize("keep", [0.2, 0.5, 0.9, 0.99])
def test_cut_short_says_where(tmp_path, keep):
    data = small().SerializeToString()
    assert (
        "cut short" in refusal(written(tmp_path, data[: int(len(data) * keep)])).problem
    )


def nested(depth: int) -> bytes:
    """The wire form of a model of `depth` Ifs inside each other; protobuf's own Python API refuses
    to build it.
    """

    def field(number: int, content: bytes) -> bytes:
        length, size = b"", len(content)
        while size > 127:
            length, size = length + bytes([size & 127 | 128]), size >> 7
        return bytes([number << 3 | 2]) + length + bytes([size]) + content

    graph = b""
    for _ in range(depth):
        attribute = field(1, b"then_branch") + field(6, graph) + b"\xa0\x01\x05"  # type: GRAPH
        graph = field(1, field(4, b"If") + field(5, attribute))
    return b"\x08\x0a" + field(7, graph) + field(8, b"\x10\x15")


@pytest.mark.parametrize(
    ("depth", "reason"),
    [(20, "If ''"), (40, "nested deeper"), (10_000, "nested deeper")],
)
def test_nesting_is_bounded(tmp_path, depth, reason):
    assert reason in refusal(written(tmp_path, nested(depth))).problem


# --- models that are not sound

Change = Callable[[onnx.ModelProto], object]


def zipmap(m):
    m.graph.output.append(
        helper.make_value_info(
            "p",
            helper.make_map_type_proto(
                TensorProto.INT64,
                helper.make_tensor_type_proto(TensorProto.FLOAT, None),
            ),
        )
    )


BROKEN: dict[str, tuple[Change, str]] = {
    "IR version too new": (lambda m: setattr(m, "ir_version", 99), "IR version 99"),
    "IR version too old": (lambda m: setattr(m, "ir_version", 1), "IR version 1"),
    "opset too new": (
        lambda m: setattr(m.opset_import[0], "version", 9999),
        "needs opset 9999",
    ),
    "opset zero": (lambda m: setattr(m.opset_import[0], "version", 0), "needs opset 0"),
    "no opset": (lambda m: m.ClearField("opset_import"), "imports no operator set"),
    "opset twice": (
        lambda m: m.opset_import.append(helper.make_opsetid("ai.onnx", 13)),
        "twice",
    ),
    "domain not imported": (
        lambda m: setattr(m.graph.node[0], "domain", "my.domain"),
        "does not import",
    ),
    "ml operator that is gone, not imported": (
        lambda m: (
            setattr(m.graph.node[0], "domain", "ai.onnx.ml"),
            setattr(m.graph.node[0], "op_type", "TreeEnsembleRegressor"),
        ),
        "no such operator in opset 5 of ai.onnx.ml",
    ),
    "unknown operator": (
        lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate"),
        "no such operator in opset 21",
    ),
    "operator gone": (
        lambda m: setattr(m.graph.node[0], "op_type", "Upsample"),
        "no such operator",
    ),
    "no operator": (lambda m: m.graph.node[0].ClearField("op_type"), "has no operator"),
    "too many inputs": (
        lambda m: m.graph.node[1].input.append("x"),
        "has 2 inputs; 1 to 1",
    ),
    "too few inputs": (
        lambda m: m.graph.node[0].ClearField("input"),
        "has 0 inputs; 2 to 2",
    ),
    "too many outputs": (lambda m: m.graph.node[1].output.append("z"), "has 2 outputs"),
    "unknown attribute": (
        lambda m: m.graph.node[1].attribute.append(helper.make_attribute("foo", 1)),
        "'foo'",
    ),
    "attribute of another type": (
        lambda m: node(m, "Softmax", ["x"], ["s"], axis=1.5),
        "wrongly typed",
    ),
    "attribute missing": (
        lambda m: node(m, "Cast", ["x"], ["s"]),
        "lacks attribute 'to'",
    ),
    "undefined input": (
        lambda m: m.graph.node[0].input.__setitem__(0, "ghost"),
        "reads 'ghost'",
    ),
    "undefined output": (
        lambda m: setattr(m.graph.output[0], "name", "ghost"),
        "'ghost' is produced by no node",
    ),
    "value defined twice": (
        lambda m: node(m, "Neg", ["x"], ["h"]),
        "'h' is defined twice",
    ),
    "value is an input": (
        lambda m: node(m, "Neg", ["h"], ["x"]),
        "'x' is defined twice",
    ),
    "initializer twice": (
        lambda m: m.graph.initializer.append(m.graph.initializer[0]),
        "'w' stands there twice",
    ),
    "initializer nameless": (
        lambda m: m.graph.initializer[0].ClearField("name"),
        "nameless initializer",
    ),
    "input twice": (lambda m: m.graph.input.append(m.graph.input[0]), "'x' twice"),
    "input without type": (
        lambda m: m.graph.input[0].ClearField("type"),
        "has no type",
    ),
    "input of unknown type": (
        lambda m: setattr(m.graph.input[0].type.tensor_type, "elem_type", 99),
        "type 99",
    ),
    "cycle": (lambda m: m.graph.node[0].input.__setitem__(0, "y"), "cycle"),
    "node reads itself": (lambda m: m.graph.node[1].input.__setitem__(0, "y"), "cycle"),
    "map output": (zipmap, "is a map"),
    "training info": (lambda m: m.training_info.add(), "training_info"),
    "raw data short": (
        lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(12)),
        "raw_data",
    ),
    "unknown tensor type": (
        lambda m: setattr(m.graph.initializer[0], "data_type", 99),
        "unknown type 99",
    ),
    "negative dims": (
        lambda m: m.graph.initializer[0].dims.__setitem__(0, -2),
        "negative dimension",
    ),
    "dims overflow": (
        lambda m: m.graph.initializer[0].dims.extend([1 << 62, 1 << 62]),
        "its shape",
    ),
    "external text": (
        lambda m: m.graph.initializer.append(
            TensorProto(
                name="t",
                data_type=TensorProto.STRING,
                data_location=TensorProto.EXTERNAL,
            )
        ),
        "text and external",
    ),
    "external without place": (lambda m: external(m, ""), "does not say where"),
    "external offset negative": (
        lambda m: external(m, offset=-4),
        "offset or length '-4'",
    ),
    "external offset nonsense": (
        lambda m: external(m, offset="many"),
        "offset or length 'many'",
    ),
    "external length wrong": (
        lambda m: external(m, length=12),
        "declares 12 external bytes",
    ),
    "external NUL": (lambda m: external(m, "a\0b"), "not a file name"),
    "external absolute": (lambda m: external(m, "/etc/passwd"), "absolute path"),
    "external above": (
        lambda m: external(m, "../secret"),
        "outside the model's folder",
    ),
    "external device": (lambda m: external(m, "/dev/zero"), "absolute path"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_broken_models_are_refused(tmp_path, name):
    change, reason = BROKEN[name]
    proto = small()
    change(proto)
    assert reason in refusal(written(tmp_path, proto)).problem


def test_tensor_contents_have_one_form_and_one_length(tmp_path):
    def with_tensor(**fields):
        proto = small()
        proto.graph.initializer.append(TensorProto(name="t", dims=[3], **fields))
        return written(tmp_path, proto)

    f32, i4 = TensorProto.FLOAT, TensorProto.INT4
    assert "12" in refusal(with_tensor(data_type=f32, raw_data=bytes(13))).problem
    assert (
        "4 values"
        in refusal(with_tensor(data_type=f32, float_data=[1, 2, 3, 4])).problem
    )
    assert (
        "float_data"
        in refusal(with_tensor(data_type=f32, int32_data=[1, 2, 3])).problem
    )
    assert (
        "twice"
        in refusal(
            with_tensor(data_type=f32, raw_data=bytes(12), float_data=[1, 2, 3])
        ).problem
    )
    assert "2 bytes" not in refusal(with_tensor(data_type=i4, raw_data=bytes(3))).fix
    assert "0 values" in refusal(with_tensor(data_type=f32)).problem
    assert load(with_tensor(data_type=i4, raw_data=bytes(2))).graph.initializers[
        "t"
    ].const_value.shape == [3]


def test_names_are_printed_safely(tmp_path):
    proto = small()
    proto.graph.node[0].input[0] = "evil\x1b[31m\nname" + "x" * 200
    problem = refusal(written(tmp_path, proto)).problem
    assert problem.isprintable()
    assert len(problem) < 250


def test_subgraphs_are_checked_too(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Neg", ["ghost"], ["z"])],
        "t",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    proto = small()
    node(proto, "If", ["c"], ["r"], then_branch=inner, else_branch=inner)
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    assert "'ghost'" in refusal(written(tmp_path, proto)).problem


def test_a_subgraph_may_not_read_the_output_of_its_own_node(tmp_path):
    inner = helper.make_graph(
        [helper.make_node("Neg", ["r"], ["z"])],
        "t",
        [],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])],
    )
    proto = small()
    node(proto, "If", ["c"], ["r"], then_branch=inner, else_branch=inner)
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    assert "cycle" in refusal(written(tmp_path, proto)).problem


# --- functions


def test_functions_load(tmp_path):
    model = load(written(tmp_path, calling({"f": ["g", "g"], "g": []})))
    assert sorted(f.name for f in model.functions.values()) == ["f", "g"]


@pytest.mark.parametrize(
    ("calls", "reason"),
    [
        ({"f": ["f"]}, "calls itself"),
        ({"f": ["g"], "g": ["h"], "h": ["f"]}, "calls itself"),
        (
            {f"f{i}": [f"f{i + 1}"] * 2 for i in range(40)} | {"f40": []},
            "expand to more than",
        ),
        (
            {f"f{i}": [f"f{i + 1}"] for i in range(3000)} | {"f3000": []},
            "nest deeper than",
        ),
    ],
)
def test_function_calls_are_bounded(tmp_path, calls, reason):
    assert reason in refusal(written(tmp_path, calling(calls))).problem


def test_the_deepest_accepted_chain_of_functions_can_be_inlined(tmp_path):
    from onnx_ir.passes.common import InlinePass

    depth = LIMITS["CALL_DEPTH"].default - 1
    model = load(
        written(
            tmp_path,
            calling({f"f{i}": [f"f{i + 1}"] for i in range(depth)} | {f"f{depth}": []}),
        )
    )
    InlinePass()(model)
    assert len(model.graph) == 2 + depth + 1


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda m: m.functions.append(m.functions[0]), "function twice"),
        (lambda m: m.functions[0].node[-1].input.__setitem__(0, "ghost"), "'ghost'"),
        (lambda m: m.functions[0].output.__setitem__(0, "ghost"), "'ghost'"),
        (lambda m: m.functions[0].input.append("v0"), "input twice"),
        (lambda m: m.functions[0].ClearField("opset_import"), "does not import"),
        (lambda m: m.graph.node[-1].input.extend(["x", "x"]), "more inputs"),
    ],
)
def test_broken_functions_are_refused(tmp_path, change, reason):
    proto = calling({"f": []})
    change(proto)
    assert reason in refusal(written(tmp_path, proto)).problem


# --- what other writers leave out

ATTRIBUTES = {
    "i": ("Concat", "axis", ["x", "x"], helper.make_attribute("axis", 0)),
    "f": ("LeakyRelu", "alpha", ["x"], helper.make_attribute("alpha", 0.0)),
    "s": ("Cast", "round_mode", ["x"], helper.make_attribute("round_mode", "")),
}


@pytest.mark.parametrize("field", ATTRIBUTES)
def test_numbers_and_texts_that_are_left_out_are_0_and_empty(tmp_path, field):
    op_type, name, inputs, stated = ATTRIBUTES[field]
    proto = small()
    added = helper.make_node(op_type, inputs, ["extra"])
    if op_type == "Cast":
        added.attribute.append(helper.make_attribute("to", 1))
        proto.opset_import[0].version = 24
    stated = type(stated).FromString(stated.SerializeToString())
    left_out = added.attribute.add()
    left_out.CopyFrom(stated)
    left_out.ClearField(field)
    assert not left_out.HasField(field)
    proto.graph.node.append(added)
    model = load(written(tmp_path, proto))
    (found,) = [n for n in model.graph if n.op_type == op_type]
    assert ir.to_proto(found.attributes[name]) == stated


@pytest.mark.parametrize(
    ("kind", "word"),
    [
        (onnx.AttributeProto.TENSOR, "does not hold"),
        (onnx.AttributeProto.GRAPH, "does not hold"),
    ],
)
def test_other_attributes_that_are_left_out_are_refused(tmp_path, kind, word):
    proto = small()
    proto.graph.node[0].attribute.add(name="value", type=kind)
    assert word in refusal(written(tmp_path, proto)).problem


# --- imports that are missing

USED = {
    "com.microsoft": ("y = com.microsoft.Gelu (x)", {"com.microsoft": 1}),
    "ai.onnx.ml": (
        "y = ai.onnx.ml.Scaler <offset = [0.5], scale = [2.0]> (x)",
        {"ai.onnx.ml": 5},
    ),
    "two": (
        "h = com.microsoft.Gelu (x)  y = ai.onnx.ml.Scaler <offset = [0.5]> (h)",
        {"com.microsoft": 1, "ai.onnx.ml": 5},
    ),
    "in a subgraph": (
        """c = IsNaN (one)
        y = If (c) <then_branch = t () => (float[2] a) { a = com.microsoft.Gelu (x) },
                    else_branch = e () => (float[2] b) { b = Neg (x) }>""",
        {"com.microsoft": 1},
    ),
}


@pytest.mark.parametrize("body", USED)
def test_domains_that_the_runtime_knows_are_imported(tmp_path, body):
    nodes, added = USED[body]
    reading = read(
        written(
            tmp_path,
            parser.parse_model(f"""<ir_version: 8, opset_import: ["": 17]>
            g (float[2] x) => (float[2] y) <float one = {{1}}> {{ {nodes} }}"""),
        )
    )
    assert reading.model.opset_imports == {"": 17, **added}
    assert reading.mended == [
        f"uses operators of {domain} without importing it: version {version} is taken"
        for domain, version in added.items()
    ]


def test_the_standard_domain_is_imported_in_the_version_that_is_known(tmp_path):
    text = """<ir_version: 8, opset_import: ["com.microsoft": 1]>
    g (float[2] x) => (float[2] y) { h = Relu (x)  y = com.microsoft.Gelu (h) }"""
    model = load(written(tmp_path, parser.parse_model(text)))
    newest = onnx.defs.onnx_opset_version()
    assert model.opset_imports == {"com.microsoft": 1, "": newest}


def test_the_domain_of_a_local_function_is_imported(tmp_path):
    text = """<ir_version: 8, opset_import: ["": 17]>
    g (float[2] x) => (float[2] y) { y = own.Twice (x) }
    <domain: "own", opset_import: ["": 17]> Twice (a) => (b) { b = Add (a, a) }"""
    model = load(written(tmp_path, parser.parse_model(text)))
    assert model.opset_imports == {"": 17, "own": 1}
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_a_complete_model_is_not_mended(tmp_path):
    reading = read(written(tmp_path, small()))
    assert (reading.mended, reading.changes) == ([], [])


# --- deprecated operators

GROUP_NORMALIZATION = """<ir_version: 8, opset_import: ["": {opset}]>
g (float[1, 4, 2] x) => (float[1, 4, 2] y) <float[2] s = {{1, 2}}, float[2] b = {{0, 1}}>
{{ y = GroupNormalization <num_groups = 2> (x, s, b) }}"""


@pytest.mark.parametrize("opset", [18, 19, 20])
def test_deprecated_operators_that_have_a_body_are_accepted(tmp_path, opset):
    text = GROUP_NORMALIZATION.format(opset=opset)
    model = load(written(tmp_path, parser.parse_model(text)))
    assert [node.op_type for node in model.graph] == ["GroupNormalization"]


@pytest.mark.parametrize(("op_type", "opset"), [("Upsample", 10), ("Scatter", 11)])
def test_deprecated_operators_without_a_body_are_refused(tmp_path, op_type, opset):
    text = GROUP_NORMALIZATION.format(opset=opset)
    proto = parser.parse_model(text.replace("GroupNormalization", op_type))
    reason = f"no such operator in opset {opset}"
    assert reason in refusal(written(tmp_path, proto)).problem


# --- sparse tensors


@pytest.mark.parametrize(
    "indices", [[1, 5], [[0, 1], [1, 2]]], ids=["linear", "coordinates"]
)
def test_sparse_initializers_become_dense(tmp_path, indices):
    proto = small()
    proto.graph.sparse_initializer.append(sparse([7.0, 8.0], indices, [2, 3]))
    model = load(written(tmp_path, proto))
    np.testing.assert_array_equal(
        model.graph.initializers["s"].const_value.numpy(), [[0, 7, 0], [0, 0, 8]]
    )


def test_sparse_constants_become_dense_in_subgraphs_too(tmp_path):
    def constant():
        return helper.make_node(
            "Constant", [], ["k"], sparse_value=sparse([7.0], [1], [2])
        )

    proto = small()
    inner = helper.make_graph(
        [constant()],
        "t",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, [2])],
    )
    node(proto, "If", ["c"], ["r"], then_branch=inner, else_branch=inner)
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    proto.graph.node.append(constant())
    model = load(written(tmp_path, proto))
    constants = [n for n in model.graph.all_nodes() if n.op_type == "Constant"]
    assert len(constants) == 3
    for found in constants:
        np.testing.assert_array_equal(
            found.attributes["value"].as_tensor().numpy(), [0, 7]
        )


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (sparse([7.0], [6], [2, 3]), "out of range"),
        (sparse([7.0], [-1], [2, 3]), "out of range"),
        (sparse([7.0], [[0, 3]], [2, 3]), "out of range"),
        (sparse([7.0, 8.0], [1, 1], [2, 3]), "repeated"),
        (sparse([7.0, 8.0], [1], [2, 3]), "do not fit"),
        (sparse([7.0], [[0, 1, 2]], [2, 3]), "do not fit"),
        (sparse([7.0], [0], [1 << 20, 1 << 20]), "would take"),
        (sparse([b"a"], [0], [2], kind=TensorProto.STRING), "text"),
    ],
)
def test_bad_sparse_tensors_are_refused(tmp_path, tensor, reason):
    proto = small()
    proto.graph.sparse_initializer.append(tensor)
    assert reason in refusal(written(tmp_path, proto)).problem


def test_the_dense_limit_is_a_gibibyte():
    assert LIMITS["SPARSE_BYTES"].default == 1 << 30


# --- external data


def test_external_data_stays_external(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "w.bin").write_bytes(bytes(4096) + DATA)
    model = load(written(tmp_path, external(small(), "sub/w.bin", offset=4096)))
    tensor = model.graph.initializers["w"].const_value
    assert type(tensor).__name__ == "ExternalTensor"
    assert os.path.isabs(tensor.path)
    np.testing.assert_array_equal(tensor.numpy(), [[1, 2], [3, 4]])


def test_missing_external_data_is_counted(tmp_path):
    proto = external(small())
    again = external(small()).graph.initializer[0]
    again.name = "w2"
    proto.graph.initializer.append(again)
    error = refusal(written(tmp_path, proto))
    assert error.problem == "weights file 'm.onnx.data' is missing"
    assert error.fix == "put it beside the model; it holds 2 tensors (32 bytes)"


@pytest.mark.parametrize("size", [0, 15])
def test_short_external_data_is_refused(tmp_path, size):
    (tmp_path / "m.onnx.data").write_bytes(DATA[:size])
    assert f"has {size} bytes" in refusal(written(tmp_path, external(small()))).problem


def test_offset_beyond_the_file_is_refused(tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(DATA)
    assert "1,000" in refusal(written(tmp_path, external(small(), offset=1000))).problem


def test_links_out_of_the_folder_are_refused_and_links_inside_are_not(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(DATA)
    (folder / "m.onnx.data").symlink_to(tmp_path / "secret")
    path = written(folder, external(small()))
    assert "link to a place outside" in refusal(path).problem
    (folder / "m.onnx.data").unlink()
    (folder / "real").write_bytes(DATA)
    (folder / "m.onnx.data").symlink_to("real")
    assert load(path).graph.initializers["w"].const_value.numpy()[1, 1] == 4


def test_a_linked_folder_is_a_way_out_too(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (tmp_path / "m.onnx.data").write_bytes(DATA)
    (folder / "up").symlink_to(tmp_path)
    assert (
        "link to a place outside"
        in refusal(written(folder, external(small(), "up/m.onnx.data"))).problem
    )


def test_hard_links_need_consent(tmp_path):
    (tmp_path / "store").write_bytes(DATA)
    os.link(tmp_path / "store", tmp_path / "m.onnx.data")
    path = written(tmp_path, external(small()))
    assert "2 hard links" in refusal(path).problem
    tensor = load(path, allow_hardlinks=True).graph.initializers["w"].const_value
    np.testing.assert_array_equal(tensor.numpy(), [[1, 2], [3, 4]])
    assert tensor.path == str(tmp_path / "m.onnx.data")


def test_fifos_and_folders_are_no_weights_files(tmp_path):
    path = written(tmp_path, external(small()))
    os.mkfifo(tmp_path / "m.onnx.data")
    assert "not a regular file" in refusal(path).problem
    os.unlink(tmp_path / "m.onnx.data")
    (tmp_path / "m.onnx.data").mkdir()
    assert "not a regular file" in refusal(path).problem


def test_external_tensors_of_constants_subgraphs_and_functions_are_confined_too(
    tmp_path,
):
    (tmp_path / "m.onnx.data").write_bytes(DATA)
    tensor = external(small()).graph.initializer[0]
    proto = calling({"f": []})
    constant = helper.make_node("Constant", [], ["k"], value=tensor)
    proto.functions[0].node.insert(0, constant)
    inner = helper.make_graph(
        [constant],
        "t",
        [],
        [helper.make_tensor_value_info("k", TensorProto.FLOAT, [2, 2])],
    )
    inner.initializer.append(tensor)
    node(proto, "If", ["c"], ["r"], then_branch=inner, else_branch=inner)
    proto.graph.input.append(helper.make_tensor_value_info("c", TensorProto.BOOL, []))
    model = load(written(tmp_path, proto))
    held = (
        next(iter(next(iter(model.functions.values())))).attributes["value"].as_tensor()
    )
    np.testing.assert_array_equal(held.numpy(), [[1, 2], [3, 4]])
    os.unlink(tmp_path / "m.onnx.data")
    assert "5 tensors" in refusal(tmp_path / "m.onnx").fix


def test_external_data_of_zero_bytes_needs_no_file_content(tmp_path):
    (tmp_path / "m.onnx.data").write_bytes(b"")
    proto = small()
    proto.graph.initializer.append(
        TensorProto(name="e", dims=[0, 4], data_type=TensorProto.FLOAT)
    )
    proto.graph.initializer[1].data_location = TensorProto.EXTERNAL
    proto.graph.initializer[1].external_data.add(key="location", value="m.onnx.data")
    assert (
        load(written(tmp_path, proto)).graph.initializers["e"].const_value.tobytes()
        == b""
    )


def test_every_refusal_is_the_project_s_own_error():
    assert issubclass(RefusedError, OnnxOptError)
    assert RefusedError.exit_code == 3
