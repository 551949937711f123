"""Verification of a removal: the pruned model must compute what the masked model does.

The masked model is the whole model with the removed channels shut off; it shares no code with the
surgery.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context
from .._core.structure import structural_problem
from .._dims.groups import kept_slots
from .._dims.reference import masked_reference
from .._dims.remove import remove_slots
from .._dims.solve import Attention, Solution
from .._dims.surgery import Kept, SurgeryError
from .branches import drop_branches

TOLERANCE = 1e-3
"""Largest relative error (root mean square) that is float noise; a wrong slice is off by tenths."""


@dataclass(frozen=True)
class Verdict:
    """Result of a verification.

    `error`: relative, None where nothing could be run. `problem`: empty if the removal is right.
    """

    error: float | None
    problem: str = ""


def remove_channels(
    model: ir.Model,
    solution: Solution,
    channels: NDArray[np.intp],
    attention: Attention,
) -> None:
    """Remove channels from a model, in place.

    `solution`: that of the model, or of the original that it is a copy of. Errors: SurgeryError;
    the model is then spoilt.
    """
    kept = kept_slots(solution, channels)
    if _empties_an_axis(kept):
        # layers without inputs become their bias first; that makes another graph
        solution, channels = drop_branches(model, kept, attention)
        kept = kept_slots(solution, channels)
    if len(channels):
        remove_slots(model, kept, solution.relations.trace)


def _empties_an_axis(kept: Kept) -> bool:
    for axes in kept.values():
        sizes = [len(slots) for slots in axes.values()]
        if 0 in sizes:
            return True
    return False


def verify_removal(
    model: ir.Model,
    solution: Solution,
    channels: NDArray[np.intp],
    context: Context,
    attention: Attention,
) -> Verdict:
    """Try a removal on copies of a model.

    Surgery, checker and strict inference, then the pruned and the masked model on the same feeds.
    """
    pruned = model.clone()
    try:
        remove_channels(
            pruned,
            solution,
            channels,
            attention,
        )
    except SurgeryError as failed:
        return Verdict(None, str(failed))
    problem = structural_problem(pruned)
    # a model that was invalid before proves nothing against the surgery
    if problem and not structural_problem(model):
        return Verdict(None, problem)
    masked = masked_reference(model, solution, kept_slots(solution, channels))
    found = context.difference(masked, pruned)
    if found is None:
        return Verdict(None)
    if found.reference_failure:
        return _without_reference(
            model,
            pruned,
            found.reference_failure,
            context,
        )
    if found.failure:
        return Verdict(None, found.failure)
    if found.error <= TOLERANCE:
        return Verdict(found.error)
    problem = (
        f"outputs are off by {found.error:.2g} of those with its channels switched off"
    )
    return Verdict(found.error, problem)


def _without_reference(
    model: ir.Model, pruned: ir.Model, failure: str, context: Context
) -> Verdict:
    """Verdict where the masked model does not run.

    The removal is believed only if the whole model does not run here either.
    """
    found = context.difference(model, pruned)
    if found is None or found.reference_failure:
        return Verdict(None)
    return Verdict(
        None, f"the model with its channels switched off does not run: {failure}"
    )


def failing_parts(
    parts: Sequence[int], problem: Callable[[Sequence[int]], str]
) -> Sequence[int]:
    """Smallest run of `parts` found to be a problem by itself, by halving.

    The later half where only both halves together are.
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
