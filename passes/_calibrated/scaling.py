"""Moving one factor a channel from where a value is made into the layers that read it: equal
outputs, other ranges.
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
from .layers import Linear, Rows

HOMOGENEOUS = {"Relu", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool"}
"""Ops for which f(x / s) = f(x) / s, channel by channel, s > 0 (LeakyRelu is one too, and has a
slope to mind).
"""


@dataclass(eq=False)
class Readers:
    """The layers that multiply one value, channels along `axis` of it."""

    value: ir.Value
    layers: list[Linear]
    axis: int

    @property
    def channels(self) -> int:
        return input_channels(self.layers[0])

    @property
    def alone(self) -> bool:
        """Whether nothing but these layers reads the value."""
        return not self.value.is_graph_output() and len(self.value.uses()) == len(
            self.layers
        )


def readers_of(layers: list[Linear]) -> Iterator[Readers]:
    """The layers by the value that they read, in order; Convs and MatMuls of one value are not
    mixed.
    """
    found: dict[tuple[ir.Value, int], Readers] = {}
    for layer in layers:
        axis = 1 if layer.node.op_type == "Conv" else -1
        found.setdefault(
            (layer.input, axis), Readers(layer.input, [], axis)
        ).layers.append(layer)
    yield from found.values()


def input_channels(layer: Linear) -> int:
    """Channels of the layer's input."""
    if layer.node.op_type == "Conv":
        return layer.shape[1] * layer.groups
    return layer.shape[1 - layer.channel_axis]


def input_blocks(layer: Linear) -> Rows:
    """max|w| of each pair of an output and an input channel, as (groups, M / groups, C /
    groups).
    """
    rows = np.abs(layer.rows())
    inputs = input_channels(layer) // layer.groups
    highest: Rows = rows.reshape(layer.groups, -1, inputs, rows.shape[1] // inputs).max(
        axis=3
    )
    return highest


def input_maxima(layer: Linear) -> Rows:
    """max|w| of each input channel: (C,)."""
    highest: Rows = input_blocks(layer).max(axis=1).reshape(-1)
    return highest


def input_energies(layer: Linear) -> Rows:
    """Sum of w^2 of each input channel: (C,)."""
    rows = layer.rows()
    inputs = input_channels(layer) // layer.groups
    energies: Rows = (
        (rows * rows)
        .reshape(layer.groups, -1, inputs, rows.shape[1] // inputs)
        .sum(axis=(1, 3))
    )
    return energies.reshape(-1)


def scale_inputs(layer: Linear, factors: Rows) -> None:
    """Multiply the weights of each input channel by its factor (C,), when they are read."""
    if layer.node.op_type != "Conv":
        _scale(layer.weight, Layout.of(layer.shape, 1 - layer.channel_axis), factors)
        return
    outputs = layer.channels // layer.groups
    pairs = np.repeat(factors.reshape(layer.groups, 1, -1), outputs, axis=1).reshape(-1)
    _scale(layer.weight, Layout(1, pairs.size, layer.width // layer.shape[1]), pairs)


def scale_outputs(layer: Linear, factors: Rows, edit: Edit) -> None:
    """Multiply the weights and the bias of each output channel by its factor (M,)."""
    _scale(layer.weight, Layout.of(layer.shape, layer.channel_axis), factors)
    if layer.bias is not None:
        layer.set_bias(layer.bias_row() * factors, edit)


def _scale(weight: ir.Value, layout: Layout, factors: Rows) -> None:
    tensor, small = weight.const_value, factors.astype(np.float32)
    assert tensor is not None

    def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
        view, channels = layout.view(block, start)
        flat: NDArray[Any] = np.multiply(
            view, small[channels][:, None], dtype=np.float32
        ).reshape(-1)
        return flat

    set_tensor(weight, DerivedTensor(tensor, kernel, ir.DataType.FLOAT, layout.granule))


def source_of(
    readers: Readers, makers: dict[ir.Value, Linear]
) -> Linear | ir.Node | str:
    """What can take a factor for each channel of the value: a layer, a LayerNormalization or Mul;
    or why nothing can.

    `makers`: layers by their output. Looks back through ops that pass factors on, as long as
    nothing else reads.
    """
    if not readers.alone:
        return "something else reads the value too"
    value = readers.value
    while value not in makers:
        node = value.producer()
        if node is None or node.domain != "":
            return "the value is an input, or made by an op of another domain"
        if node.op_type in ("LayerNormalization", "Mul"):
            return (
                node
                if readers.axis == -1 and _parameters(node, readers.channels)
                else "its maker has no factors"
            )
        source = node.inputs[0] if node.inputs else None
        if node.op_type not in HOMOGENEOUS or (
            readers.axis == -1 and node.op_type != "Relu"
        ):
            return f"{node.op_type} makes the value"
        if source is None or not used_once(source):
            return f"the input of {node.op_type} is read elsewhere too"
        value = source
    maker = makers[value]
    same_axis = (maker.node.op_type == "Conv") == (readers.axis == 1)
    return (
        maker
        if same_axis and maker.channels == readers.channels
        else "its maker has other channels"
    )


def _parameters(node: ir.Node, channels: int) -> list[int]:
    """Inputs of a LayerNormalization or Mul that hold one number a channel, all to be scaled; empty
    if it cannot be.
    """
    indices = [i for i in (1, 2) if i < len(node.inputs) and node.inputs[i] is not None]
    if (
        node.op_type == "LayerNormalization"
        and node.attributes.get_int("axis", -1) != -1
    ):
        return []
    if node.op_type == "Mul":
        indices = [i for i in (0, 1) if is_constant(node.inputs[i])][:1]
    for index in indices:
        value = node.inputs[index]
        if value is None or not is_constant(value) or value.const_value is None:
            return []
        if value.dtype != ir.DataType.FLOAT or tuple(
            value.const_value.shape.numpy()
        ) != (channels,):
            return []
    return indices


def scale_parameters(node: ir.Node, factors: Rows, edit: Edit) -> None:
    """Multiply the parameters of a LayerNormalization or the constant of a Mul by a factor for each
    channel.
    """
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for index in _parameters(node, factors.size):
        value = node.inputs[index]
        assert value is not None
        assert value.const_value is not None
        scaled = (value.const_value.numpy().astype(np.float64) * factors).astype(
            np.float32
        )
        if used_once(value):
            set_tensor(value, ir.Tensor(scaled))
        else:
            edit.set_input(
                node, index, edit.constant(graph, scaled, f"{value.name}_scaled")
            )


def insert_mul(readers: Readers, factors: Rows, edit: Edit) -> None:
    """Multiply the value by a factor for each channel in front of these layers only."""
    graph, value = readers.layers[0].node.graph, readers.value
    assert isinstance(graph, ir.Graph)
    constant = edit.constant(
        graph, factors.astype(np.float32), f"{value.name}_smoothing"
    )
    mul = edit.node_before(readers.layers[0].node, "Mul", [value, constant])
    mul.outputs[0].name = edit.fresh(f"{value.name}_smoothed")
    mul.outputs[0].type, mul.outputs[0].shape = value.type, value.shape
    for layer in readers.layers:
        layer.node.replace_input_with(0, mul.outputs[0])
