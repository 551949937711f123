"""Exporters' notes: what passes about size drop, what always stays, and how names are given where
there are many.
"""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import Names
from onnx_opt.passes._core.notes import drop_notes
from onnx_opt.passes._quant.inserter import Inserter
from onnx_opt.passes.compress_weights import CompressWeights
from onnx_opt.passes.quant import Quant
from onnx_opt.tools._run.checks import interface_of
from quant_models import CHAIN_WEIGHTS, FEEDS, chain, model_of, normal
from sample_models import IF, model_from

RELU = '<ir_version: 10, opset_import: ["" : 21]> g (float[2] X) => (float[2] y) { y = Relu (X) }'


def noted(model):
    """The model with metadata and a doc string on everything."""
    for graph in model.graphs():
        holders = [graph, *graph.inputs, *graph.initializers.values()]
        for node in graph:
            holders += [node, *node.outputs]
        for holder in holders:
            holder.metadata_props["pkg.exporter"] = "x" * 100
            holder.doc_string = "by an exporter"
    model.metadata_props["author"] = "me"
    model.doc_string = "a model"
    return model


def notes_of(model):
    """Names (or types) of what still has notes."""
    found = []
    for graph in model.graphs():
        found += [graph.name] if graph.metadata_props or graph.doc_string else []
        values = [
            *graph.inputs,
            *graph.initializers.values(),
            *(v for node in graph for v in node.outputs),
        ]
        found += [v.name for v in values if v.metadata_props or v.doc_string]
        found += [
            node.op_type for node in graph if node.metadata_props or node.doc_string
        ]
    return found


def test_all_but_what_the_model_says_and_what_describes_its_ports():
    model = noted(ir.from_proto(model_from(IF)))
    counted = drop_notes(model, ports=False)
    assert counted["metadata"] == counted["doc_strings"] + 3 > 10
    assert notes_of(model) == ["flag", "x", "y"]
    assert not any(
        v.metadata_props for v in (*model.graph.inputs, *model.graph.outputs)
    )
    assert model.metadata_props == {"author": "me"}
    assert model.doc_string == "a model"
    assert drop_notes(model, ports=False).total() == 0
    assert drop_notes(model) == {"metadata": 0, "doc_strings": 3}
    assert notes_of(model) == []


def test_a_clone_loses_its_own_notes():
    model = noted(ir.from_proto(model_from(IF)))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    drop_notes(model.clone())
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


@pytest.mark.parametrize(
    "pass_",
    [
        Quant(),
        Quant("binary"),
        Quant(bits=4),
        Quant("fp16"),
        CompressWeights(min_size=1),
        CompressWeights("fp16", min_size=1),
    ],
    ids=str,
)
def test_passes_about_size_drop_them_and_change_nothing_by_it(pass_):
    plain, model = chain(), noted(chain())
    interface = interface_of(model)
    outcome = pass_.run(model, CalibratedContext([FEEDS]))
    assert outcome.stats["notes"] > 20
    assert notes_of(model) == ["x", "y"]
    assert interface_of(model) == interface
    pass_.run(plain, CalibratedContext([FEEDS]))
    assert [n.outputs[0].name for n in model.graph] == [
        n.outputs[0].name for n in plain.graph
    ]


@pytest.mark.parametrize(
    "pass_",
    [Quant("binary", notes="keep"), CompressWeights(min_size=1, notes="keep")],
    ids=str,
)
def test_they_stay_on_request(pass_):
    model = noted(chain())
    outcome = pass_.run(model, CalibratedContext([FEEDS]))
    assert "notes" not in outcome.stats
    assert {"Conv", "Gemm", "Relu", "chain"} <= set(notes_of(model))


def test_what_a_pass_does_not_touch_keeps_its_notes():
    model = noted(model_of(RELU.replace("X", "x")))
    assert Quant().run(model, NullContext()).changed == 0
    assert "Relu" in notes_of(model)


def test_weights_are_called_after_weights_and_all_else_by_letter_and_number():
    model = chain()
    known = (
        {value.name for node in model.graph for value in node.outputs}
        | set(CHAIN_WEIGHTS)
        | {"x"}
    )
    Quant("binary", ends="same", smooth=False).run(model, CalibratedContext([FEEDS]))
    names = {v.name for node in model.graph for v in node.outputs} | set(
        model.graph.initializers
    )
    stored = {"w1_packed", "w2_packed", "w3_packed", "b3_q", "signs_table"} & names
    assert {"w1_packed", "w2_packed", "w3_packed", "signs_table"} <= stored
    assert all(
        name[0].isalpha() and name[1:].isdigit() for name in names - known - stored
    )
    assert max(map(len, names - known - stored)) <= 3


def test_short_names_pass_over_those_that_a_model_has():
    model = model_of(RELU.replace("X", "s2"))
    inserter = Inserter(model.graph, names := Names(model))
    made = [inserter.constant("scale", np.array(n, np.float32)).name for n in range(3)]
    assert made == ["s1", "s3", "s4"]
    assert inserter.constant("other_scale", np.array(0, np.float32)).name == "s1"
    assert names.numbered("s") == "s5"
    names.take(model_of(RELU.replace("X", "s6")))
    assert names.numbered("s") == "s7"


def test_names_of_what_simplify_removes_are_not_given_again():
    """Reports and exclude patterns follow nodes by the names of the float model."""
    text = """<ir_version: 10, opset_import: ["" : 17]>
    g (float[N, 16] x) => (float[N, 4] y) { s1 = Identity (x)  q1 = MatMul (s1,
        w1)  d1 = Identity (q1)  z1 = Relu (d1)
    y = MatMul (z1, w2) }"""
    model = model_of(text, w1=normal(16, 16), w2=normal(16, 4))
    assert (
        Quant(smooth=False)
        .run(model, CalibratedContext([{"x": normal(8, 16)}]))
        .changed
        == 2
    )
    made = {v.name for node in model.graph for v in node.outputs} | set(
        model.graph.initializers
    )
    assert {"s1", "d1"} & made == set()
    assert {"s2", "d2", "w1_q", "w2_q"} <= made
