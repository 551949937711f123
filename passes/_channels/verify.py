"""Proof of a removal: the model without the channels computes what the whole model does with them
shut off.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context
from .._core.infer import structural_problem
from .._dims.groups import kept_slots
from .._dims.reference import masked_reference
from .._dims.remove import remove_slots
from .._dims.solve import Attention, Solution
from .._dims.surgery import SurgeryError
from .branches import drop_branches

TOLERANCE = 1e-3
"""Largest relative error (root mean square) that is float noise; a wrong slice is off by tenths."""


@dataclass(frozen=True)
class Verdict:
    """Whether a removal is right. `error`: relative, None where nothing could be run. `problem`:
    empty if it is.
    """

    error: float | None
    problem: str = ""


def take_out(
    model: ir.Model,
    solution: Solution,
    channels: NDArray[np.intp],
    attention: Attention,
) -> None:
    """Remove channels from a model, in place, of which `solution` is the solution or that of its
    original.

    Errors: SurgeryError; the model is then spoilt.
    """
    kept = kept_slots(solution, channels)
    if any(len(slots) == 0 for axes in kept.values() for slots in axes.values()):
        solution, channels = drop_branches(model, kept, attention)
        kept = kept_slots(solution, channels)
    if len(channels):
        remove_slots(model, kept, solution.relations.trace)


def judge(
    model: ir.Model,
    solution: Solution,
    channels: NDArray[np.intp],
    context: Context,
    attention: Attention,
) -> Verdict:
    """Try a removal on copies: surgery, checker and strict inference, then both forms on the same
    feeds.
    """
    pruned = model.clone()
    try:
        take_out(pruned, solution, channels, attention)
    except SurgeryError as failed:
        return Verdict(None, str(failed))
    problem = structural_problem(pruned)
    if problem and not structural_problem(model):
        return Verdict(None, problem)
    found = context.difference(
        masked_reference(model, solution, kept_slots(solution, channels)), pruned
    )
    if found is None:
        return Verdict(None)
    error, failure, reference_failure = found
    if reference_failure:
        return _unproved(model, pruned, reference_failure, context)
    if failure:
        return Verdict(None, failure)
    return Verdict(
        error,
        ""
        if error <= TOLERANCE
        else f"it is off by {error:.2g} of what the masked model gives",
    )


def _unproved(
    model: ir.Model, pruned: ir.Model, failure: str, context: Context
) -> Verdict:
    """Where the masked model does not run: believed only if the whole model does not run here
    either.
    """
    found = context.difference(model, pruned)
    runs = found is not None and not found[2]
    return Verdict(None, f"its masked form does not run: {failure}" if runs else "")


def offenders(
    parts: Sequence[int], problem: Callable[[Sequence[int]], str]
) -> Sequence[int]:
    """The smallest run of `parts` found to be a problem by itself, by halving; the later half where
    only both are.
    """
    while len(parts) > 1:
        half = len(parts) // 2
        left, right = parts[:half], parts[half:]
        if problem(left):
            parts = left
        elif problem(right):
            parts = right
        else:
            return right
    return parts
