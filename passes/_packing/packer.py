"""The codec of each constant of a model: what takes fewest bytes within the memory at load."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .._core.context import Context
from .._core.graph import Names
from .._core.outcome import Stat
from .._core.rewrites import permit
from .codecs import CODECS
from .content import Content, content_of
from .draft import Draft, Shared, initializer_bytes
from .load_memory import load_bytes
from .prospect import least_load_bytes
from .together import (
    StoredPart,
    draft_apart,
    draft_together,
    groups,
    is_small,
    part_of,
    vector_of,
)

PASS = "pack"
"""Name of the pass, to which rewrites belong."""


@dataclass(frozen=True)
class _Choice:
    """One way to store a constant: bytes in the file, and in memory while it is loaded."""

    codec: str
    content: Content
    draft: Draft
    decoded: ir.Value
    nbytes: int
    load_bytes: int


class Packer:
    """Constants of one model that are packed one after the other, and what that came to.

    `min_saving`: part of a constant's bytes that must go. `memory`: bytes that decoding may take.
    """

    def __init__(self, model: ir.Model, min_saving: float, memory: int) -> None:
        self._min_saving = min_saving
        self._memory = memory
        self._graph = model.graph
        self._first = model.graph[0]
        self._names = Names(model)
        self._shared: Shared = {}
        # what those put aside will share counts as paid for
        self._likely: Shared = ChainMap({}, self._shared)
        self._load_bytes = 0
        self._before = self._after = 0
        self._left: list[int] = []
        self._needed = 0
        self._aside: dict[StoredPart, ir.Value] = {}
        self.codecs = Counter[str]()

    def stats(self) -> dict[str, Stat]:
        """Figures of the account."""
        return {
            "constants": self.codecs.total(),
            "bytes_before": self._before,
            "bytes_after": self._after,
            "load_bytes": self._load_bytes,
            **self.codecs,
        }

    def prospect(self, value: ir.Value) -> int | None:
        """Memory that decoding a constant takes at least; None where no codec saves enough."""
        assert value.const_value is not None
        return least_load_bytes(value.const_value, self._min_saving)

    def pack(self, value: ir.Value, least: int | None) -> str | None:
        """Store a constant by its best codec; the reason where it is left as it is.

        `least`: its prospect.
        """
        assert value.name is not None
        assert value.const_value is not None
        budget = self._memory - self._load_bytes
        if least is None:
            return self._saves_too_little()
        if least > budget:
            return self._too_much(value, least)
        dense = _dense_bytes(value)
        limit = (1 - self._min_saving) * dense
        choices = [choice for choice in self._choices(value) if choice.nbytes <= limit]
        choices.sort(key=lambda choice: choice.nbytes)
        leave = permit(PASS, "pack", value)
        if leave is None:
            return None
        for choice in choices:
            if choice.load_bytes <= budget:
                self._take(value, choice)
                leave.used()
                self._before += dense
                return None
        if not choices:
            return self._saves_too_little()
        return self._too_much(value, choices[0].load_bytes)

    def pack_vectors(self, values: Iterable[ir.Value]) -> set[ir.Value]:
        """Store vectors of one kind as one where that saves enough; the vectors that are stored."""
        vectors: dict[StoredPart, ir.Value] = {}
        for value in values:
            assert value.const_value is not None
            part = vector_of(value.const_value)
            if part is not None:
                vectors[part] = value
        stored: set[ir.Value] = set()
        for parts in groups(vectors):
            chosen = [vectors[part] for part in parts]
            dense = sum(_dense_bytes(value) for value in chosen)
            draft = Draft(self._shared)
            decoded = draft_together(parts, draft)
            nbytes = draft.nbytes() + sum(len(value.name or "") for value in chosen)
            if nbytes > (1 - self._min_saving) * dense:
                continue
            leave = permit(PASS, "pack", chosen[0])
            if leave is None:
                continue
            leave.used()
            self._before += dense
            self.codecs[parts[0].codec.replace(" ", "_")] += len(parts)
            self._commit(chosen, decoded, draft)
            stored.update(chosen)
        return stored

    def warn_of_memory(self, context: Context) -> None:
        """Tell the user where much stays as large as it is for the memory that decoding takes."""
        left = sum(self._left)
        if left <= self._min_saving * (left + self._after):
            return
        needed = (self._load_bytes + self._needed) / 1e6
        limit = self._memory // 10**6
        context.warn(
            PASS,
            f"{len(self._left)} constants of {left / 1e6:.0f} MB are not packed: decoding takes "
            f"{needed:.0f} MB while the model is loaded, beyond load_memory={limit}; "
            f"pack(load_memory={math.ceil(needed)}) packs them",
        )

    def _too_much(self, value: ir.Value, load_bytes: int) -> str:
        """Count a constant that is left for its memory; the reason."""
        self._left.append(nbytes_of(value))
        self._needed += load_bytes
        return _too_much(load_bytes)

    def _saves_too_little(self) -> str:
        return f"no codec saves {self._min_saving:.0%} of its bytes"

    def _choices(self, value: ir.Value) -> Iterator[_Choice]:
        """Every codec that fits the constant."""
        assert value.const_value is not None
        content = content_of(value.const_value)
        for codec in CODECS:
            choice = self._choice(value, content, codec)
            if choice is not None:
                yield choice

    def _choice(self, value: ir.Value, content: Content, codec: str) -> _Choice | None:
        """One way to store a constant; None where it does not fit."""
        assert value.name is not None
        draft = Draft(self._likely if is_small(content) else self._shared)
        decoded = CODECS[codec](content, draft)
        if decoded is None:
            return None
        # the decoded value keeps the constant's name, which the dense form has once as well
        nbytes = draft.nbytes() + len(value.name)
        return _Choice(
            codec, content, draft, decoded, nbytes, load_bytes(codec, content)
        )

    def _take(self, value: ir.Value, choice: _Choice) -> None:
        """Store a constant, or put a small one aside to be stored with others of its kind."""
        self.codecs[choice.codec.replace(" ", "_")] += 1
        self._load_bytes += choice.load_bytes
        if not is_small(choice.content):
            self._commit([value], [choice.decoded], choice.draft)
            return
        part = part_of(choice.content, choice.codec, Draft(self._likely))
        self._aside[part] = value
        self._load_bytes += part.load_bytes
        self._likely.update(choice.draft.new_shared())

    def store_together(self) -> None:
        """Store what was put aside: constants of one kind as one where that takes less."""
        for parts in groups(self._aside):
            values = [self._aside[part] for part in parts]
            draft = Draft(self._shared)
            decoded = draft_apart(parts, draft)
            if len(parts) > 1:
                together = Draft(self._shared)
                decoded_together = draft_together(parts, together)
                if together.nbytes() < draft.nbytes():
                    draft, decoded = together, decoded_together
            self._commit(values, decoded, draft)

    def _commit(
        self, values: list[ir.Value], decoded: list[ir.Value], draft: Draft
    ) -> None:
        """Let what a draft decodes take the place of constants."""
        named = {}
        for value, result in zip(values, decoded, strict=True):
            assert value.name is not None
            value.replace_all_uses_with(result)
            del self._graph.initializers[value.name]
            named[result] = value.name
        self._after += draft.nbytes() + sum(len(name) for name in named.values())
        draft.commit(self._graph, self._first, self._names, named)


def _dense_bytes(value: ir.Value) -> int:
    """Bytes of a constant in the file as it is, with its name."""
    assert value.name is not None
    assert value.const_value is not None
    return initializer_bytes(value.name, value.const_value)


def _too_much(load_bytes: int) -> str:
    return f"decoding it takes {load_bytes / 1e6:.0f} MB, more than load_memory leaves"


def nbytes_of(value: ir.Value) -> int:
    """Bytes of a constant as it is; 0 of what is none."""
    return 0 if value.const_value is None else value.const_value.nbytes
