"""Evaluation of what depends on constants only, within a budget."""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._core.edit import Edit
from ._core.graph import graphs_of
from ._simplify.branches import inline_branches
from ._simplify.folding import FREE, commit, evaluate_all
from .remove_identities import input_symbols

@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their results.

    An If whose condition is constant gives way to its branch.

    Effect: exact. Never folds random ops, loops, quantization ops, a default that callers may
    override, or a result larger than its inputs and 64 KiB; and no group of nodes whose folding
    makes the file grow, beyond 64 KiB in all. Sizes are computed before anything is allocated.

    Shapes: unchanged.

    Stats: `nodes` folded, `branches` of If inlined (counts), `bytes` of weights that the model grew
    by.

    Source: follows from the definitions of the operators; onnx's reference implementation computes
    them.
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = "exact"

    nonempty: bool = Option(
        True,
        "Take symbolic dims of the model's inputs as at least 1: no empty batch is ever fed.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        edit = Edit(model)
        every = itertools.chain.from_iterable(graphs_of(model))
        evaluated, declined = evaluate_all(every, edit)
        nodes, grown = commit(
            evaluated,
            edit,
            declined,
            FREE,
        )
        positive = input_symbols(model) if self.nonempty else frozenset[str]()
        branches = inline_branches(model, edit, positive)
        stats = {"nodes": nodes, "branches": branches, "bytes": grown}
        return PassOutcome(nodes + branches, dict(stats), declined)
