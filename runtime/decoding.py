"""Tokens that a language model generates, with its cache or without, and a check of the cache."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import OnnxOptError, RefusedError
from ._data.decoders import CachedDecoder
from .cached_run import Arrays, CachedRun, completed, logits_output, tokens_input
from .feeds import Feeds
from .next_tokens import padding
from .session import Dim, Session

PROMPTS = 8
PROMPT_TOKENS = 32
NEW_TOKENS = 16
"""Prompts, their tokens at most, and tokens that are generated for each.

A model without a cache runs once for each token. Chosen by hand; not measured.
"""

_STEPS = 4
"""Tokens at the end of a window that are fed one by one, to be compared with the prefill's. Chosen
by hand; not measured.
"""

_SAME_DB = 20.0
"""SQNR of the logits of steps against the prefill's above which they are called the same.

Integers of run-time ranges differ between the two by their rounding. Chosen by hand; not measured.
"""


class LanguageModel:
    """A session as a causal language model: tokens (B, T) in, logits (B, T, V) out.

    `decoder`: its inputs where it has a cache. Errors: RefusedError for a model without tokens.
    """

    def __init__(self, session: Session) -> None:
        name = tokens_input(session.inputs)
        if name is None:
            raise RefusedError(
                session.path.name,
                "has no input of token ids: nothing can be generated",
                "use another metric",
            )
        inputs = session.inputs
        self.session = session
        self.tokens = name
        self.decoder = CachedDecoder.of(inputs)
        self.logits = logits_output(session.outputs)

    @property
    def fixed_rows(self) -> int | None:
        """Rows of every batch; None where any number will do."""
        rows, _ = self._shape
        return rows if isinstance(rows, int) else None

    @property
    def fixed_tokens(self) -> int | None:
        """Tokens of every run; None where any number will do."""
        _, length = self._shape
        return length if isinstance(length, int) else None

    @property
    def _shape(self) -> tuple[Dim, Dim]:
        for info in self.session.inputs:
            if info.name == self.tokens:
                break
        rows, length = info.shape
        return rows, length

    @property
    def lasting(self) -> list[str]:
        """Inputs that stay as they are from token to token, as states of an encoder."""
        decoder = self.decoder
        if decoder is None:
            return []
        names = decoder.names("encoder states", "encoder mask")
        if not decoder.has_branch:
            names += decoder.names("cross cache")
        return names

    def feeds(self, prompt: Arrays, tokens: NDArray[Any]) -> Arrays:
        """Whole feeds of `tokens`, with what lasts of a prompt. Errors: as of `completed`."""
        given = {**prompt, self.tokens: tokens}
        return completed(
            self.session.inputs,
            given,
            self.session.path.name,
        )

    def scores(self, prompt: Arrays, tokens: NDArray[Any]) -> NDArray[Any]:
        """Logits of all tokens, run at once."""
        feeds = self.feeds(prompt, tokens)
        outputs = self.session.run(feeds)
        return outputs[self.logits]

    def cached_run(self, prompt: Arrays) -> tuple[CachedRun, NDArray[Any]]:
        """A run that has read a prompt, and its logits.

        All of it at once, or a token at a time where the model takes no more.
        """
        assert self.decoder is not None
        tokens = prompt[self.tokens]
        length = tokens.shape[1]
        count = self.fixed_tokens or length
        run = CachedRun(self.session, self.decoder)
        first = tokens[:, :count]
        outputs = run.start(self.feeds(prompt, first))
        for start in range(count, length, count):
            stop = start + count
            part = tokens[:, start:stop]
            outputs = run.step(part)
        return run, outputs[self.logits]


def prompts_of(session: Session, feeds: Feeds) -> Iterator[Arrays]:
    """First tokens of the first windows, of one length in a batch, with what else was given.

    Errors: RefusedError for a model without tokens, or of which every run takes the same number.
    """
    model = LanguageModel(session)
    length = _prompt_tokens(model)
    left = PROMPTS
    for batch in feeds:
        arrays = batch.feeds
        tokens = arrays[model.tokens]
        if model.fixed_rows is None:
            tokens = tokens[:left]
        rows = len(tokens)
        kept = {name: arrays[name][:rows] for name in model.lasting}
        mask = padding(arrays, tokens)
        if mask is None:
            first = tokens[:, :length]
            yield {model.tokens: first, **kept}
        else:
            yield from _row_by_row(
                model,
                tokens,
                mask,
                kept,
                length,
            )
        left -= rows
        if left <= 0:
            return


def _row_by_row(
    model: LanguageModel,
    tokens: NDArray[Any],
    mask: NDArray[np.bool_],
    kept: Arrays,
    length: int,
) -> Iterator[Arrays]:
    """Prompts of one row each, without their padding."""
    for row, is_kept in enumerate(mask):
        own = tokens[row][is_kept]
        first = own[:length]
        prompt = {model.tokens: first[None, :]}
        stop = row + 1
        for name, array in kept.items():
            prompt[name] = array[row:stop]
        yield prompt


def _prompt_tokens(model: LanguageModel) -> int:
    """Tokens of a prompt at most: a cache of fixed length has room for the new ones, too."""
    length = model.fixed_tokens
    if length is not None and length > 1:
        raise RefusedError(
            model.session.path.name,
            f"takes exactly {length} tokens in '{model.tokens}': nothing can be generated",
            "export it with an open length, or use --metric perplexity",
        )
    room = None if model.decoder is None else model.decoder.room()
    if room is None:
        return PROMPT_TOKENS
    if room <= NEW_TOKENS:
        raise RefusedError(
            model.session.path.name,
            f"its cache has room for {room} tokens; {NEW_TOKENS} new ones and a prompt do not fit",
            "export it with a longer cache, or use --metric perplexity",
        )
    return min(PROMPT_TOKENS, room - NEW_TOKENS)


def greedy(
    session: Session, prompt: Arrays, forced: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Likeliest next tokens (B, 16), one after the other; with the model's cache if it has one.

    `forced`: tokens (B, 16) of another model. A model without a cache then runs once, each token
    behind those of the other: up to the first that differs, it is what it would generate.
    """
    model = LanguageModel(session)
    if model.decoder is not None:
        return _with_cache(model, prompt)
    tokens = prompt[model.tokens]
    if forced is not None:
        return _behind(model, prompt, forced)
    for _ in range(NEW_TOKENS):
        scores = model.scores(prompt, tokens)
        last = scores[:, -1:]
        tokens = np.concatenate([tokens, _likeliest(last)], axis=1)
    new = tokens[:, -NEW_TOKENS:]
    return np.asarray(new, np.int64)


def _behind(
    model: LanguageModel, prompt: Arrays, forced: NDArray[Any]
) -> NDArray[np.int64]:
    """Likeliest token behind the prompt, and behind each of `forced` but the last."""
    tokens = prompt[model.tokens]
    others = forced[:, :-1]
    longer = np.concatenate([tokens, others], axis=1)
    scores = model.scores(prompt, longer)
    first = tokens.shape[1] - 1
    return _likeliest(scores[:, first:])


def _with_cache(model: LanguageModel, prompt: Arrays) -> NDArray[np.int64]:
    run, scores = model.cached_run(prompt)
    chosen = []
    for _ in range(NEW_TOKENS - 1):
        last = _likeliest(scores[:, -1:])
        chosen.append(last)
        outputs = run.step(last)
        scores = outputs[model.logits]
    last = _likeliest(scores[:, -1:])
    chosen.append(last)
    return np.concatenate(chosen, axis=1)


def _likeliest(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens (B, T) of the largest of logits (B, T, V)."""
    # of bfloat16 numpy knows no largest
    wide = scores.astype(np.float32)
    return np.asarray(wide.argmax(-1), np.int64)


def step_remark(session: Session, feeds: Mapping[str, NDArray[Any]]) -> str:
    """Say that tokens one by one, with the cache, give other logits than all at once; else "".

    Looks at the end of the first window of a batch. Models without a cache are not run.
    """
    decoder = CachedDecoder.of(session.inputs)
    if decoder is None or not decoder.names("tokens"):
        return ""
    model = LanguageModel(session)
    rows = model.fixed_rows or 1
    tokens = feeds[model.tokens][:rows]
    most = tokens.shape[1] - 1
    steps = min(_STEPS, most)
    is_padded = padding(feeds, tokens) is not None
    if steps < 1 or is_padded or model.fixed_tokens:
        return ""
    prompt = {name: feeds[name][:rows] for name in model.lasting}
    scores = model.scores(prompt, tokens)
    expected = scores[:, -steps:]
    try:
        got = _stepped(model, prompt, tokens, steps)
    except OnnxOptError as error:
        return f"tokens cannot be fed one by one: {error.where}: {error.problem}"
    return _unlike(expected, got)


def _stepped(
    model: LanguageModel, prompt: Arrays, tokens: NDArray[Any], steps: int
) -> NDArray[Any]:
    """Logits of the last tokens, each run by itself behind those before."""
    length = tokens.shape[1]
    first = length - steps
    beginning = {**prompt, model.tokens: tokens[:, :first]}
    run, _ = model.cached_run(beginning)
    parts = []
    for index in range(first, length):
        stop = index + 1
        token = tokens[:, index:stop]
        outputs = run.step(token)
        scores = outputs[model.logits]
        parts.append(scores[:, -1:])
    return np.concatenate(parts, axis=1)


def _unlike(expected: NDArray[Any], got: NDArray[Any]) -> str:
    """Remark on logits that differ by more than noise; "" where they do not."""
    y = expected.astype(np.float64)
    error = got.astype(np.float64) - y
    noise = float(np.vdot(error, error))
    signal = float(np.vdot(y, y))
    ratio = 10 ** (_SAME_DB / 10)
    allowed = signal / ratio
    # negated, so that NaN is unlike
    if noise <= allowed:
        return ""
    sqnr = -math.inf
    if noise > 0 and signal > 0:
        sqnr = 10 * math.log10(signal / noise)
    return (
        f"tokens fed one by one, with the cache, give other logits than all at once: {sqnr:.1f} dB "
        f"over the last {expected.shape[1]} tokens of a window; the score is of all at once"
    )
