"""Operators of ONNX Runtime that take float16: all their float operands, but for a few.

Where its CPU provider has a float32 kernel alone it casts by itself; others have one for float16.
"""

from __future__ import annotations

from dataclasses import dataclass

from ..._core.ops import MICROSOFT


@dataclass(frozen=True)
class SingleOperands:
    """Inputs and outputs, by index, that the operator has in float32 only."""

    inputs: frozenset[int] = frozenset()
    outputs: frozenset[int] = frozenset()


_NONE = SingleOperands()
_STATISTICS = SingleOperands(outputs=frozenset({1, 2}))
"""Mean and deviation of a normalisation."""

_CACHE_SCALES = SingleOperands(inputs=frozenset({12, 13}))
"""Scales of a cache that is stored in 8 bits."""

TAKES_HALF: dict[tuple[str, str], SingleOperands] = {
    (MICROSOFT, "Attention"): _NONE,
    (MICROSOFT, "BiasGelu"): _NONE,
    (MICROSOFT, "EmbedLayerNormalization"): _NONE,
    (MICROSOFT, "FastGelu"): _NONE,
    (MICROSOFT, "FusedConv"): _NONE,
    (MICROSOFT, "FusedGemm"): _NONE,
    (MICROSOFT, "FusedMatMul"): _NONE,
    (MICROSOFT, "GatherBlockQuantized"): _NONE,
    (MICROSOFT, "Gelu"): _NONE,
    (MICROSOFT, "GroupQueryAttention"): _CACHE_SCALES,
    (MICROSOFT, "MatMulNBits"): _NONE,
    (MICROSOFT, "MultiHeadAttention"): _NONE,
    (MICROSOFT, "QuickGelu"): _NONE,
    (MICROSOFT, "RotaryEmbedding"): _NONE,
    (MICROSOFT, "SkipLayerNormalization"): _STATISTICS,
    (MICROSOFT, "SkipSimplifiedLayerNormalization"): _STATISTICS,
    # which ONNX Runtime keeps among the operators of ONNX
    ("", "SimplifiedLayerNormalization"): SingleOperands(outputs=frozenset({1})),
}
"""By (domain, operator). Each runs in float16 in a test."""
