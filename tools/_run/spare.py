"""Search for what a pass must leave as it is, where the runtime does not bear what it made.

ONNX Runtime refuses valid models, dies of them, or computes no numbers on them. The original runs:
so it is one of the pass's changes, and the others can stay.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import onnx_ir as ir

from ...passes._core.contract import Pass
from ...passes._core.halving import kept_by_halving
from ...passes._core.opset import OpsetRefused, raise_opset
from ...passes._core.outcome import Declined
from ...passes._core.patterns import Part
from .attempt import PassAttempt

MAX_TRIALS = 32
"""Tries after which what is not decided stays as it was; each runs the pass and the model.

Chosen by hand; not measured.
"""


SHOWN = 4
"""Parts that a sentence names at most: a line of them."""


class Unmet(NamedTuple):
    """A demand of a pass's result that is not met here: of what, in words, and how to meet it."""

    where: str
    words: str
    fix: str


@dataclass(frozen=True)
class Spared:
    """Outcome of the search.

    `attempt`: the one to go on with; None where nothing helped. `words`: what it leaves as it was.
    `fix`: what the user can do instead.
    """

    attempt: PassAttempt | None
    words: str
    fix: str


def spare(
    pass_: Pass,
    before: ir.Model,
    failed: PassAttempt,
    attempt: Callable[[Pass], PassAttempt],
    fault_of: Callable[[ir.Model], str],
    too_old: Unmet | None = None,
) -> Spared:
    """Find the most of a pass that the runtime bears.

    `failed`: the whole pass, which it does not. `attempt`: applies a pass to a copy of `before`.
    `fault_of`: the runtime's words on a model; "" where it bears it. `too_old`: the release that
    the whole pass needs, where the one here is older.
    """
    unmet = _opset_at_fault(before, failed, fault_of) or too_old
    if unmet is not None:
        return _at_lower_opset(pass_, failed, attempt, unmet)
    return _without_culprits(pass_, before, failed, attempt)


# the opset, and the release of the runtime


def _opset_at_fault(
    before: ir.Model, failed: PassAttempt, fault_of: Callable[[ir.Model], str]
) -> Unmet | None:
    """Say which raise of the opset alone is too much; None where none is."""
    old = before.opset_imports.get("", 0)
    if isinstance(failed.error, OpsetRefused):
        return _not_raised(f"from {old}")
    new = failed.model.opset_imports.get("", 0)
    if new <= old:
        return None
    raised = before.clone()
    raise_opset(raised, new)
    return _not_raised(f"from {old} to {new}") if fault_of(raised) else None


def _not_raised(opsets: str) -> Unmet:
    return Unmet(
        "opset",
        f"not raised {opsets}",
        f"export the model again with a newer opset: it cannot be raised {opsets}",
    )


def _at_lower_opset(
    pass_: Pass,
    failed: PassAttempt,
    attempt: Callable[[Pass], PassAttempt],
    unmet: Unmet,
) -> Spared:
    where, words, fix = unmet
    lower = pass_.at_lower_opset()
    if lower is None:
        return Spared(None, "", f"{fix}, and {pass_.name} has no form for older ones")
    found = attempt(lower)
    if found.fault:
        return Spared(None, "", fix)
    reason = f"{words}, the form is that of {lower}"
    # the runtime may have said the same
    if words not in failed.fault:
        reason += f": {failed.fault}"
    declined = [Declined(where, reason)]
    # "needs onnxruntime" names it already
    told = reason if where in words else f"{where} {reason}"
    return Spared(_with_declined(found, declined), told, fix)


# the parts


def _without_culprits(
    pass_: Pass,
    before: ir.Model,
    failed: PassAttempt,
    attempt: Callable[[Pass], PassAttempt],
) -> Spared:
    parts = pass_.parts(before)
    if not parts:
        return Spared(
            None,
            "",
            "leave this pass out: it has no parts that it could leave as they are",
        )
    # the last that worked is that of all parts kept so far
    found: PassAttempt | None = None

    def works(kept: Sequence[Part]) -> bool:
        nonlocal found
        stay = set(kept)
        tried = attempt(pass_.without(part for part in parts if part not in stay))
        if not tried.fault:
            found = tried
        return not tried.fault

    kept = set(kept_by_halving(parts, works, MAX_TRIALS, lambda part: part.kind))
    if found is None or not found.outcome.changed:
        return Spared(
            None,
            "",
            f"leave this pass out, or try another version of onnxruntime: none of "
            f"{len(parts)} layers or nodes could be changed alone",
        )
    left = [part for part in parts if part not in kept]
    reason = f"left as it was, for with all parts changed {failed.fault}"
    declined = [Declined(part.label, reason) for part in left]
    labels = [part.label for part in left[:SHOWN]]
    if len(left) > SHOWN:
        labels.append(f"{len(left) - SHOWN} more")
    words = f"left {', '.join(labels)} as before: with all parts changed {failed.fault}"
    fix = f"run without --strict, which leaves out {', '.join(labels)}"
    return Spared(_with_declined(found, declined), words, fix)


def _with_declined(found: PassAttempt, declined: Sequence[Declined]) -> PassAttempt:
    """Add reasons to an account, in place of those that it gives for the same parts."""
    outcome = found.outcome
    told = {each.where for each in declined}
    # they were excluded for the try: that is no reason to tell
    others = [each for each in outcome.declined if each.where not in told]
    outcome = dataclasses.replace(outcome, declined=[*others, *declined])
    return dataclasses.replace(found, outcome=outcome)
