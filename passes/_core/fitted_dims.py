"""Lengths of open dims of inputs, as the operators behind them ask for: MatMul, Conv, Add …"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise, zip_longest

import onnx_ir as ir

from .graph import graphs_of
from .infer import infer_types
from .ops import is_standard
from .union_find import Sets

Dim = int | str
Dims = Sequence[Dim | None]
Pair = tuple[Dim | None, Dim | None]
Rule = Callable[[ir.Node, list[Dims]], Iterator[Pair]]
"""Dims that a node needs to be equal, of its inputs' dims."""


def fitted_dims(model: ir.Model) -> dict[str, list[Dim]]:
    """Dims of each input of known rank, in which those that must be equal are.

    A dim is a number where an operator needs that number. Others are symbols, one for all dims that
    must have one length; names that begin with # are made up.
    """
    # it shares the weights; its open dims get names, which inference hands on
    copy = model.clone()
    _name_open_dims(copy)
    infer_types(copy, data_prop=True)
    equal: Sets[Dim] = Sets()
    for graph in graphs_of(copy):
        for node in graph:
            for one, other in _equal_dims(node):
                _join(equal, one, other)
    fitted = {}
    for value in copy.graph.inputs:
        dims = _dims_of(value)
        if dims is None or not value.name:
            continue
        # every open dim got a name above
        known = [dim for dim in dims if dim is not None]
        fitted[value.name] = [equal.root(dim) for dim in known]
    return fitted


def _name_open_dims(model: ir.Model) -> None:
    numbers = count()
    for value in model.graph.inputs:
        dims = _dims_of(value)
        if dims is None:
            continue
        named: list[Dim] = []
        for dim in dims:
            if dim is None:
                number = next(numbers)
                dim = f"#{number}"
            named.append(dim)
        value.shape = ir.Shape(named)


def _dims_of(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    dims: list[Dim | None] = []
    for dim in value.shape:
        if isinstance(dim, int):
            dims.append(dim)
        else:
            dims.append(dim.value)
    return dims


def _equal_dims(node: ir.Node) -> Iterator[Pair]:
    rule = _RULES.get(node.op_type)
    if rule is None or not is_standard(node):
        return
    shapes = []
    for value in node.inputs:
        if value is None:
            continue
        dims = _dims_of(value)
        # rules go by position: one of unknown rank leaves nothing to say
        if dims is None:
            return
        shapes.append(dims)
    yield from rule(node, shapes)


def _join(equal: Sets[Dim], one: Dim | None, other: Dim | None) -> None:
    if one is None or other is None:
        return
    first = equal.root(one)
    second = equal.root(other)
    # two numbers that differ are the model's own fault
    if isinstance(first, int) and isinstance(second, int):
        return
    # a number names its set, and a symbol of the model before one that is made up
    is_made_up = str(first).startswith("#")
    if isinstance(second, int) or is_made_up:
        first, second = second, first
    equal.join(first, second)


# rules


def _matmul(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    left, right = shapes
    if left and right:
        # a vector on the right has only the axis that is summed over
        inner = right[0]
        if len(right) > 1:
            inner = right[-2]
        yield left[-1], inner
    left_stack = left[:-2]
    right_stack = right[:-2]
    yield from _broadcast(node, [left_stack, right_stack])


def _gemm(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    left, right = shapes[:2]
    if len(left) != 2 or len(right) != 2:
        return
    summed_left = left[1]
    if node.attributes.get_int("transA", 0):
        summed_left = left[0]
    summed_right = right[0]
    if node.attributes.get_int("transB", 0):
        summed_right = right[1]
    yield summed_left, summed_right


def _convolution(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, weight = shapes[:2]
    if len(data) < 2 or len(weight) < 2:
        return
    if node.op_type == "ConvTranspose":
        yield data[1], weight[0]
        return
    # a weight has the inputs of one group; of an unknown length there is no multiple
    inputs = weight[1]
    if isinstance(inputs, int):
        groups = node.attributes.get_int("group", 1)
        yield data[1], inputs * groups


def _by_channel(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, scale = shapes[:2]
    if len(data) > 1 and len(scale) == 1:
        yield data[1], scale[0]


def _recurrent(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, weight = shapes[:2]
    # data (steps, N, inputs), weight (directions, gates, inputs)
    if len(data) == 3 and len(weight) == 3:
        yield data[2], weight[2]


def _concat(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    # a faulty model may join scalars, which have no axes to count
    rank = max(len(shapes[0]), 1)
    axis = node.attributes.get_int("axis", 0)
    axis = axis % rank
    for one, other in pairwise(shapes):
        aligned = zip(one, other, strict=False)
        for index, pair in enumerate(aligned):
            if index != axis:
                yield pair


def _broadcast(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    """Dims aligned at the last axis are equal, unless one of them is 1."""
    for one, other in pairwise(shapes):
        from_last = zip_longest(reversed(one), reversed(other))
        for pair in from_last:
            if 1 not in pair:
                yield pair


_RULES: dict[str, Rule] = {
    "MatMul": _matmul,
    "Gemm": _gemm,
    "Concat": _concat,
    **dict.fromkeys(("Conv", "ConvTranspose"), _convolution),
    **dict.fromkeys(("BatchNormalization", "InstanceNormalization"), _by_channel),
    **dict.fromkeys(("LSTM", "GRU", "RNN"), _recurrent),
    **dict.fromkeys(
        (
            "Add",
            "And",
            "Div",
            "Equal",
            "Greater",
            "LayerNormalization",
            "Less",
            "Max",
            "Mean",
            "Min",
            "Mul",
            "Or",
            "PRelu",
            "Pow",
            "Sub",
            "Sum",
            "Where",
        ),
        _broadcast,
    ),
}
