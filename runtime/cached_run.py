"""Runs of a decoder whose cache goes from the outputs of one to the inputs of the next."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import RefusedError
from ._data import conventional
from ._data.decoders import CachedDecoder, Lengths, Role, role_of
from .session import Dim, Session, TensorInfo

Arrays = dict[str, NDArray[Any]]

_PRESENT = (
    (r"^past_key_values", "present"),
    (r"^past_key_values", "present_key_values"),
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
        is_integer = info.dtype.startswith("int")
        is_matrix = len(info.shape) == 2
        is_other = conventional.is_conventional(info.name)
        if is_integer and is_matrix and not is_other:
            return info.name
    return None


def logits_output(outputs: Sequence[TensorInfo]) -> str:
    """Name of the output of logits (B, T, V): by its name, else the first of that rank."""
    for info in outputs:
        if "logits" in info.name:
            return info.name
    for info in outputs:
        if len(info.shape) == 3:
            return info.name
    return outputs[0].name


class CachedRun:
    """A run of a decoder, token by token or many at once.

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
        where = self._session.path.name
        self._lengths = self._decoder.lengths_of(feeds, where)
        self._feeds = dict(feeds)
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
        count = tokens.shape[1]
        past = before.past + before.tokens
        lengths = before._replace(
            past=past,
            tokens=count,
        )
        mask = self._longer_mask(tokens)
        feeds = self._without_roles(count)
        for name, role in self._decoder.roles.items():
            feeds[name] = self._next_value(
                name,
                role,
                lengths,
                mask,
            )
        own = self._feeds[self._decoder.main]
        feeds[self._decoder.main] = tokens.astype(own.dtype)
        self._lengths = lengths
        return feeds

    def _without_roles(self, count: int) -> Arrays:
        """Inputs without a role; segments and the like, a number a token, for the new ones."""
        decoder = self._decoder
        old_shape = self._feeds[decoder.main].shape[:2]
        feeds = {}
        for name, array in self._feeds.items():
            if name in decoder.roles:
                continue
            if array.shape == old_shape:
                array = array[:, -count:]
            feeds[name] = array
        return feeds

    def _next_value(
        self,
        name: str,
        role: Role,
        lengths: Lengths,
        mask: NDArray[Any] | None,
    ) -> NDArray[Any]:
        """Value of an input for the next tokens, of which `lengths` and `mask` (B, *) are."""
        before = self._feeds[name]
        if role in ("cache", "state"):
            return self._cache(name)
        if role == "cross cache":
            # the first run makes it; later ones need not give it back
            is_made = self._lengths.past == 0 and self._decoder.has_branch
            return self._cache(name) if is_made else before
        if role == "encoder mask":
            return before
        if role == "mask" and mask is not None:
            return mask.astype(before.dtype)
        derived = self._decoder.derived(name, lengths, mask)
        return before if derived is None else derived

    def _longer_mask(self, tokens: NDArray[Any]) -> NDArray[Any] | None:
        """Mask (B, past + T) with ones for new tokens; None where it has another form."""
        decoder = self._decoder
        if decoder.buffer() is not None:
            return None
        for name in decoder.names("mask"):
            mask = self._feeds[name]
            if mask.ndim == 2:
                ones = np.ones_like(tokens, mask.dtype)
                return np.concatenate([mask, ones], axis=1)
        return None

    def _cache(self, name: str) -> NDArray[Any]:
        """A cache as the run before left it. Errors: RefusedError where it does not fit."""
        output = self._present[name]
        array = self._outputs[output]
        dims = self._decoder.inputs[name].shape
        if array.ndim == len(dims):
            array = self._shortened(name, array)
        if not _fits(array, dims):
            takes = []
            for dim in dims:
                text = str(dim) if isinstance(dim, int) else "?"
                takes.append(text)
            raise RefusedError(
                f"{self._session.path.name}, output '{output}'",
                f"has shape {list(array.shape)}; the cache input '{name}' takes "
                f"[{', '.join(takes)}]",
                "export the model again: what it gives back must fit what it takes",
            )
        return array

    def _shortened(self, name: str, array: NDArray[Any]) -> NDArray[Any]:
        """Drop the oldest tokens of a cache that grew beyond its fixed length."""
        decoder = self._decoder
        buffer = decoder.buffer()
        if buffer is None or decoder.roles[name] != "cache":
            return array
        axis = decoder.past_axis(name)
        length = array.shape[axis]
        first = max(length - buffer, 0)
        kept = np.arange(first, length)
        return np.take(array, kept, axis)


def _fits(array: NDArray[Any], dims: Sequence[Dim]) -> bool:
    """True if an array has the rank and the fixed lengths of an input."""
    if array.ndim != len(dims):
        return False
    for dim, length in zip(dims, array.shape, strict=True):
        if isinstance(dim, int) and dim != length:
            return False
    return True


def _presents(session: Session, decoder: CachedDecoder) -> dict[str, str]:
    """Output that each cache comes back as: by name, else by order among outputs of its rank.

    Errors: RefusedError where there is none for a cache of a decoder's own.
    """
    outputs = {info.name: info for info in session.outputs}
    found = {}
    for name in decoder.names("cache", "cross cache", "state"):
        guess = _by_name(name, outputs)
        if guess is not None:
            found[name] = guess
    needed = [name for name in decoder.caches if name not in found]
    if not needed:
        return found
    rank = len(decoder.inputs[needed[0]].shape)
    taken = {*found.values(), logits_output(session.outputs)}
    rest = []
    for name, info in outputs.items():
        if len(info.shape) == rank and name not in taken:
            rest.append(name)
    if len(rest) != len(needed):
        raise RefusedError(
            session.path.name,
            f"no output goes with the cache input '{needed[0]}'; its outputs are "
            f"{', '.join(outputs)}",
            "name them alike: past_key_values.0.key and present.0.key",
        )
    by_order = dict(zip(needed, rest, strict=True))
    return found | by_order


def _by_name(cache: str, outputs: Mapping[str, TensorInfo]) -> str | None:
    for pattern, text in _PRESENT:
        guess = re.sub(pattern, text, cache, count=1)
        if guess != cache and guess in outputs:
            return guess
    return None


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
    added = conventional.filled(missing, feeds, infos)
    for name, array in added.items():
        feeds[name] = array.astype(infos[name].dtype)
    for name in missing:
        if name not in added:
            raise RefusedError(
                where,
                f"input '{name}' does not follow from tokens",
                "use another metric: this one makes tokens of its own",
            )
    return feeds


def step_after(session: Session, feeds: Mapping[str, NDArray[Any]]) -> Arrays | None:
    """Feeds of one more token behind a batch, with the cache that it leaves.

    None for a model without a cache, for one that reads embeddings, and for a batch that is a step
    itself. Errors: as of `CachedRun`.
    """
    decoder = CachedDecoder.of(session.inputs)
    if decoder is None or not decoder.names("tokens"):
        return None
    tokens = feeds[decoder.main]
    if tokens.shape[1] == 1:
        return None
    run = CachedRun(session, decoder)
    run.start(feeds)
    return run.step_feeds(tokens[:, -1:])
