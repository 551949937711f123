"""Gradients of parameters against central differences, an op family at a time; and against a
hand-written module.
"""

import os
import statistics
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_opt.frontends.onnx_file import load
from onnx_opt.frontends.trainable import to_torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention
from trainable_models import difference, gradient_error, ir_model, normal

DATA = Path(
    os.environ.get(
        "ONNX_OPT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"
    )
)

HEAD = '<ir_version: 10, opset_import: ["" : 21]>\n'

NETS = {
    "conv": (
        """net (float[2, 4, 7, 6] x) => (float[a, b, c, d] y) <float[6, 2, 3, 3] k, float[6] b>
        { y = Conv <group = 2, pads = [1, 0, 2, 1], strides = [2, 1], dilations = [1, 2]> (x, k,
            b) }""",
        (2, 4, 7, 6),
    ),
    "same": (
        """net (float[2, 4, 7, 6] x) => (float[a, b, c, d] y) <float[3, 4, 4, 3] k>
        { y = Conv <auto_pad = "SAME_LOWER", strides = [2, 2]> (x, k) }""",
        (2, 4, 7, 6),
    ),
    "transposed": (
        """net (float[1, 4, 5, 5] x) => (float[a, b, c, d] y) <float[4, 3, 3, 3] k, float[6] b>
        { y = ConvTranspose <group = 2, strides = [2, 2], pads = [1, 0, 0, 1],
            output_padding = [1, 1]> (x, k, b) }""",
        (1, 4, 5, 5),
    ),
    "norms": (
        """net (float[2, 4, 5, 3] x) => (float[a, b, c, d] y)
        <float[4] s, float[4] t, float[4] m, float[4] v = {1, 2, 3, 4}, float[3] g, float[3] h,
            float[4] i, float[4] j>
        { n = BatchNormalization (x, s, t, m, v) l = LayerNormalization (n, g, h)
          y = GroupNormalization <num_groups = 2> (l, i, j) }""",
        (2, 4, 5, 3),
    ),
    "pools": (
        """net (float[2, 4, 6, 6] x) => (float[a, b, c, d] y) <float[4, 4, 1, 1] k>
        { c = Conv (x, k) m = MaxPool <kernel_shape = [3, 3], pads = [1, 1, 1, 1]> (c)
          y = AveragePool <kernel_shape = [2, 2], strides = [2, 2], ceil_mode = 1> (m) }""",
        (2, 4, 6, 6),
    ),
    "activations": (
        """net (float[3, 5] x) => (float[a, b] y) <float[5, 5] w, float[5] slope>
        { h = MatMul (x, w) p = PRelu (h, slope) g = Gelu (p) s = HardSwish (g) t = Tanh (s)
          e = Elu (t) l = Softplus (e) y = Softmax (l) }""",
        (3, 5),
    ),
    "shapes": (
        """net (float[2, 3, 4] x) => (float[a, b] y)
        <float[1, 3, 4] w, int64[2] flat = {2, -1}, int64[1] one = {1}, int64[1] end = {-9},
            int64[1] start = {-1},
         int64[1] back = {-1}, int64[1] axis = {2}, int64[6] pads = {0, 1, 0, 0, 0, 2},
             int64[3] idx = {2, 0, -1}>
        { m = Mul (x, w) r = Slice (m, start, end, axis, back) p = Pad <mode = "reflect"> (r, pads)
          g = Gather <axis = 1> (p, idx) t = Transpose <perm = [0, 2, 1]> (g) y = Reshape (t,
              flat) }""",
        (2, 3, 4),
    ),
    "reductions": (
        """net (float[3, 4] x) => (float[a] y) <float[4, 4] w, int64[1] axis = {1}>
        { h = MatMul (x, w) a = ReduceL2 <keepdims = 0> (h, axis)
          b = ReduceLogSumExp <keepdims = 0> (h, axis)
          c = ReduceProd <keepdims = 0> (h, axis) d = ReduceMax <keepdims = 0> (h, axis)
          y = Sum (a, b, c, d) }""",
        (3, 4),
    ),
    "resize": (
        """net (float[1, 2, 4, 4] x) => (float[a, b, c, d] y)
        <float[2, 2, 1, 1] k, float[4] s = {1, 1, 1.7, 0.6}>
        { h = Conv (x, k) y = Resize <mode = "cubic", antialias = 1> (h, , s) }""",
        (1, 2, 4, 4),
    ),
    "attention": (
        """net (float[2, 4, 6] x) => (float[a, b, c] y) <float[6, 6] q, float[6, 6] k, float[6,
            6] v>
        { a = MatMul (x, q) b = MatMul (x, k) c = MatMul (x, v) t = Transpose <perm = [0, 2, 1]> (b)
          s = MatMul (a, t) p = Softmax (s) y = MatMul (p, c) }""",
        (2, 4, 6),
    ),
    "einsum": (
        """net (float[2, 3, 4] x) => (float[a, b, c] y) <float[4, 5] w>
        { y = Einsum <equation = "bij,jk->bki"> (x, w) }""",
        (2, 3, 4),
    ),
    "lstm": (
        """net (float[4, 2, 3] x) => (float[a, b, c, d] y) <float[2, 8, 3] w, float[2, 8, 2] r,
            float[2, 16] b>
        { y = LSTM <hidden_size = 2, direction = "bidirectional"> (x, w, r, b) }""",
        (4, 2, 3),
    ),
    "peephole": (
        """net (float[4, 2, 3] x) => (float[a, b, c, d] y)
        <float[1, 8, 3] w, float[1, 8, 2] r, float[1, 16] b, float[1, 6] p>
        { y = LSTM <hidden_size = 2> (x, w, r, b, , , , p) }""",
        (4, 2, 3),
    ),
    "gru": (
        """net (float[4, 2, 3] x) => (float[a, b, c, d] y) <float[1, 6, 3] w, float[1, 6, 2] r,
            float[1, 12] b>
        { y = GRU <hidden_size = 2, linear_before_reset = 1, direction = "reverse"> (x, w, r,
            b) }""",
        (4, 2, 3),
    ),
    "gru_reset_first": (
        """net (float[4, 2, 3] x) => (float[a, b, c, d] y) <float[1, 6, 3] w, float[1, 6, 2] r>
        { y = GRU <hidden_size = 2> (x, w, r) }""",
        (4, 2, 3),
    ),
    "rnn": (
        """net (float[4, 2, 3] x) => (float[a, b, c, d] y) <float[1, 2, 3] w, float[1, 2, 2] r,
            float[1, 4] b>
        { y = RNN <hidden_size = 2, activations = ["Affine"], activation_alpha = [0.5]> (x, w,
            r, b) }""",
        (4, 2, 3),
    ),
    "scatter": (
        """net (float[3, 4] x) => (float[a, b] y) <float[2, 4] u, int64[2, 1] rows = {2, 0},
            float[4, 4] w>
        { h = MatMul (x, w) y = ScatterND <reduction = "add"> (h, rows, u) }""",
        (3, 4),
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_are_the_numeric_ones(name):
    text, shape = NETS[name]
    assert gradient_error(HEAD + text, {"x": normal(*shape)}) < 1e-5


@pytest.mark.parametrize("name", NETS)
def test_onnx_runtime_computes_the_same(name):
    text, shape = NETS[name]
    assert difference(to_torch(ir_model(HEAD + text)), {"x": normal(*shape)}) < 2e-5


class ResNet56(torch.nn.Module):
    """By hand, as one writes it: CIFAR-10, shortcuts without weights, BatchNormalization folded."""

    def __init__(self):
        super().__init__()
        self.first = torch.nn.Conv2d(3, 16, 3, 1, 1)
        widths = [16] * 9 + [32] * 9 + [64] * 9
        pairs = zip([16, *widths], widths, strict=False)
        self.blocks = torch.nn.ModuleList(
            torch.nn.ModuleList(
                [torch.nn.Conv2d(i, o, 3, o // i, 1), torch.nn.Conv2d(o, o, 3, 1, 1)]
            )
            for i, o in pairs
        )
        self.last = torch.nn.Linear(64, 10)

    def forward(self, x):
        x = F.relu(self.first(x))
        for one, two in self.blocks:
            y = two(F.relu(one(x)))
            if y.shape[1] != x.shape[1]:
                grow = (y.shape[1] - x.shape[1]) // 2
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, grow, grow))
            x = F.relu(x + y)
        return self.last(F.avg_pool2d(x, 8).flatten(1))


@pytest.fixture(scope="module")
def resnets():
    path = DATA / "models" / "cifar10_resnet56.onnx"
    if not path.exists():
        pytest.skip("no real models here")
    ours, hand = to_torch(load(path)), ResNet56()
    layers = [
        m for m in hand.modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))
    ]
    lines = ours.provenance.source.splitlines()
    used = [
        line.split("self.")[1:3]
        for line in lines
        if "Conv_1(" in line or "Gemm_1(" in line
    ]
    pairs = {}
    for layer, names in zip(layers, used, strict=True):
        for parameter, name in zip((layer.weight, layer.bias), names, strict=True):
            pairs[name.split(",")[0].split(")")[0]] = parameter
            with torch.no_grad():
                parameter.copy_(ours.get_parameter(name.split(",")[0].split(")")[0]))
    return ours, hand, pairs


@pytest.mark.slow
def test_gradients_are_those_of_a_module_written_by_hand(resnets):
    ours, hand, pairs = resnets
    x = torch.from_numpy(normal(4, 3, 32, 32))
    assert torch.allclose(ours(x), hand(x), atol=1e-5)
    for module in (ours, hand):
        module.zero_grad()
        F.cross_entropy(module(x), torch.arange(4)).backward()
    assert len(pairs) == len(list(ours.parameters())) == 112
    for name, parameter in pairs.items():
        given, expected = ours.get_parameter(name).grad, parameter.grad
        assert float((given - expected).norm() / expected.norm()) <= 1e-5, name


@pytest.mark.slow
def test_forward_and_backward_take_the_time_of_a_module_written_by_hand(resnets):
    ours, hand, _ = resnets
    x = torch.from_numpy(normal(8, 3, 32, 32))

    def seconds(module):
        start = time.process_time()
        module(x).square().mean().backward()
        return time.process_time() - start

    for module in (ours, hand):
        seconds(module)
    ratios = []
    for turn in range(15):
        first, second = (ours, hand) if turn % 2 else (hand, ours)
        times = {id(first): seconds(first), id(second): seconds(second)}
        ratios.append(times[id(ours)] / times[id(hand)])
    assert statistics.median(ratios) <= 1.1, np.round(ratios, 2)
