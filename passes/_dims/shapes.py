"""Output shapes of ops for which onnx infers none.

They are those of ONNX Runtime's own domain, and odd forms of standard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

from .._core.ops import MICROSOFT

Shape = tuple[int, ...]
Shapes = Sequence[Shape | None]
Shaper = Callable[[ir.Node, Shapes], list[Shape | None]]

SHAPES: dict[tuple[str, str], Shaper] = {}
"""By (domain, op): from the shapes of the inputs, None where unknown or absent, to those of the
outputs.
"""


def shaper(*ops: str, domain: str = "") -> Callable[[Shaper], Shaper]:
    """Enter a function from input to output shapes for the named ops."""

    def enter(function: Shaper) -> Shaper:
        for op in ops:
            SHAPES[domain, op] = function
        return function

    return enter


def at(inputs: Shapes, index: int) -> Shape | None:
    """Shape of an input that may be absent."""
    if index >= len(inputs):
        return None
    return inputs[index]


@shaper(
    "BatchNormalization",
    "GroupNormalization",
    "MeanVarianceNormalization",
    "SimplifiedLayerNormalization",
)
@shaper(
    "BiasGelu",
    "BiasAdd",
    "FastGelu",
    "Gelu",
    "QuickGelu",
    "RotaryEmbedding",
    domain=MICROSOFT,
)
def as_first(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """One tensor like the first input."""
    return [at(inputs, 0)]


@shaper(
    "SkipLayerNormalization",
    "SkipSimplifiedLayerNormalization",
    domain=MICROSOFT,
)
def skip_norm(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """The normalised sum; mean and deviation (N, L, 1); the sum."""
    data = at(inputs, 0)
    column = None
    if data is not None:
        column = (*data[:-1], 1)
    return [data, column, column, data]


@shaper(
    "FusedMatMul",
    "FusedMatMulActivation",
    domain=MICROSOFT,
)
def fused_matmul(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """As MatMul, with the last two axes of either side swapped where asked."""
    left = at(inputs, 0)
    right = at(inputs, 1)
    if left is None or right is None:
        return []
    if len(left) < 2 or len(right) < 2:
        return []
    flip_left = node.attributes.get_int("transA", 0)
    flip_right = node.attributes.get_int("transB", 0)
    rows = left[-1] if flip_left else left[-2]
    columns = right[-2] if flip_right else right[-1]
    rank = max(len(left), len(right)) - 2
    batch = []
    for back in range(-rank, 0):
        # of two sizes one is 1, or both are the same
        size_left = _batch_size(left, back)
        size_right = _batch_size(right, back)
        batch.append(max(size_left, size_right))
    return [(*batch, rows, columns)]


def _batch_size(shape: Shape, back: int) -> int:
    """Size of a batch axis counted from the last one (-1); 1 where the tensor has none."""
    batch = shape[:-2]
    if -back > len(batch):
        return 1
    return batch[back]


@shaper("MultiHeadAttention", domain=MICROSOFT)
def heads_attention(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """Separate queries (N, L, h*d) and values (N, S, h*v) -> (N, L, h*v)."""
    query = at(inputs, 0)
    value = at(inputs, 2)
    if query is None or value is None:
        return []
    if len(query) != 3 or len(value) != 3:
        return []
    return [(*query[:2], value[2])]


@shaper("Attention", domain=MICROSOFT)
def packed_attention(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """Input (N, L, C), weight (C, q + k + v) -> (N, L, v)."""
    data = at(inputs, 0)
    weight = at(inputs, 1)
    if data is None or weight is None:
        return []
    # queries, keys and values are of one size unless the attribute says otherwise
    third = weight[1] // 3
    equal = [third] * 3
    sizes = node.attributes.get_ints("qkv_hidden_sizes", equal)
    return [(*data[:-1], sizes[2])]


@shaper("GroupQueryAttention", domain=MICROSOFT)
def grouped_attention(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """Queries (N, L, g*k*d) or all of queries, keys and values (N, L, (g+2)*k*d).

    -> (N, L, g*k*d), and keys and values so far (N, k, P + L, d).
    """
    query = at(inputs, 0)
    if query is None or len(query) != 3:
        return []
    batch, length, width = query
    queries = node.attributes.get_int("num_heads", 1)
    keys = node.attributes.get_int("kv_num_heads", 1)
    is_packed = at(inputs, 1) is None
    heads = queries + 2 * keys if is_packed else queries
    size = width // heads
    past = at(inputs, 3)
    total = length if past is None else past[2] + length
    cache = (batch, keys, total, size)
    scores = (batch, queries, length, total)
    return [(batch, length, queries * size), cache, cache, scores]


@shaper("MatMulNBits", domain=MICROSOFT)
def blocked_product(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """(..., K) -> (..., N)."""
    data = at(inputs, 0)
    if data is None:
        return []
    return [(*data[:-1], node.attributes.get_int("N", 0))]


@shaper("GatherBlockQuantized", domain=MICROSOFT)
def blocked_rows(node: ir.Node, inputs: Shapes) -> list[Shape | None]:
    """As Gather of the table that the codes stand for: bytes hold several of them."""
    table = at(inputs, 0)
    indices = at(inputs, 1)
    stored = node.inputs[0]
    if table is None or indices is None or stored is None:
        return []
    in_an_element = 1
    if stored.dtype == ir.DataType.UINT8:
        bits = node.attributes.get_int("bits", 4)
        in_an_element = 8 // bits
    axis = node.attributes.get_int("gather_axis", 0)
    axis = axis % len(table)
    columns = table[-1] * in_an_element
    unpacked = (*table[:-1], columns)
    before = unpacked[:axis]
    behind = unpacked[axis + 1 :]
    return [(*before, *indices, *behind)]
