"""Parameters, bytes and multiply-accumulates of a model as a function of the channels that are
removed.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.stats import NOT_PARAMETERS
from .._dims.groups import Group
from .._dims.relations import Axis
from .._dims.solve import FROZEN, Solution

Removed = NDArray[np.bool_]
"""By channel id: whether it goes."""


Term = tuple[tuple[int, ...], int]
"""Classes of axes whose widths are multiplied, and a number: bits of an element, or the product of
fixed sizes.
"""

CostKind = Literal["params", "bytes", "macs"]


@dataclass(frozen=True)
class Cost:
    """What a model takes: parameters, bytes of weights, multiply-accumulates with symbolic dims as
    1.
    """

    params: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Costs:
    """Products of widths, each a class of axes or a fixed size, ready to be evaluated for any
    removal.
    """

    weights: tuple[Term, ...]
    products: tuple[Term, ...]
    whole: dict[int, int]
    """The width of every class as it is."""
    shrinking: dict[int, NDArray[np.intp]]
    """The channels of the slots of those classes that may lose some."""

    def of(self, removed: Removed) -> Cost:
        """The cost once the given channels are gone. Linear in what may shrink, no graph is
        built.
        """
        widths = self.whole | {
            root: int((~removed[slots] | (slots == FROZEN)).sum())
            for root, slots in self.shrinking.items()
        }
        sizes = [prod(widths[root] for root in roots) for roots, _ in self.weights]
        return Cost(
            params=sum(sizes),
            bytes=sum(
                size * bits for size, (_, bits) in zip(sizes, self.weights, strict=True)
            )
            // 8,
            macs=sum(
                prod(widths[root] for root in roots) * fixed
                for roots, fixed in self.products
            ),
        )

    def saved_by_one(self, groups: Sequence[Group], kind: CostKind) -> list[float]:
        """Of each group what one of its channels takes in the whole model. Linear in products and
        groups.
        """
        terms = self.products if kind == "macs" else self.weights
        by_class: dict[int, list[int]] = defaultdict(list)
        for number, (roots, _) in enumerate(terms):
            for root in dict.fromkeys(roots):
                by_class[root].append(number)
        found = []
        for group in groups:
            slots, saved = dict(group.places), 0
            for roots, factor in (
                terms[n]
                for n in dict.fromkeys(n for root in slots for n in by_class[root])
            ):
                less = prod(self.whole[root] - slots.get(root, 0) for root in roots)
                saved += (prod(self.whole[root] for root in roots) - less) * (
                    1 if kind == "params" else factor
                )
            found.append(saved / 8 if kind == "bytes" else float(saved))
        return found


def costs_of(model: ir.Model, solution: Solution) -> Costs:
    """The cost terms of the main graph; nodes whose shapes are unknown are left out."""
    weights, stored = [], set[object]()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if (
            tensor is not None
            and tensor.dtype not in NOT_PARAMETERS
            and value in solution.relations.trace.shapes
        ):
            roots = tuple(
                solution.classes[value, i]
                for i in range(len(solution.relations.trace.shapes[value]))
            )
            once = (
                id(tensor),
                tuple(solution.channels[root].tobytes() for root in roots),
            )
            if once not in stored:  # copies that lose the same are one tensor again
                stored.add(once)
                weights.append((roots, tensor.dtype.bitwidth))
    products = [
        term
        for node in model.graph
        if node.op_type in TERMS and node.domain == ""
        for term in TERMS[node.op_type](node, solution)
    ]
    channels = solution.channels
    shrinking = {
        root: slots for root, slots in channels.items() if (slots != FROZEN).any()
    }
    return Costs(
        tuple(weights),
        tuple(products),
        {root: len(slots) for root, slots in channels.items()},
        shrinking,
    )


def _term(axes: Sequence[Axis], solution: Solution) -> list[Term]:
    """One product; axes that vary with the input count as 1, those that no rule mentioned by their
    size.
    """
    roots, fixed = [], 1
    trace = solution.relations.trace
    for value, axis in axes:
        if value not in trace.shapes:
            return []
        if trace.varies(value, axis):
            continue
        if (value, axis) in solution.classes:
            roots.append(solution.classes[value, axis])
        else:
            fixed *= trace.shapes[value][axis]
    return [(tuple(roots), fixed)]


def _axes(value: ir.Value | None, solution: Solution, start: int = 0) -> list[Axis]:
    shape = solution.relations.trace.shape(value)
    return (
        []
        if value is None or shape is None
        else [(value, i) for i in range(start, len(shape))]
    )


def _conv(node: ir.Node, solution: Solution) -> list[Term]:
    return _term(
        [*_axes(node.outputs[0], solution), *_axes(node.inputs[1], solution, 1)],
        solution,
    )


def _conv_transpose(node: ir.Node, solution: Solution) -> list[Term]:
    return _term(
        [*_axes(node.inputs[0], solution), *_axes(node.inputs[1], solution, 1)],
        solution,
    )


def _matmul(node: ir.Node, solution: Solution) -> list[Term]:
    return _term(
        [*_axes(node.outputs[0], solution), *_axes(node.inputs[0], solution)[-1:]],
        solution,
    )


def _gemm(node: ir.Node, solution: Solution) -> list[Term]:
    left = _axes(node.inputs[0], solution)
    return _term(
        [
            *_axes(node.outputs[0], solution),
            left[0 if node.attributes.get_int("transA", 0) else 1],
        ],
        solution,
    )


def _recurrent(node: ir.Node, solution: Solution) -> list[Term]:
    steps = _axes(node.inputs[0], solution)[:2]
    return [
        term
        for index in (1, 2)
        for term in _term([*steps, *_axes(node.inputs[index], solution)], solution)
    ]


TERMS = {
    "Conv": _conv,
    "ConvTranspose": _conv_transpose,
    "MatMul": _matmul,
    "Gemm": _gemm,
    "LSTM": _recurrent,
    "GRU": _recurrent,
    "RNN": _recurrent,
}
