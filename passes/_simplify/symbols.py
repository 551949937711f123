"""What is known of small integer tensors that shapes are computed with: each element a number, a
symbol, or unknown.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Dim, array_of, dims_of, ints_of, is_constant, static_dims

LIMIT = 256
"""Elements of the largest tensor that is followed."""

DEPTH = 64
"""Nodes that are followed back from a value."""

Symbols = NDArray[Any]
"""An object array with the tensor's shape; each element is a `Dim`: int, symbol name, or None."""

INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}


Memo = dict[ir.Value, Symbols | None]
"""What was found before. Rewrites keep values, so a finding stays true while a graph changes."""


def symbols_of(
    value: ir.Value | None, memo: Memo, depth: int = DEPTH
) -> Symbols | None:
    """The elements of an int32 or int64 tensor as far as they follow from shapes and constants;
    None if nothing does.

    Two equal symbols are equal numbers in every run. Linear over all calls that share `memo`.
    """
    if value is None or depth == 0:
        return None
    if value not in memo:
        memo[value] = (
            _constant(value) if is_constant(value) else _computed(value, memo, depth)
        )
    return memo[value]


def _constant(value: ir.Value) -> Symbols | None:
    array = array_of(value)
    if array is None or array.size > LIMIT or array.dtype not in (np.int64, np.int32):
        return None
    return _objects([int(v) for v in array.reshape(-1)], array.shape)


def _computed(value: ir.Value, memo: Memo, depth: int) -> Symbols | None:
    node = value.producer()
    if (
        node is None
        or node.domain != ""
        or node.op_type not in _OPS
        or value.dtype not in INTEGERS
    ):
        return _unknown(value)
    if node.op_type == "Shape":
        found = _shape(node)
    elif node.op_type == "Size":
        found = _size(node, memo, depth - 1)
    else:
        data = symbols_of(node.inputs[0], memo, depth - 1)
        try:
            found = (
                None
                if data is None
                else _OPS[node.op_type](node, data, memo, depth - 1)
            )
        except (
            ValueError,
            IndexError,
        ):  # axes or shapes that do not fit: the model is wrong, not ours to mend
            found = None
    return _unknown(value) if found is None or found.size > LIMIT else found


def all_ints(symbols: Symbols | None) -> bool:
    """Whether every element is a number."""
    return symbols is not None and all(isinstance(v, int) for v in symbols.reshape(-1))


def _objects(elements: list[Any], shape: tuple[int, ...]) -> Symbols:
    out = np.empty(len(elements), object)
    out[:] = elements
    return out.reshape(shape)


def _unknown(value: ir.Value | None) -> Symbols | None:
    """A tensor of static shape of whose elements nothing is known."""
    dims = static_dims(value)
    if (
        value is None
        or value.dtype not in INTEGERS
        or dims is None
        or math.prod(dims) > LIMIT
    ):
        return None
    return _objects([None] * math.prod(dims), tuple(dims))


def _shape(node: ir.Node) -> Symbols | None:
    dims = dims_of(node.inputs[0])
    if dims is None:
        return None
    end = node.attributes.get_int("end", len(dims))
    part: list[Dim] = dims[slice(node.attributes.get_int("start", 0), end)]
    return _objects(part, (len(part),))


def _size(node: ir.Node, memo: Memo, depth: int) -> Symbols | None:
    dims = static_dims(node.inputs[0])
    return None if dims is None else _objects([math.prod(dims)], ())


def _same(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    return data


def _cast(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    return (
        data
        if node.attributes.get_int("to", 0) in (ir.DataType.INT64, ir.DataType.INT32)
        else None
    )


def _gather(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    indices = array_of(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    if indices is None or not -data.ndim <= axis < data.ndim:
        return None
    size = data.shape[axis]
    if not ((indices >= -size) & (indices < size)).all():
        return None
    return np.asarray(
        np.take(data, indices, axis), object
    )  # a single element would come bare


def _concat(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    parts = [data]
    for value in node.inputs[1:]:
        part = symbols_of(value, memo, depth)
        if part is None or part.ndim != data.ndim:
            return None
        parts.append(part)
    return np.concatenate(parts, node.attributes.get_int("axis", 0))


def axes_of(node: ir.Node) -> list[int] | None:
    """The `axes` of Squeeze or Unsqueeze, attribute before opset 13, input since; None if absent or
    not constant.
    """
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", []))
    return ints_of(node.inputs[1]) if len(node.inputs) > 1 else None


def _squeeze(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    axes = axes_of(node)
    if axes is None:
        without = len(node.inputs) == 1 and "axes" not in node.attributes
        return data.reshape([d for d in data.shape if d != 1]) if without else None
    return (
        np.squeeze(data, tuple(axes)) if all(data.shape[a] == 1 for a in axes) else None
    )


def _unsqueeze(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    axes = axes_of(node)
    return None if axes is None else np.expand_dims(data, tuple(axes))


def _reshape(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    target = ints_of(node.inputs[1])
    if target is None or 0 in target or (-1 in target and 0 in data.shape):
        return None
    return data.reshape(target)


def slice_parts(
    node: ir.Node,
) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """(starts, ends, axes, steps) of a Slice with constant bounds, in either of its forms; None
    otherwise.
    """
    if "starts" in node.attributes:
        starts, ends = (
            list(node.attributes.get_ints("starts", [])),
            list(node.attributes.get_ints("ends", [])),
        )
        return (
            starts,
            ends,
            list(node.attributes.get_ints("axes", range(len(starts)))),
            [1] * len(starts),
        )
    inputs = [*node.inputs[1:], None, None][:4]
    given = [[] if value is None else ints_of(value) for value in inputs]
    if any(part is None for part in given):
        return None
    starts, ends, axes, steps = (part or [] for part in given)
    return starts, ends, axes or list(range(len(starts))), steps or [1] * len(starts)


def _slice(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    parts = slice_parts(node)
    if parts is None:
        return None
    index: list[slice] = [slice(None)] * data.ndim
    for start, end, axis, step in zip(*parts, strict=True):
        # a negative step that runs past the front has an end far below zero; Python's slices need
        # None there
        stop = None if step < 0 and end < -data.shape[axis] else end
        index[axis] = slice(start, stop, step)
    return data[tuple(index)]


def _arithmetic(
    operator: Callable[[int, int], int],
) -> Callable[[ir.Node, Symbols, Memo, int], Symbols | None]:
    def apply(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
        other = symbols_of(node.inputs[1], memo, depth)
        if other is None or max(data.size, other.size) > LIMIT:
            return None
        a, b = np.broadcast_arrays(data, other)
        pairs = zip(a.reshape(-1), b.reshape(-1), strict=True)
        return _objects([_combined(operator, x, y) for x, y in pairs], a.shape)

    return apply


def _combined(operator: Callable[[int, int], int], x: Dim, y: Dim) -> Dim:
    if not isinstance(x, int) or not isinstance(y, int):
        return None
    result = operator(x, y) if operator is not _divide or y != 0 else None
    return result if result is not None and -(2**31) < result < 2**31 else None


def _divide(x: int, y: int) -> int:
    return (abs(x) // abs(y)) * (
        1 if (x < 0) == (y < 0) else -1
    )  # integer Div of ONNX truncates


_OPS: dict[str, Callable[[ir.Node, Symbols, Memo, int], Symbols | None]] = {
    "Shape": _same,  # Shape and Size need no elements: they are handled before the table is used
    "Size": _same,
    "Identity": _same,
    "Cast": _cast,
    "Gather": _gather,
    "Concat": _concat,
    "Squeeze": _squeeze,
    "Unsqueeze": _unsqueeze,
    "Reshape": _reshape,
    "Slice": _slice,
    "Add": _arithmetic(lambda x, y: x + y),
    "Sub": _arithmetic(lambda x, y: x - y),
    "Mul": _arithmetic(lambda x, y: x * y),
    "Div": _arithmetic(_divide),
}
