"""Common ground of clip-weights, correct-bias, gptq and round-weights: the grid of `quant`, the
bias, reasons to decline.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, batches, run_session
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._calibrated.grid import (
    TargetGrids,
    clipped_scales,
    full_scales,
    grid_of_bits,
    is_on_grid,
    nearest,
)
from onnx_opt.passes._calibrated.layers import fittable_layers
from onnx_opt.passes._core.channel_layout import Layout
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.saturation import NO_PAIRS, neighbours, offending
from onnx_opt.passes._quant.grids import Grid, scales_on
from onnx_opt.passes._quant.weights import quantize_weight
from onnx_opt.passes.clip_weights import ClipWeights
from onnx_opt.passes.correct_bias import CorrectBias
from onnx_opt.passes.gptq import Gptq
from onnx_opt.passes.round_weights import RoundWeights
from sample_models import model_from

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 4, 6, 6] x) => (float[n, 7] y)
<float[6, 2, 3, 3] k1, float[6] b1, float[6, 1, 3, 3] k2, float[8, 6, 1, 1] k3, float[8] b3,
    float[7, 8] w, float[7] b,
 int64[2] flat = {0, 8}>
{
    c1 = Conv <group = 2, pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <group = 6, strides = [2, 2]> (r1, k2)
    c3 = Conv (c2, k3, b3)
    p = GlobalAveragePool (c3)
    f = Reshape (p, flat)
    y = Gemm <transB = 1> (f, w, b)
}
"""
MATMULS = """
<ir_version: 10, opset_import: ["" : 21]>
mlp (float[n, 3, 16] x) => (float[n, 3, 5] y)
<float[16, 24] w1, float[24] b1, float[24, 5] w2>
{
    m = MatMul (x, w1)
    h = Add (m, b1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""
MODELS = {"net": (NET, (8, 4, 6, 6)), "mlp": (MATMULS, (16, 3, 16))}
PASSES = [ClipWeights, CorrectBias, Gptq, RoundWeights]


def made(key, seed=3):
    text, shape = MODELS[key]
    model = ir.from_proto(model_from(text, seed))
    normalize(model)
    return model, CalibratedContext(batches(shape))


def codes_of(layer, grid):
    """The integers that `quant` makes of a layer's weight."""
    tensor, layout = (
        layer.weight.const_value,
        Layout.of(layer.shape, layer.channel_axis),
    )
    scales = scales_on(tensor, layout, grid)
    return (
        quantize_weight(tensor, layout, scales, grid.levels, grid.limited).numpy(),
        scales,
        layout,
    )


def test_layers_of_fewer_bits_are_left_to_them():
    model, context = made("net")
    Gptq(bits=4, exclude=("k1", "w")).run(model, context)
    narrow = model.graph.initializers["k3"].const_value.numpy()
    outcome = Gptq(bits=8).run(model, context)
    assert outcome.changed == 2
    assert [d.reason for d in outcome.declined] == [
        "its weights are rounded to 4 bits already"
    ] * 2
    np.testing.assert_array_equal(
        model.graph.initializers["k3"].const_value.numpy(), narrow
    )


def error(before, after, feeds):
    """Squared error of the first output over all feeds."""
    sessions = [run_session(m) for m in (before, after)]
    return sum(
        float(((a.run(None, f)[0] - b.run(None, f)[0]) ** 2).sum())
        for f in feeds
        for a, b in [sessions]
    )


@pytest.mark.parametrize("pass_", [CorrectBias(), Gptq(), RoundWeights()])
def test_without_data_says_what_to_give(pass_):
    model, _ = made("net")
    with pytest.raises(UsageError, match="no calibration data"):
        pass_.run(model, NullContext())


@pytest.mark.parametrize("kind", PASSES)
def test_patterns_choose_and_reasons_name_the_rest(kind):
    model, context = made("net")
    before = {
        n: v.const_value.numpy().copy() for n, v in model.graph.initializers.items()
    }
    outcome = kind(bits=4, include=("k*", "w"), exclude=("k2",)).run(model, context)
    changed = {
        n
        for n, v in model.graph.initializers.items()
        if (v.const_value.numpy() != before[n]).any()
    }
    assert outcome.changed == 3
    assert changed & {"k1", "k2", "k3", "w"} == {"k1", "k3", "w"}
    assert [d.reason for d in outcome.declined] == ["matched by exclude"]


@pytest.mark.parametrize("option", ["include", "exclude"])
@pytest.mark.parametrize("kind", PASSES)
def test_a_pattern_that_matches_no_layer_is_an_error(kind, option):
    model, context = made("net")
    wrong = kind(**{option: ("k1", "k9")})
    with pytest.raises(UsageError) as error:
        wrong.run(model, context)
    assert error.value.where == f"{kind.name}.{option}"
    assert error.value.problem == "'k9' matches no layer"
    assert "k1" in error.value.fix


@pytest.mark.parametrize("target", ["cpu", "cpu-vnni"])
@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("key", MODELS)
@pytest.mark.parametrize("kind", PASSES)
def test_quant_finds_the_same_integers(kind, key, bits, target):
    model, context = made(key)
    context.target = target
    outcome = kind(bits=bits).run(model, context)
    layers, _ = fittable_layers(model)
    assert outcome.changed == len(layers)
    for layer in layers:
        grid = TargetGrids(bits, target)(layer)
        codes, scales, layout = codes_of(layer, grid)
        back = (
            codes.reshape(layout.outer, layout.channels, layout.inner) * scales[:, None]
        ).reshape(layer.shape)
        np.testing.assert_allclose(
            layer.weight.const_value.numpy(), back, rtol=1e-6, atol=0
        )
        rows = np.moveaxis(codes.reshape(layer.shape), layer.channel_axis, 0).reshape(
            layer.channels, -1
        )
        assert not offending(rows, grid.limited or NO_PAIRS).any()
    onnx.checker.check_model(ir.to_proto(model), full_check=True)


@pytest.mark.parametrize("key", MODELS)
@pytest.mark.parametrize("kind", PASSES)
def test_a_second_run_changes_nothing(kind, key):
    model, context = made(key)
    kind(bits=4).run(model, context)
    once = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = kind(bits=4).run(model, context)
    assert outcome.changed == 0
    assert {d.reason for d in outcome.declined} == {
        "its weights are rounded to 4 bits already"
    }
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once


@pytest.mark.parametrize(("key", "least"), [("net", 1.5), ("mlp", 1.2)])
@pytest.mark.parametrize("kind", [Gptq, RoundWeights])
def test_output_error_falls_well_below_nearest_rounding(kind, key, least):
    """Through all layers, on the data that they were rounded for and on other data: for nets on the
    whole.
    """
    shares, gains = [], []
    for seed in range(6):
        original, context = made(key, seed)
        plain, solved = original.clone(), original.clone()
        for layer in fittable_layers(plain)[0]:
            rows = layer.rows()
            scales = full_scales(rows, 7)
            layer.set_codes(nearest(rows, scales, grid_of_bits(4)), scales)
        gains.append(kind(bits=4).run(solved, context).stats["gain_db"])
        shares.append(
            [
                error(original, plain, feeds) / error(original, solved, feeds)
                for feeds in (context.feeds, batches(MODELS[key][1], seed=90 + seed))
            ]
        )
    assert (np.exp(np.log(shares).mean(axis=0)) > least).all()
    assert min(gains) > 1


def test_the_bias_takes_the_mean_error_of_the_weights():
    """One layer: after correction no channel's mean output moves, for the data that was seen."""
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    one (float[n, 3, 5, 5] x) => (float[n, 4, 5, 5] y)
    <float[4, 3, 3, 3] k> { y = Conv <pads = [1, 1, 1, 1]> (x, k) }
    """
    original = ir.from_proto(model_from(text))
    feeds = batches((8, 3, 5, 5))
    corrected, clipped = original.clone(), original.clone()
    CorrectBias(bits=4).run(corrected, CalibratedContext(feeds))
    ClipWeights(bits=4).run(clipped, NullContext())
    shifts = []
    for model in (corrected, clipped):
        a, b = run_session(original), run_session(model)
        differences = [a.run(None, f)[0] - b.run(None, f)[0] for f in feeds]
        shifts.append(np.abs(np.concatenate(differences).mean(axis=(0, 2, 3))).max())
    assert shifts[0] < 1e-5 < 0.01 < shifts[1]
    assert corrected.graph[0].inputs[2].const_value.shape.numpy() == (4,)


def test_a_matmul_without_bias_gets_an_add_and_keeps_the_output_name():
    model, context = made("mlp")
    CorrectBias(bits=4).run(model, context)
    assert [n.op_type for n in model.graph] == [
        "MatMul",
        "Add",
        "Relu",
        "MatMul",
        "Add",
    ]
    assert [o.name for o in model.graph.outputs] == ["y"]
    assert run_session(model).run(None, {"x": np.zeros((2, 3, 16), np.float32)})[
        0
    ].shape == (2, 3, 5)


def test_clipping_never_loses_more_than_the_full_range():
    rows = np.random.default_rng(1).standard_t(3, (50, 80))

    def lost(scales):
        return (
            (rows - nearest(rows, scales, grid_of_bits(4)) * scales[:, None]) ** 2
        ).sum(axis=1)

    full, best = full_scales(rows, 7), clipped_scales(rows, grid_of_bits(4))
    assert (lost(best) <= lost(full)).all()
    assert lost(best).sum() < 0.95 * lost(full).sum()


def test_clip_weights_counts_the_channels_that_it_narrows():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    one (float[n, 8] x) => (float[n, 2] y)
    <float[2, 8] w = {2, -2, 0, 2, -2, 2, 0, 0, 1.5, 1, 1, -1, 1, -1, 1, -1}>
    { y = Gemm <transB = 1> (x, w) }
    """
    model = ir.from_proto(model_from(text))
    assert ClipWeights(bits=2).run(model, NullContext()).stats == {
        "layers": 1,
        "weights": 16,
        "clipped": 1,
    }
    got = model.graph.initializers["w"].const_value.numpy()
    assert got[0].tolist() == [2, -2, 0, 2, -2, 2, 0, 0]
    assert np.sign(got[1]).tolist() == [1, 1, 1, -1, 1, -1, 1, -1]
    assert 1 <= np.abs(got[1]).max() < 1.5


def test_shared_weights_and_computed_ones_are_declined():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    shared (float[n, 4] x) => (float[n, 4] y)
    <float[4, 4] w>
    { a = MatMul (x, w) y = MatMul (a, w) }
    """
    model = ir.from_proto(model_from(text))
    outcome = Gptq().run(model, CalibratedContext(batches((4, 4))))
    assert outcome.changed == 0
    assert {d.reason for d in outcome.declined} == {
        "weight 'w' is shared with another node"
    }


@pytest.mark.parametrize("kind", PASSES)
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([0, 0, 0, 0], [0, 0, 0, 0]),
        ([1e-40, -1e-40, 0, 0], [0, 0, 0, 0]),
        ([1e6, 1, -1, 2], [1e6, 0, 0, 0]),
    ],
)
def test_zeros_denormals_and_outliers_stay_finite(kind, values, expected):
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    one (float[n, 4] x) => (float[n, 2] y)
    <float[4, 2] w, float[2] b = {0, 0}> { y = Gemm (x, w, b) }
    """
    model = ir.from_proto(model_from(text))
    weight = model.graph.initializers["w"]
    array = np.stack([np.array(values), [1, 2, 3, 4.1]], axis=1).astype(np.float32)
    weight.const_value = ir.Tensor(array, name="w")
    kind(bits=4).run(model, CalibratedContext(batches((32, 4))))
    got = weight.const_value.numpy()
    assert np.isfinite(got).all()
    assert np.isfinite(model.graph.initializers["b"].const_value.numpy()).all()
    if kind is not ClipWeights:
        np.testing.assert_allclose(
            np.abs(got[:, 0]), np.abs(expected), rtol=0.61, atol=0
        )


def test_nan_weights_and_inputs_too_large_to_square_are_declined():
    model, _ = made("mlp")
    weight = model.graph.initializers["w2"]
    weight.const_value = ir.Tensor(np.full((24, 5), np.nan, np.float32), name="w2")
    outcome = Gptq().run(
        model, CalibratedContext(batches((4, 3, 16), spread=np.full(16, 1e30)))
    )
    assert outcome.changed == 0
    assert [d.reason for d in outcome.declined] == [
        "its weight holds NaN or infinity",
        "the squares of its inputs overflow on the calibration data",
    ]


@pytest.mark.parametrize(
    "grid", [Grid(1), Grid(7), Grid(127), Grid(127, neighbours(30))]
)
@pytest.mark.parametrize("zeros", [0.0, 0.9])
def test_on_grid_is_what_nearest_leaves(grid, zeros):
    random = np.random.default_rng(0)
    rows = random.normal(size=(6, 30)) * (random.random((6, 30)) >= zeros)
    rows[:, :3] = random.normal(size=(6, 3))
    scales = (
        full_scales(rows, grid.levels) * 1.1
    )  # the largest code need not be the grid's largest
    assert not is_on_grid(rows, grid)
    assert is_on_grid(
        (nearest(rows, scales, grid) * scales[:, None]).astype(np.float32), grid
    )


def test_a_grid_with_offending_pairs_is_none_within_the_limit():
    rows = np.array([[127, 90, -3, 5], [64, 64, 1, -1]], np.float32)
    assert is_on_grid(rows[:1], Grid(127))
    assert not is_on_grid(rows[:1], Grid(127, neighbours(4)))
    assert is_on_grid(rows[1:], Grid(127, neighbours(4)))


@pytest.mark.parametrize("rounding", [Gptq, RoundWeights])
def test_pruned_weights_stay_zero(rounding):
    model, context = made("net")
    value = model.graph.initializers["k3"]
    array = value.const_value.numpy().copy()
    array[np.abs(array) < np.median(np.abs(array))] = 0
    value.const_value = ir.Tensor(array, name="k3")
    rounding(bits=4).run(model, context)
    rounded = model.graph.initializers["k3"].const_value.numpy()
    assert not rounded[array == 0].any()
    assert (rounded != array).any()
