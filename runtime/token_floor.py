"""Floor of language models: how well a result still predicts the tokens of the data.

The distance of logits says little of them: a decoder whose logits kept 9.6 dB went from a
perplexity of 37 to one of 90, and one that kept 5.1 dB from 32 to 56.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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
    feeds: Sequence[Arrays], before: Sequence[Arrays], after: Sequence[Arrays]
) -> str | None:
    """Say how much worse the next tokens of feeds are predicted; None where it is no problem.

    `before`, `after`: outputs of the original and of the result on each of the feeds. None, too,
    where the original does not predict next tokens.
    """
    name = tokens_input(_infos(feeds[0]))
    if name is None or any(name not in each for each in feeds):
        return None
    logits = logits_output(_infos(before[0]))
    vocabulary = before[0][logits].shape[-1] if before[0][logits].ndim == 3 else 0
    labels = []
    for each, outputs in zip(feeds, before, strict=True):
        tokens = each[name]
        if outputs[logits].shape != (*tokens.shape, vocabulary):
            return None
        if tokens.size == 0 or tokens.min() < 0 or tokens.max() >= vocabulary:
            return None
        labels.append(next_tokens(each, tokens))
    if not any((each >= 0).any() for each in labels):
        return None
    first, last = (
        _perplexity([outputs[logits] for outputs in side], labels)
        for side in (before, after)
    )
    if not first <= GUESSES * vocabulary or last <= MOST * first:
        return None
    return (
        f"output '{logits}' predicts the next token with a perplexity of {last:.4g}, "
        f"of {first:.4g} before"
    )


def _infos(arrays: Arrays) -> list[TensorInfo]:
    return [
        TensorInfo(name, array.dtype.name, array.shape)
        for name, array in arrays.items()
    ]


def _perplexity(
    logits: Sequence[NDArray[Any]], labels: Sequence[NDArray[np.int64]]
) -> float:
    pairs = [([each], truth) for each, truth in zip(logits, labels, strict=True)]
    return metric_named("perplexity").score(pairs).value
