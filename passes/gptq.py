"""Column-wise weight rounding: later columns compensate for the error of earlier ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .. import UsageError
from ._base import Context, Effect, Option, PassOutcome
from ._calibrated.block_rounding import round_in_blocks
from ._calibrated.compensation import compensated
from ._calibrated.grid import GridOf
from ._calibrated.layers import Grams, PerChannel, Rows
from ._calibrated.rounding import RoundedLayer, damped
from ._calibrated.rounding_pass import RoundingPass
from ._quant.block_grids import BLOCK_BITS, BlockGrid
from ._quant.grids import Grid


@dataclass(frozen=True)
class Gptq(RoundingPass):
    """Round weights column by column; later columns compensate for the error of earlier ones.

    Effect: lossy. Touches Conv, Gemm and MatMul with constant float32 weights. Minimises each
    layer's squared output error over calibration data, by second-order updates from the Gram matrix
    of its inputs. The bias takes part as a column that is never rounded, so a layer without a bias
    gets one. Zeros, such as pruned weights, stay zero. `quant` with the same bits then finds
    exactly the same integers.

    With `block`, only Gemm and MatMul are rounded, on the grids of `quant(blocked)`. The scale of a
    block is chosen from its weights after they have compensated for the blocks before it, and no
    layer is given a bias.

    Shapes: weight (M, C, *K) or (K, N), bias (M,) -> same; one (K + 1, K + 1) Gram matrix per
    group.

    Errors: UsageError without calibration data, for `block` with other than 4 bits, or for a
    pattern that matches no layer; RefusedError if calibration meets NaN or infinity.

    Stats: `layers`, `weights` (counts), `gain_db` (dB by which the output error is lower than with
    plain rounding, mean over layers).

    Source: Frantar et al., GPTQ: Accurate Post-Training Quantization for Generative Pre-trained
    Transformers, ICLR 2023 (arXiv:2210.17323); convolutions as patches: Frantar et al., Optimal
    Brain Compression, NeurIPS 2022.
    """

    name: ClassVar[str] = "gptq"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "layers"

    block: int | None = Option(
        None,
        "Inputs that share a scale, as in quant(blocked); none: one scale per channel.",
        low=16,
        high=65_536,
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.block is not None and self.bits != BLOCK_BITS:
            raise UsageError(
                "gptq.block",
                f"weights of {self.bits} bits are not rounded in blocks",
                f"give bits={BLOCK_BITS}, or leave block out",
            )

    def run_on(self, model: ir.Model, context: Context, grid_of: GridOf) -> PassOutcome:
        if self.block is None:
            return super().run_on(model, context, grid_of)
        grid = BlockGrid(self.bits, self.block)
        rounded = round_in_blocks(
            model,
            context,
            grid,
            self.samples,
            self.damp,
            self.include,
            self.exclude,
        )
        return rounded.outcome

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
