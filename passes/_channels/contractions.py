"""Who reads the channels of a group, and who makes them: the contractions by a constant weight
around it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import MomentRequest
from .._core.edit import is_constant
from .._dims.groups import Group
from .._dims.solve import FROZEN, Solution
from .importance.scores import power_sums

RECURRENT = frozenset({"LSTM", "GRU", "RNN"})


@dataclass(frozen=True, eq=False)
class Consumer:
    """A node that sums `tensor` over `axis`, each slot times a slice of the initializer `weight`
    along `weight_axis`.

    `permutation`: the axes of `weight` in the order in which the node sees them. Of a grouped
    convolution, slot s of the axis is slot s % (slots / groups) of `weight_axis` (Conv), in the
    rows of group s // (slots / groups).
    """

    node: ir.Node
    tensor: ir.Value
    axis: int
    weight: ir.Value
    weight_axis: int
    groups: int = 1
    permutation: tuple[int, ...] = ()

    @property
    def kernel(self) -> tuple[int, ...]:
        """Spatial sizes of a convolution's weight, () elsewhere."""
        return (
            self._seen()[2:] if self.node.op_type in ("Conv", "ConvTranspose") else ()
        )

    def _seen(self) -> tuple[int, ...]:
        """The weight's shape as the node sees it."""
        assert self.weight.const_value is not None
        shape = self.weight.const_value.shape.numpy()
        return tuple(int(shape[axis]) for axis in self.permutation)

    def matrix(self) -> NDArray[np.float64]:
        """The weight as (groups, M, K): K inputs in the order of `columns`, M outputs of each
        group.
        """
        assert self.weight.const_value is not None
        seen = (
            self.weight.const_value.numpy()
            .astype(np.float64)
            .transpose(self.permutation)
        )
        if self.node.op_type == "Conv":
            return np.ascontiguousarray(
                seen.reshape(self.groups, seen.shape[0] // self.groups, -1)
            )
        if self.node.op_type == "ConvTranspose":
            return np.ascontiguousarray(
                seen.reshape(self.groups, seen.shape[0] // self.groups, -1).transpose(
                    0, 2, 1
                )
            )
        inputs = self.permutation.index(self.weight_axis)
        return np.ascontiguousarray(
            np.moveaxis(seen, inputs, -1).reshape(1, -1, seen.shape[inputs])
        )

    def stored(self, matrix: NDArray[Any]) -> NDArray[Any]:
        """(groups, M, K) back in the weight's own shape: the inverse of `matrix`."""
        shape = self._seen()
        if self.node.op_type == "Conv":
            seen = matrix.reshape(shape)
        elif self.node.op_type == "ConvTranspose":
            seen = matrix.transpose(0, 2, 1).reshape(shape)
        else:
            inputs = self.permutation.index(self.weight_axis)
            rest = [size for axis, size in enumerate(shape) if axis != inputs]
            seen = np.moveaxis(matrix.reshape(*rest, shape[inputs]), -1, inputs)
        return np.ascontiguousarray(seen.transpose(np.argsort(self.permutation)))

    def columns(self) -> NDArray[np.intp]:
        """The slot of `axis` that each column of `matrix` multiplies, (groups, K)."""
        shape = self._seen()
        if self.node.op_type == "Conv":
            slots = np.arange(self.groups * shape[1]).repeat(math.prod(shape[2:]))
        elif self.node.op_type == "ConvTranspose":
            slots = np.arange(shape[0])
        else:
            slots = np.arange(shape[self.permutation.index(self.weight_axis)])
        return slots.reshape(self.groups, -1)

    def squares(self) -> NDArray[np.float64]:
        """||W_s||^2 of every slot s of `axis`. Streams the weight but that of a grouped
        convolution.
        """
        if self.groups == 1 or self.node.op_type == "ConvTranspose":
            return power_sums(self.weight, self.weight_axis, 2)
        columns = self.columns()
        total = np.zeros(columns.max() + 1)
        np.add.at(
            total, columns.reshape(-1), np.square(self.matrix()).sum(1).reshape(-1)
        )
        return total

    def request(self) -> MomentRequest:
        """The Gram matrix of what the node multiplies: (groups, K + 1, K + 1) of Conv, (1, C + 1, C
        + 1) elsewhere.
        """
        assert self.tensor.name is not None
        if self.node.op_type != "Conv":
            return MomentRequest(self.tensor.name, "gram", axis=self.axis)
        rank, attributes = len(self.kernel), self.node.attributes
        ones = (1,) * rank
        return MomentRequest(
            self.tensor.name,
            "gram",
            axis=1,
            kernel=self.kernel,
            groups=self.groups,
            strides=tuple(attributes.get_ints("strides") or ones),
            pads=tuple(attributes.get_ints("pads") or (0,) * 2 * rank),
            dilations=tuple(attributes.get_ints("dilations") or ones),
        )

    def grams(self, moment: NDArray[np.float64]) -> NDArray[np.float64]:
        """What `request` gave as one matrix a group, (groups, K + 1, K + 1), in the order of
        `columns`.
        """
        columns = self.columns()
        if len(moment) == len(columns):
            return moment
        last = np.full((len(columns), 1), moment.shape[1] - 1)
        index = np.concatenate([columns, last], axis=1)
        blocks: NDArray[np.float64] = moment[0][index[:, :, None], index[:, None, :]]
        return blocks

    def unsuited(self) -> str:
        """Why the node is not one product of a matrix with what `request` measures; "" if it is."""
        if self.node.attributes.get_string("auto_pad", "NOTSET") not in (
            "NOTSET",
            "VALID",
        ):
            return "its padding follows its input's size (auto_pad)"
        if (
            self.node.op_type not in ("Conv", "ConvTranspose", *RECURRENT)
            and len(self._seen()) != 2
        ):
            return f"its weight has rank {len(self._seen())}, not 2"
        return ""


@dataclass(frozen=True, eq=False)
class Producer:
    """A node that makes channels: slices of the initializer `weight` along `weight_axis` give those
    of `output`.
    """

    node: ir.Node
    output: ir.Value
    weight: ir.Value
    weight_axis: int


def consumers_of(groups: Sequence[Group], solution: Solution) -> list[list[Consumer]]:
    """For each group the contractions by a constant that lose something when its channels go, in
    graph order.

    Left out: a grouped convolution whose outputs go with its inputs (depthwise), and products of
    two activations.
    """
    by_class: dict[int, list[Consumer]] = {}
    for consumer in contractions(solution):
        if not _carries(consumer, solution):
            by_class.setdefault(
                solution.classes[consumer.tensor, consumer.axis], []
            ).append(consumer)
    return [
        [c for root, _ in group.places for c in by_class.get(root, ())]
        for group in groups
    ]


def producers_of(groups: Sequence[Group], solution: Solution) -> list[list[Producer]]:
    """For each group the contractions by a constant of which its channels are outputs, in graph
    order.
    """
    by_class: dict[int, list[Producer]] = {}
    for consumer in contractions(solution):
        axis = _made(consumer)
        operand = _operand(consumer)
        if axis is not None and (operand, axis) in solution.classes:
            made = Producer(
                consumer.node,
                consumer.node.outputs[0],
                consumer.weight,
                consumer.permutation[axis],
            )
            by_class.setdefault(solution.classes[operand, axis], []).append(made)
    return [
        [p for root, _ in group.places for p in by_class.get(root, ())]
        for group in groups
    ]


def contractions(solution: Solution) -> list[Consumer]:
    """Every sum of an activation times a constant weight, from the relations, in graph order."""
    found = []
    for mix in solution.relations.mixes:
        if mix.kind == "contract":
            for index, axis in mix.axes:
                consumer = _contraction(mix.node, index, axis, solution)
                if (
                    consumer is not None
                    and (consumer.tensor, consumer.axis) in solution.classes
                ):
                    found.append(consumer)
    return found


def _contraction(
    node: ir.Node, index: int, axis: int, solution: Solution
) -> Consumer | None:
    """The sum of `node` over one axis of one input as data times weight; None if neither operand is
    a constant.
    """
    if (
        node.op_type not in ("Conv", "ConvTranspose", "Gemm", "MatMul", *RECURRENT)
        or index != 0
    ):
        return None
    data, weight = node.inputs[0], node.inputs[1]
    assert data is not None
    assert weight is not None
    data_axis, weight_axis = axis, _read(node, weight, solution)
    if weight_axis is None:
        return None
    stored = _initializer(weight, solution)
    if stored is None and node.op_type in ("Gemm", "MatMul"):
        data, weight, data_axis, weight_axis = weight, data, weight_axis, data_axis
        stored = _initializer(weight, solution)
    if stored is None or _initializer(data, solution) is not None:
        return None
    value, permutation = stored
    groups = (
        node.attributes.get_int("group", 1)
        if node.op_type in ("Conv", "ConvTranspose")
        else 1
    )
    return Consumer(
        node, data, data_axis, value, permutation[weight_axis], groups, permutation
    )


def _read(node: ir.Node, weight: ir.Value, solution: Solution) -> int | None:
    """The axis of the second operand that is summed over."""
    shape = solution.relations.trace.shape(weight)
    if shape is None:
        return None
    if node.op_type == "Gemm":
        return 1 if node.attributes.get_int("transB", 0) else 0
    if node.op_type == "MatMul":
        return max(len(shape) - 2, 0)
    return {"Conv": 1, "ConvTranspose": 0}.get(node.op_type, 2)


def _made(consumer: Consumer) -> int | None:
    """The axis of the weight, as the node sees it, along which the node's outputs lie."""
    node = consumer.node
    if node.op_type == "Conv":
        return 0
    if node.op_type == "ConvTranspose":
        return 1
    inputs = consumer.permutation.index(consumer.weight_axis)
    if node.op_type in RECURRENT or len(consumer.permutation) < 2:
        return None
    return (
        len(consumer.permutation) - 1
        if inputs == len(consumer.permutation) - 2
        else inputs - 1
    )


def _operand(consumer: Consumer) -> ir.Value:
    """The input of the node that the weight arrives at."""
    other = (
        consumer.node.inputs[1]
        if consumer.node.inputs[0] is consumer.tensor
        else consumer.node.inputs[0]
    )
    assert other is not None
    return other


def _initializer(
    value: ir.Value, solution: Solution
) -> tuple[ir.Value, tuple[int, ...]] | None:
    """The constant that Identity, Cast and Transpose make `value` of, and its axes in the order of
    `value`'s.
    """
    shape = solution.relations.trace.shape(value)
    permutation = tuple(range(len(shape or ())))
    while not is_constant(value):
        node = value.producer()
        if (
            node is None
            or node.domain != ""
            or node.op_type not in ("Identity", "Cast", "Transpose")
        ):
            return None
        if node.op_type == "Transpose":
            order = (
                node.attributes.get_ints("perm") or tuple(range(len(permutation)))[::-1]
            )
            permutation = tuple(order[axis] for axis in permutation)
        source = node.inputs[0]
        assert source is not None
        value = source
    return value, permutation


def _carries(consumer: Consumer, solution: Solution) -> bool:
    """Whether each group of a convolution loses its outputs with its inputs, so that nothing else
    loses anything.
    """
    output = consumer.node.outputs[0]
    if consumer.groups == 1 or (output, 1) not in solution.classes:
        return False
    read = solution.slots(consumer.tensor, consumer.axis).reshape(consumer.groups, -1)
    made = solution.slots(output, 1).reshape(consumer.groups, -1)
    return bool(
        (read == read[:, :1]).all()
        and (made == read[:, :1]).all()
        and (read != FROZEN).all()
    )
