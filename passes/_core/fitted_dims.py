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
            for pair in _equal_dims(node):
                _join(equal, *pair)
    fitted = {}
    for value in copy.graph.inputs:
        dims = _dims_of(value)
        if dims is not None and value.name:
            fitted[value.name] = [equal.root(dim) for dim in dims if dim is not None]
    return fitted


def _name_open_dims(model: ir.Model) -> None:
    numbers = count()
    for value in model.graph.inputs:
        dims = _dims_of(value)
        if dims is not None:
            named = [f"#{next(numbers)}" if dim is None else dim for dim in dims]
            value.shape = ir.Shape(named)


def _dims_of(value: ir.Value) -> Dims | None:
    if value.shape is None:
        return None
    return [dim if isinstance(dim, int) else dim.value for dim in value.shape]


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
    if isinstance(second, int) or str(first).startswith("#"):
        first, second = second, first
    equal.join(first, second)


# rules


def _matmul(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    left, right = shapes
    if left and right:
        inner = right[0] if len(right) == 1 else right[-2]
        yield left[-1], inner
    stacks = [left[:-2], right[:-2]]
    yield from _broadcast(node, stacks)


def _gemm(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    left, right = shapes[:2]
    if len(left) == len(right) == 2:
        summed_left = 0 if node.attributes.get_int("transA", 0) else 1
        summed_right = 1 if node.attributes.get_int("transB", 0) else 0
        yield left[summed_left], right[summed_right]


def _convolution(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, weight = shapes[:2]
    if len(data) < 2 or len(weight) < 2:
        return
    if node.op_type == "ConvTranspose":
        yield data[1], weight[0]
    elif isinstance(weight[1], int):
        yield data[1], weight[1] * node.attributes.get_int("group", 1)


def _by_channel(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, scale = shapes[:2]
    if len(data) > 1 and len(scale) == 1:
        yield data[1], scale[0]


def _recurrent(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    data, weight = shapes[:2]
    if len(data) == len(weight) == 3:
        yield data[2], weight[2]


def _concat(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    rank = len(shapes[0])
    axis = node.attributes.get_int("axis", 0) % max(rank, 1)
    for one, other in pairwise(shapes):
        for index, pair in enumerate(zip(one, other, strict=False)):
            if index != axis:
                yield pair


def _broadcast(node: ir.Node, shapes: list[Dims]) -> Iterator[Pair]:
    """Dims aligned at the last axis are equal, unless one of them is 1."""
    for one, other in pairwise(shapes):
        for pair in zip_longest(reversed(one), reversed(other)):
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
