"""Constants stored in the cheapest form that a runtime decodes while it loads the model."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import Names, holds_graphs
from ._core.ops import QUANT_OPS
from ._core.opset import raise_opset
from ._packing.codecs import CODECS, OPSET
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

    Errors: RefusedError if the opset cannot be raised to 13.

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
        if raise_opset(model, OPSET):
            candidates, declined = _candidates(
                model.graph
            )  # raising makes another graph
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
    folded = _folded_nodes(graph)
    for value in graph.initializers.values():
        if _nbytes(value) < MIN_BYTES:
            continue
        reason = _why_not(value)
        if reason is None and _feeds_only(value, folded):
            continue  # part of a decoder already
        if reason is None:
            chosen.append(value)
        else:
            declined.append(Declined(value.name or "", reason))
    # the largest first: it pays for the tables that smaller ones then share
    chosen.sort(key=_nbytes, reverse=True)
    return chosen, declined


def _folded_nodes(graph: ir.Graph) -> set[ir.Node]:
    """Nodes that are computed from constants alone, so that a runtime folds them."""
    folded: set[ir.Node] = set()
    for node in graph:
        constant = [
            is_constant(value) or (value is not None and value.producer() in folded)
            for value in node.inputs
            if value is not None
        ]
        # a runtime keeps what dequantizes a weight: it makes integer kernels of that
        if node.op_type in QUANT_OPS or holds_graphs(node):
            continue
        if constant and all(constant):
            folded.add(node)
    return folded


def _feeds_only(value: ir.Value, nodes: set[ir.Node]) -> bool:
    return all(use.node in nodes for use in value.uses())


def _nbytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _why_not(value: ir.Value) -> str | None:
    tensor = value.const_value
    assert tensor is not None
    if not is_constant(value):
        return "it is also a graph input: callers may override it"
    if value.is_graph_output():
        return "it is a graph output"
    if not value.uses():
        return "nothing uses it"
    if tensor.dtype == ir.DataType.STRING or tensor.dtype.bitwidth < 8:
        return f"{tensor.dtype} has no whole bytes an element"
    if tensor.dtype.bitwidth not in BIT_TYPES:
        return f"{tensor.dtype} has elements of {tensor.dtype.bitwidth} bits"
    return None
