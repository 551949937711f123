"""Proof after the fact: integer kernels counted, each way to miss one named, in graphs that ONNX
Runtime optimizes.
"""

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from onnx_opt.passes._base import KernelNode, NullContext, PassOutcome
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._quant.kernel_audit import audit_kernels
from onnx_opt.passes.quant import Quant

RNG = np.random.default_rng(3)
CONV = RNG.integers(-127, 128, (8, 4, 3, 3)).astype(np.int8)
DENSE = RNG.integers(-127, 128, (16, 8)).astype(np.int8)
GRID = {
    "s": np.float32(0.02),
    "z": np.uint8(128),
    "ws": np.full(8, 0.01, np.float32),
    "wz": np.zeros(8, np.int8),
}
X = "xq = QuantizeLinear (x, s, z)  xd = DequantizeLinear (xq, s, z) "
Y = "yq = QuantizeLinear (c, s, z)  y = DequantizeLinear (yq, s, z) "
WC = "wd = DequantizeLinear <axis = 0> (w, ws, wz) "
WD = "wd = DequantizeLinear <axis = 1> (w, ws, wz) "
IMAGES = "(float[1, 4, 8, 8] x) => (float[1, 8, 6, 6] y)"
ROWS = "(float[2, 16] x) => (float[2, 8] y)"
BIAS = {"b": np.ones(8, np.float32)}
RIGHT = np.float32(0.02) * GRID["ws"]


class OptimizingContext(NullContext):
    """Answers `kernels` from ONNX Runtime's optimized graph, in this process."""

    def __init__(self, tmp_path):
        super().__init__()
        self.path = tmp_path / "optimized.onnx"

    def kernels(self, model):
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(self.path)
        onnxruntime.InferenceSession(
            ir.to_proto(model).SerializeToString(),
            options,
            providers=["CPUExecutionProvider"],
        )
        return [
            KernelNode(
                f"{n.domain}.{n.op_type}" if n.domain else n.op_type,
                n.name,
                tuple(n.input),
                tuple(n.output),
            )
            for n in onnx.load(self.path).graph.node
        ]


def model_of(signature, body, **constants):
    proto = onnx.parser.parse_model(
        f'<ir_version: 10, opset_import: ["" : 21]> g {signature} {{ {body} }}'
    )
    proto.graph.initializer.extend(
        onnx.numpy_helper.from_array(np.asarray(a), n)
        for n, a in (GRID | constants).items()
        if n in body
    )
    model = ir.from_proto(proto)
    normalize(model)
    return model


def proved(model, tmp_path):
    outcome, context = PassOutcome(), OptimizingContext(tmp_path)
    audit_kernels(model, context, outcome)
    return outcome, context


@pytest.mark.parametrize(
    ("signature", "body", "constants"),
    [
        (IMAGES, X + WC + "c = Conv (xd, wd) " + Y, {"w": CONV}),
        (IMAGES, X + WC + "c = Conv (xd, wd, b) " + Y, {"w": CONV} | BIAS),
        (ROWS, X + WD + "y = MatMul (xd, wd)", {"w": DENSE}),
        (
            ROWS,
            "wd = DequantizeLinear <axis = 1> (w, ws, wz)  y = MatMul (x, wd)",
            {"w": DENSE},
        ),
    ],
)
@pytest.mark.needs("onnxruntime", "1.26", "older ones do not fuse it")
def test_integer_kernels_are_counted(signature, body, constants, tmp_path):
    outcome, context = proved(model_of(signature, body, **constants), tmp_path)
    assert outcome.stats == {"int8_kernels": 1, "missed": 0}
    assert (outcome.declined, context.warnings) == ([], [])


@pytest.mark.parametrize(
    ("signature", "body", "constants", "where", "cause"),
    [
        (
            IMAGES,
            WC + "c = Conv (x, wd) " + Y,
            {"w": CONV},
            "Conv c",
            "no Q/DQ pair in front of it",
        ),
        (
            IMAGES,
            X + WC + "y = Conv (xd, wd)",
            {"w": CONV},
            "Conv y",
            "an output of its graph",
        ),
        (
            IMAGES,
            X + WC + "c = Conv (xd, wd)  y = Softmax (c)",
            {"w": CONV},
            "Conv c",
            "no QuantizeLinear after it",
        ),
        (
            IMAGES,
            X + WC + "r = Conv (xd, wd)  c = Relu (r) " + Y,
            {"w": CONV},
            "Conv r",
            "its zero point is 128, not 0",
        ),
        (
            "(float[1, 4, 8, 8] x) => (float[1, 8, 6, 6] y, float[1, 8, 6, 6] t)",
            X + WC + "c = Conv (xd, wd)  t = Sigmoid (c) " + Y,
            {"w": CONV},
            "Conv c",
            "read by 2 nodes",
        ),
        (
            IMAGES,
            X
            + WC
            + "bd = DequantizeLinear <axis = 0> (b, bs)  c = Conv (xd, wd, bd) "
            + Y,
            {"w": CONV, "b": np.ones(8, np.int32), "bs": 2 * RIGHT},
            "Conv c",
            "the scale of its bias",
        ),
        (
            ROWS,
            X + WD + "y = Gemm (xd, wd, b)",
            {"w": DENSE} | BIAS,
            "Gemm y",
            "its bias is float",
        ),
        (
            ROWS,
            X + WD + "a = MatMul (xd, wd)  y = Add (a, b)",
            {"w": DENSE} | BIAS,
            "MatMul a",
            "its bias is float",
        ),
    ],
)
@pytest.mark.needs("onnxruntime", "1.28", "older ones miss others")
def test_a_miss_is_named_with_its_cause(
    signature, body, constants, where, cause, tmp_path
):
    outcome, _ = proved(model_of(signature, body, **constants), tmp_path)
    assert outcome.stats == {"int8_kernels": 0, "missed": 1}
    assert [d.where for d in outcome.declined] == [where]
    assert cause in outcome.declined[0].reason


@pytest.mark.parametrize(("scale", "warned"), [(RIGHT, []), (2 * RIGHT, ["Gemm y"])])
def test_a_bias_that_the_runtime_misreads_is_warned_of(scale, warned, tmp_path):
    model = model_of(
        ROWS,
        X + WD + "bd = DequantizeLinear <axis = 0> (b, bs)  y = Gemm (xd, wd, bd)",
        w=DENSE,
        b=np.ones(8, np.int32),
        bs=scale,
    )
    outcome, context = proved(model, tmp_path)
    assert outcome.stats == {"int8_kernels": 1, "missed": 0}
    assert [text.partition(":")[0] for text in context.warnings] == warned


@pytest.mark.needs("onnxruntime", "1.22", "older ones quantize none by themselves")
def test_a_float_layer_that_the_runtime_quantizes_by_itself_is_warned_of(tmp_path):
    _, context = proved(
        model_of(IMAGES, X + "c = Conv (xd, w) " + Y, w=CONV.astype(np.float32)),
        tmp_path,
    )
    assert context.warnings == [
        "quant: the runtime runs 1 layers on integers by itself that were to stay float"
    ]


def test_without_a_runtime_nothing_is_claimed():
    outcome = PassOutcome()
    audit_kernels(
        model_of(IMAGES, X + WC + "c = Conv (xd, wd) " + Y, w=CONV),
        NullContext(),
        outcome,
    )
    assert (outcome.stats, outcome.declined) == ({"int8_kernels": "unproven"}, [])


@pytest.mark.parametrize("form", ["dynamic", "blocked"])
@pytest.mark.needs("onnxruntime", "1.26", "older ones do not fuse it")
def test_quant_proves_its_own_work(form, tmp_path):
    weight = RNG.normal(size=(64, 96)).astype(np.float32)
    model = model_of(
        "(float[2, 64] x) => (float[2, 96] y)", "y = MatMul (x, w)", w=weight
    )
    outcome = Quant(form=form).run(model, OptimizingContext(tmp_path))
    assert (
        outcome.changed,
        outcome.stats["int8_kernels"],
        outcome.stats["missed"],
    ) == (1, 1, 0)
