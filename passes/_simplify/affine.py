"""Folding `y * scale + shift`, one number per channel, into the weights of the node that makes
y.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Edit, is_constant, used_once
from .._core.graph import label
from .._core.ops import FLOATS, HALF_FLOATS, group_count, is_standard

LARGEST = 256 * 2**20
"""Bytes of the largest weight that is multiplied out; larger ones keep their op."""

FOLDABLE = FLOATS - HALF_FLOATS
"""Types whose rounding is float noise; 16-bit weights would lose more."""

Channels = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """scale and shift of each output channel, both (M,) in float64."""

    scale: Channels
    shift: Channels


@dataclass(frozen=True)
class Target:
    """A node whose weight and bias can take an affine map of its output."""

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    channels: int


def target_of(value: ir.Value | None) -> Target | str | None:
    """The Conv, ConvTranspose or Gemm that makes `value`, a reason why it cannot take a factor, or
    None for others.
    """
    node = value.producer() if value is not None else None
    if (
        value is None
        or node is None
        or node.domain != ""
        or node.op_type not in ("Conv", "ConvTranspose", "Gemm")
    ):
        return None
    weight = node.inputs[1]
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if not used_once(value):
        return f"the output of {label(node)} is used elsewhere too"
    if (
        weight is None
        or not is_constant(weight)
        or (bias is not None and not is_constant(bias))
    ):
        return f"a weight of {label(node)} is not a constant"
    tensor = weight.const_value
    assert tensor is not None
    if tensor.dtype not in FOLDABLE:
        return f"weights of type {tensor.dtype} would be rounded"
    if not used_once(weight):
        return f"weight '{weight.name}' is shared"
    if tensor.nbytes > LARGEST:
        return f"weight '{weight.name}' is larger than {LARGEST >> 20} MiB"
    return _with_channels(node, weight, bias)


def _with_channels(
    node: ir.Node, weight: ir.Value, bias: ir.Value | None
) -> Target | str:
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    if node.op_type == "Conv":
        return Target(node, weight, bias, shape[0])
    if node.op_type == "ConvTranspose":
        return Target(
            node, weight, bias, shape[1] * node.attributes.get_int("group", 1)
        )
    channels = shape[0] if node.attributes.get_int("transB", 0) else shape[1]
    if bias is not None:
        assert bias.const_value is not None
        size = bias.const_value.size
        if (
            size not in (1, channels)
            or (bias.const_value.shape.numpy() or (1,))[-1] != size
        ):
            return f"the bias of {label(node)} varies along the batch"
    if (
        node.attributes.get_float("beta", 1.0) == 0
        or node.attributes.get_float("alpha", 1.0) == 0
    ):
        return f"{label(node)} has a zero factor"
    return Target(node, weight, bias, channels)


def fold(target: Target, affine: Affine, edit: Edit) -> None:
    """Multiply the weight by scale and give the node the bias (bias * scale + shift), in float64,
    rounded once.
    """
    node, graph = target.node, target.node.graph
    assert isinstance(graph, ir.Graph)
    assert target.weight.const_value is not None
    kind = target.weight.const_value.dtype.numpy()
    weight = target.weight.const_value.numpy().astype(np.float64)
    if (affine.scale != 1).any():
        scaled = (weight * _along(target, affine.scale, weight.shape)).astype(kind)
        edit.set_input(
            node, 1, edit.constant(graph, scaled, f"{target.weight.name}_scaled")
        )
        _drop(target.weight)
    beta = node.attributes.get_float("beta", 1.0) if node.op_type == "Gemm" else 1.0
    bias = np.zeros(target.channels)
    if target.bias is not None:
        assert target.bias.const_value is not None
        bias = bias + target.bias.const_value.numpy().astype(np.float64).reshape(-1)
    shifted = (bias * affine.scale + affine.shift / beta).astype(kind)
    stem = (
        f"{target.bias.name if target.bias is not None else target.weight.name}_shifted"
    )
    edit.set_input(node, 2, edit.constant(graph, shifted, stem))
    if target.bias is not None:
        _drop(target.bias)


def _drop(value: ir.Value) -> None:
    if not value.uses() and not value.is_graph_output() and value.graph is not None:
        del value.graph.initializers[value.name or ""]


def _along(target: Target, scale: Channels, shape: tuple[int, ...]) -> NDArray[Any]:
    """`scale` (M,) laid along the output channels of a weight of `shape`."""
    node, rest = target.node, (1,) * (len(shape) - 2)
    if node.op_type == "Conv":
        return scale.reshape(-1, 1, *rest)
    if node.op_type == "Gemm":
        return (
            scale.reshape(-1, 1)
            if node.attributes.get_int("transB", 0)
            else scale.reshape(1, -1)
        )
    group = node.attributes.get_int(
        "group", 1
    )  # weight (C, M/group, *K): input channels of a group share its outputs
    per_input = np.repeat(scale.reshape(group, -1), shape[0] // group, axis=0)
    return per_input.reshape(shape[0], shape[1], *rest)
