"""The loop of passes that fold one node after the other into its neighbours."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from .._core.edit import Edit
from .._core.graph import graphs_of, label
from .._core.ops import is_standard
from .._core.outcome import Declined, PassOutcome
from .._core.rewrites import permit

Fold = Callable[[ir.Node, Edit], str | None]
"""Fold one node: None where it did, else why not; "" where nothing is there to fold into."""


def fold_nodes(
    model: ir.Model, pass_name: str, op_types: tuple[str, ...], fold: Fold
) -> PassOutcome:
    """Fold every standard node of `op_types` that lets itself be folded, in all graphs."""
    edit = Edit(model)
    outcome = PassOutcome()
    for graph in graphs_of(model):
        for node in graph:
            if not is_standard(node, *op_types):
                continue
            leave = permit(pass_name, "fold", node)
            if leave is None:
                continue
            # before folding, which may rename it
            named = label(node)
            reason = fold(node, edit)
            if reason is None:
                leave.used()
                outcome.changed += 1
            elif reason:
                outcome.declined.append(Declined(named, reason))
    return outcome
