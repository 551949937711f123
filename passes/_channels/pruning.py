"""One channel pruning, from the solved model to the verified result."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, Declined
from .._core.graph import become
from .._core.patterns import left_out, require_matches
from .._dims.groups import Group, channel_groups, frozen_weights, kept_slots
from .._dims.relations import SPATIAL
from .._dims.rules import relate
from .._dims.solve import Attention, Solution, solve
from .._dims.trace import traced
from .._reconstruct.layers import reconstruct
from ..eliminate_common_subexpressions import EliminateCommonSubexpressions
from ..remove_identities import RemoveIdentities
from ..remove_unused import RemoveUnused
from .branches import droppable, take_means
from .budget import is_convolved
from .constants import constants_first, keep_constants
from .costs import Cost, CostKind, costs_of, stored_cost
from .history import PruningHistory, places_of, shape_of
from .importance.scores import Scores
from .prepare import Step, fold_but_ties, prepare, share_again
from .select import Candidates, Choice, allowed_widths
from .verify import Verdict, failing_parts, remove_channels, verify_removal

CLEANUP: tuple[Step, ...] = (
    RemoveUnused().run,
    RemoveIdentities().run,
    fold_but_ties,
    EliminateCommonSubexpressions().run,
    RemoveUnused().run,
)
"""Exact passes over the pruned model: channels that went leave shape arithmetic and copies."""

LISTING = "onnx-opt inspect MODEL --groups"
"""Command that shows the names of a model's groups."""


@dataclass(frozen=True)
class Pruned:
    """A pruned copy of a model.

    `fitted`: number of layers fitted anew. `left`: names of those that the data never reached.
    """

    model: ir.Model
    fitted: int
    left: list[str]


class Pruning:
    """The state of one pruning of one model.

    `whole`: the prepared copy that was solved. `groups`: those that may lose channels; `declined`
    names the rest. `was`: width of each group, by name, before the model's first pruning.
    """

    def __init__(
        self,
        model: ir.Model,
        context: Context,
        attention: Attention,
        *,
        keep_batchnorm: bool,
    ) -> None:
        whole = model.clone()
        origins = prepare(whole, context, keep_batchnorm=keep_batchnorm)
        relations = relate(whole, traced(whole))
        solution = solve(relations, attention)
        groups = channel_groups(solution)
        self.whole = whole
        self.solution = solution
        self.groups: list[Group] = groups
        self.declined: list[Declined] = _frozen(solution)
        self.costs = costs_of(whole, solution)
        nothing = np.zeros(solution.count + 1, bool)
        self.before = self.costs.of(nothing)
        self.history = PruningHistory.of(model)
        self.was: dict[str, int] = {}
        self._places: dict[str, list[str]] = {}
        every = places_of(groups, solution)
        for group, places in zip(groups, every, strict=True):
            name = group.name
            width = len(group.channels)
            self.was[name] = self.history.original(places, width)
            self._places[name] = places
        # indices of groups
        self._failed: set[int] = set()
        self._context = context
        self._attention: Attention = attention
        self._origins = origins

    def limit_to(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Leave out groups by the names of their weights, `weight:axis`, and nodes.

        Errors: UsageError where a pattern matches no group.
        """
        names = [_names(group) for group in self.groups]
        every: list[str] = []
        for own in names:
            every += own
        # both are checked before anything is left out
        for option, patterns in (("include", include), ("exclude", exclude)):
            where = f"prune-channels.{option}"
            require_matches(
                where,
                patterns,
                every,
                LISTING,
            )
        kept = []
        for group, own in zip(self.groups, names, strict=True):
            reason = left_out(own, include, exclude)
            if reason is None:
                kept.append(group)
            else:
                self.declined.append(Declined(group.name, reason))
        self.groups = kept

    def candidates(
        self, scores: Sequence[Scores], multiple: int | None, least: int
    ) -> Candidates:
        """The groups with their scores and the widths that they may have.

        `multiple`: of which a width is one; None for what suits the target.
        """
        widths = []
        for group in self.groups:
            fewest = least
            if least == 0 and not droppable(group, self.solution):
                fewest = 1
            allowed = allowed_widths(
                group,
                was=self.was[group.name],
                multiple=multiple,
                convolved=is_convolved(group),
                least=fewest,
                target=self._context.target,
            )
            widths.append(allowed)
        ordered = constants_first(
            scores,
            self.groups,
            self.solution,
            self.whole,
        )
        was = [self.was[group.name] for group in self.groups]
        return Candidates(
            groups=self.groups,
            scores=ordered,
            widths=widths,
            was=was,
        )

    def cost(self, choice: Choice, orders: Sequence[NDArray[np.intp]]) -> Cost:
        """Cost of the model once the first `choice` channels of each order are gone."""
        gone = np.zeros(self.solution.count + 1, bool)
        for count, order in zip(choice, orders, strict=True):
            first = order[:count]
            gone[first] = True
        return self.costs.of(gone)

    def verified(
        self, candidates: Candidates, choice: Choice
    ) -> tuple[Choice, float | None]:
        """A choice without the groups for which surgery or verification fails.

        Returns the error of the rest, too; None if it was not run. A group that failed once is left
        out from then on.
        """
        every = range(len(choice))
        choice = _only(choice, [index for index in every if index not in self._failed])
        while True:
            verdict = self._verdict(candidates, choice)
            if not verdict.problem:
                return choice, verdict.error
            given = [index for index, count in enumerate(choice) if count]
            problem_of = partial(self._problem, candidates, choice)
            failing = failing_parts(given, problem_of)
            # groups that fail only beside others have no problem of their own
            problem = problem_of(failing) or verdict.problem
            reason = f"it stays, since the check of the pruned model failed: {problem}"
            self._failed.update(failing)
            for index in failing:
                group = self.groups[index]
                self.declined.append(Declined(group.name, reason))
            left = [index for index in given if index not in failing]
            choice = _only(choice, left)

    def _problem(
        self, candidates: Candidates, choice: Choice, part: Sequence[int]
    ) -> str:
        """Problem of the groups of a part of a choice alone; empty if there is none."""
        alone = _only(choice, part)
        return self._verdict(candidates, alone).problem

    def _verdict(self, candidates: Candidates, choice: Choice) -> Verdict:
        return verify_removal(
            self.whole,
            self.solution,
            candidates.removed(choice),
            self._context,
            self._attention,
        )

    def without_failed(self, candidates: Candidates) -> Candidates:
        """The same groups, those that failed the proof as wide as they are."""
        widths = []
        for index, own in enumerate(candidates.widths):
            widths.append(own[-1:] if index in self._failed else own)
        return replace(candidates, widths=widths)

    def added(
        self, kind: CostKind, pruned: Pruned, choice: Choice, candidates: Candidates
    ) -> float:
        """Cost beyond what a choice says, by the original: that of biases which fits add."""
        if kind == "macs":
            return 0.0
        original = self.history.cost or self.before
        plan = self.cost(choice, candidates.orders())
        made = stored_cost(pruned.model)
        more = getattr(made, kind) - getattr(plan, kind)
        return float(more / max(getattr(original, kind), 1))

    def built(
        self,
        removed: NDArray[np.intp],
        samples: int,
        damp: float,
        context: Context | None = None,
    ) -> Pruned:
        """Make a copy without the channels.

        Layers are fitted on at most `samples` calibration samples, of `context` where the run's own
        are not meant; with 0 or without data none is.
        """
        context = context or self._context
        pruned, kept = self.whole.clone(), kept_slots(self.solution, removed)
        fit = samples > 0 and context.has_data()
        # either looks at the layers as they are before anything is cut
        if fit:
            take_means(
                pruned,
                kept,
                context,
                samples,
            )
        else:
            keep_constants(pruned, kept)
        remove_channels(
            pruned,
            self.solution,
            removed,
            self._attention,
        )
        fitted = 0
        left: list[str] = []
        if fit:
            fitted, left = reconstruct(
                self.whole,
                pruned,
                kept,
                context,
                samples,
                damp,
            )
        share_again(pruned, self._origins)
        for step in CLEANUP:
            step(pruned, self._context)
        return Pruned(pruned, fitted, left)

    def finish(self, model: ir.Model, pruned: Pruned) -> None:
        """Make `model` the pruned one."""
        for name in pruned.left:
            reason = "pruned, but not fitted: the calibration data never reaches it"
            self.declined.append(Declined(name, reason))
        become(model, pruned.model)

    def record(self, model: ir.Model, text: str) -> None:
        """Write into the model, pruned by now, what it was, and the pass that pruned it."""
        widths = {}
        for name, places in self._places.items():
            widths.update(dict.fromkeys(places, self.was[name]))
        # what older files say of places that are gone stays true
        widths.update(self.history.widths)
        weights: set[str | None] = set()
        for group in self.groups:
            weights.update(value.name for value, _ in group.weights)
        shapes = {}
        for name, value in model.graph.initializers.items():
            if name in weights:
                shapes[name] = shape_of(value)
        history = PruningHistory(
            widths=widths,
            cost=self.history.cost or self.before,
            last=text,
            now=shapes,
        )
        history.store(model)

    def repeated(self, text: str) -> bool:
        """Return whether this very pass left the model as it is."""
        if self.history.last != text:
            return False
        weights: list[ir.Value] = []
        for group in self.groups:
            weights += [value for value, _ in group.weights]
        return self.history.unchanged(weights)


def _frozen(solution: Solution) -> list[Declined]:
    """Axes of weights that cannot lose any slot, with the reasons; spatial axes left out."""
    declined = []
    for (value, axis), reason in frozen_weights(solution):
        # every kernel has those: they would bury the other reasons
        if reason != SPATIAL:
            declined.append(Declined(f"{value.name}:{axis}", reason))
    return declined


def _only(choice: Choice, part: Sequence[int]) -> Choice:
    """A choice for some groups, nothing of the others."""
    alone = [0] * len(choice)
    for index in part:
        alone[index] = choice[index]
    return alone


def _names(group: Group) -> list[str]:
    """Names that patterns may match: weights, `weight:axis`, and the nodes that read them."""
    names: list[str | None] = []
    for value, axis in group.weights:
        names += [value.name, f"{value.name}:{axis}"]
        names += [node.name for node in value.consumers()]
    return [name for name in names if name]
