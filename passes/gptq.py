"""Column-wise weight quantization: what rounding one input's weights loses, the other inputs' weights make up for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._calibrated.layers import Rows
from ._calibrated.rounding import Clip, Solution, compensated, damped, round_layers, scales_for


@dataclass(frozen=True)
class Gptq(Pass):
    """Round weights column by column, each column's error compensated by the columns after it.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights. Minimises each layer's squared output
    error over calibration data by second-order updates from its Gram matrix; the bias takes part as a column that is
    never rounded, so a layer without one gets one. Zeros, pruned perhaps, stay zero. `quant` with the same bits then
    finds exactly the same integers.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same; one (K + 1, K + 1) Gram matrix a group.

    Errors: UsageError without calibration data; RefusedError if it meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `gain_db` (dB of output error below plain rounding, mean over layers).

    Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained Transformers,
    ICLR 2023 (arXiv:2210.17323); convolutions as patches: Frantar et al., Optimal Brain Compression, NeurIPS 2022.
    """

    name: ClassVar[str] = "gptq"
    effect: ClassVar[Effect] = "lossy"

    bits: int = Option(8, "Bits of a weight, as quant will store it.", low=2, high=8)
    samples: int = Option(64, "Calibration samples to use at most.", low=1, high=10_000_000)
    damp: float = Option(0.01, "Share of the Gram matrix's mean diagonal added to its diagonal.", low=1e-6, high=1.0)
    clip: Clip = Option("auto", "Search each channel's range for the least error; auto: where bits <= 4.")
    include: tuple[str, ...] = Option((), "Only layers whose node, weight or output name matches a pattern.")
    exclude: tuple[str, ...] = Option((), "Leave out layers whose node, weight or output name matches a pattern.")

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        def solve(rows: Rows, bias: Rows, gram: Rows) -> Solution:
            scales = scales_for(rows, gram, self.bits, self.clip)
            codes, shifted = compensated(rows, bias, damped(gram, self.damp), scales, self.bits)
            return Solution(codes, scales, shifted)

        return round_layers(model, context, self.bits, self.samples, self.include, self.exclude, solve)
