"""Least versions: what stays as it is, how low each op may go, IR versions by content, and the
converter's word.
"""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from exactness import assert_equal_outputs, model_of
from onnx import version_converter
from onnx.backend.test.loader import load_model_tests
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core import schemas
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.versions import (
    LeastVersions,
    least_ir_version,
    lower_versions,
    renumber,
)
from sample_models import ALL, model_from


def one(body, opset, x="float[2, 3, 8, 8]", y="float[A, B, C, D]", weights=""):
    """A model of one input x and one output y at an opset; weights without values get random
    ones.
    """
    declared = f"<{weights}>" if weights else ""
    return ir.from_proto(
        model_from(f"""<ir_version: 14, opset_import: ["" : {opset}]>
    g ({x} x, int64[2, 3, 8, 8] i) => ({y} y) {declared} {{ {body} }}""")
    )


def lowered(model):
    lower_versions(model)
    return model.opset_imports[""]


STAY = [
    ("y = Relu (x)", 13, {}),
    ("y = Relu (x)", 9, {}),
    ("y = LayerNormalization <axis = 3> (x, w)", 17, {"weights": "float[8] w"}),
    ("y = Gelu (x)", 20, {}),
    ("a = ReduceMean (x, d) y = Identity (a)", 18, {"weights": "int64[2] d = {2, 3}"}),
    (
        "y = ReduceMax (x, d)",
        20,
        {
            "weights": "int64[2] d = {2, 3}",
            "x": "bool[2, 3, 8, 8]",
            "y": "bool[A, B, C, D]",
        },
    ),
    (
        'y = Pad <mode = "wrap"> (x, p)',
        19,
        {"weights": "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"},
    ),
    (
        "y = MaxPool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (x)",
        22,
        {},
    ),
    ("y = AveragePool <kernel_shape = [2, 2], dilations = [2, 2]> (x)", 19, {}),
    ('y = GridSample <mode = "linear"> (x, g)', 20, {"weights": "float[2, 8, 8, 2] g"}),
    (
        "y = Reshape <allowzero = 1> (x, s)",
        14,
        {"weights": "int64[4] s = {2, 3, 8, 8}"},
    ),
    ("y = Shape <start = 1> (x)", 15, {"y": "int64[A]"}),
    ("c = Cast <to = 22> (x) y = Cast <to = 1> (c)", 21, {}),
    (
        "q = QuantizeLinear (x, s, z) y = DequantizeLinear (q, s, z)",
        21,
        {"weights": "float s = {0.5}, uint16 z = {7}"},
    ),
    (
        "q = QuantizeLinear <output_dtype = 3> (x, s) y = DequantizeLinear (q, s)",
        21,
        {"weights": "float s = {0.5}"},
    ),
    (
        "y = DequantizeLinear <block_size = 2> (q, s)",
        21,
        {
            "x": "float[1]",
            "y": "float[4]",
            "weights": "int8[4] q = {1, 2, 3, 4}, float[2] s = {0.5, 0.25}",
        },
    ),
]


@pytest.mark.parametrize(
    ("body", "opset", "more"), STAY, ids=lambda v: v if isinstance(v, str) else ""
)
def test_an_opset_that_is_needed_stays(body, opset, more):
    assert lowered(one(body, opset, **more)) == opset


FALL = [
    ("y = Relu (x)", 21, 13, {}),
    ("y = Relu (x)", 14, 13, {"x": "float16[2, 3, 8, 8]", "y": "float16[A, B, C, D]"}),
    (
        "y = Add (x, x)",
        20,
        14,
        {"x": "int8[2]", "y": "int8[2]"},
    ),  # before: not of 8 bits
    ("y = Add (x, x)", 20, 13, {"x": "int64[2]", "y": "int64[2]"}),
    ("y = Equal (x, x)", 21, 19, {"x": "string[2]", "y": "bool[2]"}),
    ("y = Cast <to = 1> (x)", 21, 13, {"x": "int8[2]", "y": "float[2]"}),
    (
        "y = Conv <pads = [1, 1, 1, 1]> (x, w)",
        24,
        13,
        {"weights": "float[4, 3, 3, 3] w"},
    ),
    (
        "y = BatchNormalization <training_mode = 0> (x, s, s, s, s)",
        20,
        13,
        {"weights": "float[3] s"},
    ),
    ("y = MaxPool <kernel_shape = [2, 2], ceil_mode = 0> (x)", 22, 13, {}),
    ("y = MaxPool <kernel_shape = [2, 2], ceil_mode = 1> (x)", 21, 13, {}),
    ("y = AveragePool <kernel_shape = [2, 2]> (x)", 22, 13, {}),
    ("y = Pad (x, p)", 21, 13, {"weights": "int64[8] p = {0, 0, 1, 1, 0, 0, 1, 1}"}),
    (
        "y = Pad (x, p, , a)",
        21,
        18,
        {"weights": "int64[2] p = {1, 1}, int64[1] a = {2}"},
    ),
    (
        "y = ReduceMean <keepdims = 1> (x, d)",
        21,
        18,
        {"weights": "int64[2] d = {2, 3}"},
    ),
    ("y = ReduceMax (x, d)", 21, 18, {"weights": "int64[2] d = {2, 3}"}),
    (
        'y = GridSample <mode = "linear"> (x, g)',
        22,
        20,
        {"weights": "float[2, 8, 8, 2] g"},
    ),
    (
        'y = Resize <mode = "nearest"> (x, , s)',
        21,
        18,
        {"weights": "float[4] s = {1, 1, 2, 2}"},
    ),
    ('y = ScatterElements <reduction = "add"> (x, i, x)', 20, 16, {}),
    ('y = ScatterElements <reduction = "max"> (x, i, x)', 20, 18, {}),
    ("y, z = Split <num_outputs = 2> (x)", 20, 18, {}),
    ("y, z = Split (x, p)", 20, 13, {"weights": "int64[2] p = {1, 1}"}),
    ("s = Shape (x) y = Reshape <allowzero = 0> (x, s)", 21, 13, {}),
    (
        "q = QuantizeLinear <axis = 1, saturate = 1> (x, s, z) y = DequantizeLinear "
        "<axis = 1, block_size = 0> (q, s, z)",
        24,
        13,
        {"weights": "float s = {0.5}, int8 z = {0}"},
    ),
    ("y = Dropout (x)", 22, 13, {}),
    ("y = HardSwish (x)", 22, 14, {}),
    ("y = Mod (x, x)", 27, 13, {"x": "int64[2]", "y": "int64[2]"}),
]


def without_defaults(node, opset):
    """Operator, inputs, outputs and the attributes that do not state what the op does without
    them.
    """
    schema = onnx.defs.get_schema(node.op_type, opset)
    known = {
        name: a.default_value.SerializeToString()
        for name, a in schema.attributes.items()
    }
    told = {
        a.name: onnx.helper.get_attribute_value(a)
        for a in node.attribute
        if not (known[a.name] and onnx.AttributeProto.FromString(known[a.name]) == a)
    }
    return node.op_type, list(node.input), list(node.output), told


@pytest.mark.parametrize(
    ("body", "opset", "least", "more"),
    FALL,
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_an_opset_falls_as_far_as_every_node_means_the_same(body, opset, least, more):
    model = one(body, opset, **more)
    names = [value.name for node in model.graph for value in node.outputs]
    before = ir.to_proto(model)
    assert lowered(model) == least
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert [value.name for node in model.graph for value in node.outputs] == names
    back = version_converter.convert_version(
        after, opset
    )  # onnx's own word on what the nodes mean at the higher one
    assert [without_defaults(n, opset) for n in back.graph.node] == [
        without_defaults(n, opset) for n in before.graph.node
    ]


@pytest.mark.needs("onnxruntime", "1.32", "IR version 14")
def test_attributes_that_the_lower_opset_does_not_spell_go():
    model = one(
        "y = BatchNormalization <training_mode = 0, epsilon = 0.1> (x, s, s, s, s)",
        20,
        weights="float[3] s = {1, 2, 3}",
    )
    before = ir.to_proto(model)
    lower_versions(model)
    assert set(model.graph[0].attributes) == {"epsilon"}
    assert_equal_outputs(before, ir.to_proto(model), {}, 1)


def test_a_value_of_unknown_type_is_taken_to_be_of_any():
    text = """<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { a = own.Thing (x)  OP }"""
    assert (
        lowered(model_of(text.replace("OP", "b = Sigmoid (a)  y = own.Thing (b)")))
        == 13
    )  # no type was ever added
    assert (
        lowered(model_of(text.replace("OP", "b = Identity (a)  y = own.Thing (b)")))
        == 21
    )


def test_subgraphs_count():
    text = """<ir_version: 10, opset_import: ["" : 21]>
    g (float[2, 3] x, bool c) => (float[2, 3] y) {
        y = If (c) <then_branch = t () => (float[2, 3] a) { a = OP (x) },
                    else_branch = e () => (float[2, 3] b) { b = Neg (x) }>
    }"""
    assert lowered(model_of(text.replace("OP", "Relu"))) == 13
    assert lowered(model_of(text.replace("OP", "Gelu"))) == 20


FUNCTION = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
g (float[2] x) => (float[2] y) { y = com.microsoft.Thing (x) }
<domain: "com.microsoft", opset_import: ["" : VERSION]>
Thing (a) => (b) { b = OP (a) }"""


@pytest.mark.parametrize(
    ("version", "op", "least"),
    [(21, "Sigmoid", 13), (21, "Gelu", 20), (20, "Sigmoid", 21)],
)
def test_functions_count_and_follow(version, op, least):
    model = model_of(FUNCTION.replace("VERSION", str(version)).replace("OP", op))
    assert lowered(model) == least
    (function,) = model.functions.values()
    assert function.opset_imports[""] == (least if version == 21 else version)
    assert model.ir_version == (8 if least == 13 else 9 if least == 20 else 10)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


def test_what_only_the_runtime_knows_stays():
    model = one("y = SimplifiedLayerNormalization (x, w)", 20, weights="float[8] w")
    assert lowered(model) == 20


@pytest.mark.parametrize(
    ("opset", "least"), [(13, 7), (14, 7), (15, 8), (18, 8), (19, 9), (20, 9), (21, 10)]
)
def test_the_ir_version_goes_with_the_opset(opset, least):
    model = one("y = Relu (x)", opset)
    assert least_ir_version(model) == least


def test_the_ir_version_is_what_the_content_needs():
    def needs(change):
        model = one("y = Relu (x)", 13)
        change(model)
        lower_versions(model)
        return model.ir_version

    weight = ir.Value(
        name="w", const_value=ir.Tensor(np.zeros(2, ir.DataType.INT4.numpy()), name="w")
    )
    assert needs(lambda model: None) == 7
    assert needs(lambda model: model.graph[0].metadata_props.update(k="v")) == 10
    assert needs(lambda model: model.graph.metadata_props.update(k="v")) == 10
    assert needs(lambda model: model.graph.inputs[0].metadata_props.update(k="v")) == 10
    assert needs(lambda model: model.metadata_props.update(k="v")) == 7
    assert needs(lambda model: setattr(model.graph[0], "doc_string", "text")) == 7
    assert needs(lambda model: model.graph.register_initializer(weight)) == 10


def test_neither_version_is_raised():
    model = one("y = Relu (x)", 13)
    model.ir_version = 3
    assert lower_versions(model) is False
    assert (model.opset_imports[""], model.ir_version) == (13, 3)


@pytest.mark.parametrize("sample", ALL)
def test_samples_compute_the_same_at_opset_13(sample):
    model = ir.from_proto(model_from(ALL[sample]))
    normalize(model)
    before = ir.to_proto(model)
    outcome = LeastVersions().run(model, NullContext())
    assert outcome.changed == 1
    assert (model.opset_imports[""], model.ir_version) == (13, 7)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert_equal_outputs(before, ir.to_proto(model), {}, 2)
    assert LeastVersions().run(model, NullContext()).changed == 0


def test_renumbering_goes_up_and_down_or_leaves_the_model():
    model = one("y = BatchNormalization (x, s, s, s, s)", 13, weights="float[3] s")
    assert renumber(model, 21) is True
    assert model.opset_imports[""] == 21
    assert renumber(model, 14) is True
    model = one("y = ReduceMean <axes = [2, 3]> (x)", 13)
    assert renumber(model, 18) is False
    assert model.opset_imports[""] == 13


OTHERS = {
    ("Attention", 24),
    ("Attention", 25),
    ("DFT", 20),
    ("GridSample", 20),
    ("GroupNormalization", 21),
    ("LpPool", 18),
    ("OptionalHasElement", 18),
    ("Resize", 18),
    ("RoiAlign", 16),
    ("ReduceL1", 18),
    ("ReduceL2", 18),
    ("ReduceLogSum", 18),
    ("ReduceLogSumExp", 18),
    ("ReduceMax", 18),
    ("ReduceMean", 18),
    ("ReduceMin", 18),
    ("ReduceProd", 18),
    ("ReduceSumSquare", 18),
}
"""Versions of ops that are other ops: no node moves across them."""


@pytest.mark.needs("onnx", "1.23", "opset 28")
def test_every_change_of_an_op_was_looked_at():
    """Between reviewed opsets an op gains types only, or it is in one of the tables."""
    history = {}
    for schema in onnx.defs.get_all_schemas_with_history():
        if schema.domain == "" and schema.since_version in range(schemas.REVIEWED.stop):
            history.setdefault(schema.name, {})[schema.since_version] = schema
    more_than_types = set()
    for name, versions in history.items():
        for older, newer in itertools.pairwise(versions[v] for v in sorted(versions)):
            if newer.since_version > 13 and shape_of(older) != shape_of(newer):
                more_than_types.add((name, newer.since_version))
    assert more_than_types == schemas.ADDITIONS | OTHERS
    assert not schemas.ADDITIONS & OTHERS


def shape_of(schema):
    attributes = {
        name: (a.type, a.required, a.default_value.SerializeToString())
        for name, a in schema.attributes.items()
    }
    return attributes, *(
        [(p.option, p.min_arity) for p in slots]
        for slots in (schema.inputs, schema.outputs)
    )


@pytest.mark.slow
@pytest.mark.filterwarnings(
    "ignore::RuntimeWarning"
)  # of the suite, while it computes what it expects
def test_onnx_own_cases_compute_the_same_at_the_least_opset():
    """A ninth of the cases of one node, which have every attribute and type: as ONNX Runtime
    computes both.
    """
    fell = compared = 0
    for case in load_model_tests(kind="node")[::9]:
        model = ir.from_proto(case.model)
        if not lower_versions(model):
            continue
        fell += 1
        low = ir.to_proto(model)
        onnx.checker.check_model(low, full_check=True)
        expected = computed(case.model, case.data_sets[0][0])
        if expected is None:
            continue  # no kernel at the case's own opset, or for its types
        compared += 1
        for one, other in zip(
            expected, computed(low, case.data_sets[0][0]), strict=True
        ):
            if isinstance(one, np.ndarray) and one.dtype.kind == "f":
                np.testing.assert_allclose(
                    other, one, rtol=1e-5, atol=1e-6, err_msg=case.name
                )
            else:
                np.testing.assert_equal(other, one, err_msg=case.name)
    assert fell > 80
    assert compared > 60


def computed(proto, arrays):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    try:
        session = onnxruntime.InferenceSession(
            proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )
        feeds = {
            value.name: array
            for value, array in zip(session.get_inputs(), arrays, strict=False)
        }
        return session.run(None, feeds)
    except Exception:
        return None
