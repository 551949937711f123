"""Removal of whole branches: a layer that lost all its inputs is replaced by its bias."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, MomentRequest, NullContext
from .._calibrated.layers import fittable_layers
from .._core.edit import Edit, is_constant
from .._core.graph import input_of, refresh_shapes
from .._core.ops import CONVOLUTIONS, RECURRENT, WEIGHTED_OPS, is_standard
from .._dims.groups import Group
from .._dims.ops.elementwise import BROADCAST, UNARY
from .._dims.relations import Mix
from .._dims.rules import relate
from .._dims.solve import FROZEN, Attention, Solution, solve
from .._dims.surgery import Kept
from .._dims.trace import Trace, traced
from ..fold_constants import FoldConstants
from ..remove_identities import RemoveIdentities
from ..remove_unused import RemoveUnused

LAYERS = frozenset(WEIGHTED_OPS) - RECURRENT
"""Operators that give their bias where no input is left; recurrent ones have gates, and a state."""

DROPPING = (RemoveUnused(), FoldConstants(), RemoveIdentities(), RemoveUnused())
"""Passes by which everything goes that only fed dropped layers, or only passed on their biases."""


def droppable(group: Group, solution: Solution) -> bool:
    """Return whether the model works on when every channel of a group is gone.

    It does where all layers that sum over them can become their bias.
    """
    roots = {root for root, _ in group.places}
    own = set(group.channels.tolist())
    # channels of another group on the same axis would be left behind
    for root in roots:
        slots = solution.channels[root]
        if not own.issuperset(slots.tolist()):
            return False
    trace = solution.relations.trace
    has_end = False
    for mix in solution.relations.mixes:
        node = mix.node
        if mix.kind != "contract":
            continue
        if not _sums_over(mix, roots, solution):
            continue
        # a depthwise convolution in between goes with the group
        if _makes(node, roots, solution):
            continue
        has_end = True
        if node.op_type not in LAYERS or not _absorbed(node.outputs[0], trace):
            return False
    return has_end


def _sums_over(mix: Mix, roots: set[int], solution: Solution) -> bool:
    """Return whether a node sums over an axis of one of the classes."""
    for index, axis in mix.axes:
        value = mix.node.inputs[index]
        if value is not None and solution.classes[value, axis] in roots:
            return True
    return False


def _makes(node: ir.Node, roots: set[int], solution: Solution) -> bool:
    """Return whether what a node makes goes with the group: a depthwise convolution."""
    shapes = solution.relations.trace.shapes
    for value in node.outputs:
        shape = shapes.get(value, ())
        for axis in range(len(shape)):
            if solution.classes.get((value, axis)) in roots:
                return True
    return False


def _absorbed(value: ir.Value, trace: Trace) -> bool:
    """Return whether every user of a value broadcasts it against something of the full shape."""
    if value.is_graph_output() or not value.uses():
        return False
    for use in value.uses():
        node = use.node
        if not is_standard(node, *BROADCAST, *UNARY):
            return False
        others = _other_activations(node, use.idx)
        output = node.outputs[0]
        shape = trace.shape(output)
        full = [other for other in others if trace.shape(other) == shape]
        # a value added to itself has nothing of the full shape to go by
        if any(other is not value for other in full):
            continue
        # alone, or with constants only, the smaller result travels on
        if others or not _absorbed(output, trace):
            return False
    return True


def _other_activations(node: ir.Node, index: int) -> list[ir.Value]:
    """Inputs of a node that are no constants, but for one."""
    others = []
    for number, value in enumerate(node.inputs):
        if number == index or value is None:
            continue
        if not is_constant(value):
            others.append(value)
    return others


def drop_branches(
    model: ir.Model, kept: Kept, attention: Attention
) -> tuple[Solution, NDArray[np.intp]]:
    """Replace layers without inputs by their bias, in place, and drop what only fed them.

    Returns the solution of the new graph and the channels of it that still have to go.
    """
    edit = Edit(model)
    layers = [node for node in model.graph if is_standard(node, *LAYERS)]
    empty = [node for node in layers if _emptied(node, kept)]
    for node in empty:
        bias = _bias(node, edit)
        edit.bypass(node, bias)
    for step in DROPPING:
        step.run(model, NullContext())
    refresh_shapes(model)
    relations = relate(model, traced(model))
    solution = solve(relations, attention)
    lost = set(_lost(solution, kept))
    return solution, np.array(sorted(lost), np.intp)


def take_means(model: ir.Model, kept: Kept, context: Context, samples: int) -> None:
    """Give layers that are about to lose all inputs the mean of their output as their bias."""
    layers = {}
    requests = {}
    fittable, _ = fittable_layers(model)
    for number, layer in enumerate(fittable):
        if not _emptied(layer.node, kept):
            continue
        key = str(number)
        name = layer.output.name or ""
        axis = 1 if layer.node.op_type == "Conv" else -1
        layers[key] = layer
        requests[key] = MomentRequest(name, "mean", axis=axis)
    if not requests:
        return
    found = context.collect(model, requests, samples)
    edit = Edit(model)
    for key, layer in layers.items():
        # absent: a branch that no sample took
        if key in found:
            layer.set_bias(found[key], edit)


def _emptied(node: ir.Node, kept: Kept) -> bool:
    """Return whether the axis that a layer sums over is left without slots."""
    value = node.inputs[0]
    if value is None:
        return False
    axes = kept.get(value.name or "", {})
    return any(len(slots) == 0 for slots in axes.values())


def _bias(node: ir.Node, edit: Edit) -> ir.Value:
    """Output of a layer that multiplies nothing: its bias, in a shape that broadcasts to it."""
    graph = node.graph
    output = node.outputs[0]
    assert isinstance(graph, ir.Graph)
    assert output.dtype is not None
    rank = len(output.shape or ())
    bias = input_of(node, 2)
    if bias is None or bias.const_value is None:
        ones = [1] * rank
        dtype = output.dtype.numpy()
        zero = np.zeros(ones, dtype)
        return edit.constant(graph, zero, f"{output.name}_zero")
    array = bias.const_value.numpy()
    if node.op_type in CONVOLUTIONS:
        # channels are the second axis of the output, behind the batch
        spatial = [1] * (rank - 2)
        array = array.reshape(1, -1, *spatial)
    # Gemm alone scales its bias
    beta = node.attributes.get_float("beta", 1.0)
    scaled = array * beta
    return edit.constant(graph, scaled, f"{output.name}_bias")


def _lost(solution: Solution, kept: Kept) -> Iterator[int]:
    """Channels of a solution some slot of which did not stay.

    Tensors are known by their names: `kept` is of another graph.
    """
    for (value, axis), root in solution.classes.items():
        axes = kept.get(value.name or "", {})
        stays = axes.get(axis)
        if stays is None or len(stays) == 0:
            continue
        slots = solution.channels[root]
        size = len(slots)
        # where a dropped layer left a bias that broadcasts, the axis is shorter now
        if stays[-1] >= size:
            continue
        every = np.arange(size)
        gone = np.setdiff1d(every, stays)
        channels = np.unique(slots[gone])
        for channel in channels:
            if channel != FROZEN:
                yield int(channel)
