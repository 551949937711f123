"""Proof of a removal: the model without the channels computes what the whole model does with them shut off."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context
from .._dims.groups import kept_slots
from .._dims.reference import masked_reference
from .._dims.remove import remove_slots
from .._dims.solve import Solution
from .._dims.surgery import SurgeryError

TOLERANCE = 1e-3
"""Largest relative error (root mean square) that is float noise; a wrong slice is off by tenths."""


@dataclass(frozen=True)
class Verdict:
    """Whether a removal is right. `error`: relative, None where nothing could be run. `problem`: empty if it is."""

    error: float | None
    problem: str = ""


def removal(model: ir.Model, solution: Solution, channels: NDArray[np.intp]) -> ir.Model:
    """A copy of `model` without the given channels. Errors: SurgeryError."""
    pruned = model.clone()
    remove_slots(pruned, kept_slots(solution, channels), solution.relations.trace)
    return pruned


def judge(model: ir.Model, solution: Solution, channels: NDArray[np.intp], context: Context) -> Verdict:
    """Try the removal on copies: surgery, then both forms on the same feeds."""
    try:
        pruned = removal(model, solution, channels)
    except SurgeryError as failed:
        return Verdict(None, str(failed))
    found = context.difference(masked_reference(model, solution, kept_slots(solution, channels)), pruned)
    if found is None:
        return Verdict(None)
    error, failure, reference_failure = found
    if failure and not reference_failure:
        return Verdict(None, failure)
    if reference_failure:
        return Verdict(None)
    return Verdict(error, "" if error <= TOLERANCE else f"it is off by {error:.2g} of what the masked model gives")
