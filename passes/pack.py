"""Constants stored in the cheapest form that a runtime decodes while it loads the model."""

from __future__ import annotations

import math
from collections import ChainMap, Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import RefusedError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome, Stat
from ._core.edit import is_constant
from ._core.graph import Names, graphs_of
from ._core.lazy import in_order
from ._core.notes import drop_notes
from ._core.opset import raise_opset
from ._core.rewrites import permit
from ._packing.codecs import CODECS, OPSET
from ._packing.constant_graph import constant_nodes, feeds_only, is_table, own_decoders
from ._packing.content import BIT_TYPES, Content, content_of
from ._packing.draft import Draft, Shared, initializer_bytes
from ._packing.load_memory import load_bytes
from ._packing.prospect import least_load_bytes
from ._packing.together import (
    StoredPart,
    draft_apart,
    draft_together,
    groups,
    is_small,
    part_of,
)

MIN_BYTES = 256
"""Bytes below which a constant is left: a decoder's nodes alone take 150 to 250."""


@dataclass(frozen=True)
class Pack(Pass):
    """Store each constant as bit mask, palette, gaps or narrower type, whatever takes fewest bytes.

    Effect: exact. Touches constants of the main graph; they keep their names, as outputs of the
    nodes that decode them, bit for bit; small ones of one kind are decoded at once. ONNX Runtime
    folds these nodes while loading: kernels and speed of the loaded model are those of the dense
    one. Loading takes up to 60 ns an element longer, and memory for what decoding computes on the
    way (`load_memory`). A runtime that folds no constants (OpenVINO) decodes at every run instead.
    Goes last: other passes see no weights behind decoders. A run unpacks what it is given, and ends
    lossy pipelines with this pass.

    Shapes: unchanged.

    Models of an opset below 13 that cannot be raised are declined.

    Stats: `constants` (count packed), `bytes_before`, `bytes_after` (of these, names, shapes and
    nodes included); `load_bytes` (most memory that decoding takes beside the constants); by codec,
    `mask`, `palette`, `channel_palettes`, `bit_planes`, `gaps`, `short_gaps`, `grid`, `narrow`,
    `one_value` (counts); `notes` (count of metadata entries and doc strings dropped).

    Source: follows from the definition; palettes and masks: Han, Mao, Dally, Deep Compression, ICLR
    2016 (arXiv:1510.00149).
    """

    name: ClassVar[str] = "pack"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "constants"

    min_saving: float = Option(
        0.05,
        "Part of a constant's bytes that packing must save.",
        low=0.0,
        high=1.0,
        unit="fraction",
    )

    load_memory: int = Option(
        256,
        "Memory that decoding may take while the model is loaded, beside the constants.",
        low=0,
        high=1_000_000,
        unit="MB",
    )

    notes: Literal["drop", "keep"] = Option(
        "drop",
        "Notes of exporters on nodes and values (metadata, doc strings), where a "
        "constant is packed: they may outweigh the weights.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        candidates, declined = _candidates(model)
        if not candidates:
            return PassOutcome(declined=declined)
        leave = permit(Pack.name, "raise-opset", "the model")
        if leave is None:
            return PassOutcome()
        try:
            is_raised = raise_opset(model, OPSET)
        except RefusedError as error:
            # exact and often unasked: a model that is too old stays as it is
            declined.append(Declined(error.where, error.problem))
            return PassOutcome(declined=declined)
        if is_raised:
            leave.used()
            # that may have made another graph
            candidates, declined = _candidates(model)
        packing = _Packing(model, self)
        with context.progress(self.name, len(candidates)) as advance:
            prospects = in_order([partial(packing.prospect, v) for v in candidates])
            for value, least in zip(candidates, prospects, strict=True):
                reason = packing.pack(value, least)
                if reason is not None:
                    declined.append(Declined(value.name or "", reason))
                advance(1)
        packing.store_together()
        packing.warn_of_memory(context)
        stats = packing.stats()
        if packing.codecs and self.notes == "drop":
            stats["notes"] = drop_notes(model, ports=False).total()
        return PassOutcome(packing.codecs.total(), stats, declined)


@dataclass(frozen=True)
class _Choice:
    """One way to store a constant: bytes in the file, and in memory while it is loaded."""

    codec: str
    content: Content
    draft: Draft
    decoded: ir.Value
    nbytes: int
    load_bytes: int


class _Packing:
    """Constants of one model that are packed one after the other, and what that came to."""

    def __init__(self, model: ir.Model, options: Pack) -> None:
        self._options = options
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
        return least_load_bytes(value.const_value, self._options.min_saving)

    def pack(self, value: ir.Value, least: int | None) -> str | None:
        """Store a constant by its best codec; the reason where it is left as it is.

        `least`: its prospect.
        """
        assert value.name is not None
        assert value.const_value is not None
        budget = self._options.load_memory * 10**6 - self._load_bytes
        if least is None:
            return self._saves_too_little()
        if least > budget:
            return self._too_much(value, least)
        dense = initializer_bytes(value.name, value.const_value)
        limit = (1 - self._options.min_saving) * dense
        choices = [choice for choice in self._choices(value) if choice.nbytes <= limit]
        choices.sort(key=lambda choice: choice.nbytes)
        leave = permit(Pack.name, "pack", value)
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

    def warn_of_memory(self, context: Context) -> None:
        """Tell the user where much stays as large as it is for the memory that decoding takes."""
        left = sum(self._left)
        if left <= self._options.min_saving * (left + self._after):
            return
        needed = (self._load_bytes + self._needed) / 1e6
        limit = self._options.load_memory
        context.warn(
            Pack.name,
            f"{len(self._left)} constants of {left / 1e6:.0f} MB are not packed: decoding takes "
            f"{needed:.0f} MB while the model is loaded, beyond load_memory={limit}; "
            f"pack(load_memory={math.ceil(needed)}) packs them",
        )

    def _too_much(self, value: ir.Value, load_bytes: int) -> str:
        """Count a constant that is left for its memory; the reason."""
        self._left.append(_nbytes(value))
        self._needed += load_bytes
        return _too_much(load_bytes)

    def _saves_too_little(self) -> str:
        return f"no codec saves {self._options.min_saving:.0%} of its bytes"

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


def _too_much(load_bytes: int) -> str:
    return f"decoding it takes {load_bytes / 1e6:.0f} MB, more than load_memory leaves"


def _candidates(model: ir.Model) -> tuple[list[ir.Value], list[Declined]]:
    """Constants that may be packed, and a reason for each large one that may not."""
    chosen: list[ir.Value] = []
    declined: list[Declined] = []
    graph, *bodies = graphs_of(model)
    decoders = set(own_decoders(graph))
    folded = set(constant_nodes(graph))
    for value in graph.initializers.values():
        if _nbytes(value) < MIN_BYTES:
            continue
        # part of a decoder already
        if value.uses() and feeds_only(value, decoders):
            continue
        if is_table(value, folded):
            continue
        reason = _why_not(value)
        if reason is None:
            chosen.append(value)
        else:
            declined.append(Declined(value.name or "", reason))
    for body in bodies:
        for value in body.initializers.values():
            if _nbytes(value) >= MIN_BYTES:
                reason = "it lies in the body of an If, Loop or Scan"
                declined.append(Declined(value.name or "", reason))
    # the largest first: it pays for the tables that smaller ones then share
    chosen.sort(key=_nbytes, reverse=True)
    return chosen, declined


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _keeps_packed(node: ir.Node, index: int) -> bool:
    """True if a kernel reads blocked codes piece by piece, so that they never are in memory whole.

    Decoded at load, they would be there twice for a moment; zeros among them are seldom bytes.
    """
    if node.op_type == "MatMulNBits":
        return index == 1
    if node.op_type == "GatherBlockQuantized":
        return index == 0
    has_blocks = node.attributes.get_int("block_size", 0) > 0
    return node.op_type == "DequantizeLinear" and index == 0 and has_blocks


def _why_not(value: ir.Value) -> str | None:
    tensor = value.const_value
    assert tensor is not None
    if not is_constant(value):
        return "it is also an input of the model: callers may override it"
    if value.is_graph_output():
        return "it is an output of the model"
    if not value.uses():
        return "nothing uses it"
    if any(_keeps_packed(use.node, use.idx) for use in value.uses()):
        return "its kernel reads it as it is stored, in place"
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return f"{tensor.dtype} has no whole bytes an element"
    if tensor.dtype.bitwidth not in BIT_TYPES:
        return f"{tensor.dtype} has elements of {tensor.dtype.bitwidth} bits"
    return None
