"""Weights rounded on the grids of blocks with data, and `quant(blocked)` that keeps them."""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._calibrated import block_rounding
from onnx_opt.passes._calibrated.block_compensation import (
    compensated_in_blocks,
    fitted_scales,
    inverse_factor,
    nearest_in_blocks,
)
from onnx_opt.passes._calibrated.rounding import decorrelated
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes._quant.block_grids import BlockGrid, best_scales
from onnx_opt.passes.gptq import Gptq
from sample_models import model_from

# 72 inputs: the last block is short
TWO = """
<ir_version: 10, opset_import: ["" : 21]>
two (float[n, 3, 72] x) => (float[n, 3, 24] y)
<float[72, 40] w1, float[40] b1, float[24, 40] w2, int64[2] rows = {-1, 40}, int64[3] back = {-1,
    3, 24}>
{
    m = MatMul (x, w1)
    a = Add (m, b1)
    h = Relu (a)
    f = Reshape (h, rows)
    g = Gemm <transB = 1> (f, w2)
    y = Reshape (g, back)
}
"""
CONV = """
<ir_version: 10, opset_import: ["" : 21]>
conv (float[n, 4, 5, 5] x) => (float[n, 8, 5, 5] y)
<float[8, 4, 1, 1] k> { y = Conv (x, k) }
"""


def feeds(seed, count=8):
    """Inputs that depend on each other: 20 sources mixed into 72."""
    mix = np.random.default_rng(0).normal(size=(20, 72))
    random = np.random.default_rng(seed)
    found = []
    for _ in range(count):
        sources = random.normal(size=(16, 3, 20))
        noise = random.normal(size=(16, 3, 72))
        found.append({"x": (sources @ mix + noise).astype(np.float32)})
    return found


def made():
    model = ir.from_proto(model_from(TWO, seed=3))
    normalize(model)
    return model


def ran(text, context=None):
    """The model of two layers after a pipeline, and the last outcome."""
    model = made()
    outcome = None
    for step in parse(text).passes:
        outcome = step.run(model, context or CalibratedContext(feeds(1)))
    return model, outcome


def outputs(model):
    session = run_session(model, optimize=False)
    return np.concatenate([session.run(None, f)[0] for f in feeds(2)])


def noise_db(model):
    """Noise of the outputs on feeds that no pass has seen, in dB of the signal."""
    exact = outputs(made())
    error = outputs(model) - exact
    return 10 * np.log10((error**2).sum() / (exact**2).sum())


def weights(model):
    return {
        name: value.const_value.numpy()
        for name, value in model.graph.initializers.items()
    }


def test_without_data_or_with_nearest_rounding_nothing_is_made_up_for():
    plain, outcome = ran("quant(blocked, bits=4)", NullContext())
    nearest, other = ran("quant(blocked, bits=4, rounding=nearest)")
    assert "rounded" not in outcome.stats
    assert "rounded" not in other.stats
    for name, array in weights(plain).items():
        np.testing.assert_array_equal(weights(nearest)[name], array)


@pytest.mark.parametrize("block", [16, 32, 64])
def test_data_lowers_the_noise_on_other_samples(block):
    text = f"quant(blocked, bits=4, block={block}"
    nearest, _ = ran(f"{text}, rounding=nearest)")
    rounded, outcome = ran(f"{text})")
    assert outcome.stats["rounded"] == 2
    assert outcome.stats["rounding_gain_db"] > 3
    assert noise_db(rounded) < noise_db(nearest) - 3


def test_8_bits_are_left_to_nearest_rounding():
    rounded, outcome = ran("quant(blocked, bits=8)")
    assert "rounded" not in outcome.stats
    nearest, _ = ran("quant(blocked, bits=8, rounding=nearest)")
    for name, array in weights(nearest).items():
        np.testing.assert_array_equal(weights(rounded)[name], array)


@pytest.mark.parametrize("text", ["gptq(bits=4, block=32)", "gptq(bits=4)"])
@pytest.mark.parametrize("context", [NullContext(), None])
def test_quant_keeps_what_gptq_rounded(text, context):
    """By blocks or by channels: the grid of a channel is one of blocks, too."""
    before, _ = ran(text)
    after = before.clone()
    (quant,) = parse("quant(blocked, bits=4, block=32)").passes
    outcome = quant.run(after, context or CalibratedContext(feeds(1)))
    assert outcome.changed == 2
    assert outcome.stats.get("rounded", 0) == 0
    # outputs are up to some hundreds
    np.testing.assert_allclose(outputs(after), outputs(before), atol=1e-3)


def test_a_second_run_changes_nothing():
    model, _ = ran("gptq(bits=4, block=16)")
    again = Gptq(bits=4, block=16).run(model, CalibratedContext(feeds(1)))
    assert again.changed == 0
    assert [d.reason for d in again.declined] == [
        "its weights are rounded to 4 bits already"
    ] * 2


def test_a_bias_takes_the_mean_error_and_none_is_added():
    model, _ = ran("gptq(bits=4, block=32)")
    assert [n.op_type for n in model.graph] == [n.op_type for n in made().graph]
    assert (weights(model)["b1"] != weights(made())["b1"]).any()


def test_a_convolution_is_declined():
    model = ir.from_proto(model_from(CONV))
    x = np.ones((1, 4, 5, 5), np.float32)
    outcome = Gptq(bits=4, block=16).run(model, CalibratedContext([{"x": x}]))
    assert [d.reason for d in outcome.declined] == ["a Conv has no weights in blocks"]


def test_blocks_are_of_4_bits():
    with pytest.raises(UsageError, match=r"weights of 8 bits are not rounded in block"):
        Gptq(block=32)


# the solver


def problem(seed=0, channels=12, width=80):
    random = np.random.default_rng(seed)
    rows = random.normal(size=(channels, width))
    inputs = random.normal(size=(400, 20)) @ random.normal(size=(20, width))
    inputs += random.normal(size=inputs.shape)
    return rows, inputs.T @ inputs / len(inputs)


def loss(rows, found, hessian, block, scales=None):
    scales = found.scales if scales is None else scales
    width = rows.shape[1]
    lost = found.codes * scales.repeat(block, axis=1)[:, :width] - rows
    return np.einsum("mk,kl,ml->m", lost, hessian, lost)


@pytest.mark.parametrize("side", [1, 63, 64, 65, 200])
def test_the_factor_is_that_of_the_inverse(side):
    _, hessian = problem(width=side)
    upper = inverse_factor(hessian)
    assert (np.tril(upper, -1) == 0).all()
    np.testing.assert_allclose(upper.T @ upper @ hessian, np.eye(side), atol=1e-8)


@pytest.mark.parametrize("block", [16, 32, 128])
def test_compensation_loses_less_than_the_nearest(block):
    rows, hessian = problem()
    grid = BlockGrid(4, block)
    found = compensated_in_blocks(rows, hessian, grid)
    nearest = nearest_in_blocks(rows, grid)
    assert found.scales.shape == nearest.scales.shape == (12, -(-80 // block))
    share = loss(rows, found, hessian, block) / loss(rows, nearest, hessian, block)
    assert np.exp(np.log(share).mean()) < 0.5


def test_fitted_scales_are_the_best_for_their_codes():
    rows, hessian = problem()
    nearest = nearest_in_blocks(rows, BlockGrid(4, 16))
    fitted = fitted_scales(rows, nearest, hessian, 16)
    least = loss(rows, nearest, hessian, 16, fitted)
    for factor in (0.99, 1.01):
        for number in range(fitted.shape[1]):
            other = fitted.copy()
            other[:, number] *= factor
            assert (loss(rows, nearest, hessian, 16, other) >= least).all()


def test_uncorrelated_inputs_are_rounded_to_the_nearest_but_for_scales():
    rows, _ = problem()
    grid = BlockGrid(4, 16)
    found = compensated_in_blocks(rows, np.eye(80), grid)
    np.testing.assert_array_equal(found.codes, nearest_in_blocks(rows, grid).codes)


def test_zeros_stay_zero_and_a_block_of_them_has_a_scale():
    rows, hessian = problem()
    rows[:, ::3] = 0
    rows[4, 16:32] = 0
    rows[5] = 0
    found = compensated_in_blocks(rows, hessian, BlockGrid(4, 16))
    assert (found.codes[rows == 0] == 0).all()
    assert np.isfinite(found.scales).all()


@pytest.mark.parametrize("top", [-8, 7, 6, 5, 4, 3, 2, 1])
def test_a_grid_is_found_again_whatever_its_largest_code(top):
    random = np.random.default_rng(1)
    most = abs(top)
    codes = random.integers(1 - most, most, (32, 50)).astype(np.float32)
    codes[random.integers(0, 32, 50), np.arange(50)] = top
    scales = random.normal(size=50).astype(np.float32)
    values = codes * scales
    found = best_scales(values, 4)
    np.testing.assert_allclose(np.rint(values / found) * found, values, rtol=1e-6)


W1_SHARE = 72 * 40 / (72 * 40 + 24 * 40)


@pytest.mark.parametrize(
    ("sensitive", "finer"),
    [
        (0.0, []),
        # the small layer has a quarter of the weights
        (0.24, []),
        (0.26, ["w2"]),
        (W1_SHARE + 0.01, ["w2"]),
        (1.0, ["w2", "w1"]),
    ],
)
def test_layers_that_lose_most_for_their_size_get_8_bits(sensitive, finer):
    model, outcome = ran(f"quant(blocked, bits=4, smooth=false, sensitive={sensitive})")
    stored = {
        name.split("_q8")[0]
        for name, value in model.graph.initializers.items()
        if value.dtype == ir.DataType.INT8
    }
    assert stored == set(finer)
    assert [chosen.where for chosen in outcome.chosen] == finer
    assert all(chosen.choice == "8 bits" for chosen in outcome.chosen)
    assert outcome.stats["layers"] == 2
    assert outcome.stats["rounded"] == 2 - len(finer)


def test_a_layer_that_the_user_named_keeps_its_bits():
    _, outcome = ran(
        'quant(blocked, bits=4, smooth=false, sensitive=1, layers="w2=blocked:4")'
    )
    assert [chosen.where for chosen in outcome.chosen] == ["w1"]
    assert outcome.stats["rounded"] == 1


def test_finer_layers_lower_the_noise():
    plain, _ = ran("quant(blocked, bits=4, sensitive=0)")
    finer, _ = ran("quant(blocked, bits=4, sensitive=0.3)")
    assert noise_db(finer) < noise_db(plain) - 1


def test_scales_are_of_half_precision():
    for text in ("gptq(bits=4, block=32)", "quant(blocked, bits=4, rounding=nearest)"):
        model, _ = ran(f"{text}, quant(blocked, bits=4)")
        scales = [v for n, v in weights(model).items() if "block_scale" in n]
        assert len(scales) == 2
        for scale in scales:
            assert np.array_equal(scale, scale.astype(np.float16).astype(np.float32))


def test_scales_too_small_for_half_precision_stay():
    tiny = np.full((32, 1), -8e-6, np.float32)
    assert best_scales(tiny, 4).tolist() == [np.float32(1e-6)]
    huge = tiny * np.float32(1e12)
    assert best_scales(huge, 4).tolist() == [-huge[0, 0] / np.float32(8)]


def test_inputs_go_together_less_than_the_data_say():
    gram = np.array([[[4.0, 1.0], [1.0, 9.0]]])

    found = decorrelated(gram, 1.0)

    assert np.array_equal(found, [[[8.0, 1.0], [1.0, 18.0]]])
    assert np.array_equal(gram, [[[4.0, 1.0], [1.0, 9.0]]])


ONE = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[n, 64] x) => (float[n, 24] y)
<float[64, 24] w> { y = MatMul (x, w) }
"""


def noise_on_other_rows(seed):
    """Noise of one layer, rounded by 80 rows whose 64 inputs have nothing in common but by chance:
    a share of the signal on all rows.
    """
    model = ir.from_proto(model_from(ONE, seed=seed))
    normalize(model)
    exact = model.graph.initializers["w"].const_value.numpy()
    rows = np.random.default_rng(seed).normal(size=(80, 64)).astype(np.float32)
    Gptq(bits=4, block=32).run(model, CalibratedContext([{"x": rows}]))
    found = model.graph.initializers["w"].const_value.numpy()
    return ((found - exact) ** 2).sum() / (exact**2).sum()


def test_what_inputs_have_in_common_by_chance_is_believed_less(monkeypatch):
    cautious = [noise_on_other_rows(seed) for seed in range(5)]
    monkeypatch.setattr(block_rounding, "DECORRELATION", 0.0)
    trusting = [noise_on_other_rows(seed) for seed in range(5)]
    assert all(np.array(cautious) < 0.9 * np.array(trusting))
