"""Constants as a file stores them: what each takes, whatever nodes unpack it for its readers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from .chains import made_of_constants
from .edit import ints_of
from .graph import all_nodes, producer_of
from .integer_layers import INTEGER_OPS
from .normalize import constant_tensor
from .ops import is_standard
from .provenance import float_weight
from .stats import NOT_PARAMETERS

KEEPING = ("Cast", "DequantizeLinear", "Identity", "Mul", "Reshape", "Transpose")
"""Ops that unpack weights and give as many elements as their first input has."""

SHAPING = ("Expand", "Reshape")
"""Ops whose second input says how many elements there are."""


NUMBERS: dict[str, set[int | None]] = {
    "QuantizeLinear": {0},
    "DequantizeLinear": {0},
    "ConvInteger": {0, 1},
    "DynamicQuantizeLSTM": {*range(8)},
    **{op: {each.data, each.weight, each.bias} for op, each in INTEGER_OPS.items()},
}
"""Inputs of integer operators that hold numbers; all others hold their scales and zero points."""


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
        return _dtype(self.value) not in NOT_PARAMETERS

    @property
    def is_weight(self) -> bool:
        """True for a parameter that is no scale or zero point."""
        is_grid = all(_reads_grid(use.node, use.idx) for use in self.value.uses())
        return self.is_parameter and not is_grid


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
    """Number of weights by the bits that one of them is stored in, the fewest first."""
    counts: Counter[int] = Counter()
    for constant in constants:
        if constant.is_weight and constant.bits:
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
        # of codes the width, without the scales beside them
        shares, name = self._shares([_origin(value)])
        beside, other_name = self._shares([value])
        nbytes = _total([*shares, *beside])
        if _dtype(value) not in NOT_PARAMETERS:
            # axes and shapes beside them say nothing of a weight's width
            shares = [
                each for each in shares if each.tensor.dtype not in NOT_PARAMETERS
            ]
        whole = [each.tensor for each in shares if each.part == 1]
        largest = max(whole, key=lambda tensor: tensor.nbytes, default=None)
        elements = _elements(value, largest)
        bits = 0
        if largest is not None and largest.size == elements:
            bits = largest.dtype.bitwidth if largest.dtype != ir.DataType.STRING else 0
        elif elements and shares:
            # of a sparse weight less than half a bit, which is not nothing
            bits = max(round(8 * _total(shares) / elements), 1)
        encoded = name or other_name or _encoded_name(value)
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


def _reads_grid(node: ir.Node, place: int) -> bool:
    """True for an input that holds scales or zero points."""
    if is_standard(node, "Gather") and place == 0:
        return _picks_scales(node)
    numbers = NUMBERS.get(node.op_type)
    return numbers is not None and place not in numbers


def _picks_scales(rows: ir.Node) -> bool:
    """True if rows of a table are what the rows of another one, of codes, are multiplied by."""
    for product in rows.outputs[0].consumers():
        for factor in product.inputs:
            cast = producer_of(factor, "Cast")
            codes = producer_of(cast.inputs[0], "Gather") if cast is not None else None
            if codes is not None and codes.inputs[1] is rows.inputs[1]:
                return product.op_type == "Mul"
    return False


def _elements(value: ir.Value, largest: ir.TensorProtocol | None) -> int:
    """Number of elements; where nothing tells, that of the largest tensor behind a value."""
    part = 1.0
    source: ir.Value | None = value
    while source is not None:
        known = _known_elements(source)
        if known is not None:
            return round(part * known)
        split = producer_of(source, "Split")
        if split is None:
            source = _source(source)
        else:
            part *= _part_of_split(source, split)
            source = split.inputs[0]
    return 0 if largest is None else int(largest.size)


def _known_elements(value: ir.Value) -> int | None:
    """Number of elements by a value's shape, or by the one that it was given.

    Files tell the shapes of few values, and a file that was just written is not inferred anew.
    """
    dims = value.shape
    if dims is not None and all(isinstance(dim, int) for dim in dims):
        return prod(dim for dim in dims if isinstance(dim, int))
    node = producer_of(value, *SHAPING)
    shape = node.inputs[1] if node is not None else None
    sizes = ints_of(shape)
    if sizes is not None and min(sizes, default=1) >= 0:
        return prod(sizes)
    return None


def _source(value: ir.Value) -> ir.Value | None:
    """The value that gives another its elements, as many; None where it is the first of them."""
    node = producer_of(value, *KEEPING)
    if node is None:
        return None
    if node.op_type != "Mul":
        return node.inputs[0]
    # of a product the factors, one for each channel, are stored as they are, or stand behind
    made = [each for each in node.inputs if each is not None and each.producer()]
    return made[0] if made else None


def _origin(value: ir.Value) -> ir.Value:
    """The first of the values that have the same elements: of a weight on a grid the codes."""
    while (source := _source(value)) is not None:
        value = source
    return value


def _dtype(value: ir.Value) -> ir.DataType | None:
    """Type of the elements; what unpacks them keeps it, but for casts. None where nothing tells."""
    source: ir.Value | None = value
    while source is not None and source.dtype is None:
        node = source.producer()
        if node is None:
            return None
        if node.op_type == "Cast":
            return ir.DataType(node.attributes.get_int("to", 0))
        # of numbers on a grid the type is that of their scale
        place = 1 if node.op_type == "DequantizeLinear" else 0
        source = node.inputs[place] if place < len(node.inputs) else None
    return None if source is None else source.dtype
