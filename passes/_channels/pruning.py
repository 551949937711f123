"""One channel pruning from the solved model to the proved result."""

from __future__ import annotations

from collections.abc import Sequence
from fnmatch import fnmatchcase
from functools import partial

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import UsageError
from .._base import Context, Declined
from .._core.graph import become
from .._dims.groups import Group, channel_groups, frozen_weights, kept_slots
from .._dims.rules import relate
from .._dims.solve import Attention, solve
from .._dims.trace import traced
from ..eliminate_common_subexpressions import EliminateCommonSubexpressions
from ..fold_constants import FoldConstants
from ..remove_identities import RemoveIdentities
from ..remove_unused import RemoveUnused
from .branches import droppable, take_means
from .constants import constants_first, keep_constants
from .costs import Cost, costs_of
from .history import Memory, places_of, shape_of
from .importance.scores import Scores
from .prepare import prepare, share_again
from .reconstruct import recover
from .select import Candidates, Choice, allowed_widths
from .verify import Verdict, judge, offenders, take_out
from .wider import wider_if_faster

CLEANUP = (
    RemoveUnused(),
    RemoveIdentities(),
    FoldConstants(),
    EliminateCommonSubexpressions(),
    RemoveUnused(),
)


class Pruning:
    """`whole`: the prepared copy that was solved. `groups`: those that may lose channels;
    `declined` names the rest.

    `was`: of each group its width before the model's first pruning.
    """

    def __init__(
        self,
        model: ir.Model,
        context: Context,
        attention: Attention,
        *,
        keep_batchnorm: bool,
    ) -> None:
        self.memory = Memory.of(model)
        self.whole = model.clone()
        self._context = context
        self._attention: Attention = attention
        self._origins = prepare(self.whole, context, keep_batchnorm=keep_batchnorm)
        self.solution = solve(relate(self.whole, traced(self.whole)), attention)
        self.groups: list[Group] = channel_groups(self.solution)
        self.declined = [
            Declined(f"{value.name}:{axis}", reason)
            for (value, axis), reason in frozen_weights(self.solution)
            if reason != "a spatial axis"
        ]
        self.costs = costs_of(self.whole, self.solution)
        self.before = self.cost([0] * len(self.groups), [])
        self._places = {
            g.name: own
            for g, own in zip(
                self.groups, places_of(self.groups, self.solution), strict=True
            )
        }
        self.was = {
            g.name: self.memory.original(self._places[g.name], len(g.channels))
            for g in self.groups
        }

    def limit_to(self, include: Sequence[str], exclude: Sequence[str]) -> None:
        """Leave out groups by name. Errors: UsageError where a pattern matches no group."""
        names = [_names(group) for group in self.groups]
        for option, patterns in (("include", include), ("exclude", exclude)):
            for pattern in patterns:
                if self.groups and not any(
                    fnmatchcase(n, pattern) for each in names for n in each
                ):
                    raise UsageError(
                        f"prune-channels.{option}",
                        f"'{pattern}' matches no weight or node of a group",
                        "see the names under `onnx-opt inspect MODEL --groups`",
                    )
        kept = []
        for group, own in zip(self.groups, names, strict=True):
            if (include and not _matches(own, include)) or _matches(own, exclude):
                self.declined.append(
                    Declined(group.name, "left out by include or exclude")
                )
            else:
                kept.append(group)
        self.groups = kept

    def candidates(
        self, scores: Sequence[Scores], multiple: int, least: int
    ) -> Candidates:
        """The groups with their scores and the widths that suit the target."""
        widths = []
        for group in self.groups:
            convolved = any(
                v.const_value is not None and len(v.const_value.shape) > 2
                for v, _ in group.weights
            )
            fewest = least or (0 if droppable(group, self.solution) else 1)
            was = self.was[group.name]
            widths.append(
                allowed_widths(
                    group, was, multiple, convolved, fewest, self._context.target
                )
            )
        scores = constants_first(scores, self.groups, self.solution, self.whole)
        return Candidates(
            self.groups, scores, widths, [self.was[group.name] for group in self.groups]
        )

    def cost(self, choice: Choice, orders: Sequence[NDArray[np.intp]]) -> Cost:
        """What the model takes once the first `choice` channels of each order are gone."""
        gone = np.zeros(self.solution.count + 1, bool)
        for count, order in zip(choice, orders, strict=False):
            gone[order[:count]] = True
        return self.costs.of(gone)

    def proved(
        self, candidates: Candidates, choice: Choice
    ) -> tuple[Choice, float | None]:
        """The choice without the groups for which surgery or proof fails; the error of the rest,
        None if not run.
        """
        while True:
            verdict = self._judged(candidates, choice)
            if not verdict.problem:
                return choice, verdict.error
            given = [i for i, count in enumerate(choice) if count]
            found = offenders(given, partial(self._problem, candidates, choice))
            problem = self._problem(candidates, choice, found) or verdict.problem
            self.declined += [
                Declined(self.groups[i].name, f"the proof failed: {problem}")
                for i in found
            ]
            choice = _only(choice, [i for i in given if i not in found])

    def _problem(
        self, candidates: Candidates, choice: Choice, part: Sequence[int]
    ) -> str:
        """What is wrong with taking out a part of a choice."""
        return self._judged(candidates, _only(choice, part)).problem

    def widened(
        self,
        candidates: Candidates,
        suited: Candidates,
        choice: Choice,
        error: float | None,
    ) -> tuple[Choice, float | None]:
        """A proved choice, or one of wider groups where that measures faster; its error."""

        def build(choice: Choice) -> ir.Model:
            model = self.whole.clone()
            take_out(model, self.solution, candidates.removed(choice), self._attention)
            return model

        wider, declined = wider_if_faster(
            candidates, suited, choice, build, self._context
        )
        self.declined += declined
        return self.proved(candidates, wider) if declined else (choice, error)

    def _judged(self, candidates: Candidates, choice: Choice) -> Verdict:
        return judge(
            self.whole,
            self.solution,
            candidates.removed(choice),
            self._context,
            self._attention,
        )

    def finish(
        self, model: ir.Model, removed: NDArray[np.intp], samples: int, damp: float
    ) -> int:
        """Make `model` the pruned one; returns how many layers were fitted anew (with `samples` and
        data).
        """
        pruned, kept = self.whole.clone(), kept_slots(self.solution, removed)
        fit = bool(samples) and self._context.has_data()
        if fit:
            take_means(pruned, kept, self._context, samples)
        else:
            keep_constants(pruned, kept)
        take_out(pruned, self.solution, removed, self._attention)
        fitted = 0
        if fit:
            fitted, left = recover(
                self.whole, pruned, kept, self._context, samples, damp
            )
            self.declined += [
                Declined(name, "not fitted: the data never reached it") for name in left
            ]
        share_again(pruned, self._origins)
        for step in CLEANUP:
            step.run(pruned, self._context)
        become(model, pruned)
        return fitted

    def remember(self, model: ir.Model, text: str) -> None:
        """Let the model, pruned by now, carry what it was, and what was done."""
        was = {
            place: self.was[name]
            for name, places in self._places.items()
            for place in places
        }
        names = {
            value.name or "" for group in self.groups for value, _ in group.weights
        }
        now = {
            name: shape_of(value)
            for name, value in model.graph.initializers.items()
            if name in names
        }
        Memory(
            {**was, **self.memory.widths}, self.memory.cost or self.before, text, now
        ).store(model)

    def repeated(self, text: str) -> bool:
        """Whether this very pass left the model as it is."""
        weights = (value for group in self.groups for value, _ in group.weights)
        return self.memory.last == text and self.memory.unchanged(weights)


def _only(choice: Choice, part: Sequence[int]) -> Choice:
    wanted = set(part)
    return [count if index in wanted else 0 for index, count in enumerate(choice)]


def _names(group: Group) -> list[str]:
    """What patterns may match: weights, `weight:axis`, and the nodes that read them."""
    return [
        name or ""
        for value, axis in group.weights
        for name in (
            value.name,
            f"{value.name}:{axis}",
            *(n.name for n in value.consumers()),
        )
    ]


def _matches(names: Sequence[str], patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
