"""Layers that integer kernels run, whoever quantized them, and the places of their weights.

Found are layers between Q/DQ nodes and the integer operators themselves, of ONNX and of
com.microsoft. A layer counts where unsigned 8-bit activations meet signed 8-bit weights: in other
types no kernel saturates.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .channel_layout import Layout
from .graph import all_nodes, input_of, label
from .linear import LINEAR_OPS
from .ops import is_standard
from .saturation import LIMITED, KernelPairs, kernel_pairs, map_rows, offending


@dataclass(frozen=True)
class OperandIndices:
    """Inputs of an integer operator by what they hold; None where it has no such input."""

    data: int
    data_zero: int | None
    weight: int
    scale: int | None
    zero: int | None
    bias: int | None = None


INTEGER_OPS: dict[str, OperandIndices] = {
    "QLinearConv": OperandIndices(0, 2, 3, 4, 5, 8),
    "QLinearMatMul": OperandIndices(0, 2, 3, 4, 5),
    "QGemm": OperandIndices(0, 2, 3, 4, 5, 6),
    "MatMulInteger": OperandIndices(0, 2, 1, None, 3),
    "MatMulIntegerToFloat": OperandIndices(0, 4, 1, 3, 5, 6),
    "DynamicQuantizeMatMul": OperandIndices(0, None, 1, 2, 3, 4),
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
        dims = self.tensor.shape.numpy()
        return tuple(int(dim) for dim in dims)

    @property
    def groups(self) -> int:
        return self.node.attributes.get_int("group", 1)

    @property
    def width(self) -> int:
        """Inputs of one output channel."""
        channels = self.shape[self.channel_axis]
        return math.prod(self.shape) // channels

    @property
    def pairs(self) -> KernelPairs:
        """The columns of the codes' rows that meet in integer kernels."""
        # a transposed matrix stores (N, K) where kernels read (K, N)
        shape = self.shape
        if "Conv" not in self.node.op_type and self.channel_axis == 0:
            shape = shape[::-1]
        return kernel_pairs(self.node.op_type, shape, self.groups)


def value_at(place: Place | None) -> ir.Value | None:
    """The value that is read at a place."""
    if place is None:
        return None
    node, index = place
    return input_of(node, index)


def integer_layers(nodes: Iterable[ir.Node]) -> Iterator[IntegerLayer]:
    """Every such layer among the nodes, in their order."""
    for node in nodes:
        found = _operator(node) if node.op_type in INTEGER_OPS else _between_pairs(node)
        if found is not None:
            yield found


def _operator(node: ir.Node) -> IntegerLayer | None:
    operands = INTEGER_OPS[node.op_type]
    codes = input_of(node, operands.weight)
    if not _is_signed_constant(codes) or not _reads_unsigned(node, operands):
        return None
    assert codes is not None
    is_transposed = bool(node.attributes.get_int("transB", 0))
    channels_first = "Conv" in node.op_type
    if node.op_type == "QGemm":
        channels_first = is_transposed
    scale = _place(node, operands.scale)
    # its product is scaled by nodes behind it
    if node.op_type == "MatMulInteger":
        scale = _scale_behind(node.outputs[0])
    return IntegerLayer(
        node,
        codes=(node, operands.weight),
        channel_axis=0 if channels_first else _last_axis(codes),
        scale=scale,
        zero=_place(node, operands.zero),
        bias=_place(node, operands.bias),
        dequantize=None,
    )


def _place(node: ir.Node, index: int | None) -> Place | None:
    return None if index is None else (node, index)


def _scale_behind(product: ir.Value) -> Place | None:
    """The constant by which a product of integers, cast to float, is multiplied.

    At once, or as part of a product: x_scale * w_scale.
    """
    for cast in product.consumers():
        if cast.op_type != "Cast":
            continue
        for scaled in cast.outputs[0].consumers():
            if scaled.op_type != "Mul":
                continue
            found = _constant_factor(scaled)
            if found is not None:
                return found
    return None


def _constant_factor(scaled: ir.Node) -> Place | None:
    """The constant input of a Mul, or of a Mul that makes one of its inputs."""
    for index, value in enumerate(scaled.inputs):
        if _is_constant(value):
            return scaled, index
        inner = value.producer() if value is not None else None
        if inner is None or inner.op_type != "Mul":
            continue
        for place, factor in enumerate(inner.inputs):
            if _is_constant(factor):
                return inner, place
    return None


def _reads_unsigned(node: ir.Node, operands: OperandIndices) -> bool:
    """True if the data is uint8: its own type says so, or that of its zero point.

    Some operators quantize floats themselves, to uint8.
    """
    if node.op_type == "DynamicQuantizeMatMul":
        return True
    data = input_of(node, operands.data)
    producer = data.producer() if data is not None else None
    if producer is not None and producer.op_type == "DynamicQuantizeLinear":
        return True
    signs = [data]
    if operands.data_zero is not None:
        signs.append(input_of(node, operands.data_zero))
    if producer is not None and producer.op_type == "QuantizeLinear":
        signs.append(input_of(producer, 2))
    types = [value.dtype for value in signs if value is not None]
    # uint8 is the default where nothing says otherwise
    return ir.DataType.INT8 not in types


def _between_pairs(node: ir.Node) -> IntegerLayer | None:
    """A float node whose data and weight are both dequantized, the weight from a constant."""
    if not is_standard(node, *LINEAR_OPS):
        return None
    data = _dequantizer(input_of(node, 0))
    weight = input_of(node, 1)
    is_flipped = False
    if node.op_type == "MatMul":
        transpose = weight.producer() if weight is not None else None
        if transpose is not None and transpose.op_type == "Transpose":
            is_flipped = True
            weight = transpose.inputs[0]
    dequantize = _dequantizer(weight)
    if data is None or dequantize is None or not _is_unsigned(data):
        return None
    codes = dequantize.inputs[0]
    if not _is_signed_constant(codes):
        return None
    assert codes is not None
    # blocked weights have kernels of their own
    if dequantize.attributes.get_int("block_size", 0):
        return None
    is_transposed = bool(node.attributes.get_int("transB", 0))
    channels_first = node.op_type == "Conv" or is_transposed != is_flipped
    return IntegerLayer(
        node,
        codes=(dequantize, 0),
        channel_axis=0 if channels_first else _last_axis(codes),
        scale=(dequantize, 1),
        zero=(dequantize, 2),
        bias=_bias(node),
        dequantize=dequantize,
    )


def _bias(node: ir.Node) -> Place | None:
    if node.op_type == "MatMul":
        return _added_integers(node)
    return None if input_of(node, 2) is None else (node, 2)


def _added_integers(node: ir.Node) -> Place | None:
    """The dequantized int32 bias added behind a MatMul: runtimes make one kernel of both."""
    users = node.outputs[0].consumers()
    if len(users) != 1:
        return None
    if users[0].op_type != "Add":
        return None
    for index, value in enumerate(users[0].inputs):
        dequantize = _dequantizer(value)
        if dequantize is None or dequantize.inputs[0] is None:
            continue
        if dequantize.inputs[0].dtype == ir.DataType.INT32:
            return users[0], index
    return None


def _dequantizer(value: ir.Value | None) -> ir.Node | None:
    """The DequantizeLinear that makes a value, of ONNX or of com.microsoft."""
    node = value.producer() if value is not None else None
    if node is None or node.op_type != "DequantizeLinear":
        return None
    return node


def _is_unsigned(dequantize: ir.Node) -> bool:
    """True if a DequantizeLinear reads uint8.

    Its input or zero point says so, or the zero point of the QuantizeLinear before it.
    """
    for value in dequantize.inputs:
        if value is None:
            continue
        if value.dtype == ir.DataType.UINT8:
            return True
        if value.dtype == ir.DataType.INT8:
            return False
    data = dequantize.inputs[0]
    quantize = data.producer() if data is not None else None
    if quantize is None or quantize.op_type != "QuantizeLinear":
        return True
    zero = input_of(quantize, 2)
    if zero is None:
        return True
    return zero.dtype != ir.DataType.INT8


def _is_signed_constant(value: ir.Value | None) -> bool:
    """True if a value is a constant of int8 with two axes or more."""
    if value is None:
        return False
    if value.const_value is None:
        return False
    if not _is_constant(value):
        return False
    tensor = value.const_value
    if tensor.dtype != ir.DataType.INT8:
        return False
    if tensor.size == 0:
        return False
    return len(tensor.shape.numpy()) > 1


def _is_constant(value: ir.Value | None) -> bool:
    if value is None or value.const_value is None:
        return False
    return value.producer() is None


def _last_axis(value: ir.Value) -> int:
    assert value.const_value is not None
    return len(value.const_value.shape.numpy()) - 1


# pairs that may saturate


def offending_pairs(model: ir.Model) -> dict[str, int]:
    """Number of pairs that may saturate on x86 CPUs without VNNI, by layer.

    Layers without any are left out.
    """
    counts: dict[str, int] = {}
    for layer in integer_layers(all_nodes(model)):
        found = offending_in(layer)
        if found:
            name = label(layer.node)
            # layers of different graphs may have one name
            counts[name] = counts.get(name, 0) + found
    return counts


def weight_pairs(model: ir.Model) -> int:
    """Number of pairs of 8-bit weights in all integer layers of a model."""
    total = 0
    for layer in integer_layers(all_nodes(model)):
        channels = layer.shape[layer.channel_axis]
        total += layer.pairs.count * channels
    return total


def offending_in(layer: IntegerLayer) -> int:
    """Number of pairs of one layer that saturate for some input."""
    pairs = layer.pairs
    if not pairs.count:
        return 0
    layout = Layout.of(layer.shape, layer.channel_axis)
    # codes that are still to be computed, by a kernel that leaves none
    kept_layout, kept_pairs = layer.tensor.meta.get(LIMITED, (None, None))
    if kept_pairs is pairs and kept_layout == layout:
        return 0

    def count(rows: NDArray[Any], channels: slice) -> int:
        within = pairs.of_part(rows.shape[1])
        return int(np.count_nonzero(offending(rows, within)))

    return sum(map_rows(count, layer.tensor, layout, pairs))
