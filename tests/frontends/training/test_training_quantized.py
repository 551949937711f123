"""Quantized graphs train as they run: codes stay on their grid, start where the graph has them,
ONNX Runtime agrees.
"""

import textwrap

import numpy as np
import onnx_ir as ir
import pytest
import torch
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.training.blocks import GraphBlock, find_blocks
from onnx_opt.frontends.training.learner import Learner
from onnx_opt.frontends.training.optimizer import parameter_groups
from onnx_opt.frontends.training.presets import completed, soft_part
from onnx_opt.frontends.training.separators import Separator, separators
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from training_models import (
    MLP,
    batches,
    model_of,
    outputs,
    relative_error,
    rows,
    trained,
    weights,
)

BITS = {4: (ir.DataType.INT4, 7), 8: (ir.DataType.INT8, 127), 2: (ir.DataType.INT8, 1)}


def quantized(model: ir.Model, bits: int, keep: float = 1.0) -> ir.Model:
    """A copy whose matrices are integers of `bits` behind DequantizeLinear, one scale each; small
    ones become zero.
    """
    copy = model.clone()
    dtype, top = BITS[bits]
    for node in [n for n in copy.graph if n.op_type == "MatMul"]:
        name = node.inputs[1].name
        array = weights(copy)[name]
        scale = np.abs(array).max() / top
        codes = np.clip(np.rint(array / scale), -top, top).astype(dtype.numpy())
        made = {
            f"{name}_quantized": ir.Tensor(
                codes, dtype=dtype, name=f"{name}_quantized"
            ),
            f"{name}_scale": ir.tensor(np.float32(scale), name=f"{name}_scale"),
        }
        values = []
        for key, tensor in made.items():
            value = ir.Value(
                name=key,
                shape=tensor.shape,
                type=ir.TensorType(tensor.dtype),
                const_value=tensor,
            )
            copy.graph.register_initializer(value)
            values.append(value)
        dequantize = ir.node("DequantizeLinear", values)
        dequantize.outputs[0].name = f"{name}_back"
        copy.graph.insert_before(node, dequantize)
        node.replace_input_with(1, dequantize.outputs[0])
        del copy.graph.initializers[name]
    return copy


@pytest.mark.parametrize("bits", [2, 4])
@pytest.mark.parametrize("with_originals", [False, True])
def test_codes_train_on_their_grid(bits, with_originals):
    teacher = model_of(MLP)
    student = quantized(teacher, bits)
    before = relative_error(student, teacher, rows(512, seed=9))
    originals = weights(teacher) if with_originals else None
    result = trained(student, teacher, batches(rows()), originals=originals, steps=150)
    assert (result.stats["preset"], result.weights) == ("qad", 6)
    after = weights(student)
    assert after["w1_quantized"].dtype == BITS[bits][0].numpy()
    assert np.abs(after["w1_quantized"].astype(int)).max() <= BITS[bits][1]
    assert result.stats["after"] > result.stats["before"]
    assert (
        relative_error(student, teacher, rows(512, seed=9))
        < (1.0 if bits == 4 else 1.25) * before
    )


def test_latents_start_in_the_cell_of_their_code():
    teacher = model_of(MLP)
    student = quantized(teacher, 2)
    codes = student.graph.initializers["w1_quantized"]
    moved = codes.const_value.numpy().astype(int)
    moved[0, 0] += 1 if moved[0, 0] < 7 else -1
    codes.const_value = ir.Tensor(
        moved.astype(ir.DataType.INT4.numpy()), dtype=ir.DataType.INT4, name=codes.name
    )
    scale = float(weights(student)["w1_scale"])
    learner = Learner(student, ["y"], TrainingRecipe(soft=0), weights(teacher))
    latent = learner.runs.w1_quantized.detach().numpy()
    np.testing.assert_array_equal(np.rint(latent), moved)
    elsewhere = np.ones(moved.shape, bool)
    elsewhere[0, 0] = False
    np.testing.assert_allclose(
        latent[elsewhere], (weights(teacher)["w1"] / scale)[elsewhere], atol=0.02
    )


def test_qat_off_leaves_codes_alone():
    teacher = model_of(MLP)
    student = quantized(teacher, 2)
    before = weights(student)
    trained(student, teacher, batches(rows()), qat=False, steps=60)
    after = weights(student)
    np.testing.assert_array_equal(after["w1_quantized"], before["w1_quantized"])
    assert not np.array_equal(after["b1"], before["b1"])


def test_zeros_of_a_pruned_original_stay_zero_codes():
    teacher = model_of(MLP)
    sparse = {
        name: np.where(np.abs(w) < 0.4, 0, w) if w.ndim == 2 else w
        for name, w in weights(teacher).items()
    }
    net = teacher.clone()
    for name, value in net.graph.initializers.items():
        value.const_value = ir.Tensor(sparse[name], name=name)
    student = quantized(net, 8)
    trained(student, teacher, batches(rows()), originals=sparse, steps=60)
    assert not weights(student)["w1_quantized"][sparse["w1"] == 0].any()


def test_scales_train_and_stay_positive():
    teacher = model_of(MLP)
    student = quantized(teacher, 2)
    before = float(weights(student)["w1_scale"])
    trained(student, teacher, batches(rows()), scales="all", steps=150)
    after = float(weights(student)["w1_scale"])
    assert after > 0
    assert after != before


def test_blocks_learn_their_rounding_one_after_another():
    """Better blocks need not make a better net; where they do not, it stays as it was. Some nets
    gain much.
    """
    fresh, shares = rows(512, seed=9), []
    for seed in range(3):
        teacher = model_of(MLP, seed)
        student = quantized(teacher, 2)
        codes, before = (
            weights(student)["w1_quantized"].astype(int),
            relative_error(student, teacher, fresh),
        )
        result = trained(
            student,
            teacher,
            batches(rows()),
            originals=weights(teacher),
            preset="block",
            steps=60,
            watch="loss",
        )
        moved = np.abs(weights(student)["w1_quantized"].astype(int) - codes)
        shares.append(relative_error(student, teacher, fresh) / before)
        assert result.stats["blocks"] == 2
        assert result.stats["better_blocks"] >= 1
        assert (
            bool(result.weights)
            == (result.stats["after"] > result.stats["before"])
            == (shares[-1] != 1)
        )
        assert moved.max() <= 1
    assert min(shares) < 0.95


def test_separators_are_what_everything_passes_through():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    joined (float[n, 4] x) => (float[n, 4] y) <float[4, 4] u, float[4, 4] v>
    {
        a = MatMul (x, u)
        b = Relu (a)
        c = MatMul (b, v)
        d = Add (b, c)
        y = Relu (d)
    }
    """
    model = model_of(textwrap.dedent(text))
    assert list(separators(model)) == [
        Separator("a", 1),
        Separator("b", 1),
        Separator("d", 2),
        Separator("y", 2),
    ]
    assert list(find_blocks(model, model)) == [
        GraphBlock("", "a"),
        GraphBlock("a", "d"),
    ]


MASKED = """
<ir_version: 10, opset_import: ["" : 21]>
masked (float[n, 6] x, float[n, 16] mask) => (float[n, 4] y)
<float[6, 16] w1, float[16] shared, float[16, 16] w2, float[16, 4] w3>
{
    gate = Sigmoid (mask)
    a = MatMul (x, w1)
    b = Mul (a, gate)
    c = Add (b, shared)
    d = MatMul (c, w2)
    e = Mul (d, gate)
    f = Add (e, shared)
    z = MatMul (f, w3)
    y = Softmax (z)
}
"""


def test_a_mask_may_pass_beside():
    model = model_of(MASKED)
    assert [s.name for s in separators(model)] == [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "z",
        "y",
    ]
    assert list(find_blocks(model, model)) == [
        GraphBlock("", "a"),
        GraphBlock("a", "d"),
        GraphBlock("d", "z"),
    ]


def test_what_a_layer_made_does_not_pass_beside():
    text = MASKED.replace("gate = Sigmoid (mask)", "gate = MatMul (mask, w2)")
    assert [s.name for s in separators(model_of(text))] == ["gate", "e", "f", "z", "y"]


def test_what_follows_from_weights_and_shapes_alone_passes_beside():
    text = (
        MASKED.replace(
            "gate = Sigmoid (mask)",
            """size = Shape (x)
    wide = Cast <to = 1> (size)
    sum = ReduceSum (wide)
    row = Unsqueeze (sum, axis)
    gate = MatMul (row, table)""",
        )
        .replace("float[16, 4] w3", "float[16, 4] w3, float[1, 16] table")
        .replace("{\n", "{\n    axis = Constant <value = int64[1] {0}> ()\n")
    )
    assert [s.name for s in separators(model_of(text))] == [
        "a",
        "b",
        "c",
        "d",
        "e",
        "f",
        "z",
        "y",
    ]


def test_blocks_see_the_inputs_that_pass_beside_and_leave_what_they_share():
    """Better blocks need not make a better net; where they do not, it stays as it was. Most nets
    gain.
    """
    random = np.random.default_rng(3)
    data = [
        (
            {
                "x": rows(64, seed=i),
                "mask": random.normal(size=(64, 16)).astype(np.float32),
            },
            None,
        )
        for i in range(6)
    ]
    gains = []
    for seed in range(3):
        teacher = model_of(MASKED, seed)
        student = quantized(teacher, 2)
        before = weights(student)
        result = trained(
            student, teacher, data, originals=weights(teacher), preset="block", steps=60
        )
        after = weights(student)
        moved = any(
            not np.array_equal(after[f"w{i}_quantized"], before[f"w{i}_quantized"])
            for i in (1, 2, 3)
        )
        gains.append(result.stats["after"] - result.stats["before"])
        assert result.stats["blocks"] == 3
        assert result.stats["better_blocks"] >= 1
        assert moved == bool(result.weights) == (gains[-1] > 0)
        np.testing.assert_array_equal(after["shared"], before["shared"])
    assert np.median(gains) > 0.1


def test_rounding_sets_in_slowly_where_levels_are_few():
    teacher = model_of(MLP)
    learner = Learner(quantized(teacher, 2), ["y"], TrainingRecipe(), weights(teacher))
    x = rows(32)
    floats = outputs(teacher, x)
    codes = Learner(
        quantized(teacher, 2), ["y"], TrainingRecipe(soft=0), weights(teacher)
    ).values({"x": x})["y"]
    found = []
    for progress in (0.0, 0.3, learner.soft, 1.0):
        learner.anneal_rounding(progress)
        found.append(learner.learn({"x": x})["y"].detach().numpy())
    np.testing.assert_allclose(found[0], floats, atol=1e-5)
    assert not np.allclose(found[1], floats, atol=0.1)
    assert not np.allclose(found[1], codes, atol=0.1)
    for hard in found[2:]:
        np.testing.assert_allclose(hard, codes, atol=1e-5)
    np.testing.assert_allclose(
        learner.values({"x": x})["y"], codes, atol=1e-5
    )  # judged as it will run


@pytest.mark.parametrize(
    ("bits", "with_originals", "asked", "soft"),
    [
        (2, True, -1.0, True),
        (4, True, -1.0, False),
        (4, True, 0.5, True),
        (2, False, -1.0, False),
        (2, True, 0.0, False),
    ],
)
def test_when_rounding_is_soft(bits, with_originals, asked, soft):
    teacher = model_of(MLP)
    learner = Learner(
        quantized(teacher, bits),
        ["y"],
        TrainingRecipe(soft=asked),
        weights(teacher) if with_originals else None,
    )
    assert bool(learner.soft) == soft
    assert (learner.trains is learner.runs) != soft


@pytest.mark.parametrize(
    ("agreement", "rate", "soft"), [(0.2, 0.02, 0.6), (0.8, 0.004, 0.0)]
)
def test_codes_that_are_good_are_mended(agreement, rate, soft):
    recipe = completed(TrainingRecipe(), True, 2, agreement)
    assert (recipe.rate, soft_part(recipe, 2)) == (rate, soft)
    asked = completed(TrainingRecipe(rate=0.1, soft=0.3), True, 2, agreement)
    assert (asked.rate, soft_part(asked, 2)) == (0.1, 0.3)


def test_latents_are_free_until_rounding_is_complete():
    teacher = model_of(MLP)
    learner = Learner(
        quantized(teacher, 2), ["y"], TrainingRecipe(soft=0.5), weights(teacher)
    )
    with torch.no_grad():
        learner.runs.w1_quantized.mul_(4)
    for progress, within in ((0.4, False), (0.5, True)):
        learner.anneal_rounding(progress)
        learner.constrain()
        assert bool((learner.runs.w1_quantized.abs() <= 1).all()) == within


@pytest.mark.parametrize(("bits", "rate"), [(2, 0.02), (4, 0.004), (8, 0.004)])
def test_the_rate_follows_the_bits(bits, rate):
    teacher = model_of(MLP)
    result = trained(
        quantized(teacher, bits),
        teacher,
        batches(rows()),
        originals=weights(teacher),
        steps=5,
    )
    assert result.stats["rate"] == rate


STORED_BIAS = """
<ir_version: 10, opset_import: ["" : 21]>
layer (float[n, 2] x) => (float[n, 2] y)
<int8[2, 2] w_q = {100, -50, 1, -1}, float[2] ws = {0.01, 1e-9},
 int32[2] b_q = {50, -1000000000}, float[2] bs = {0.01, 1e-9}>
{
    w = DequantizeLinear <axis: int = 0> (w_q, ws)
    b = DequantizeLinear <axis: int = 0> (b_q, bs)
    y = Gemm <transB: int = 1> (x, w, b)
}
"""


def test_a_channel_without_weights_sets_no_rate_for_the_others():
    model = ir.from_onnx_text(STORED_BIAS)
    module = to_torch(model, qat="weights")
    groups = parameter_groups(module, TrainingRecipe(rate=0.004, optimizer="adamw"))
    (bias,) = (g for g in groups if g["params"][0] is module.b_q)
    # biases of 0.5 and -1 move by about 0.004 of their size, not by millions of codes
    assert 0.001 < bias["full"] * 0.01 < 0.01
