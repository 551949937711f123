"""Learned rounding: each weight up or down, whichever lowers the layer's output error most."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._calibrated.layers import Rows
from ._calibrated.rounding import (
    Clip,
    Solution,
    covariance,
    damped,
    descended,
    output_shift,
    round_layers,
    scales_for,
)


@dataclass(frozen=True)
class RoundWeights(Pass):
    """Choose for each weight the grid point below or above it, by coordinate descent on the layer's output error.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights. Solves AdaRound's layer-wise problem,
    min (dW) H (dW)^T over up/down choices, without its relaxation: starting from nearest rounding, a weight flips
    wherever that lowers the error, input by input, until none does. H is the covariance of the inputs; the mean error
    goes into the bias, so a layer without one gets one. `quant` with the same bits finds exactly the same integers.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same; one (K, K) matrix a group while it is worked on.

    Errors: UsageError without calibration data; RefusedError if it meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `gain_db` (dB of output error below plain rounding, mean over layers).

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020 (arXiv:2004.10568),
    the quadratic form of its section 3.
    """

    name: ClassVar[str] = "round-weights"
    effect: ClassVar[Effect] = "lossy"

    bits: int = Option(8, "Bits of a weight, as quant will store it.", low=2, high=8)
    samples: int = Option(64, "Calibration samples to use at most.", low=1, high=10_000_000)
    sweeps: int = Option(20, "Times that each weight is looked at, at most.", low=1, high=1000)
    damp: float = Option(0.01, "Share of the covariance's mean diagonal added to its diagonal.", low=1e-6, high=1.0)
    clip: Clip = Option("auto", "Search each channel's range for the least error; auto: where bits <= 4.")
    include: tuple[str, ...] = Option((), "Only layers whose node, weight or output name matches a pattern.")
    exclude: tuple[str, ...] = Option((), "Leave out layers whose node, weight or output name matches a pattern.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        def solve(rows: Rows, bias: Rows, gram: Rows) -> Solution:
            scales = scales_for(rows, gram, self.bits, self.clip)
            hessian, mean = covariance(gram)
            codes = descended(rows, damped(hessian, self.damp), scales, self.bits, self.sweeps)
            return Solution(codes, scales, bias - output_shift(codes * scales[:, None] - rows, mean))

        return round_layers(model, context, self.bits, self.samples, self.include, self.exclude, solve)
