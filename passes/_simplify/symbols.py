"""Elements of small integer tensors that shapes are computed with: numbers, symbols, or unknown."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Dim, array_of, dims_of, ints_of, is_constant, static_dims
from .._core.graph import input_of, producer_of

LIMIT = 256
"""Elements of the largest tensor that is followed: shapes and indices. Chosen by hand."""

DEPTH = 64
"""Nodes that are followed back from a value: the walk recurses. Chosen by hand."""

Symbols = NDArray[Any]
"""An object array with the tensor's shape; each element is a `Dim`: int, symbol name, or None."""

INTEGERS = {ir.DataType.INT64, ir.DataType.INT32}
"""Types that shapes are computed in."""

Memo = dict[ir.Value, Symbols | None]
"""Earlier findings. Rewrites keep values, so that they stay true while a graph changes."""


def symbols_of(
    value: ir.Value | None, memo: Memo, depth: int = DEPTH
) -> Symbols | None:
    """The elements of an int32 or int64 tensor as far as they follow from shapes and constants.

    None if nothing follows. Two equal symbols are equal numbers in every run. Linear over all calls
    that share `memo`.
    """
    if value is None or depth == 0:
        return None
    if value in memo:
        return memo[value]
    is_known = is_constant(value)
    found = _constant(value) if is_known else _computed(value, memo, depth)
    memo[value] = found
    return found


def _constant(value: ir.Value) -> Symbols | None:
    array = array_of(value)
    if array is None or array.size > LIMIT:
        return None
    if array.dtype not in (np.int64, np.int32):
        return None
    numbers = [int(element) for element in array.reshape(-1)]
    return _objects(numbers, array.shape)


def _computed(value: ir.Value, memo: Memo, depth: int) -> Symbols | None:
    node = producer_of(value, *_OPS, "Shape", "Size")
    if node is None or value.dtype not in INTEGERS:
        return _unknown(value)
    found = _elements(node, memo, depth - 1)
    if found is None or found.size > LIMIT:
        return _unknown(value)
    return found


def _elements(node: ir.Node, memo: Memo, depth: int) -> Symbols | None:
    # these two need no elements of their input
    if node.op_type == "Shape":
        return _shape(node)
    if node.op_type == "Size":
        return _size(node)
    data = symbols_of(node.inputs[0], memo, depth)
    if data is None:
        return None
    try:
        return _OPS[node.op_type](node, data, memo, depth)
    except (ValueError, IndexError):
        # axes or shapes that do not fit: the model is wrong, and not for a pass to mend
        return None


def all_ints(symbols: Symbols | None) -> bool:
    """True if every element is a number."""
    if symbols is None:
        return False
    elements = symbols.reshape(-1)
    return all(isinstance(element, int) for element in elements)


def _objects(elements: list[Any], shape: tuple[int, ...]) -> Symbols:
    # assigned, since np.array would look into the elements for a type and a shape
    flat = np.empty(len(elements), object)
    flat[:] = elements
    return flat.reshape(shape)


def _unknown(value: ir.Value | None) -> Symbols | None:
    """A tensor of static shape of whose elements nothing is known."""
    dims = static_dims(value)
    if value is None:
        return None
    if dims is None:
        return None
    if value.dtype not in INTEGERS:
        return None
    size = math.prod(dims)
    if size > LIMIT:
        return None
    return _objects([None] * size, tuple(dims))


def named_dims(value: ir.Value | None) -> list[Dim] | None:
    """The dims of a value, one of which nothing is known as a symbol of its own.

    None for an unknown rank.
    """
    dims = dims_of(value)
    if value is None or dims is None:
        return None
    # no model writes such a symbol; values of one name in two subgraphs are not one
    own = f"{value.name}\0{id(value)}\0"
    named: list[Dim] = []
    for axis, dim in enumerate(dims):
        named.append(f"{own}{axis}" if dim is None else dim)
    return named


def _shape(node: ir.Node) -> Symbols | None:
    dims = named_dims(node.inputs[0])
    if dims is None:
        return None
    start = node.attributes.get_int("start", 0)
    end = node.attributes.get_int("end", len(dims))
    part: list[Dim] = dims[start:end]
    shape = (len(part),)
    return _objects(part, shape)


def _size(node: ir.Node) -> Symbols | None:
    dims = static_dims(node.inputs[0])
    if dims is None:
        return None
    size = math.prod(dims)
    return _objects([size], ())


def _same(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    return data


def _cast(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    to = node.attributes.get_int("to", 0)
    return data if to in INTEGERS else None


def _gather(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    indices = array_of(node.inputs[1])
    axis = node.attributes.get_int("axis", 0)
    if indices is None:
        return None
    if axis < -data.ndim:
        return None
    if axis >= data.ndim:
        return None
    size = data.shape[axis]
    if (indices < -size).any():
        return None
    if (indices >= size).any():
        return None
    taken = np.take(data, indices, axis)
    # a single element would come bare
    return np.asarray(taken, object)


def _concat(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    parts = [data]
    for value in node.inputs[1:]:
        part = symbols_of(value, memo, depth)
        if part is None or part.ndim != data.ndim:
            return None
        parts.append(part)
    axis = node.attributes.get_int("axis", 0)
    return np.concatenate(parts, axis)


def axes_of(node: ir.Node) -> list[int] | None:
    """The `axes` of Squeeze or Unsqueeze, attribute before opset 13, input since.

    None if absent or not constant.
    """
    if "axes" in node.attributes:
        return list(node.attributes.get_ints("axes", []))
    return ints_of(input_of(node, 1))


def _squeeze(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    axes = axes_of(node)
    if axes is not None:
        if any(data.shape[axis] != 1 for axis in axes):
            return None
        return np.squeeze(data, tuple(axes))
    # axes that are computed
    if len(node.inputs) > 1 or "axes" in node.attributes:
        return None
    # without axes, every axis of length 1 goes
    kept = [size for size in data.shape if size != 1]
    return data.reshape(kept)


def _unsqueeze(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    axes = axes_of(node)
    if axes is None:
        return None
    return np.expand_dims(data, tuple(axes))


def _reshape(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    target = ints_of(node.inputs[1])
    # a 0 copies a dim, or is one: numpy knows neither, nor a -1 of an empty tensor
    if target is None or 0 in target:
        return None
    if -1 in target and 0 in data.shape:
        return None
    return data.reshape(target)


def slice_parts(
    node: ir.Node,
) -> tuple[list[int], list[int], list[int], list[int]] | None:
    """(starts, ends, axes, steps) of a Slice with constant bounds; None otherwise."""
    if "starts" in node.attributes:
        # the form of opsets before 10
        starts = list(node.attributes.get_ints("starts", []))
        ends = list(node.attributes.get_ints("ends", []))
        leading = range(len(starts))
        axes = list(node.attributes.get_ints("axes", leading))
        steps = [1] * len(starts)
        return starts, ends, axes, steps
    given = []
    for index in (1, 2, 3, 4):
        value = input_of(node, index)
        part = [] if value is None else ints_of(value)
        if part is None:
            return None
        given.append(part)
    starts, ends, axes, steps = given
    if not axes:
        axes = list(range(len(starts)))
    if not steps:
        steps = [1] * len(starts)
    return starts, ends, axes, steps


def _slice(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
    parts = slice_parts(node)
    if parts is None:
        return None
    whole_axis = slice(None)
    index: list[slice] = [whole_axis] * data.ndim
    for start, end, axis, step in zip(*parts, strict=True):
        stop: int | None = end
        # a negative step past the front has an end far below zero, for which Python wants None
        if step < 0 and end < -data.shape[axis]:
            stop = None
        index[axis] = slice(start, stop, step)
    return data[tuple(index)]


Operator = Callable[[int, int], int]
Rule = Callable[[ir.Node, Symbols, Memo, int], Symbols | None]
"""(node, elements of its first input, memo, depth) -> elements of its output."""


def _arithmetic(operator: Operator) -> Rule:
    def apply(node: ir.Node, data: Symbols, memo: Memo, depth: int) -> Symbols | None:
        other = symbols_of(node.inputs[1], memo, depth)
        if other is None:
            return None
        if max(data.size, other.size) > LIMIT:
            return None
        a, b = np.broadcast_arrays(data, other)
        pairs = zip(
            a.reshape(-1),
            b.reshape(-1),
            strict=True,
        )
        results = [_combined(operator, x, y) for x, y in pairs]
        return _objects(results, a.shape)

    return apply


def _combined(operator: Operator, x: Dim, y: Dim) -> Dim:
    if not isinstance(x, int):
        return None
    if not isinstance(y, int):
        return None
    if operator is _divide and y == 0:
        return None
    result = operator(x, y)
    # int32 tensors wrap around there
    return result if abs(result) < 2**31 else None


def _divide(x: int, y: int) -> int:
    # integer Div of ONNX truncates; Python's rounds down
    quotient = abs(x) // abs(y)
    x_is_negative = x < 0
    y_is_negative = y < 0
    if x_is_negative != y_is_negative:
        return -quotient
    return quotient


_OPS: dict[str, Rule] = {
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
