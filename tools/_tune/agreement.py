"""Labels where there are none: what the original model itself says."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import UsageError
from ...runtime.feeds import Feeds
from ...runtime.session import Session

METRIC = "top1"
"""Metric that is the share of rows on which a model agrees with the original, on its labels."""


@dataclass
class AnsweredBy:
    """Batches of feeds with the classes that a model gave them, (N,) each."""

    feeds: Feeds
    answers: list[NDArray[np.int64]]

    def __call__(self) -> Iterator[tuple[dict[str, Any], NDArray[np.int64]]]:
        for batch, labels in zip(self.feeds, self.answers, strict=True):
            yield batch.feeds, labels


def answered(session: Session, feeds: Feeds, output: str | None) -> AnsweredBy:
    """Take the classes that the original says for labels.

    `output`: the one that holds scores of classes, by default the first. Errors: UsageError where
    it is no table of scores (N, C).
    """
    answers = []
    for batch in feeds:
        outputs = session.run(batch.feeds)
        name = output or next(iter(outputs))
        scores = np.asarray(outputs[name])
        is_table = scores.ndim == 2 and scores.dtype.kind == "f" and scores.shape[1] > 1
        if not is_table:
            raise UsageError(
                "--max-drop",
                f"without labels it is the share of rows that change their class, but '{name}' "
                f"{list(scores.shape)} holds no scores of classes, one row a sample",
                "give --min-sqnr instead, or labels and --metric",
            )
        answers.append(scores.argmax(axis=1).astype(np.int64))
    return AnsweredBy(feeds, answers)
