"""No CPU computes other integers: what `quant` writes has no pair of weights that can saturate.

Pairs are counted, and both arithmetics computed, by the models of kernels in `tests/`, which know
nothing of the pass.
"""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from generated_layers import KINDS, WEIGHTS, drawn, float_model
from integer_graphs import offending_pairs, run_integers
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import parse

PRODUCTS = [kind for kind in KINDS if "Conv" not in kind]
SOME = ("Conv of odd channels", "grouped Conv", "transposed Gemm", "MatMul")
FORMS = [
    (kind, text) for text in ("quant", "quant(rounding=nearest)") for kind in KINDS
]
FORMS += [(kind, 'quant(layers=["w=dynamic"])') for kind in PRODUCTS]
FORMS += [
    (kind, text)
    for kind in SOME
    for text in (
        "quant(bits=4)",  # a net's only layer is its end, of 8 bits
        "quant(binary, planes=3, ends=same)",
        "quant(activation_bits=4)",
        "gptq, quant",
        "round-weights, quant",
        "clip-weights, quant",
        "prune(sparsity=0.6), quant",
        "quant, gptq",
        "quant, correct-bias",
    )
]


def quantized(calibrated, kind, text, weights, seed):
    """A layer as a pipeline with `quant` writes it, and feeds of which many are the first or the
    last code.
    """
    layer, random = drawn(kind, seed)
    model = ir.from_proto(float_model(layer, random, weights))
    normalize(model)
    feeds = [{"x": random.normal(0.4, 1, layer.x).astype(np.float32)} for _ in range(4)]
    outcomes = [
        (pass_.name, pass_.run(model, calibrated(feeds)))
        for pass_ in parse(text).passes
    ]
    assert dict(outcomes)["quant"].stats["layers"] == 1
    seen = np.stack([batch["x"] for batch in feeds])
    return model, [
        feeds[0],
        {"x": random.choice(np.array([seen.min(), seen.max()]), layer.x)},
    ]


def output_step(model):
    """Worth of a code of the layer's output, 0 where it is float."""
    pairs = [
        n
        for n in model.graph
        if n.op_type == "DequantizeLinear" and n.inputs[1].is_initializer()
    ]
    behind = [
        n
        for n in pairs
        if any(use.node.op_type == "Neg" for use in n.outputs[0].uses())
    ]
    return float(behind[0].inputs[1].const_value.numpy()) if behind else 0.0


@pytest.mark.parametrize(("kind", "text"), FORMS)
@pytest.mark.needs("onnxruntime", "1.23", "older ones leave some in float")
def test_no_pair_saturates_and_every_cpu_computes_the_same_bits(calibrated, kind, text):
    """Both arithmetics, and this CPU's fused kernels; the graph as written, in float, but rounds
    ties its way.
    """
    for seed, weights in enumerate(WEIGHTS):
        model, feeds = quantized(calibrated, kind, text, weights, seed)
        assert list(offending_pairs(model).values()) in (
            [],
            [0],
        )  # none of a depthwise Conv is paired
        for batch in feeds:
            exact, saturating, fused, unfused = (
                found[0]
                for found in (
                    run_integers(model, batch, "exact"),
                    run_integers(model, batch, "saturating"),
                    run_session(model).run(None, batch),
                    run_session(model, optimize=False).run(None, batch),
                )
            )
            np.testing.assert_array_equal(saturating, exact)
            np.testing.assert_array_equal(fused, exact)
            if (
                "binary" not in text
            ):  # a packed Conv's bias is float in the file: the runtime rounds it
                rounding = 1e-6 * np.abs(exact).max()
                np.testing.assert_allclose(
                    unfused, exact, rtol=0, atol=output_step(model) + rounding
                )
