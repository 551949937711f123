"""Stored integers as weights that train: a float for each, in units of its grid, rounded whenever
it is used.

Found are integers behind DequantizeLinear, behind a Cast to float, in integer kernels, and codes
that are unpacked from bytes by a table (signs and trits, several planes of them).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import UsageError
from ...passes._core.integer_layers import IntegerLayer, integer_layers
from ...passes._core.saturation import PAIR_LIMIT, offending
from ._biases import integer_biases
from ._dtypes import RANGES
from ._ops.quant import PairLimit
from ._weights import PASSING, all_nodes, constants_of, tensor_of

D = ir.DataType
Floats = NDArray[np.float64]
Packer = Callable[[NDArray[Any]], NDArray[np.uint8]]

SMALL_FLOATS = frozenset(
    {
        D.FLOAT8E4M3FN,
        D.FLOAT8E4M3FNUZ,
        D.FLOAT8E5M2,
        D.FLOAT8E5M2FNUZ,
        D.FLOAT4E2M1,
    }
)
CODES = (
    frozenset({D.INT2, D.UINT2, D.INT4, D.UINT4, D.INT8, D.UINT8, D.INT16, D.UINT16})
    | SMALL_FLOATS
)
CODE_INPUTS = {
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
}
"""Inputs where a constant is a quantized weight."""


FEW = 16
"""Grids with fewer steps have 4 bits or fewer; their scales are worth training."""
IN_CELL = 0.49
"""Of a step to either side of a code: still rounded to it."""


@dataclass(frozen=True, eq=False)
class Latent:
    """Stored codes to train. `value`: what holds them in the graph; `codes`: the value that the
    latents replace.

    `low`, `high`, `step`: the grid (step 0: the floats of `value`'s type). `start`: first latents,
    in grid units: the stored codes, or near the float original where it is known; `original`: that
    itself, in grid units. `scale`: floats per grid unit, None if not found. `pack`: codes to stored
    bytes. `holds_zeros`: zeros are those of the original. `limited`: the integer layer whose
    kernels they do not saturate, on any CPU, and shall not later.
    """

    graph: str
    value: ir.Value
    codes: ir.Value
    dtype: ir.DataType
    low: float
    high: float
    step: float
    start: Floats
    scale: Floats | None = None
    pack: Packer | None = None
    original: NDArray[np.float32] | None = None
    holds_zeros: bool = False
    limited: IntegerLayer | None = None

    @property
    def limit(self) -> PairLimit | None:
        """Within which codes stay, if any."""
        return (
            None
            if self.limited is None
            else PairLimit.of(self.limited.channel_axis, self.limited.pairs)
        )

    @property
    def steps(self) -> float:
        """Of its grid: 1 of one bit, 254 of 8 bits; infinite where codes are floats."""
        return (self.high - self.low) / self.step if self.step else math.inf

    def expression(self, parameter: str, soft: bool = False, limit: str = "") -> str:
        """Source that rounds the parameter to the grid; `soft`: as far as the module's `rounding`
        says.

        `limit`: the name of its `PairLimit` there, where it has one.
        """
        if self.step == 0:
            return f"small_float({parameter}, {int(self.dtype)})"
        code = f"on_grid({parameter}, {self.low!r}, {self.high!r}, {self.step!r})"
        if self.limited is not None:
            code = f"within_limit({parameter}, {code}, {limit})"
        return f"softened({parameter}, {code}, self.rounding)" if soft else code


def find_latents(
    model: ir.Model, originals: Mapping[str, NDArray[Any]] | None
) -> dict[ir.Value, Latent]:
    """Every stored weight on a grid, by the value that its latents replace.

    `originals`: initializer name -> float weight (the name it had before quantization serves too).
    Errors: UsageError if an original has another shape than the codes.
    """
    layers = {layer.stored: layer for layer in integer_layers(all_nodes(model))}
    started = (_started(latent, originals or {}) for latent in _stored(model))
    return {
        latent.codes: replace(latent, limited=_limited(latent, layers))
        for latent in started
    }


def _limited(
    latent: Latent, layers: Mapping[ir.Value, IntegerLayer]
) -> IntegerLayer | None:
    """The layer that reads 8-bit codes of which no pair saturates; training keeps what it finds
    so.
    """
    layer = layers.get(latent.codes)
    if layer is None or latent.high <= PAIR_LIMIT // 2 or not layer.pairs.count:
        return None
    codes = layer.tensor.numpy()
    rows = np.moveaxis(codes, layer.channel_axis, 0).reshape(
        codes.shape[layer.channel_axis], -1
    )
    return None if offending(rows, layer.pairs).any() else layer


def _stored(model: ir.Model) -> Iterator[Latent]:
    """Every stored weight on a grid, one after another, starting at its codes."""
    for graph, value, tensor in constants_of(model):
        if tensor.dtype in CODES or (tensor.dtype == D.INT32 and _is_bias(value)):
            latent = _packed(graph, value, tensor) or _plain(graph, value, tensor)
            if latent is not None:
                yield latent


def coarsest_grid(model: ir.Model) -> float:
    """The fewest steps that a grid of stored weights has; infinite without any."""
    return min((latent.steps for latent in _stored(model)), default=math.inf)


def scales_of(model: ir.Model, latents: Iterable[Latent]) -> dict[ir.Value, float]:
    """Scales of weights of few bits, with their largest code: few levels want other scales once
    their codes move.

    A scale that a 32-bit bias follows stays: runtimes read that bias in units of it.
    """
    tied = {weight for _, _, weight in integer_biases(model)}
    found: dict[ir.Value, float] = {}
    for latent in latents:
        if latent.steps >= FEW:
            continue
        for node, index in latent.codes.uses():
            scale = (
                node.inputs[1]
                if node.op_type == "DequantizeLinear" and index == 0
                else None
            )
            if scale is None or scale.const_value is None or len(scale.uses()) > 1:
                continue
            if node not in tied:
                found[scale] = latent.high
    return found


def _is_bias(value: ir.Value) -> bool:
    return any(
        node.op_type == "DequantizeLinear" and index == 0
        for node, index in value.uses()
    )


def _plain(graph: str, value: ir.Value, tensor: ir.TensorProtocol) -> Latent | None:
    """Codes stored as they are, a type of their own or a wider one."""
    if tensor.size < 2 or not any(
        _multiplies(node, index) for node, index in _users(value)
    ):
        return None
    codes = tensor.numpy().astype(np.float64)
    low, high = (
        (0.0, 0.0) if tensor.dtype in SMALL_FLOATS else _grid_of(codes, tensor.dtype)
    )
    step = 0.0 if tensor.dtype in SMALL_FLOATS else 1.0
    return Latent(
        graph,
        value,
        value,
        tensor.dtype,
        low,
        high,
        step,
        codes,
        _scale_of(value, codes.shape),
    )


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads a value, through ops that only move or widen elements."""
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            yield node, index
            if index == 0 and node.op_type in PASSING and not _gives_float(node):
                waiting.extend(node.outputs)


def _gives_float(node: ir.Node) -> bool:
    to = node.attributes.get("to")
    return (
        node.op_type == "Cast"
        and to is not None
        and not to.is_ref()
        and D(to.as_int()) not in RANGES
    )


def _multiplies(node: ir.Node, index: int) -> bool:
    return index in CODE_INPUTS.get(node.op_type, ()) or _gives_float(node)


def _grid_of(codes: Floats, dtype: ir.DataType) -> tuple[float, float]:
    """The narrowest grid of whole bits that holds the codes; symmetric if they leave its lowest
    value unused.
    """
    low, high = RANGES[dtype]
    if dtype == D.INT32 or low == 0:
        return float(low), float(high)
    bits = 2
    while codes.min() < -(2 ** (bits - 1)) or codes.max() > 2 ** (bits - 1) - 1:
        bits += 1
    symmetric = codes.min() > -(2 ** (bits - 1))
    return float(-(2 ** (bits - 1)) + symmetric), float(2 ** (bits - 1) - 1)


def _scale_of(codes: ir.Value, shape: tuple[int, ...]) -> Floats | None:
    """Constant floats per grid unit, as codes broadcast: of a DequantizeLinear, of a Cast and a
    Mul, or the weight's part of the product that an integer kernel's result is multiplied by.
    """
    for node, index in codes.uses():
        if node.op_type == "DequantizeLinear" and index == 0:
            scale = _constant(node.inputs[1])
            return None if scale is None else _aligned(scale, node, shape)
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            return _factor_behind(node.outputs[0])
        if node.op_type == "Cast":
            return (
                _scale_of(node.outputs[0], shape)
                if not _gives_float(node)
                else _factor_of(node.outputs[0])
            )
    return None


def _factor_of(value: ir.Value) -> Floats | None:
    """The constant that a value is multiplied by."""
    for user, place in value.uses():
        if user.op_type == "Mul":
            return _constant(user.inputs[1 - place])
    return None


def _factor_behind(product: ir.Value) -> Floats | None:
    """Integer product -> Cast -> Mul by (run-time scale x constant scale): the constant."""
    cast = _only_user(product, "Cast")
    scaled = None if cast is None else _only_user(cast.outputs[0], "Mul")
    for value in () if scaled is None else scaled.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "Mul":
            return next(
                (c for v in producer.inputs if (c := _constant(v)) is not None), None
            )
    return None


def _aligned(parameter: Floats, node: ir.Node, shape: tuple[int, ...]) -> Floats:
    """A scale or zero point of a DequantizeLinear, so that it broadcasts over codes of `shape`."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = node.attributes.get_int("axis", 1) % len(shape)
    if block := node.attributes.get_int("block_size", 0):
        return np.repeat(parameter, block, axis).take(range(shape[axis]), axis)
    return parameter.reshape(-1, *(1,) * (len(shape) - axis - 1))


def _constant(value: ir.Value | None) -> Floats | None:
    producer = None if value is None else value.producer()
    tensor = (
        None
        if value is None
        else value.const_value
        if producer is None
        else tensor_of(producer)
    )
    return None if tensor is None else tensor.numpy().astype(np.float64)


def _packed(graph: str, value: ir.Value, tensor: ir.TensorProtocol) -> Latent | None:
    """Bytes -> Cast -> Gather from a table -> ... -> codes: the table says what each byte stands
    for.
    """
    cast = _only_user(value, "Cast")
    gather = None if cast is None else _only_user(cast.outputs[0], "Gather")
    held = None if gather is None else gather.inputs[0]
    table = None if held is None else held.const_value
    if (
        gather is None
        or table is None
        or table.dtype != D.INT8
        or len(table.shape) != 2
    ):
        return None
    end, shape = _end_of_chain(gather)
    if shape is None:
        return None
    rows = table.numpy().astype(np.int64)
    stored = tensor.numpy()
    planes = stored.shape[0] if stored.ndim == 2 else 1
    signs = rows[stored].reshape(planes, -1)
    powers = 2 ** np.arange(planes)[::-1]
    codes = (
        (signs * powers[:, None])
        .sum(0)[: int(np.prod(shape))]
        .reshape(shape)
        .astype(np.float64)
    )
    high = float(rows.max() * (2**planes - 1))
    step = 1.0 if 0 in rows else 2.0
    return Latent(
        graph,
        value,
        end,
        tensor.dtype,
        -high,
        high,
        step,
        codes,
        _scale_of(end, codes.shape),
        _packer(rows, planes, stored.shape),
    )


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    users = [node for node, _ in value.uses()]
    return users[0] if len(users) == 1 and users[0].op_type == op else None


def _end_of_chain(gather: ir.Node) -> tuple[ir.Value, list[int] | None]:
    """The last integer value of an unpacking chain, and its shape."""
    value, shape = gather.outputs[0], None
    while True:
        users = [node for node, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in (
            "Cast",
            "Mul",
            "ReduceSum",
            "Reshape",
            "Slice",
        ):
            return value, shape
        node = users[0]
        if _gives_float(node):
            return value, shape
        if node.op_type == "Reshape":
            wanted = _constant(node.inputs[1])
            shape = None if wanted is None else [int(d) for d in wanted]
        value = node.outputs[0]


def _packer(rows: NDArray[np.int64], planes: int, stored: tuple[int, ...]) -> Packer:
    """The inverse of the table: digits of a row, in its own base, say which byte it is."""
    low, base = rows.min(), len(np.unique(rows))
    unit = 1 if base > 2 else rows.max() - low
    weights = base ** np.arange(rows.shape[1])
    byte_of = np.zeros(base ** rows.shape[1], np.uint8)
    byte_of[(rows - low) // unit @ weights] = np.arange(len(rows))

    def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
        flat = codes.reshape(-1).astype(np.int64)
        count = stored[-1] * rows.shape[1]
        out = np.empty((planes, stored[-1]), np.uint8)
        for plane in range(planes):
            digits = (
                (flat - low) // unit
                if planes == 1
                else ((flat + 2**planes - 1) // 2 >> (planes - 1 - plane)) % 2
            )
            padded = np.concatenate([digits, np.zeros(count - flat.size, np.int64)])
            out[plane] = byte_of[padded.reshape(-1, rows.shape[1]) @ weights]
        return out.reshape(stored)

    return pack


def _started(latent: Latent, originals: Mapping[str, NDArray[Any]]) -> Latent:
    """Latents as near the float original as they can be without another code, in grid units, where
    it is given and the scale is known: rounding that was chosen with data stays, and who is near
    the next code can reach it.
    """
    name = latent.value.name or ""
    key = max(
        (k for k in originals if name == k or name.startswith(f"{k}_")),
        key=len,
        default=None,
    )
    if key is None or latent.scale is None or latent.step == 0:
        return latent
    weight = np.asarray(originals[key], np.float64)
    if weight.shape != latent.start.shape:
        if name != key:
            return latent  # only resembles it, or was given more channels since
        raise UsageError(
            f"originals['{key}']",
            f"has shape {weight.shape}, its codes {latent.start.shape}",
            "give the float weight that was quantized",
        )
    zero = _zero_of(latent.codes, weight.shape)
    margin = latent.step * IN_CELL
    exact = weight / latent.scale + zero
    start = np.clip(
        np.clip(exact, latent.start - margin, latent.start + margin),
        latent.low,
        latent.high,
    )
    holds_zeros = latent.step == 1.0 and not np.any(zero)
    return replace(
        latent, start=start, original=exact.astype(np.float32), holds_zeros=holds_zeros
    )


def _zero_of(codes: ir.Value, shape: tuple[int, ...]) -> Any:
    for node, index in codes.uses():
        if node.op_type == "DequantizeLinear" and index == 0 and len(node.inputs) > 2:
            zero = _constant(node.inputs[2])
            return 0.0 if zero is None else _aligned(zero, node, shape)
    return 0.0
