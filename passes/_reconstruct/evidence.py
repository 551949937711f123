"""Evidence of what a pruning costs: drift of the pruned model's outputs, measured on a run's data.

Without data the models are compared on made-up inputs. Data that layers were fitted to shows less
drift than data that they have not seen, so a part of it is kept back where there is enough.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from .._base import Context, HoldsBack
from .._core.output_drift import drift_between

JUDGED = 128
"""Samples on which the drift of a result is measured, at most. Chosen by hand, not measured."""

STANDARD_ERRORS = 2.0
"""Standard errors that are allowed for: EfficientNet-Lite0 kept 15.9 dB on 25 images, and on 220
others 15.2 dB in the median, 12.9 dB in all.
"""

FEW = 8
"""Samples that data counts as which layers were fitted to. Chosen by hand, not measured."""


@dataclass(frozen=True)
class Evidence:
    """Contexts to fit layers in, and to judge the fit in.

    `allowance`: factor by which data that is in neither may lose more than was measured.
    """

    fitting: Context
    judging: Context
    allowance: float

    @property
    def is_apart(self) -> bool:
        """True if no fit sees what judges it."""
        return self.judging is not self.fitting

    @classmethod
    def of(cls, context: Context) -> Evidence:
        """Evidence from the data of a context; both are that context where none can be spared."""
        if not context.has_data():
            return cls(context, context, 1.0)
        parts = context.held_back() if isinstance(context, HoldsBack) else None
        if parts is None:
            return cls(context, context, _allowance(FEW))
        return cls(parts.fitting, parts.judging, _allowance(parts.samples))


def _allowance(samples: int) -> float:
    """Upper end of a mean over so many samples, by the mean.

    Losses of single samples vary about as much as they are large.
    """
    return 1 + STANDARD_ERRORS / math.sqrt(samples)


def measured_loss(whole: ir.Model, pruned: ir.Model, judging: Context) -> float:
    """Share of the outputs' variation that the pruned model loses; NaN where nothing is run.

    Infinite where the pruned model does not run.
    """
    if judging.has_data():
        loss = drift_between(whole, pruned, judging, JUDGED, of_variation=True)
        if not math.isnan(loss):
            return loss
    # without data, and of outputs that are no floats
    found = judging.difference(whole, pruned)
    if found is None or found.reference_failure:
        return math.nan
    power = found.error**2
    return power if math.isnan(found.lost) else max(power, found.lost)
