"""Codebooks: vectors that fit weights, and layers on int8 codes made of few of them."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.channel_layout import Layout
from onnx_opt.passes._core.half_precision import are_halves, scales_on_halves
from onnx_opt.passes._core.vector_codebooks import (
    MOST_VECTORS,
    codebook_of,
    index_into,
    length_for,
    merged,
)
from onnx_opt.passes._quant.codebooks import (
    codes_of,
    fits,
    fitted,
    nearest_vectors,
    relative_vectors,
)
from onnx_opt.passes._quant.palette_values import HIGHEST
from onnx_opt.passes.pack import Pack
from onnx_opt.passes.quant import Quant
from quant_models import (
    WIDE,
    codes_in,
    kernels,
    model_of,
    outputs,
    sqnr,
)
from quant_models import (
    seeded_normal as normal,
)

WEIGHTS = {
    "w1": normal(32, 4, 3, 3, scale=0.2),
    "w2": normal(32, 32, 3, 3, scale=0.06),
    "b2": normal(32),
    "w3": normal(64, 32, 3, 3, seed=1, scale=0.06),
    "w4": normal(4, 64),
}
FEEDS = {"x": normal(8, 4, 9, 9)}

DENSE = """
<ir_version: 8, opset_import: ["" : 17]>
dense (float[N, 64] x) => (float[N, 8] y)
{
    a = MatMul (x, w1)  ar = Relu (a)
    b = MatMul (ar, w2)  br = Relu (b)
    c = MatMul (br, w3)  cr = Relu (c)
    y = MatMul (cr, w4)
}
"""
DENSE_WEIGHTS = {
    "w1": normal(64, 64, scale=0.1),
    "w2": normal(64, 128, scale=0.1),
    "w3": normal(128, 192, scale=0.1),
    "w4": normal(192, 8, scale=0.1),
}


def made_of(shape, axis, length, count, seed=0):
    """Codes whose channels along `axis` are made of `count` vectors."""
    random = np.random.default_rng(seed)
    vectors = random.integers(-HIGHEST, HIGHEST + 1, (count, length)).astype(np.int8)
    size = int(np.prod(shape))
    rows = vectors[random.integers(0, count, size // length)]
    first = [shape[axis], *(n for i, n in enumerate(shape) if i != axis % len(shape))]
    return np.ascontiguousarray(np.moveaxis(rows.reshape(first), 0, axis))


def length_of(codes):
    """Weights of the vectors that codes are made of; None for any codes."""
    found = codebook_of(ir.Tensor(codes))
    return found and found.length


# --- which codes are made of vectors ------------------------------------------------


@pytest.mark.parametrize(
    ("shape", "axis", "length"),
    [
        ((64, 64, 3, 3), 0, 9),
        ((64, 32, 3, 3), 0, 4),
        ((96, 80), 0, 8),
        ((80, 96), -1, 8),
        ((70, 96), -1, 7),
        ((600, 1000), 0, 4),
        ((1000, 900), -1, 5),
    ],
)
def test_vectors_are_found_and_give_the_codes_back(shape, axis, length):
    codes = made_of(shape, axis, length, 200)
    found = codebook_of(ir.Tensor(codes))
    assert found is not None
    assert (found.length, found.axis) == (length, axis)
    assert len(found.vectors) <= 200
    rows = np.moveaxis(codes, axis, 0).reshape(-1, length)
    assert np.array_equal(found.vectors[found.index.numpy()], rows)


def test_any_other_codes_are_none():
    random = np.random.default_rng(0)
    plain = random.integers(-127, 128, (64, 576)).astype(np.int8)
    assert codebook_of(ir.Tensor(plain)) is None
    assert codebook_of(ir.Tensor(made_of((64, 576), 0, 9, 400))) is None
    # as many vectors as there are places for them say nothing
    assert codebook_of(ir.Tensor(plain[:4, :36])) is None
    floats = made_of((64, 64, 3, 3), 0, 9, 200).astype(np.float32)
    assert codebook_of(ir.Tensor(floats)) is None
    assert codebook_of(ir.Tensor(np.zeros(0, np.int8))) is None
    assert codebook_of(ir.Tensor(np.zeros((0, 9), np.int8))) is None


def test_vectors_that_begin_with_zeros_are_told_apart():
    vectors = np.array([[0, 0, 0], [0, 0, 1], [0, 1, 0], [-1, 0, 0]], np.int8)
    together = merged([vectors[::-1], vectors])
    assert len(together) == 4
    places = index_into(together, vectors)
    assert np.array_equal(together[places], vectors)


@pytest.mark.parametrize(
    ("width", "bits", "length"),
    [(576, 1, 9), (384, 1, 8), (27, 1, 9), (384, 2, 4), (25, 2, 5), (11, 1, None)],
)
def test_lengths_divide_the_channels(width, bits, length):
    assert length_for(width, bits) == length


# --- values -----------------------------------------------------------------------


def test_a_codebook_fits_better_than_signs_of_single_weights():
    """Signs lose 1 - 2 / pi of the power of normal weights at least."""
    rows = normal(64, 1152)
    vectors = relative_vectors(rows, 8)
    codebook = fitted([vectors])
    values = codebook.codes * np.float32(codebook.unit)
    chosen = values[nearest_vectors(vectors, values)]
    lost = np.mean((chosen - vectors) ** 2) / np.mean(vectors**2)
    assert lost < 0.9 * (1 - 2 / np.pi)
    assert np.abs(codebook.codes).max() == HIGHEST
    assert not codebook.codes[0].any()


def test_the_nearest_vector_is_found():
    codebook = normal(MOST_VECTORS, 5)
    vectors = normal(300, 5, seed=1)
    distances = ((vectors[:, None] - codebook) ** 2).sum(axis=2)
    assert np.array_equal(nearest_vectors(vectors, codebook), distances.argmin(axis=1))


def test_scales_of_nearly_silent_channels_take_two_bytes_too():
    scales = np.array([1e-3, 4e-7, 1e-12])
    halves = scales_on_halves(scales)
    assert are_halves(halves)
    assert (halves > 0).all()
    assert np.abs(halves - scales).max() < 5e-4 * scales.max()
    # all small: these digits are needed
    assert np.array_equal(scales_on_halves(scales / 100), scales / 100)


# --- layers -----------------------------------------------------------------------


@pytest.mark.parametrize(("bits", "length"), [(1, 9), (2, 4)])
def test_layers_run_in_the_kernels_of_int8(bits, length, calibrated, tmp_path):
    model = model_of(WIDE, **WEIGHTS)
    plain = model.clone()
    outcome = Quant(form="codebook", bits=bits).run(model, calibrated([FEEDS]))
    Quant().run(plain, calibrated([FEEDS]))
    assert kernels(model, tmp_path)["QLinearConv"] == 3
    assert (
        kernels(model, tmp_path)["QLinearConv"]
        == kernels(plain, tmp_path)["QLinearConv"]
    )
    codes = codes_in(model)
    assert length_of(codes["w2"]) == length_of(codes["w3"]) == length
    # the ends keep 8 bits
    assert length_of(codes["w1"]) is None
    assert outcome.stats[f"weights_{bits}_bit"] == codes["w2"].size + codes["w3"].size


@pytest.mark.parametrize("feeds", [None, [{"x": normal(64, 64)}]])
@pytest.mark.parametrize("kernel", ["auto", "float"])
def test_matrices_have_vectors_along_their_inputs(feeds, kernel, calibrated):
    model = model_of(DENSE, **DENSE_WEIGHTS)
    x = {"x": normal(16, 64, seed=3)}
    wanted = outputs(model, x)
    context = NullContext() if feeds is None else calibrated(feeds)
    Quant(form="codebook", bits=2, kernel=kernel).run(model, context)
    found = codebook_of(ir.Tensor(codes_in(model)["w2"]))
    assert found is not None
    assert (found.length, found.axis) == (4, -1)
    assert sqnr(wanted, outputs(model, x)) > 5


def test_layers_share_a_codebook(calibrated):
    model = model_of(WIDE, **WEIGHTS)
    Quant(form="codebook", bits=2).run(model, calibrated([FEEDS]))
    codes = codes_in(model)
    vectors = [codebook_of(ir.Tensor(codes[name])).vectors for name in ("w2", "w3")]
    assert len(merged(vectors)) <= MOST_VECTORS


def test_packing_changes_no_bit_and_stores_the_codebook_once(calibrated):
    model = model_of(WIDE, **WEIGHTS)
    Quant(form="codebook", bits=2).run(model, calibrated([FEEDS]))
    before = outputs(model, FEEDS)
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["codebook"] == 2
    assert np.array_equal(outputs(model, FEEDS), before)
    tables = [
        value
        for value in model.graph.initializers.values()
        if value.shape.numpy() == (MOST_VECTORS, 4)
    ]
    assert len(tables) == 1


def test_the_smallest_layers_have_two_bits_beside_one(calibrated):
    weights = {**WEIGHTS, "w2": normal(64, 32, 3, 3), "b2": normal(64)}
    weights["w3"] = normal(128, 64, 3, 3, scale=0.06)
    weights["w4"] = normal(4, 128)
    model = model_of(WIDE, **weights)
    stats = Quant(form="codebook", bits=1).run(model, calibrated([FEEDS])).stats
    assert stats["weights_2_bit"] == weights["w2"].size
    assert stats["weights_1_bit"] == weights["w3"].size


def test_data_beats_none(calibrated):
    model = model_of(DENSE, **DENSE_WEIGHTS)
    mixed = normal(64, 64, seed=5)
    rows = normal(512, 64) @ mixed
    wanted = outputs(model, {"x": rows[:64]})
    found = []
    for rounding in ("gptq", "nearest"):
        quantized = model.clone()
        quant = Quant(form="codebook", bits=2, rounding=rounding)
        quant.run(quantized, calibrated([{"x": rows[64:]}]))
        found.append(sqnr(wanted, outputs(quantized, {"x": rows[:64]})))
    assert found[0] > found[1] + 1


def test_channels_that_nothing_divides_keep_8_bits(calibrated):
    weights = {
        **DENSE_WEIGHTS,
        "w1": normal(64, 101, scale=0.1),
        "w2": normal(101, 128, scale=0.1),
    }
    model = model_of(DENSE, **weights)
    quant = Quant(form="codebook", bits=2)
    stats = quant.run(model, calibrated([{"x": normal(64, 64)}])).stats
    assert stats["weights_8_bit"] == weights["w2"].size + weights["w4"].size
    # the first is too large a part of the file to be spared
    assert stats["weights_2_bit"] == weights["w1"].size + weights["w3"].size


def test_small_layers_keep_8_bits_even_by_name(calibrated):
    weights = {**WEIGHTS, "w2": normal(16, 32, 1, 1), "w3": normal(64, 16, 3, 3)}
    weights["b2"] = normal(16)
    model = model_of(WIDE, **weights)
    quant = Quant(layers=("w2=codebook:1", "w3=codebook:2"))
    stats = quant.run(model, calibrated([FEEDS])).stats
    assert stats["weights_2_bit"] == weights["w3"].size
    assert "weights_1_bit" not in stats


def test_channels_of_zeros_stay_zeros(calibrated):
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["w2"][::5] = 0
    model = model_of(WIDE, **weights)
    wanted = outputs(model, FEEDS)
    Quant(form="codebook", bits=2).run(model, calibrated([FEEDS]))
    codes = codes_in(model)["w2"]
    assert not codes[::5].any()
    assert length_of(codes) == 4
    assert sqnr(wanted, outputs(model, FEEDS)) > 3


def test_nearly_silent_channels_stay_vectors(calibrated):
    """A bias beyond int32 widens the scale of a channel, and codes are chosen anew for it."""
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["w2"][3] *= 1e-6
    weights["b2"][3] = 3
    model = model_of(WIDE, **weights)
    wanted = outputs(model, FEEDS)
    Quant(form="codebook", bits=2).run(model, calibrated([FEEDS]))
    assert length_of(codes_in(model)["w2"]) == 4
    assert sqnr(wanted, outputs(model, FEEDS)) > 3


@pytest.mark.parametrize("shape", [(64, 32), (128, 32)])
def test_the_smallest_layers_that_fit_are_found_again(shape):
    tensor = ir.Tensor(normal(*shape))
    bits = 2 if shape[0] == 64 else 1
    assert fits(*shape, bits)
    stored = codes_of(tensor, Layout.of(shape, 0), bits)
    assert codebook_of(stored.codes) is not None


@pytest.mark.parametrize("bits", [3, 8])
def test_more_bits_than_a_codebook_has_are_refused(bits):
    with pytest.raises(UsageError, match="has 1 to 2 bits, not") as raised:
        Quant(form="codebook", bits=bits)
    assert "add bits=2" in raised.value.fix


def test_weights_that_are_not_finite_are_refused():
    weights = {**DENSE_WEIGHTS, "w3": DENSE_WEIGHTS["w3"].copy()}
    weights["w3"][3, 4] = np.nan
    model = model_of(DENSE, **weights)
    with pytest.raises(RefusedError, match="holds NaN or infinity"):
        Quant(form="codebook", bits=2).run(model, NullContext())
