"""Results of passes that one search applies again and again to the same model.

Pruning by data takes most of a trial, and the trials of a search differ in what comes behind it.
"""

from __future__ import annotations

import copy
import hashlib
from collections.abc import Hashable
from dataclasses import dataclass

import onnx_ir as ir

from ...passes._core.context import Context
from ...passes._core.contract import Pass
from ...passes._core.graph import all_graphs, become
from ...passes._core.outcome import PassOutcome
from ...passes._core.stored import stored_constants

REMEMBERED = frozenset({"prune", "prune-channels"})
"""Passes in front of the one in which recipes differ; they leave nothing in the context."""

MOST_BYTES = 256 << 20
"""Bytes of the weights of a model above which nothing is remembered; chosen by hand."""

MOST_KEPT = 8
"""Models that are remembered, the latest; chosen by hand."""


@dataclass(frozen=True)
class _Remembered:
    model: ir.Model
    outcome: PassOutcome
    warnings: list[str]


class PassMemory:
    """Models behind passes, by the content of the model before; for runs on the same data.

    It stays in its process: a copy that is sent to another one is empty.
    """

    def __init__(self) -> None:
        self._known: dict[tuple[Hashable, ...], _Remembered] = {}

    def __len__(self) -> int:
        return len(self._known)

    def __reduce__(self) -> tuple[type[PassMemory], tuple[()]]:
        return PassMemory, ()

    def run(
        self,
        pass_: Pass,
        model: ir.Model,
        context: Context,
        warnings: list[str],
    ) -> PassOutcome:
        """Apply a pass in place, or what it made of an equal model before.

        `warnings`: of the run, which those of the pass are added to. Errors: those of the pass.
        """
        if pass_.name not in REMEMBERED or _weight_bytes(model) > MOST_BYTES:
            return pass_.run(model, context)
        key = (_content(model), str(pass_), context.seed, context.target)
        known = self._known.get(key)
        if known is None:
            told = len(warnings)
            outcome = pass_.run(model, context)
            if len(self._known) == MOST_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = _Remembered(
                model.clone(),
                copy.deepcopy(outcome),
                warnings[told:],
            )
            return outcome
        become(model, known.model.clone())
        for text in known.warnings:
            if text not in warnings:
                warnings.append(text)
        return copy.deepcopy(known.outcome)


def _weight_bytes(model: ir.Model) -> int:
    return sum(constant.nbytes for constant in stored_constants(model))


def _content(model: ir.Model) -> str:
    """Digest of a whole model."""
    serialized = ir.to_proto(model).SerializeToString(deterministic=True)
    digest = hashlib.sha256(serialized)
    for graph in all_graphs(model):
        if isinstance(graph, ir.Function):
            continue
        for value in graph.initializers.values():
            # of these the model holds but the place
            if isinstance(value.const_value, ir.ExternalTensor):
                digest.update(value.const_value.tobytes())
    return digest.hexdigest()
