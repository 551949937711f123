"""Shape arithmetic on Python numbers: results of Shape stay outside of tensors.

So torch.compile sees no break, and nothing waits for a device. A host value is an int, bool or
float (rank 0), a list of them (rank 1), or a list of such lists (rank 2: the pads of older
exporters). Under torch.compile the ints may be symbols.
"""

from __future__ import annotations

import math
import operator
import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

Scalar = Any
Host = Any  # a scalar or a list of scalars
D = ir.DataType

TYPES = frozenset({D.INT64, D.INT32, D.BOOL, D.FLOAT, D.DOUBLE})
"""Types that host values may have."""


@dataclass(frozen=True)
class Operand:
    """An input as rank rules see it: its rank, its length if a list, its value if constant."""

    rank: int
    length: int | None = None
    constant: Host | None = None


Operands = Sequence[Operand | None]
RankRule = Callable[[Operands, dict[str, Any]], int | None]
"""(operands, attributes) -> rank of the result, None where it must be computed in tensors."""


@dataclass(frozen=True)
class HostEntry:
    """A host op and the rule for the rank of its result."""

    function: Callable[..., Host]
    rank: RankRule


HOST_OPS: dict[str, HostEntry] = {}
"""Host ops by name, for every opset: they take bounds and axes as attributes and as inputs."""


def as_tensor(value: Host, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """Return a host value as a tensor of the same rank."""
    return torch.tensor(value, dtype=dtype, device=device)


def to_host(tensor: torch.Tensor) -> Host:
    """Return a tensor as a host value; waits for the device."""
    return tensor.tolist()


def _host(
    name: str, rank: RankRule
) -> Callable[[Callable[..., Host]], Callable[..., Host]]:
    def declare(function: Callable[..., Host]) -> Callable[..., Host]:
        HOST_OPS[name] = HostEntry(function, rank)
        return function

    return declare


# --- ranks and lengths -------------------------------------------------------------


def _rank_of(operands: Operands, index: int = 0) -> int | None:
    """Return the rank of an operand; None if the node leaves it out."""
    operand = operands[index]
    if operand is None:
        return None
    return operand.rank


def _broadcast_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    rank = max(operand.rank for operand in operands if operand is not None)
    # elementwise functions spread numbers over lists, not over lists of lists
    if rank < 2:
        return rank
    return None


def _first_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    return _broadcast_rank(operands[:1], attributes)


def _same_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    return _rank_of(operands)


def _gathered_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    if _rank_of(operands) == 1:
        return _rank_of(operands, 1)
    return None


def _joined_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    for index in range(len(operands)):
        if _rank_of(operands, index) != 1:
            return None
    return 1


def _unsqueezed_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    if _rank_of(operands) == 0:
        return 1
    return None


def _squeezed_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    if _rank_of(operands) == 1:
        return 0
    return None


def _shape_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    """Return the length of the constant shape that is asked for, up to two."""
    shape = operands[1] if len(operands) > 1 else None
    if shape is None or not isinstance(shape.constant, list):
        return None
    rank = len(shape.constant)
    if rank > 2:
        return None
    # rows of a width that is yet to be found (-1, or 0: as it was)
    if rank == 2 and shape.constant[1] < 1:
        return None
    return rank


def _expanded_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    if _shape_rank(operands, attributes) != 1:
        return None
    if _first_rank(operands, attributes) is None:
        return None
    return 1


def _filled_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    """Return the rank of a tensor filled by a shape: the length of that shape."""
    shape = operands[0]
    if shape is None or shape.length not in (0, 1):
        return None
    return shape.length


def _reduced_rank(operands: Operands, attributes: dict[str, Any]) -> int | None:
    if _rank_of(operands) != 1:
        return None
    rank: int = attributes.get("keepdims", 1)
    return rank


_KEEP_LENGTH = frozenset(
    {
        "Reshape",
        "Cast",
        "Clip",
        "Identity",
        "Neg",
        "Abs",
        "Not",
        "Floor",
        "Ceil",
        "Sqrt",
    }
)
_BROADCAST_LENGTH = frozenset(
    {"Add", "Sub", "Mul", "Div", "Mod", "Equal", "Where", "Max", "Min"}
)


def length_of(name: str, operands: Operands) -> int | None:
    """Return the length of the list that an op gives, where it is known before any run."""
    lengths = []
    for operand in operands:
        if operand is None:
            continue
        length = operand.length if operand.rank else 1
        if length is None:
            return None
        lengths.append(length)
    if name == "Concat":
        return sum(lengths)
    if name == "Gather":
        return lengths[1]
    if name == "Unsqueeze":
        return 1
    if name in _KEEP_LENGTH:
        return lengths[0]
    if name in _BROADCAST_LENGTH:
        return max(lengths)
    return None


# --- elementwise -------------------------------------------------------------------


def _elementwise(function: Callable[..., Scalar]) -> Callable[..., Host]:
    """Apply a function of numbers to numbers and lists, which broadcast."""

    def apply(*operands: Host, **attributes: Any) -> Host:
        lengths = [len(operand) for operand in operands if isinstance(operand, list)]
        if not lengths:
            return function(*operands)
        longer = [length for length in lengths if length != 1]
        size = longer[0] if longer else 1
        spread = [_spread(operand, size) for operand in operands]
        return [function(*items) for items in zip(*spread, strict=True)]

    return apply


def _spread(operand: Host, size: int) -> list[Scalar]:
    if not isinstance(operand, list):
        return [operand] * size
    if len(operand) == 1:
        return operand * size
    return operand


def _single(x: Scalar) -> Scalar:
    """Round a concrete float to float32, as ONNX computes."""
    # symbols of torch.compile cannot be packed, and struct refuses infinities
    if not isinstance(x, float) or torch.compiler.is_compiling():
        return x
    if not math.isfinite(x):
        return x
    return struct.unpack("f", struct.pack("f", x))[0]


def _is_float(x: Scalar) -> bool:
    return isinstance(x, (float, torch.SymFloat))


def _quotient(a: Scalar, b: Scalar) -> Scalar:
    """Integers divide towards zero."""
    if _is_float(a) or _is_float(b):
        return _single(a / b)
    # Python's own division rounds down
    same_sign = (a >= 0) == (b > 0)
    if same_sign:
        return a // b
    return -(-a // b)


Functions = dict[str, Callable[..., Any]]

_BINARY: Functions = {
    "Add": lambda a, b: _single(a + b),
    "Sub": lambda a, b: _single(a - b),
    "Mul": lambda a, b: _single(a * b),
    "Div": _quotient,
    "Equal": operator.eq,
    "Less": operator.lt,
    "Greater": operator.gt,
    "LessOrEqual": operator.le,
    "GreaterOrEqual": operator.ge,
    "And": lambda a, b: bool(a and b),
    "Or": lambda a, b: bool(a or b),
    "Where": lambda c, a, b: a if c else b,
    "Max": lambda *xs: max(xs),
    "Min": lambda *xs: min(xs),
}
for _name, _function in _BINARY.items():
    HOST_OPS[_name] = HostEntry(_elementwise(_function), _broadcast_rank)

_UNARY: Functions = {
    "Neg": operator.neg,
    "Abs": abs,
    "Not": operator.not_,
    "Identity": lambda a: a,
    "Floor": lambda a: float(math.floor(a)),
    "Ceil": lambda a: float(math.ceil(a)),
    "Sqrt": lambda a: _single(a**0.5),
}
for _name, _function in _UNARY.items():
    HOST_OPS[_name] = HostEntry(_elementwise(_function), _first_rank)


@_host("Mod", _broadcast_rank)
def mod(a: Host, b: Host, *, fmod: int = 0) -> Host:
    """Sign of the divisor, or of the dividend with `fmod`."""

    def remainder(x: Scalar, y: Scalar) -> Scalar:
        if fmod:
            return x - y * _quotient(x, y)
        return x % y

    return _elementwise(remainder)(a, b)


@_host("Clip", _first_rank)
def clip(
    x: Host,
    low: Host = None,
    high: Host = None,
    *,
    min: Scalar = None,
    max: Scalar = None,
) -> Host:
    """Bounds are inputs from opset 11 on, attributes before."""
    low = min if low is None else low
    high = max if high is None else high
    if low is not None:
        x = HOST_OPS["Max"].function(x, low)
    if high is not None:
        x = HOST_OPS["Min"].function(x, high)
    return x


@_host("Cast", _first_rank)
def cast(x: Host, *, to: int) -> Host:
    """Between the types of host values; floats lose their fraction."""
    kind: Callable[[Scalar], Scalar] = {
        D.BOOL: bool,
        D.FLOAT: torch.sym_float,
        D.DOUBLE: torch.sym_float,
    }.get(D(to), _integer)
    return _elementwise(kind)(x)


def _integer(x: Scalar) -> Scalar:
    # adding zero makes an int of a bool and leaves symbols symbols
    if _is_float(x):
        return math.trunc(x)
    return x + 0


# --- lists -------------------------------------------------------------------------


@_host("Gather", _gathered_rank)
def gather(data: list[Scalar], indices: Host, *, axis: int = 0) -> Host:
    """Items of a list."""
    if isinstance(indices, list):
        return [data[index] for index in indices]
    return data[indices]


@_host("Slice", _same_rank)
def slice_(
    data: list[Scalar],
    starts: Host = None,
    ends: Host = None,
    axes: Host = None,
    steps: Host = None,
    **old: Any,
) -> Host:
    """Bounds are inputs from opset 10 on, attributes before."""
    start = (starts or old["starts"])[0]
    end = (ends or old["ends"])[0]
    step = steps[0] if steps else 1
    # ONNX ends before the first item where Python would count from the end
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


@_host("Concat", _joined_rank)
def concat(*lists: list[Scalar], axis: int = 0) -> Host:
    """Lists end to end."""
    joined: list[Scalar] = []
    for items in lists:
        joined.extend(items)
    return joined


@_host("Unsqueeze", _unsqueezed_rank)
def unsqueeze(x: Scalar, axes_input: Host = None, *, axes: Any = None) -> Host:
    """A number becomes a list of one."""
    return [x]


@_host("Squeeze", _squeezed_rank)
def squeeze(x: list[Scalar], axes_input: Host = None, *, axes: Any = None) -> Host:
    """A list of one becomes a number."""
    (item,) = x
    return item


@_host("Reshape", _shape_rank)
def reshape(x: Host, shape: list[int], *, allowzero: int = 0) -> Host:
    """To a number, a flat list, or rows of a known width."""
    items = _flat(x)
    if len(shape) == 2:
        width = shape[1]
        starts = range(0, len(items), width)
        return [items[start : start + width] for start in starts]
    if shape:
        return items
    return items[0]


def _flat(x: Host) -> list[Scalar]:
    if not isinstance(x, list):
        return [x]
    if x and isinstance(x[0], list):
        items: list[Scalar] = concat(*x)
        return items
    return x


@_host("Transpose", _same_rank)
def transpose(x: Host, *, perm: list[int] | None = None) -> Host:
    """Rows become columns; a flat list stays."""
    is_matrix = isinstance(x, list) and isinstance(x[0], list)
    if not is_matrix or perm == [0, 1]:
        return x
    columns = zip(*x, strict=True)
    return [list(column) for column in columns]


@_host("Expand", _expanded_rank)
def expand(x: Host, shape: list[int]) -> Host:
    """A number or a list of one, repeated."""
    items = x if isinstance(x, list) else [x]
    if len(items) == 1:
        return items * shape[0]
    return items


@_host("ConstantOfShape", _filled_rank)
def constant_of_shape(shape: list[Any], *, value: Any = None) -> Host:
    """One value, repeated."""
    fill = 0.0 if value is None else value
    if shape:
        return [fill] * shape[0]
    return fill


def _reduction(function: Callable[[list[Scalar]], Scalar]) -> Callable[..., Host]:
    def apply(
        x: list[Scalar],
        axes_input: Host = None,
        *,
        keepdims: int = 1,
        axes: Any = None,
        **_: Any,
    ) -> Host:
        if keepdims:
            return [function(x)]
        return function(x)

    return apply


_REDUCTIONS: Functions = {
    "ReduceProd": math.prod,
    "ReduceSum": sum,
    "ReduceMax": max,
    "ReduceMin": min,
}
for _name, _function in _REDUCTIONS.items():
    HOST_OPS[_name] = HostEntry(_reduction(_function), _reduced_rank)
