"""Layers whose input holds outliers: weights in blocks times float, by what is seen of the rows."""

import numpy as np
import pytest
from calibrated_context import CalibratedContext
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.passes._quant.outliers import predicts_tokens
from onnx_opt.passes.quant import Quant
from onnx_opt.runtime.moments import MomentObserver
from quant_models import model_of, normal, ops

TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
two (float[N, 64] x) => (float[N, 64] y) {
    inner = MatMul (x, v)
    amplified = Mul (inner, inner)
    y = MatMul (amplified, w)
}
"""

PREDICTOR = """
<ir_version: 10, opset_import: ["" : 21]>
lm (int64[N, L] ids) => (float[N, L, WIDTH] scores) {
    x = Gather (table, ids)
    h = MatMul (x, v)
    scores = MatMul (h, w)
}
"""


def two_layers():
    return model_of(TWO_LAYERS, v=normal(64, 64), w=normal(64, 64))


def predictor(table, width=512):
    text = PREDICTOR.replace("WIDTH", str(width))
    return model_of(text, table=table, v=normal(64, 64), w=normal(64, width))


class Observing(NullContext):
    """A run without data that looks at tensors on some made-up feeds."""

    def __init__(self, feeds, own_text=None):
        super().__init__()
        self.feeds = feeds
        self.own_text = own_text

    def on_any_feeds(self, tokens, least=0):
        return CalibratedContext(self.feeds)

    def on_own_text(self, model, tokens, least=0):
        assert list(tokens.values()) == [512]
        return CalibratedContext(self.own_text)


def one_loud_row():
    """Rows of which the first is 400 times as loud as the others."""
    x = normal(16, 64)
    x[0] *= 400
    return {"x": x}


def even_rows():
    return {"x": normal(16, 64)}


def test_layers_that_read_outliers_keep_float_activations():
    model = two_layers()
    outcome = Quant(measure=False).run(model, Observing([one_loud_row()]))
    assert outcome.stats["outliers"] == 2
    found = ops(model)
    assert found["DequantizeLinear"] == 2
    assert "MatMulInteger" not in found


def test_layers_with_even_rows_take_integers():
    model = two_layers()
    outcome = Quant(measure=False).run(model, Observing([even_rows()]))
    assert "outliers" not in outcome.stats
    assert ops(model).get("MatMulInteger", 0) == 2


def test_only_what_reads_the_outliers_is_spared():
    model = two_layers()
    # rows a twentieth as loud keep 17 dB of the first layer's input, nothing of its square
    feeds = even_rows()
    feeds["x"][8:] *= 0.05
    outcome = Quant(measure=False, smooth=False).run(model, Observing([feeds]))
    assert outcome.stats["outliers"] == 1
    found = ops(model)
    assert (found["DequantizeLinear"], found["MatMulInteger"]) == (1, 1)


@pytest.mark.parametrize(
    "given", [{"outliers": "ignore"}, {"layers": ("*=dynamic:8",)}]
)
def test_a_user_may_choose_integers_all_the_same(given):
    model = two_layers()
    Quant(measure=False, **given).run(model, Observing([one_loud_row()]))
    assert ops(model).get("MatMulInteger", 0) == 2


def test_a_model_that_nobody_ran_is_judged_by_what_it_predicts():
    tokens = predictor(normal(512, 64))
    Quant(measure=False).run(tokens, NullContext())
    assert ops(tokens).get("MatMulInteger", 0) == 0
    others = two_layers()
    Quant(measure=False).run(others, NullContext())
    assert ops(others).get("MatMulInteger", 0) == 2


@pytest.mark.parametrize(("width", "integers"), [(512, 0), (64, 2)])
def test_more_is_kept_of_what_predicts_tokens(width, integers):
    # its rows keep 24 dB: enough for other models
    table = normal(512, 64)
    table[0] *= 8
    model = predictor(table, width)
    feeds = {"ids": np.arange(16, dtype=np.int64).reshape(1, 16)}
    Quant(measure=False, smooth=False).run(model, Observing([feeds]))
    assert ops(model).get("MatMulInteger", 0) == integers


def test_blocks_of_what_predicts_tokens_are_rounded_by_text_of_its_own():
    table = normal(512, 64)
    feeds = {"ids": np.arange(512, dtype=np.int64).reshape(1, 512)}
    model, other = predictor(table), predictor(table, width=64)
    options = {"form": "blocked", "bits": 4, "ends": "same", "sensitive": 0.0}
    context = Observing(feeds=None, own_text=[feeds])
    outcome = Quant(**options).run(model, context)
    assert outcome.stats["rounded"] == 2
    assert "rounded" not in Quant(**options).run(other, context).stats
    options["rounding"] = "nearest"
    assert "rounded" not in Quant(**options).run(predictor(table), context).stats


def test_noise_is_that_of_each_row():
    observer = MomentObserver(MomentRequest("x", "row_noise"))
    # steps of 1: the second row is off by 0.4, the third is lost
    observer.update(np.array([[255, 0], [1.4, 0], [0.4, 0]], np.float32))
    expected = (0 + (0.4 / 1.4) ** 2 + 1) / 3
    np.testing.assert_allclose(observer.value(), [expected], rtol=1e-5)


@pytest.mark.parametrize(
    ("rows", "width", "rank", "expected"),
    [
        (512, 512, 3, True),
        (512, 500, 3, False),
        # a class for each of two types of tokens is no vocabulary
        (2, 2, 3, False),
        (512, 512, 2, False),
    ],
)
def test_what_predicts_tokens(rows, width, rank, expected):
    sizes = ", ".join(["n", "s", str(width)][-rank:])
    text = f"""
    <ir_version: 10, opset_import: ["" : 21]>
    lm (int64[n, s] ids) => (float[{sizes}] scores)
    {{
        scores = Gather (table, ids)
    }}
    """
    assert predicts_tokens(model_of(text, table=normal(rows, 8))) is expected
