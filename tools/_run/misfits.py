"""Parts of a result that the target's runtime does not take: told before it is deployed."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace

import onnx_ir as ir

from ... import CheckError
from ...passes._core.target_limits import Misfit, misfits
from .run import Run

NAMED = 3
"""Most nodes that one line names. Chosen by hand."""


@dataclass(frozen=True)
class MisfitGroup:
    """Misfits of one kind: where they are and what is wrong, and what to do about all of them."""

    problem: str
    fix: str
    is_fatal: bool


def grouped(found: Iterable[Misfit]) -> list[MisfitGroup]:
    """Misfits by problem and fix, those first that make the file of no use."""
    places: dict[MisfitGroup, list[str]] = {}
    for misfit in found:
        kind = MisfitGroup(
            misfit.problem,
            misfit.fix,
            misfit.is_fatal,
        )
        names = places.setdefault(kind, [])
        names.append(misfit.where)
    groups = []
    for kind, names in places.items():
        shown = _shown(names)
        group = replace(kind, problem=f"{shown}: {kind.problem}")
        groups.append(group)
    groups.sort(key=_order)
    return groups


def _shown(names: list[str]) -> str:
    """The first names, and how many more there are."""
    shown = ", ".join(names[:NAMED])
    more = len(names) - NAMED
    if more > 0:
        shown += f" and {more} more"
    return shown


def _order(group: MisfitGroup) -> bool:
    # False comes first
    return not group.is_fatal


def warn_of_misfits(run: Run, model: ir.Model) -> None:
    """Warn of each group. Errors: CheckError for one that is fatal, with --strict."""
    settings = run.settings
    where = f"target {settings.target}"
    found = misfits(model, settings.target)
    for group in grouped(found):
        if group.is_fatal and settings.strict:
            raise CheckError(where, group.problem, group.fix)
        words = f"{group.problem}: {group.fix}"
        run.reporter.warn(where, words)
