"""Linear layers of the float graph: their weights as rows, one for each output channel, and their
biases.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Declined, MomentRequest
from .._core.channel_layout import Layout
from .._core.edit import Edit, is_constant, used_once
from .._core.graph import label
from .._core.lazy import DerivedTensor, set_tensor
from .._core.saturation import KernelPairs, kernel_pairs

Rows = NDArray[np.float64]
Codes = NDArray[np.int8]
LARGEST_WIDTH = 8192
"""Inputs of one output channel up to which a Gram matrix (width squared) is affordable: 512 MiB."""


@dataclass(eq=False)
class Linear:
    """A Conv, Gemm or MatMul that multiplies by a constant weight which nothing else uses.

    `channel_axis`: of the weight, its output channels. `bias_add`: the Add that holds a MatMul's
    bias, if any.
    """

    node: ir.Node
    weight: ir.Value
    channel_axis: int
    groups: int
    bias: ir.Value | None
    bias_add: ir.Node | None

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def output(self) -> ir.Value:
        """The value after the bias."""
        return (self.bias_add or self.node).outputs[0]

    @property
    def shape(self) -> tuple[int, ...]:
        assert self.weight.const_value is not None
        return tuple(self.weight.const_value.shape.numpy())

    @property
    def channels(self) -> int:
        return self.shape[self.channel_axis]

    @property
    def width(self) -> int:
        """Inputs of one output channel."""
        return math.prod(self.shape) // max(self.channels, 1)

    @property
    def pairs(self) -> KernelPairs:
        """The columns of `rows` that meet in integer kernels."""
        shape = (
            self.shape
            if self.node.op_type == "Conv" or self.channel_axis
            else self.shape[::-1]
        )
        return kernel_pairs(self.node.op_type, shape, self.groups)

    def rows(self) -> Rows:
        """The weight as (channels, width) in float64."""
        assert self.weight.const_value is not None
        array = self.weight.const_value.numpy().astype(np.float64)
        return np.ascontiguousarray(
            np.moveaxis(array, self.channel_axis, 0).reshape(self.channels, -1)
        )

    def stored(self, rows: NDArray[Any]) -> NDArray[Any]:
        """(channels, width) back in the weight's own shape."""
        shape = self.shape
        first = (
            shape[self.channel_axis],
            *(d for axis, d in enumerate(shape) if axis != self.channel_axis),
        )
        return np.ascontiguousarray(
            np.moveaxis(rows.reshape(first), 0, self.channel_axis)
        )

    def set_rows(self, rows: Rows) -> None:
        """Make (channels, width) the weight, rounded once to float32."""
        set_tensor(self.weight, ir.Tensor(self.stored(rows).astype(np.float32)))

    def set_codes(self, codes: Codes, scales: Rows) -> None:
        """Make codes * scale of each channel the weight; only the codes are held."""
        layout = Layout.of(self.shape, self.channel_axis)
        factors = scales.astype(np.float32)

        def kernel(block: NDArray[Any], start: int) -> NDArray[Any]:
            view, channels = layout.view(block, start)
            flat: NDArray[Any] = np.multiply(
                view, factors[channels][:, None], dtype=np.float32
            ).reshape(-1)
            return flat

        source = ir.Tensor(self.stored(codes), name=self.weight.name)
        set_tensor(
            self.weight,
            DerivedTensor(source, kernel, ir.DataType.FLOAT, layout.granule),
        )

    def bias_row(self) -> Rows:
        """The bias as (channels,) in float64; zeros where there is none."""
        if self.bias is None:
            return np.zeros(self.channels)
        assert self.bias.const_value is not None
        return np.zeros(self.channels) + self.bias.const_value.numpy().astype(
            np.float64
        ).reshape(-1)

    def set_bias(self, row: Rows, edit: Edit) -> None:
        """Make (channels,) the bias; a node without one is given it (a MatMul an Add behind it)."""
        array = row.astype(np.float32)
        if (
            self.bias is not None
            and used_once(self.bias)
            and not self.bias.is_graph_input()
        ):
            assert self.bias.const_value is not None
            shape = tuple(self.bias.const_value.shape.numpy())
            set_tensor(
                self.bias,
                ir.Tensor(
                    array.reshape(
                        shape if math.prod(shape) == array.size else array.shape
                    )
                ),
            )
            return
        graph = self.node.graph
        assert isinstance(graph, ir.Graph)
        value = edit.constant(graph, array, f"{self.weight.name}_bias")
        if self.bias_add is not None:
            edit.set_input(
                self.bias_add, list(self.bias_add.inputs).index(self.bias), value
            )
        elif self.node.op_type == "MatMul":
            self.bias_add = _add_behind(self.node, value, edit)
        else:
            edit.set_input(self.node, 2, value)
        self.bias = value

    def request(self, kind: Any) -> MomentRequest:
        """The moment `kind` of what this layer multiplies."""
        return input_request(self.node, self.shape, self.groups, kind)


def input_request(
    node: ir.Node, shape: tuple[int, ...], groups: int, kind: Any
) -> MomentRequest:
    """The moment `kind` of what a Conv, Gemm or MatMul with a weight of that shape multiplies."""
    value = node.inputs[0]
    assert value is not None
    assert value.name is not None
    if node.op_type != "Conv":
        return MomentRequest(value.name, kind)
    rank = len(shape) - 2
    ones = (1,) * rank
    return MomentRequest(
        value.name,
        kind,
        axis=1,
        kernel=shape[2:],
        groups=groups,
        strides=tuple(node.attributes.get_ints("strides") or ones),
        pads=tuple(node.attributes.get_ints("pads") or (0,) * 2 * rank),
        dilations=tuple(node.attributes.get_ints("dilations") or ones),
    )


def linear_layers(model: ir.Model) -> tuple[list[Linear], list[Declined]]:
    """The linear layers of the main graph, in order, and why the others are none."""
    layers: list[Linear] = []
    declined: list[Declined] = []
    for node in model.graph:
        if node.domain != "" or node.op_type not in ("Conv", "Gemm", "MatMul"):
            continue
        if not any(
            v is not None and v.const_value is not None for v in node.inputs[:2]
        ):
            continue
        found = _linear(node)
        if isinstance(found, Linear):
            layers.append(found)
        else:
            declined.append(Declined(label(node), found))
    return layers, declined


def _linear(node: ir.Node) -> Linear | str:
    weight, bias = node.inputs[1], node.inputs[2] if len(node.inputs) > 2 else None
    problem = _problem(node, weight)
    if problem is not None:
        return problem
    assert weight is not None
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    if node.op_type == "Conv":
        layer = Linear(node, weight, 0, node.attributes.get_int("group", 1), bias, None)
    elif node.op_type == "Gemm":
        layer = Linear(
            node,
            weight,
            0 if node.attributes.get_int("transB", 0) else 1,
            1,
            bias,
            None,
        )
    else:
        add, bias = _bias_behind(node.outputs[0], shape[1])
        return Linear(node, weight, 1, 1, bias, add)
    if bias is not None and (
        not is_constant(bias) or _one_axis(bias) not in (1, layer.channels)
    ):
        return "its bias is computed at run time, or not one number a channel"
    return layer


def _problem(node: ir.Node, weight: ir.Value | None) -> str | None:
    if weight is None or not is_constant(weight):
        return "its weight is not a constant"
    assert weight.const_value is not None
    rank = len(weight.const_value.shape.numpy())
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype}, not FLOAT"
    if weight.const_value.size == 0:
        return "its weight is empty"
    if not used_once(weight):
        return f"weight '{weight.name}' is shared"
    if node.inputs[0] is None or node.inputs[0].const_value is not None:
        return "its input is constant"
    if node.op_type == "Conv" and node.attributes.get_string(
        "auto_pad", "NOTSET"
    ) not in ("NOTSET", "VALID"):
        return "its padding follows its input's size (auto_pad)"
    if node.op_type == "MatMul" and rank != 2:
        return f"its weight has rank {rank}, not 2"
    plain = (
        node.attributes.get_float("alpha", 1.0)
        == 1.0
        == node.attributes.get_float("beta", 1.0)
    )
    if node.op_type == "Gemm" and (
        node.attributes.get_int("transA", 0) != 0 or not plain
    ):
        return "transA, alpha or beta is set"
    return None


def _bias_behind(
    output: ir.Value, channels: int
) -> tuple[ir.Node | None, ir.Value | None]:
    """The Add of one constant a channel that alone reads `output`, and the constant."""
    uses = list(output.uses())
    if (
        len(uses) != 1
        or output.is_graph_output()
        or uses[0].node.op_type != "Add"
        or uses[0].node.domain != ""
    ):
        return None, None
    other = uses[0].node.inputs[1 - uses[0].idx]
    if other is None or not is_constant(other) or _one_axis(other) != channels:
        return None, None
    return uses[0].node, other


def _one_axis(value: ir.Value) -> int | None:
    """Elements of a constant that varies along its last axis only."""
    assert value.const_value is not None
    shape = value.const_value.shape.numpy()
    return (
        int(shape[-1])
        if shape and math.prod(shape) == shape[-1]
        else (1 if math.prod(shape) == 1 else None)
    )


def _add_behind(node: ir.Node, bias: ir.Value, edit: Edit) -> ir.Node:
    """An Add of `bias` that everything which read the node's output reads instead."""
    old, graph = node.outputs[0], node.graph
    assert graph is not None
    add = ir.node("Add", [bias, bias], name=edit.fresh(f"{node.name or 'MatMul'}_bias"))
    add.outputs[0].name = edit.fresh(f"{old.name}_biased")
    graph.insert_after(node, add)
    edit.replace(old, add.outputs[0])
    old.type, old.shape = add.outputs[0].type, add.outputs[0].shape
    add.replace_input_with(0, old)
    return add
