"""Graphs written as ONNX text with the operators of opsets 18 to 24."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .onnx_text import Texts, text_graphs

OPSET_21: Texts = {
    "group_norm_21": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[48, 3, 3, 3] w, float[48] b, float[48] gain, float[48] shift, float[32, 48, 3, 3] u,
    float[32] g2,
    float[32] s2, float[4, 32, 1, 1] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    n = GroupNormalization <num_groups = 6> (h, gain, shift)
    a = HardSwish (n)
    k = Conv <pads = [1, 1, 1, 1]> (a, u)
    m = GroupNormalization <num_groups = 1> (k, g2, s2)
    c = Mish (m)
    y = Conv (c, v)
}""",
    "instance_norm": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w, float[32] gain, float[32] shift, float[32, 1, 1] slope, float[4, 32, 1, 1] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w)
    n = InstanceNormalization (h, gain, shift)
    a = PRelu (n, slope)
    y = Conv (a, v)
}""",
    "layer_norm_17": """(float[N, 10, 16] x) => (float[N, 10, 4] y)
<float[16, 48] w, float[48] b, float[48] gain, float[48] shift, float[48, 64] u,
    float[64] gain2, float[64, 4] v>
{
    h = MatMul (x, w)
    hb = Add (h, b)
    n = LayerNormalization <axis = -1> (hb, gain, shift)
    k = MatMul (n, u)
    g = Gelu <approximate = "tanh"> (k)
    m = LayerNormalization (g, gain2)
    y = MatMul (m, v)
}""",
    "quantized_linear": """(float[N, 16] x) => (float[N, 4] y)
<int8[64, 16] w, float[64] w_scale, float[64] b, float a_scale = {0.05}, uint8 a_zero = {0},
    int8[4, 64] v,
    float[4] v_scale>
{
    wf = DequantizeLinear <axis = 0> (w, w_scale)
    h = Gemm <transB = 1> (x, wf, b)
    a = Relu (h)
    q = QuantizeLinear (a, a_scale, a_zero)
    d = DequantizeLinear (q, a_scale, a_zero)
    vf = DequantizeLinear <axis = 0> (v, v_scale)
    vt = Transpose <perm = [1, 0]> (vf)
    y = MatMul (d, vt)
}""",
    "dequantized_blocks": """(float[N, 64] x) => (float[N, 4] y)
<int8[64, 48] w, float[4, 48] w_scale, float[48, 4] v>
{
    wf = DequantizeLinear <axis = 0, block_size = 16> (w, w_scale)
    h = MatMul (x, wf)
    a = Relu (h)
    y = MatMul (a, v)
}""",
    "split_outputs": """(float[N, 10, 16] x) => (float[N, 10, 4] y)
<float[16, 96] w, float[96] b, float[48, 4] v, float[1, 1, 48] gate>
{
    h = MatMul (x, w)
    hb = Add (h, b)
    left, right = Split <axis = -1, num_outputs = 2> (hb)
    s = Sigmoid (right)
    p = Mul (left, s)
    g = Mul (p, gate)
    y = MatMul (g, v)
}""",
    "lp_and_mean_variance": """(float[N, 3, 8, 8] x) => (float[N, 4] y)
<float[32, 3, 3, 3] w, float[32, 32, 3, 3] u, float[32, 48] d, float[48, 4] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w)
    m = MeanVarianceNormalization <axes = [0, 2, 3]> (h)
    a = Relu (m)
    k = Conv <pads = [1, 1, 1, 1]> (a, u)
    p = GlobalMaxPool (k)
    f = Flatten (p)
    n = LpNormalization <axis = 1, p = 2> (f)
    z = MatMul (n, d)
    c = Celu (z)
    y = MatMul (c, v)
}""",
    "local_response": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w, float[64, 32, 3, 3] u, float[64] b, float[4, 64, 1, 1] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w)
    a = Relu (h)
    n = LRN <size = 5> (a)
    k = Conv <pads = [1, 1, 1, 1]> (n, u, b)
    c = Relu (k)
    y = Conv (c, v)
}""",
}

OPSET_23: Texts = {
    "attention_23": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 64] wq, float[32, 64] wk, float[32, 64] wv, float[64] bq, float[64, 32] wo, float[32,
    8] w>
{
    q0 = MatMul (x, wq)
    q = Add (q0, bq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    o = Attention <q_num_heads = 4, kv_num_heads = 4> (q, k, v)
    a = MatMul (o, wo)
    r = Add (x, a)
    y = MatMul (r, w)
}""",
    "attention_23_grouped": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 128] wq, float[32, 32] wk, float[32, 32] wv, float[128, 48] wo, float[48, 8] w>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    o = Attention <q_num_heads = 8, kv_num_heads = 2, is_causal = 1, scale = 0.3> (q, k, v)
    a = MatMul (o, wo)
    c = Relu (a)
    y = MatMul (c, w)
}""",
    "attention_23_heads": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 192] wqkv, float[192] b, float[4, 1, 1] slopes, float[1, 10, 10] distance, float[64,
    8] wo,
    int64[5] split = {0, 10, 3, 4, 16}, int64[3] merged = {0, 10, 64}, int64 i0 = {0},
        int64 i1 = {1}, int64 i2 = {2}>
{
    p = MatMul (x, wqkv)
    pb = Add (p, b)
    r = Reshape (pb, split)
    t = Transpose <perm = [2, 0, 3, 1, 4]> (r)
    q = Gather <axis = 0> (t, i0)
    k = Gather <axis = 0> (t, i1)
    v = Gather <axis = 0> (t, i2)
    bias = Mul (slopes, distance)
    o = Attention (q, k, v, bias)
    ot = Transpose <perm = [0, 2, 1, 3]> (o)
    m = Reshape (ot, merged)
    y = MatMul (m, wo)
}""",
    "rotary_23": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 64] wq, float[32, 64] wk, float[32, 64] wv, float[10, 8] angles, float[64, 8] wo,
    int64[1] zero = {0},
    int64[1] one = {1},
    int64[1] rest = {-1}, int64[2] ends = {10, 8}>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    cos0 = Cos (angles)
    sin0 = Sin (angles)
    shape = Shape (x)
    n = Gather <axis = 0> (shape, zero)
    target = Concat <axis = 0> (n, ends)
    cos = Expand (cos0, target)
    sin = Expand (sin0, target)
    qr = RotaryEmbedding <num_heads = 4> (q, cos, sin)
    kr = RotaryEmbedding <num_heads = 4> (k, cos, sin)
    o = Attention <q_num_heads = 4, kv_num_heads = 4> (qr, kr, v)
    y = MatMul (o, wo)
}""",
    "rms_norm_23": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 48] e, float[48] g1, float[48, 96] wg, float[48, 96] wu, float[96, 48] wd,
    float[48] g2, float[48, 8] w>
{
    z = MatMul (x, e)
    n = RMSNormalization <axis = -1> (z, g1)
    g = MatMul (n, wg)
    s = Sigmoid (g)
    gs = Mul (g, s)
    u = MatMul (n, wu)
    p = Mul (gs, u)
    d = MatMul (p, wd)
    r = Add (z, d)
    m = RMSNormalization <axis = -1, epsilon = 0.001> (r, g2)
    y = MatMul (m, w)
}""",
}

FUNCTIONS: Texts = {
    "local_function": """(float[N, 16] x) => (float[N, 4] y)
<float[16, 48] w, float[48] b, float[48, 64] u, float[64] c, float[64, 4] v>
{
    h = local.dense (x, w, b)
    k = local.dense (h, u, c)
    y = MatMul (k, v)
}
<domain: "local", opset_import: ["" : 21]>
dense (x, w, b) => (y)
{
    h = MatMul (x, w)
    hb = Add (h, b)
    y = Relu (hb)
}""",
}


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    yield from text_graphs(OPSET_21, 21, 10)
    yield from text_graphs(OPSET_23, 23, 11)
    yield from text_graphs(FUNCTIONS, 21, 10)
