"""One factor a channel, moved from where a value is made into the layers that read it.

Outputs stay equal, ranges change: f(x / s) = f(x) / s and (W * s) (x / s) = W x.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_layout import Layout
from .._core.edit import Edit, is_constant, used_once
from .._core.lazy import DerivedTensor, set_tensor
from .._core.linear import LinearLayer
from .._core.ops import is_standard
from .layers import PerChannel, Rows

HOMOGENEOUS = frozenset(
    {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
)
"""Ops for which f(x / s) = f(x) / s, channel by channel, s > 0 (LeakyRelu is one too, and has a
slope to mind).
"""


NORMALIZATIONS = ("LayerNormalization", "RMSNormalization")
"""Ops whose parameters, one a channel, take factors; over the last axis, and no others."""


@dataclass(frozen=True)
class Smoothing:
    """Divisors of the channels, (C,), and the fall in dB of the noise of what is rounded."""

    factors: PerChannel
    gain: float


@dataclass(eq=False)
class Readers:
    """The layers that multiply one value, channels along `axis` of it."""

    value: ir.Value
    layers: list[LinearLayer]
    axis: int

    @property
    def channels(self) -> int:
        """Channels of the value."""
        return input_channels(self.layers[0])

    @property
    def alone(self) -> bool:
        """True if nothing but these layers reads the value."""
        if self.value.is_graph_output():
            return False
        return len(self.value.uses()) == len(self.layers)


def readers_of(layers: list[LinearLayer]) -> Iterator[Readers]:
    """The layers by the value that they read, in order.

    Convs and MatMuls of one value are not mixed: their channels lie along different axes.
    """
    found: dict[tuple[ir.Value, int], Readers] = {}
    for layer in layers:
        # images have channels behind the batch, rows at their end
        axis = 1 if layer.node.op_type == "Conv" else -1
        key = (layer.input, axis)
        if key not in found:
            found[key] = Readers(
                layer.input,
                [],
                axis,
            )
        found[key].layers.append(layer)
    yield from found.values()


# --- weights by input channel ---------------------------------------------------


def input_channels(layer: LinearLayer) -> int:
    """Channels of the layer's input."""
    if layer.node.op_type == "Conv":
        return layer.shape[1] * layer.groups
    return layer.shape[1 - layer.channel_axis]


def _by_channels(layer: LinearLayer) -> Rows:
    """The weight as (groups, M / groups, C / groups, *K flattened)."""
    rows = layer.rows()
    inputs = input_channels(layer) // layer.groups
    kernel = rows.shape[1] // inputs
    return rows.reshape(layer.groups, -1, inputs, kernel)


def input_blocks(layer: LinearLayer) -> Rows:
    """max|w| of each pair of an output and an input channel: (groups, M / groups, C / groups)."""
    highest: Rows = np.abs(_by_channels(layer)).max(axis=3)
    return highest


def input_maxima(layer: LinearLayer) -> PerChannel:
    """max|w| of each input channel: (C,)."""
    highest: PerChannel = input_blocks(layer).max(axis=1)
    return highest.reshape(-1)


def input_energies(layer: LinearLayer) -> PerChannel:
    """Sum of w^2 of each input channel: (C,)."""
    weights = _by_channels(layer)
    energies: PerChannel = (weights * weights).sum(axis=(1, 3))
    return energies.reshape(-1)


def scale_inputs(layer: LinearLayer, factors: PerChannel) -> None:
    """Multiply the weights of each input channel by its factor (C,), when they are read."""
    if layer.node.op_type != "Conv":
        layout = Layout.of(layer.shape, 1 - layer.channel_axis)
        _scale(layer.weight, layout, factors)
        return
    # (M, C / groups) of a Conv as one axis: each output channel reads the channels of its group
    outputs = layer.channels // layer.groups
    by_group = factors.reshape(layer.groups, 1, -1)
    pairs = np.repeat(by_group, outputs, axis=1).reshape(-1)
    kernel = layer.width // layer.shape[1]
    _scale(
        layer.weight,
        Layout(1, pairs.size, kernel),
        pairs,
    )


def scale_outputs(layer: LinearLayer, factors: PerChannel, edit: Edit) -> None:
    """Multiply the weights and the bias of each output channel by its factor (M,)."""
    layout = Layout.of(layer.shape, layer.channel_axis)
    _scale(layer.weight, layout, factors)
    if layer.bias is not None:
        layer.set_bias(layer.bias_row() * factors, edit)


def _scale(weight: ir.Value, layout: Layout, factors: PerChannel) -> None:
    tensor = weight.const_value
    assert tensor is not None
    small = factors.astype(np.float32)

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, channels = layout.view(block, start)
        # a block holds some channels: the layout tells which
        column = small[channels][:, None]
        scaled: NDArray[Any] = np.multiply(
            view,
            column,
            dtype=np.float32,
        )
        return scaled.reshape(-1)

    scaled = DerivedTensor(
        tensor,
        kernel,
        ir.DataType.FLOAT,
        layout.granule,
    )
    set_tensor(weight, scaled)


# --- where a value is made ------------------------------------------------------


def source_of(
    readers: Readers,
    makers: dict[ir.Value, LinearLayer],
) -> LinearLayer | ir.Node | str:
    """The layer, normalization or Mul that can take a factor for each channel of the value.

    Or the reason why nothing can. `makers`: layers by their output. Looks back through ops that
    pass factors on, as long as nothing else reads.
    """
    if not readers.alone:
        return "something else reads the value too, and would need it unscaled"
    value = readers.value
    while value not in makers:
        node = value.producer()
        if node is None or not is_standard(node):
            return "the value is an input of the model, or no operator of ONNX makes it"
        if node.op_type in (*NORMALIZATIONS, "Mul"):
            if readers.axis == -1 and _parameters(node, readers.channels):
                return node
            factor = _scalable_factor(node, readers, makers)
            if factor is None:
                return (
                    "the node that makes the value has no parameters to hold the scales"
                )
            return factor
        # pooling runs over the last axes, where the channels of a MatMul lie
        passing = HOMOGENEOUS if readers.axis == 1 else {"Relu"}
        if node.op_type not in passing:
            return f"the value comes from {node.op_type}, which cannot take the scales"
        source = node.inputs[0]
        if source is None or not used_once(source):
            return f"the input of {node.op_type} is read elsewhere too"
        value = source
    maker = makers[value]
    is_conv = maker.node.op_type == "Conv"
    same_axis = is_conv == (readers.axis == 1)
    if same_axis and maker.channels == readers.channels:
        return maker
    return "the layer that makes the value has other channels"


def _scalable_factor(
    node: ir.Node, readers: Readers, makers: dict[ir.Value, LinearLayer]
) -> LinearLayer | None:
    """A layer that makes one of the two factors of a product, for nothing else."""
    # the channels of a Conv are counted from the front, which products of other ranks shift
    if node.op_type != "Mul" or readers.axis != -1:
        return None
    # of two, the one that comes as it is: the other has a bend behind it, as a gate has
    for value in reversed(node.inputs):
        if value is None or value not in makers or not used_once(value):
            continue
        maker = makers[value]
        if maker.node.op_type != "Conv" and maker.channels == readers.channels:
            return maker
    return None


def _parameters(node: ir.Node, channels: int) -> list[int]:
    """Inputs of a normalization or Mul that hold one number a channel, all to be scaled.

    Empty if the node cannot take factors.
    """
    if node.op_type == "Mul":
        constants = [i for i in (0, 1) if is_constant(node.inputs[i])]
        indices = constants[:1]
    elif node.attributes.get_int("axis", -1) != -1:
        return []
    else:
        present = range(1, min(len(node.inputs), 3))
        indices = [i for i in present if node.inputs[i] is not None]
    for index in indices:
        if not _is_one_a_channel(node.inputs[index], channels):
            return []
    return indices


def _is_one_a_channel(value: ir.Value | None, channels: int) -> bool:
    if value is None or not is_constant(value) or value.const_value is None:
        return False
    if value.dtype != ir.DataType.FLOAT:
        return False
    shape = tuple(value.const_value.shape.numpy())
    return shape == (channels,)


def scale_parameters(node: ir.Node, factors: PerChannel, edit: Edit) -> None:
    """Multiply parameters of a normalization, or the constant of a Mul, by factors (C,)."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index in _parameters(node, factors.size):
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        wide = value.const_value.numpy().astype(np.float64)
        scaled = (wide * factors).astype(np.float32)
        # a parameter that others read too stays for them
        if used_once(value):
            set_tensor(value, ir.Tensor(scaled))
        else:
            constant = edit.constant(
                graph,
                scaled,
                f"{value.name}_scaled",
            )
            edit.set_input(node, index, constant)


def insert_mul(readers: Readers, factors: PerChannel, edit: Edit) -> None:
    """Multiply the value by a factor for each channel in front of these layers only."""
    value = readers.value
    first = readers.layers[0].node
    graph = first.graph
    assert isinstance(graph, ir.Graph)
    small = factors.astype(np.float32)
    constant = edit.constant(
        graph,
        small,
        f"{value.name}_smoothing",
    )
    mul = edit.node_before(
        first,
        "Mul",
        [value, constant],
    )
    product = mul.outputs[0]
    product.name = edit.fresh(f"{value.name}_smoothed")
    # shapes are not inferred anew: the product is like the value
    product.type = value.type
    product.shape = value.shape
    for layer in readers.layers:
        layer.node.replace_input_with(0, product)
