"""Shape arithmetic on Python numbers: what Shape gives stays outside of tensors, so that
torch.compile sees no break.

A host value is an int, bool or float (rank 0), a list of them (rank 1), or a list of such lists
(rank 2: the pads of older exporters). Under torch.compile the ints may be symbols.
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
    """What a rank rule may know of an input: its rank, its length if a list, its value if
    constant.
    """

    rank: int
    length: int | None = None
    constant: Host | None = None


RankRule = Callable[[Sequence[Operand | None], dict[str, Any]], int | None]
LengthRule = Callable[[Sequence[Operand | None]], int | None]


@dataclass(frozen=True)
class HostEntry:
    """A host op; `rank` tells the rank of its result, None where it must be computed in tensors."""

    function: Callable[..., Host]
    rank: RankRule


HOST_OPS: dict[str, HostEntry] = {}


def as_tensor(value: Host, dtype: torch.dtype, device: torch.device) -> torch.Tensor:
    """A host value as a tensor of rank 0 or 1."""
    return torch.tensor(value, dtype=dtype, device=device)


def to_host(tensor: torch.Tensor) -> Host:
    """A tensor of rank 0 or 1 as a host value; waits for the device."""
    return tensor.tolist()


def _host(
    name: str, rank: RankRule
) -> Callable[[Callable[..., Host]], Callable[..., Host]]:
    def declare(function: Callable[..., Host]) -> Callable[..., Host]:
        HOST_OPS[name] = HostEntry(function, rank)
        return function

    return declare


def _broadcast_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    rank = max(o.rank for o in operands if o is not None)
    return rank if rank < 2 else None


def _first_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    return _broadcast_rank(operands[:1], attributes)


def length_of(name: str, operands: Sequence[Operand | None]) -> int | None:
    """Length of the list that an op gives, where it is known before any run."""
    lengths = [o.length if o.rank else 1 for o in operands if o is not None]
    if any(length is None for length in lengths):
        return None
    known = [length for length in lengths if length is not None]
    match name:
        case "Concat":
            return sum(known)
        case "Gather":
            return known[1]
        case "Unsqueeze":
            return 1
        case (
            "Reshape"
            | "Cast"
            | "Clip"
            | "Identity"
            | "Neg"
            | "Abs"
            | "Not"
            | "Floor"
            | "Ceil"
            | "Sqrt"
        ):
            return known[0]
        case "Add" | "Sub" | "Mul" | "Div" | "Mod" | "Equal" | "Where" | "Max" | "Min":
            return max(known)
    return None


def _elementwise(function: Callable[..., Scalar]) -> Callable[..., Host]:
    def apply(*operands: Host, **attributes: Any) -> Host:
        lengths = [len(o) for o in operands if isinstance(o, list)]
        if not lengths:
            return function(*operands)
        longer = [length for length in lengths if length != 1]
        spread = [_spread(o, longer[0] if longer else 1) for o in operands]
        return [function(*items) for items in zip(*spread, strict=True)]

    return apply


def _spread(operand: Host, size: int) -> list[Scalar]:
    if not isinstance(operand, list):
        return [operand] * size
    return operand * size if len(operand) == 1 else operand


def _single(x: Scalar) -> Scalar:
    """Round a concrete float to float32, as ONNX computes."""
    if isinstance(x, float) and not torch.compiler.is_compiling() and math.isfinite(x):
        return struct.unpack("f", struct.pack("f", x))[0]
    return x


def _quotient(a: Scalar, b: Scalar) -> Scalar:
    """Integers divide towards zero."""
    if isinstance(a, (float, torch.SymFloat)) or isinstance(b, (float, torch.SymFloat)):
        return _single(a / b)
    return a // b if (a >= 0) == (b > 0) else -(-a // b)


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
    return _elementwise(lambda x, y: x - y * _quotient(x, y) if fmod else x % y)(a, b)


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
    low, high = min if low is None else low, max if high is None else high
    x = x if low is None else HOST_OPS["Max"].function(x, low)
    return x if high is None else HOST_OPS["Min"].function(x, high)


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
    return math.trunc(x) if isinstance(x, (float, torch.SymFloat)) else x + 0


@_host(
    "Gather",
    lambda operands, attributes: (
        operands[1].rank if operands[1] and _rank_of(operands[0]) == 1 else None
    ),
)
def gather(data: list[Scalar], indices: Host, *, axis: int = 0) -> Host:
    """Items of a list."""
    return [data[i] for i in indices] if isinstance(indices, list) else data[indices]


def _rank_of(operand: Operand | None) -> int | None:
    return None if operand is None else operand.rank


@_host("Slice", lambda operands, attributes: _rank_of(operands[0]))
def slice_(
    data: list[Scalar],
    starts: Host = None,
    ends: Host = None,
    axes: Host = None,
    steps: Host = None,
    **old: Any,
) -> Host:
    """Bounds are inputs from opset 10 on, attributes before."""
    start, end = (starts or old["starts"])[0], (ends or old["ends"])[0]
    step = steps[0] if steps else 1
    if step < 0 and end < -len(data):
        return data[start::step]
    return data[start:end:step]


@_host(
    "Concat",
    lambda operands, attributes: 1 if all(_rank_of(o) == 1 for o in operands) else None,
)
def concat(*lists: list[Scalar], axis: int = 0) -> Host:
    """Lists end to end."""
    return [item for items in lists for item in items]


@_host(
    "Unsqueeze", lambda operands, attributes: 1 if _rank_of(operands[0]) == 0 else None
)
def unsqueeze(x: Scalar, axes_input: Host = None, *, axes: Any = None) -> Host:
    """A number becomes a list of one."""
    return [x]


@_host(
    "Squeeze", lambda operands, attributes: 0 if _rank_of(operands[0]) == 1 else None
)
def squeeze(x: list[Scalar], axes_input: Host = None, *, axes: Any = None) -> Host:
    """A list of one becomes a number."""
    (item,) = x
    return item


def _shape_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    shape = (
        operands[1].constant if len(operands) > 1 and operands[1] is not None else None
    )
    rank = len(shape) if isinstance(shape, list) else None
    if rank == 2 and isinstance(shape, list) and shape[1] < 1:
        return None
    return rank if rank is not None and rank < 3 else None


@_host("Reshape", _shape_rank)
def reshape(x: Host, shape: list[int], *, allowzero: int = 0) -> Host:
    """To a number, a flat list, or rows of a known width."""
    items = _flat(x)
    if len(shape) == 2:
        width = shape[1]
        return [items[start : start + width] for start in range(0, len(items), width)]
    return items if shape else items[0]


def _flat(x: Host) -> list[Scalar]:
    if not isinstance(x, list):
        return [x]
    return [item for row in x for item in row] if x and isinstance(x[0], list) else x


@_host("Transpose", lambda operands, attributes: _rank_of(operands[0]))
def transpose(x: Host, *, perm: list[int] | None = None) -> Host:
    """Rows become columns; a flat list stays."""
    if not isinstance(x, list) or not isinstance(x[0], list) or perm == [0, 1]:
        return x
    return [[row[i] for row in x] for i in range(len(x[0]))]


def _expanded_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    rank = _shape_rank(operands, attributes)
    return (
        rank
        if rank == 1 and _broadcast_rank(operands[:1], attributes) is not None
        else None
    )


@_host("Expand", _expanded_rank)
def expand(x: Host, shape: list[int]) -> Host:
    """A number or a list of one, repeated."""
    items = x if isinstance(x, list) else [x]
    return items * shape[0] if len(items) == 1 else items


def _filled_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    shape = operands[0]
    return shape.length if shape is not None and shape.length in (0, 1) else None


@_host("ConstantOfShape", _filled_rank)
def constant_of_shape(shape: list[Any], *, value: Any = None) -> Host:
    """One value, repeated."""
    fill = 0.0 if value is None else value
    return [fill] * shape[0] if shape else fill


def _reduced_rank(
    operands: Sequence[Operand | None], attributes: dict[str, Any]
) -> int | None:
    return attributes.get("keepdims", 1) if _rank_of(operands[0]) == 1 else None


def _reduction(function: Callable[[list[Scalar]], Scalar]) -> Callable[..., Host]:
    def apply(
        x: list[Scalar],
        axes_input: Host = None,
        *,
        keepdims: int = 1,
        axes: Any = None,
        **_: Any,
    ) -> Host:
        return [function(x)] if keepdims else function(x)

    return apply


_REDUCTIONS: Functions = {
    "ReduceProd": math.prod,
    "ReduceSum": sum,
    "ReduceMax": max,
    "ReduceMin": min,
}
for _name, _function in _REDUCTIONS.items():
    HOST_OPS[_name] = HostEntry(_reduction(_function), _reduced_rank)
