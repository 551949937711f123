"""A quantized model that is worthless is mended by a gentler form before it is refused."""

import numpy as np
import onnx
import pytest
from onnx_opt import optimize
from onnx_opt.passes.quant import Quant
from sample_models import model_from

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 64] x) => (float[n, 64] y)
<float[64, 64] w1, float[64, 64] w2, float[64, 64] w3, float[64, 64] w4>
{
    [first] a = MatMul (x, w1)
    n = LpNormalization <axis = 1> (a)
    r = Relu (n)
    [second] b = MatMul (r, w2)
    s = Relu (b)
    [third] c = MatMul (s, w3)
    t = Relu (c)
    [fourth] y = MatMul (t, w4)
}
"""
# every row counts alike behind the first layer
AT_RUN_TIME = "quant(dynamic, measure=false, outliers=ignore)"


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model_from(NET), path)
    return path


def outliers(rows=64):
    """Some rows so loud that all others round to zero."""
    random = np.random.default_rng(0)
    x = random.standard_normal((rows, 64)).astype(np.float32)
    x[random.random(rows) < 0.3] *= 1e4
    return x


def mending(result):
    return [text for text in result.warnings if "mended by" in text]


def test_the_worst_layers_are_spared(net, tmp_path):
    data = {"x": outliers()}
    result = optimize(
        net, AT_RUN_TIME, out=tmp_path / "out.onnx", data=data, bench=False
    )
    (words,) = mending(result)
    assert words.startswith(f"{AT_RUN_TIME}: as asked, output 'y' keeps ")
    assert "=blocked:8" in words
    assert result.drift["word"] in ("usable", "close", "near-identical")


def test_what_was_asked_is_given_without_a_floor(net, tmp_path):
    data = {"x": outliers()}
    result = optimize(
        net,
        AT_RUN_TIME,
        out=tmp_path / "out.onnx",
        data=data,
        bench=False,
        floor="none",
    )
    assert mending(result) == []
    assert result.passes[0].text == AT_RUN_TIME


def test_gentler_forms_of_few_bits_have_eight():
    first, second, last = Quant(bits=3).gentler([f"layer{n}" for n in range(12)])
    assert first.layers == ("layer0=int8:8", "layer1=int8:8", "layer2=int8:8")
    assert len(second.layers) == 12
    assert str(last) == "quant"
    assert Quant("blocked").gentler(["a"]) == []
    assert str(Quant(activation_bits=4).gentler([])[0]) == "quant"
    assert [str(p) for p in Quant("int16", bits=4).gentler(["a", "b", "c"])] == [
        "quant(int16)"
    ]
    assert str(Quant(kernel="float").gentler([])[0]) == "quant(blocked)"
    assert [str(p) for p in Quant("palette", bits=4).gentler(["a", "b", "c"])] == [
        'quant(palette, layers=["a=int8:8", "b=int8:8", "c=int8:8"], bits=4)',
        "quant",
    ]
    assert Quant("binary").gentler(["a"]) == []
    assert Quant("fp16").gentler(["a"]) == []
