"""Folding of `y * scale + shift`, one number per channel, into the weights of y's producer."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.edit import Edit, is_constant, used_once
from .._core.graph import input_of, label, producer_of
from .._core.ops import FLOATS, HALF_FLOATS, group_count, output_axis

LARGEST = 256 * 2**20
"""Bytes of the largest weight that is multiplied out; larger ones keep their op.

The product is held in float64. Chosen by hand, not measured.
"""

FOLDABLE = FLOATS - HALF_FLOATS
"""Types whose rounding is float noise; 16-bit weights would lose more."""

Channels = NDArray[np.float64]


@dataclass(frozen=True)
class Affine:
    """Scale and shift of each output channel, both (M,) in float64."""

    scale: Channels
    shift: Channels


@dataclass(frozen=True)
class FoldTarget:
    """A node whose weight and bias can take an affine map of its output."""

    node: ir.Node
    weight: ir.Value
    bias: ir.Value | None
    channels: int


def target_of(value: ir.Value | None) -> FoldTarget | str | None:
    """The Conv, ConvTranspose or Gemm that makes `value`, if it can take a factor.

    A reason where such a node cannot; None where another node makes the value.
    """
    node = producer_of(value, "Conv", "ConvTranspose", "Gemm")
    if node is None:
        return None
    if not used_once(node.outputs[0]):
        return f"the output of {label(node)} is used elsewhere too"
    weight = node.inputs[1]
    bias = input_of(node, 2)
    if weight is None or not is_constant(weight):
        return f"a weight of {label(node)} is not a constant"
    if bias is not None and not is_constant(bias):
        return f"a weight of {label(node)} is not a constant"
    tensor = weight.const_value
    assert tensor is not None
    if tensor.dtype not in FOLDABLE:
        return f"weights of type {tensor.dtype} would be rounded"
    # others would see the scaled weight
    if not used_once(weight):
        return f"weight '{weight.name}' is shared with another node"
    if tensor.nbytes > LARGEST:
        return f"weight '{weight.name}' is larger than {LARGEST >> 20} MiB"
    if node.op_type == "Gemm":
        return _gemm_target(node, weight, bias)
    return FoldTarget(node, weight, bias, _channels(node, weight))


def _gemm_target(
    node: ir.Node, weight: ir.Value, bias: ir.Value | None
) -> FoldTarget | str:
    channels = _channels(node, weight)
    if bias is not None:
        assert bias.const_value is not None
        size = bias.const_value.size
        shape = bias.const_value.shape.numpy()
        columns = shape[-1] if shape else 1
        # Gemm broadcasts its bias: one number for each row of the batch is possible
        if size not in (1, channels) or columns != size:
            return f"the bias of {label(node)} varies along the batch"
    beta = node.attributes.get_float("beta", 1.0)
    alpha = node.attributes.get_float("alpha", 1.0)
    if beta == 0 or alpha == 0:
        return f"{label(node)} has a zero factor"
    return FoldTarget(node, weight, bias, channels)


def _channels(node: ir.Node, weight: ir.Value) -> int:
    """Output channels of a node."""
    assert weight.const_value is not None
    shape = weight.const_value.shape.numpy()
    axis = output_axis(node, 1, len(shape))
    assert axis is not None
    of_group = int(shape[axis])
    if node.op_type == "ConvTranspose":
        return of_group * group_count(node)
    return of_group


def fold(target: FoldTarget, affine: Affine, edit: Edit) -> None:
    """Make the node give y * scale + shift instead of y.

    Its weight is multiplied by scale and its bias becomes bias * scale + shift, in float64, rounded
    once.
    """
    node = target.node
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    tensor = target.weight.const_value
    assert tensor is not None
    kind = tensor.dtype.numpy()
    weight = tensor.numpy().astype(np.float64)
    # a weight that stays need not be copied
    if (affine.scale != 1).any():
        factors = _along(target, affine.scale, weight.shape)
        scaled = (weight * factors).astype(kind)
        new = edit.constant(
            graph,
            scaled,
            f"{target.weight.name}_scaled",
        )
        edit.set_input(node, 1, new)
        _drop(target.weight)
    beta = 1.0
    if node.op_type == "Gemm":
        beta = node.attributes.get_float("beta", 1.0)
    bias = np.zeros(target.channels)
    named_after = target.weight
    if target.bias is not None:
        assert target.bias.const_value is not None
        stored = target.bias.const_value.numpy()
        # one number stands for all channels
        bias = bias + stored.astype(np.float64).reshape(-1)
        named_after = target.bias
    # Gemm multiplies its bias by beta, so the shift is divided by it first
    shift = affine.shift / beta
    exact = bias * affine.scale + shift
    shifted = exact.astype(kind)
    new = edit.constant(
        graph,
        shifted,
        f"{named_after.name}_shifted",
    )
    edit.set_input(node, 2, new)
    if target.bias is not None:
        _drop(target.bias)


def _drop(value: ir.Value) -> None:
    """Remove an initializer that nothing uses any more."""
    if value.uses() or value.is_graph_output():
        return
    if value.graph is not None:
        del value.graph.initializers[value.name or ""]


def _along(target: FoldTarget, scale: Channels, shape: tuple[int, ...]) -> NDArray[Any]:
    """`scale` (M,) laid along the output channels of a weight of `shape`."""
    node = target.node
    if node.op_type == "ConvTranspose":
        # weight (C, M / group, *K): the input channels of a group share its outputs
        groups = group_count(node)
        by_group = scale.reshape(groups, -1)
        per_input = np.repeat(
            by_group,
            shape[0] // groups,
            axis=0,
        )
        return per_input.reshape(
            shape[0],
            shape[1],
            *(1,) * (len(shape) - 2),
        )
    dims = [1] * len(shape)
    axis = output_axis(node, 1, len(shape))
    assert axis is not None
    dims[axis] = -1
    return scale.reshape(dims)
