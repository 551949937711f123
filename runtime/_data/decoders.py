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
from ..session import Dim, TensorInfo
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
    kind = _kind(info.dtype)
    if not kind or re.search(_NOT_TOKENS, name):
        return None
    rank = len(info.shape)
    for rule in _RULES:
        if rank not in rule.ranks or kind not in rule.kinds:
            continue
        if re.search(rule.pattern, name):
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
        names = self.names("tokens", "embeddings")
        for name in names:
            if self.roles[name] == "tokens":
                return name
        return names[0]

    @property
    def caches(self) -> list[str]:
        """Inputs that a run takes from the outputs of the run before."""
        return self.names("cache", "state")

    @property
    def has_branch(self) -> bool:
        """True for a merged decoder, which is told whether to read its cache."""
        return bool(self.names("cache branch"))

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
        open_axes = []
        for axis, dim in enumerate(shape):
            is_open = not isinstance(dim, int)
            if is_open and axis != batch:
                open_axes.append(axis)
        return open_axes[-1] if open_axes else len(shape) - 2

    def _batch_axis(self, name: str) -> int:
        """Axis of the rows: the first, or the second where keys and values lie before it."""
        shape = self.inputs[name].shape
        has_pairs = len(shape) == 5 and shape[0] == 2
        return 1 if has_pairs else 0

    def fitted(self, lengths: Lengths) -> Lengths:
        """Lengths with those that the model fixes. Errors: as of `buffer`."""
        shape = self.inputs[self.main].shape
        batch = _either(shape[0], lengths.batch)
        tokens = _either(shape[1], lengths.tokens)
        encoder = lengths.encoder
        for name in self.names("encoder states"):
            encoder = _either(self.inputs[name].shape[1], encoder)
        past = lengths.past
        buffer = self.buffer()
        if buffer is not None:
            # one that is written in place needs room for the new tokens
            most = buffer if self.room() is None else buffer - tokens
            past = min(past, max(most, 0))
        return Lengths(
            batch,
            tokens,
            past,
            encoder,
        )

    def _is_written_in_place(self, buffer: int) -> bool:
        """True if the mask is as long as the cache, which then takes the new tokens in.

        Without a mask: if an input tells where new tokens go.
        """
        ends = []
        for name in self.names("mask"):
            shape = self.inputs[name].shape
            ends.append(shape[-1])
        if ends:
            return buffer in ends
        for name in self.names("positions"):
            if len(self.inputs[name].shape) == 1:
                return True
        return bool(self.names("last position"))

    def shape(self, name: str, lengths: Lengths) -> tuple[int, ...]:
        """Shape of an input that has a role."""
        wanted = self._axes(name, lengths)
        shape = []
        for axis, dim in enumerate(self.inputs[name].shape):
            length = dim if isinstance(dim, int) else wanted.get(axis, 1)
            shape.append(length)
        return tuple(shape)

    def _axes(self, name: str, lengths: Lengths) -> dict[int, int]:
        """Lengths of the axes of an input, as far as its role tells."""
        batch, tokens, past, encoder = lengths
        role = self.roles[name]
        last = len(self.inputs[name].shape) - 1
        rows = self._batch_axis(name)
        if role == "state":
            return {rows: batch}
        if role == "cache":
            return {rows: batch, self.past_axis(name): past}
        if role == "cross cache":
            return {rows: batch, self.past_axis(name): encoder}
        if role in ("encoder states", "encoder mask"):
            return {0: batch, 1: encoder}
        if role == "positions":
            return {last - 1: batch, last: tokens}
        if role == "last position":
            return {0: batch}
        if role in ("tokens", "embeddings"):
            return {0: batch, 1: tokens}
        if role == "mask":
            total = self._mask_length(name, lengths)
            axes = {0: batch, last: total}
            # of rank 4 it has a row for each new token
            if last == 3:
                axes[2] = tokens
            return axes
        return {}

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
            empty = lengths._replace(encoder=0)
            shape = self.shape(name, empty)
        if role == "mask":
            return self._mask(info, shape, lengths)
        dtype = _numpy_type(info.dtype)
        if role == "positions":
            positions = _positions(shape, lengths, mask)
            return positions.astype(dtype)
        numbers: dict[Role, int] = {
            "encoder mask": 1,
            "past length": lengths.past,
            "total length": total,
            "last position": total - 1,
            "cache branch": lengths.past > 0,
            "logits kept": _ALL_KEPT,
        }
        number = numbers.get(role, 0)
        return np.full(
            shape,
            number,
            dtype,
        )

    def _mask(
        self, info: TensorInfo, shape: tuple[int, ...], lengths: Lengths
    ) -> NDArray[Any]:
        """Mask of ones on the valid tokens; of rank 4 each token sees itself and those before."""
        total = lengths.past + lengths.tokens
        # caches that are written in place are filled from the left, others from the right
        first = 0
        if self.room() is None:
            first = shape[-1] - total
        keys = np.arange(-first, shape[-1] - first)
        is_past = keys >= 0
        is_seen = is_past & (keys < total)
        is_matrix = len(shape) == 2
        if not is_matrix:
            own = np.arange(lengths.past, total)
            is_before = keys[None, :] <= own[:, None]
            is_seen = is_seen[None, :] & is_before
        seen = np.broadcast_to(is_seen, shape)
        dtype = _numpy_type(info.dtype)
        if is_matrix or _kind(info.dtype) != "f":
            return seen.astype(dtype)
        added = np.where(seen, 0, _BLOCKED)
        return added.astype(dtype)

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
            array = None
            if name in self.roles:
                shape = self.shape(name, lengths)
                array = self._fixed_value(name, lengths)
            else:
                shape = shape_of(info, sizes, symbols)
            if array is None:
                array = array_for(info, shape, random, values)
            feeds[name] = array
        return feeds

    def _fixed_value(self, name: str, lengths: Lengths) -> NDArray[Any] | None:
        """Value of an input that is not made up; None for tokens, and for caches that are read."""
        is_cache = self.roles[name] in _CACHES
        if is_cache and lengths.past > 0:
            return None
        return self.derived(name, lengths)

    def _symbols(self, lengths: Lengths) -> dict[str, int]:
        """Length of each symbol that an input with a role has."""
        symbols: dict[str, int] = {}
        for name in self.roles:
            dims = self.inputs[name].shape
            shape = self.shape(name, lengths)
            for dim, length in zip(dims, shape, strict=True):
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
        for name in self.names("encoder states"):
            if name in given:
                encoder = given[name].shape[1]
        lengths = Lengths(
            batch,
            tokens,
            past,
            encoder,
        )
        if self.buffer() is not None:
            self._require_room(tokens, where)
            return lengths
        total = past + tokens
        for name in self.names("mask"):
            if name not in given:
                continue
            own = given[name].shape[-1]
            if own == total:
                continue
            holds = "no cache is given"
            if by:
                holds = f"the cache ('{by}') holds {past}"
            raise RefusedError(
                f"{where}, input '{name}'",
                f"is {own} long; {holds}, and there are {tokens} new tokens: {total} together",
                "give a mask over past and new tokens, and the cache that belongs to it",
            )
        return lengths

    def _require_room(self, tokens: int, where: str) -> None:
        """Refuse more tokens than a cache takes that is written in place. Errors: RefusedError."""
        room = self.room()
        if room is not None and tokens > room:
            raise RefusedError(
                f"{where}, input '{self.main}'",
                f"holds {tokens} tokens a row; the cache '{self.caches[0]}' has room for {room}",
                f"give windows of at most {room} tokens",
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
            if name not in given:
                continue
            axis = self.past_axis(name)
            own = given[name].shape[axis]
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
        mask = None
        for name in self.names("mask"):
            if name in given and given[name].ndim == 2:
                mask = given[name]
        added = {}
        for name in self.roles:
            if name in given:
                continue
            array = self.derived(name, lengths, mask)
            if array is not None:
                added[name] = array
        return added


def _either(dim: Dim, length: int) -> int:
    """A fixed length, or the one given."""
    return dim if isinstance(dim, int) else length


def _positions(
    shape: tuple[int, ...], lengths: Lengths, mask: NDArray[Any] | None
) -> NDArray[Any]:
    """Positions of the new tokens; those that a mask leaves out are not counted."""
    total = lengths.past + lengths.tokens
    own: NDArray[Any] = np.arange(lengths.past, total)
    # one vector of positions serves all rows
    if mask is not None and len(shape) > 1:
        is_kept = mask != 0
        counted = np.cumsum(is_kept, axis=-1)
        valid = np.maximum(counted - 1, 0)
        first = -lengths.tokens
        own = valid[:, first:]
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
