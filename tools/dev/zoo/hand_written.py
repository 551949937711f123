"""Graphs written as ONNX text: weights in unusual places, channel algebra, shapes computed in the
graph.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from .onnx_text import Texts, text_graphs

WEIGHTS: Texts = {
    "shared_weight": """(float[N, 32, 8, 8] x) => (float[N, 8, 8, 8] y)
<float[32, 32, 3, 3] w, float[32] b, float[8, 32, 1, 1] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    k = Conv <pads = [1, 1, 1, 1]> (a, w, b)
    c = Sigmoid (k)
    y = Conv (c, v)
}""",
    "shared_bias": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w1, float[32, 32, 3, 3] w2, float[32, 32, 1, 1] w3, float[32] b, float[4,
    32, 1, 1] v>
{
    h1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b)
    a1 = Relu (h1)
    h2 = Conv <pads = [1, 1, 1, 1]> (a1, w2, b)
    a2 = Relu (h2)
    h3 = Conv (a2, w3, b)
    a3 = Relu (h3)
    y = Conv (a3, v)
}""",
    "weight_transposed": """(float[N, 16] x) => (float[N, 4] y)
<float[48, 16] w, float[48] b, float[4, 48] v>
{
    wt = Transpose <perm = [1, 0]> (w)
    same = Identity (wt)
    h = MatMul (x, same)
    hb = Add (h, b)
    a = Relu (hb)
    y = Gemm <transB = 1> (a, v)
}""",
    "tied_transposed": """(float[N, 40] x) => (float[N, 40] y)
<float[40, 48] w, float[48] b, float[40] c>
{
    h = MatMul (x, w)
    hb = Add (h, b)
    a = Tanh (hb)
    wt = Transpose <perm = [1, 0]> (w)
    r = MatMul (a, wt)
    y = Add (r, c)
}""",
    "weight_cast": """(float[N, 16] x) => (float[N, 4] y)
<float16[16, 64] w, float16[64] b, float[64, 4] v>
{
    wf = Cast <to = 1> (w)
    bf = Cast <to = 1> (b)
    h = Gemm (x, wf, bf)
    a = Elu (h)
    y = MatMul (a, v)
}""",
    "weight_dequantized": """(float[N, 8, 8, 8] x) => (float[N, 4] y)
<int8[32, 8, 3, 3] w, float[32] w_scale, int8[32] w_zero = {0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0,
    0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0}, float[32] b, int8[64, 32, 1, 1] u, float u_scale,
        float[64, 4] v>
{
    wf = DequantizeLinear <axis = 0> (w, w_scale, w_zero)
    h = Conv <pads = [1, 1, 1, 1]> (x, wf, b)
    a = Relu (h)
    uf = DequantizeLinear (u, u_scale)
    k = Conv (a, uf)
    c = Relu (k)
    p = GlobalAveragePool (c)
    f = Flatten (p)
    y = MatMul (f, v)
}""",
    "weight_scaled": """(float[N, 8, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 8, 3, 3] w, float[32, 1, 1, 1] gain, float[32] b, float[4, 32, 1, 1] v, float[4] g,
    int64[4] dims = {-1, 1, 1, 1}>
{
    wg = Mul (w, gain)
    h = Conv <pads = [1, 1, 1, 1]> (x, wg, b)
    a = LeakyRelu (h)
    gr = Reshape (g, dims)
    vg = Mul (v, gr)
    y = Conv (a, vg)
}""",
    "gemm_forms": """(float[16, N] x) => (float[N, 4] y)
<float[64, 16] w, float[1, 64] b, float[64, 48] u, float[48] c, float[48, 4] v, float d>
{
    h = Gemm <transA = 1, transB = 1, alpha = 0.5, beta = 2.0> (x, w, b)
    a = Relu (h)
    k = Gemm <alpha = 1.5> (a, u, c)
    e = Softplus (k)
    y = Gemm (e, v, d)
}""",
    "einsum": """(float[N, 10, 32] x) => (float[N, 10, 8] y)
<float[32, 4, 16] wq, float[32, 4, 16] wk, float[32, 4, 16] wv, float[4, 16, 32] wo, float[32,
    64] w1, float[64, 8] w2,
    float scale = {0.25}>
{
    q = Einsum <equation = "btc,chd->bthd"> (x, wq)
    k = Einsum <equation = "btc,chd->bthd"> (x, wk)
    v = Einsum <equation = "btc,chd->bthd"> (x, wv)
    s = Einsum <equation = "bqhd,bkhd->bhqk"> (q, k)
    ss = Mul (s, scale)
    p = Softmax <axis = -1> (ss)
    o = Einsum <equation = "bhqk,bkhd->bqhd"> (p, v)
    a = Einsum <equation = "bqhd,hdc->bqc"> (o, wo)
    r = Add (x, a)
    h = Einsum <equation = "bti,ih->bth"> (r, w1)
    g = Relu (h)
    y = Einsum <equation = "bth,ho->bto"> (g, w2)
}""",
}

CHANNELS: Texts = {
    "concat_twice": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w, float[32] b, float[4, 96, 1, 1] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    n = Neg (a)
    c = Concat <axis = 1> (a, n, a)
    y = Conv (c, v)
}""",
    "split_unequal": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[64, 3, 3, 3] w, float[64] b, float[32, 16, 3, 3] u, float[4, 80, 1, 1] v,
    int64[2] sizes = {16, 48}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    p, q = Split <axis = 1> (a, sizes)
    k = Conv <pads = [1, 1, 1, 1]> (p, u)
    c = Concat <axis = 1> (q, k)
    y = Conv (c, v)
}""",
    "slice_strided": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[64, 3, 3, 3] w, float[64] b, float[4, 32, 1, 1] v, float[4, 48, 1, 1] u, int64[1] axis = {1},
    int64[1] step = {2},
    int64[1] low = {0}, int64[1] high = {64}, int64[1] from = {16}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    even = Slice (a, low, high, axis, step)
    tail = Slice (a, from, high, axis)
    e = Conv (even, v)
    t = Conv (tail, u)
    y = Add (e, t)
}""",
    "gather_permuted": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[16, 3, 3, 3] w, float[16] b, float[16, 16, 3, 3] u, float[4, 16, 1, 1] v,
    int64[16] order = {15, 3, 7, 0, 8, 4, 12, 1, 9, 5, 13, 2, 10, 6, 14, 11}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    g = Gather <axis = 1> (a, order)
    k = Conv <pads = [1, 1, 1, 1]> (g, u)
    s = Add (k, a)
    y = Conv (s, v)
}""",
    "pad_channels": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w, float[32] b, float[48, 32, 3, 3] u, float[4, 48, 1, 1] v,
    int64[8] pads = {0, 8, 0, 0, 0, 8, 0, 0}, float fill = {0.5}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    wide = Pad (a, pads, fill)
    k = Conv <pads = [1, 1, 1, 1]> (a, u)
    s = Add (wide, k)
    y = Conv (s, v)
}""",
    "group_counts": """(float[N, 6, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[48, 3, 3, 3] w1, float[48] b, float[48, 8, 3, 3] w2, float[96, 1, 3, 3] w3, float[48, 24,
    1, 1] w4,
    float[4, 48, 1, 1] v>
{
    h = Conv <group = 2, pads = [1, 1, 1, 1]> (x, w1, b)
    a = Relu (h)
    k = Conv <group = 6, pads = [1, 1, 1, 1]> (a, w2)
    c = Relu (k)
    d = Conv <group = 48, pads = [1, 1, 1, 1]> (c, w3)
    e = Conv <group = 4> (d, w4)
    y = Conv (e, v)
}""",
    "depth_to_space": """(float[N, 3, 8, 8] x) => (float[N, 3, 16, 16] y)
<float[96, 3, 3, 3] w, float[96] b, float[64, 24, 3, 3] u, float[3, 16, 3, 3] v>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    d = DepthToSpace <blocksize = 2, mode = "DCR"> (h)
    a = Clip (d)
    k = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a, u)
    e = DepthToSpace <blocksize = 2, mode = "CRD"> (k)
    y = Conv <pads = [1, 1, 1, 1]> (e, v)
}""",
    "constant_factors": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 3, 3, 3] w, float[32, 1, 1] m, float[1, 32, 1, 1] s, float one = {1.5}, float[1, 32,
    8, 8] full,
    float[32, 32, 1, 1] u,
    float[4, 32, 1, 1] v, float[8] last>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w)
    a = Mul (h, m)
    b = Add (a, s)
    c = Max (b, one)
    k = Conv (c, u)
    d = Sub (k, full)
    e = Div (d, last)
    y = Conv (e, v)
}""",
    "frozen_branch": """(float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y, float[N, 5, 8, 8] best)
<float[32, 3, 3, 3] w, float[32] b, float[16, 32, 3, 3] u, float[64, 32, 3, 3] t, float[4, 64,
    1, 1] v,
    int64[1] k = {5}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    r = Conv <pads = [1, 1, 1, 1]> (a, u)
    best, where = TopK <axis = 1> (r, k)
    q = Conv <pads = [1, 1, 1, 1]> (a, t)
    c = Relu (q)
    y = Conv (c, v)
}""",
    "hidden_output": """(float[N, 16] x) => (float[N, 4] y, float[N, 32] features)
<float[16, 64] w, float[64] b, float[64, 32] u, float[32, 48] t, float[48, 4] v>
{
    h = Gemm (x, w, b)
    a = Relu (h)
    features = MatMul (a, u)
    k = MatMul (features, t)
    c = Relu (k)
    y = MatMul (c, v)
}""",
}

SHAPES: Texts = {
    "shape_arithmetic": """(float[N, 3, H, W] x) => (float[N, 4] y)
<float[32, 3, 3, 3] w, float[32] b, float[32, 4] v, int64[1] zero = {0}, int64[1] one = {1},
    int64[1] minus = {-1}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    shape = Shape (a)
    n = Gather <axis = 0> (shape, zero)
    c = Gather <axis = 0> (shape, one)
    target = Concat <axis = 0> (n, c, minus)
    flat = Reshape (a, target)
    m = ReduceMean <keepdims = 0> (flat, minus)
    y = MatMul (m, v)
}""",
    "expand_and_tile": """(float[N, 1, 8, 8] x) => (float[N, 4, 8, 8] y)
<float[32, 1, 3, 3] w, float[32] b, float[4, 64, 1, 1] v, int64[4] times = {1, 2, 1, 1},
    int64[4] wide = {1, 64, 1, 1}, float[64, 1, 1] g>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    t = Tile (a, times)
    spread = Expand (x, wide)
    s = Add (t, spread)
    m = Mul (s, g)
    y = Conv (m, v)
}""",
    "flatten_unflatten": """(float[N, 3, 8, 8] x) => (float[N, 3, 8, 8] y)
<float[32, 3, 3, 3] w, float[32] b, float[512, 64] d, float[64, 512] u, float[32, 3, 2, 2] v,
    int64[2] flat = {0, -1},
    int64[4] maps = {-1, 32, 4, 4}>
{
    h = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (x, w, b)
    a = Relu (h)
    f = Reshape (a, flat)
    z = MatMul (f, d)
    c = Relu (z)
    g = MatMul (c, u)
    r = Relu (g)
    m = Reshape (r, maps)
    y = ConvTranspose <strides = [2, 2]> (m, v)
}""",
    "resize_like": """(float[N, 3, H, W] x) => (float[N, 4, H2, W2] y)
<float[32, 3, 3, 3] w, float[32] b, float[48, 32, 3, 3] u, float[4, 80, 1, 1] v, int64[1] two = {2},
    int64[1] four = {4},
    int64[1] zero = {0}>
{
    h = Conv <pads = [1, 1, 1, 1]> (x, w, b)
    a = Relu (h)
    d = Conv <pads = [1, 1, 1, 1], strides = [2, 2]> (a, u)
    shape_a = Shape (a)
    space = Slice (shape_a, two, four, zero)
    shape_d = Shape (d)
    front = Slice (shape_d, zero, two, zero)
    sizes = Concat <axis = 0> (front, space)
    big = Resize <mode = "nearest"> (d, , , sizes)
    c = Concat <axis = 1> (a, big)
    y = Conv (c, v)
}""",
    "squeeze_transpose": """(float[N, 16, 12] x) => (float[N, 12, 4] y)
<float[48, 16, 1, 3] w, float[48] b, float[48, 64] u, float[64, 4] v, int64[1] two = {2}>
{
    wide = Unsqueeze (x, two)
    h = Conv <pads = [0, 1, 0, 1]> (wide, w, b)
    a = HardSigmoid (h)
    narrow = Squeeze (a, two)
    t = Transpose <perm = [0, 2, 1]> (narrow)
    k = MatMul (t, u)
    c = Selu (k)
    y = MatMul (c, v)
}""",
    "masked": """(float[N, 10, 16] x, bool[N, 10] mask) => (float[N, 4] y)
<float[16, 48] w, float[48] b, float[48, 4] v, int64[1] last = {-1}, int64[1] middle = {1},
    float low = {-9.0}>
{
    h = MatMul (x, w)
    hb = Add (h, b)
    wide = Unsqueeze (mask, last)
    kept = Where (wide, hb, low)
    best = ReduceMax <keepdims = 0> (kept, middle)
    a = Tanh (best)
    y = MatMul (a, v)
}""",
    "branch_if": """(float[N, 16] x, bool flag) => (float[N, 4] y)
<float[16, 48] w, float[48] b, float[48, 64] u, float[64, 4] v>
{
    h = Gemm (x, w, b)
    a = Relu (h)
    c = If (flag) <
        then_branch = yes () => (float[N, 48] p) { p = Relu (a) },
        else_branch = no () => (float[N, 48] q) { q = Neg (a) }
    >
    k = MatMul (c, u)
    r = Relu (k)
    y = MatMul (r, v)
}""",
}

RECURRENT: Texts = {
    "lstm_states": """(float[12, N, 16] x, float[1, N, 32] h0) => (float[12, N, 4] y)
<float[1, 160, 16] w, float[1, 160, 40] r, float[1, 320] b, float[32, 40] p, float[40, 4] v,
    int64[1] one = {1}>
{
    i = MatMul (h0, p)
    out, hn, cn = LSTM <hidden_size = 40> (x, w, r, b, , i)
    s = Squeeze (out, one)
    y = MatMul (s, v)
}""",
    "gru_two_directions": """(float[12, N, 16] x) => (float[N, 4] y)
<float[16, 32] e, float[2, 120, 32] w, float[2, 120, 40] r, float[2, 240] b, float[80, 4] v,
    int64[2] rows = {-1, 80}>
{
    x1 = MatMul (x, e)
    out, hn = GRU <hidden_size = 40, direction = "bidirectional", linear_before_reset = 1> (x1,
        w, r, b)
    t = Transpose <perm = [1, 0, 2]> (hn)
    f = Reshape (t, rows)
    y = MatMul (f, v)
}""",
}


def graphs() -> Iterator[tuple[str, Callable[[Path], None]]]:
    for texts in (WEIGHTS, CHANNELS, SHAPES, RECURRENT):
        yield from text_graphs(texts, 18, 9)
    yield from text_graphs(
        {f"{k}_in_constants": CHANNELS[k] for k in ("concat_twice", "split_unequal")},
        18,
        9,
        True,
    )
