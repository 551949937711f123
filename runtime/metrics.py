"""Task scores on labelled data: top1, top5, spearman, perplexity, or a user's function."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError, UsageError
from .callables import failure, load_callable
from .feeds import Feeds
from .session import Session

Outputs = list[NDArray[Any]]
Pair = tuple[Outputs, Any]
_IGNORED_LABEL = -100


@dataclass(frozen=True)
class Metric:
    """A score over (outputs, labels) of all batches. `higher_is_better` says which way is good."""

    name: str
    over: Callable[[Iterable[Pair]], float]
    higher_is_better: bool = True

    def __call__(self, outputs: Iterable[Outputs], labels: Iterable[Any]) -> float:
        """The score of `outputs` (a list of arrays a batch) against `labels` (one array a
        batch).
        """
        return self.over(zip(outputs, labels, strict=True))


def metric_named(text: str) -> Metric:
    """The metric of that name, or of a user's `module:callable` or `file.py:callable`.

    A user's function gets two lists, over the batches: the outputs (each a list of arrays) and the
    labels; it returns a number. Errors: UsageError with the nearest name.
    """
    if text in _BUILT_IN:
        return _BUILT_IN[text]
    if ":" not in text:
        near = difflib.get_close_matches(text, _BUILT_IN, 1)
        raise UsageError(
            "metric",
            f"'{text}' is not one of {', '.join(_BUILT_IN)}",
            f"did you mean '{near[0]}'?"
            if near
            else "name one of them, or module:callable",
        )
    function = load_callable(text, "metric")
    return Metric(text, lambda pairs: _user_score(function, text, pairs))


def evaluate(
    session: Session,
    feeds: Feeds,
    metric: Metric,
    advance: Callable[[int], None] | None = None,
) -> float:
    """Run the session over labelled feeds and score it. Errors: RefusedError when a batch has no
    labels.
    """

    def pairs() -> Iterator[Pair]:
        for index, batch in enumerate(feeds):
            if batch.labels is None:
                raise RefusedError(
                    f"{feeds.where}, batch {index}",
                    f"has no labels; {metric.name} needs them",
                    "put them under 'labels' in the .npz, or yield (feeds, labels)",
                )
            yield list(session.run(batch.feeds).values()), batch.labels
            if advance is not None:
                advance(1)

    return metric.over(pairs())


def _user_score(
    function: Callable[..., Any], text: str, pairs: Iterable[Pair]
) -> float:
    outputs: list[Outputs] = []
    labels: list[Any] = []
    for out, label in pairs:
        outputs.append(out)
        labels.append(label)
    try:
        return float(function(outputs, labels))
    except Exception as error:
        raise failure(f"metric {text}", error) from error


def _top(k: int) -> Callable[[Iterable[Pair]], float]:
    """Fraction of rows whose label is among the k highest scores of the first output (B, *, C);
    ties go by index.
    """

    def score(pairs: Iterable[Pair]) -> float:
        right = total = 0
        for outputs, labels in pairs:
            scores, truth = _scores_and_classes(outputs, labels, f"top{k}")
            own = np.take_along_axis(scores, truth[:, None], 1)
            ahead = (scores > own).sum(1) + (
                (scores == own) & (np.arange(scores.shape[1]) < truth[:, None])
            ).sum(1)
            right += int(np.sum(ahead < k))
            total += len(truth)
        return right / _at_least_one(total, f"top{k}")

    return score


def _scores_and_classes(
    outputs: Outputs, labels: Any, name: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """First output as (N, C) and labels as (N,), checked against each other."""
    scores, truth = np.asarray(outputs[0]), np.asarray(labels)
    if scores.ndim < 2 or scores.shape[-1] < 2 or scores.dtype.kind not in "fV":
        raise RefusedError(
            f"metric {name}",
            f"the first output has shape {list(scores.shape)}; class scores are (B, C)",
            "use a metric that fits the model, or module:callable",
        )
    if truth.dtype.kind not in "iu" or truth.shape != scores.shape[:-1]:
        raise RefusedError(
            f"metric {name}",
            f"labels are {truth.dtype} {list(truth.shape)}; "
            f"the output needs integers {list(scores.shape[:-1])}",
            "give one class number a row",
        )
    return scores.reshape(-1, scores.shape[-1]), _in_range(
        truth.reshape(-1), scores.shape[-1], name
    )


def _in_range(truth: NDArray[Any], classes: int, name: str) -> NDArray[np.int64]:
    wrong = truth[((truth < 0) | (truth >= classes)) & (truth != _IGNORED_LABEL)]
    if wrong.size or (name != "perplexity" and (truth < 0).any()):
        bad = wrong[0] if wrong.size else _IGNORED_LABEL
        raise RefusedError(
            f"metric {name}",
            f"label {bad} is outside 0 … {classes - 1}",
            "number the classes from 0",
        )
    return truth.astype(np.int64)


def _perplexity(pairs: Iterable[Pair]) -> float:
    """Exp of the mean negative log-likelihood of labels (B, T) under logits (B, T, V), position by
    position.

    Labels are the targets of their positions (already shifted); -100 is left out.
    """
    loss, total = 0.0, 0
    for outputs, labels in pairs:
        logits, truth = _scores_and_classes(outputs, labels, "perplexity")
        kept = truth != _IGNORED_LABEL
        rows, truth = logits[kept].astype(np.float64), truth[kept]
        top = rows.max(1, initial=-np.inf, keepdims=True)
        norm = np.log(np.exp(rows - top).sum(1)) + top[:, 0]
        loss += float(np.sum(norm - np.take_along_axis(rows, truth[:, None], 1)[:, 0]))
        total += len(truth)
    return float(np.exp(loss / _at_least_one(total, "perplexity")))


def _spearman(pairs: Iterable[Pair]) -> float:
    """Rank correlation of the first output, (B,) or (B, 1), with the labels (B,); ties share their
    mean rank.
    """
    values: list[NDArray[Any]] = []
    truth: list[NDArray[Any]] = []
    for outputs, labels in pairs:
        scores, wanted = np.asarray(outputs[0]), np.asarray(labels).reshape(-1)
        if scores.size != len(wanted):
            raise RefusedError(
                "metric spearman",
                f"the first output has shape {list(scores.shape)} for {len(wanted)} labels",
                "the output must be (B,) or (B, 1); for pairs of sentences write module:callable",
            )
        values.append(scores.reshape(-1).astype(np.float64))
        truth.append(wanted.astype(np.float64))
    _at_least_one(len(values), "spearman")
    left, right = _ranks(np.concatenate(values)), _ranks(np.concatenate(truth))
    left, right = left - left.mean(), right - right.mean()
    norm = float(np.sqrt((left @ left) * (right @ right)))
    if norm == 0:
        raise RefusedError(
            "metric spearman",
            "is undefined: all outputs or all labels are equal",
            "give varied data",
        )
    return float(left @ right) / norm


def _ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    ranks: NDArray[np.float64] = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    return ranks


def _at_least_one(total: int, name: str) -> int:
    if total == 0:
        raise RefusedError(
            f"metric {name}", "there is nothing to score", "give labelled data"
        )
    return total


_BUILT_IN: dict[str, Metric] = {
    m.name: m
    for m in (
        Metric("top1", _top(1)),
        Metric("top5", _top(5)),
        Metric("spearman", _spearman),
        Metric("perplexity", _perplexity, higher_is_better=False),
    )
}
METRIC_NAMES = tuple(_BUILT_IN)
