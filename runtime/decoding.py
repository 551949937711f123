"""Token by token through a causal language model, with its cache or without."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._data import conventional
from ._data.decoders import CachedDecoder, Lengths, role_of
from .feeds import Batch, Feeds
from .session import Session, TensorInfo

Arrays = dict[str, NDArray[Any]]

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

_PRESENT = (
    (r"^past_key_values", "present"),
    (r"^past_key_values", "present_key_values"),
    (r"^past", "present"),
    (r"past", "present"),
    (r"^", "new_"),
    (r"^", "present_"),
    (r"$", "_out"),
    (r"in$", "out"),
    (r"_in(?=[_.\d])", "_out"),
)
"""Names of outputs that a cache comes back as, made from the input's; the first that is there."""


def tokens_input(inputs: Sequence[TensorInfo]) -> str | None:
    """Name of the input of token ids (B, T); None where a model has none."""
    named = [info.name for info in inputs if role_of(info) == "tokens"]
    if named:
        return named[0]
    for info in inputs:
        is_matrix = info.dtype.startswith("int") and len(info.shape) == 2
        if is_matrix and not conventional.is_conventional(info.name):
            return info.name
    return None


def logits_output(outputs: Sequence[TensorInfo]) -> str:
    """Name of the output of logits (B, T, V): by its name, else the first of that rank."""
    named = [info.name for info in outputs if re.search("logits", info.name)]
    if named:
        return named[0]
    of_rank = [info.name for info in outputs if len(info.shape) == 3]
    return (of_rank or [outputs[0].name])[0]


class CachedRun:
    """A run of a decoder whose cache goes from the outputs of one call to the inputs of the next.

    Errors: RefusedError where no output goes with a cache.
    """

    def __init__(self, session: Session, decoder: CachedDecoder) -> None:
        self._session = session
        self._decoder = decoder
        self._present = _presents(session, decoder)
        self._feeds: Arrays = {}
        self._outputs: Arrays = {}
        self._lengths = Lengths(0, 0)

    def start(self, feeds: Mapping[str, NDArray[Any]]) -> Arrays:
        """Run the prefill, whole feeds with an empty cache."""
        self._feeds = dict(feeds)
        where = self._session.path.name
        self._lengths = self._decoder.lengths_of(feeds, where)
        self._outputs = self._session.run(self._feeds)
        return self._outputs

    def step(self, tokens: NDArray[Any]) -> Arrays:
        """Run the next tokens (B, n). Errors: RefusedError where a cache comes back unlike it."""
        self._feeds = self.step_feeds(tokens)
        self._outputs = self._session.run(self._feeds)
        return self._outputs

    def step_feeds(self, tokens: NDArray[Any]) -> Arrays:
        """Make the feeds of the next tokens (B, n). Errors: as of `step`."""
        before = self._lengths
        past = before.past + before.tokens
        lengths = before._replace(past=past, tokens=tokens.shape[1])
        was_empty = before.past == 0
        decoder = self._decoder
        feeds = dict(self._feeds)
        feeds[decoder.main] = tokens.astype(feeds[decoder.main].dtype)
        mask = self._longer_mask(tokens)
        old_shape = self._feeds[decoder.main].shape[:2]
        for name, array in self._feeds.items():
            # segments and the like: one number a token
            if name not in decoder.roles and array.shape == old_shape:
                feeds[name] = array[:, -tokens.shape[1] :]
        for name, role in decoder.roles.items():
            if role in ("cache", "state"):
                feeds[name] = self._cache(name)
            elif role == "cross cache":
                # later runs need not give it back
                if was_empty and decoder.has_branch:
                    feeds[name] = self._cache(name)
            elif role == "mask" and mask is not None:
                feeds[name] = mask.astype(feeds[name].dtype)
            elif role != "encoder mask":
                derived = decoder.derived(name, lengths, mask)
                feeds[name] = feeds[name] if derived is None else derived
        self._lengths = lengths
        return feeds

    def _longer_mask(self, tokens: NDArray[Any]) -> NDArray[Any] | None:
        """Mask (B, past + T) with ones for new tokens; None where it has another form."""
        decoder = self._decoder
        names = decoder.names("mask")
        if not names or decoder.buffer() is not None:
            return None
        mask = self._feeds[names[0]]
        if mask.ndim != 2:
            return None
        return np.concatenate([mask, np.ones_like(tokens, mask.dtype)], axis=1)

    def _cache(self, name: str) -> NDArray[Any]:
        """A cache as the run before left it."""
        decoder = self._decoder
        output = self._present[name]
        array = self._outputs[output]
        dims = decoder.inputs[name].shape
        buffer = decoder.buffer() if decoder.roles[name] == "cache" else None
        if buffer is not None and array.ndim == len(dims):
            axis = decoder.past_axis(name)
            length = array.shape[axis]
            # one that grew beyond the fixed length drops its oldest tokens
            kept = np.arange(max(length - buffer, 0), length)
            array = np.take(array, kept, axis)
        fits = array.ndim == len(dims) and all(
            not isinstance(dim, int) or dim == length
            for dim, length in zip(dims, array.shape, strict=True)
        )
        if not fits:
            takes = ["?" if not isinstance(dim, int) else str(dim) for dim in dims]
            raise RefusedError(
                f"{self._session.path.name}, output '{output}'",
                f"has shape {list(array.shape)}; the cache input '{name}' takes "
                f"[{', '.join(takes)}]",
                "export the model again: what it gives back must fit what it takes",
            )
        return array


def _presents(session: Session, decoder: CachedDecoder) -> dict[str, str]:
    """Output that each cache comes back as: by name, else by order among outputs of its rank."""
    outputs = {info.name: info for info in session.outputs}
    caches = decoder.names("cache", "cross cache", "state")
    found = {}
    for name in caches:
        for pattern, text in _PRESENT:
            guess = re.sub(pattern, text, name, count=1)
            if guess in outputs and guess != name:
                found[name] = guess
                break
    if len(found) == len(caches):
        return found
    needed = [name for name in decoder.caches if name not in found]
    if not needed:
        return found
    rest = []
    for name, info in outputs.items():
        is_of_rank = len(info.shape) == len(decoder.inputs[needed[0]].shape)
        is_taken = name in found.values() or name == logits_output(session.outputs)
        if is_of_rank and not is_taken:
            rest.append(name)
    if len(rest) != len(needed):
        raise RefusedError(
            session.path.name,
            f"no output goes with the cache input '{needed[0]}'; its outputs are "
            f"{', '.join(outputs)}",
            "name them alike: past_key_values.0.key and present.0.key",
        )
    return found | dict(zip(needed, rest, strict=True))


def completed(
    inputs: Sequence[TensorInfo], given: Mapping[str, NDArray[Any]], where: str
) -> Arrays:
    """Feeds with the inputs that follow from those given. Errors: RefusedError where none does."""
    feeds = dict(given)
    decoder = CachedDecoder.of(inputs)
    if decoder is not None:
        feeds |= decoder.filled(feeds, where)
    infos = {info.name: info for info in inputs}
    missing = [name for name in infos if name not in feeds]
    for name, array in conventional.filled(missing, feeds, infos).items():
        feeds[name] = array.astype(infos[name].dtype)
    for name in infos:
        if name not in feeds:
            raise RefusedError(
                where,
                f"input '{name}' does not follow from tokens",
                "use another metric: this one makes tokens of its own",
            )
    return feeds


def prompts_of(session: Session, feeds: Feeds) -> Iterator[Arrays]:
    """First tokens of the first windows, of one length in a batch, with what else was given.

    Errors: RefusedError for a model without tokens, or of which every run takes the same number.
    """
    name = _open_tokens(session)
    decoder = CachedDecoder.of(session.inputs)
    length = _prompt_tokens(session, decoder)
    left = PROMPTS
    for batch in feeds:
        arrays = batch.feeds
        rows = min(len(arrays[name]), left)
        kept = {}
        for other in _of_encoder(decoder):
            kept[other] = arrays[other][:rows]
        tokens = arrays[name][:rows]
        mask = _padding(arrays, tokens)
        if mask is None:
            yield {name: tokens[:, :length], **kept}
        else:
            for row in range(rows):
                own = tokens[row][mask[row]][:length]
                rest = {other: array[row : row + 1] for other, array in kept.items()}
                yield {name: own[None, :], **rest}
        left -= rows
        if not left:
            return


def _prompt_tokens(session: Session, decoder: CachedDecoder | None) -> int:
    """Tokens of a prompt at most: a cache of fixed length has room for the new ones, too."""
    room = None if decoder is None else decoder.room()
    if room is None:
        return PROMPT_TOKENS
    if room <= NEW_TOKENS:
        raise RefusedError(
            session.path.name,
            f"its cache has room for {room} tokens; {NEW_TOKENS} new ones and a prompt do not fit",
            "export it with a longer cache, or use --metric perplexity",
        )
    return min(PROMPT_TOKENS, room - NEW_TOKENS)


def _open_tokens(session: Session) -> str:
    name = tokens_input(session.inputs)
    if name is None:
        raise RefusedError(
            session.path.name,
            "has no input of token ids: nothing can be generated",
            "use another metric",
        )
    info = next(info for info in session.inputs if info.name == name)
    if isinstance(info.shape[1], int) and info.shape[1] > 1:
        raise RefusedError(
            session.path.name,
            f"takes exactly {info.shape[1]} tokens in '{name}': nothing can be generated",
            "export it with an open length, or use --metric perplexity",
        )
    return name


def _of_encoder(decoder: CachedDecoder | None) -> list[str]:
    """Inputs that stay as they are from token to token."""
    if decoder is None:
        return []
    names = decoder.names("encoder states", "encoder mask")
    if not decoder.has_branch:
        names += decoder.names("cross cache")
    return names


def _padding(
    feeds: Mapping[str, NDArray[Any]], tokens: NDArray[Any]
) -> NDArray[np.bool_] | None:
    """Tokens (B, T) that a mask keeps; None where it keeps all."""
    for name, array in feeds.items():
        is_mask = re.search("mask", name) and not re.search("encoder", name)
        if is_mask and array.ndim == 2:
            kept: NDArray[np.bool_] = array[: len(tokens)] != 0
            if kept.shape == tokens.shape and not kept.all():
                return kept
    return None


def greedy(
    session: Session, prompt: Arrays, forced: NDArray[Any] | None = None
) -> NDArray[np.int64]:
    """Likeliest next tokens (B, 16), one after the other; with the model's cache if it has one.

    `forced`: tokens (B, 16) of another model. A model without a cache then runs once, each token
    behind those of the other: up to the first that differs, it is what it would generate.
    """
    name = _open_tokens(session)
    decoder = CachedDecoder.of(session.inputs)
    logits = logits_output(session.outputs)
    where = session.path.name
    if decoder is not None:
        return _greedy_with_cache(session, decoder, prompt, logits)
    tokens = prompt[name]
    if forced is not None:
        longer = np.concatenate([tokens, forced[:, :-1]], axis=1)
        feeds = completed(session.inputs, {**prompt, name: longer}, where)
        scores = session.run(feeds)[logits]
        return _likeliest(scores[:, tokens.shape[1] - 1 :])
    for _ in range(NEW_TOKENS):
        feeds = completed(session.inputs, {**prompt, name: tokens}, where)
        scores = session.run(feeds)[logits]
        chosen = _likeliest(scores[:, -1:]).astype(tokens.dtype)
        tokens = np.concatenate([tokens, chosen], axis=1)
    return np.asarray(tokens[:, -NEW_TOKENS:], np.int64)


def _greedy_with_cache(
    session: Session, decoder: CachedDecoder, prompt: Arrays, logits: str
) -> NDArray[np.int64]:
    run = CachedRun(session, decoder)
    outputs = _prefilled(run, session, decoder, prompt)
    chosen = [_likeliest(outputs[logits][:, -1:])]
    while len(chosen) < NEW_TOKENS:
        outputs = run.step(chosen[-1])
        chosen.append(_likeliest(outputs[logits][:, -1:]))
    return np.concatenate(chosen, axis=1)


def _prefilled(
    run: CachedRun, session: Session, decoder: CachedDecoder, prompt: Arrays
) -> Arrays:
    """Outputs of the prompt's last run: all of it at once, or a token at a time if it must be."""
    tokens = prompt[decoder.main]
    count = decoder.fixed_tokens() or tokens.shape[1]
    first = {**prompt, decoder.main: tokens[:, :count]}
    outputs = run.start(completed(session.inputs, first, session.path.name))
    for start in range(count, tokens.shape[1], count):
        outputs = run.step(tokens[:, start : start + count])
    return outputs


def _likeliest(scores: NDArray[Any]) -> NDArray[np.int64]:
    """Tokens (B, T) of the largest of logits (B, T, V)."""
    return np.asarray(scores.astype(np.float32).argmax(-1), np.int64)


def step_remark(session: Session, feeds: Mapping[str, NDArray[Any]]) -> str:
    """Say that tokens one by one, with the cache, give other logits than all at once; else "".

    Looks at the end of the first window of a batch. Models without a cache are not run.
    """
    decoder = CachedDecoder.of(session.inputs)
    if decoder is None or not decoder.names("tokens") or decoder.fixed_tokens():
        return ""
    tokens = feeds[decoder.main][:1]
    steps = min(_STEPS, tokens.shape[1] - 1)
    if steps < 1 or _padding(feeds, tokens) is not None:
        return ""
    logits = logits_output(session.outputs)
    kept = {name: feeds[name][:1] for name in _of_encoder(decoder)}
    where = session.path.name
    whole = completed(session.inputs, {decoder.main: tokens, **kept}, where)
    expected = session.run(whole)[logits][:, -steps:]
    run = CachedRun(session, decoder)
    first = {decoder.main: tokens[:, :-steps], **kept}
    run.start(completed(session.inputs, first, where))
    got = []
    for index in range(tokens.shape[1] - steps, tokens.shape[1]):
        outputs = run.step(tokens[:, index : index + 1])
        got.append(outputs[logits][:, -1:])
    return _unlike(expected, np.concatenate(got, axis=1))


def _unlike(expected: NDArray[Any], got: NDArray[Any]) -> str:
    y = expected.astype(np.float64)
    noise = float(np.sum(np.square(y - got.astype(np.float64))))
    signal = float(np.sum(np.square(y)))
    # negated, so that NaN is unlike
    if noise * 10 ** (_SAME_DB / 10) <= signal:
        return ""
    sqnr = 10 * np.log10(signal / noise) if noise > 0 and signal > 0 else -np.inf
    return (
        f"tokens fed one by one, with the cache, give other logits than all at once: {sqnr:.1f} dB "
        f"over the last {expected.shape[1]} tokens of a window; the score is of all at once"
    )


def step_after(session: Session, feeds: Mapping[str, NDArray[Any]]) -> Arrays | None:
    """Feeds of one more token behind a batch, with the cache that it leaves.

    None for a model without a cache, for one that reads embeddings, and for a batch that is a step
    itself. Errors: as of `CachedRun`.
    """
    decoder = CachedDecoder.of(session.inputs)
    if decoder is None or not decoder.names("tokens"):
        return None
    if feeds[decoder.main].shape[1] == 1:
        return None
    run = CachedRun(session, decoder)
    run.start(feeds)
    return run.step_feeds(feeds[decoder.main][:, -1:])


def with_next_tokens(session: Session, feeds: Feeds, metric: str) -> Iterator[Batch]:
    """Batches with labels (B, T): where there are none, the token that comes next.

    The last token of a window, and padding, have no label (-100). Labels that are the tokens
    themselves, as trainers of transformers take them, are moved by one. Errors: RefusedError for a
    model without tokens.
    """
    name = tokens_input(session.inputs)
    for index, batch in enumerate(feeds):
        labels = batch.labels
        if name is None:
            if labels is None:
                raise RefusedError(
                    f"{feeds.where}, batch {index}",
                    f"has no labels, and the model no input of token ids to take them from; "
                    f"{metric} needs them",
                    "put them under 'labels' in the .npz, or yield (feeds, labels)",
                )
            yield batch
            continue
        tokens = batch.feeds[name]
        if labels is None:
            mask = _padding(batch.feeds, tokens)
            yield Batch(batch.feeds, _next_tokens(tokens, mask))
            continue
        is_label = labels != IGNORED
        if labels.shape == tokens.shape and (labels == tokens)[is_label].all():
            feeds.note(f"{feeds.where}: labels are the tokens themselves: moved by one")
            labels = _next_tokens(tokens, is_label)
        yield Batch(batch.feeds, labels)


IGNORED = -100
"""Label of positions that have none, as in torch's CrossEntropyLoss."""


def _next_tokens(
    tokens: NDArray[Any], kept: NDArray[np.bool_] | None
) -> NDArray[np.int64]:
    """Label of each position of tokens (B, T): the next token, if it is kept."""
    labels = np.full(tokens.shape, IGNORED, np.int64)
    following = tokens[:, 1:]
    if kept is not None:
        following = np.where(kept[:, 1:], following, IGNORED)
    labels[:, :-1] = following
    return labels
