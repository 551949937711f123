"""The search: chunks of a model are taken away as long as what is left is still interesting.

Source: Zeller and Hildebrandt, Simplifying and Isolating Failure-Inducing Input, IEEE TSE 2002
(10.1109/32.988498); the passes over kinds of parts follow LLVM's llvm-reduce.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import onnx

from .subject import Parts, Smaller, Subject, size_of

Check = Callable[[onnx.ModelProto], bool]
"""True for a model that is still interesting."""


class Reduction(NamedTuple):
    """A kind of part that can be taken away, or made smaller.

    `count`: parts of a model. `without`: a smaller copy without some of them, by number; None
    where they cannot be taken.
    """

    name: str
    count: Callable[[Subject], int]
    without: Callable[[Subject, Parts], Smaller]


@dataclass
class Search:
    """Search of a smaller model. `tried` counts checks; `limit`: their number, at most."""

    check: Check
    limit: int
    tell: Callable[[str, Subject], None] = lambda name, subject: None
    tried: int = 0
    _refused: set[bytes] = field(default_factory=set)

    @property
    def is_spent(self) -> bool:
        return self.tried >= self.limit

    def smallest(
        self, model: onnx.ModelProto, reductions: Sequence[Reduction]
    ) -> onnx.ModelProto:
        """The model after all reductions, again and again until none finds anything."""
        subject = Subject(model)
        while not self.is_spent:
            before = size_of(subject.model)
            for reduction in reductions:
                subject = self._reduced(subject, reduction)
                self.tell(reduction.name, subject)
            if size_of(subject.model) >= before:
                break
        return subject.model

    def _reduced(self, subject: Subject, reduction: Reduction) -> Subject:
        """Take away ever smaller chunks of parts."""
        chunk = reduction.count(subject)
        while chunk and not self.is_spent:
            start = 0
            while start < reduction.count(subject):
                count = reduction.count(subject)
                parts = frozenset(range(start, min(start + chunk, count)))
                smaller = self._without(subject, reduction, parts)
                if smaller is None:
                    start += chunk
                    continue
                subject = smaller
                # what follows has moved up; where nothing has, this part is as small as it gets
                if reduction.count(subject) >= count:
                    start += chunk
            chunk //= 2
        return subject

    def _without(
        self, subject: Subject, reduction: Reduction, parts: Parts
    ) -> Subject | None:
        """The model without some parts, if it is smaller, sound and interesting."""
        model = reduction.without(subject, parts)
        if model is None or self.is_spent:
            return None
        smaller = Subject(model)
        # unsound models have faults of their own
        if size_of(model) >= size_of(subject.model) or not smaller.is_as_sound_as(
            subject
        ):
            return None
        content = model.SerializeToString(deterministic=True)
        if content in self._refused:
            return None
        self.tried += 1
        if self.check(model):
            return smaller
        self._refused.add(content)
        return None
