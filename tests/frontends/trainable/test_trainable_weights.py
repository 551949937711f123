"""Constants that become Parameters: the choice, their origins, and the way back."""

import copy

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
import torch
from onnx_opt import RefusedError, UsageError
from onnx_opt.frontends.trainable import to_torch, write_back
from sample_models import CNN, IF, LSTM, MLP
from trainable_models import difference, ir_model, normal, ort_run

NO_WEIGHTS = """
<ir_version: 10, opset_import: ["" : 21]>
settings (float[2, 1, 4, 4] x) => (float[2, 1, 8, 8] y)
<float low = {-1}, float high = {1}, float[4] scales = {1, 1, 2, 2}, float[2] pads_value = {0.5,
    0.5},
 float exponent = {2}, float[1] two = {2}, float eps = {0.001}>
{
    c = Clip (x, low, high)
    p = Pow (c, exponent)
    e = Add (p, eps)
    h = Mul (e, two)
    y = Resize <mode = "nearest"> (h, , scales)
}
"""

TIED = """
<ir_version: 10, opset_import: ["" : 21]>
tied (float[3, 4] x) => (float[3, 4] y)
<float[4, 4] w>
{
    a = MatMul (x, w)
    r = Relu (a)
    t = Transpose <perm = [1, 0]> (w)
    y = MatMul (r, t)
}
"""

MASK = """
<ir_version: 10, opset_import: ["" : 21]>
masked (float[2, 2] x) => (float[2, 2] y)
<float[2, 2] mask = {0, -inf, 0, 0}>
{
    s = Add (x, mask)
    y = Softmax (s)
}
"""

OVERRIDABLE = """
<ir_version: 10, opset_import: ["" : 21]>
overridable (float[2, 2] x, float[2, 2] w) => (float[2, 2] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    y = MatMul (x, w)
}
"""


@pytest.mark.parametrize("text", [NO_WEIGHTS, MASK, OVERRIDABLE])
def test_settings_masks_and_inputs_are_not_trained(text):
    module = to_torch(ir_model(text))
    assert list(module.parameters()) == []


def test_batch_normalization_trains_its_scale_and_shift_only():
    module = to_torch(ir_model(CNN))
    assert sorted(module.origins) == ["b", "b1", "k1", "k2", "scale", "shift", "w"]
    assert difference(module, {"x": normal(2, 3, 8, 8)}) < 1e-5


def test_tied_weights_are_one_parameter_and_stay_one_initializer():
    model = ir_model(TIED)
    module = to_torch(model)
    assert [name for name, _ in module.named_parameters()] == ["w"]
    with torch.no_grad():
        module.w.mul_(0.5)
    write_back(module)
    assert list(model.graph.initializers) == ["w"]
    assert difference(module, {"x": normal(3, 4)}) < 1e-6


def test_weights_of_branches_and_constant_nodes_remember_where_they_came_from():
    module = to_torch(ir_model(IF))
    assert {(o.graph, o.name) for o in module.origins.values()} == {
        ("branches", "w"),
        ("then_graph", "u"),
        ("else_graph", "k"),
    }
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.25)
    write_back(module)
    for flag in (True, False):
        assert difference(module, {"flag": np.array(flag), "x": normal(3, 4)}) < 1e-5


def test_only_named_weights_are_trained_scalars_too():
    module = to_torch(ir_model(NO_WEIGHTS), train=["eps", "two"])
    assert sorted(module.origins) == ["eps", "two"]
    assert list(to_torch(ir_model(MLP), train=False).parameters()) == []


@pytest.mark.parametrize(
    ("options", "name"), [({"train": ["nope"]}, "nope"), ({"taps": ["nope"]}, "nope")]
)
def test_unknown_names_are_refused(options, name):
    with pytest.raises(UsageError, match=name):
        to_torch(ir_model(MLP), **options)


def test_an_unknown_op_is_refused_with_its_place():
    text = MLP.replace("Relu (h)", "com.example.Magic (h)").replace(
        '"" : 21', '"" : 21, "com.example" : 1'
    )
    with pytest.raises(RefusedError, match=r"no kernel for com\.example\.Magic"):
        to_torch(ir_model(text))


def test_taps_are_returned_beside_the_outputs():
    module = to_torch(ir_model(MLP), taps=["h", "r"])
    results = module.run({"x": normal(2, 8)})
    assert list(results) == ["y", "h", "r"]
    assert torch.equal(results["r"], torch.relu(results["h"]))


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_untouched_weights_go_back_bit_by_bit(dtype):
    model = ir_model(TIED)
    weight = normal(4, 4).astype(dtype)
    model.graph.initializers["w"].const_value = ir.tensor(weight, name="w")
    module = to_torch(model)
    assert module.w.dtype == (torch.float64 if dtype == np.float64 else torch.float32)
    write_back(module)
    stored = model.graph.initializers["w"].const_value
    assert stored.dtype == ir.DataType.from_numpy(np.dtype(dtype))
    np.testing.assert_array_equal(stored.numpy(), weight)


def test_pruned_weights_keep_their_zeros():
    model = ir_model(MLP)
    weight = normal(8, 16)
    weight[np.abs(weight) < 1] = 0
    model.graph.initializers["w1"].const_value = ir.tensor(weight, name="w1")
    module = to_torch(model)
    optimizer = torch.optim.Adam(module.parameters(), lr=0.1)
    for _ in range(3):
        optimizer.zero_grad()
        module(torch.from_numpy(normal(4, 8))).square().mean().backward()
        optimizer.step()
        module.constrain()
        assert torch.equal(module.w1 == 0, torch.from_numpy(weight == 0))
    write_back(module)
    np.testing.assert_array_equal(
        model.graph.initializers["w1"].const_value.numpy() == 0, weight == 0
    )
    assert difference(module, {"x": normal(4, 8)}) < 1e-5


def test_a_given_mask_holds_at_write_back():
    model = ir_model(MLP)
    kept = np.arange(64).reshape(16, 4) % 3 > 0
    module = to_torch(model, masks={"w2": kept})
    write_back(module)
    np.testing.assert_array_equal(
        model.graph.initializers["w2"].const_value.numpy() != 0, kept
    )


@pytest.mark.parametrize(
    ("text", "shape"), [(MLP, (4, 8)), (CNN, (2, 3, 8, 8)), (LSTM, (7, 2, 6))]
)
def test_onnx_runtime_agrees_after_training(text, shape):
    model = ir_model(text)
    module = to_torch(model)
    x = normal(*shape)
    before = ort_run(model, {"x": x})[0]
    optimizer = torch.optim.Adam(module.parameters(), lr=0.001)
    for _ in range(3):
        optimizer.zero_grad()
        sum(value.square().mean() for value in module.run({"x": x}).values()).backward()
        optimizer.step()
    write_back(module)
    assert np.abs(ort_run(model, {"x": x})[0] - before).max() > 1e-3
    assert difference(module, {"x": x}) <= 1e-6


def test_a_second_module_of_the_written_model_is_the_same():
    model = ir_model(CNN)
    module = to_torch(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.1)
    again = to_torch(write_back(module))
    x = torch.from_numpy(normal(2, 3, 8, 8))
    assert torch.equal(module(x), again(x))


SHARED = """
<ir_version: 10, opset_import: ["" : 21]>
shared (float[2, 3, 4] x) => (float[2, 3, 4] y)
<float[3] ones = {1, 1, 1}, float[3] zeros = {0, 0, 0}>
{
    y = BatchNormalization (x, ones, zeros, zeros, ones)
}
"""


def test_a_weight_that_is_a_setting_elsewhere_is_untied_when_it_changes():
    """Exporters store equal tensors once: the scale of an untrained norm is also its variance."""
    model = ir_model(SHARED)
    module = to_torch(model)
    write_back(module)
    assert sorted(model.graph.initializers) == ["ones", "zeros"]
    with torch.no_grad():
        module.ones.mul_(3)
    write_back(module)
    assert sorted(model.graph.initializers) == ["ones", "ones_fixed", "zeros"]
    assert [v.name for v in model.graph[0].inputs] == [
        "x",
        "ones",
        "zeros",
        "zeros",
        "ones_fixed",
    ]
    x = normal(2, 3, 4)
    assert difference(module, {"x": x}) < 1e-5
    assert torch.allclose(module(x), torch.from_numpy(3 * x), rtol=1e-4)


def test_a_copy_has_weights_of_its_own_and_the_same_origins():
    module = to_torch(ir_model(MLP))
    twin = copy.deepcopy(module)
    with torch.no_grad():
        twin.w1.zero_()
    assert module.w1.abs().sum() > 0
    assert twin.model is module.model
    assert twin(normal(2, 8)).abs().sum() == 0


def test_the_state_of_a_module_can_be_saved_and_loaded(tmp_path):
    module, other = to_torch(ir_model(CNN, seed=0)), to_torch(ir_model(CNN, seed=1))
    torch.save(module.state_dict(), tmp_path / "state.pt")
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    x = normal(2, 3, 8, 8)
    assert torch.equal(module(x), other(x))


def test_taps_on_outputs_and_inputs_are_no_second_outputs():
    module = to_torch(ir_model(MLP), taps=["y", "x"])
    assert list(module.run({"x": normal(2, 8)})) == ["y", "x"]


@pytest.mark.parametrize(
    "name",
    [
        "model",
        "anchor",
        "training",
        "forward",
        "rounding",
        "lambda",
        "constant_0",
        "a_kept",
        "0.w",
    ],
)
def test_any_name_is_a_parameter(name):
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 4] x) => (float[n, 3] y) { h = MatMul (x, weight)  y = Add (h, shift) }
    """
    proto = onnx.parser.parse_model(text)
    proto.graph.node[0].input[1] = name
    for stem, array in ((name, np.arange(12.0).reshape(4, 3)), ("shift", np.ones(3))):
        proto.graph.initializer.append(
            onnx.numpy_helper.from_array(array.astype(np.float32), stem)
        )
    module = to_torch(
        ir.from_proto(proto), masks={"shift": np.array([True, False, True])}
    )
    assert {origin.name for origin in module.origins.values()} == {name, "shift"}
    x = np.ones((2, 4), np.float32)
    assert module.run({"x": x})["y"][0].tolist() == [19.0, 23.0, 27.0]
