"""Weights stored in few bytes for float kernels, unpacked by nodes that ONNX Runtime folds at load.

w (float32)  ->  Cast(q)                      fp16, bf16
                 Cast(q) * scale              one scale per channel
                 Reshape(Cast(q) * scale)     one scale per block of a channel
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import UsageError
from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.channel_layout import Layout
from ._core.graph import Names, become
from ._core.lazy import DerivedTensor, blocks
from ._core.notes import drop_notes
from ._core.opset import raise_opset
from ._core.patterns import (
    Part,
    left_out,
    require_matches,
    weight_names,
    weighted_names,
    weighted_parts,
)
from ._core.tables import tables_of
from ._core.weight_axes import NoAxisError, input_axis
from ._core.weights import Weight, weights_of
from ._quant.block_grids import DTYPES, LEVELS, best_scales
from ._quant.inserter import Inserter
from ._quant.palettes import MOST_BITS, codes_of, rescaled
from ._quant.weights import (
    INT8_LEVELS,
    Floats,
    channel_absmax,
    quantize_weight,
    wide_enough,
)
from ._simplify.plain_weights import plain_weights

Encoding = Literal["int8", "int4", "palette", "fp16", "bf16"]

OPSETS = {"int8": 7, "int4": 21, "palette": 7, "fp16": 7, "bf16": 13}
"""Least opset of the nodes that unpack a weight.

Mul broadcasts from 7, Cast reads bf16 from 13 and int4 from 21.
"""

FLOAT_TYPES = {"fp16": ir.DataType.FLOAT16, "bf16": ir.DataType.BFLOAT16}

LIMITS = {
    "fp16": 65504.0,
    "bf16": 3.38e38,
    "int8": 1e38,
    "int4": 1e38,
    "palette": 1e38,
}
"""Largest magnitude that is stored: the type's own; of integers chosen by hand."""

BLOCKS = {"int8": 64, "int4": 32}
"""Weights of a channel that share a scale by default; chosen by hand."""

PALETTE_BITS = 4
"""Bits of an index by default."""

SHORTEST_BLOCK = 8
"""Weights below which a block is not worth a scale of its own; chosen by hand."""

SHORT = 32
"""Weights of a channel below which it is stored as fp16 (depthwise convolutions).

With a scale each, integers would be hardly smaller, and these layers lose most (measured on
EfficientNet-Lite0).
"""


@dataclass(frozen=True)
class CompressWeights(Pass):
    """Store weights in fewer bits while every kernel stays float: a smaller file at the same speed.

    For models that `quant` cannot speed up (convolutions without calibration data, runtimes without
    integer kernels) and for downloads that must shrink. ONNX Runtime unpacks the weights once, when
    it loads the model; memory and latency are then those of the original. Put it last: later passes
    no longer see constant weights.

    Effect: lossy. Touches float32 weights of Conv, ConvTranspose, Gemm, MatMul, LSTM, GRU and RNN,
    and tables of Gather; activations stay float32. Encodings, with the share of the bytes that is
    left:

    - int8 (about 0.27) and int4 (about 0.16): one scale per block of an output channel or table
      row.
    - palette (0.14 with `bits=4`, once `pack` stores the indices): int8 codes, of which each
      channel uses 2**bits different ones.
    - fp16 and bf16 (0.5): rounded.

    Where others become integers, depthwise convolutions become fp16: with one scale per channel
    they would hardly be smaller, and they lose most. Exporters' notes on nodes and values are
    dropped (`notes=keep` keeps them); names stay.

    Shapes: unchanged.

    Errors: RefusedError if the opset cannot be raised (int4 needs 21, bf16 13); UsageError for a
    pattern of include or exclude that matches no layer.

    Stats: `weights` (count), `bytes_before`, `bytes_after` (of these weights, scales included),
    `notes` (count of metadata entries and doc strings dropped).

    Source: follows from the definition; block scales: Dettmers, Zettlemoyer, The case for 4-bit
    precision, ICML 2023 (arXiv:2212.09720).
    """

    name: ClassVar[str] = "compress-weights"
    effect: ClassVar[Effect] = "lossy"
    unit: ClassVar[str] = "weights"

    encoding: Encoding = Option("int8", "How weights are stored.")
    bits: int | None = Option(
        None,
        "Bits per index, for palette; 4 by default.",
        low=1,
        high=MOST_BITS,
    )
    block: int | None = Option(
        None,
        "Maximum number of weights of a channel that share a scale; by default 64 for int8, 32 for"
        " int4.",
        low=0,
        high=65_536,
    )
    min_size: int = Option(
        1024,
        "Leave weights with fewer elements as they are.",
        low=1,
        high=1_000_000_000,
    )
    include: tuple[str, ...] = Option(
        (),
        "Only weights of layers whose node, weight or output name matches a pattern.",
    )
    exclude: tuple[str, ...] = Option(
        (), "Leave out layers whose node, weight or output name matches a pattern."
    )
    notes: Literal["drop", "keep"] = Option(
        "drop",
        "Whether to drop exporters' notes on nodes and values (metadata, doc strings), which may "
        "outweigh the weights.",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bits is not None and self.encoding != "palette":
            raise UsageError(
                "compress-weights.bits",
                f"encoding {self.encoding} has no choice of bits",
                "take encoding palette, or leave bits out",
            )

    def parts(self, model: ir.Model) -> list[Part]:
        """Layers with a weight, and tables of floats."""
        return weighted_parts(model, tables=True)

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        plain = plain_weights(model)
        weights, declined = self._chosen(plain)
        outcome = PassOutcome(declined=declined)
        if not weights:
            return outcome
        if plain is not model:
            become(model, plain)
        if raise_opset(model, OPSETS[self.encoding]):
            # that may have made another graph
            weights, _ = self._chosen(model)
        names = Names(model)
        before = after = 0
        with context.progress(self.name, len(weights)) as advance:
            for weight in weights:
                before += weight.tensor.nbytes
                after += self._store(weight, names)
                advance(1)
        outcome.changed = len(weights)
        outcome.stats = {
            "weights": len(weights),
            "bytes_before": before,
            "bytes_after": after,
        }
        if self.notes == "drop":
            outcome.stats["notes"] = drop_notes(model, ports=False).total()
        return outcome

    def _chosen(self, model: ir.Model) -> tuple[list[Weight], list[Declined]]:
        """The weights to store, and the reason for each other one."""
        tables = tables_of(model)
        found, declined = weights_of(model, tables)
        weights = {weight.value for weight in found}
        found += [table for value, table in tables.items() if value not in weights]
        if self.include or self.exclude:
            names = weighted_names(model, tables=True)
            require_matches("compress-weights.include", self.include, names)
            require_matches("compress-weights.exclude", self.exclude, names)
        chosen = []
        for weight in found:
            reason = self._why_not(weight)
            if reason is None:
                chosen.append(weight)
            else:
                declined.append(Declined(weight.name, reason))
        return chosen, declined

    def _why_not(self, weight: Weight) -> str | None:
        reason = left_out(
            weight_names(weight),
            self.include,
            self.exclude,
        )
        if reason is not None:
            return reason
        if weight.value.dtype != ir.DataType.FLOAT:
            return f"it is {weight.value.dtype}, not FLOAT"
        # of a table: the interface keeps what it states
        if weight.value.is_graph_output():
            return "it is an output of the model"
        if weight.size < self.min_size:
            return f"its {weight.size} elements are fewer than min_size={self.min_size}"
        # so that NaN, which compares with nothing, is refused
        if not absmax(weight.tensor) <= LIMITS[self.encoding]:
            return f"it holds NaN, infinity or numbers beyond {LIMITS[self.encoding]:g}"
        return None

    def _form(self, weight: Weight, rows: _Rows) -> Encoding:
        """The encoding of one weight: fp16 in place of integers where channels are short."""
        if self.encoding in FLOAT_TYPES or rows.length >= SHORT:
            return self.encoding
        fits = absmax(weight.tensor) <= LIMITS["fp16"]
        return "fp16" if fits else self.encoding

    def _store(self, weight: Weight, names: Names) -> int:
        """Replace a weight by its stored form and the nodes that unpack it; the bytes it takes."""
        value = weight.value
        graph = value.graph
        assert isinstance(graph, ir.Graph)
        assert value.name is not None
        unpacker = _Unpacker(Inserter(graph, names), value)
        rows = _rows(weight)
        encoding = self._form(weight, rows)
        if encoding in FLOAT_TYPES:
            stored = _rounded(weight.tensor, FLOAT_TYPES[encoding])
            unpacker.cast(stored, encoding)
        else:
            self._store_integers(weight, rows, unpacker)
        unpacker.take_over()
        return unpacker.bytes

    def _store_integers(self, weight: Weight, rows: _Rows, unpacker: _Unpacker) -> None:
        tensor = weight.tensor
        if self.encoding == "palette":
            found = codes_of(tensor, rows.layout, self.bits or PALETTE_BITS)
            scales = wide_enough(found.scales.astype(np.float32), None, 1.0)
            unpacker.cast(rescaled(found, scales), "int8")
            unpacker.scale(scales.reshape(rows.scale_dims))
            return
        # 0 is the default in pipelines that were stored before `none` was a value
        block = _dividing(rows.length, self.block or BLOCKS[self.encoding])
        if self.encoding == "int8" and block == rows.length:
            absmax_of_channels = channel_absmax(tensor, rows.layout)
            scales = wide_enough(
                absmax_of_channels / np.float32(INT8_LEVELS),
                None,
                1.0,
            )
            unpacker.cast(quantize_weight(tensor, rows.layout, scales), "int8")
            unpacker.scale(scales.reshape(rows.scale_dims))
            return
        bits = 8 if self.encoding == "int8" else 4
        inner = rows.layout.channels if rows.columns else 1
        scales = _block_scales(
            tensor,
            bits,
            block,
            inner,
        )
        codes = _quantized(
            tensor,
            scales,
            bits,
            block,
            inner,
        )
        stored = _reshaped(codes, [len(scales), block, inner])
        unpacker.cast(stored, self.encoding)
        unpacker.scale(scales[:, None])
        unpacker.reshape()


@dataclass(frozen=True)
class _Rows:
    """A weight as channels of `length` numbers each, side by side or (`columns`) one number per
    row.

    `scale_dims`: the shape in which one number per channel broadcasts over the weight.
    """

    layout: Layout
    length: int
    columns: bool
    scale_dims: tuple[int, ...]


def _rows(weight: Weight) -> _Rows:
    shape = tuple(int(dim) for dim in weight.tensor.shape.numpy())
    axis = _input_axis(weight, len(shape))
    last = len(shape) - 1
    ops = {node.op_type for node, _ in weight.uses}
    # everything behind the first axis of a Conv's weight or a table is one channel
    is_whole = not weight.transposed and ops <= {"Conv", "Gather"}
    if is_whole or axis == last:
        length = math.prod(shape[axis:])
        layout = Layout(
            1,
            math.prod(shape[:axis]),
            length,
        )
        ones = (1,) * (len(shape) - axis)
        return _Rows(
            layout,
            length,
            columns=False,
            scale_dims=shape[:axis] + ones,
        )
    behind = shape[axis + 1 :]
    layout = Layout(
        math.prod(shape[: axis + 1]),
        math.prod(behind),
        1,
    )
    ones = (1,) * (axis + 1)
    return _Rows(
        layout,
        shape[axis],
        columns=True,
        scale_dims=ones + behind,
    )


def _input_axis(weight: Weight, rank: int) -> int:
    """Axis along which the numbers of a channel begin."""
    node, _ = weight.uses[0]
    if node.op_type == "Gather":
        return 1
    try:
        return input_axis(weight, 1)
    except NoAxisError:
        # used along several axes: any choice is right, none is best
        return rank - 1


def _dividing(length: int, block: int) -> int:
    """The longest block that divides the length, at most `block`.

    The whole length if all such are too short.
    """
    for candidate in range(min(block, length), SHORTEST_BLOCK - 1, -1):
        if length % candidate == 0:
            return candidate
    return length


def absmax(tensor: ir.TensorProtocol) -> float:
    """max|w|; NaN if it holds NaN."""
    highest = [float(np.max(np.abs(block), initial=0.0)) for _, block in blocks(tensor)]
    return float(np.max(highest, initial=0.0))


def _rounded(tensor: ir.TensorProtocol, dtype: ir.DataType) -> DerivedTensor:
    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        return block.astype(dtype.numpy())

    return DerivedTensor(tensor, kernel, dtype)


def _block_scales(
    tensor: ir.TensorProtocol, bits: int, block: int, inner: int
) -> Floats:
    """Shapes: (n * block * inner,) in this order -> (n, inner)."""
    found = []
    for _, part in blocks(tensor, block * inner):
        found.append(best_scales(part.reshape(-1, block, inner), bits))
    return np.concatenate(found)


def _quantized(
    tensor: ir.TensorProtocol, scales: Floats, bits: int, block: int, inner: int
) -> DerivedTensor:
    low, high = LEVELS[bits]

    def kernel(part: NDArray[Any], start: int) -> NDArray[Any]:
        view = part.reshape(-1, block, inner)
        first = start // (block * inner)
        scale = scales[first : first + len(view), None]
        rounded = np.rint(view / scale)
        codes = np.clip(rounded, low, high).astype(DTYPES[bits].numpy())
        return np.asarray(codes).reshape(-1)

    return DerivedTensor(
        tensor,
        kernel,
        DTYPES[bits],
        block * inner,
    )


def _reshaped(tensor: DerivedTensor, dims: list[int]) -> DerivedTensor:
    tensor.shape = ir.Shape(dims)
    return tensor


class _Unpacker:
    """Nodes that rebuild a float32 weight from its stored form, at the top of its graph."""

    def __init__(self, inserter: Inserter, weight: ir.Value) -> None:
        self.inserter = inserter
        self.weight = weight
        self.bytes = 0
        self.nodes: list[ir.Node] = []

    def cast(self, stored: ir.TensorProtocol, encoding: str) -> None:
        value = self._initializer(encoding, stored)
        shape = ir.Shape(stored.shape.numpy())
        self._step(
            "Cast",
            [value],
            shape,
            {"to": int(ir.DataType.FLOAT)},
        )

    def scale(self, scales: Floats) -> None:
        cast = self.nodes[-1].outputs[0]
        scale = self._initializer("scale", ir.Tensor(scales))
        self._step("Mul", [cast, scale], cast.shape, {})

    def reshape(self) -> None:
        shape = np.array(self.weight.shape, np.int64)
        dims = self.inserter.constant("shape", shape)
        blocked = self.nodes[-1].outputs[0]
        self._step(
            "Reshape",
            [blocked, dims],
            self.weight.shape,
            {},
        )

    def take_over(self) -> None:
        """The unpacked weight replaces the initializer under its name."""
        graph = self.inserter.graph
        name = self.weight.name
        unpacked = self.nodes[-1].outputs[0]
        assert name is not None
        graph.insert_before(graph[0], self.nodes)
        self.weight.replace_all_uses_with(unpacked)
        del graph.initializers[name]
        # the name is free only now
        unpacked.name = name

    def _initializer(self, what: str, tensor: ir.TensorProtocol) -> ir.Value:
        self.bytes += tensor.nbytes
        return self.inserter.initializer(f"{self.weight.name}_{what}", tensor)

    def _step(
        self,
        op: str,
        inputs: list[ir.Value | None],
        shape: ir.Shape | None,
        attributes: dict[str, int],
    ) -> None:
        kind = ir.DataType.FLOAT
        node = self.inserter.node(
            op,
            inputs,
            "unpacked",
            kind,
            shape,
            attributes,
        )
        self.nodes.append(node)
