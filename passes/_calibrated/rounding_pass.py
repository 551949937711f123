"""Base of the passes that round weights on calibration data: their options and walk over layers."""

from __future__ import annotations

import abc
from dataclasses import dataclass

import onnx_ir as ir

from .._base import Context, Option, Pass, PassOutcome
from .._core.graph import become
from .._quant.grids import Grid
from .._simplify.plain_weights import plain_weights
from .grid import GridOf, TargetGrids
from .layers import Grams, PerChannel, Rows
from .rounding import Clip, RoundedLayer, round_layers, scales_for
from .select import require_named_layers


@dataclass(frozen=True)
class RoundingPass(Pass):
    """Store for every layer the codes that `solve` finds."""

    bits: int = Option(8, "Bits of a weight, as quant will store it.", low=2, high=8)
    samples: int = Option(
        64, "Calibration samples to use at most.", low=1, high=10_000_000
    )
    damp: float = Option(
        0.01,
        "Share of its mean diagonal added to the diagonal of the inputs' Gram matrix.",
        low=1e-6,
        high=1.0,
    )
    clip: Clip = Option(
        "auto",
        "Search each channel's range for the least error; auto: where bits <= 4.",
    )
    include: tuple[str, ...] = Option(
        (), "Only layers whose node, weight or output name matches a pattern."
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        plain = plain_weights(model)
        require_named_layers(
            self.name,
            plain,
            self.include,
            self.exclude,
        )
        grids = TargetGrids(self.bits, context.target)
        outcome = self.run_on(plain, context, grids)
        if outcome.changed and plain is not model:
            become(model, plain)
        return outcome

    def run_on(self, model: ir.Model, context: Context, grid_of: GridOf) -> PassOutcome:
        """Run with each layer's grid given."""

        def solve(
            rows: Rows,
            bias: PerChannel,
            gram: Grams,
            grid: Grid,
        ) -> RoundedLayer:
            scales = scales_for(
                rows,
                gram,
                grid,
                self.clip,
            )
            return self.solve(
                rows,
                bias,
                gram,
                scales,
                grid,
            )

        return round_layers(
            model,
            context,
            grid_of,
            self.samples,
            self.include,
            self.exclude,
            solve,
        )

    @abc.abstractmethod
    def solve(
        self,
        rows: Rows,
        bias: PerChannel,
        gram: Grams,
        scales: PerChannel,
        grid: Grid,
    ) -> RoundedLayer:
        """Return what to store of a layer.

        Shapes: rows (M, K), bias (M,), gram (groups, K + 1, K + 1), scales (M,).
        """
