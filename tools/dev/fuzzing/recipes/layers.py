"""Layers of networks: linear, convolutions, pools, normalizations, recurrent, quantized, fused."""

from __future__ import annotations

import numpy as np

from ..builder import FLOATS, MICROSOFT, Builder, Rejected, Value
from .registry import recipe


def weight(b: Builder, x: Value, shape: tuple[int, ...]) -> Value:
    """A constant of moderate size; sometimes behind Transpose, or computed from others."""
    fan_in = max(int(np.prod(shape[1:])), 1)
    array = (b.array(x.dtype, shape) / np.sqrt(fan_in)).astype(x.array.dtype)
    kind = b.random.random()
    if kind < 0.08 and len(shape) == 2:
        return b.node("Transpose", [b.constant(array.T.copy())], perm=[1, 0])
    if kind < 0.14:
        factor = b.constant(np.asarray(0.5, x.array.dtype))
        return b.node("Mul", [b.constant(array), factor])
    return b.constant(array)


def vector(b: Builder, x: Value, length: int, positive: bool = False) -> Value:
    array = b.array(x.dtype, (length,))
    if positive:
        array = np.abs(array) + np.asarray(0.5, x.array.dtype)
    return b.constant(array)


@recipe(6)
def matmul(b: Builder) -> None:
    x = b.pick(rank=(1, 2, 3, 4), test=lambda v: v.array.size > 0)
    y = b.node("MatMul", [x, weight(b, x, (x.shape[-1], b.number(1, 6)))])
    if b.chance(0.5):
        b.node("Add", [y, vector(b, y, y.shape[-1] if y.rank else 1)])


@recipe(2)
def matmul_of_two(b: Builder) -> None:
    x = b.pick(rank=(2, 3))
    order = [*range(x.rank - 2), x.rank - 1, x.rank - 2]
    y = b.node("Transpose", [x], perm=order)
    b.node("MatMul", [x, y])


@recipe(4)
def gemm(b: Builder) -> None:
    x = b.pick(rank=(2,), test=lambda v: v.array.size > 0)
    trans_a, trans_b = (int(b.chance(p)) for p in (0.2, 0.5))
    rows, depth = x.shape[::-1] if trans_a else x.shape
    width = b.number(1, 6)
    shape = (width, depth) if trans_b else (depth, width)
    inputs = [x, weight(b, x, shape)]
    if b.chance(0.7):
        bias = b.one_of([(width,), (1, width), (rows, 1), (1,), ()])
        inputs.append(b.constant(b.array(x.dtype, bias)))
    attributes = {"transA": trans_a, "transB": trans_b}
    if b.chance(0.2):
        attributes["alpha"] = 0.5
    if b.chance(0.2):
        attributes["beta"] = 2.0
    b.node("Gemm", inputs, **attributes)


@recipe(0.8)
def einsum(b: Builder) -> None:
    x = b.pick(rank=(2, 3), test=lambda v: v.array.size > 0)
    letters = "abc"[: x.rank]
    w = weight(b, x, (x.shape[-1], b.number(1, 4)))
    equation = f"{letters},{letters[-1]}z->{letters[:-1]}z"
    b.node("Einsum", [x, w], equation=equation)


def image(b: Builder, low: int = 3) -> Value:
    """A feature map (N, C, H, W) or (N, C, L)."""
    fits = lambda v: v.array.size > 0 and min(v.shape[2:]) >= low  # noqa: E731
    try:
        return b.pick(("float32",), rank=(3, 4), test=fits)
    except Rejected:
        shape = (b.number(1, 2), b.number(1, 4), *[b.number(low, 6)] * b.number(1, 2))
        return b.leaf(b.array("float32", shape))


def window(b: Builder, x: Value) -> dict[str, object]:
    """Attributes of strides, pads and dilations that fit a window of 3."""
    spatial = x.rank - 2
    attributes: dict[str, object] = {}
    if b.chance(0.4):
        attributes["strides"] = [b.number(1, 2) for _ in range(spatial)]
    if b.chance(0.3):
        attributes["auto_pad"] = b.one_of(["SAME_UPPER", "SAME_LOWER", "VALID"])
    elif b.chance(0.5):
        attributes["pads"] = [b.number(0, 1) for _ in range(2 * spatial)]
    return attributes


@recipe(6)
def conv(b: Builder) -> Value:
    x = image(b)
    spatial = x.rank - 2
    channels = x.shape[1]
    group = b.one_of([1, 1, channels])
    out = group * b.number(1, 3)
    kernel = [b.one_of([1, 2, 3]) for _ in range(spatial)]
    inputs = [x, weight(b, x, (out, channels // group, *kernel))]
    if b.chance(0.5):
        inputs.append(vector(b, x, out))
    attributes = window(b, x)
    if b.chance(0.6):
        attributes["kernel_shape"] = kernel
    return b.node("Conv", inputs, group=group, **attributes)


@recipe(1.5)
def conv_transpose(b: Builder) -> Value:
    x = image(b, low=2)
    spatial = x.rank - 2
    out = b.number(1, 3)
    inputs = [x, weight(b, x, (x.shape[1], out, *[2] * spatial))]
    if b.chance(0.5):
        inputs.append(vector(b, x, out))
    return b.node("ConvTranspose", inputs, strides=[b.number(1, 2)] * spatial)


@recipe(2.5)
def pool(b: Builder) -> None:
    x = image(b)
    op = b.one_of(
        ["MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "LpPool"]
    )
    if op.startswith("Global"):
        b.node(op, [x])
        return
    attributes = window(b, x)
    if op == "AveragePool" and b.chance(0.5):
        attributes["count_include_pad"] = 1
    b.node(op, [x], kernel_shape=[b.number(2, 3)] * (x.rank - 2), **attributes)


@recipe(4)
def batch_normalization(b: Builder) -> None:
    """After a convolution, mostly: there it tempts to be folded."""
    if b.chance(0.6):
        x = conv(b) if b.chance(0.8) else conv_transpose(b)
    else:
        x = b.pick(rank=(2, 3, 4), test=lambda v: v.array.size > 0)
    parts = [vector(b, x, x.shape[1], positive=at in (0, 3)) for at in range(4)]
    b.node("BatchNormalization", [x, *parts], epsilon=b.one_of([1e-5, 1e-3]))
    # another user of what a fold would change
    if b.chance(0.15):
        b.node("Relu", [x])


@recipe(1.5)
def normalization(b: Builder) -> None:
    op = b.one_of(
        ["LayerNormalization", "InstanceNormalization", "GroupNormalization", "LRN"]
    )
    x = b.pick(rank=(3, 4), test=lambda v: v.array.size > 8 and v.shape[-1] > 2)
    if op == "LRN":
        if x.rank != 4:
            raise Rejected("LRN is of images")
        b.node(op, [x], size=3)
        return
    if op == "LayerNormalization":
        inputs = [x, vector(b, x, x.shape[-1])]
        if b.chance(0.7):
            inputs.append(vector(b, x, x.shape[-1]))
        b.node(op, inputs, axis=-1)
        return
    channels = x.shape[1]
    extra = {"num_groups": 1} if op == "GroupNormalization" else {}
    b.node(op, [x, vector(b, x, channels), vector(b, x, channels)], **extra)


@recipe(0.8)
def by_hand_normalization(b: Builder) -> None:
    """Layer normalization of primitive ops, which runtimes fuse."""
    x = b.pick(
        ("float32",), rank=(2, 3), test=lambda v: v.array.size and v.shape[-1] > 2
    )
    by_input = b.opset >= 18

    def mean(v: Value) -> Value:
        if by_input:
            return b.node("ReduceMean", [v, b.ints(-1)])
        return b.node("ReduceMean", [v], axes=[-1])

    centred = b.node("Sub", [x, mean(x)])
    square = b.node("Pow", [centred, b.constant(np.float32(2))])
    spread = b.node("Add", [mean(square), b.constant(np.float32(1e-5))])
    scaled = b.node("Div", [centred, b.node("Sqrt", [spread])])
    b.node("Mul", [scaled, vector(b, x, x.shape[-1])])


@recipe(1)
def attention(b: Builder) -> None:
    x = b.pick(("float32",), rank=(3,), test=lambda v: v.array.size > 0)
    width = x.shape[-1]
    query, key, value = (
        b.node("MatMul", [x, weight(b, x, (width, 4))]) for _ in range(3)
    )
    scores = b.node("MatMul", [query, b.node("Transpose", [key], perm=[0, 2, 1])])
    scaled = b.node("Div", [scores, b.constant(np.float32(2))])
    b.node("MatMul", [b.node("Softmax", [scaled], axis=-1), value])


@recipe(0.8)
def recurrent(b: Builder) -> None:
    x = b.pick(("float32",), rank=(3,), test=lambda v: v.array.size > 0)
    op, gates = b.one_of([("LSTM", 4), ("GRU", 3), ("RNN", 1)])
    hidden, width = 3, x.shape[-1]
    directions = b.number(1, 2)
    inputs = [
        x,
        weight(b, x, (directions, gates * hidden, width)),
        weight(b, x, (directions, gates * hidden, hidden)),
    ]
    if b.chance(0.6):
        inputs.append(b.constant(b.array(x.dtype, (directions, 2 * gates * hidden))))
    direction = "bidirectional" if directions == 2 else b.one_of(["forward", "reverse"])
    b.nodes(op, inputs, b.number(1, 2), hidden_size=hidden, direction=direction)


@recipe(1.2)
def quantized(b: Builder) -> None:
    """A QDQ pair, or integers multiplied; on exact values alone, as rounding jumps."""
    kind = b.random.random()
    dtype = b.one_of([np.uint8, np.int8])
    zero = b.constant(np.asarray(b.one_of([0, 3]), dtype))
    if kind < 0.5:
        x = b.pick(("float32",), rank=(1, 2, 3), test=lambda v: v.exact)
        scale = b.constant(np.float32(0.05))
        q = b.node("QuantizeLinear", [x, scale, zero])
        b.node("DequantizeLinear", [q, scale, zero])
    elif kind < 0.8:
        x = b.pick(("uint8",), rank=(2,), test=lambda v: v.array.size > 0)
        w = b.constant(b.random.integers(0, 9, (x.shape[1], 3)).astype(dtype))
        b.node("MatMulInteger", [x, w])
    else:
        x = b.pick(
            ("float32",), rank=(1, 2), test=lambda v: v.exact and v.array.size > 0
        )
        b.nodes("DynamicQuantizeLinear", [x], 3)


@recipe(1.2)
def fused(b: Builder) -> None:
    """Ops of ONNX Runtime's own domain."""
    x = b.pick(("float32",), rank=(2, 3), test=lambda v: v.array.size > 0)
    width = x.shape[-1]
    kind = b.one_of(
        ["Gelu", "FastGelu", "QuickGelu", "BiasGelu", "FusedMatMul", "SkipLayer"]
    )
    if kind == "BiasGelu":
        b.node(kind, [x, vector(b, x, width)], domain=MICROSOFT)
    elif kind == "FusedMatMul":
        w = weight(b, x, (4, width))
        b.node(kind, [x, w], domain=MICROSOFT, transB=1, alpha=0.5)
    elif kind == "SkipLayer":
        if x.rank != 3 or width < 3:
            raise Rejected("of (N, L, D)")
        scale = vector(b, x, width)
        b.node("SkipLayerNormalization", [x, x, scale], domain=MICROSOFT, epsilon=1e-5)
    else:
        b.node(kind, [x], domain=MICROSOFT)


@recipe(0.5)
def double_weights(b: Builder) -> None:
    """One weight for two layers."""
    x = b.pick(FLOATS, rank=(2, 3), test=lambda v: v.array.size > 0)
    w = weight(b, x, (x.shape[-1], x.shape[-1]))
    y = b.node("Relu", [b.node("MatMul", [x, w])])
    b.node("MatMul", [y, w])
