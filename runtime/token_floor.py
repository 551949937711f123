"""Floor of language models: how well a result still predicts the tokens of the data.

The distance of logits says little of them: a decoder whose logits kept 9.6 dB went from a
perplexity of 37 to one of 90, and one that kept 5.1 dB from 32 to 56.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached_run import logits_output, tokens_input
from .metrics import metric_named
from .next_tokens import next_tokens
from .session import TensorInfo

MOST = 2.0
"""Perplexity by the original's up to which a result still says what the original says. Chosen by
hand, as the metric's own floor is; not measured.
"""

GUESSES = 0.1
"""Perplexity, as a share of the vocabulary, from which a model predicts something other than the
next token. Chosen by hand; not measured.
"""

Arrays = Mapping[str, NDArray[Any]]


def token_problem(
    feeds: Sequence[Arrays], before: Iterable[Arrays], after: Iterable[Arrays]
) -> str | None:
    """Say how much worse the next tokens of feeds are predicted; None where it is no problem.

    `before`, `after`: outputs of the original and of the result on each of the feeds, one batch at
    a time: logits are large. None, too, where the original does not predict next tokens.
    """
    name = tokens_input(_infos(feeds[0]))
    if name is None:
        return None
    if any(name not in each for each in feeds):
        return None
    output = logits_output(_infos(next(iter(before))))
    labels = []
    vocabulary = 0
    for each, outputs in zip(feeds, before, strict=True):
        tokens = each[name]
        shape = outputs[output].shape
        vocabulary = vocabulary or _vocabulary(shape)
        if shape != (*tokens.shape, vocabulary):
            return None
        if not _are_words(tokens, vocabulary):
            return None
        following = next_tokens(each, tokens)
        labels.append(following)
    if not any(_has_label(each) for each in labels):
        return None
    first = _perplexity(before, output, labels)
    of_guesses = GUESSES * vocabulary
    if not first <= of_guesses:
        return None
    last = _perplexity(after, output, labels)
    most = MOST * first
    if last <= most:
        return None
    return (
        f"output '{output}' predicts the next token with a perplexity of {last:.4g}, "
        f"of {first:.4g} before"
    )


def _vocabulary(shape: Sequence[int]) -> int:
    """Number of tokens that logits (N, T, V) tell apart; 0 for another shape."""
    return shape[-1] if len(shape) == 3 else 0


def _are_words(tokens: NDArray[Any], vocabulary: int) -> bool:
    """True for some tokens, all of a vocabulary."""
    if tokens.size == 0:
        return False
    lowest = tokens.min()
    highest = tokens.max()
    return not (lowest < 0 or highest >= vocabulary)


def _has_label(labels: NDArray[np.int64]) -> bool:
    """True if any label counts: those below 0 do not."""
    counts = labels >= 0
    return bool(counts.any())


def _infos(arrays: Arrays) -> list[TensorInfo]:
    infos = []
    for name, array in arrays.items():
        info = TensorInfo(name, array.dtype.name, array.shape)
        infos.append(info)
    return infos


def _perplexity(
    batches: Iterable[Arrays], output: str, labels: Sequence[NDArray[np.int64]]
) -> float:
    metric = metric_named("perplexity")
    pairs = (
        ([outputs[output]], truth)
        for outputs, truth in zip(batches, labels, strict=True)
    )
    return metric.score(pairs).value
