"""Layers that integer kernels run, whoever quantized them: where their 8-bit weights are, and which
pairs saturate.

Found are layers between Q/DQ nodes and the integer operators themselves, of ONNX and of
com.microsoft. A layer counts where unsigned 8-bit activations meet signed 8-bit weights: in other
types no kernel saturates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import onnx_ir as ir

from .saturation import KernelPairs, kernel_pairs

QDQ_OPS = frozenset({"Conv", "Gemm", "MatMul"})


@dataclass(frozen=True)
class Slots:
    """Which inputs of an integer operator hold what; None where it has no such input."""

    data: int
    data_zero: int | None
    weight: int
    scale: int | None
    zero: int | None
    bias: int | None = None


INTEGER_OPS: dict[str, Slots] = {
    "QLinearConv": Slots(0, 2, 3, 4, 5, 8),
    "QLinearMatMul": Slots(0, 2, 3, 4, 5),
    "QGemm": Slots(0, 2, 3, 4, 5, 6),
    "MatMulInteger": Slots(0, 2, 1, None, 3),
    "MatMulIntegerToFloat": Slots(0, 4, 1, 3, 5, 6),
    "DynamicQuantizeMatMul": Slots(0, None, 1, 2, 3, 4),
}
"""Operators whose kernels multiply 8-bit weights in pairs."""


Place = tuple[ir.Node, int]
"""An input of a node."""


@dataclass(frozen=True, eq=False)
class IntegerLayer:
    """A node that multiplies unsigned 8-bit activations by a constant of signed 8-bit codes.

    `codes`: where they are read; `channel_axis`: their output channels. `scale`, `zero`, `bias`:
    where those of the weight are read, None where there are none. `dequantize`: the
    DequantizeLinear of the weight, None for an integer operator.
    """

    node: ir.Node
    codes: Place
    channel_axis: int
    scale: Place | None
    zero: Place | None
    bias: Place | None
    dequantize: ir.Node | None

    @property
    def stored(self) -> ir.Value:
        """The value that holds the codes."""
        value = value_at(self.codes)
        assert value is not None
        return value

    @property
    def tensor(self) -> ir.TensorProtocol:
        assert self.stored.const_value is not None
        return self.stored.const_value

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(int(d) for d in self.tensor.shape.numpy())

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def width(self) -> int:
        """Inputs of one output channel."""
        return math.prod(self.shape) // self.shape[self.channel_axis]

    @property
    def pairs(self) -> KernelPairs:
        """The columns of the codes' rows that meet in integer kernels."""
        flipped = "Conv" not in self.node.op_type and self.channel_axis == 0
        return kernel_pairs(
            self.node.op_type, self.shape[::-1] if flipped else self.shape, self.groups
        )


def value_at(place: Place | None) -> ir.Value | None:
    """What is read there."""
    if place is None:
        return None
    node, index = place
    return node.inputs[index] if index < len(node.inputs) else None


def integer_layers(nodes: Iterable[ir.Node]) -> Iterator[IntegerLayer]:
    """Every such layer among the nodes, in their order."""
    for node in nodes:
        found = _operator(node) if node.op_type in INTEGER_OPS else _between_pairs(node)
        if found is not None:
            yield found


def _operator(node: ir.Node) -> IntegerLayer | None:
    slots = INTEGER_OPS[node.op_type]
    codes = _input(node, slots.weight)
    if not _is_signed_constant(codes) or not _reads_unsigned(node, slots):
        return None
    assert codes is not None
    flipped = node.op_type == "QGemm" and bool(node.attributes.get_int("transB", 0))
    first = "Conv" in node.op_type or flipped
    scale, zero, bias = (
        None if index is None else (node, index)
        for index in (slots.scale, slots.zero, slots.bias)
    )
    if node.op_type == "MatMulInteger":
        scale = _scale_behind(node.outputs[0])
    return IntegerLayer(
        node,
        (node, slots.weight),
        0 if first else _last_axis(codes),
        scale,
        zero,
        bias,
        None,
    )


def _scale_behind(product: ir.Value) -> Place | None:
    """Where a product of integers, cast to float, is multiplied by a constant: at once or as part
    of a product.
    """
    for cast in product.consumers():
        for scaled in cast.outputs[0].consumers() if cast.op_type == "Cast" else ():
            if scaled.op_type != "Mul":
                continue
            for index, value in enumerate(scaled.inputs):
                if _is_constant(value):
                    return scaled, index
                maker = value.producer() if value is not None else None
                if maker is not None and maker.op_type == "Mul":
                    found = [
                        (maker, i)
                        for i, v in enumerate(maker.inputs)
                        if _is_constant(v)
                    ]
                    if found:
                        return found[0]
    return None


def _reads_unsigned(node: ir.Node, slots: Slots) -> bool:
    """Whether the data is uint8: its own type says so, or that of its zero point; some operators
    quantize floats.
    """
    if node.op_type == "DynamicQuantizeMatMul":
        return True
    data = _input(node, slots.data)
    zero = _input(node, slots.data_zero) if slots.data_zero is not None else None
    maker = data.producer() if data is not None else None
    if maker is not None and maker.op_type == "DynamicQuantizeLinear":
        return True
    given = (
        _input(maker, 2)
        if maker is not None and maker.op_type == "QuantizeLinear"
        else None
    )
    return all(v is None or v.dtype != ir.DataType.INT8 for v in (data, zero, given))


def _between_pairs(node: ir.Node) -> IntegerLayer | None:
    """A float node whose data and weight are both dequantized, the weight from a constant."""
    if node.op_type not in QDQ_OPS or node.domain not in ("", "ai.onnx"):
        return None
    data, weight = _dequantizer(_input(node, 0)), _input(node, 1)
    maker = weight.producer() if weight is not None else None
    flipped = (
        maker is not None and maker.op_type == "Transpose" and node.op_type == "MatMul"
    )
    dequantize = (
        _dequantizer(maker.inputs[0])
        if flipped and maker is not None
        else _dequantizer(weight)
    )
    if data is None or dequantize is None or not _is_unsigned(data):
        return None
    codes = dequantize.inputs[0]
    if not _is_signed_constant(codes):
        return None
    assert codes is not None
    if dequantize.attributes.get_int("block_size", 0):
        return None  # blocked weights have kernels of their own
    first = (
        node.op_type == "Conv" or bool(node.attributes.get_int("transB", 0)) != flipped
    )
    bias = (
        _added_integers(node)
        if node.op_type == "MatMul"
        else (node, 2)
        if _input(node, 2) is not None
        else None
    )
    axis = 0 if first else _last_axis(codes)
    return IntegerLayer(
        node, (dequantize, 0), axis, (dequantize, 1), (dequantize, 2), bias, dequantize
    )


def _added_integers(node: ir.Node) -> Place | None:
    """Where a dequantized bias of whole numbers is added behind a MatMul: runtimes make one kernel
    of both.
    """
    users = node.outputs[0].consumers()
    if len(users) != 1 or users[0].op_type != "Add":
        return None
    for index, value in enumerate(users[0].inputs):
        maker = _dequantizer(value)
        if (
            maker is not None
            and maker.inputs[0] is not None
            and maker.inputs[0].dtype == ir.DataType.INT32
        ):
            return users[0], index
    return None


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    maker = value.producer() if value is not None else None
    return maker if maker is not None and maker.op_type == "DequantizeLinear" else None


def _is_unsigned(dequantize: ir.Node) -> bool:
    """Whether a DequantizeLinear reads uint8: its zero point says so, or what quantized its
    input.
    """
    known = [
        v.dtype
        for v in dequantize.inputs
        if v is not None and v.dtype in (ir.DataType.UINT8, ir.DataType.INT8)
    ]
    if known:
        return known[0] == ir.DataType.UINT8
    value = dequantize.inputs[0]
    maker = value.producer() if value is not None else None
    zero = (
        _input(maker, 2)
        if maker is not None and maker.op_type == "QuantizeLinear"
        else None
    )
    return zero is None or zero.dtype != ir.DataType.INT8


def _is_signed_constant(value: ir.Value | None) -> bool:
    """Whether a value is a constant matrix or more of int8."""
    if value is None or value.const_value is None or not _is_constant(value):
        return False
    tensor = value.const_value
    return (
        tensor.dtype == ir.DataType.INT8
        and len(tensor.shape.numpy()) > 1
        and tensor.size > 0
    )


def _is_constant(value: ir.Value | None) -> bool:
    return (
        value is not None and value.const_value is not None and value.producer() is None
    )


def _last_axis(value: ir.Value) -> int:
    assert value.const_value is not None
    return len(value.const_value.shape.numpy()) - 1


def _input(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None
