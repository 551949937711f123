"""Whole branches that go: a layer that has lost all its inputs adds its bias and nothing else."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context, MomentRequest, NullContext
from .._calibrated.layers import fittable_layers
from .._core.edit import Edit, is_constant
from .._core.graph import refresh_shapes
from .._dims.groups import Group
from .._dims.ops.elementwise import BROADCAST, UNARY
from .._dims.rules import relate
from .._dims.solve import FROZEN, Attention, Solution, solve
from .._dims.surgery import Kept
from .._dims.trace import Trace, traced
from ..fold_constants import FoldConstants
from ..remove_identities import RemoveIdentities
from ..remove_unused import RemoveUnused

LAYERS = frozenset({"Conv", "ConvTranspose", "Gemm", "MatMul"})


def droppable(group: Group, solution: Solution) -> bool:
    """Whether the model works on when every channel of a group is gone: all who sum over them can
    be their bias.
    """
    trace = solution.relations.trace
    roots = {root for root, _ in group.places}
    own = set(group.channels.tolist())
    if any(not own.issuperset(solution.channels[root].tolist()) for root in roots):
        return False
    nodes = [
        mix.node
        for mix in solution.relations.mixes
        if mix.kind == "contract"
        and any(
            (value := mix.node.inputs[i]) is not None
            and solution.classes[value, a] in roots
            for i, a in mix.axes
        )
    ]
    inside = [node for node in nodes if _makes(node, roots, solution)]
    ends = [node for node in nodes if node not in inside]
    return bool(ends) and all(
        n.op_type in LAYERS and _absorbed(n.outputs[0], trace) for n in ends
    )


def _makes(node: ir.Node, roots: set[int], solution: Solution) -> bool:
    """Whether what a node makes goes with the group: a depthwise convolution."""
    shapes = solution.relations.trace.shapes
    return any(
        solution.classes.get((value, i)) in roots
        for value in node.outputs
        for i in range(len(shapes.get(value, ())))
    )


def _absorbed(value: ir.Value, trace: Trace) -> bool:
    """Whether every user of a value broadcasts it against something of the full shape."""
    if value.is_graph_output() or not value.uses():
        return False
    for use in value.uses():
        node, out = use.node, use.node.outputs[0]
        others = [
            v
            for i, v in enumerate(node.inputs)
            if i != use.idx and v is not None and not is_constant(v)
        ]
        if node.domain != "" or node.op_type not in (*BROADCAST, *UNARY):
            return False
        if any(v is not value and trace.shape(v) == trace.shape(out) for v in others):
            continue
        if others or not _absorbed(out, trace):
            return False
    return True


def drop_branches(
    model: ir.Model, kept: Kept, attention: Attention
) -> tuple[Solution, NDArray[np.intp]]:
    """Replace layers without inputs by their bias, in place, and drop what only fed them; solve
    what is left anew.

    Returns the solution of the new graph and the channels of it that still have to go.
    """
    edit = Edit(model)
    empty = [
        n
        for n in model.graph
        if n.op_type in LAYERS and n.domain == "" and _emptied(n, kept)
    ]
    for node in empty:
        edit.bypass(node, _bias(node, edit))
    for step in (RemoveUnused(), FoldConstants(), RemoveIdentities(), RemoveUnused()):
        step.run(model, NullContext())
    refresh_shapes(model)
    solution = solve(relate(model, traced(model)), attention)
    return solution, np.array(sorted(set(_lost(solution, kept))), np.intp)


def take_means(model: ir.Model, kept: Kept, context: Context, samples: int) -> None:
    """Give layers that are about to lose all inputs the mean of what they made as their bias."""
    layers = [
        layer for layer in fittable_layers(model)[0] if _emptied(layer.node, kept)
    ]
    requests = {
        str(i): MomentRequest(
            layer.output.name or "",
            "mean",
            axis=1 if layer.node.op_type == "Conv" else -1,
        )
        for i, layer in enumerate(layers)
    }
    found = context.collect(model, requests, samples) if requests else {}
    edit = Edit(model)
    for i, layer in enumerate(layers):
        if str(i) in found:
            layer.set_bias(found[str(i)], edit)


def _emptied(node: ir.Node, kept: Kept) -> bool:
    """Whether the axis that a layer sums over is left without slots."""
    value = node.inputs[0]
    return value is not None and any(
        len(slots) == 0 for slots in kept.get(value.name or "", {}).values()
    )


def _bias(node: ir.Node, edit: Edit) -> ir.Value:
    """What a layer gives of nothing: its bias, shaped to be broadcast over its output."""
    graph, output = node.graph, node.outputs[0]
    assert isinstance(graph, ir.Graph)
    assert output.dtype is not None
    bias = node.inputs[2] if len(node.inputs) > 2 else None
    if bias is None or bias.const_value is None:
        zero = np.zeros([1] * len(output.shape or ()), output.dtype.numpy())
        return edit.constant(graph, zero, f"{output.name}_zero")
    array = bias.const_value.numpy()
    if node.op_type.startswith("Conv"):
        array = array.reshape(1, -1, *[1] * (len(output.shape or ()) - 2))
    return edit.constant(
        graph, array * node.attributes.get_float("beta", 1.0), f"{output.name}_bias"
    )


def _lost(solution: Solution, kept: Kept) -> Iterator[int]:
    """Channels of a solution some slot of which did not stay, tensors being known by their
    names.
    """
    for (value, axis), root in solution.classes.items():
        stays = kept.get(value.name or "", {}).get(axis)
        slots = solution.channels[root]
        if stays is not None and len(stays) and stays[-1] < len(slots):
            gone = np.setdiff1d(np.arange(len(slots)), stays)
            yield from (int(c) for c in np.unique(slots[gone]) if c != FROZEN)
