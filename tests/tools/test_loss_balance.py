"""Losses of layers beside the outputs': told apart only where they part, and where that is."""

import math

import numpy as np
import onnx
import onnx.parser
import onnx_opt
import pytest
from onnx_opt.tools._run.explain_loss import Loss, StageLosses
from onnx_opt.tools._run.loss_balance import parting


def stage(*figures, name="quant"):
    """Layers a, b, … of (own, accumulated) figures in dB."""
    losses = []
    for letter, (own, accumulated) in zip("abcdef", figures, strict=False):
        losses.append(Loss(letter, "MatMul", accumulated, own, None))
    return StageLosses(name, losses)


def test_two_equal_noises_add_to_three_decibels_less():
    two = [stage((40, 40), (40, 37))]
    assert parting(two, 37.0) is None
    assert parting(two, 34.1) is None
    assert parting(two, 33.9) is not None


def test_noise_of_two_passes_adds():
    both = [stage((30, 30), name="prune"), stage((30, 30), name="quant")]
    assert parting(both, 27.0) is None


def test_what_follows_the_last_layer_is_named():
    assert parting([stage((40, 40), (40, 37))], 20.0) == (
        "the layers' own losses add up to 37.0 dB, and the outputs keep 20.0 dB: at 'b', the last "
        "layer that lost something, 37.0 dB had accumulated; what follows it makes errors larger "
        "beside the signal (as a Softmax or a small difference does)"
    )
    assert "smaller beside the signal" in parting([stage((40, 40), (40, 37))], 50.0)


def test_the_layer_where_errors_grow_is_named():
    assert parting([stage((40, 40), (40, 25), (40, 24))], 24.0) == (
        "the layers' own losses add up to 35.2 dB, and the outputs keep 24.0 dB: on their way "
        "through other layers the errors grow or point one way, from 'b' on"
    )
    diluted = parting([stage((20, 20), (20, 26), (20, 26))], 26.0)
    assert diluted.endswith(
        "the errors cancel or are diluted by larger signals, from 'b' on"
    )


def test_a_loss_between_layers_is_said():
    assert parting([stage((math.inf, 30))], 70.0) is None
    assert "no Conv, Gemm or MatMul lost anything" in parting(
        [stage((math.inf, 30))], 30
    )


@pytest.mark.parametrize(
    ("own", "measured"), [(40, math.inf), (40, math.nan), (-math.inf, 10)]
)
def test_figures_without_bounds_are_not_compared(own, measured):
    assert parting([stage((own, own))], measured) is None


def test_fused_layers_tell_nothing():
    assert parting([stage((40, None))], 20.0).endswith("all were fused")


ENDS = """
<ir_version: 10, opset_import: ["" : 21]>
ends (float[N, 64] x) => (float[N, 64] y)
{
    h = MatMul (x, v)
    g = MatMul (x, w)
    y = END
}
"""


@pytest.mark.parametrize(("end", "words"), [("Relu (h)", 0), ("Sub (h, g)", 1)])
def test_of_a_run(tmp_path, end, words):
    """A difference of near values loses what its terms keep."""
    random = np.random.default_rng(0)
    v = random.standard_normal((64, 64)).astype(np.float32)
    near = v + 0.01 * random.standard_normal((64, 64)).astype(np.float32)
    proto = onnx.parser.parse_model(ENDS.replace("END", end))
    weights = [
        onnx.numpy_helper.from_array(array, name)
        for name, array in zip("vw", (v, near), strict=True)
    ]
    proto.graph.initializer.extend(weights)
    path = tmp_path / "model.onnx"
    onnx.save(proto, path)
    result = onnx_opt.optimize(
        path,
        "quant(measure=false)",
        data={"x": random.standard_normal((40, 64)).astype(np.float32)},
        bench=False,
        explain_loss=True,
        force=True,
    )
    said = [each for each in result.warnings if each.startswith("--explain-loss: ")]
    assert ["what follows it makes errors larger" in each for each in said] == [
        True
    ] * words
