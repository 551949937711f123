"""unpack: what stays computed first; then constants of `pack` and of others, bit for bit."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.compress_weights import CompressWeights
from onnx_opt.passes.pack import Pack
from onnx_opt.passes.quant import Quant
from onnx_opt.passes.unpack import KEPT, Unpack, is_packed, restore_packed

HEAD = '<ir_version: 8, opset_import: ["" : 17]>'

STAYS = {
    "nothing computed": "{ y = MatMul (x, w) }",
    "of an input": "{ t = Transpose (x)  y = MatMul (x, t) }",
    "dequantized": "{ q = DequantizeLinear (c, s)  y = MatMul (x, q) }",
    "last bits differ": "{ e = Exp (w)  y = MatMul (x, e) }",
    "order of sums": "<int64[1] axes = {0}> { e = ReduceSum (w, axes)  y = MatMul (x, e) }",
    "random": "{ r = RandomNormalLike (w)  y = MatMul (x, r) }",
    "another domain": "{ r = com.microsoft.Gelu (w)  y = MatMul (x, r) }",
}


def model_from(body):
    graph = (
        HEAD
        + " g (float[4, 4] x) => (float[4, 4] y) "
        + "<float[4, 4] w = {0}, int8[4, 4] c = {0}, float s = {0.5}>"
    )
    more = ""
    if body.startswith("<"):
        more, body = body[1:].split(">", 1)
        graph = graph[:-1] + ", " + more + ">"
    model = ir.from_proto(onnx.parser.parse_model(graph + body))
    model.opset_imports["com.microsoft"] = 1
    values = np.arange(16).reshape(4, 4)
    tensors = {"w": values.astype(np.float32), "c": values.astype(np.int8)}
    for name, array in tensors.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape([4, 4])
    return model


@pytest.mark.parametrize("name", STAYS)
def test_what_no_constants_decide_exactly_stays(name):
    model = model_from(STAYS[name])
    ops = [node.op_type for node in model.graph]
    outcome = Unpack().run(model, NullContext())
    assert outcome.changed == 0
    assert [node.op_type for node in model.graph] == ops


def test_what_stays_is_told():
    outcome = Unpack().run(model_from(STAYS["last bits differ"]), NullContext())
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("e", "runtimes differ in the last bits of Exp")
    ]


def test_graph_outputs_stay():
    model = model_from("{ t = Transpose (w)  y = MatMul (t, x) }")
    model.graph.outputs.append(model.graph[0].outputs[0])
    outcome = Unpack().run(model, NullContext())
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("t", "it is an output of the model")
    ]


def test_a_node_that_stays_for_one_output_names_the_other():
    text = (
        HEAD
        + "g (float[2] x) => (float[2] y, float[2] low) <float[4] w = {1, 2, 3, 4}> "
        "{ top, low = Split <axis = 0> (w)  y = Add (x, top) }"
    )
    model = ir.from_proto(onnx.parser.parse_model(text))
    assert Unpack().run(model, NullContext()).stats["constants"] == 1
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert [node.op_type for node in after.graph.node] == ["Split", "Add"]
    assert after.graph.initializer[-1].name == "top"
    assert after.graph.node[0].output[0] not in ("", "top")


def test_bodies_stay():
    model = model_from(
        """{
        c0 = Less (s, s)
        y = If (c0) <
          then_branch = t () => (float[4, 4] a) { b = Transpose (w)  a = MatMul (x, b) },
          else_branch = f () => (float[4, 4] d) { d = Identity (x) }
        > }"""
    )
    outcome = Unpack().run(model, NullContext())
    assert ("b", "it lies in the body of an If, Loop or Scan") in [
        (d.where, d.reason) for d in outcome.declined
    ]


def test_a_bomb_is_not_computed():
    body = (
        "<int64[3] big = {100000, 100000, 100000}>"
        "{ e = Expand (s, big)  r = ReduceMax (e)  y = Mul (x, r) }"
    )
    outcome = Unpack().run(model_from(body), NullContext())
    assert outcome.changed == 0
    assert outcome.declined[0].reason == "Expand makes more than 536,870,912 elements"


def test_nodes_of_constants_become_one_initializer_of_the_same_name():
    model = model_from("{ t = Transpose (w)  u = Mul (t, s)  y = MatMul (x, u) }")
    outcome = Unpack().run(model, NullContext())
    assert outcome.stats == {"constants": 1, "bytes": 64, "nodes": 2}
    assert list(model.graph.initializers) == ["c", "u"]
    expected = (
        np.arange(16, dtype=np.float32).reshape(4, 4).T * np.float32(0.5)
    ).tolist()
    assert model.graph.initializers["u"].const_value.numpy().tolist() == expected


def weights_model(sparsity=0.6, seed=0, shape=(96, 96)):
    random = np.random.default_rng(seed)
    weight = random.normal(size=shape).astype(np.float32)
    weight[random.random(shape) < sparsity] = 0
    weight[0, 0] = -0.0
    text = f"{HEAD} g (float[n, {shape[0]}] x) => (float[n, {shape[1]}] y) {{ y = MatMul (x, w) }}"
    proto = onnx.parser.parse_model(text)
    proto.graph.initializer.append(onnx.numpy_helper.from_array(weight, "w"))
    return ir.from_proto(proto), weight


LOSSY = {
    "none": (),
    "compressed": (CompressWeights(),),
    "four bits": (CompressWeights(encoding="int4"),),
    "halves": (CompressWeights(encoding="fp16"),),
    "dynamic": (Quant("dynamic"),),
    "ternary": (Quant("ternary", ends="same"),),
    "planes": (Quant("binary", planes=2, ends="same"),),
}


@pytest.mark.parametrize("name", LOSSY)
def test_pack_is_undone_bit_for_bit(name):
    model, _ = weights_model()
    for pass_ in LOSSY[name]:
        pass_.run(model, NullContext())
    before = {k: v.const_value.tobytes() for k, v in model.graph.initializers.items()}
    nodes = [node.op_type for node in model.graph]
    packed = Pack(min_saving=0.0).run(model, NullContext()).changed
    assert is_packed(model) == bool(packed)
    # as a file has them
    model = ir.from_proto(ir.to_proto(model))
    assert restore_packed(model) == packed
    after = {k: v.const_value.tobytes() for k, v in model.graph.initializers.items()}
    assert after == before
    assert [node.op_type for node in model.graph] == nodes


def test_weights_that_quant_packed_become_plain():
    model, _ = weights_model()
    Quant("ternary", ends="same").run(model, NullContext())
    outcome = Unpack().run(model, NullContext())
    assert outcome.changed == 1
    assert [node.op_type for node in model.graph] == ["MatMul"]
    weight = model.graph[0].inputs[1].const_value.numpy()
    assert {np.unique(column).size for column in weight.T} == {3}


def test_beyond_the_budget_constants_are_computed_when_they_are_read(monkeypatch):
    monkeypatch.setitem(Unpack.run.__globals__, "KEPT", 0)
    model, weight = weights_model()
    Pack().run(model, NullContext())
    Unpack().run(model, NullContext())
    tensor = model.graph.initializers["w"].const_value
    assert isinstance(tensor, ir.LazyTensor)
    assert tensor.numpy().tobytes() == weight.tobytes()
    assert KEPT == 1 << 30


def test_twice_changes_nothing_more():
    model, _ = weights_model()
    Pack().run(model, NullContext())
    assert Unpack().run(model, NullContext()).changed == 1
    assert Unpack().run(model, NullContext()).changed == 0
