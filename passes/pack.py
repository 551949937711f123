"""Constants stored in the smallest form that a runtime decodes when it loads the model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import ClassVar, Literal

import onnx_ir as ir

from .. import RefusedError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import is_constant
from ._core.graph import graphs_of
from ._core.lazy import in_order
from ._core.notes import drop_notes
from ._core.ops import QUANT_OPS
from ._core.opset import raise_opset
from ._core.rewrites import permit
from ._packing.codecs import OPSET
from ._packing.constant_graph import constant_nodes, feeds_only, is_table, own_decoders
from ._packing.content import BIT_TYPES
from ._packing.packer import Packer, nbytes_of
from ._packing.together import MIN_BYTES

VECTOR_READERS = QUANT_OPS | {"Conv", "ConvTranspose", "Gemm"}
"""Operators that read small vectors which may be computed at load. Shapes and indices of others are
to be known before.
"""


@dataclass(frozen=True)
class Pack(Pass):
    """Store each constant in its smallest form: bit mask, palette, gaps, a narrower type or others.

    Effect: exact. Touches constants of the main graph. Nodes decode them bit for bit, and outputs
    of these nodes keep the constants' names; small constants of one kind are decoded together. ONNX
    Runtime folds these nodes when it loads the model, so kernels and speed are those of the dense
    model. Loading takes up to 60 ns longer per element, and memory for what decoding computes on
    the way (limited by `load_memory`). A runtime that folds no constants (OpenVINO) decodes at
    every run instead. Models with an opset below 13 that cannot be raised are declined.

    Put it last: other passes cannot see weights behind decoders. A run unpacks its input, and ends
    lossy pipelines with this pass.

    Shapes: unchanged.

    Stats: `constants` (count packed), `bytes_before`, `bytes_after` (of these constants, names,
    shapes and nodes included); `load_bytes` (maximum memory that decoding takes beside the
    constants); by codec, `mask`, `palette`, `channel_palettes`, `codebook`, `bit_planes`, `gaps`,
    `short_gaps`, `grid`, `narrow`, `one_value` (counts); `notes` (count of metadata entries and doc
    strings dropped).

    Source: follows from the definition; palettes and masks: Han, Mao, Dally, Deep Compression, ICLR
    2016 (arXiv:1510.00149).
    """

    name: ClassVar[str] = "pack"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "constants"

    min_saving: float = Option(
        0.05,
        "Fraction of a constant's bytes that packing must save.",
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
        "Whether to drop exporters' notes on nodes and values (metadata, doc strings) if a "
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
        packer = Packer(model, self.min_saving, self.load_memory * 10**6)
        vectors = packer.pack_vectors(_vectors(model))
        candidates = [value for value in candidates if value not in vectors]
        with context.progress(self.name, len(candidates)) as advance:
            prospects = in_order([partial(packer.prospect, v) for v in candidates])
            for value, least in zip(candidates, prospects, strict=True):
                reason = packer.pack(value, least)
                if reason is not None:
                    declined.append(Declined(value.name or "", reason))
                advance(1)
        packer.store_together()
        packer.warn_of_memory(context)
        stats = packer.stats()
        if packer.codecs and self.notes == "drop":
            stats["notes"] = drop_notes(model, ports=False).total()
        return PassOutcome(packer.codecs.total(), stats, declined)


def _candidates(model: ir.Model) -> tuple[list[ir.Value], list[Declined]]:
    """Constants that may be packed, and a reason for each large one that may not."""
    chosen: list[ir.Value] = []
    declined: list[Declined] = []
    graph, *bodies = graphs_of(model)
    decoders = set(own_decoders(graph))
    folded = set(constant_nodes(graph))
    for value in graph.initializers.values():
        if nbytes_of(value) < MIN_BYTES:
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
            if nbytes_of(value) >= MIN_BYTES:
                reason = "it lies in the body of an If, Loop or Scan"
                declined.append(Declined(value.name or "", reason))
    # the largest first: it pays for the tables that smaller ones then share
    chosen.sort(key=nbytes_of, reverse=True)
    return chosen, declined


def _vectors(model: ir.Model) -> Iterator[ir.Value]:
    """Scales, zero points and biases of channels, which may be packed with others of their kind."""
    for value in model.graph.initializers.values():
        readers = {use.node.op_type for use in value.uses()}
        if readers <= VECTOR_READERS and _why_not(value) is None:
            yield value


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
    if tensor.dtype.name.startswith("FLOAT8"):
        return f"{tensor.dtype}: decoders have no operators for it"
    if tensor.dtype.bitwidth not in BIT_TYPES:
        return f"{tensor.dtype} has elements of {tensor.dtype.bitwidth} bits"
    return None
