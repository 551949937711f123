"""The exact passes, repeated until nothing changes."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.graph import graphs_of, refresh_shapes
from ._core.normalize import normalize
from .deduplicate_initializers import DeduplicateInitializers
from .eliminate_common_subexpressions import EliminateCommonSubexpressions
from .fold_affine import FoldAffine
from .fold_batchnorm import FoldBatchnorm
from .fold_constants import FoldConstants
from .fold_pad import FoldPad
from .remove_identities import RemoveIdentities
from .remove_unused import RemoveUnused
from .unpack_sequences import UnpackSequences

ROUNDS = 20
"""Rounds after which it stops even if something still changes; real models need one to eight."""


@dataclass(frozen=True)
class Simplify(Pass):
    """Run the exact passes until none changes anything: fewer nodes, equal outputs.

    Effect: exact. Runs remove-unused, deduplicate-initializers, unpack-sequences,
    remove-identities, fold-constants, fold-batchnorm, fold-affine, fold-pad and
    eliminate-common-subexpressions; infers shapes again after every round that changed something.
    Dynamic dims stay dynamic.

    Shapes: unchanged.

    Stats: `rounds` (count), `nodes_before`, `nodes_after` (counts over all graphs), and what each
    pass changed.

    Source: ONNX Runtime's own optimizer is not idempotent: it misses what its later steps make
    possible.
    """

    name: ClassVar[str] = "simplify"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "rewrites"

    nonempty: bool = Option(
        True,
        "Assume that symbolic dims of the model's inputs are at least 1: no empty batch is ever "
        "fed.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        before = _count(model)
        normalize(model)
        passes = self._passes()
        changed = Counter[str]()
        # a dict keeps the order, and each reason once
        declined: dict[Declined, None] = {}
        rounds = 0
        while rounds < ROUNDS:
            rounds += 1
            # reasons of earlier rounds may have gone with their nodes
            declined.clear()
            counts: dict[str, int] = {}
            is_changed = False
            for each in passes:
                outcome = each.run_within(model, context)
                # of remove-unused, which runs twice, the second run is reported
                counts[each.name] = outcome.changed
                is_changed |= outcome.changed > 0
                declined.update(dict.fromkeys(outcome.declined))
            changed.update(counts)
            if not is_changed:
                break
            refresh_shapes(model)
        stats = {
            "rounds": rounds,
            "nodes_before": before,
            "nodes_after": _count(model),
            **changed,
        }
        return PassOutcome(
            changed.total(),
            dict(stats),
            list(declined),
        )

    def _passes(self) -> list[Pass]:
        return [
            RemoveUnused(),
            DeduplicateInitializers(),
            UnpackSequences(),
            RemoveIdentities(nonempty=self.nonempty),
            FoldConstants(nonempty=self.nonempty),
            FoldBatchnorm(),
            FoldAffine(),
            FoldPad(),
            EliminateCommonSubexpressions(),
            RemoveUnused(),
        ]


def _count(model: ir.Model) -> int:
    return sum(len(graph) for graph in graphs_of(model))
