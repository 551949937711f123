"""Evidence of what a pruning costs: drift of the pruned model's outputs, measured on a run's data.

Without data the models are compared on made-up inputs. Data that layers were fitted to shows less
drift than data that they have not seen, so a part of it is kept back where there is enough.
"""

from __future__ import annotations

import math

import onnx_ir as ir

from .._base import Context, HoldsBack
from .._core.drift_budget import sqnr_of
from .._reconstruct.output_drift import drift_between

BROKEN = 10.0
"""SQNR in dB of the outputs below which a model says something else: the share of the labels that
ResNet-20 and EfficientNet-Lite0 change there is above a tenth.
"""

JUDGED = 128
"""Samples on which the drift of a result is measured, at most. Chosen by hand, not measured."""


def shared_out(context: Context) -> tuple[Context, Context]:
    """Contexts to fit layers in and to judge the fit in; the same one where none can be spared."""
    if context.has_data() and isinstance(context, HoldsBack):
        parts = context.held_back()
        if parts is not None:
            return parts
    return context, context


def measured_loss(whole: ir.Model, pruned: ir.Model, judging: Context) -> float:
    """Share of the outputs' mean square that the pruned model loses; NaN where nothing is run.

    Infinite where the pruned model does not run.
    """
    if judging.has_data():
        loss = drift_between(whole, pruned, judging, JUDGED)
        if not math.isnan(loss):
            return loss
    # without data, and of outputs that are no floats
    found = judging.difference(whole, pruned)
    if found is None or found.reference_failure:
        return math.nan
    return found.error**2


def warn_if_broken(loss: float, context: Context) -> None:
    """Warn of a result that no longer says what the model said. Nothing is known of NaN."""
    sqnr = sqnr_of(loss)
    if sqnr < BROKEN:
        context.warn(
            "prune-channels",
            f"the outputs keep {sqnr:.1f} dB of what the model gave: it says something else now; "
            "ratio=auto takes what the outputs bear",
        )
