"""Task scores on data: top1, top5, spearman, perplexity, generation, or a user's function."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError, UsageError
from ..passes._core.nearest import did_you_mean
from .cached_run import Arrays, logits_output
from .callables import failure, load_callable
from .decoding import greedy, prompts_of, step_remark
from .feeds import Batch, Feeds
from .next_tokens import IGNORED, with_next_tokens
from .session import Session

Outputs = list[NDArray[Any]]
Pair = tuple[Outputs, Any]


class MetricScore(NamedTuple):
    """A metric over labelled data.

    `hits`: of each row, whether it is right, (N,) booleans; None where the metric is no share of
    rows. `classes`: how many a row is told from, or tokens of a perplexity; 0 where that is not
    known. `strangers`: labels and predictions of which none is among the other, as words; "" where
    some are. `is_cached`: an earlier run computed it. `remark`: what should be known of it, ""
    where nothing.
    """

    value: float
    hits: NDArray[np.bool_] | None = None
    classes: int = 0
    strangers: str = ""
    is_cached: bool = False
    remark: str = ""


Advance = Callable[[int], None]
"""A function that is called with 1 after each batch."""


@dataclass(frozen=True)
class Metric:
    """A score over (outputs, labels) of all batches; `higher_is_better` says which way is good.

    `is_of_tokens`: labels that the data lacks are the tokens that come next. `drop_is_share`: what
    is lost counts as a share of the score before. `generates`: makes the outputs itself, and
    compares each model that it is asked of with the first.
    """

    name: str
    score: Callable[[Iterable[Pair]], MetricScore]
    higher_is_better: bool = True
    is_of_tokens: bool = False
    drop_is_share: bool = False
    generates: Generation | None = None

    def __call__(self, outputs: Iterable[Outputs], labels: Iterable[Any]) -> float:
        """Score `outputs` (a list of arrays a batch) against `labels` (one array a batch)."""
        return self.score(zip(outputs, labels, strict=True)).value


def metric_named(named: str | Callable[..., Any]) -> Metric:
    """Get the metric of that name, or of a user's function.

    A function, or the `module:callable` or `file.py:callable` that names it, gets two lists, over
    the batches: the outputs (each a list of arrays) and the labels; it returns a number. Errors:
    UsageError with the nearest name.
    """
    if callable(named):
        name = getattr(named, "__qualname__", type(named).__name__)
        return _of_function(named, name)
    if named == GENERATION:
        # it remembers the first model that it is asked of
        return Metric(GENERATION, _same_tokens, generates=Generation())
    if named in _BUILT_IN:
        return _BUILT_IN[named]
    if ":" not in named:
        fix = did_you_mean(named, METRIC_NAMES, "name one of them, or module:callable")
        raise UsageError(
            "metric",
            f"'{named}' is not one of {', '.join(METRIC_NAMES)}",
            fix,
        )
    return _of_function(load_callable(named, "metric"), named)


def _of_function(function: Callable[..., Any], name: str) -> Metric:
    return Metric(name, lambda pairs: MetricScore(_user_score(function, name, pairs)))


def evaluate(
    session: Session,
    feeds: Feeds,
    metric: Metric,
    advance: Callable[[int], None] | None = None,
    output: str | None = None,
) -> MetricScore:
    """Run the session over labelled feeds and score it.

    `advance` is called with 1 after each batch. `output`: the output to score; None: the metric
    gets all, and the built-in ones take the first, or the logits. Errors: RefusedError when a batch
    has no labels, and for class folders whose numbers are a guess that the model's classes do not
    bear out; UsageError for an output that the model does not have.
    """
    if output is not None:
        _check_output(session, output)
    if metric.generates is not None:
        return metric.score(metric.generates.pairs(session, feeds, advance))
    batches: Iterable[Batch] = feeds
    if metric.is_of_tokens:
        batches = with_next_tokens(session, feeds, metric.name)
        output = output or logits_output(session.outputs)
    first: list[Arrays] = []

    def pairs() -> Iterator[Pair]:
        for index, batch in enumerate(batches):
            if batch.labels is None:
                raise RefusedError(
                    f"{feeds.where}, batch {index}",
                    f"has no labels; {metric.name} needs them",
                    "put them under 'labels' in the .npz, or yield (feeds, labels)",
                )
            if not first:
                first.append(batch.feeds)
            named = session.run(batch.feeds)
            outputs = list(named.values()) if output is None else [named[output]]
            if index == 0:
                _check_classes(feeds, outputs[0])
            yield outputs, batch.labels
            if advance is not None:
                advance(1)

    found = metric.score(pairs())
    if not metric.is_of_tokens:
        return found
    (batch,) = first
    remark = step_remark(session, batch)
    return found._replace(remark=remark)


class Generation:
    """Tokens that models generate, beside those of the first model that is asked."""

    def __init__(self) -> None:
        self._expected: list[NDArray[np.int64]] = []

    def pairs(
        self, session: Session, feeds: Feeds, advance: Advance | None
    ) -> Iterator[Pair]:
        """Yield ([tokens], tokens of the first model), both (B, N), for each batch of prompts."""
        is_first = not self._expected
        prompts = prompts_of(session, feeds)
        for index, prompt in enumerate(prompts):
            if is_first:
                tokens = greedy(session, prompt)
                self._expected.append(tokens)
            expected = self._expected[index]
            if not is_first:
                tokens = greedy(
                    session,
                    prompt,
                    expected,
                )
            yield [tokens], expected
            if advance is not None:
                advance(1)


def _same_tokens(pairs: Iterable[Pair]) -> MetricScore:
    """Share of the tokens (B, N) that equal the labels (B, N), up to the first that does not.

    What comes behind another token is another text, and no measure of the model.
    """
    same = 0
    total = 0
    for outputs, labels in pairs:
        (tokens,) = outputs
        is_equal = tokens == labels
        is_same = np.logical_and.accumulate(is_equal, axis=1)
        same += int(is_same.sum())
        total += is_same.size
    tokens_in_all = _at_least_one(total, GENERATION)
    return MetricScore(same / tokens_in_all)


def _check_output(session: Session, output: str) -> None:
    names = [info.name for info in session.outputs]
    if output not in names:
        fix = did_you_mean(output, names, f"the outputs are {', '.join(names)}")
        raise UsageError("--metric-output", f"the model has no output '{output}'", fix)


def _check_classes(feeds: Feeds, scores: NDArray[Any]) -> None:
    """Refuse class folders numbered by their order where the model has other classes."""
    if not feeds.numbered or scores.ndim < 2 or scores.shape[-1] == feeds.numbered:
        return
    raise RefusedError(
        f"data {feeds.where}",
        f"has {feeds.numbered} class folders, the model {scores.shape[-1]} classes: "
        "nothing says which folder is which class",
        "name the folders by class number, or list all classes in classes.txt, "
        "a name a line, in the order of the model's outputs",
    )


def _user_score(
    function: Callable[..., Any], text: str, pairs: Iterable[Pair]
) -> float:
    # all batches are held: a user's function may need them together, as a ranking does
    outputs: list[Outputs] = []
    labels: list[Any] = []
    for out, label in pairs:
        outputs.append(out)
        labels.append(label)
    try:
        return float(function(outputs, labels))
    except Exception as error:
        raise failure(f"metric {text}", error) from error


def _top(k: int) -> Callable[[Iterable[Pair]], MetricScore]:
    """Make the score of rows whose label is among the k highest of the first output (B, *, C).

    A fraction; ties go by index. For k of 1 the first output may hold the labels themselves, (B,).
    """
    name = f"top{k}"

    def score(pairs: Iterable[Pair]) -> MetricScore:
        parts = []
        classes = 0
        predicted: set[Any] = set()
        wanted: set[Any] = set()
        for outputs, labels in pairs:
            if k == 1 and _are_labels(outputs[0]):
                parts.append(_equal_labels(outputs[0], labels, name))
                predicted.update(np.unique(outputs[0]).tolist())
                wanted.update(np.unique(labels).tolist())
                continue
            scores, truth = _scores_and_classes(outputs, labels, name)
            before = _ranked_before(scores, truth)
            parts.append(before < k)
            classes = scores.shape[1]
        hits = np.concatenate(parts) if parts else np.zeros(0, bool)
        total = _at_least_one(len(hits), name)
        strangers = ""
        if predicted and predicted.isdisjoint(wanted):
            strangers = f"labels are {_few(wanted)}, predictions {_few(predicted)}"
        return MetricScore(int(np.sum(hits)) / total, hits, classes, strangers)

    return score


def _few(values: set[Any], most: int = 5) -> str:
    """Some values, for people."""
    words = [str(value) for value in sorted(values, key=str)]
    shown = words[:most]
    if len(words) > most:
        shown.append("…")
    return ", ".join(shown)


def _are_labels(output: NDArray[Any]) -> bool:
    """Return whether an output holds predicted labels, as classifiers of scikit-learn do."""
    is_vector = output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)
    # integers, booleans, texts
    return is_vector and output.dtype.kind in "iubOUS"


def _equal_labels(output: NDArray[Any], labels: Any, name: str) -> NDArray[np.bool_]:
    predicted = output.reshape(-1)
    truth = np.asarray(labels).reshape(-1)
    if len(predicted) != len(truth):
        raise RefusedError(
            f"metric {name}",
            f"{len(truth)} labels for {len(predicted)} predictions",
            "give one label a row",
        )
    return np.asarray(predicted == truth, bool)


def _ranked_before(scores: NDArray[Any], truth: NDArray[np.int64]) -> NDArray[Any]:
    """Count the classes that come before the true one in each row: (N, C), (N,) -> (N,)."""
    truth_column = truth[:, None]
    own = np.take_along_axis(scores, truth_column, 1)
    higher = scores > own
    # as a sort that keeps the order of equals would have it
    classes = np.arange(scores.shape[1])
    ties_before = (scores == own) & (classes < truth_column)
    return np.asarray(higher.sum(1) + ties_before.sum(1))


def _scores_and_classes(
    outputs: Outputs, labels: Any, name: str
) -> tuple[NDArray[Any], NDArray[np.int64]]:
    """Reshape the first output to (N, C) and labels to (N,), checked against each other."""
    scores = np.asarray(outputs[0])
    truth = np.asarray(labels)
    # kind V is bfloat16
    is_float = scores.dtype.kind in "fV"
    if not is_float or scores.ndim < 2 or scores.shape[-1] < 2:
        raise RefusedError(
            f"metric {name}",
            f"the first output has shape {list(scores.shape)}; class scores are (B, C)",
            "use a metric that fits the model, or module:callable",
        )
    *rows, classes = scores.shape
    is_integer = truth.dtype.kind in "iu"
    if not is_integer or list(truth.shape) != rows:
        raise RefusedError(
            f"metric {name}",
            f"labels are {truth.dtype} {list(truth.shape)}; "
            f"the output needs integers {rows}",
            "give one class number a row",
        )
    flat_scores = scores.reshape(-1, classes)
    flat_truth = truth.reshape(-1)
    return flat_scores, _in_range(flat_truth, classes, name)


def _in_range(truth: NDArray[Any], classes: int, name: str) -> NDArray[np.int64]:
    """Refuse labels that are no class. Only perplexity leaves labels out."""
    is_class = (truth >= 0) & (truth < classes)
    is_ignored = truth == IGNORED
    wrong = truth[~is_class & ~is_ignored]
    if wrong.size or (name != "perplexity" and is_ignored.any()):
        bad = wrong[0] if wrong.size else IGNORED
        raise RefusedError(
            f"metric {name}",
            f"label {bad} is outside 0 … {classes - 1}",
            "number the classes from 0",
        )
    return truth.astype(np.int64)


def _perplexity(pairs: Iterable[Pair]) -> MetricScore:
    """Exp of the mean negative log-likelihood of labels (B, T) under logits (B, T, V).

    Labels are the targets of their positions (already shifted); -100 is left out.
    """
    loss = 0.0
    total = 0
    classes = 0
    for outputs, labels in pairs:
        logits, truth = _scores_and_classes(outputs, labels, "perplexity")
        classes = logits.shape[1]
        # a few rows at a time: a copy of all logits would be as large as the model's memory
        for start in range(0, len(truth), _LOGIT_ROWS):
            part = slice(start, start + _LOGIT_ROWS)
            losses = _losses(logits[part], truth[part])
            loss += float(np.sum(losses))
            total += len(losses)
    mean_loss = loss / _at_least_one(total, "perplexity")
    # beyond what a number can hold it is infinite, which is said as such
    with np.errstate(over="ignore"):
        return MetricScore(float(np.exp(mean_loss)), classes=classes)


_LOGIT_ROWS = 32
"""Rows of logits that are summed at once. Chosen by hand; not measured."""


def _losses(logits: NDArray[Any], truth: NDArray[np.int64]) -> NDArray[np.float64]:
    """Negative log-likelihood of the labels (N,) that are not left out, under logits (N, V)."""
    kept = truth != IGNORED
    wanted = truth[kept]
    rows = logits if kept.all() else logits[kept]
    # halves and bfloat16 have too few digits to be added up
    dtype = np.promote_types(np.float32, rows.dtype)
    wide = rows.astype(dtype, copy=False)
    # the largest logit is taken out of the exponentials, which would overflow
    top = wide.max(
        axis=1,
        initial=-np.inf,
        keepdims=True,
    )
    below = wide - top
    own = np.take_along_axis(below, wanted[:, None], 1)
    # in place: there may be many tokens to tell from
    exponentials = np.exp(below, out=below)
    sums = exponentials.sum(1, dtype=np.float64)
    losses = np.log(sums) - own[:, 0]
    return np.asarray(losses, np.float64)


def _spearman(pairs: Iterable[Pair]) -> MetricScore:
    """Rank correlation of the first output, (B,) or (B, 1), with the labels (B,)."""
    values: list[NDArray[Any]] = []
    truth: list[NDArray[Any]] = []
    for outputs, labels in pairs:
        scores = np.asarray(outputs[0])
        wanted = np.asarray(labels).reshape(-1)
        rows = len(scores) if scores.ndim else 1
        # several values a row are several targets, whose ranks have nothing to do with each other
        if scores.size != rows or rows != len(wanted):
            raise RefusedError(
                "metric spearman",
                f"the first output has shape {list(scores.shape)} for {len(wanted)} labels",
                "the output must be (B,) or (B, 1), with a label a row; for several targets, or "
                "pairs of sentences, write module:callable",
            )
        flat_scores = scores.reshape(-1)
        values.append(flat_scores.astype(np.float64))
        truth.append(wanted.astype(np.float64))
    _at_least_one(len(values), "spearman")
    left = _centred_ranks(np.concatenate(values))
    right = _centred_ranks(np.concatenate(truth))
    # Pearson's coefficient of the ranks: the formula by squared differences fails on ties
    power = (left @ left) * (right @ right)
    norm = float(np.sqrt(power))
    if norm == 0:
        raise RefusedError(
            "metric spearman",
            "is undefined: all outputs or all labels are equal",
            "give varied data",
        )
    return MetricScore(float(left @ right) / norm)


def _centred_ranks(values: NDArray[np.float64]) -> NDArray[np.float64]:
    """Ranks less their mean; ties share their mean rank."""
    _, inverse, counts = np.unique(
        values,
        return_inverse=True,
        return_counts=True,
    )
    last_ranks = np.cumsum(counts)
    mean_ranks = last_ranks - (counts - 1) / 2
    ranks = mean_ranks[inverse]
    centred: NDArray[np.float64] = ranks - ranks.mean()
    return centred


def _at_least_one(total: int, name: str) -> int:
    if total == 0:
        raise RefusedError(
            f"metric {name}", "there is nothing to score", "give labelled data"
        )
    return total


_BUILT_IN: dict[str, Metric] = {
    "top1": Metric("top1", _top(1)),
    "top5": Metric("top5", _top(5)),
    "spearman": Metric("spearman", _spearman),
    "perplexity": Metric(
        "perplexity",
        _perplexity,
        higher_is_better=False,
        is_of_tokens=True,
        drop_is_share=True,
    ),
}

GENERATION = "generation"

METRIC_NAMES = (*_BUILT_IN, GENERATION)
"""Names of the metrics that need no code of the user's."""
