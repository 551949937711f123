"""Column-wise weight quantization: the weights of other inputs make up for each rounding loss."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from ._base import Effect
from ._calibrated.compensation import compensated
from ._calibrated.layers import Grams, PerChannel, Rows
from ._calibrated.rounding import RoundedLayer, damped
from ._calibrated.rounding_pass import RoundingPass
from ._quant.grids import Grid


@dataclass(frozen=True)
class Gptq(RoundingPass):
    """Round weights column by column, each column's error compensated by the columns after it.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights. Minimises each
    layer's squared output error over calibration data by second-order updates from its Gram matrix;
    the bias takes part as a column that is never rounded, so a layer without one gets one. Zeros,
    pruned perhaps, stay zero. `quant` with the same bits then finds exactly the same integers.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same; one (K + 1, K + 1) Gram matrix a group.

    Errors: UsageError without calibration data, or for a pattern that matches no layer;
    RefusedError if it meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `gain_db` (dB of output error below plain rounding, mean
    over layers).

    Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers, ICLR 2023 (arXiv:2210.17323); convolutions as patches: Frantar et al., Optimal
    Brain Compression, NeurIPS 2022.
    """

    name: ClassVar[str] = "gptq"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    def solve(
        self,
        rows: Rows,
        bias: PerChannel,
        gram: Grams,
        scales: PerChannel,
        grid: Grid,
    ) -> RoundedLayer:
        # damping keeps the Gram matrix invertible where inputs depend on each other
        invertible = damped(gram, self.damp)
        codes, shifted = compensated(
            rows,
            bias,
            invertible,
            scales,
            grid,
        )
        return RoundedLayer(codes, scales, shifted)
