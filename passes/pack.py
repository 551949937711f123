"""Constants stored in the cheapest form that a runtime decodes while it loads the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .. import RefusedError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import Names
from ._core.opset import raise_opset
from ._packing.codecs import CODECS, OPSET
from ._packing.constant_graph import feeds_only, own_decoders
from ._packing.content import BIT_TYPES, content_of
from ._packing.draft import Draft, Shared, initializer_bytes

MIN_BYTES = 256
"""Bytes below which a constant is left: a decoder's nodes alone take 150 to 250."""


@dataclass(frozen=True)
class Pack(Pass):
    """Store each constant as bit mask, palette, gaps or narrower type, whatever takes fewest bytes.

    Effect: exact. Touches constants of the main graph; they keep their names, as outputs of the
    nodes that decode them, bit for bit. ONNX Runtime folds these nodes while loading: kernels,
    speed and memory of the loaded model are those of the dense one. Loading takes up to 60 ns an
    element longer. A runtime that folds no constants (OpenVINO) decodes at every run instead. Goes
    last in a pipeline: other passes see no weights behind decoders.

    Shapes: unchanged.

    Models of an opset below 13 that cannot be raised are declined.

    Stats: `constants` (count packed), `bytes_before`, `bytes_after` (of these, names, shapes and
    nodes included); by codec, `mask`, `palette`, `gaps`, `narrow`, `one_value` (counts).

    Source: follows from the definition; palettes and masks: Han, Mao, Dally, Deep Compression, ICLR
    2016 (arXiv:1510.00149).
    """

    name: ClassVar[str] = "pack"
    effect: ClassVar[Effect] = "exact"

    min_saving: float = Option(
        0.05,
        "Part of a constant's bytes that packing must save.",
        low=0.0,
        high=1.0,
        unit="fraction",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        candidates, declined = _candidates(model.graph)
        if not candidates:
            return PassOutcome(declined=declined)
        try:
            is_raised = raise_opset(model, OPSET)
        except RefusedError as error:
            # exact and often unasked: a model that is too old stays as it is
            declined.append(Declined(error.where, error.problem))
            return PassOutcome(declined=declined)
        if is_raised:
            # that may have made another graph
            candidates, declined = _candidates(model.graph)
        names, shared = Names(model), Shared()
        first = model.graph[0]
        codecs = Counter[str]()
        before = after = 0
        with context.progress(self.name, len(candidates)) as advance:
            for value in candidates:
                packed = self._packed(value, first, names, shared)
                if packed is not None:
                    codec, old_bytes, new_bytes = packed
                    codecs[codec.replace(" ", "_")] += 1
                    before += old_bytes
                    after += new_bytes
                advance(1)
        stats = {
            "constants": codecs.total(),
            "bytes_before": before,
            "bytes_after": after,
        }
        return PassOutcome(codecs.total(), {**stats, **codecs}, declined)

    def _packed(
        self, value: ir.Value, first: ir.Node, names: Names, shared: Shared
    ) -> tuple[str, int, int] | None:
        """Store a constant by its best codec: codec, bytes before and after; None if none pays."""
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        assert value.name is not None
        assert value.const_value is not None
        content = content_of(value.const_value)
        dense = initializer_bytes(value.name, value.const_value)
        best: tuple[int, str, Draft, ir.Value] | None = None
        for name, codec in CODECS.items():
            draft = Draft(shared)
            decoded = codec(content, draft)
            # the decoded value keeps the constant's name, which the dense form has once as well
            nbytes = draft.nbytes() + len(value.name)
            if decoded is not None and (best is None or nbytes < best[0]):
                best = (nbytes, name, draft, decoded)
        if best is None or best[0] > (1 - self.min_saving) * dense:
            return None
        nbytes, name, draft, decoded = best
        stem = value.name
        value.replace_all_uses_with(decoded)
        del graph.initializers[stem]
        draft.commit(graph, first, names, decoded, stem)
        return name, dense, nbytes


def _candidates(graph: ir.Graph) -> tuple[list[ir.Value], list[Declined]]:
    """Constants of the graph that may be packed, and a reason for each large one that may not."""
    chosen: list[ir.Value] = []
    declined: list[Declined] = []
    decoders = set(own_decoders(graph))
    for value in graph.initializers.values():
        if _nbytes(value) < MIN_BYTES:
            continue
        # part of a decoder already
        if value.uses() and feeds_only(value, decoders):
            continue
        reason = _why_not(value)
        if reason is None:
            chosen.append(value)
        else:
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
        return "it is also a graph input: callers may override it"
    if value.is_graph_output():
        return "it is a graph output"
    if not value.uses():
        return "nothing uses it"
    if any(_keeps_packed(use.node, use.idx) for use in value.uses()):
        return "its kernel reads it as it is stored, in place"
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return f"{tensor.dtype} has no whole bytes an element"
    if tensor.dtype.bitwidth not in BIT_TYPES:
        return f"{tensor.dtype} has elements of {tensor.dtype.bitwidth} bits"
    return None
