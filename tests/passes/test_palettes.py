"""Palettes: values that fit their weights, and layers on int8 codes of few values a channel."""

import itertools

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.channel_layout import Layout
from onnx_opt.passes._quant.palette_values import HIGHEST
from onnx_opt.passes._quant.palettes import (
    MOST_BYTES,
    codes_of,
    fitted,
    nearest_codes,
    rescaled,
    sharing,
)
from onnx_opt.passes.pack import Pack
from onnx_opt.passes.quant import Quant
from quant_models import (
    FEEDS,
    WIDE,
    chain,
    codes_in,
    kernels,
    model_of,
    outputs,
    session,
    sqnr,
)
from quant_models import (
    seeded_normal as normal,
)

WEIGHTS = {
    "w1": normal(32, 4, 3, 3),
    "w2": normal(32, 32, 3, 3),
    "b2": normal(32),
    "w3": normal(32, 32, 3, 3, seed=1),
    "w4": normal(4, 32),
}
WIDE_FEEDS = {"x": normal(8, 4, 9, 9)}


def values_of(palettes):
    return palettes.values * palettes.scales[:, None]


def error_of(rows, palettes):
    steps = (rows / palettes.scales[:, None])[None]
    codes = palettes.nearest(steps)[0]
    return ((codes * palettes.scales[:, None] - rows) ** 2).sum(axis=1)


# --- values -----------------------------------------------------------------------


def test_values_are_as_good_as_the_best_of_all_divisions():
    """One dimension: the best palette cuts the sorted weights into runs."""
    for row in normal(5, 96):
        (found,) = error_of(row[None], fitted(row[None], 2))
        ordered = np.sort(row.astype(np.float64))
        best = min(
            sum(part.var() * part.size for part in np.split(ordered, cuts))
            for cuts in itertools.combinations(range(4, 93, 4), 3)
        )
        assert found <= 1.02 * best


def test_few_distinct_weights_stay_what_they_are():
    pool = np.array([-64, -20, 0, 3, 17, 64]) / 64
    rows = np.random.default_rng(0).choice(pool, (4, 200))
    rows[:, 0] = 1
    assert error_of(rows, fitted(rows, 3)).max() < 1e-12


@pytest.mark.parametrize("bits", [2, 4, 6])
def test_zeros_stay_zeros(bits):
    rows = normal(6, 300) + np.float32(0.3)
    rows[:, ::7] = 0
    palettes = fitted(rows, bits)
    codes = palettes.nearest((rows / palettes.scales[:, None])[None])[0]
    assert (codes[:, ::7] == 0).all()


@pytest.mark.parametrize("bits", [1, 2, 3, 5])
def test_zeros_are_free_where_half_of_the_weights_are(bits):
    rows = normal(8, 2000)
    rows[np.abs(rows) < 0.7] = 0
    steps = np.count_nonzero(fitted(rows, bits).values, axis=1)
    assert (steps == 2**bits).all()
    rows[rows == 0] = 0.01
    assert fitted(rows, bits).values.shape[1] == 2**bits


def test_as_many_values_as_pack_looks_for_at_most():
    rows = normal(8, 2000)
    rows[np.abs(rows) < 0.7] = 0
    assert fitted(rows, 6).values.shape[1] == 64


def test_channels_without_zeros_have_no_more_values_beside_others():
    rows = normal(8, 500)
    rows[:4] = 0
    rows[4, :300] = 0
    values = fitted(rows, 1).values
    distinct_values = [len(set(row)) for row in values.tolist()]
    assert distinct_values[4:] == [3, 2, 2, 2]


def test_one_bit_beside_few_zeros_has_both_signs():
    rows = normal(4, 500)
    rows[:, :5] = 0
    values = fitted(rows, 1).values
    assert (values.min(axis=1) < 0).all()
    assert (values.max(axis=1) > 0).all()
    assert (values == 0).any(axis=1).all()


def test_scales_are_of_half_precision():
    scales = fitted(normal(16, 100), 3).scales
    assert np.array_equal(scales.astype(np.float16), scales)
    # where half precision has but few digits left, scales are exact
    tiny = fitted(normal(16, 100, scale=1e-6), 3).scales
    assert not np.array_equal(tiny.astype(np.float16), tiny)


def test_weights_that_matter_more_are_met_more_closely():
    rows = normal(1, 400)
    importance = np.ones((1, 400))
    importance[:, :3] = 1e6
    palettes = fitted(rows, 3, importance)
    steps = rows / palettes.scales[:, None]
    # as near as whole codes are
    distance = np.abs(palettes.nearest(steps[None])[0] - steps)
    assert distance[:, :3].max() <= 0.51
    assert distance.max() > 1


@pytest.mark.parametrize("scale", [1e-20, 1e20])
def test_the_size_of_weights_does_not_matter(scale):
    rows = normal(3, 100).astype(np.float64)
    plain, scaled = fitted(rows, 4), fitted(rows * scale, 4)
    assert np.array_equal(plain.values, scaled.values)


def test_no_two_values_can_saturate_a_kernel():
    for bits in range(2, 7):
        assert np.abs(fitted(normal(8, 64), bits).values.astype(int)).max() <= HIGHEST


@pytest.mark.parametrize("channels", [1, 7, 12, 64])
@pytest.mark.parametrize("width", [32, 144, 4608])
def test_palettes_take_a_small_part_of_the_bytes(channels, width):
    shared = sharing(channels, width, 4)
    assert channels % shared == 0
    is_small = MOST_BYTES * shared * width / 2 >= 16
    assert is_small or shared == channels


def test_channels_of_zeros_and_of_one_value():
    rows = np.zeros((4, 64), np.float32)
    rows[2] = 0.5
    assert error_of(rows, fitted(rows, 4)).max() < 1e-12


# --- codes ------------------------------------------------------------------------


def test_scales_that_grow_leave_no_more_values():
    weight = ir.Tensor(normal(8, 64))
    stored = codes_of(weight, Layout(1, 8, 64), 4)
    codes = rescaled(stored, (stored.scales * 1.7).astype(np.float32)).numpy()
    assert all(len(np.unique(row)) <= 16 for row in codes)
    assert rescaled(stored, stored.scales.astype(np.float32)) is stored.codes


def test_codes_do_not_depend_on_the_place_of_the_channels():
    weight = normal(24, 96)
    palettes = fitted(weight, 4)
    by_rows = nearest_codes(ir.Tensor(weight), Layout(1, 24, 96), palettes)
    turned = np.ascontiguousarray(weight.T)
    by_columns = nearest_codes(ir.Tensor(turned), Layout(96, 24, 1), palettes)
    assert np.array_equal(by_rows.numpy(), by_columns.numpy().T)


# --- layers -----------------------------------------------------------------------


def distinct(codes):
    return [len(np.unique(channel)) for channel in codes.reshape(len(codes), -1)]


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 6])
def test_layers_run_in_the_kernels_of_int8(bits, calibrated, tmp_path):
    model = model_of(WIDE, **WEIGHTS)
    plain = model.clone()
    Quant(form="palette", bits=bits).run(model, calibrated([WIDE_FEEDS]))
    Quant().run(plain, calibrated([WIDE_FEEDS]))
    assert kernels(model, tmp_path)["QLinearConv"] == 3
    assert (
        kernels(model, tmp_path)["QLinearConv"]
        == kernels(plain, tmp_path)["QLinearConv"]
    )
    codes = codes_in(model)
    assert max(distinct(codes["w2"])) <= 2**bits
    # the ends keep 8 bits
    assert max(distinct(codes["w1"])) > 24


def test_packing_changes_no_bit_and_stores_indices(calibrated):
    model = model_of(WIDE, **WEIGHTS)
    Quant(form="palette", bits=4, ends="same").run(model, calibrated([WIDE_FEEDS]))
    before = outputs(model, WIDE_FEEDS)
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["channel_palettes"] >= 2
    assert np.array_equal(outputs(model, WIDE_FEEDS), before)


def test_data_and_palettes_beat_uniform_steps(calibrated):
    # most weights of trained layers are small
    peaked = {name: array**3 for name, array in WEIGHTS.items()}
    model = model_of(WIDE, **peaked)
    wanted = outputs(model, WIDE_FEEDS)
    found = {}
    for form in ("int8", "palette"):
        quantized = model.clone()
        options = {"form": form, "bits": 3, "smooth": False}
        Quant(**options).run(quantized, calibrated([WIDE_FEEDS]))
        found[form] = sqnr(wanted, outputs(quantized, WIDE_FEEDS))
    assert found["palette"] > found["int8"] + 1


def test_convolutions_without_data_stay_float_on_small_weights(tmp_path):
    model = model_of(WIDE, **WEIGHTS)
    wanted = outputs(model, WIDE_FEEDS)
    outcome = Quant(form="palette", bits=4).run(model, NullContext())
    assert outcome.stats["weights_4_bit"] == 9216 * 2
    found = kernels(model, tmp_path)
    assert (found["QLinearConv"], found["ConvInteger"]) == (0, 0)
    assert sqnr(wanted, outputs(model, WIDE_FEEDS)) > 15


def test_a_large_end_has_palettes_like_the_others(calibrated):
    weights = WEIGHTS | {"w4": normal(200, 32)}
    model = model_of(WIDE.replace("float[N, 4] y", "float[N, 200] y"), **weights)
    outcome = Quant(form="palette", bits=4).run(model, calibrated([WIDE_FEEDS]))
    assert outcome.stats["weights_4_bit"] == 9216 * 2 + 200 * 32
    assert outcome.stats["weights_8_bit"] == 32 * 36


def test_narrow_channels_keep_8_bits(calibrated):
    model = chain()
    outcome = Quant(form="palette", bits=4, ends="same").run(model, calibrated([FEEDS]))
    # w1 has 27 weights a channel, w3 has 7, w2 has 72
    assert outcome.stats["weights_4_bit"] == 504
    assert outcome.stats["weights_8_bit"] == 8 * 27 + 28


TABLE = """
<ir_version: 8, opset_import: ["" : 17]>
embed (int64[N] ids) => (float[N, 32] y)
{ rows = Gather (table, ids)  y = MatMul (rows, w) }
"""


def test_tables_have_palettes_too():
    model = model_of(TABLE, table=normal(64, 64), w=normal(64, 32))
    ids = {"ids": np.arange(64)}
    wanted = outputs(model, ids)
    outcome = Quant(form="palette", bits=4, ends="same").run(model, NullContext())
    rows = model.graph.initializers["table_rows"].const_value.numpy()
    assert max(distinct(rows)) <= 16
    assert outcome.stats["weights_4_bit"] == 64 * 64 + 64 * 32
    assert sqnr(wanted, outputs(model, ids)) > 12


LSTM = """
<ir_version: 8, opset_import: ["" : 17]>
recurrent (float[5, N, 32] x) => (float[5, 1, N, 32] y)
{ y = LSTM <hidden_size = 32> (x, w, r) }
"""


def test_recurrent_layers_have_palettes_too():
    weights = {
        "w": normal(1, 128, 32, scale=0.2),
        "r": normal(1, 128, 32, scale=0.2, seed=1),
    }
    model = model_of(LSTM, **weights)
    feeds = {"x": normal(5, 3, 32)}
    wanted = outputs(model, feeds)
    Quant(form="palette", bits=4).run(model, NullContext())
    codes = codes_in(model)["w"]
    assert max(distinct(np.swapaxes(codes[0], 0, 1))) <= 16
    assert sqnr(wanted, outputs(model, feeds)) > 10


def test_pruned_weights_stay_pruned(calibrated):
    weights = {name: array.copy() for name, array in WEIGHTS.items()}
    weights["w2"][normal(*weights["w2"].shape) > 0] = 0
    kept = np.count_nonzero(weights["w2"])
    model = model_of(WIDE, **weights)
    Quant(form="palette", bits=4).run(model, calibrated([WIDE_FEEDS]))
    codes = codes_in(model)["w2"]
    assert np.count_nonzero(codes) <= kept
    assert (codes[weights["w2"] == 0] == 0).all()


@pytest.mark.parametrize("bits", [7, 8])
def test_more_bits_than_a_palette_has_are_refused(bits):
    with pytest.raises(UsageError, match="has 1 to 6 bits, not"):
        Quant(form="palette", bits=bits)


@pytest.mark.parametrize("text", ["w2=palette", "w2=palette:7", "w2=palette:8"])
def test_single_layers_have_no_palettes_of_all_bits(text):
    with pytest.raises(UsageError, match=r"has 1 to 6 bits, not [78]"):
        Quant(layers=(text,))


def test_single_layers_may_have_palettes(calibrated):
    model = model_of(WIDE, **WEIGHTS)
    Quant(layers=("w2=palette:3",)).run(model, calibrated([WIDE_FEEDS]))
    assert max(distinct(codes_in(model)["w2"])) <= 8
    assert max(distinct(codes_in(model)["w3"])) > 64


@pytest.mark.parametrize(("form", "bits"), [("int8", 8), ("binary", 1), ("ternary", 2)])
def test_single_layers_may_have_other_forms_beside_one_bit(form, bits, calibrated):
    model = model_of(WIDE, **WEIGHTS)
    quant = Quant(form="palette", bits=1, layers=(f"w2={form}",), measure=False)
    stats = quant.run(model, calibrated([WIDE_FEEDS])).stats
    size = WEIGHTS["w2"].size
    assert stats[f"weights_{bits}_bit"] >= size
    # w3 is as large, and has one bit
    assert stats["weights_1_bit"] == (2 * size if bits == 1 else size)


def test_biases_that_are_large_keep_all_digits():
    """A softmax takes the same from all scores, and the last digits of half precision with it."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    net (float[N, 64] x) => (float[N, 64] y)
    { h = Gemm (x, w1, b1)  r = Relu (h)  s = Gemm (r, w2, b2)  y = Softmax (s) }
    """
    weights = {"w1": normal(64, 64, scale=0.1), "w2": normal(64, 64, scale=0.1, seed=1)}
    feeds = {"x": normal(64, 64)}
    kept = []
    for offset in (0, 1000):
        bias = normal(64, scale=0.1) + np.float32(offset)
        model = model_of(text, b1=normal(64, scale=0.1), b2=bias, **weights)
        before = outputs(model, feeds)
        quant = Quant(form="palette", bits=6, measure=False)
        quant.run(model, CalibratedContext([{"x": normal(256, 64, seed=2)}]))
        kept.append(sqnr(before, outputs(model, feeds)))
    assert kept[1] > kept[0] - 2


def test_a_model_that_is_quantized_already_stays(calibrated):
    model = model_of(WIDE, **WEIGHTS)
    Quant().run(model, calibrated([WIDE_FEEDS]))
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = Quant(form="palette", bits=4).run(model, calibrated([WIDE_FEEDS]))
    assert outcome.changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_it_is_as_fast_to_run_as_a_file_of_plain_codes(calibrated, tmp_path):
    model = model_of(WIDE, **WEIGHTS)
    Quant(form="palette", bits=4).run(model, calibrated([WIDE_FEEDS]))
    plain = kernels(model, tmp_path)
    Pack().run(model, NullContext())
    assert kernels(model, tmp_path) == plain
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    assert session(model) is not None
