"""The test that a trained model must pass before its weights replace those of the student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from ... import RefusedError
from .data import Samples, Units
from .distributed import ProcessGroup
from .heads import Head
from .score import Score, Scorer
from .teacher import Runtime

ROWS_AT_A_TIME = 64
"""Rows of one run by the runtime; results do not depend on it but for rounding."""


@dataclass(frozen=True)
class AcceptanceTest:
    """Scores of models by the runtime that will run them, on the rows held out.

    In a group the leader scores, for all.
    """

    heads: tuple[Head, ...]
    samples: Samples
    held: Units
    runtime: Runtime
    group: ProcessGroup

    def score(self, model: ir.Model, watch: str) -> Score:
        """Return the score of a model. `watch`: what counts, see `Scorer`.

        Errors: RefusedError where its outputs have other shapes than the teacher's.
        """
        score = Score(0.0, 0.0)
        if self.group.is_leader:
            score = self._run(model, watch)
        value, closeness = self.group.from_leader(score.value, score.closeness)
        return Score(value, closeness)

    def _run(self, model: ir.Model, watch: str) -> Score:
        scorer = Scorer(self.heads, watch)
        names = [head.student for head in self.heads]
        examples = self.samples.take(self.held, ROWS_AT_A_TIME)
        with self.runtime.runner(model, names) as run:
            for example in examples:
                values = run(example.feeds)
                # shapes that broadcast would be compared without an error
                for head in self.heads:
                    own = values[head.student]
                    theirs = example.targets[head.teacher]
                    check_shapes(head, own.shape, theirs.shape)
                scorer.add(values, example.targets, example.labels)
        return scorer.score()


def check_shapes(head: Head, own: Sequence[int], theirs: Sequence[int]) -> None:
    """Raise RefusedError unless student and teacher give an output in one shape."""
    if tuple(own) != tuple(theirs):
        raise RefusedError(
            f"finetune, output '{head.output}'",
            f"the student gives {list(own)}, the teacher {list(theirs)}",
            "train models that answer the same question",
        )
