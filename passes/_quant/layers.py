"""Finding what can run in int8: a layer is a heavy node with its weight, its bias and the
activation folded into it.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._base import Declined
from .._core.ops import WEIGHTED_OPS
from .._core.saturation import KernelPairs, kernel_pairs
from .._core.targets import Heavy, QuantRules


@dataclass(eq=False)
class Layer:
    """A node that multiplies by a constant weight, ready to be quantized.

    `bias_add`: the Add that holds a MatMul's bias. `output`: the value after the bias and the
    folded activation.
    """

    node: ir.Node
    rule: Heavy
    weight: ir.Value
    channel_axis: int
    bias: ir.Value | None
    bias_add: ir.Node | None
    output: ir.Value

    @property
    def input(self) -> ir.Value:
        value = self.node.inputs[0]
        assert value is not None
        return value

    @property
    def name(self) -> str:
        return label(self.node)

    @property
    def tensor(self) -> ir.TensorProtocol:
        """The weight's values."""
        assert self.weight.const_value is not None
        return self.weight.const_value

    @property
    def weight_axis(self) -> int:
        """The output channel axis of the weight, counted from the front."""
        return self.channel_axis % len(self.tensor.shape.numpy())

    @property
    def pairs(self) -> KernelPairs:
        """The columns of the weight's rows that meet in integer kernels."""
        shape = tuple(self.tensor.shape.numpy())
        flipped = self.node.op_type != "Conv" and self.weight_axis == 0
        return kernel_pairs(
            self.node.op_type,
            shape[::-1] if flipped else shape,
            int_attribute(self.node, "group", 1),
        )

    def bias_array(self) -> np.ndarray | None:
        """The bias as (channels,) float32, or None."""
        if self.bias is None or self.bias.const_value is None:
            return None
        channels = self.tensor.shape.numpy()[self.channel_axis]
        flat = self.bias.const_value.numpy().astype(np.float32).reshape(-1)
        return np.broadcast_to(flat, (channels,)) if flat.size == 1 else flat


def label(node: ir.Node) -> str:
    """How reports name a node: its op type and its name, or its first output's name where it has
    none.
    """
    return (
        f"{node.op_type} {node.name or (node.outputs[0].name if node.outputs else '')}"
    )


def find_layers(
    nodes: Iterable[ir.Node],
    rules: QuantRules,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> tuple[list[Layer], list[Declined]]:
    """The layers among `nodes` that the target's rules and the name patterns allow; a reason for
    each other one.
    """
    layers: list[Layer] = []
    declined: list[Declined] = []
    for node in heavy_nodes(nodes):
        found = _layer(node, rules, include, exclude)
        if isinstance(found, Layer):
            layers.append(found)
        else:
            declined.append(Declined(label(node), found))
    return layers, declined


def _has_weight(node: ir.Node) -> bool:
    """Whether the node multiplies by anything but activations: attention's MatMuls are no
    layers.
    """
    for index in WEIGHTED_OPS[node.op_type].weights:
        value = node.inputs[index] if index < len(node.inputs) else None
        producer = value.producer() if value is not None else None
        if value is not None and (
            value.is_initializer()
            or (producer and producer.op_type == "DequantizeLinear")
        ):
            return True
    return node.op_type not in ("MatMul", "Gemm")


def _layer(
    node: ir.Node,
    rules: QuantRules,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
) -> Layer | str:
    if node.op_type not in rules.heavy:
        return f"the target has no int8 {node.op_type}"
    rule = rules.heavy[node.op_type]
    weight = node.inputs[rule.weight]
    problem = (
        _name_problem(node, include, exclude)
        or _weight_problem(weight)
        or _form_problem(node, weight)
    )
    if problem:
        return problem
    assert weight is not None
    assert weight.const_value is not None
    axis = rule.channel_axis
    if node.op_type == "Gemm" and int_attribute(node, "transB", 0):
        axis = 0
    channels = weight.const_value.shape.numpy()[axis]
    bias = (
        node.inputs[rule.bias]
        if rule.bias is not None and rule.bias < len(node.inputs)
        else None
    )
    bias_add = None
    output = node.outputs[0]
    if node.op_type == "MatMul":
        bias_add, bias = _following_bias(output, channels)
        output = bias_add.outputs[0] if bias_add else output
    elif bias is not None and _constant_size(bias) not in (1, channels):
        return "its bias is computed at run time, or not one number a channel"
    output = after_activation(output, rules)
    if rule.needs_output and output.is_graph_output():
        return "it writes a graph output, which stays float"
    return Layer(node, rule, weight, axis, bias, bias_add, output)


def heavy_nodes(nodes: Iterable[ir.Node]) -> list[ir.Node]:
    """The nodes that multiply by a weight, quantizable or not."""
    return [
        n
        for n in nodes
        if n.domain in ("", "ai.onnx") and n.op_type in WEIGHTED_OPS and _has_weight(n)
    ]


def names_of(node: ir.Node) -> list[str]:
    """The names that a pattern may match: the node's, its weight's and its output's."""
    weights = [v for v in node.inputs[1:2] if v is not None]
    return [
        n for n in (node.name, *(w.name for w in weights), node.outputs[0].name) if n
    ]


def _name_problem(
    node: ir.Node, include: tuple[str, ...], exclude: tuple[str, ...]
) -> str | None:
    names = names_of(node)

    def matches(patterns: tuple[str, ...]) -> bool:
        return any(
            fnmatch.fnmatchcase(name, pattern) for name in names for pattern in patterns
        )

    if include and not matches(include):
        return "not matched by include"
    return "matched by exclude" if matches(exclude) else None


def _weight_problem(weight: ir.Value | None) -> str | None:
    if weight is None or weight.const_value is None:
        producer = weight.producer() if weight is not None else None
        if producer is not None and producer.op_type == "DequantizeLinear":
            return "already quantized"
        return "its weight is computed at run time"
    if weight.is_graph_input():
        return "its weight is also a graph input: callers may override it"
    if weight.dtype != ir.DataType.FLOAT:
        return f"its weight is {weight.dtype}, not FLOAT"
    if weight.const_value.size == 0:
        return "its weight is empty"
    return None


def _form_problem(node: ir.Node, weight: ir.Value | None) -> str | None:
    """Why this spelling of the op has no int8 kernel, or None."""
    assert weight is not None
    assert weight.const_value is not None
    rank = len(weight.const_value.shape.numpy())
    data = node.inputs[0]
    if data is None or (data.dtype is not None and data.dtype != ir.DataType.FLOAT):
        return "its input is not FLOAT"
    if data.const_value is not None:
        return "its input is constant"
    if node.op_type == "MatMul" and rank != 2:
        return f"its weight has rank {rank}, not 2"
    if node.op_type == "Gemm":
        if int_attribute(node, "transA", 0):
            return "transA=1 has no int8 kernel"
        if (
            float_attribute(node, "alpha", 1.0) != 1.0
            or float_attribute(node, "beta", 1.0) != 1.0
        ):
            return "alpha or beta is not 1"
    return None


def _following_bias(
    output: ir.Value, channels: int
) -> tuple[ir.Node | None, ir.Value | None]:
    uses = list(output.uses())
    if len(uses) != 1 or output.is_graph_output() or uses[0].node.op_type != "Add":
        return None, None
    add = uses[0].node
    other = add.inputs[1 - uses[0].idx]
    if other is None or other.is_graph_input() or _constant_size(other) != channels:
        return None, None
    assert other.const_value is not None
    return (
        (add, other)
        if other.const_value.shape.numpy()[-1] == channels
        else (None, None)
    )


def _constant_size(value: ir.Value) -> int | None:
    if value.const_value is None or value.is_graph_input():
        return None
    shape = value.const_value.shape.numpy()
    one_axis = sum(d != 1 for d in shape) <= 1
    return value.const_value.size if one_axis else None


def after_activation(value: ir.Value, rules: QuantRules) -> ir.Value:
    """The value behind the activation that the quantization of `value` will absorb, or `value`
    itself.
    """
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output():
        return value
    node = uses[0].node
    if (
        node.op_type not in rules.folded
        or node.graph is not _graph_of(value)
        or uses[0].idx != 0
    ):
        return value
    if (
        node.op_type == "Clip"
        and constant_scalar(node.inputs[1] if len(node.inputs) > 1 else None) != 0.0
    ):
        return value
    return node.outputs[0]


def _graph_of(value: ir.Value) -> ir.Graph | ir.Function | None:
    producer = value.producer()
    return producer.graph if producer is not None else None


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number in a one-element constant, or None."""
    if (
        value is None
        or value.const_value is None
        or value.const_value.size != 1
        or value.is_graph_input()
    ):
        return None
    return float(value.const_value.numpy().reshape(-1)[0])


def int_attribute(node: ir.Node, name: str, default: int) -> int:
    attribute = node.attributes.get(name)
    return attribute.as_int() if attribute is not None else default


def float_attribute(node: ir.Node, name: str, default: float) -> float:
    attribute = node.attributes.get(name)
    return attribute.as_float() if attribute is not None else default


def string_attribute(node: ir.Node, name: str, default: str) -> str:
    attribute = node.attributes.get(name)
    return attribute.as_string() if attribute is not None else default
