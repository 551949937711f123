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
from onnx_opt.passes._normalize import normalize
from onnx_opt.passes.quant import Quant

PRODUCTS = [kind for kind in KINDS if "Conv" not in kind]
FORMS = [(kind, {}) for kind in KINDS]
FORMS += [(kind, {"rounding": "nearest"}) for kind in KINDS]
FORMS += [(kind, {"layers": ("w=dynamic",)}) for kind in PRODUCTS]
FORMS += [(kind, {"bits": 4}) for kind in KINDS]  # a net's only layer is its end, of 8 bits


def quantized(calibrated, kind, options, weights, seed):
    """A layer as `quant` writes it, and feeds from which the first and last codes come often."""
    layer, random = drawn(kind, seed)
    model = ir.from_proto(float_model(layer, random, weights))
    normalize(model)
    feeds = [{"x": random.normal(0.4, 1, layer.x).astype(np.float32)} for _ in range(4)]
    outcome = Quant(**options).run(model, calibrated(feeds))
    assert outcome.stats["layers"] == 1, outcome.declined
    seen = np.stack([batch["x"] for batch in feeds])
    return model, [feeds[0], {"x": random.choice(np.array([seen.min(), seen.max()]), layer.x)}]


def output_step(model):
    """What a code of the layer's output is worth, 0 where it is float."""
    pairs = [n for n in model.graph if n.op_type == "DequantizeLinear" and n.inputs[1].is_initializer()]
    behind = [n for n in pairs if any(use.node.op_type == "Neg" for use in n.outputs[0].uses())]
    return float(behind[0].inputs[1].const_value.numpy()) if behind else 0.0


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=str)
def test_no_pair_saturates(calibrated, kind, options):
    for seed, weights in enumerate(WEIGHTS):
        model, _ = quantized(calibrated, kind, options, weights, seed)
        assert not any(offending_pairs(model).values())


@pytest.mark.parametrize(("kind", "options"), FORMS, ids=str)
def test_every_cpu_computes_the_same_bits(calibrated, kind, options):
    """Both arithmetics, and this CPU's fused kernels; the graph as written, in float, but rounds ties its way."""
    for seed, weights in enumerate(WEIGHTS, 10):
        model, feeds = quantized(calibrated, kind, options, weights, seed)
        for batch in feeds:
            exact, saturating, fused, unfused = (found[0] for found in (
                run_integers(model, batch, "exact"), run_integers(model, batch, "saturating"),
                run_session(model).run(None, batch), run_session(model, optimize=False).run(None, batch)))
            np.testing.assert_array_equal(saturating, exact)
            np.testing.assert_array_equal(fused, exact)
            rounding = 1e-6 * np.abs(exact).max()
            np.testing.assert_allclose(unfused, exact, rtol=0, atol=output_step(model) + rounding)
