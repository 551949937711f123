"""Inputs of decoders with a cache, known by name and dims: what each holds at a prefill and a step.

Forms: exports of transformers and Optimum, merged decoders, models of onnxruntime-genai, decoders
with cross attention, caches of state-space and convolution layers.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from ..session import TensorInfo
from .synthetic import LIKELY, Values, array_for, shape_of

Arrays = dict[str, NDArray[Any]]

Role = Literal[
    "cache",
    "cross cache",
    "state",
    "encoder states",
    "encoder mask",
    "mask",
    "positions",
    "past length",
    "total length",
    "last position",
    "cache branch",
    "logits kept",
    "tokens",
    "embeddings",
]
"""Meaning of an input.

cache: keys or values of self attention, with an axis of past tokens. cross cache: of the encoder's
states. state: what a layer carries whose size does not grow. last position: index of the last
valid key of each row. cache branch: whether a merged decoder reads its cache.
"""


class _RoleRule(NamedTuple):
    """Inputs of a role: words of the name, kinds of numbers (f, i, b), and ranks."""

    role: Role
    pattern: str
    kinds: str
    ranks: tuple[int, ...]


_CACHE = r"^past|(^|[._])cache|past_?(key|value)|^mems"

# the first that fits decides
_RULES = (
    _RoleRule("state", r"(conv|ssm|recurrent|rnn)(_state|[._]?\d)", "f", (3, 4, 5)),
    _RoleRule("cross cache", rf"({_CACHE}).*(encoder|cross)", "fi", (3, 4, 5)),
    _RoleRule("cache", _CACHE, "fi", (3, 4, 5)),
    _RoleRule("encoder mask", r"encoder_(attention_)?mask", "fib", (2,)),
    _RoleRule("encoder states", r"encoder_(hidden|output|state)|^memory$", "f", (3,)),
    _RoleRule("mask", r"mask", "fib", (2, 4)),
    _RoleRule("past length", r"past_?(seq\w*|kv)?_?len", "i", (0, 1)),
    _RoleRule("total length", r"total_?(seq\w*)?_?len", "i", (0, 1)),
    _RoleRule("last position", r"seqlens_k", "i", (1, 2)),
    _RoleRule("cache branch", r"use_cache", "b", (0, 1)),
    _RoleRule("logits kept", r"(logits|logit)_to_keep", "i", (0, 1)),
    _RoleRule("positions", r"position", "i", (1, 2, 3)),
    _RoleRule("tokens", r"(^|_)(ids|tokens?)$", "i", (2,)),
    _RoleRule("embeddings", r"embed", "f", (3,)),
)

_NOT_TOKENS = r"type|segment"
"""Ids of segments, which are integers of the tokens' shape."""

_CACHES: tuple[Role, ...] = ("cache", "cross cache", "state")

_ALL_KEPT = 0
"""Number of logits to keep that keeps all of them, in models of transformers."""

_BLOCKED = -1e4
"""Added by a mask of floats to the scores of tokens that must not be seen."""


class Lengths(NamedTuple):
    """Sizes of one run: rows, tokens a row, tokens in the cache, states of the encoder."""

    batch: int
    tokens: int
    past: int = 0
    encoder: int = 0


def _kind(dtype: str) -> str:
    """Kind of numbers: f, i or b; "" for texts and what is no tensor."""
    kinds = {"float": "f", "bfloat": "f", "int": "i", "uint": "i", "bool": "b"}
    found = re.match(r"[a-z]+", dtype)
    return kinds.get(found[0], "") if found else ""


def role_of(info: TensorInfo) -> Role | None:
    """Meaning of an input by its name, type and rank; None where it is no part of a decoder."""
    name = info.name.lower()
    if re.search(_NOT_TOKENS, name):
        return None
    kind = _kind(info.dtype)
    for rule in _RULES:
        is_of_shape = len(info.shape) in rule.ranks and kind and kind in rule.kinds
        if is_of_shape and re.search(rule.pattern, name):
            return rule.role
    return None


@dataclass(frozen=True)
class CachedDecoder:
    """Inputs of a decoder with a cache.

    `roles`: by name of input; inputs without one are made up as those of any model.
    """

    inputs: dict[str, TensorInfo]
    roles: dict[str, Role]

    @staticmethod
    def of(inputs: Iterable[TensorInfo]) -> CachedDecoder | None:
        """Recognise a decoder: tokens, or embeddings of them, beside at least one cache."""
        infos = {info.name: info for info in inputs}
        roles: dict[str, Role] = {}
        for name, info in infos.items():
            role = role_of(info)
            if role is not None:
                roles[name] = role
        found = set(roles.values())
        reads_tokens = "tokens" in found or "embeddings" in found
        if not reads_tokens or found.isdisjoint(_CACHES):
            return None
        return CachedDecoder(infos, roles)

    def names(self, *roles: Role) -> list[str]:
        """Inputs of these roles, in the model's order."""
        return [name for name, role in self.roles.items() if role in roles]

    @property
    def main(self) -> str:
        """The input of tokens, or of embeddings where there is none."""
        return (self.names("tokens") or self.names("embeddings"))[0]

    @property
    def caches(self) -> list[str]:
        """Inputs that a run takes from the outputs of the run before."""
        return self.names("cache", "state")

    @property
    def has_branch(self) -> bool:
        """True for a merged decoder, which is told whether to read its cache."""
        return bool(self.names("cache branch"))

    def fixed_tokens(self) -> int | None:
        """Number of tokens that every run takes; None where it is open."""
        length = self.inputs[self.main].shape[1]
        return length if isinstance(length, int) else None

    def buffer(self) -> int | None:
        """Length of the caches where it is fixed; None where they grow.

        Errors: RefusedError where caches have different lengths.
        """
        lengths = {}
        for name in self.names("cache"):
            axis = self.past_axis(name)
            length = self.inputs[name].shape[axis]
            if isinstance(length, int):
                lengths[name] = length
        if not lengths:
            return None
        (first, length), *others = lengths.items()
        for name, other in others:
            if other != length:
                raise RefusedError(
                    f"input '{name}'",
                    f"holds {other} past tokens, '{first}' {length}",
                    "export the model again: all caches must be equally long",
                )
        return length

    def past_axis(self, name: str) -> int:
        """Axis of past tokens of a cache: its last open one behind the batch, else the last but
        one.
        """
        shape = self.inputs[name].shape
        batch = self._batch_axis(name)
        for axis in reversed(range(len(shape))):
            if axis != batch and not isinstance(shape[axis], int):
                return axis
        return len(shape) - 2

    def _batch_axis(self, name: str) -> int:
        """Axis of the rows: the first, or the second where keys and values lie before it."""
        shape = self.inputs[name].shape
        has_pairs = len(shape) == 5 and shape[0] == 2
        return 1 if has_pairs else 0

    def fitted(self, lengths: Lengths) -> Lengths:
        """Lengths with those that the model fixes. Errors: as of `buffer`."""
        shape = self.inputs[self.main].shape
        batch = shape[0] if isinstance(shape[0], int) else lengths.batch
        tokens = shape[1] if isinstance(shape[1], int) else lengths.tokens
        encoder = lengths.encoder
        for name in self.names("encoder states"):
            length = self.inputs[name].shape[1]
            encoder = length if isinstance(length, int) else encoder
        past = lengths.past
        buffer = self.buffer()
        if buffer is not None:
            # a cache that is written in place has room for the new tokens
            room = buffer - tokens if self._is_written_in_place(buffer) else buffer
            past = min(past, max(room, 0))
        return Lengths(batch, tokens, past, encoder)

    def _is_written_in_place(self, buffer: int) -> bool:
        """True if the mask is as long as the cache, which then takes the new tokens in.

        Without a mask: if an input tells where new tokens go.
        """
        ends = [self.inputs[name].shape[-1] for name in self.names("mask")]
        if ends:
            return buffer in ends
        vectors = [n for n in self.names("positions") if len(self.inputs[n].shape) == 1]
        return bool(vectors or self.names("last position"))

    def shape(self, name: str, lengths: Lengths) -> tuple[int, ...]:
        """Shape of an input that has a role."""
        info = self.inputs[name]
        role = self.roles[name]
        last = len(info.shape) - 1
        wanted = {0: lengths.batch, 1: lengths.tokens}
        if role in ("cache", "cross cache", "state"):
            wanted = {self._batch_axis(name): lengths.batch}
            if role == "cache":
                wanted[self.past_axis(name)] = lengths.past
            if role == "cross cache":
                wanted[self.past_axis(name)] = lengths.encoder
        elif role in ("encoder states", "encoder mask"):
            wanted[1] = lengths.encoder
        elif role == "mask":
            wanted = {0: lengths.batch, last: self._mask_length(name, lengths)}
            if last == 3:
                wanted[2] = lengths.tokens
        elif role == "positions":
            wanted = {last - 1: lengths.batch, last: lengths.tokens}
        elif role == "last position":
            wanted = {0: lengths.batch}
        elif role not in ("tokens", "embeddings"):
            wanted = {}
        shape = []
        for axis, dim in enumerate(info.shape):
            length = dim if isinstance(dim, int) else wanted.get(axis, 1)
            shape.append(length)
        return tuple(shape)

    def _mask_length(self, name: str, lengths: Lengths) -> int:
        """Past and new tokens; of a fixed cache that is not written in place, all of it."""
        buffer = self.buffer()
        if buffer is None:
            return lengths.past + lengths.tokens
        if self._is_written_in_place(buffer):
            return buffer
        return buffer + lengths.tokens

    def derived(
        self, name: str, lengths: Lengths, mask: NDArray[Any] | None = None
    ) -> NDArray[Any] | None:
        """Value of an input that follows from the lengths; caches are empty.

        `mask`: (B, past + T), of which tokens are counted for the positions. None for tokens,
        embeddings and states of the encoder, and for their cache where no branch leaves it unread.
        """
        info = self.inputs[name]
        role = self.roles[name]
        shape = self.shape(name, lengths)
        total = lengths.past + lengths.tokens
        if role in ("tokens", "embeddings", "encoder states"):
            return None
        if role == "cross cache":
            if not self.has_branch:
                return None
            shape = self.shape(name, lengths._replace(encoder=0))
        numbers: NDArray[Any] = np.zeros(shape)
        if role == "encoder mask":
            numbers = np.ones(shape)
        elif role == "mask":
            return self._mask(info, shape, lengths)
        elif role == "positions":
            numbers = _positions(shape, lengths, mask)
        elif role == "past length":
            numbers = np.full(shape, lengths.past)
        elif role == "total length":
            numbers = np.full(shape, total)
        elif role == "last position":
            numbers = np.full(shape, total - 1)
        elif role == "cache branch":
            numbers = np.full(shape, lengths.past > 0)
        elif role == "logits kept":
            numbers = np.full(shape, _ALL_KEPT)
        return numbers.astype(_numpy_type(info.dtype))

    def _mask(
        self, info: TensorInfo, shape: tuple[int, ...], lengths: Lengths
    ) -> NDArray[Any]:
        """Mask of ones on the valid tokens; of rank 4 each token sees itself and those before."""
        total = lengths.past + lengths.tokens
        length = shape[-1]
        buffer = self.buffer()
        in_place = buffer is not None and self._is_written_in_place(buffer)
        # caches that are written in place are filled from the left, others from the right
        first = 0 if in_place else length - total
        keys = np.arange(length) - first
        is_seen = (keys >= 0) & (keys < total)
        if len(shape) == 4:
            ends = lengths.past + np.arange(shape[2])
            is_seen = is_seen[None, :] & (keys[None, :] <= ends[:, None])
        seen = np.broadcast_to(is_seen, shape)
        if _kind(info.dtype) == "f" and len(shape) == 4:
            return np.where(seen, 0, _BLOCKED).astype(_numpy_type(info.dtype))
        return seen.astype(_numpy_type(info.dtype))

    def made_up(
        self,
        lengths: Lengths,
        sizes: Mapping[str, int],
        random: np.random.Generator,
        values: Values = LIKELY,
    ) -> Arrays:
        """Make up feeds of those lengths; a cache that holds past tokens has random values.

        `sizes`: for inputs without a role. Errors: as of `buffer`.
        """
        lengths = self.fitted(lengths)
        symbols = self._symbols(lengths)
        feeds = {}
        for name, info in self.inputs.items():
            if name not in self.roles:
                shape = shape_of(info, sizes, symbols)
                feeds[name] = array_for(info, shape, random, values)
                continue
            array = self.derived(name, lengths)
            is_cache = self.roles[name] in _CACHES
            is_read = lengths.past > 0 or (array is None and not self.has_branch)
            if array is None or (is_cache and is_read):
                shape = self.shape(name, lengths)
                array = array_for(info, shape, random, values)
            feeds[name] = array
        return feeds

    def _symbols(self, lengths: Lengths) -> dict[str, int]:
        """Length of each symbol that an input with a role has."""
        symbols: dict[str, int] = {}
        for name in self.roles:
            dims = self.inputs[name].shape
            for dim, length in zip(dims, self.shape(name, lengths), strict=True):
                if isinstance(dim, str):
                    symbols.setdefault(dim, length)
        return symbols

    def lengths_of(self, given: Mapping[str, NDArray[Any]], where: str) -> Lengths:
        """Lengths of a batch, of which `given` holds the tokens.

        Errors: RefusedError where caches, mask and tokens disagree.
        """
        batch, tokens = given[self.main].shape[:2]
        past, by = self._past_of(given, where)
        encoder = 0
        for name in self.names("encoder states", "cross cache"):
            if name in given:
                axis = (
                    1 if self.roles[name] == "encoder states" else self.past_axis(name)
                )
                encoder = given[name].shape[axis]
        lengths = Lengths(batch, tokens, past, encoder)
        buffer = self.buffer()
        if buffer is not None:
            self._require_room(buffer, tokens, where)
            return lengths
        for name in self.names("mask"):
            own = given[name].shape[-1] if name in given else past + tokens
            if own != past + tokens:
                holds = (
                    f"the cache ('{by}') holds {past}" if by else "no cache is given"
                )
                raise RefusedError(
                    f"{where}, input '{name}'",
                    f"is {own} long; {holds}, and there are {tokens} new tokens: "
                    f"{past + tokens} together",
                    "give a mask over past and new tokens, and the cache that belongs to it",
                )
        return lengths

    def _require_room(self, buffer: int, tokens: int, where: str) -> None:
        """Refuse more tokens than a cache takes that is written in place. Errors: RefusedError."""
        if tokens > buffer and self._is_written_in_place(buffer):
            raise RefusedError(
                f"{where}, input '{self.main}'",
                f"holds {tokens} tokens a row; the cache '{self.caches[0]}' has room for {buffer}",
                f"give windows of at most {buffer} tokens",
            )

    def room(self) -> int | None:
        """Tokens that a cache takes that is written in place; None where it grows, or shifts.

        Errors: as of `buffer`.
        """
        buffer = self.buffer()
        if buffer is None or not self._is_written_in_place(buffer):
            return None
        return buffer

    def _past_of(
        self, given: Mapping[str, NDArray[Any]], where: str
    ) -> tuple[int, str]:
        """Tokens in the caches that are given, and the first of these; (0, "") without any.

        Errors: RefusedError where two caches disagree.
        """
        past = 0
        first = ""
        if self.buffer() is not None:
            return past, first
        for name in self.names("cache"):
            if name not in given or given[name].ndim != len(self.inputs[name].shape):
                continue
            own = given[name].shape[self.past_axis(name)]
            if not first:
                past = own
                first = name
            if own != past:
                raise RefusedError(
                    f"{where}, input '{name}'",
                    f"holds {own} past tokens, '{first}' {past}",
                    "give caches of one run: all of them are equally long",
                )
        return past, first

    def filled(self, given: Mapping[str, NDArray[Any]], where: str) -> Arrays:
        """Inputs that are missing in a batch, and follow from what is given.

        Errors: as of `lengths_of`.
        """
        if self.main not in given or given[self.main].ndim < 2:
            return {}
        lengths = self.lengths_of(given, where)
        masks = [given[name] for name in self.names("mask") if name in given]
        mask = masks[0] if masks and masks[0].ndim == 2 else None
        added = {}
        for name in self.roles:
            array = None if name in given else self.derived(name, lengths, mask)
            if array is not None:
                added[name] = array
        return added


def _positions(
    shape: tuple[int, ...], lengths: Lengths, mask: NDArray[Any] | None
) -> NDArray[Any]:
    """Positions of the new tokens; those that a mask leaves out are not counted."""
    if mask is None:
        own: NDArray[Any] = lengths.past + np.arange(lengths.tokens)
    else:
        counted = np.cumsum(mask != 0, axis=-1) - 1
        own = np.maximum(counted, 0)[:, -lengths.tokens :]
        # one vector of positions serves all rows
        own = own[0] if len(shape) == 1 else own
    return np.broadcast_to(own, shape)


def _numpy_type(name: str) -> np.dtype[Any]:
    # registers bfloat16 with numpy
    import ml_dtypes  # noqa: F401

    return np.dtype(name)


_IN_WORDS: dict[Role, str] = {
    "cache": "empty",
    "cross cache": "empty",
    "state": "zeros",
    "encoder mask": "ones",
    "mask": "ones",
    "positions": "0, 1, 2, …",
    "past length": "0",
    "total length": "the number of tokens",
    "last position": "the index of the last token",
    "cache branch": "false",
    "logits kept": "all",
}
"""Value of an input that follows from the tokens, for people."""


def in_words(decoder: CachedDecoder, names: Sequence[str]) -> Iterator[str]:
    """Clauses that say what the inputs of each role are taken as."""
    groups: dict[Role, list[str]] = {}
    for name in names:
        groups.setdefault(decoder.roles[name], []).append(name)
    for role, members in groups.items():
        first = f"'{members[0]}'"
        if len(members) == 1:
            yield f"input {first} is not given: taken as {_IN_WORDS[role]}"
        else:
            yield (
                f"inputs {first} … '{members[-1]}' ({len(members)}) are not given: "
                f"taken as {_IN_WORDS[role]}"
            )
