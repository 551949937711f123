"""Constants as the floats that they stand for, whatever a file stores: described, not copied."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..passes._core.graph import input_of, producer_of
from ..passes._core.integer_layers import INTEGER_OPS, integer_layers, value_at
from ..passes._core.lazy import DerivedTensor
from ..passes._core.ops import FLOATS

KEEPING = ("Cast", "Flatten", "Identity", "Reshape", "Squeeze", "Unsqueeze")
"""Operators that leave the elements of a weight in their order."""

LONGEST = 8
"""Nodes between a stored tensor and its reader, at most."""


@dataclass(frozen=True)
class Scales:
    """Scales and zero points of codes, and which of them an element has.

    `shape`: of the codes. `axis`: along it each index, or each run of `block` indices, has its own;
    None: there is one for all.
    """

    scale: NDArray[Any]
    zero: NDArray[Any] | None
    shape: tuple[int, ...]
    axis: int | None
    block: int = 1

    def floats(self, codes: NDArray[Any], start: int) -> NDArray[Any]:
        """Floats of flat codes, of which the first is element `start`."""
        places = self._places(start, codes.size)
        found = codes.astype(np.float32)
        if self.zero is not None:
            found -= self.zero[places]
        found *= self.scale[places]
        return found

    def _places(self, start: int, size: int) -> NDArray[Any] | int:
        """Index into the flat scales, by element."""
        if self.axis is None:
            return 0
        index = np.arange(start, start + size)
        inner = prod(self.shape[self.axis + 1 :])
        length = self.shape[self.axis]
        along = index // inner % length
        if self.block == 1:
            return along
        # blocked scales have every axis of the codes, that one shorter
        blocks = -(-length // self.block)
        outer = index // (inner * length)
        rows = outer * blocks + along // self.block
        return rows * inner + index % inner


@dataclass(frozen=True)
class DecodedWeight:
    """A weight as floats, computed as it is read. `order`: of its axes as its reader sees them."""

    tensor: ir.TensorProtocol
    order: tuple[int, ...]

    @property
    def shape(self) -> tuple[int, ...]:
        dims = self.tensor.shape.numpy()
        return tuple(int(dims[axis]) for axis in self.order)

    @property
    def is_in_order(self) -> bool:
        """True if the reader sees the elements in the order in which they are stored."""
        return self.order == tuple(range(len(self.order)))


def decoded(value: ir.Value, reader: ir.Node | None = None) -> DecodedWeight | None:
    """The floats that a constant stands for; None where no rule tells.

    `reader`: the node that reads it, for an integer operator has the scales of its weight itself,
    and behind a table of codes the rows of its scales are taken by another node.
    """
    orders: list[Sequence[int] | None] = []
    for _ in range(LONGEST):
        if value.producer() is None:
            break
        node = producer_of(value, *KEEPING, "Transpose")
        if node is None or node.inputs[0] is None:
            break
        if node.op_type == "Transpose":
            orders.append(node.attributes.get_ints("perm"))
        value = node.inputs[0]
    tensor = _floats_of(value, reader)
    if tensor is None:
        return None
    rank = len(tensor.shape.numpy())
    order = tuple(range(rank))
    for own in reversed(orders):
        # axes are reversed by default
        axes = own or range(rank)[::-1]
        if len(axes) != rank:
            return None
        order = tuple(order[axis] for axis in axes)
    return DecodedWeight(tensor, order)


def _floats_of(value: ir.Value, reader: ir.Node | None) -> ir.TensorProtocol | None:
    tensor = value.const_value
    if tensor is not None and tensor.dtype in FLOATS:
        return tensor
    if tensor is not None and reader is not None:
        if reader.op_type in INTEGER_OPS:
            return _read_by_integers(reader)
        if reader.op_type == "Gather":
            return _rows_of(reader)
    producer = value.producer()
    if producer is None or producer.op_type != "DequantizeLinear":
        return None
    return _dequantized(producer)


def _dequantized(node: ir.Node) -> ir.TensorProtocol | None:
    codes = node.inputs[0]
    rank = _rank(codes)
    axis = node.attributes.get_int("axis", 1)
    block = node.attributes.get_int("block_size", 0)
    return _scaled(
        codes,
        scale=input_of(node, 1),
        zero=input_of(node, 2),
        axis=axis + rank if axis < 0 else axis,
        block=max(block, 1),
    )


def _read_by_integers(reader: ir.Node) -> ir.TensorProtocol | None:
    for layer in integer_layers([reader]):
        scale = value_at(layer.scale)
        zero = value_at(layer.zero)
        return _scaled(
            layer.stored,
            scale,
            zero,
            layer.channel_axis,
            block=1,
        )
    return None


def _rows_of(reader: ir.Node) -> ir.TensorProtocol | None:
    """A table of codes: Mul(Cast(Gather(codes, ids)), Gather(scales, ids))."""
    cast = _only_reader(reader)
    product = None if cast is None else _only_reader(cast)
    if cast is None or product is None or cast.op_type != "Cast":
        return None
    if product.op_type != "Mul":
        return None
    for value in product.inputs:
        rows = None if value is None else producer_of(value, "Gather")
        if rows is not None and rows.inputs[1] is reader.inputs[1]:
            return _scaled(
                reader.inputs[0],
                rows.inputs[0],
                None,
                axis=0,
                block=1,
            )
    return None


def _only_reader(node: ir.Node) -> ir.Node | None:
    readers = [use.node for use in node.outputs[0].uses()]
    return readers[0] if len(readers) == 1 else None


def _rank(value: ir.Value | None) -> int:
    if value is None or value.const_value is None:
        return 0
    return len(value.const_value.shape.numpy())


def _scaled(
    codes: ir.Value | None,
    scale: ir.Value | None,
    zero: ir.Value | None,
    axis: int,
    block: int,
) -> ir.TensorProtocol | None:
    """Codes times their scales; None where either is not stored, or their shapes do not fit."""
    if codes is None or codes.const_value is None:
        return None
    factors = _flat(scale)
    if factors is None:
        return None
    tensor = codes.const_value
    dims = tuple(int(dim) for dim in tensor.shape.numpy())
    offsets = _flat(zero)
    if offsets is not None and offsets.size != factors.size:
        return None
    scales = Scales(
        factors,
        offsets,
        dims,
        axis,
        block,
    )
    if factors.size == 1:
        scales = Scales(factors, offsets, dims, None)
    elif axis >= len(dims) or factors.size != _count(dims, axis, block):
        return None
    return DerivedTensor(tensor, scales.floats, ir.DataType.FLOAT)


def _flat(value: ir.Value | None) -> NDArray[Any] | None:
    if value is None or value.const_value is None:
        return None
    return value.const_value.numpy().astype(np.float32).reshape(-1)


def _count(shape: Sequence[int], axis: int, block: int) -> int:
    """Number of scales."""
    length = shape[axis]
    if block == 1:
        return length
    # rounded up
    blocks = -(-length // block)
    outer = prod(shape[:axis])
    inner = prod(shape[axis + 1 :])
    return outer * blocks * inner
