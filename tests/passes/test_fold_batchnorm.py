"""fold-batchnorm: BatchNormalization that must stay, first; then every op that takes it."""

import numpy as np
import onnx_ir as ir
import pytest
from exactness import assert_equal_outputs, model_of, ops_of, run_exact
from onnx_opt.passes._base import NullContext
from onnx_opt.passes.fold_batchnorm import FoldBatchnorm

NUMBERS = (
    "float[2] g = {1.5, -0.5}, float[2] b = {0.25, 1}, float[2] m = {0.5, -1}, float[2] "
    "v = {2, 0.1}"
)
CONV = "float[2, 1, 1, 1] w = {2, 3}"

STAYS = {
    "overridable weights": (
        "float[1, 1, 4, 4] x, float[2, 1, 1, 1] w",
        f"{CONV}, {NUMBERS}",
        "h = Conv (x, w)  y = BatchNormalization (h, g, b, m, v)",
        "is not a constant",
    ),
    "overridable statistics": (
        "float[1, 1, 4, 4] x, float[2] m",
        f"{CONV}, {NUMBERS}",
        "h = Conv (x, w)  y = BatchNormalization (h, g, b, m, v)",
        "its parameters are not constants",
    ),
    "shared output": (
        "float[1, 1, 4, 4] x",
        f"{CONV}, {NUMBERS}",
        "h = Conv (x, w)  i = BatchNormalization (h, g, b, m, v)  y = Add (h, i)",
        "used elsewhere too",
    ),
    "shared weight": (
        "float[1, 1, 4, 4] x",
        f"{CONV}, {NUMBERS}",
        "h = Conv (x, w)  k = Conv (x, w)  i = BatchNormalization (h, g, b, m, v)  y = Add (k, i)",
        "weight 'w' is shared with another node",
    ),
    "no convolution": (
        "float[1, 2, 4, 4] x",
        NUMBERS,
        "h = Relu (x)  y = BatchNormalization (h, g, b, m, v)",
        "no Conv, ConvTranspose, Gemm or MatMul of constant weight makes its input",
    ),
    "computed weight": (
        "float[1, 1, 4, 4] x, float[2, 1, 1, 1] u",
        NUMBERS,
        "w = Neg (u)  h = Conv (x, w)  y = BatchNormalization (h, g, b, m, v)",
        "is not a constant",
    ),
}


@pytest.mark.parametrize("name", STAYS)
def test_stays(name):
    inputs, constants, body, reason = STAYS[name]
    model, outcome = run_exact(
        FoldBatchnorm(),
        f"g ({inputs}) => (float[n, c, h, w] y) <{constants}> {{ {body} }}",
    )
    assert outcome.changed == 0
    assert "BatchNormalization" in ops_of(model)
    assert [reason in d.reason for d in outcome.declined] == [True]


@pytest.mark.parametrize(
    ("opset", "training"),
    [
        (21, "y, p, q = BatchNormalization <training_mode: int = 1>"),
        # its outputs alone say so
        (13, "y, p, q, r, t = BatchNormalization"),
    ],
)
def test_training_mode_stays(opset, training):
    model = model_of(f"""<ir_version: 10, opset_import: ["" : {opset}]>
    t (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y) <{CONV}, {NUMBERS}>
    {{ h = Conv (x, w)  {training} (h, g, b, m, v) }}""")
    outcome = FoldBatchnorm().run(model, NullContext())
    assert outcome.changed == 0
    assert outcome.declined[0].reason == "it is in training mode"


def test_half_precision_stays():
    ones = ", ".join(
        f"float16[2] {name} = {{15360, 15360}}" for name in "gbmv"
    )  # the parser takes bits: 0x3C00 is 1
    model = model_of(f"""t (float16[1, 1, 4, 4] x) => (float16[1, 2, 4, 4] y)
    <float16[2, 1, 1, 1] w = {{15360, 15360}}, {ones}> {{ h = Conv (x,
        w)  y = BatchNormalization (h, g, b, m, v) }}""")
    outcome = FoldBatchnorm().run(model, NullContext())
    assert outcome.changed == 0
    assert outcome.declined[0].reason == "parameters of 16 bits would be rounded"


def folded(text, arrays):
    """The op types after folding, outputs proved equal; initializers named in `arrays` are filled
    first.
    """
    model = model_of(text)
    for name, array in arrays.items():
        value = model.graph.initializers[name]
        value.const_value = ir.Tensor(array, name=name)
        value.shape = ir.Shape(array.shape)
    before = ir.to_proto(model)
    assert FoldBatchnorm().run(model, NullContext()).changed == 1
    assert_equal_outputs(before, ir.to_proto(model), {}, 3)
    assert FoldBatchnorm().run(model, NullContext()).changed == 0
    return ops_of(model)


FOLDS = {
    "Conv": (
        "float[batch, 4, 6, 6] x",
        "Conv <pads = [1, 1, 1, 1]> (x, w)",
        (6, 4, 3, 3),
        ["Conv"],
    ),
    "grouped Conv": (
        "float[batch, 4, 6, 6] x",
        "Conv <group: int = 2> (x, w)",
        (6, 2, 3, 3),
        ["Conv"],
    ),
    "Conv of one axis": ("float[batch, 4, 9] x", "Conv (x, w)", (6, 4, 3), ["Conv"]),
    "ConvTranspose": (
        "float[batch, 4, 6, 6] x",
        "ConvTranspose (x, w)",
        (4, 6, 3, 3),
        ["ConvTranspose"],
    ),
    "grouped ConvTranspose": (
        "float[batch, 4, 6, 6] x",
        "ConvTranspose <group: int = 2> (x, w)",
        (4, 3, 3, 3),
        ["ConvTranspose"],
    ),
    "Gemm": ("float[batch, 4] x", "Gemm (x, w)", (4, 6), ["Gemm"]),
    "transposed Gemm": (
        "float[batch, 4] x",
        "Gemm <transB: int = 1, alpha: float = 0.5> (x, w)",
        (6, 4),
        ["Gemm"],
    ),
    "MatMul": ("float[batch, 4] x", "MatMul (x, w)", (4, 6), ["Gemm"]),
}


@pytest.mark.parametrize(
    ("name", "bias"),
    [(name, bias) for name in FOLDS for bias in (False, name != "MatMul")],
)
def test_folds(name, bias):
    inputs, call, shape, expected = FOLDS[name]
    random = np.random.default_rng(3)
    arrays = {name: random.normal(size=6).astype(np.float32) for name in "gbm"}
    arrays |= {
        "v": random.uniform(0.1, 2, 6).astype(np.float32),
        "w": random.normal(size=shape).astype(np.float32),
    }
    if bias:
        call = call.replace("w)", "w, k)").replace("alpha", "beta: float = 0.25, alpha")
        arrays["k"] = random.normal(size=6).astype(np.float32)
    rank = inputs.count(",") + 1
    output = f"float[{', '.join('nchw'[:rank])}] y"
    constants = ", ".join(f"float[1] {name} = {{0}}" for name in arrays)
    text = (
        f"t ({inputs}) => ({output}) <{constants}> {{ h = {call}  y = BatchNormalization "
        "(h, g, b, m, v) }"
    )
    assert folded(text, arrays) == expected


def test_the_weight_is_rounded_once():
    text = (
        f"t (float[1, 1, 4, 4] x) => (float[1, 2, 4, 4] y) <{CONV}, {NUMBERS}>"
        "{ h = Conv (x, w)  y = BatchNormalization <epsilon: float = 0.0> (h, g, b, m, v) }"
    )
    model, _ = run_exact(FoldBatchnorm(), text)
    weight, bias = (v.const_value.numpy() for v in model.graph[0].inputs[1:])
    scale = np.array([1.5, -0.5]) / np.sqrt(
        np.array([2, 0.1], np.float32).astype(np.float64)
    )
    assert np.array_equal(
        weight.reshape(-1), (np.array([2, 3]) * scale).astype(np.float32)
    )
    assert np.array_equal(
        bias, (np.array([0.25, 1]) - np.array([0.5, -1]) * scale).astype(np.float32)
    )
