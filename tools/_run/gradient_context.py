"""A run's context that can also differentiate, where torch is installed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import onnx_ir as ir

from ... import UsageError
from ...passes._core.context import Gradient
from ...runtime.context import RunContext


class DifferentiatingContext(RunContext):
    """Adds `passes._base.Differentiates` to a run: gradients by the torch frontend, loaded when
    first asked for.
    """

    def gradients(
        self, model: ir.Model, weights: Sequence[str], samples: int
    ) -> Mapping[str, Gradient]:
        """Gradients over the calibration feeds. Errors: UsageError without data or without
        torch.
        """
        if self.feeds is None:
            raise UsageError(
                "calibration",
                "no calibration data",
                "pass --data (command line) or data= (Python)",
            )
        from ...frontends.gradients import loss_gradients

        batches = ((batch.feeds, batch.labels) for batch in self.feeds)
        return loss_gradients(model, batches, weights, samples)
