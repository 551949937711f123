"""Weights stored small: what is left alone, exact stored values, and that ONNX Runtime runs the
original's kernels.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from calibrated_context import run_session
from exactness import model_of, ops_of
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.lazy import DerivedTensor
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes.compress_weights import CompressWeights
from onnx_opt.passes.pack import Pack

MATMUL = "m (float[n, 64] x, float[64, 40] w) => (float[n, 40] y) { y = MatMul (x, w) }"
CONV = "m (float[1, 8, 9, 9] x, float[16, 8, 3, 3] w) => (float[1, 16, 7, 7] y) { y = Conv (x, w) }"
GEMM = "m (float[n, 64] x, float[40, 64] w) => (float[n, 40] y) { y = Gemm <transB = 1> (x, w) }"
LEFT = "m (float[64, n] x, float[40, 64] w) => (float[40, n] y) { y = MatMul (w, x) }"
TRANSPOSED = (
    "m (float[n, 64] x, float[40, 64] w) => (float[n, 40] y) "
    "{ t = Transpose <perm = [1, 0]> (w)\n y = MatMul (x, t) }"
)
BATCHED = "m (float[2, n, 64] x, float[2, 64, 40] w) => (float[2, n, 40] y) { y = MatMul (x, w) }"
DECONV = (
    "m (float[1, 64, 4, 4] x, float[64, 5, 2, 2] w) => (float[1, 5, 5, 5] y) { y = "
    "ConvTranspose (x, w) }"
)
TABLE = "m (int64[n] x, float[50, 64] w) => (float[n, 64] y) { y = Gather (w, x) }"
LSTM = (
    "m (float[t, 1, 64] x, float[1, 40, 64] w) => (float[t, 1, 1, 10] y) <float[1, 40, 10] r = {"
    + ", ".join(["0.1"] * 400)
    + "}> { y = LSTM <hidden_size = 10> (x, w, r) }"
)
DEPTHWISE = (
    "m (float[1, 64, 5, 5] x, float[64, 1, 3, 3] w) => (float[1, 64, 3, 3] y) { y = Conv "
    "<group = 64> (x, w) }"
)
FORMS = {
    "matmul": MATMUL,
    "conv": CONV,
    "gemm": GEMM,
    "left": LEFT,
    "transposed": TRANSPOSED,
    "batched": BATCHED,
    "deconv": DECONV,
    "table": TABLE,
    "lstm": LSTM,
    "depthwise": DEPTHWISE,
}


def with_weight(text, weight=None, lazy=False):
    """The model of a text with its input `w` turned into an initializer, random if not given."""
    model = model_of(text)
    value = model.graph.inputs.pop(1)
    if weight is None:
        weight = (
            np.random.default_rng(0).normal(size=value.shape.numpy()).astype(np.float32)
        )
    tensor = ir.Tensor(weight, name="w")
    value.const_value = (
        DerivedTensor(tensor, lambda block, start: block, ir.DataType.FLOAT)
        if lazy
        else tensor
    )
    value.const_value.name = "w"
    model.graph.register_initializer(value)
    normalize(model)
    return model


def compressed(model, encoding="int8", **options):
    """The checked result and the pass's account of it."""
    before = ir.to_proto(model)
    outcome = CompressWeights(encoding=encoding, **options).run(model, NullContext())
    after = ir.to_proto(model)
    onnx.checker.check_model(after, full_check=True)
    assert list(after.graph.input) == list(before.graph.input)
    assert list(after.graph.output) == list(before.graph.output)
    once = after.SerializeToString(deterministic=True)
    assert (
        CompressWeights(encoding=encoding, **options).run(model, NullContext()).changed
        == 0
    )
    assert ir.to_proto(model).SerializeToString(deterministic=True) == once
    return after, outcome


def feeds_of(proto):
    random, value = np.random.default_rng(1), proto.graph.input[0]
    shape = [d.dim_value or 3 for d in value.type.tensor_type.shape.dim]
    if value.type.tensor_type.elem_type == onnx.TensorProto.INT64:
        return {"x": random.integers(0, 50, shape)}
    return {"x": random.normal(size=shape).astype(np.float32)}


def unpacked(proto):
    """The value `w` as the model computes it."""
    extended = onnx.ModelProto.FromString(proto.SerializeToString())
    extended.graph.output.append(onnx.ValueInfoProto(name="w"))
    return run_session(extended, optimize=False).run(["w"], feeds_of(proto))[0]


def optimized_ops(proto, path):
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(path)
    options.graph_optimization_level = (
        onnxruntime.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    )
    onnxruntime.InferenceSession(
        proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    return [n.op_type for n in onnx.load(path).graph.node]


def sqnr(reference, got):
    return 10 * np.log10(np.square(reference).sum() / np.square(got - reference).sum())


OVERRIDABLE = (
    "m (float[n, 2] x, float[2, 2] w) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> "
    "{ y = MatMul (x, w) }"
)
OUTPUT = (
    "m (float[n, 2] x) => (float[n, 2] y, float[2, 2] w) <float[2, 2] w = {1, 2, 3, 4}> "
    "{ y = MatMul (x, w) }"
)
DOUBLE = (
    "m (double[n, 2] x) => (double[n, 2] y) <double[2, 2] w = {1, 2, 3, 4}> { y = MatMul "
    "(x, w) }"
)
SMALL = "m (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}> { y = MatMul (x, w) }"


@pytest.mark.parametrize(
    ("text", "options", "reason"),
    [
        (
            OVERRIDABLE,
            {"min_size": 1},
            "weight 'w' is also an input of the model: callers may override it",
        ),
        (OUTPUT, {"min_size": 1}, "it is an output of the model"),
        (DOUBLE, {"min_size": 1}, "it is DOUBLE, not FLOAT"),
        (SMALL, {}, "its 4 elements are fewer than min_size=1024"),
        (SMALL, {"min_size": 1, "exclude": ("w*",)}, "matched by exclude"),
        (SMALL, {"min_size": 1, "exclude": ("y",)}, "matched by exclude"),
    ],
)
def test_leaves_alone(text, options, reason):
    model = model_of(text)
    normalize(model)
    before = ir.to_proto(model)
    after, outcome = compressed(model, **options)
    assert [d.reason for d in outcome.declined] == [reason]
    assert outcome.changed == 0
    assert after == before


def test_leaves_alone_what_include_does_not_match():
    text = (
        "m (float[n, 2] x) => (float[n, 2] y) <float[2, 2] w = {1, 2, 3, 4}, "
        "float[2, 2] v = {1, 2, 3, 4}> { h = MatMul (x, w)\n y = MatMul (h, v) }"
    )
    _, outcome = compressed(model_of(text), min_size=1, include=("v",))
    assert outcome.changed == 1
    assert [d.reason for d in outcome.declined] == ["not matched by include"]


def test_a_block_of_zero_weights_is_the_default():
    weight = np.random.default_rng(0).normal(size=(64, 40)).astype(np.float32)
    default, _ = compressed(with_weight(MATMUL, weight), "int4")
    (explicit,) = parse("compress-weights(int4, block=0)").passes
    assert explicit == CompressWeights("int4", block=0)
    zero, _ = compressed(with_weight(MATMUL, weight), "int4", block=0)
    assert zero == default


@pytest.mark.parametrize("option", ["include", "exclude"])
def test_a_pattern_without_a_layer_is_refused(option):
    with pytest.raises(UsageError, match="'other' matches no layer") as caught:
        compressed(model_of(SMALL), min_size=1, **{option: ("other",)})
    assert caught.value.where == f"compress-weights.{option}"
    assert caught.value.fix == "the nearest names are w, y"


def test_a_name_equal_to_its_pattern_matches():
    model = with_weight(MATMUL)
    model.graph.initializers["w"].name = "w[0]"
    _, outcome = compressed(model, include=("w[0]",))
    assert (outcome.changed, outcome.declined) == (1, [])


def test_a_table_is_matched_by_the_name_of_its_gather():
    model = with_weight(TABLE)
    model.graph[0].name = "embedding"
    _, outcome = compressed(model, include=("embed*",))
    assert (outcome.changed, outcome.declined) == (1, [])


@pytest.mark.parametrize("encoding", ["int8", "int4", "palette", "fp16", "bf16"])
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_leaves_weights_without_a_stored_form(encoding, bad):
    weight = np.ones((64, 40), np.float32)
    weight[3, 3] = bad
    after, outcome = compressed(with_weight(MATMUL, weight), encoding)
    assert outcome.changed == 0
    assert "holds NaN, infinity or numbers beyond" in outcome.declined[0].reason
    assert [t.data_type for t in after.graph.initializer] == [onnx.TensorProto.FLOAT]


def test_fp16_leaves_what_it_cannot_hold():
    after, outcome = compressed(
        with_weight(MATMUL, np.full((64, 40), 70000, np.float32)), "fp16"
    )
    assert (
        outcome.declined[0].reason == "it holds NaN, infinity or numbers beyond 65504"
    )
    assert ops_of(ir.from_proto(after)) == ["MatMul"]


@pytest.mark.parametrize("text", FORMS.values(), ids=FORMS.keys())
@pytest.mark.parametrize(
    ("encoding", "near"),
    [("int8", 40), ("int4", 18), ("palette", 18), ("fp16", 70), ("bf16", 50)],
)
def test_the_unpacked_weight_is_near_and_the_kernels_are_the_originals(
    text, encoding, near, tmp_path
):
    model = with_weight(text)
    weight, before = (
        model.graph.initializers["w"].const_value.numpy(),
        ir.to_proto(model),
    )
    after, outcome = compressed(model, encoding, min_size=500)
    assert outcome.changed == 1
    assert near < sqnr(weight, unpacked(after)) < 90
    assert optimized_ops(after, tmp_path / "a.onnx") == optimized_ops(
        before, tmp_path / "b.onnx"
    )
    feeds = feeds_of(before)
    got, want = (run_session(p).run(None, feeds)[0] for p in (after, before))
    assert sqnr(want, got) > near - 12


@pytest.mark.parametrize("encoding", ["int8", "int4", "fp16", "bf16"])
@pytest.mark.parametrize("text", [MATMUL, CONV, TABLE])
def test_counts_the_bytes_that_it_saves(text, encoding):
    model = with_weight(text)
    before = ir.to_proto(model).ByteSize()
    after, outcome = compressed(model, encoding)
    share = {"int8": 0.29, "int4": 0.18, "fp16": 0.5, "bf16": 0.5}[encoding]
    assert outcome.stats["bytes_after"] <= share * outcome.stats["bytes_before"]
    saved = outcome.stats["bytes_before"] - outcome.stats["bytes_after"]
    assert abs(before - after.ByteSize() - saved) < 500  # names and nodes


@pytest.mark.parametrize("encoding", ["int8", "int4", "fp16"])
def test_bits_of_other_encodings_are_refused(encoding):
    with pytest.raises(UsageError, match=f"encoding {encoding} has no choice of bits"):
        CompressWeights(encoding, bits=4)


@pytest.mark.parametrize("bits", [3, 4])
def test_palettes_are_packed_to_their_indices(bits):
    model = with_weight(MATMUL.replace("64", "512"))
    compressed(model, "palette", bits=bits)
    before = unpacked(ir.to_proto(model))
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["channel_palettes"] == 1
    codes = 512 * 40
    assert outcome.stats["bytes_before"] - codes < 100
    # palettes and nodes
    assert outcome.stats["bytes_after"] < codes * (bits + 0.5) / 8 + 1000
    assert np.array_equal(unpacked(ir.to_proto(model)), before)


def test_int8_values_and_scales_of_channels():
    weight = np.zeros((64, 40), np.float32)
    weight[0] = np.arange(1, 41) * 127
    weight[1] = np.arange(1, 41)
    after, _ = compressed(with_weight(MATMUL, weight), "int8", block=65_536)
    arrays = {t.name: onnx.numpy_helper.to_array(t) for t in after.graph.initializer}
    np.testing.assert_allclose(arrays["w_scale"], np.arange(1, 41)[None], rtol=1e-6)
    assert arrays["w_int8"][:2].tolist() == [[127] * 40, [1] * 40]
    assert [n.op_type for n in after.graph.node] == ["Cast", "Mul", "MatMul"]
    np.testing.assert_allclose(unpacked(after), weight, rtol=1e-6)


@pytest.mark.parametrize(
    ("text", "block", "shape"),
    [
        (MATMUL, 32, [2, 32, 40]),
        (GEMM, 32, [80, 32, 1]),
        (CONV, 32, [48, 24, 1]),
        (BATCHED, 16, [8, 16, 40]),
        (TABLE, 64, [50, 64, 1]),
        (DECONV, 10, [8, 8, 20]),
    ],
)
def test_a_block_divides_its_channel(text, block, shape):
    after, _ = compressed(with_weight(text), "int4", block=block)
    assert [
        list(t.dims)
        for t in after.graph.initializer
        if t.data_type == onnx.TensorProto.INT4
    ] == [shape]


def test_depthwise_weights_become_fp16_unless_it_cannot_hold_them():
    after, _ = compressed(with_weight(DEPTHWISE), "int8", min_size=500)
    assert [t.data_type for t in after.graph.initializer] == [onnx.TensorProto.FLOAT16]
    huge, _ = compressed(
        with_weight(DEPTHWISE, np.full((64, 1, 3, 3), 1e6, np.float32)),
        "int8",
        min_size=500,
    )
    assert sorted(t.data_type for t in huge.graph.initializer) == [
        onnx.TensorProto.FLOAT,
        onnx.TensorProto.INT8,
    ]
    np.testing.assert_allclose(unpacked(huge), 1e6, rtol=1e-6)


def test_a_shared_weight_is_stored_once_for_all_its_users():
    text = """
    m (int64[n] x, float[50, 64] w) => (float[n, 50] y)
    { e = Gather (w, x)
      t = Transpose <perm = [1, 0]> (w)
      y = MatMul (e, t) }
    """
    after, outcome = compressed(with_weight(text))
    assert outcome.changed == 1
    assert (
        sum(t.data_type == onnx.TensorProto.INT8 for t in after.graph.initializer) == 1
    )
    table = unpacked(after)
    picked = np.array([3, 1, 4])
    np.testing.assert_allclose(
        run_session(after).run(None, {"x": picked})[0],
        table[picked] @ table.T,
        rtol=1e-4,
        atol=1e-4,
    )


def test_a_weight_of_a_branch_is_unpacked_in_that_branch():
    text = """
    m (float[2] x, bool c) => (float[3] y)
    {
        y = If (c) <
            then_branch = t () => (float[3] a) <float[2, 3] w = {1, 2, 3, 4, 5,
                6}> { a = MatMul (x, w) },
            else_branch = e () => (float[3] b) <float[2, 3] v = {1, 1, 1, 1, 1,
                1}> { b = MatMul (x, v) }
        >
    }
    """
    model = model_of(text)
    normalize(model)
    after, outcome = compressed(model, "fp16", min_size=1)
    assert outcome.changed == 2
    assert len(after.graph.node) == 1
    feeds = {"x": np.array([1, 2], np.float32), "c": np.array(True)}
    assert run_session(after).run(None, feeds)[0].tolist() == [9, 12, 15]


@pytest.mark.parametrize("value", [0.0, 1e-42, 1e30])
@pytest.mark.parametrize("encoding", ["int8", "int4", "palette", "bf16"])
def test_extreme_weights_stay_finite(encoding, value):
    after, outcome = compressed(
        with_weight(MATMUL, np.full((64, 40), value, np.float32)), encoding
    )
    assert outcome.changed == 1
    np.testing.assert_allclose(unpacked(after), value, rtol=0.01, atol=1e-29)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.integers(1, 90),
    columns=st.integers(1, 9),
    block=st.sampled_from([0, 8, 20, 64]),
    encoding=st.sampled_from(["int8", "int4", "palette", "fp16", "bf16"]),
)
def test_any_size_and_a_derived_source(rows, columns, block, encoding):
    text = (
        f"m (float[n, {rows}] x, float[{rows}, {columns}] w) => (float[n, {columns}] y) "
        f"{{ y = MatMul (x, w) }}"
    )
    model = with_weight(text, lazy=True)
    weight = model.graph.initializers["w"].const_value.numpy()
    after, _ = compressed(model, encoding, block=block, min_size=1)
    steps = {"int8": 1 / 127, "int4": 1 / 7, "palette": 0.3, "fp16": 1e-3, "bf16": 1e-2}
    step = steps[encoding]
    assert np.abs(unpacked(after) - weight).max() <= np.abs(weight).max() * step


def test_a_weight_of_many_streamed_blocks():
    text = "m (float[n, 1024] x, float[1024, 600] w) => (float[n, 600] y) { y = MatMul (x, w) }"
    for block in (64, 1024):
        model = with_weight(text, lazy=True)
        weight = model.graph.initializers["w"].const_value.numpy()
        assert sqnr(weight, unpacked(compressed(model, "int8", block=block)[0])) > 40


@pytest.mark.parametrize(
    ("dtype", "size", "granule"),
    [
        (ir.DataType.INT4, 600_001, 3),
        (ir.DataType.UINT4, 524_288, 1),
        (ir.DataType.INT2, 300_003, 5),
    ],
)
def test_packed_types_are_written_block_by_block_as_if_whole(
    dtype, size, granule, tmp_path
):
    values = np.random.default_rng(0).integers(0, 2, size).astype(np.int8)
    lazy = DerivedTensor(
        ir.Tensor(values),
        lambda block, start: block.astype(dtype.numpy()),
        dtype,
        granule,
    )
    whole = ir.Tensor(values.astype(dtype.numpy()), dtype=dtype).tobytes()
    assert lazy.tobytes() == whole
    with open(tmp_path / "w", "wb") as file:
        lazy.tofile(file)
    assert (tmp_path / "w").read_bytes() == whole
