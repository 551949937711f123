"""Weight clipping: each channel's range of least error, and weights rounded to its grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._calibrated.grid import TargetGrids, best_scales, clipped_scales, nearest
from ._calibrated.select import (
    layers_to_round,
    require_named_layers,
    why_not_rounded,
)


@dataclass(frozen=True)
class ClipWeights(Pass):
    """Round weights within the clipping range of least squared error for each output channel.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights; needs no data. Tries
    ranges from 40 to 100 % of max|w| and clips the weights outside the best one. `quant` with the
    same bits then finds exactly the same integers.

    Shapes: weight (M, C, *K) or (K, N) -> same.

    Errors: UsageError for a pattern that matches no layer.

    Stats: `layers`, `weights`, `clipped` (counts; the last one of channels).

    Source: Banner et al., Post training 4-bit quantization of convolutional networks for
    rapid-deployment, NeurIPS 2019 (arXiv:1810.05723), with a search instead of the closed form.
    """

    name: ClassVar[str] = "clip-weights"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    bits: int = Option(8, "Bits per weight, as quant will store it.", low=2, high=8)
    include: tuple[str, ...] = Option(
        (), "Only layers whose node, weight or output name matches a pattern."
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        require_named_layers(
            self.name,
            model,
            self.include,
            self.exclude,
        )
        grid_of = TargetGrids(self.bits, context.target)
        layers, declined = layers_to_round(
            model,
            lambda layer: why_not_rounded(layer, grid_of(layer)),
            self.include,
            self.exclude,
        )
        weights = 0
        clipped = 0
        for layer in layers:
            rows = layer.rows()
            grid = grid_of(layer)
            scales = clipped_scales(rows, grid)
            layer.set_codes(nearest(rows, scales, grid), scales)
            weights += rows.size
            # best_scales is what `quant` would take by itself, cuts of pairs weighed in
            narrower = scales < best_scales(rows, grid)
            clipped += int(narrower.sum())
        stats = {"layers": len(layers), "weights": weights, "clipped": clipped}
        return PassOutcome(
            len(layers),
            dict(stats),
            declined,
        )
