"""Parameters, bytes and multiply-accumulates of a model as a function of the channels removed."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Literal

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.ops import RECURRENT, WEIGHTED_OPS, plain_op, summed_axes
from .._core.stats import NOT_PARAMETERS
from .._dims.groups import Group
from .._dims.relations import Axis
from .._dims.solve import FROZEN, Solution

Removed = NDArray[np.bool_]
"""True for each channel id that goes."""

Term = tuple[tuple[int, ...], int]
"""Classes of axes whose widths are multiplied, and a number: bits of an element, or the product of
fixed sizes.
"""

CostKind = Literal["params", "bytes", "macs"]


@dataclass(frozen=True)
class Cost:
    """Size and work of a model: parameters, bytes of weights, multiply-accumulates.

    Symbolic dims count as 1.
    """

    params: int
    bytes: int
    macs: int


@dataclass(frozen=True)
class Costs:
    """Cost terms of a model: products of widths that can be evaluated for any removal.

    `whole`: the width of every class of axes as it is. `shrinking`: channels of the slots of those
    classes that may lose some.
    """

    weights: tuple[Term, ...]
    products: tuple[Term, ...]
    whole: dict[int, int]
    shrinking: dict[int, NDArray[np.intp]]

    def of(self, removed: Removed) -> Cost:
        """Cost once the given channels are gone. Linear in what may shrink; no graph is built."""
        widths = dict(self.whole)
        for root, slots in self.shrinking.items():
            is_frozen = slots == FROZEN
            stays = ~removed[slots] | is_frozen
            widths[root] = int(stays.sum())
        params = 0
        bits = 0
        macs = 0
        for roots, bits_each in self.weights:
            size = _product(widths, roots)
            params += size
            bits += size * bits_each
        for roots, fixed in self.products:
            size = _product(widths, roots)
            macs += size * fixed
        # weights of four bits: only the sum is a whole number of bytes
        return Cost(
            params=params,
            bytes=bits // 8,
            macs=macs,
        )

    def saved_by_one(self, groups: Sequence[Group], kind: CostKind) -> list[float]:
        """Cost of one channel of each group in the whole model. Linear in terms and groups."""
        terms = self.weights
        if kind == "macs":
            terms = self.products
        by_class: dict[int, list[int]] = defaultdict(list)
        for number, (roots, _) in enumerate(terms):
            # a square weight may name one class twice
            for root in set(roots):
                by_class[root].append(number)
        found = []
        for group in groups:
            touched: set[int] = set()
            for root, _ in group.places:
                touched.update(by_class[root])
            own = [terms[number] for number in touched]
            saved = self._saved(group, own, kind)
            found.append(saved)
        return found

    def _saved(self, group: Group, terms: Iterable[Term], kind: CostKind) -> float:
        """Part of some terms that one channel of a group takes."""
        slots = dict(group.places)
        saved = 0
        for roots, factor in terms:
            left = {root: self.whole[root] - slots.get(root, 0) for root in roots}
            before = _product(self.whole, roots)
            less = before - _product(left, roots)
            # a parameter counts once, whatever its bits
            saved += less if kind == "params" else less * factor
        if kind == "bytes":
            return saved / 8
        return float(saved)


def _product(widths: dict[int, int], roots: Iterable[int]) -> int:
    return prod(widths[root] for root in roots)


def costs_of(model: ir.Model, solution: Solution) -> Costs:
    """Cost terms of the main graph; nodes whose shapes are unknown are left out."""
    products: list[Term] = []
    for node in model.graph:
        multiplied = _multiplied_axes(node, solution)
        products += [_term(axes, solution) for axes in multiplied]
    widths = {}
    shrinking = {}
    for root, slots in solution.channels.items():
        widths[root] = len(slots)
        if (slots != FROZEN).any():
            shrinking[root] = slots
    return Costs(
        weights=tuple(_weight_terms(model, solution)),
        products=tuple(products),
        whole=widths,
        shrinking=shrinking,
    )


def stored_cost(model: ir.Model) -> Cost:
    """Parameters and bytes that the main graph stores; a tensor of several names counts once."""
    tensors = {}
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None and tensor.dtype not in NOT_PARAMETERS:
            tensors[id(tensor)] = tensor
    params = 0
    bits = 0
    for tensor in tensors.values():
        params += tensor.size
        bits += tensor.size * tensor.dtype.bitwidth
    return Cost(params=params, bytes=bits // 8, macs=0)


def _weight_terms(model: ir.Model, solution: Solution) -> Iterator[Term]:
    """One term for each stored tensor of parameters."""
    shapes = solution.relations.trace.shapes
    stored = set[object]()
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is None or tensor.dtype in NOT_PARAMETERS or value not in shapes:
            continue
        rank = len(shapes[value])
        roots = tuple(solution.classes[value, axis] for axis in range(rank))
        channels = tuple(solution.channels[root].tobytes() for root in roots)
        # copies that lose the same are one tensor again in the file
        identity = (id(tensor), channels)
        if identity in stored:
            continue
        stored.add(identity)
        yield roots, tensor.dtype.bitwidth


def _multiplied_axes(node: ir.Node, solution: Solution) -> Iterator[list[Axis]]:
    """Axes whose sizes multiplied are the multiply-accumulates of a node, for each of its weights.

    A sum takes one for each element of its output and of the axes that it sums over. ConvTranspose
    spreads its input: one for each element of that and of the other axes of the weight.
    """
    op = plain_op(node)
    if op not in WEIGHTED_OPS:
        return
    data = _axes(node.inputs[0], solution)
    if op in RECURRENT:
        for index in WEIGHTED_OPS[op].weights:
            weight = _axes(node.inputs[index], solution)
            if data is not None and weight is not None:
                steps_and_batch = data[:2]
                yield steps_and_batch + weight
    elif op == "ConvTranspose":
        weight = _axes(node.inputs[1], solution)
        if data is not None and weight is not None:
            yield data + weight[1:]
    else:
        output = _axes(node.outputs[0], solution)
        summed = _summed(node, op, solution)
        if output is not None and summed is not None:
            yield output + summed


def _summed(node: ir.Node, op: str, solution: Solution) -> list[Axis] | None:
    """Axes that a node sums over, of one of its factors whose shape is known; None if none is."""
    # a convolution's data has no axis for the kernel: there the weight tells what is summed
    factors = (1,) if op == "Conv" else (0, 1)
    for index in factors:
        axes = _axes(node.inputs[index], solution)
        # a scalar is no factor of a product, but files may say so
        if axes:
            summed = summed_axes(node, index, len(axes))
            return [axes[axis] for axis in summed]
    return None


def _axes(value: ir.Value | None, solution: Solution) -> list[Axis] | None:
    """Axes of a value; None where its shape is unknown."""
    shape = solution.relations.trace.shape(value)
    if value is None or shape is None:
        return None
    return [(value, axis) for axis in range(len(shape))]


def _term(axes: Sequence[Axis], solution: Solution) -> Term:
    """One product; axes that vary with the input count as 1, others without a class by size."""
    roots = []
    fixed = 1
    trace = solution.relations.trace
    for value, axis in axes:
        # a symbolic dim counts as 1
        if trace.varies(value, axis):
            continue
        root = solution.classes.get((value, axis))
        if root is None:
            fixed *= trace.shapes[value][axis]
        else:
            roots.append(root)
    return tuple(roots), fixed
