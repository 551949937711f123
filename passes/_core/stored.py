"""Constants as a file stores them: what each takes, whatever nodes unpack it for its readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from .chains import made_of_constants
from .edit import ints_of
from .graph import all_nodes, producer_of
from .normalize import constant_tensor
from .provenance import float_weight
from .stats import NOT_PARAMETERS

KEEPING = ("Cast", "DequantizeLinear", "Identity", "Mul", "Transpose")
"""Ops that unpack weights and give as many elements as their first input has."""

SHAPING = ("Expand", "Reshape")
"""Ops whose second input says how many elements there are."""


@dataclass(frozen=True)
class StoredConstant:
    """A constant as nodes read it, and what the file holds for it.

    `value`: what they read: an initializer, or what nodes make of constants alone. `name`: of the
    weight that it is or encodes. `nbytes`: of all that is stored for it, scales and tables too.
    `bits`: of one of its `elements`; 0 where another constant has what it is made of.
    """

    value: ir.Value
    name: str
    elements: int
    nbytes: int
    bits: int

    @property
    def is_parameter(self) -> bool:
        """False for shapes, axes, masks and texts."""
        return self.value.dtype not in NOT_PARAMETERS


def stored_constants(model: ir.Model) -> list[StoredConstant]:
    """Every constant that is read at run time, in graph order; not those that only make others.

    A tensor that several are made of counts for the first.
    """
    made = made_of_constants(model)
    told: set[ir.Value] = set()
    found: list[StoredConstant] = []
    for node in all_nodes(model):
        if any(value in made for value in node.outputs):
            continue
        for value in node.inputs:
            if value is None or value in told:
                continue
            if value in made or value.const_value is not None:
                stored = _stored(value, made, told)
                found.append(stored)
    return found


def bits_by_count(constants: Iterable[StoredConstant]) -> dict[str, int]:
    """Number of parameters by the bits that one of them is stored in, the fewest first."""
    counts: Counter[int] = Counter()
    for constant in constants:
        if constant.is_parameter and constant.bits:
            counts[constant.bits] += constant.elements
    return {str(bits): counts[bits] for bits in sorted(counts)}


def _stored(
    value: ir.Value, made: Collection[ir.Value], told: set[ir.Value]
) -> StoredConstant:
    """Account of a constant: tensors that it is made of, but those `told` of before."""
    name = _encoded_name(value)
    tensors: list[ir.TensorProtocol] = []
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if part in told:
            continue
        told.add(part)
        name = float_weight(part) or name
        tensor = _tensor_of(part)
        if tensor is not None:
            tensors.append(tensor)
        elif part in made:
            producer = part.producer()
            assert producer is not None
            waiting += [each for each in producer.inputs if each is not None]
    nbytes = sum(int(tensor.nbytes) for tensor in tensors)
    if value.dtype not in NOT_PARAMETERS:
        # axes and shapes beside them say nothing of a weight's width
        tensors = [each for each in tensors if each.dtype not in NOT_PARAMETERS]
    largest = max(tensors, key=lambda tensor: tensor.nbytes, default=None)
    elements = _elements(value, largest)
    bits = 0
    if largest is not None and largest.size == elements:
        # of codes the width, without the scales beside them
        bits = largest.dtype.bitwidth if largest.dtype != ir.DataType.STRING else 0
    elif elements:
        bits = round(8 * sum(int(tensor.nbytes) for tensor in tensors) / elements)
    return StoredConstant(value, name, elements, nbytes, bits)


def _encoded_name(value: ir.Value) -> str:
    # what is dequantized has a name that nobody but its reader knows
    producer = producer_of(value, "DequantizeLinear")
    codes = value if producer is None else producer.inputs[0]
    return (codes.name if codes is not None else None) or value.name or ""


def _tensor_of(value: ir.Value) -> ir.TensorProtocol | None:
    """The tensor that a file holds for a value; None where nodes compute it."""
    if value.producer() is None:
        return value.const_value
    node = producer_of(value, "Constant")
    return None if node is None else constant_tensor(node)


def _elements(value: ir.Value, largest: ir.TensorProtocol | None) -> int:
    """Number of elements; where nothing tells, that of the largest tensor behind a value."""
    for part in _unchanged(value):
        dims = part.shape
        if dims is not None and all(isinstance(dim, int) for dim in dims):
            return prod(dim for dim in dims if isinstance(dim, int))
        node = producer_of(part, *SHAPING)
        shape = node.inputs[1] if node is not None else None
        sizes = ints_of(shape)
        if sizes is not None and min(sizes, default=1) >= 0:
            return prod(sizes)
    return 0 if largest is None else int(largest.size)


def _unchanged(value: ir.Value) -> Iterator[ir.Value]:
    """A value, and those before it that have as many elements.

    Files tell the shapes of few values, and a file that was just written is not inferred anew.
    """
    yield value
    while (node := producer_of(value, *KEEPING)) is not None:
        # of a product the factors, one for each channel, are stored as they are
        made = [each for each in node.inputs if each is not None and each.producer()]
        if len(made) != 1:
            return
        value = made[0]
        yield value
