"""Labels of language models: the tokens that come next."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from .cached_run import tokens_input
from .feeds import Batch, Feeds
from .session import Session

IGNORED = -100
"""Label of positions that have none, as in torch's CrossEntropyLoss."""


def with_next_tokens(session: Session, feeds: Feeds, metric: str) -> Iterator[Batch]:
    """Batches with labels (B, T): where there are none, the token that comes next.

    The last token of a window, and padding, have no label (-100). Labels that are the tokens
    themselves, as trainers of transformers take them, are moved by one. Errors: RefusedError for a
    model without tokens.
    """
    name = tokens_input(session.inputs)
    for index, batch in enumerate(feeds):
        if name is not None:
            tokens = batch.feeds[name]
            yield Batch(batch.feeds, _labels(batch, tokens, feeds))
            continue
        if batch.labels is None:
            raise RefusedError(
                f"{feeds.where}, batch {index}",
                f"has no labels, and the model no input of token ids to take them from; "
                f"{metric} needs them",
                "put them under 'labels' in the .npz, or yield (feeds, labels)",
            )
        yield batch


def _labels(batch: Batch, tokens: NDArray[Any], feeds: Feeds) -> NDArray[Any]:
    """Labels of a batch, or the tokens (B, T) moved by one."""
    labels = batch.labels
    if labels is None:
        return next_tokens(batch.feeds, tokens)
    if labels.shape != tokens.shape:
        return labels
    is_label = labels != IGNORED
    is_same = labels == tokens
    if not is_same[is_label].all():
        return labels
    feeds.note(f"{feeds.where}: labels are the tokens themselves: moved by one")
    return _moved_by_one(tokens, is_label)


def next_tokens(
    feeds: Mapping[str, NDArray[Any]], tokens: NDArray[Any]
) -> NDArray[np.int64]:
    """Label of each position of tokens (B, T): the next one, -100 where there is none."""
    return _moved_by_one(tokens, padding(feeds, tokens))


def _moved_by_one(
    tokens: NDArray[Any], kept: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Label of each position of tokens (B, T): the next token, if it is kept."""
    labels = np.full(tokens.shape, IGNORED, np.int64)
    following = tokens[:, 1:]
    if kept is not None:
        following = np.where(kept[:, 1:], following, IGNORED)
    labels[:, :-1] = following
    return labels


def padding(
    feeds: Mapping[str, NDArray[Any]], tokens: NDArray[Any]
) -> NDArray[np.bool_] | None:
    """Tokens (B, T) that a mask keeps; None where it keeps all."""
    for name, array in feeds.items():
        is_mask = re.search("mask", name) is not None
        if not is_mask or "encoder" in name or array.ndim != 2:
            continue
        kept: NDArray[np.bool_] = array[: len(tokens)] != 0
        if kept.shape == tokens.shape and not kept.all():
            return kept
    return None
