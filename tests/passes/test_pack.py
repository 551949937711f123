"""pack: what stays dense first; then every codec, decoded bit for bit by ONNX Runtime."""

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from calibrated_context import run_session
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.graph import Names
from onnx_opt.passes._packing.codecs import CODECS
from onnx_opt.passes._packing.content import content_of
from onnx_opt.passes._packing.draft import Draft
from onnx_opt.passes._packing.prospect import least_load_bytes
from onnx_opt.passes.pack import Pack

TYPES = {
    "float": np.float32,
    "double": np.float64,
    "float16": np.float16,
    "int8": np.int8,
    "uint8": np.uint8,
    "int32": np.int32,
    "int64": np.int64,
}


def model_of(array, opset=17):
    """A model whose output is the constant `w`, by way of a Gather that depends on the input."""
    element = onnx.helper.np_dtype_to_tensor_dtype(array.dtype)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Gather", ["w", "rows"], ["y"])],
        "one_constant",
        [onnx.helper.make_tensor_value_info("rows", onnx.TensorProto.INT64, ["n"])],
        [onnx.helper.make_tensor_value_info("y", element, None)],
        [onnx.numpy_helper.from_array(array, "w")],
    )
    opsets = [onnx.helper.make_opsetid("", opset)]
    return ir.from_proto(
        onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    )


def decoded(model, rows):
    """The constant as ONNX Runtime reads it."""
    session = ort.InferenceSession(ir.to_proto(model).SerializeToString())
    return session.run(None, {"rows": np.arange(rows)})[0]


def folded(model, tmp_path):
    """Ops that are left of the model once ONNX Runtime has loaded it."""
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    ort.InferenceSession(ir.to_proto(model).SerializeToString(), options)
    return [node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node]


def file_bytes(model):
    """Bytes of the model as this project writes it: types of initializers once."""
    proto = ir.to_proto(model)
    del proto.graph.value_info[:]
    return proto.ByteSize()


def sparse(shape, kept, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    array = np.zeros(shape, dtype)
    chosen = random.random(shape) < kept
    array[chosen] = (
        (120 * random.normal(size=chosen.sum())).clip(-127, 127).astype(dtype)
    )
    return array


def grid(scales, zeros=0.0, dtype=np.float32):
    """Numbers of 8 bits times scales of that shape."""
    random = np.random.default_rng(3)
    codes = random.integers(-127, 128, (64, 64))
    codes[random.random(codes.shape) < zeros] = 0
    return (codes * random.uniform(0.01, 1, scales).astype(dtype)).astype(dtype)


def own_values(channels, width, count, seed=0):
    """Codes of which each channel has a few of its own."""
    random = np.random.default_rng(seed)
    pools = [random.choice(np.arange(-64, 65), count, False) for _ in range(channels)]
    rows = [random.choice(pool, width) for pool in pools]
    return np.array(rows, np.int8)


def pack(array, **options):
    model = model_of(array)
    outcome = Pack(**options).run(model, NullContext())
    return model, outcome


STAYS = {
    "dense": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32),
    "dense codes": np.random.default_rng(0)
    .integers(-127, 128, (64, 64))
    .astype(np.int8),
    "a few zeros": sparse((64, 64), 0.97),
    "small": np.zeros((3, 3), np.float32),
    "empty": np.zeros((0, 4), np.float32),
    "a grid of doubles": grid((64, 1), dtype=np.float64),
    "nearly a grid": np.nextafter(grid((64, 1)), np.float32(9)),
}


@pytest.mark.parametrize("name", STAYS)
def test_what_gains_nothing_stays(name):
    model, outcome = pack(STAYS[name])
    assert outcome.changed == 0
    assert [node.op_type for node in model.graph] == ["Gather"]


def test_constants_that_callers_may_override_stay():
    model = model_of(np.zeros((64, 64), np.float32))
    weight = model.graph.initializers["w"]
    model.graph.inputs.append(weight)
    outcome = Pack().run(model, NullContext())
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("w", "it is also an input of the model: callers may override it")
    ]


PACKED = {
    "one value": (np.full((64, 64), 1.5, np.float32), "one_value"),
    "zeros": (np.zeros((64, 64), np.int8), "one_value"),
    "half of zeros": (sparse((96, 96), 0.5), "mask"),
    "half of zeros, codes": (sparse((96, 96), 0.5, np.int8), "mask"),
    "few nonzeros": (sparse((96, 96), 0.02), "gaps"),
    "a sixth of nonzeros": (sparse((96, 96), 0.15, np.int8), "short_gaps"),
    "an odd number of them": (sparse((96, 96), 0.15, np.int8, seed=6), "short_gaps"),
    "long gaps": (sparse((200, 200), 0.001), "gaps"),
    "one scale": (grid((1, 1)), "grid"),
    "a scale a row": (grid((64, 1)), "grid"),
    "a scale a column": (grid((1, 64)), "grid"),
    "a scale a long row": (np.hstack(3 * [grid((64, 1))]), "grid"),
    "a scale a long column": (np.vstack(3 * [grid((1, 64))]), "grid"),
    "zeros in short columns": (grid((1, 64), 0.3)[:32], "grid"),
    "half of zeros on a grid": (grid((64, 1), 0.5), "grid"),
    "whole halves": (
        np.random.default_rng(1)
        .normal(size=4096)
        .astype(np.float16)
        .astype(np.float32)
        .reshape(64, 64),
        "narrow",
    ),
    "whole bfloats": (
        np.random.default_rng(1)
        .normal(size=(64, 64))
        .astype(ml_dtypes.bfloat16)
        .astype(np.float32),
        "narrow",
    ),
    "small integers": (np.arange(4096).reshape(64, 64) % 100, "narrow"),
    "two values": (
        np.random.default_rng(2).choice([-0.5, 0.25], (64, 64)).astype(np.float32),
        "palette",
    ),
    "three values": (
        np.random.default_rng(2).choice([-3, 0, 7], (64, 63)).astype(np.int8),
        "palette",
    ),
    "seven values": (
        np.random.default_rng(3).integers(-3, 4, (64, 64)).astype(np.int8),
        "palette",
    ),
    "thirteen values": (
        np.random.default_rng(4).integers(0, 13, (64, 64)).astype(np.uint8),
        "palette",
    ),
    "own values a row": (own_values(64, 144, 16), "channel_palettes"),
    "own values a column": (
        np.ascontiguousarray(own_values(64, 144, 8).T),
        "channel_palettes",
    ),
    "vectors": (
        np.random.default_rng(9)
        .integers(-64, 65, (200, 9))
        .astype(np.int8)[np.random.default_rng(10).integers(0, 200, 4096)]
        .reshape(64, 64, 3, 3),
        "codebook",
    ),
    "vectors of columns": (
        np.random.default_rng(9)
        .integers(-64, 65, (250, 8))
        .astype(np.int8)[np.random.default_rng(10).integers(0, 250, 4096)]
        .reshape(128, 256)
        .T.copy(),
        "codebook",
    ),
    "own values and zeros": (
        own_values(64, 576, 16) * (np.random.default_rng(8).random((64, 576)) < 0.2),
        "channel_palettes",
    ),
    "thirty values": (
        np.random.default_rng(5)
        .choice(np.random.default_rng(6).normal(size=30), (64, 64))
        .astype(np.float32),
        "bit_planes",
    ),
}


@pytest.mark.parametrize("name", PACKED)
def test_every_codec_decodes_bit_for_bit_and_is_folded(name, tmp_path):
    array, codec = PACKED[name]
    model, outcome = pack(array)
    assert {key: outcome.stats.get(key) for key in ("constants", codec)} == {
        "constants": 1,
        codec: 1,
    }
    assert decoded(model, len(array)).tobytes() == array.tobytes()
    assert folded(model, tmp_path) == ["Gather"]


@pytest.mark.parametrize("name", PACKED)
def test_bytes_are_counted_as_they_are_written(name):
    """Names that count as four letters may be shorter in a small file."""
    array, _ = PACKED[name]
    dense = file_bytes(model_of(array))
    model, outcome = pack(array)
    claimed = outcome.stats["bytes_before"] - outcome.stats["bytes_after"]
    assert 0 <= dense - file_bytes(model) - claimed <= 120


@pytest.mark.parametrize("codec", CODECS)
@pytest.mark.parametrize("dtype", TYPES)
@settings(max_examples=8, deadline=None)
@given(data=st.data())
def test_codecs_are_exact_on_any_bits(codec, dtype, data):
    """Random bits: NaN payloads, -0.0, denormal numbers, sizes that fill no byte."""
    size = data.draw(st.integers(1, 70))
    seed = data.draw(st.integers(0, 2**32 - 1))
    few = data.draw(st.integers(1, 9))
    random = np.random.default_rng(seed)
    element = np.dtype(TYPES[dtype])
    pool = np.frombuffer(random.bytes(few * element.itemsize), element).copy()
    pool[random.random(few) < 0.5] = 0
    array = random.choice(pool.view(f"u{element.itemsize}"), size).view(element)
    model = model_of(array.reshape(size, 1))
    weight = model.graph.initializers["w"]
    draft = Draft({})
    value = CODECS[codec](content_of(weight.const_value), draft)
    if value is None:
        return
    value.type, value.shape = weight.type, weight.shape
    weight.replace_all_uses_with(value)
    del model.graph.initializers["w"]
    draft.commit(model.graph, model.graph[0], Names(model), {value: "w"})
    assert decoded(model, size).tobytes() == array.tobytes()


def test_bfloat16_is_exact():
    array = sparse((64, 64), 0.3).astype(ml_dtypes.bfloat16)
    model = model_of(np.zeros((64, 64), np.float32))
    value = model.graph.initializers["w"]
    value.const_value = ir.Tensor(array, dtype=ir.DataType.BFLOAT16, name="w")
    content = content_of(value.const_value)
    assert content.nonzeros == np.count_nonzero(array)


def test_minus_zero_is_no_zero():
    array = np.zeros((32, 32), np.float32)
    array[::2] = -0.0
    model, outcome = pack(array)
    assert outcome.changed == 1
    assert decoded(model, 32).tobytes() == array.tobytes()


def test_twice_changes_nothing_more():
    model, _ = pack(sparse((96, 96), 0.5))
    again = Pack().run(model, NullContext())
    assert again.changed == 0


def test_older_opsets_are_raised():
    array = sparse((96, 96), 0.5)
    model = model_of(array, opset=9)
    Pack().run(model, NullContext())
    assert model.opset_imports[""] == 13
    assert decoded(model, 96).tobytes() == array.tobytes()


def test_weights_that_are_dequantized_are_packed():
    """Integer kernels read them: the codes are decoded, DequantizeLinear stays."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    one (float[n, 64] x) => (float[n, 64] y)
    <int8[64, 64] w = {0}, float s = {0.5}>
    { f = DequantizeLinear (w, s)  y = MatMul (x, f) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    codes = sparse((64, 64), 0.5, np.int8)
    model.graph.initializers["w"].const_value = ir.Tensor(codes, name="w")
    before = run_session(model)
    outcome = Pack().run(model, NullContext())
    assert outcome.stats["mask"] == 1
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    after = run_session(model)
    assert np.array_equal(before.run(None, {"x": x})[0], after.run(None, {"x": x})[0])


@pytest.mark.parametrize(
    ("values", "bits"),
    {
        2: 1,
        3: 8 / 5,
        4: 2,
        5: 24 / 10,
        6: 8 / 3,
        7: 32 / 11,
        8: 3,
        10: 24 / 7,
        16: 4,
        32: 5,
        40: 6,
        64: 6,
    }.items(),
)
def test_indices_take_the_bits_of_their_number(values, bits):
    array = np.random.default_rng(0).integers(0, values, (512, 512)).astype(np.int8)
    _, outcome = pack(array)
    # and 300 bytes for the nodes
    claimed = 8 * (outcome.stats["bytes_after"] - 300) / array.size
    assert claimed == pytest.approx(bits, abs=0.01)


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("together", [1, 4, 64])
def test_palettes_that_channels_share_are_stored_once(together, turned):
    shared = own_values(64 // together, 200 * together, 16).reshape(64, 200)
    array = np.ascontiguousarray(shared.T) if turned else shared
    model, outcome = pack(array)
    assert decoded(model, len(array)).tobytes() == array.tobytes()
    # half a byte each, and a table of 16 for every group
    claimed = outcome.stats["bytes_after"] - 64 * 100 - 16 * 64 // together
    assert 0 < claimed < 900


def test_channels_of_an_axis_between_others_keep_their_order():
    """A MatMul of a stack of matrices: channels are the last axis, which Transpose restores."""
    array = own_values(48, 3 * 40, 8).reshape(48, 3, 40).transpose(1, 2, 0)
    model, outcome = pack(np.ascontiguousarray(array))
    assert outcome.stats["channel_palettes"] == 1
    assert decoded(model, 3).tobytes() == array.tobytes()


def test_memory_while_loading_is_bounded():
    """A mask of 9216 elements takes 160 kB; ScatterElements of a few nonzeros takes less."""
    half, few = sparse((96, 96), 0.5), sparse((96, 96), 0.02)
    for array, codec in ((half, None), (few, "gaps")):
        for limit, expected in ((0, None), (1, codec or "mask")):
            _, outcome = pack(array, load_memory=limit)
            assert outcome.stats.get(expected, 0) == (expected is not None)
            if expected is None:
                assert outcome.changed == 0
                assert "more than load_memory leaves" in outcome.declined[0].reason
            else:
                assert 0 < outcome.stats["load_bytes"] <= 10**6


def test_what_memory_leaves_unpacked_is_told():
    context = NullContext()
    warnings = []
    context.warn = lambda where, text: warnings.append(text)
    Pack(load_memory=0).run(model_of(own_values(64, 144, 16)), context)
    (text,) = warnings
    assert "1 constants of 0 MB are not packed" in text
    assert "pack(load_memory=1) packs them" in text


def test_narrow_types_take_no_memory():
    array, _ = PACKED["whole halves"]
    _, outcome = pack(array, load_memory=0)
    assert outcome.stats["narrow"] == 1


@pytest.mark.parametrize("shape", [(), (1,), (0,), (0, 300), (1, 1)])
def test_tensors_of_one_element_or_none_stay(shape):
    _, outcome = pack(np.zeros(shape or (1,), np.float32))
    assert outcome.changed == 0


NAN = np.float32("nan")


@pytest.mark.parametrize("payload", [0x7FC00001, 0xFFC0DEAD, 0x7F800001, 0x80000000])
def test_nan_payloads_and_minus_zero_keep_every_bit(payload):
    array = sparse((96, 96), 0.3)
    array.view(np.uint32)[::7, ::5] = payload
    model, outcome = pack(array)
    assert outcome.changed == 1
    got = decoded(model, 96)
    assert got.view(np.uint32).tolist() == array.view(np.uint32).tolist()


def test_opset_7_is_raised():
    array = sparse((96, 96), 0.5)
    model = model_of(array, opset=7)
    assert Pack().run(model, NullContext()).changed == 1
    assert model.opset_imports[""] == 13
    assert decoded(model, 96).tobytes() == array.tobytes()


def test_an_opset_that_cannot_be_raised_is_declined():
    model = model_of(sparse((96, 96), 0.5), opset=9)
    function = ir.Function(
        "own",
        "f",
        graph=ir.Graph([], [], nodes=[], opset_imports={"": 9}),
        attributes=[],
    )
    model.functions[function.identifier()] = function
    # Upsample went with opset 10: onnx's converter must be asked
    scales = ir.Value(
        name="scales", const_value=ir.Tensor(np.ones(2, np.float32), name="scales")
    )
    model.graph.register_initializer(scales)
    up = ir.node("Upsample", [model.graph[-1].outputs[0], scales])
    up.outputs[0].name = "z"
    model.graph.append(up)
    outcome = Pack().run(model, NullContext())
    assert outcome.changed == 0
    assert outcome.declined[-1].where == "opset"


def test_constants_in_bodies_stay():
    """They are no constants of the main graph, which alone is packed."""
    text = """
    <ir_version: 8, opset_import: ["" : 17]>
    g (bool c, float[n, 96] x) => (float[n, 96] y) {
        y = If (c) <
            then_branch = t () => (float[n, 96] a)
              <float[96, 96] w = {0}> { a = MatMul (x, w) },
            else_branch = f () => (float[n, 96] b) { b = Identity (x) }
        >
    }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    body = model.graph[0].attributes["then_branch"].as_graph()
    body.initializers["w"].const_value = ir.Tensor(sparse((96, 96), 0.3), name="w")
    outcome = Pack().run(model, NullContext())
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("w", "it lies in the body of an If, Loop or Scan")
    ]


def test_kernels_that_read_blocked_codes_keep_them():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    g (float[n, 96] x) => (float[n, 96] y)
    <int8[96, 96] w = {0}, float[3, 96] s = {0}>
    { f = DequantizeLinear <axis = 0, block_size = 32> (w, s)  y = MatMul (x, f) }
    """
    model = ir.from_proto(onnx.parser.parse_model(text))
    codes = sparse((96, 96), 0.2, np.int8)
    model.graph.initializers["w"].const_value = ir.Tensor(codes, name="w")
    model.graph.initializers["s"].const_value = ir.Tensor(
        np.random.default_rng(0).normal(size=(3, 96)).astype(np.float32), name="s"
    )
    outcome = Pack().run(model, NullContext())
    assert outcome.changed == 0
    assert [(d.where, d.reason) for d in outcome.declined] == [
        ("w", "its kernel reads it as it is stored, in place"),
        ("s", "no codec saves 5% of its bytes"),
    ]


def test_external_data_is_streamed(tmp_path):
    array = sparse((96, 96), 0.3)
    proto = ir.to_proto(model_of(array))
    onnx.save(
        proto,
        tmp_path / "m.onnx",
        save_as_external_data=True,
        location="d",
        size_threshold=0,
    )
    model = ir.load(tmp_path / "m.onnx")
    assert Pack().run(model, NullContext()).changed == 1
    assert decoded(model, 96).tobytes() == array.tobytes()


# a look at a few blocks of a large constant

FEW = 4 * 1024 * 1024
"""Elements of a constant that is large enough to be looked at in part."""


def large(zero_share, dtype=np.float32, seed=0):
    random = np.random.default_rng(seed)
    values = random.integers(1, 100, FEW) * random.standard_normal(FEW)
    values[random.random(FEW) < zero_share] = 0
    return ir.Tensor(values.astype(dtype), name="w")


@pytest.mark.parametrize(
    ("zero_share", "megabytes"),
    [
        # a bit of each element costs more than these zeros save
        (0.0, None),
        (0.04, None),
        # a mask: 13.5 bytes, and the element, of each; its only way at so few zeros
        (0.15, 17.5 * FEW / 1e6),
        # gaps of a byte: 8 of each nonzero, and 8 of each element
        (0.50, (8 * 0.48 + 8) * FEW / 1e6),
    ],
)
def test_a_few_blocks_tell_whether_zeros_pay(zero_share, megabytes):
    least = least_load_bytes(large(zero_share), min_saving=0.05)
    if megabytes is None:
        assert least is None
    else:
        assert least / 1e6 == pytest.approx(megabytes, rel=0.01)


@pytest.mark.parametrize(
    "values",
    [
        np.zeros(FEW, np.float32),
        np.tile(np.float32([0.1, 0.2, 0.3, 0.7]), FEW // 4),
        (np.arange(FEW) % 2000).astype(np.float32),
    ],
    ids=["one value", "a palette", "a narrower type"],
)
def test_codecs_without_zeros_are_left_to_decide(values):
    assert least_load_bytes(ir.Tensor(values, name="w"), min_saving=0.05) == 0


def test_a_grid_is_seen_without_zeros():
    codes = np.random.default_rng(0).integers(1, 127, (1024, FEW // 1024))
    scales = np.linspace(0.001, 0.002, 1024, dtype=np.float32)[:, None]
    weight = ir.Tensor(codes.astype(np.float32) * scales, name="w")
    assert (
        least_load_bytes(weight, min_saving=0.05)
        == (3 * 4 + 4 + 4) * FEW + 3 * 4 * FEW // 8
    )


def test_small_constants_are_not_looked_at():
    assert least_load_bytes(ir.Tensor(np.ones(8, np.float32), name="w"), 0.05) == 0
