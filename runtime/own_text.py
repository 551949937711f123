"""Text that a language model writes itself, for where its users gave none.

Tokens drawn alike from a vocabulary are like no text, and neither is what layers make of them. What
the model says of the next token is: it has seen much text.

A model without a cache reads all of a window for every token that it adds. So a window is written
in a few runs instead: the first draws every token anew, each by what stood in front; then one token
in `PIECE` is drawn in each run, so that the tokens of a piece follow from each other. In front of a
piece stands what the first run drew there.

Measured on SmolLM2, of which three blocks were rounded to 4 bits by 8 windows of 256 tokens: noise
of their outputs on real text -21.7 dB by tokens drawn alike, -22.8 by the first run alone, -23.4
with four more, -23.2 by pieces of 8 without the first run and -23.4 by pieces of 16, -23.6 by
tokens written one by one (nearest rounding: -21.9; by real text -26.0).

Source: Liu et al., LLM-QAT: Data-Free Quantization Aware Training for Large Language Models, 2023
(arXiv:2305.17888), for data that the model makes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .cached_run import logits_output, tokens_input
from .feeds import Batch
from .session import Session

PIECE = 4
"""Tokens that are drawn one behind the other."""

_NOISE = 1e-3
"""Share of the largest logit that those of earlier tokens may differ by between two runs. Chosen by
hand; not measured.
"""

Arrays = dict[str, NDArray[Any]]


def with_own_text(
    session: Session,
    batches: Sequence[Batch],
    vocabularies: Mapping[str, int],
    seed: int,
    advance: Callable[[int], None],
) -> list[Batch]:
    """Batches whose tokens the model wrote; as they are where it says nothing of the next token.

    `vocabularies`: how many ids each input takes. `advance`: called with each count of batches that
    are done. Errors: as of `Session.run`.
    """
    name = tokens_input(session.inputs)
    if name is None or name not in vocabularies or not batches:
        return list(batches)
    first = batches[0]
    logits = logits_output(session.outputs)
    if not scores_next(session, first.feeds, name, logits):
        return list(batches)
    random = np.random.default_rng(seed)
    found = []
    for batch in batches:
        feeds = dict(batch.feeds)
        feeds[name] = written(
            session,
            feeds,
            name,
            logits,
            vocabularies[name],
            random,
        )
        found.append(Batch(feeds, None))
        advance(1)
    return found


def scores_next(session: Session, feeds: Arrays, tokens: str, logits: str) -> bool:
    """True if logits (B, T, V) at each token (B, T) are of the one behind it.

    The last token must not change what is said before it, as it does where gaps are filled.
    """
    ids = feeds[tokens]
    if ids.ndim != 2 or ids.shape[1] < 2:
        return False
    outputs = session.run(feeds)
    before = outputs[logits]
    if before.ndim != 3 or before.shape[:2] != ids.shape:
        return False
    other = ids.copy()
    # ids that every vocabulary has
    other[:, -1] = np.where(ids[:, -1] == 0, 1, 0)
    rows = range(ids.shape[1] - 1)
    after = session.run_rows({**feeds, tokens: other}, logits, rows)
    unchanged = before[:, :-1].astype(np.float32)
    difference = np.abs(after - unchanged)
    largest = np.abs(unchanged).max()
    return bool(difference.max() <= _NOISE * largest)


def written(
    session: Session,
    feeds: Arrays,
    tokens: str,
    logits: str,
    vocabulary: int,
    random: np.random.Generator,
) -> NDArray[Any]:
    """Tokens (B, T) that the model writes behind the first of each row."""
    ids = feeds[tokens].copy()
    for places in _turns(ids.shape[1]):
        # each by the logits of the token before it
        before = [place - 1 for place in places]
        scores = session.run_rows({**feeds, tokens: ids}, logits, before)
        # a model may score more tokens than it has
        known = scores[..., :vocabulary]
        ids[:, list(places)] = drawn(known, random)
    return ids


def _turns(length: int) -> Iterator[range]:
    """Places of the tokens that each run draws; the first has nothing in front, and stays."""
    turns = [range(1, length)]
    turns += [range(step or PIECE, length, PIECE) for step in range(PIECE)]
    for places in turns:
        # a window of one token, as of a step with a cache, has none
        if places:
            yield places


def drawn(scores: NDArray[Any], random: np.random.Generator) -> NDArray[np.int64]:
    """A token for each row of logits, as often as its probability says: (..., V) -> (...)."""
    chances = scores.astype(np.float32)
    chances -= chances.max(-1, keepdims=True)
    np.exp(chances, out=chances)
    np.cumsum(chances, axis=-1, out=chances)
    total = chances[..., -1:]
    # above 0, so that no token is drawn that never follows
    part = 1 - random.random(total.shape, np.float32)
    below = chances < part * total
    return np.asarray(below.sum(-1), np.int64)
