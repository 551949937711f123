"""Stored integers as weights that train: a float for each, in units of its grid, rounded in use.

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
from ...passes._core.graph import all_nodes
from ...passes._core.integer_layers import IntegerLayer, integer_layers
from ...passes._core.ops import SMALL_FLOATS
from ...passes._core.saturation import PAIR_LIMIT, offending
from ._biases import integer_biases
from ._constants import PASSING, constants_of, tensor_of
from ._dtypes import RANGES
from ._palettes import CodeValues, values_of
from ._rounding import PairLimit

D = ir.DataType
Floats = NDArray[np.float64]
Packer = Callable[[NDArray[Any]], NDArray[np.uint8]]
"""Codes to the bytes that store them."""

SMALL_INTEGERS = frozenset(
    {D.INT2, D.UINT2, D.INT4, D.UINT4, D.INT8, D.UINT8, D.INT16, D.UINT16}
)
CODES = SMALL_INTEGERS | SMALL_FLOATS
"""Types of quantized weights; 32-bit integers count as biases only."""

CODE_INPUTS = {
    "DequantizeLinear": (0,),
    "MatMulInteger": (0, 1),
    "ConvInteger": (1,),
    "QLinearConv": (3,),
    "QLinearMatMul": (0, 3),
}
"""Inputs where a constant is a quantized weight that trains.

Not the table of passes/_core/integer_layers.py, which says where kernels read 8-bit weights in
pairs: here codes of any width count, on either side of a product, in ops that have a torch kernel.
"""

UNPACKING = frozenset({"Cast", "Mul", "ReduceSum", "Reshape", "Slice"})
"""Ops by which graphs packed by `quant` turn rows of a table into codes."""

FEW = 16
"""Steps of a grid: with fewer it has 4 bits or fewer, and its scale is worth training.

Measured in docs/decisions/2026-11-22-training-few-bits.md.
"""

MOST_ROWS = 256
"""Rows of a table of digits at most: one for each byte."""

IN_CELL = 0.49
"""Largest distance of a latent from its code, in steps: below a half, so that it rounds to it.

Measured in docs/decisions/2026-11-22-trainable-graphs.md: starting outside of the cell undoes
rounding that was chosen with data.
"""


@dataclass(frozen=True, eq=False)
class Latent:
    """Stored codes to train. `value`: what holds them in the graph; `codes`: the value that the
    latents replace.

    `low`, `high`, `step`: the grid (step 0: the floats of `value`'s type). `start`: first latents,
    in grid units: the stored codes, or near the float original where it is known; `original`: that
    itself, in grid units. `scale`: floats per grid unit, None if not found. `pack`: codes to stored
    bytes. `holds_zeros`: zeros are those of the original. `limited`: the integer layer whose
    kernels they do not saturate, on any CPU, and shall not later. `palette`: the codes that
    channels or vectors may have, where they are few.
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
    palette: CodeValues | None = None

    @property
    def limit(self) -> PairLimit | None:
        """Limit within which pairs of codes stay, if any."""
        if self.limited is None:
            return None
        return PairLimit.of(self.limited.channel_axis, self.limited.pairs)

    @property
    def steps(self) -> float:
        """Steps of the grid: 1 of one bit, 254 of 8 bits; infinite where codes are floats."""
        if not self.step:
            return math.inf
        if self.palette is not None:
            return self.palette.steps
        return (self.high - self.low) / self.step

    @property
    def is_coarse(self) -> bool:
        """True for so few codes that it is worth training what they stand for."""
        return self.steps < FEW

    def expression(
        self, parameter: str, palette: str, rule: str, soft: bool = False
    ) -> str:
        """Source that rounds the parameter to the grid.

        `palette`, `rule`: what the palette and the limit are called there, if it has these.
        `soft`: as far as the module's `rounding` says.
        """
        if self.step == 0:
            return f"small_float({parameter}, {int(self.dtype)})"
        grid = f"{self.low!r}, {self.high!r}, {self.step!r}"
        code = f"on_grid({parameter}, {grid})"
        if self.palette is not None:
            code = self.palette.rounding(parameter, palette)
        elif self.limited is not None:
            code = f"within_limit({parameter}, {code}, {rule})"
        if soft:
            code = f"softened({parameter}, {code}, self.rounding)"
        return code


def find_latents(
    model: ir.Model, originals: Mapping[str, NDArray[Any]] | None
) -> dict[ir.Value, Latent]:
    """Find every stored weight on a grid, by the value that its latents replace.

    `originals`: initializer name -> float weight (the name it had before quantization serves too).
    Errors: UsageError if an original has another shape than the codes.
    """
    layers = {}
    for layer in integer_layers(all_nodes(model)):
        layers[layer.stored] = layer
    found = {}
    for stored in _stored_latents(model):
        latent = _near_original(stored, originals or {})
        limited = _limited_by(latent, layers)
        found[latent.codes] = replace(latent, limited=limited)
    return found


def _limited_by(
    latent: Latent, layers: Mapping[ir.Value, IntegerLayer]
) -> IntegerLayer | None:
    """Return the layer that reads 8-bit codes of which no pair saturates.

    Training keeps a limit that it finds kept, and imposes none: the file may be made for CPUs that
    need none.
    """
    layer = layers.get(latent.codes)
    # two codes of half the limit or less never exceed it
    if layer is None or latent.high <= PAIR_LIMIT // 2:
        return None
    if not layer.pairs.count:
        return None
    stored = layer.tensor.numpy()
    codes = np.moveaxis(stored, layer.channel_axis, 0)
    channels = codes.shape[0]
    rows = codes.reshape(channels, -1)
    saturates = offending(rows, layer.pairs).any()
    if saturates:
        return None
    return layer


def _stored_latents(model: ir.Model) -> Iterator[Latent]:
    """Every stored weight on a grid, one after another, starting at its codes."""
    plain = []
    for graph, value, tensor in constants_of(model):
        is_bias = tensor.dtype == D.INT32 and _is_dequantized(value)
        if tensor.dtype not in CODES and not is_bias:
            continue
        latent = _packed(graph, value, tensor)
        if latent is None and _is_multiplied(value, tensor):
            plain.append((graph, value, tensor))
        elif latent is not None:
            yield latent
    few = values_of((value, tensor) for _, value, tensor in plain)
    for graph, value, tensor in plain:
        yield _plain(graph, value, tensor, few.get(value))


def coarsest_grid(model: ir.Model) -> float:
    """Return the fewest steps that a grid of stored weights has; infinite without any."""
    steps = [latent.steps for latent in _stored_latents(model)]
    return min(steps, default=math.inf)


def scales_of(model: ir.Model, latents: Iterable[Latent]) -> dict[ir.Value, float]:
    """Find the scales of weights of few bits, with their largest code.

    Few levels want other scales once their codes move. A scale that a 32-bit bias follows stays:
    runtimes read that bias in units of it.
    """
    tied = {weight for _, _, weight in integer_biases(model)}
    found: dict[ir.Value, float] = {}
    for latent in latents:
        if not latent.is_coarse:
            continue
        for node, index in latent.codes.uses():
            if not _is_dequantization(node, index) or node in tied:
                continue
            scale = node.inputs[1]
            if scale is None or scale.const_value is None:
                continue
            # a scale with other users would move them too
            if len(scale.uses()) == 1:
                found[scale] = latent.high
    return found


def _is_dequantization(node: ir.Node, index: int) -> bool:
    """Return whether a node dequantizes what it reads at an input."""
    return node.op_type == "DequantizeLinear" and index == 0


def _is_dequantized(value: ir.Value) -> bool:
    return any(_is_dequantization(node, index) for node, index in value.uses())


# --- codes stored as they are --------------------------------------------------


def _is_multiplied(value: ir.Value, tensor: ir.TensorProtocol) -> bool:
    """True if something multiplies by the codes that a value holds."""
    if tensor.size < 2:
        return False
    return any(_multiplies(node, index) for node, index in _users(value))


def _plain(
    graph: str, value: ir.Value, tensor: ir.TensorProtocol, few: CodeValues | None
) -> Latent:
    """Codes stored one by one, in a type of their own or a wider one; `few`: all that they are."""
    codes = tensor.numpy().astype(np.float64)
    if tensor.dtype in SMALL_FLOATS:
        low, high, step = 0.0, 0.0, 0.0
    else:
        low, high = _grid_of(codes, tensor.dtype)
        step = 1.0
    return Latent(
        graph,
        value,
        codes=value,
        dtype=tensor.dtype,
        low=low,
        high=high,
        step=step,
        start=codes,
        scale=_scale_of(value, codes.shape),
        palette=few,
    )


def _users(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Yield the (node, input) that read a value, through ops that only move or widen elements."""
    waiting = [value]
    while waiting:
        for node, index in waiting.pop().uses():
            yield node, index
            if index == 0 and node.op_type in PASSING and not _gives_float(node):
                waiting.extend(node.outputs)


def _gives_float(node: ir.Node) -> bool:
    """Return whether a node casts to a float type."""
    if node.op_type != "Cast":
        return False
    to = node.attributes.get("to")
    if to is None or to.is_ref():
        return False
    return D(to.as_int()) not in RANGES


def _multiplies(node: ir.Node, index: int) -> bool:
    return index in CODE_INPUTS.get(node.op_type, ()) or _gives_float(node)


def _grid_of(codes: Floats, dtype: ir.DataType) -> tuple[float, float]:
    """Return the narrowest grid of whole bits that holds the codes.

    It is symmetric if they leave its lowest value unused: an integer type wider than the grid says
    nothing about how the weight was quantized.
    """
    low, high = RANGES[dtype]
    if dtype == D.INT32 or low == 0:
        return float(low), float(high)
    bits = 2
    half = 2
    smallest = codes.min()
    largest = codes.max()
    while smallest < -half or largest > half - 1:
        bits += 1
        half = 2 ** (bits - 1)
    highest = half - 1
    lowest = -half
    if smallest > lowest:
        lowest = -highest
    return float(lowest), float(highest)


def _scale_of(codes: ir.Value, shape: tuple[int, ...]) -> Floats | None:
    """Return the constant floats per grid unit, so that they broadcast over codes of `shape`.

    They are those of a DequantizeLinear, of a Cast and a Mul, or the weight's part of the product
    that an integer kernel's result is multiplied by. None where they are not constant.
    """
    for node, index in codes.uses():
        if _is_dequantization(node, index):
            scale = _constant(node.inputs[1])
            if scale is None:
                return None
            return _aligned(scale, node, shape)
        if node.op_type in ("MatMulInteger", "ConvInteger"):
            return _factor_behind(node.outputs[0])
        if node.op_type == "Cast":
            if _gives_float(node):
                return _factor_of(node.outputs[0])
            return _scale_of(node.outputs[0], shape)
    return None


def _factor_of(value: ir.Value) -> Floats | None:
    """Return the constant that a value is multiplied by."""
    for user, index in value.uses():
        if user.op_type == "Mul":
            other = user.inputs[1 - index]
            return _constant(other)
    return None


def _factor_behind(product: ir.Value) -> Floats | None:
    """Return the constant of: integer product -> Cast -> Mul by (run-time scale x constant)."""
    cast = _only_user(product, "Cast")
    if cast is None:
        return None
    scaled = _only_user(cast.outputs[0], "Mul")
    if scaled is None:
        return None
    for value in scaled.inputs:
        producer = None if value is None else value.producer()
        if producer is not None and producer.op_type == "Mul":
            return _first_constant(producer.inputs)
    return None


def _first_constant(values: Iterable[ir.Value | None]) -> Floats | None:
    for value in values:
        constant = _constant(value)
        if constant is not None:
            return constant
    return None


def _aligned(parameter: Floats, node: ir.Node, shape: tuple[int, ...]) -> Floats:
    """Reshape a scale or zero point of a DequantizeLinear to broadcast over codes of `shape`."""
    if parameter.size == 1:
        return parameter.reshape(())
    axis = node.attributes.get_int("axis", 1) % len(shape)
    block = node.attributes.get_int("block_size", 0)
    if block:
        # the last block may be cut short by the end of the axis
        repeated = np.repeat(parameter, block, axis)
        inside = range(shape[axis])
        return repeated.take(inside, axis)
    dims_behind = len(shape) - axis - 1
    trailing = (1,) * dims_behind
    return parameter.reshape(-1, *trailing)


def _constant(value: ir.Value | None) -> Floats | None:
    """Return the values of a constant; None for anything else."""
    if value is None:
        return None
    producer = value.producer()
    tensor = value.const_value if producer is None else tensor_of(producer)
    if tensor is None:
        return None
    return tensor.numpy().astype(np.float64)


# --- codes unpacked from bytes --------------------------------------------------


def _packed(graph: str, value: ir.Value, tensor: ir.TensorProtocol) -> Latent | None:
    """Codes of: bytes -> Cast -> Gather from a table -> ... -> codes; None for other graphs.

    A row of the table says which signs or trits a byte stands for. Several planes of signs are the
    binary digits of a code, the highest first.
    """
    unpacking = _table_behind(value)
    if unpacking is None:
        return None
    gather, table = unpacking
    end, shape = _end_of_chain(gather)
    if shape is None:
        return None
    rows = table.numpy().astype(np.int64)
    stored = tensor.numpy()
    planes = stored.shape[0] if stored.ndim == 2 else 1
    codes = _unpacked(rows, stored, planes, shape)
    # the digits of all planes at their largest
    high = float(rows.max() * (2**planes - 1))
    return Latent(
        graph,
        value,
        codes=end,
        dtype=tensor.dtype,
        low=-high,
        high=high,
        # signs alone have no zero: -1 and 1 are two apart
        step=1.0 if 0 in rows else 2.0,
        start=codes,
        scale=_scale_of(end, codes.shape),
        pack=_packer(rows, planes, stored.shape),
    )


def _table_behind(value: ir.Value) -> tuple[ir.Node, ir.TensorProtocol] | None:
    """Return the Gather that looks bytes up, and its table of int8 rows."""
    cast = _only_user(value, "Cast")
    if cast is None:
        return None
    gather = _only_user(cast.outputs[0], "Gather")
    if gather is None or gather.inputs[0] is None:
        return None
    table = gather.inputs[0].const_value
    if table is None or table.dtype != D.INT8 or len(table.shape) != 2:
        return None
    # of digits it has every row that there is: a codebook of vectors has not
    distinct = len(np.unique(table.numpy()))
    width = int(table.shape.numpy()[1])
    if distinct**width > MOST_ROWS:
        return None
    return gather, table


def _unpacked(
    rows: NDArray[np.int64], stored: NDArray[Any], planes: int, shape: list[int]
) -> Floats:
    """Codes of `shape` from stored bytes (planes, bytes); bytes may hold a few too many at the
    end.
    """
    looked_up = rows[stored]
    digits = looked_up.reshape(planes, -1)
    # the first plane holds the highest digit
    exponents = np.arange(planes)[::-1]
    powers = 2**exponents
    weighted = digits * powers[:, None]
    codes = weighted.sum(0).astype(np.float64)
    size = int(np.prod(shape))
    unpacked: Floats = codes[:size].reshape(shape)
    return unpacked


def _only_user(value: ir.Value, op: str) -> ir.Node | None:
    """Return the one node that reads a value, if it is an `op`."""
    users = [node for node, _ in value.uses()]
    if len(users) != 1 or users[0].op_type != op:
        return None
    return users[0]


def _end_of_chain(gather: ir.Node) -> tuple[ir.Value, list[int] | None]:
    """Return the last integer value of an unpacking chain, and its shape."""
    value = gather.outputs[0]
    shape = None
    while True:
        users = [node for node, _ in value.uses()]
        if len(users) != 1 or users[0].op_type not in UNPACKING:
            return value, shape
        node = users[0]
        if _gives_float(node):
            return value, shape
        if node.op_type == "Reshape":
            wanted = _constant(node.inputs[1])
            shape = None
            if wanted is not None:
                shape = [int(size) for size in wanted]
        value = node.outputs[0]


def _packer(rows: NDArray[np.int64], planes: int, stored: tuple[int, ...]) -> Packer:
    """Invert the table: digits of a row, in its own base, say which byte it is."""
    low = rows.min()
    distinct = np.unique(rows)
    base = len(distinct)
    width = rows.shape[1]
    # trits are one apart, signs two
    unit = 1
    if base <= 2:
        unit = rows.max() - low
    positions = np.arange(width)
    weights = base**positions
    digits_of_rows = (rows - low) // unit
    numbers = digits_of_rows @ weights
    byte_of = np.zeros(base**width, np.uint8)
    byte_of[numbers] = np.arange(len(rows))

    def pack(codes: NDArray[Any]) -> NDArray[np.uint8]:
        flat = codes.reshape(-1).astype(np.int64)
        bytes_per_plane = stored[-1]
        room = bytes_per_plane * width
        missing = room - flat.size
        padding = np.zeros(missing, np.int64)
        out = np.empty((planes, bytes_per_plane), np.uint8)
        for plane in range(planes):
            if planes == 1:
                digits = (flat - low) // unit
            else:
                place = planes - 1 - plane
                digits = _binary_digits(flat, planes, place)
            padded = np.concatenate([digits, padding])
            by_byte = padded.reshape(-1, width)
            numbers = by_byte @ weights
            out[plane] = byte_of[numbers]
        return out.reshape(stored)

    return pack


def _binary_digits(
    codes: NDArray[np.int64], planes: int, place: int
) -> NDArray[np.int64]:
    """One binary digit of each odd code, -(2^p - 1) ... 2^p - 1, counted from zero."""
    highest = 2**planes - 1
    level = (codes + highest) // 2
    shifted = level >> place
    digits: NDArray[np.int64] = shifted % 2
    return digits


# --- the float original -----------------------------------------------------------


def _near_original(latent: Latent, originals: Mapping[str, NDArray[Any]]) -> Latent:
    """Start latents as near the float original as they can be without another code.

    Rounding that was chosen with data stays, and what is near the next code can reach it. Needs the
    original and the scale; without them the latents start at their codes.
    """
    name = latent.value.name or ""
    key = _original_name(name, originals)
    if key is None or latent.scale is None or latent.step == 0:
        return latent
    weight = np.asarray(originals[key], np.float64)
    if weight.shape != latent.start.shape:
        if name != key:
            # a name that only resembles it, or a weight that got more channels since
            return latent
        raise UsageError(
            f"originals['{key}']",
            f"has shape {weight.shape}, its codes {latent.start.shape}",
            "give the float weight that was quantized",
        )
    zero = _zero_of(latent.codes, weight.shape)
    exact = weight / latent.scale + zero
    on_grid = np.clip(exact, latent.low, latent.high)
    start = _in_cells(latent, on_grid)
    return replace(
        latent,
        start=start,
        original=exact.astype(np.float32),
        # zeros of the original are zeros of the latents only where nothing shifts them and
        # the grid has a zero at all
        holds_zeros=latent.step == 1.0 and not np.any(zero),
    )


def _in_cells(latent: Latent, exact: Floats) -> Floats:
    """The numbers nearest to exact ones that are rounded to the codes."""
    start = latent.start
    if latent.palette is not None:
        return latent.palette.inside(exact, start, share=2 * IN_CELL)
    margin = latent.step * IN_CELL
    return np.clip(exact, start - margin, start + margin)


def _original_name(name: str, originals: Mapping[str, NDArray[Any]]) -> str | None:
    """Return the float weight that an initializer's codes came from, by name alone.

    This relies on the passes that quantize: they store the codes of `w` as `w_q`, `w_q4`,
    `w_packed` or `w_int4` (passes/_quant), always the weight's name, an underscore and more. The
    graph says nothing else about where codes came from. Of several names that fit the longest is
    taken, since `conv_1` and `conv` may both be weights. A wrong guess shows by its shape only.
    """
    # `w` fits `w` and `w_q`, but not `weight`
    stored = f"{name}_"
    fitting = [key for key in originals if stored.startswith(f"{key}_")]
    return max(fitting, key=len, default=None)


def _zero_of(codes: ir.Value, shape: tuple[int, ...]) -> Any:
    """Return the zero point of codes, so that it broadcasts over `shape`; 0 without one."""
    for node, index in codes.uses():
        if _is_dequantization(node, index) and len(node.inputs) > 2:
            zero = _constant(node.inputs[2])
            if zero is None:
                return 0.0
            return _aligned(zero, node, shape)
    return 0.0
