"""x / sqrt(mean(x^2) + epsilon) * scale, however exporters spell it: RMSNormalization."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from .._core.edit import dims_of, ints_given, is_constant, static_dims
from .._core.graph import producer_of
from .operands import beside_scalar, is_last, pair_of, scalar_of
from .shared import Shared


@dataclass(frozen=True)
class RootMeanSquare:
    """Data (..., C) and scale (C,) of a normalisation over the last axis."""

    data: ir.Value
    scale: ir.Value
    epsilon: float

    opset: ClassVar[int] = 23
    kind: ClassVar[str] = "normalization"

    def write(self, node: ir.Node, shared: Shared) -> bool:
        """Put one operator in the place of the pattern that ends at a node."""
        return shared.finish(
            node,
            "RMSNormalization",
            [self.data, self.scale],
            axis=-1,
            epsilon=self.epsilon,
        )


def root_mean_square(node: ir.Node) -> RootMeanSquare | None:
    """The pattern whose last node, a Mul by the scale, this is."""
    pair = pair_of(node)
    if node.op_type != "Mul" or pair is None:
        return None
    for scale, normalized in (pair, pair[::-1]):
        if not is_constant(scale) or scale.dtype != ir.DataType.FLOAT:
            continue
        found = _normalized(normalized)
        if found is None:
            continue
        data, epsilon = found
        channels = (dims_of(data) or [None])[-1]
        # a centred one is a LayerNormalization, which ONNX Runtime knows in this form
        if producer_of(data, "Sub") is not None:
            continue
        # the operator's scale has one number for each channel
        if channels is not None and static_dims(scale) == [channels]:
            return RootMeanSquare(
                data,
                scale,
                epsilon,
            )
    return None


def _normalized(value: ir.Value) -> tuple[ir.Value, float] | None:
    """Data and epsilon, where a value is x * (1 / root) or x / root."""
    node = producer_of(
        value,
        "Mul",
        "Div",
    )
    pair = pair_of(node) if node is not None else None
    if node is None or pair is None:
        return None
    if node.op_type == "Div":
        return _of_root(pair[0], producer_of(pair[1], "Sqrt"))
    for data, factor in (pair, pair[::-1]):
        found = _of_root(data, _inverted(factor))
        if found is not None:
            return found
    return None


def _inverted(value: ir.Value) -> ir.Node | None:
    """The Sqrt of which a value is the reciprocal."""
    node = producer_of(
        value,
        "Reciprocal",
        "Div",
    )
    if node is None:
        return None
    if node.op_type == "Div" and scalar_of(node.inputs[0]) != 1:
        return None
    return producer_of(node.inputs[-1], "Sqrt")


def _of_root(data: ir.Value, root: ir.Node | None) -> tuple[ir.Value, float] | None:
    """Data and epsilon, if a Sqrt is that of the mean of the data's own squares."""
    summed = producer_of(root.inputs[0], "Add") if root is not None else None
    found = beside_scalar(summed) if summed is not None else None
    if found is None:
        return None
    mean = producer_of(found[0], "ReduceMean")
    dims = dims_of(data)
    if mean is None or dims is None or not mean.attributes.get_int("keepdims", 1):
        return None
    axes = ints_given(
        mean,
        "axes",
        1,
    )
    if axes is None or len(axes) != 1 or not is_last(axes[0], len(dims)):
        return None
    return (data, found[1]) if _is_square(mean.inputs[0], data) else None


def _is_square(value: ir.Value | None, data: ir.Value) -> bool:
    node = producer_of(
        value,
        "Pow",
        "Mul",
    )
    pair = pair_of(node) if node is not None else None
    if node is None or pair is None or pair[0] is not data:
        return False
    return pair[1] is data if node.op_type == "Mul" else scalar_of(pair[1]) == 2
