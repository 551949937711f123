"""Linear layers as `quant` sees them: with the activation that their quantization absorbs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.edit import array_of
from .._core.graph import label
from .._core.linear import (
    NOTHING_MADE,
    LinearLayer,
    linear_layer,
    multiplies_by_weight,
)
from .._core.ops import RECURRENT
from .._core.outcome import Declined
from .._core.patterns import layer_names, left_out
from .._core.targets import QuantRules
from .weights import Floats

WEIGHT_INPUT = 1
"""Input of every linear layer at which its weight arrives."""


@dataclass(eq=False)
class QuantLayer(LinearLayer):
    """A linear layer that the target has a kernel for.

    `activated`: the value after the bias and the folded activation. `writes_integers`: the kernel
    exists with a quantized output only.
    """

    activated: ir.Value
    writes_integers: bool

    @property
    def no_integers(self) -> str | None:
        """Reason why no integer kernel can stand for the layer, whatever is known of its values."""
        if self.writes_integers and self.activated.is_graph_output():
            return "it gives an output of its graph, which stays float"
        return self.spelling

    def bias_array(self) -> Floats | None:
        """The bias as (channels,) float32, or None."""
        if self.bias is None or self.bias.const_value is None:
            return None
        flat = self.bias.const_value.numpy().astype(np.float32).reshape(-1)
        # one number for all channels
        if flat.size == 1:
            return np.broadcast_to(flat, (self.channels,))
        return flat


def find_layers(
    nodes: Iterable[ir.Node],
    rules: QuantRules,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    made: Mapping[ir.Value, bool] = NOTHING_MADE,
) -> tuple[list[QuantLayer], list[Declined]]:
    """Layers that the target's rules and the name patterns allow; a reason for each other one.

    `made`: values made of constants.
    """
    layers: list[QuantLayer] = []
    declined: list[Declined] = []
    for node in nodes:
        # recurrent layers are planned by themselves
        if node.op_type in RECURRENT or not multiplies_by_weight(node, made):
            continue
        found = _layer(
            node,
            rules,
            include,
            exclude,
            made,
        )
        if isinstance(found, QuantLayer):
            layers.append(found)
        else:
            declined.append(Declined(label(node), found))
    return layers, declined


def _layer(
    node: ir.Node,
    rules: QuantRules,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    made: Mapping[ir.Value, bool],
) -> QuantLayer | str:
    """The node as a layer, or the reason why it is not to be quantized."""
    if node.op_type not in rules.integer_ops:
        return f"the target has no int8 {node.op_type}"
    # a layer that the user leaves out is not told what else is wrong with it
    reason = left_out(layer_names(node), include, exclude)
    if reason is not None:
        return reason
    linear = linear_layer(node, made)
    if isinstance(linear, str):
        return linear
    # what is quantized is the value behind the activation
    activated = after_activation(linear.output, rules)
    writes_integers = node.op_type in rules.quantized_output
    return QuantLayer(
        node,
        linear.chain,
        linear.bias,
        linear.bias_add,
        linear.spelling,
        activated,
        writes_integers,
    )


def after_activation(value: ir.Value, rules: QuantRules) -> ir.Value:
    """Value behind the activation that the quantization of `value` absorbs, or `value` itself."""
    uses = list(value.uses())
    # another reader sees the value before the activation
    if len(uses) != 1 or value.is_graph_output():
        return value
    node, index = uses[0].node, uses[0].idx
    producer = value.producer()
    graph = producer.graph if producer is not None else None
    if node.op_type not in rules.folded or node.graph is not graph or index != 0:
        return value
    # a Clip is absorbed where its lower bound is the zero point: only 0 can be that of a Relu
    if node.op_type == "Clip" and constant_scalar(_lower_bound(node)) != 0.0:
        return value
    return node.outputs[0]


def _lower_bound(clip: ir.Node) -> ir.Value | None:
    return clip.inputs[1] if len(clip.inputs) > 1 else None


def constant_scalar(value: ir.Value | None) -> float | None:
    """The number in a one-element constant, or None."""
    array = array_of(value)
    if array is None or array.size != 1:
        return None
    return float(array.reshape(-1)[0])
