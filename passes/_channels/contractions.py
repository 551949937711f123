"""Contractions by a constant weight: the nodes that read the channels of a group or make them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import onnx_ir as ir

from .._base import MomentRequest
from .._core.edit import is_constant
from .._core.linear import Matrices, WeightView
from .._core.ops import CONVOLUTIONS, RECURRENT, is_standard, summed_axes
from .._dims.groups import Group
from .._dims.solve import FROZEN, Solution
from .importance.scores import Scores, power_sums

T = TypeVar("T")

EITHER_OPERAND = ("Gemm", "MatMul")
"""Operators whose weight may be the first operand as well as the second."""

CONTRACTIONS = CONVOLUTIONS | RECURRENT | frozenset(EITHER_OPERAND)


@dataclass(frozen=True, eq=False)
class Contraction:
    """A node that sums an activation over one axis, each slot times a slice of a constant weight.

    `tensor`, `axis`: the activation and the axis that is summed over. `view`: the weight as the
    node sees it. A grouped Conv multiplies slot s of the axis by slot s % (slots / groups) of the
    weight's input axis, in the rows of group s // (slots / groups).
    """

    view: WeightView
    tensor: ir.Value
    axis: int

    @property
    def node(self) -> ir.Node:
        return self.view.node

    @property
    def weight(self) -> ir.Value:
        """Initializer that holds the weight."""
        return self.view.stored

    @property
    def weight_axis(self) -> int:
        """Axis of the stored weight along which its inputs lie."""
        return self.view.permutation[self.view.input_axis]

    def squares(self) -> Scores:
        """||W_s||^2 of every slot s of `axis`; the weight is streamed where a slot is a slice."""
        is_slice = self.view.groups == 1 or self.node.op_type == "ConvTranspose"
        if is_slice:
            return power_sums(self.weight, self.weight_axis, 2)
        columns = self.view.columns()
        squares = np.square(self.view.matrix())
        by_column = squares.sum(axis=1)
        slots = columns.max() + 1
        total = np.zeros(slots)
        # unlike `total[columns] +=`, this adds up what falls on one slot
        flat_columns = columns.reshape(-1)
        flat_squares = by_column.reshape(-1)
        np.add.at(total, flat_columns, flat_squares)
        return total

    def request(self) -> MomentRequest:
        """Gram matrix of what the node multiplies.

        Shapes: (groups, K + 1, K + 1) of a Conv, (1, C + 1, C + 1) of other nodes.
        """
        return self.view.request("gram", self.tensor, self.axis)

    def grams(self, moment: Matrices) -> Matrices:
        """The moment that `request` asked for, as one matrix a group in the order of columns.

        Shapes: as `request` -> (groups, K + 1, K + 1).
        """
        columns = self.view.columns()
        if len(moment) == len(columns):
            return moment
        # a grouped ConvTranspose: its groups are blocks of one matrix over all channels
        groups = len(columns)
        last = moment.shape[1] - 1
        constant = np.full((groups, 1), last)
        index = np.concatenate([columns, constant], axis=1)
        row = index[:, :, None]
        column = index[:, None, :]
        blocks: Matrices = moment[0][row, column]
        return blocks


@dataclass(frozen=True, eq=False)
class Producer:
    """A node whose output channels are slices of a stored weight along `weight_axis`."""

    node: ir.Node
    output: ir.Value
    weight: ir.Value
    weight_axis: int


def consumers_of(
    groups: Sequence[Group], solution: Solution
) -> list[list[Contraction]]:
    """Contractions that lose something when the channels of each group go, in graph order.

    Left out: a grouped convolution whose outputs go with its inputs (depthwise), and products of
    two activations.
    """
    by_class: dict[int, list[Contraction]] = {}
    for contraction in contractions(solution):
        if _passes_on(contraction, solution):
            continue
        axis = (contraction.tensor, contraction.axis)
        root = solution.classes[axis]
        by_class.setdefault(root, []).append(contraction)
    return [_at_places(group, by_class) for group in groups]


def producers_of(groups: Sequence[Group], solution: Solution) -> list[list[Producer]]:
    """Contractions whose outputs are the channels of each group, in graph order."""
    by_class: dict[int, list[Producer]] = {}
    for contraction in contractions(solution):
        view = contraction.view
        axis = view.output_axis
        operand = view.node.inputs[view.index]
        if axis is None or operand is None:
            continue
        root = solution.classes.get((operand, axis))
        if root is None:
            continue
        producer = Producer(
            node=view.node,
            output=view.node.outputs[0],
            weight=view.stored,
            weight_axis=view.permutation[axis],
        )
        by_class.setdefault(root, []).append(producer)
    return [_at_places(group, by_class) for group in groups]


def _at_places(group: Group, by_class: Mapping[int, list[T]]) -> list[T]:
    """Items of the classes of axes that a group has, in the order of its classes."""
    items: list[T] = []
    for root, _ in group.places:
        items += by_class.get(root, ())
    return items


def contractions(solution: Solution) -> list[Contraction]:
    """Every sum of an activation times a constant weight, from the relations, in graph order."""
    found = []
    for node, axis in _first_operands(solution):
        contraction = _contraction(node, axis, solution)
        if contraction is None:
            continue
        axis_read = (contraction.tensor, contraction.axis)
        # axes that no rule mentioned belong to no class: nothing can be said of their slots
        if axis_read in solution.classes:
            found.append(contraction)
    return found


def _first_operands(solution: Solution) -> Iterator[tuple[ir.Node, int]]:
    """Nodes that contract, each with the axis of its first input that it sums over."""
    for mix in solution.relations.mixes:
        node = mix.node
        if mix.kind != "contract" or node.op_type not in CONTRACTIONS:
            continue
        for index, axis in mix.axes:
            # the other operand is summed over too; one entry a sum is enough
            if index == 0:
                yield node, axis


def _contraction(node: ir.Node, axis: int, solution: Solution) -> Contraction | None:
    """The node's sum over `axis` of its first input; None unless one operand alone is constant."""
    first, second = node.inputs[:2]
    assert first is not None
    assert second is not None
    shape = solution.relations.trace.shape(second)
    if shape is None:
        return None
    tensor = first
    index = 1
    stored = _stored_weight(second, solution)
    if stored is None and node.op_type in EITHER_OPERAND:
        tensor = second
        index = 0
        summed = summed_axes(node, 1, len(shape))
        axis = summed[0]
        stored = _stored_weight(first, solution)
    if stored is None:
        return None
    # two constants: nothing that data goes through
    if _stored_weight(tensor, solution) is not None:
        return None
    value, permutation = stored
    view = WeightView(
        node=node,
        index=index,
        stored=value,
        permutation=permutation,
    )
    return Contraction(view, tensor, axis)


def _stored_weight(
    value: ir.Value, solution: Solution
) -> tuple[ir.Value, tuple[int, ...]] | None:
    """The constant that Identity, Cast and Transpose nodes make `value` from, if they do.

    Returned with its axes in the order of `value`'s.
    """
    shape = solution.relations.trace.shape(value)
    permutation = tuple(range(len(shape or ())))
    while not is_constant(value):
        node = value.producer()
        if node is None:
            return None
        if not is_standard(node, "Identity", "Cast", "Transpose"):
            return None
        if node.op_type == "Transpose":
            order = node.attributes.get_ints("perm")
            if not order:
                # without a permutation the axes are reversed
                order = range(len(permutation))[::-1]
            permutation = tuple(order[axis] for axis in permutation)
        source = node.inputs[0]
        assert source is not None
        value = source
    return value, permutation


def _passes_on(contraction: Contraction, solution: Solution) -> bool:
    """Return whether each group of a convolution loses its outputs with its inputs.

    Then nothing else loses anything: a depthwise convolution passes its channels on.
    """
    output = contraction.node.outputs[0]
    groups = contraction.view.groups
    if groups == 1 or (output, 1) not in solution.classes:
        return False
    read = solution.slots(contraction.tensor, contraction.axis)
    made = solution.slots(output, 1)
    stays = read == FROZEN
    if stays.any():
        return False
    # slots by group of the convolution: each must belong to one channel, in and out
    read = read.reshape(groups, -1)
    made = made.reshape(groups, -1)
    channel = read[:, :1]
    reads_one = (read == channel).all()
    makes_one = (made == channel).all()
    return bool(reads_one and makes_one)


def moment_bytes(contraction: Contraction) -> int:
    """Bytes of the Gram matrix that a contraction requests."""
    columns = contraction.view.columns()
    groups, width = columns.shape
    if contraction.node.op_type != "Conv":
        # measured over all channels at once, see `grams`
        return square_bytes(1, groups * width)
    return square_bytes(groups, width)


def square_bytes(groups: int, width: int) -> int:
    """Bytes of float64 matrices (groups, width + 1, width + 1)."""
    return 8 * groups * (width + 1) ** 2
