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


@dataclass(frozen=True)
class _Share:
    """A tensor, of which a part is stored for a constant."""

    tensor: ir.TensorProtocol
    part: float

    @property
    def nbytes(self) -> float:
        return int(self.tensor.nbytes) * self.part


def stored_constants(model: ir.Model) -> list[StoredConstant]:
    """Every constant that is read at run time, in graph order; not those that only make others.

    A tensor that several are made of counts for the first; of one that is split into them each has
    its share.
    """
    account = _Account(made_of_constants(model))
    found: list[StoredConstant] = []
    for node in all_nodes(model):
        if account.makes_constants(node):
            continue
        found += [
            account.stored(value) for value in _inputs(node) if account.is_new(value)
        ]
    return found


def bits_by_count(constants: Iterable[StoredConstant]) -> dict[str, int]:
    """Number of parameters by the bits that one of them is stored in, the fewest first."""
    counts: Counter[int] = Counter()
    for constant in constants:
        if constant.is_parameter and constant.bits:
            counts[constant.bits] += constant.elements
    return {str(bits): counts[bits] for bits in sorted(counts)}


class _Account:
    """Tensors that constants are made of, each told of once.

    `made`: values that nodes make of constants.
    """

    def __init__(self, made: Collection[ir.Value]) -> None:
        self._made = made
        self._told: set[ir.Value] = set()
        self._behind: dict[ir.Node, list[_Share]] = {}

    def makes_constants(self, node: ir.Node) -> bool:
        """True for a node that only makes constants of others."""
        return any(value in self._made for value in node.outputs)

    def is_new(self, value: ir.Value) -> bool:
        """True for a constant that was not told of."""
        if value in self._told:
            return False
        return value in self._made or value.const_value is not None

    def stored(self, value: ir.Value) -> StoredConstant:
        """Tell of a constant: of the tensors that it is made of, but those told of before."""
        shares, name = self._shares([value])
        nbytes = _total(shares)
        if value.dtype not in NOT_PARAMETERS:
            # axes and shapes beside them say nothing of a weight's width
            shares = [
                each for each in shares if each.tensor.dtype not in NOT_PARAMETERS
            ]
        whole = [each.tensor for each in shares if each.part == 1]
        largest = max(whole, key=lambda tensor: tensor.nbytes, default=None)
        elements = _elements(value, largest)
        bits = 0
        if largest is not None and largest.size == elements:
            # of codes the width, without the scales beside them
            bits = largest.dtype.bitwidth if largest.dtype != ir.DataType.STRING else 0
        elif elements:
            bits = round(8 * _total(shares) / elements)
        encoded = name or _encoded_name(value)
        return StoredConstant(
            value,
            encoded,
            elements,
            round(nbytes),
            bits,
        )

    def _shares(self, values: Iterable[ir.Value]) -> tuple[list[_Share], str]:
        """Tensors behind values, and the name of a float weight that these encode, if any."""
        found: list[_Share] = []
        name = ""
        waiting = list(values)
        while waiting:
            part = waiting.pop()
            if part in self._told:
                continue
            self._told.add(part)
            name = float_weight(part) or name
            tensor = _tensor_of(part)
            if tensor is not None:
                found.append(_Share(tensor, 1))
                continue
            producer = part.producer()
            if producer is None or part not in self._made:
                continue
            if producer.op_type == "Split":
                found += self._piece(part, producer)
            else:
                waiting += _inputs(producer)
        return found, name

    def _piece(self, piece: ir.Value, split: ir.Node) -> list[_Share]:
        """Shares of the tensors behind a Split that are stored for one of its pieces."""
        if split not in self._behind:
            behind, _ = self._shares(_inputs(split))
            self._behind[split] = behind
        part = _part_of_split(piece, split)
        shares = []
        for each in self._behind[split]:
            own = part * each.part
            shares.append(_Share(each.tensor, own))
        return shares


def _total(shares: Iterable[_Share]) -> float:
    return sum(share.nbytes for share in shares)


def _inputs(node: ir.Node) -> list[ir.Value]:
    return [value for value in node.inputs if value is not None]


def _part_of_split(piece: ir.Value, split: ir.Node) -> float:
    """Part of what is split that a piece is; without known sizes all pieces are alike."""
    count = len(split.outputs)
    sizes = ints_of(split.inputs[1]) if len(split.inputs) > 1 else None
    if sizes is None or not any(sizes):
        return 1 / count
    place = split.outputs.index(piece)
    return sizes[place] / sum(sizes)


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
