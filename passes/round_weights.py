"""Learned rounding: each weight goes up or down, whichever lowers the layer's output error more."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._base import Effect, Option
from ._calibrated.descent import descended
from ._calibrated.grid import values_of
from ._calibrated.layers import Grams, PerChannel, Rows
from ._calibrated.rounding import RoundedLayer, covariance, damped, output_shift
from ._calibrated.rounding_pass import RoundingPass
from ._quant.grids import Grid


@dataclass(frozen=True)
class RoundWeights(RoundingPass):
    """Round each weight up or down, by descent on the layer's output error.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights. Solves AdaRound's
    layer-wise problem, min (dW) H (dW)^T over up/down choices, without its relaxation: it starts
    from nearest rounding and flips weights, input by input, until no flip lowers the error. H is
    the covariance of the inputs. The mean error goes into the bias, so a layer without one gets
    one. `quant` with the same bits finds exactly the same integers.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same; one (K, K) matrix per group while it is
    processed.

    Errors: UsageError without calibration data, or for a pattern that matches no layer;
    RefusedError if calibration meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `gain_db` (dB by which the output error is lower than with
    plain rounding, mean over layers).

    Source: Nagel et al., Up or Down? Adaptive Rounding for Post-Training Quantization, ICML 2020
    (arXiv:2004.10568), the quadratic form of its section 3.
    """

    name: ClassVar[str] = "round-weights"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    sweeps: int = Option(
        20, "Maximum number of sweeps over the weights.", low=1, high=1000
    )

    def solve(
        self,
        rows: Rows,
        bias: PerChannel,
        gram: Grams,
        scales: PerChannel,
        grid: Grid,
    ) -> RoundedLayer:
        # the bias takes the mean error, so that only the spread of the inputs counts
        hessian, mean = covariance(gram)
        hessian = damped(hessian, self.damp)
        codes = descended(
            rows,
            hessian,
            scales,
            grid,
            self.sweeps,
        )
        difference = values_of(codes, scales) - rows
        shift = output_shift(difference, mean)
        return RoundedLayer(codes, scales, bias - shift)
