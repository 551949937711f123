"""Axes of a stored weight that its users sum over: the input axis, and rows, one for each output.

A weight may have several users and lie behind Transposes; `linear.WeightView` is one user's view.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx_ir as ir

from .chains import chain_of
from .ops import group_count, summed_axes
from .weights import Weight


@dataclass(frozen=True)
class Rows:
    """A tensor seen as (groups, rows, channels, inner).

    Each (group, channel) is a pool of rows * inner elements.
    """

    groups: int
    rows: int
    channels: int
    inner: int

    @property
    def length(self) -> int:
        """Elements of one pool."""
        return self.rows * self.inner


class NoAxisError(Exception):
    """The weight has no such axis, or its uses disagree; the text is the reason."""


def input_axis(weight: Weight, multiple: int) -> int:
    """The axis of the stored weight along which inputs lie.

    Its length, within a group, is a multiple of `multiple`. Errors: NoAxisError.
    """
    axes = {_summed(weight, node, index)[0] for node, index in weight.uses}
    if len(axes) > 1:
        raise NoAxisError("its uses read it along different axes")
    axis = axes.pop()
    length = _dims(weight)[axis] // _groups_along_inputs(weight)
    if length % multiple:
        raise NoAxisError(
            f"its input axis has {length} elements, not a multiple of {multiple}"
        )
    return axis


def _groups_along_inputs(weight: Weight) -> int:
    """Groups whose inputs share the input axis: those of a ConvTranspose."""
    groups = 1
    for node, _ in weight.uses:
        if node.op_type == "ConvTranspose":
            groups = max(groups, group_count(node))
    return groups


def rows_of(weight: Weight) -> Rows:
    """The weight as pools, one for each output of the op. Errors: NoAxisError."""
    summed = {frozenset(_summed(weight, node, index)) for node, index in weight.uses}
    if len(summed) > 1:
        raise NoAxisError("its uses sum it over different axes")
    if _groups_along_inputs(weight) > 1:
        raise NoAxisError(
            "the output channels of a grouped ConvTranspose are not slices of its weight"
        )
    dims = _dims(weight)
    runs = _runs(dims, summed.pop())
    # more runs than (groups, rows, channels, inner) have names
    if len(runs) > 4:
        raise NoAxisError("a Transpose in front scatters its rows over the weight")
    missing = 4 - len(runs)
    groups, rows, channels, inner = runs + [1] * missing
    # without channels between them, rows and inner are one run
    if channels == 1:
        return Rows(groups, 1, 1, rows * inner)
    return Rows(groups, rows, channels, inner)


def _runs(dims: list[int], summed: frozenset[int]) -> list[int]:
    """Sizes of alternating runs of kept and summed axes, starting with kept ones.

    Axes of length 1 join any run.
    """
    runs = [1]
    in_summed = False
    for axis, size in enumerate(dims):
        if size == 1:
            continue
        if (axis in summed) != in_summed:
            runs.append(1)
            in_summed = not in_summed
        runs[-1] *= size
    return runs


def _dims(weight: Weight) -> list[int]:
    shape = weight.tensor.shape.numpy()
    return [int(dim) for dim in shape]


def _summed(weight: Weight, node: ir.Node, index: int) -> list[int]:
    """Axes of the stored weight that this use sums over, the input axis first."""
    rank = len(_dims(weight))
    chain = chain_of(node.inputs[index])
    assert chain is not None
    order = chain.permutation(rank)
    return [order[axis] for axis in summed_axes(node, index, rank)]


def elements_after(weight: Weight, axis: int) -> int:
    """Elements between neighbours along `axis`."""
    dims = _dims(weight)
    return math.prod(dims[axis + 1 :])
