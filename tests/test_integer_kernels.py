"""Models of integer kernels against ONNX Runtime's own, bit for bit, and against each other.

On an x86 CPU without VNNI this proves the saturating model, elsewhere the exact one.
"""

import collections

import numpy as np
import onnx
import onnxruntime
import pytest
from generated_layers import (
    KINDS,
    drawn,
    extreme_codes,
    integer_arrays,
    model_of,
    output_grid,
    qdq_model,
)
from integer_graphs import offending_pairs, run_integers
from integer_kernels import (
    ARITHMETICS,
    arithmetic_of_this_cpu,
    may_saturate,
    sums_of_products,
)

SEEDS = range(4)
HERE = arithmetic_of_this_cpu()


def session(model, saved=None):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = 1
    if saved:
        options.optimized_model_filepath = str(saved)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )


def assert_equal_bits(model, feeds):
    """The runtime's fused kernels give what the model of this CPU's arithmetic says."""
    (wanted,), (got,) = (
        run_integers(model, feeds, HERE),
        session(model).run(None, feeds),
    )
    assert got.dtype == wanted.dtype
    np.testing.assert_array_equal(got, wanted)


def floats_of(codes, arrays):
    return (
        (codes.astype(np.float32) - np.float32(arrays["x_zero"])) * arrays["x_scale"]
    ).astype(np.float32)


def qdq_case(kind, seed, activation="", codes=True):
    """A layer in QDQ form, and feeds that give it extreme codes."""
    layer, random = drawn(kind, seed)
    arrays = integer_arrays(layer, random)
    feeds = {"x": floats_of(extreme_codes(layer, random), arrays)}
    (values,) = run_integers(
        qdq_model(layer, arrays, activation, codes=False), feeds, "exact"
    )
    return qdq_model(
        layer, arrays | output_grid(values, random), activation, codes
    ), feeds


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_in_qdq_form(kind, seed):
    assert_equal_bits(*qdq_case(kind, seed))


@pytest.mark.parametrize("activation", ["Relu", "Clip"])
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Conv" in kind])
def test_an_activation_behind_it(kind, activation):
    assert_equal_bits(*qdq_case(kind, 11, activation))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Conv" not in kind])
def test_a_product_that_stays_float(kind, seed):
    assert_equal_bits(*qdq_case(kind, seed, codes=False))


FUSED = {"Conv": "QLinearConv", "Gemm": "QGemm", "MatMul": "QLinearMatMul"}


@pytest.mark.parametrize("kind", KINDS)
def test_the_runtime_fuses_these_layers(kind, tmp_path):
    """Otherwise the tests above would compare float kernels."""
    layer, _ = drawn(kind, 0)
    session(qdq_case(kind, 0)[0], saved=tmp_path / "fused.onnx")
    ops = collections.Counter(
        node.op_type for node in onnx.load(tmp_path / "fused.onnx").graph.node
    )
    assert ops[FUSED[layer.op]] == 1


SCALES = "x_scale, x_zero, w, w_scale, w_zero"
PRODUCTS = {
    "MatMulInteger": "y = MatMulInteger (x, w, x_zero, some_zero)",
    "MatMulIntegerToFloat": "y = com.microsoft.MatMulIntegerToFloat "
    "(x, w, x_scale, w_scale, x_zero, w_zero, float_bias)",
    "QLinearMatMul": f"y = QLinearMatMul (x, {SCALES}, y_scale, y_zero)",
    "QGemm": f"y = com.microsoft.QGemm (x, {SCALES}, b, y_scale, y_zero)",
    "QGemm to float": f"y = com.microsoft.QGemm <alpha = 0.75> (x, {SCALES}, b)",
}
CONVS = {
    "QLinearConv": f"y = QLinearConv <{{attributes}}> (x, {SCALES}, y_scale, y_zero, b)",
    "ConvInteger": "y = ConvInteger <{attributes}> (x, w, x_zero)",
}
TYPES = {
    "MatMulInteger": "int32",
    "ConvInteger": "int32",
    "MatMulIntegerToFloat": "float",
    "QGemm to float": "float",
}


def kernel_case(name, kind, seed, types=None):
    """One node of ONNX Runtime's own, and codes for it; `types` gives arrays of other types."""
    layer, random = drawn(kind, seed)
    arrays = integer_arrays(layer, random)
    arrays |= {
        "some_zero": np.asarray(random.integers(-9, 10), np.int8),
        "y_scale": np.asarray(5, np.float32),
        "float_bias": random.normal(size=layer.channels).astype(np.float32),
        "y_zero": np.asarray(99, np.uint8),
    }
    text = (PRODUCTS | CONVS)[name].format(attributes=layer.attribute_text)
    arrays |= types(arrays) if types else {}
    x_type = arrays["x_zero"].dtype
    y = f"{TYPES.get(name, x_type)}{layer.dims_of_rank}"
    model = model_of(f"kernel ({x_type}{layer.dims} x) => ({y} y) {{ {text} }}", arrays)
    return model, {"x": extreme_codes(layer, random).view(x_type)}


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("name", PRODUCTS)
def test_a_kernel_of_products(name, seed):
    assert_equal_bits(*kernel_case(name, "MatMul", seed))


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("kind", [kind for kind in KINDS if "Conv" in kind])
@pytest.mark.parametrize("name", CONVS)
def test_a_kernel_of_convolution(name, kind, seed):
    assert_equal_bits(*kernel_case(name, kind, seed))


@pytest.mark.parametrize("rows", [1, 2, 64])
@pytest.mark.parametrize("inner", [1, 2, 3, 16, 257, 2048])
def test_sums_of_any_length(rows, inner):
    """Pairs never shift, however the kernel cuts a product into blocks."""
    random = np.random.default_rng(inner)
    text = f"k (uint8[{rows}, {inner}] x) => (int32[{rows}, 17] y) {{ y = MatMulInteger (x, w) }}"
    weight = random.choice(np.array([-128, -65, 64, 127], np.int8), (inner, 17))
    assert_equal_bits(
        model_of(text, {"w": weight}),
        {"x": random.choice(np.array([0, 254, 255], np.uint8), (rows, inner))},
    )


@pytest.mark.parametrize(("rows", "inner", "outputs"), [(1, 64, 9), (5, 33, 20)])
@pytest.mark.parametrize("bias", ["", ", float_bias"])
def test_quantized_at_run_time(rows, inner, outputs, bias, tmp_path):
    """DynamicQuantizeLinear -> MatMulInteger -> Cast -> Mul, and all of it as one kernel."""
    random = np.random.default_rng(inner)
    arrays = {
        "w": random.choice(np.array([-127, -9, 80, 127], np.int8), (inner, outputs)),
        "w_scale": random.uniform(1e-3, 2e-2, outputs).astype(np.float32),
        "float_bias": random.normal(size=outputs).astype(np.float32),
    }
    feeds = {"x": random.choice(np.float32([-0.1, 0.3, 2, 2.1]), (rows, inner))}
    head = f"k (float[{rows}, {inner}] x) => (float[a, b] y)"
    fused = model_of(
        f"{head} {{ y = com.microsoft.DynamicQuantizeMatMul (x, w, w_scale, {bias}) }}",
        arrays,
    )
    end = "y = Add (m, float_bias)" if bias else "y = Identity (m)"
    written = model_of(
        f"""{head} {{ q, s, z = DynamicQuantizeLinear (x)  i = MatMulInteger (q, w, z)
        f = Cast <to = 1> (i)  t = Mul (s, w_scale)  m = Mul (f, t)  {end} }}""",
        arrays,
    )
    for model in (fused, written):
        assert_equal_bits(model, feeds)
    session(written, saved=tmp_path / "fused.onnx")
    assert "DynamicQuantizeMatMul" in {
        n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node
    }


def unsigned(arrays):
    return {
        "w": (arrays["w"].astype(np.int16) + 128).astype(np.uint8),
        "w_zero": arrays["w_zero"].astype(np.uint8) + 128,
        "some_zero": np.asarray(128, np.uint8),
    }


def signed(arrays):
    return {"x_zero": np.asarray(-7, np.int8), "y_zero": np.asarray(3, np.int8)}


@pytest.mark.parametrize("types", [unsigned, signed])
@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("MatMulInteger", "MatMul"),
        ("QLinearMatMul", "MatMul"),
        ("QLinearConv", "Conv"),
        ("QLinearConv", "grouped Conv"),
    ],
)
def test_weights_and_codes_of_one_signedness_are_exact_everywhere(name, kind, types):
    model, feeds = kernel_case(name, kind, 5, types)
    exact, saturating = (
        run_integers(model, feeds, arithmetic)[0] for arithmetic in ARITHMETICS
    )
    np.testing.assert_array_equal(exact, saturating)
    assert_equal_bits(model, feeds)


@pytest.mark.parametrize("kind", KINDS)
def test_what_the_arithmetics_make_of_the_same_layer(kind):
    """They differ, or the tests above would prove little; a depthwise Conv is exact in both."""
    differ = []
    for seed in SEEDS:
        model, feeds = qdq_case(kind, seed)
        exact, saturating = (
            run_integers(model, feeds, arithmetic)[0] for arithmetic in ARITHMETICS
        )
        differ.append(not np.array_equal(exact, saturating))
    assert any(differ) == (kind != "depthwise Conv")


@pytest.mark.parametrize(
    ("first", "second", "codes", "expected"),
    [
        (64, 64, (255, 255), 32640),
        (127, 1, (255, 255), 32640),
        (-128, 0, (255, 255), -32640),
        (-128, 127, (255, 255), -255),
        (65, 64, (255, 255), 32767),
        (127, 2, (255, 255), 32767),
        (-65, -64, (255, 255), -32768),
        (127, 127, (255, 0), 32385),
        (127, 127, (129, 129), 32766),
        (127, 127, (129, 130), 32767),
    ],
)
def test_a_pair_by_hand(first, second, codes, expected):
    x, w = np.array([codes], np.uint8), np.array([[first], [second]], np.int8)
    assert sums_of_products(x, w, "saturating") == expected
    assert sums_of_products(x, w, "exact") == first * codes[0] + second * codes[1]


def test_a_last_weight_without_partner_stands_alone():
    x, w = np.full((1, 3), 255, np.uint8), np.array([[127], [127], [127]], np.int8)
    assert sums_of_products(x, w, "saturating") == 32767 + 127 * 255


def test_which_pairs_may_saturate_is_what_trying_all_codes_finds():
    weights = np.array(
        [-128, -127, -66, -65, -64, -63, -1, 0, 1, 2, 63, 64, 65, 66, 126, 127], np.int8
    )
    first, second = (a.reshape(-1) for a in np.meshgrid(weights, weights))
    codes = np.array([0, 1, 127, 254, 255])
    tried = [
        a * first.astype(int) + b * second.astype(int) for a in codes for b in codes
    ]
    beyond = np.any([(sums > 32767) | (sums < -32768) for sums in tried], axis=0)
    np.testing.assert_array_equal(may_saturate(np.stack([first, second]))[0], beyond)
    assert 0 < beyond.sum() < beyond.size


@pytest.mark.parametrize("kind", KINDS)
def test_pairs_are_counted_where_sums_saturate(kind):
    """A layer without an offending pair is the same in both arithmetics; codes of 64 make none."""
    counts = []
    for seed in SEEDS:
        layer, random = drawn(kind, seed)
        arrays = integer_arrays(layer, random)
        feeds = {"x": floats_of(np.full(layer.x, 255, np.uint8), arrays)}
        for codes in (arrays["w"], np.sign(arrays["w"]) * np.int8(64)):
            model = qdq_model(layer, arrays | {"w": codes}, codes=False)
            exact, saturating = (run_integers(model, feeds, a)[0] for a in ARITHMETICS)
            counts.append(sum(offending_pairs(model).values()))
            assert counts[-1] > 0 or np.array_equal(exact, saturating)
    assert not any(counts[1::2])
    assert any(counts) == (kind != "depthwise Conv")
