"""Output shapes of ops for which onnx infers none: those of ONNX Runtime's own domain, odd forms of
standard ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import onnx_ir as ir

MICROSOFT = "com.microsoft"

Shape = tuple[int, ...]
Shaper = Callable[[ir.Node, Sequence[Shape | None]], list[Shape | None]]

SHAPES: dict[tuple[str, str], Shaper] = {}
"""By (domain, op): from the shapes of the inputs, None where unknown or absent, to those of the
outputs.
"""


def shaper(*ops: str, domain: str = "") -> Callable[[Shaper], Shaper]:
    """Enter how the named ops make the shapes of their outputs."""

    def enter(function: Shaper) -> Shaper:
        SHAPES.update({(domain, op): function for op in ops})
        return function

    return enter


def at(inputs: Sequence[Shape | None], index: int) -> Shape | None:
    """The shape of an input that may be absent."""
    return inputs[index] if index < len(inputs) else None


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
def as_first(node: ir.Node, inputs: Sequence[Shape | None]) -> list[Shape | None]:
    """One tensor like the first input."""
    return [at(inputs, 0)]


@shaper("SkipLayerNormalization", "SkipSimplifiedLayerNormalization", domain=MICROSOFT)
def skip_norm(node: ir.Node, inputs: Sequence[Shape | None]) -> list[Shape | None]:
    """The normalised sum; mean and deviation (N, L, 1); the sum."""
    data = at(inputs, 0)
    column = None if data is None else (*data[:-1], 1)
    return [data, column, column, data]


@shaper("FusedMatMul", domain=MICROSOFT)
def fused_matmul(node: ir.Node, inputs: Sequence[Shape | None]) -> list[Shape | None]:
    """As MatMul, with the last two axes of either side swapped where asked."""
    left, right = at(inputs, 0), at(inputs, 1)
    if left is None or right is None or min(len(left), len(right)) < 2:
        return []
    rows = left[-1] if node.attributes.get_int("transA", 0) else left[-2]
    columns = right[-2] if node.attributes.get_int("transB", 0) else right[-1]
    rank = max(len(left), len(right)) - 2
    batch = [(1,) * (rank + 2 - len(side)) + side[:-2] for side in (left, right)]
    return [(*(max(pair) for pair in zip(*batch, strict=True)), rows, columns)]


@shaper("MultiHeadAttention", domain=MICROSOFT)
def heads_attention(
    node: ir.Node, inputs: Sequence[Shape | None]
) -> list[Shape | None]:
    """Separate queries (N, L, h*d) and values (N, S, h*v) -> (N, L, h*v)."""
    query, value = at(inputs, 0), at(inputs, 2)
    plain = query is not None and value is not None and len(query) == len(value) == 3
    return [(*query[:2], value[2])] if plain and query and value else []


@shaper("Attention", domain=MICROSOFT)
def packed_attention(
    node: ir.Node, inputs: Sequence[Shape | None]
) -> list[Shape | None]:
    """Input (N, L, C), weight (C, q + k + v) -> (N, L, v)."""
    data, weight = at(inputs, 0), at(inputs, 1)
    if data is None or weight is None:
        return []
    sizes = node.attributes.get_ints("qkv_hidden_sizes", [weight[1] // 3] * 3)
    return [(*data[:-1], sizes[2])]
