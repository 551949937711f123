"""Bias correction: weights rounded as `quant` will, and the mean error taken off each bias."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._calibrated.grid import TargetGrids, best_scales, nearest, values_of
from ._calibrated.rounding import output_shift
from ._calibrated.select import (
    layers_to_round,
    moments_of,
    require_named_layers,
    why_not_rounded,
)
from ._core.edit import Edit


@dataclass(frozen=True)
class CorrectBias(Pass):
    """Round weights to the nearest points of `quant`'s grid and correct the bias by the mean error.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights: bias -= (Q(w) - w)
    E[x], where E[x] is the mean of the layer's inputs over the calibration data. A layer without a
    bias gets one. `quant` with the same bits then finds exactly the same integers. Put it before
    `quant`, instead of `gptq` or `round-weights`, which also correct the bias.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same.

    Errors: UsageError without calibration data, or for a pattern that matches no layer;
    RefusedError if calibration meets NaN or infinity.

    Stats: `layers`, `weights` (counts).

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019, section 4.2 and appendix D (arXiv:1906.04721), with means measured on data.
    """

    name: ClassVar[str] = "correct-bias"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    bits: int = Option(8, "Bits per weight, as quant will store it.", low=2, high=8)
    samples: int = Option(
        64, "Maximum number of calibration samples to use.", low=1, high=10_000_000
    )
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
        edit = Edit(model)
        changed = 0
        weights = 0
        moments = moments_of(
            model,
            context,
            layers,
            "mean",
            self.samples,
            declined,
        )
        for layer, mean in moments:
            rows = layer.rows()
            grid = grid_of(layer)
            scales = best_scales(rows, grid)
            codes = nearest(rows, scales, grid)
            difference = values_of(codes, scales) - rows
            # subtracted from the bias, the shift of the mean is gone
            shift = output_shift(difference, mean)
            layer.set_bias(layer.bias_row() - shift, edit)
            layer.set_codes(codes, scales)
            changed += 1
            weights += rows.size
        stats = {"layers": changed, "weights": weights}
        return PassOutcome(changed, dict(stats), declined)
