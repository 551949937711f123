"""How many weight pairs of a quantized model may saturate, and on which CPUs."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import onnx_ir as ir

from ...passes._core.integer_layers import offending_pairs, weight_pairs
from ...passes._core.saturation import SATURATING_CPUS


@dataclass(frozen=True)
class SaturatingPairs:
    """`by_layer`: offending pairs of each layer that has some. `pairs`: of all integer layers."""

    by_layer: dict[str, int]
    pairs: int

    @property
    def offending(self) -> int:
        return sum(self.by_layer.values())

    def words(self) -> str:
        """For people; empty where no kernel multiplies whole numbers."""
        return pair_words(self.offending, self.pairs) if self.pairs else ""

    def to_json(self) -> dict[str, Any]:
        """`offending_pairs`, `pairs`, `layers`: offending pairs by layer."""
        return {
            "offending_pairs": self.offending,
            "pairs": self.pairs,
            "layers": self.by_layer,
        }


def pair_words(offending_pairs: int, pairs: int, **_: Any) -> str:
    """How many of how many may saturate, where, and what mends it."""
    if not offending_pairs:
        return f"none of {pairs:,} weight pairs saturates on any CPU"
    return (
        f"{offending_pairs:,} of {pairs:,} weight pairs may saturate on {SATURATING_CPUS}: "
        "requantize mends it"
    )


def saturating_pairs(model: ir.Model) -> SaturatingPairs:
    """Count them; a model that is not quantized has none."""
    return SaturatingPairs(offending_pairs(model), weight_pairs(model))
