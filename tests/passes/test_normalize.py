"""normalize: what stays, first; then constants, functions, stale shapes and old forms."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import assert_equal_outputs, model_of, ops_of
from onnx_opt.passes._core.normalize import normalize


def normalized(text):
    """The normalized model, outputs proved equal and a second run proved idle."""
    model = model_of(text)
    before = ir.to_proto(model)
    normalize(model)
    after = ir.to_proto(model)
    assert_equal_outputs(before, after, {}, 3)
    normalize(model)
    assert ir.to_proto(model).SerializeToString(
        deterministic=True
    ) == after.SerializeToString(deterministic=True)
    return model


def test_a_constant_that_is_an_output_stays():
    model = normalized("""g (float[2] x) => (float[2] y, float c)
    { y = Neg (x)  c = Constant <value_float: float = 1.0> () }""")
    assert ops_of(model) == ["Neg", "Constant"]


def test_an_overridable_default_stays_an_input():
    model = normalized(
        "g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }"
    )
    assert [v.name for v in model.graph.inputs] == ["x", "w"]


@pytest.mark.parametrize(
    ("attribute", "expected", "kind"),
    [
        ("value = float[2] {1, 2}", [1, 2], "float32"),
        ("value_float: float = 2.5", 2.5, "float32"),
        ("value_floats: floats = [2.5, 1.0]", [2.5, 1], "float32"),
        ("value_int: int = 3", 3, "int64"),
        ("value_ints: ints = [3, 4]", [3, 4], "int64"),
    ],
)
def test_constants_of_every_form_are_lifted(attribute, expected, kind):
    model = normalized(f"""g (float[2] x) => (float[2] y)
    {{ c = Constant <{attribute}> ()  f = Cast <to: int = 1> (c)  y = Mul (x, f) }}""")
    assert ops_of(model) == ["Cast", "Mul"]
    array = model.graph.initializers["c"].const_value.numpy()
    assert array.tolist() == expected
    assert array.dtype == kind


def test_constants_of_bodies_are_lifted_into_them():
    model = normalized("""
    g (float[2] x, bool c) => (float[2] y) {
        y = If (c) <then_branch = t () => (float[2] a) { k = Constant <value_float: float =
        2.0> ()  a = Mul (x, k) },
                    else_branch = e () => (float[2] b) { k = Constant <value_float: float =
                    3.0> ()  b = Mul (x, k) }>
    }""")
    assert ops_of(model) == ["If", "Mul", "Mul"]
    assert [list(graph.initializers) for graph in model.graphs()] == [[], ["k"], ["k"]]


FUNCTION = """
<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
g (float[2] x) => (float[2] y) {{ h = own.f (x)  i = own.f (h)  y = Neg (i) }}
<domain: "own", opset_import: ["" : {opset}]>
f (a) => (b) {{ {body} }}
"""


@pytest.mark.parametrize(
    ("body", "expected"),
    [
        ("c = Exp (a)  b = Neg (c)", ["Exp", "Neg", "Exp", "Neg", "Neg"]),
        ("b = Identity (a)", ["Identity", "Identity", "Neg"]),
    ],
)
def test_functions_are_inlined(body, expected):
    model = normalized(FUNCTION.format(opset=21, body=body))
    assert ops_of(model) == expected
    assert not model.functions


def test_a_function_that_hands_its_input_on_does_not_rename_it():
    text = """
    <ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y, float[2] z) { y, z = own.f (x) }
    <domain: "own", opset_import: ["" : 21]>
    f (a) => (a, b) { b = Neg (a) }
    """
    model = model_of(text)
    normalize(model)
    assert [v.name for v in (*model.graph.inputs, *model.graph.outputs)] == [
        "x",
        "y",
        "z",
    ]
    assert sorted(ops_of(model)) == ["Identity", "Neg"]


def test_a_function_of_another_opset_stays():
    model = model_of(FUNCTION.format(opset=17, body="b = Exp (a)"))
    normalize(model)
    assert len(model.functions) == 1


def test_functions_that_would_explode_stay(monkeypatch):
    monkeypatch.setenv("ONNX_OPT_INLINE_NODES", "100")
    levels = "\n".join(
        f'<domain: "own", opset_import: ["" : 21, "own" : 1]>\n'
        f"f{i} (a) => (b) {{ c = own.f{i + 1} (a)  b = own.f{i + 1} (c) }}"
        for i in range(10)
    )
    model = model_of(f"""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) {{ y = own.f0 (x) }}
    {levels}
    <domain: "own", opset_import: ["" : 21]>
    f10 (a) => (b) {{ b = Neg (a) }}""")
    normalize(model)
    assert len(model.functions) == 11
    assert len(model.graph) == 1


@pytest.mark.needs("onnx", "1.22", "older ones infer types for ever")
def test_functions_that_call_each_other_stay():
    model = model_of("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[2] x) => (float[2] y) { y = own.f (x) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]>
    f (a) => (b) { b = own.h (a) }
    <domain: "own", opset_import: ["" : 21, "own" : 1]>
    h (a) => (b) { b = own.f (a) }""")
    normalize(model)
    assert len(model.functions) == 2


def test_functions_that_the_runtime_has_kernels_for_stay():
    text = """<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
    g (float[2] x) => (float[2] y) { y = com.microsoft.QuickGelu (x) }
    <domain: "com.microsoft", opset_import: ["" : 21]>
    QuickGelu (a) => (b) { s = Sigmoid (a)  b = Mul (a, s) }"""
    model = model_of(text)
    normalize(model)
    assert [node.op_type for node in model.graph] == ["QuickGelu"]


def test_stale_shapes_are_inferred_anew():
    model = model_of(
        "g (float[batch, 3] x) => (float[n, m] y) { h = Neg (x)  y = Concat <axis: "
        "int = 1> (h, h) }"
    )
    value = model.graph[0].outputs[0]
    value.shape, value.type = ir.Shape([7, 7, 7]), ir.TensorType(ir.DataType.DOUBLE)
    normalize(model)
    assert (str(value.shape), value.dtype) == ("[batch,3]", ir.DataType.FLOAT)


def test_shapes_of_other_domains_are_believed_and_passed_on():
    model = model_of("""<ir_version: 10, opset_import: ["" : 21, "own" : 1]>
    g (float[batch, 3] x) => (float[n, m] y) <float[batch,
        5] h> { h = own.Thing (x)  i = Neg (h)  y = Exp (i) }""")
    normalize(model)
    assert [str(node.outputs[0].shape) for node in model.graph] == [
        "[batch,5]",
        "[batch,5]",
        "[n,m]",
    ]


def test_what_a_loop_carries_may_change_shape():
    model = model_of("""
    g (float[1] x, int64 n) => (float[m] y) <bool c = {1}> {
        y = Loop (n, c, x) <body = b (int64 i, bool k, float[1] s) => (bool k2, float[o] s2)
            { k2 = Identity (k)  t = Neg (s)  s2 = Concat <axis: int = 0> (t, t) }>
    }""")
    normalize(model)
    body = model.graph[0].attributes["body"].as_graph()
    assert (body.inputs[2].shape, body[1].outputs[0].shape) == (None, None)


def test_sequences_stay_sequences():
    model = normalized("""g (float[2] x) => (float[2] y) <int64 zero = {0}>
    { s = SequenceConstruct (x, x)  t = Identity (s)  y = SequenceAt (t, zero) }""")
    assert all(
        isinstance(node.outputs[0].type, ir.SequenceType) for node in model.graph[:2]
    )


def test_before_ir_4_listed_initializers_are_no_inputs():
    text = """<ir_version: 3, opset_import: ["" : 9]>
    g (float[2] x, float[2] w) => (float[2] y) <float[2] w = {1, 2}> { y = Mul (x, w) }"""
    model = model_of(text)
    normalize(model)
    assert [v.name for v in model.graph.inputs] == ["x"]
    assert model.ir_version == 4
    assert np.array_equal(model.graph.initializers["w"].const_value.numpy(), [1, 2])


def test_both_names_of_the_standard_domain_become_one():
    model = model_of("""<ir_version: 10, opset_import: ["ai.onnx" : 21]>
    g (float[2] x) => (float[2] y) { y = ai.onnx.Neg (x) }""")
    normalize(model)
    assert model.opset_imports == {"": 21}
    assert model.graph[0].domain == ""


def test_an_output_without_a_type_gets_the_inferred_one():
    model = model_of("g (float[N, 2] x) => (float y) { y = Neg (x) }")
    output = model.graph.outputs[0]
    output.type = output.shape = None
    normalize(model)
    assert (str(output.shape), output.dtype) == ("[N,2]", ir.DataType.FLOAT)


def test_a_wrong_type_of_an_output_stays():
    model = model_of("g (float[2] x) => (int64[2] y) { y = Neg (x) }")
    normalize(model)
    assert model.graph.outputs[0].dtype == ir.DataType.INT64


def test_what_changed_is_told():
    model = model_of("""<ir_version: 3, opset_import: ["" : 9, "own" : 1]>
    g (float[1] x, float[1] w) => (float[1] y) <float[1] w = {1}> {
        two = Constant <value = float[1] {2}> ()
        h = own.Twice (x)
        i = own.Twice (h)
        j = Mul (i, w)
        y = Mul (j, two)
    }
    <domain: "own", opset_import: ["" : 9]> Twice (a) => (b) { b = Add (a, a) }""")
    assert normalize(model) == [
        "inputs that are initializers no longer listed as inputs: 1",
        "calls of functions inlined: 2",
        "Constant nodes made initializers: 1",
    ]
    assert normalize(model) == []


@pytest.mark.parametrize("operator", ["Concat <axis = 0>", "Add"])
def test_constants_that_double_do_not_fill_the_memory(operator):
    """Onnx follows their elements while it infers shapes: 2^60 of them."""
    steps = "\n".join(f"d{i + 1} = {operator} (d{i}, d{i})" for i in range(60))
    model = model_of(f"""<ir_version: 10, opset_import: ["" : 21]>
    g (float[2] x) => (float[2] y, float[N] z) <float[2] d0 = {{1, 2}}>
    {{
        y = Neg (x)
        {steps}
        z = Identity (d60)
    }}""")
    normalize(model)
    assert len(model.graph) == 62
