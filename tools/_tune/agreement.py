"""Labels where there are none: what the original model itself says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import UsageError
from ...runtime.choices import ChoiceMeter
from ...runtime.feeds import Feeds, open_feeds
from ...runtime.session import Session, TensorInfo

METRIC = "top1"
"""Metric that is the share of rows on which a model agrees with the original, on its labels."""


@dataclass(frozen=True)
class AnsweredBy:
    """Batches of data with the classes that a model gave them, (N,) each.

    `data`: as of `optimize`, of a model with these `inputs` and `outputs` in this `folder`. The
    feeds are opened when they are iterated, so that it can be sent to other processes.
    """

    data: Any
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    folder: Path | None
    answers: list[NDArray[np.int64]] = field(default_factory=list, repr=False)

    def feeds(self) -> Feeds:
        """The data without labels."""
        return open_feeds(self.data, self.inputs, self.folder, self.outputs)

    def __call__(self) -> Iterator[tuple[dict[str, Any], NDArray[np.int64]]]:
        for batch, labels in zip(self.feeds(), self.answers, strict=True):
            yield batch.feeds, labels


def add_answers(
    unanswered: AnsweredBy, session: Session, output: str | None, max_drop: float
) -> None:
    """Take the classes that the original says for labels.

    `output`: the one that holds scores of classes, by default the first. `max_drop`: share of rows
    that may change their class. Errors: UsageError where it is no table of scores (N, C), where
    none of its values leads as that of a class does, or where the same one leads so often that an
    answer which is always the same changes no more rows: so it is with targets of unequal scale.
    """
    meter = ChoiceMeter()
    name = output or ""
    for batch in unanswered.feeds():
        outputs = session.run(batch.feeds)
        name = output or next(iter(outputs))
        scores = np.asarray(outputs[name])
        is_table = scores.ndim == 2 and scores.dtype.kind == "f" and scores.shape[1] > 1
        if not is_table:
            raise _no_classes(name, NOT_AMONG_CLASSES)
        meter.update({name: scores}, {name: scores})
        chosen = scores.argmax(axis=1)
        unanswered.answers.append(chosen.astype(np.int64))
    choices = meter.per_output().get(name)
    if choices is None or choices.agreement is None:
        raise _no_classes(name, NOT_AMONG_CLASSES)
    commonest = choices.constant
    least = 1 - max_drop
    if commonest >= least:
        raise _no_classes(
            name,
            f"has its largest value at the same place in {commonest:.1%} of its rows: an answer "
            f"that is always the same would keep {max_drop:g}",
        )


NOT_AMONG_CLASSES = "does not choose among classes, one row a sample"


def _no_classes(output: str, why: str) -> UsageError:
    return UsageError(
        "--max-drop",
        "without labels it is the share of rows that change their class, but output "
        f"'{output}' {why}",
        "give --min-sqnr 20 instead, or labels and --metric",
    )
