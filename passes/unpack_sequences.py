"""Sequences that are made to be taken apart again become plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, Pass, PassOutcome
from ._core.edit import Edit, dims_of, ints_of
from ._core.graph import graphs_of, label

SPLIT_INPUT = 13
"""Opset from which Split takes its sizes as an input."""


@dataclass(frozen=True)
class UnpackSequences(Pass):
    """Replace SplitToSequence and SequenceConstruct by the tensors that SequenceAt takes out of
    them.

    Effect: exact. Only where every user of the sequence is a SequenceAt with a constant position
    and the sizes of the parts are known. Exporters write torch's `chunk`, `split` and `unbind` this
    way; runtimes run a Split faster, and other passes see through it.

    Shapes: unchanged.

    Stats: `sequences` replaced (count).

    Source: follows from the definitions of the operators.
    """

    name: ClassVar[str] = "unpack-sequences"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = PassOutcome()
        if model.opset_imports.get("", 1) < SPLIT_INPUT:
            return outcome
        edit = Edit(model)
        for graph in graphs_of(model):
            for node in list(graph):
                if node.domain == "" and node.op_type in _PARTS:
                    problem = _unpack(node, edit)
                    if problem:
                        outcome.declined.append(Declined(label(node), problem))
                    else:
                        outcome.changed += 1
        outcome.stats["sequences"] = outcome.changed
        return outcome


def _unpack(node: ir.Node, edit: Edit) -> str:
    """Give every user of the sequence its tensor; why not, or "" when it is done."""
    sequence = node.outputs[0]
    users = [use.node for use in sequence.uses()]
    if not users or sequence.is_graph_output():
        return "its sequence is not taken apart"
    sizes = _PARTS[node.op_type](node)
    if sizes is None:
        return "the sizes of its parts are not known"
    wanted = [_position(user, len(sizes)) for user in users]
    if any(position is None for position in wanted):
        return "its sequence is used in another way, or at computed positions"
    parts = _tensors(node, sizes, edit)
    for user, position in zip(users, wanted, strict=True):
        assert position is not None
        if not edit.bypass(user, parts[position]):
            return "a part is an output of the model"
    edit.remove(node)
    return ""


def _position(user: ir.Node, count: int) -> int | None:
    """Which part a SequenceAt takes, if that is constant."""
    given = ints_of(user.inputs[1]) if user.op_type == "SequenceAt" else None
    return (
        given[0] % count if given is not None and -count <= given[0] < count else None
    )


def _constructed(node: ir.Node) -> list[int] | None:
    return [1] * len(node.inputs)


def _split(node: ir.Node) -> list[int] | None:
    """The sizes of the parts of SplitToSequence; None if they are not known."""
    dims = dims_of(node.inputs[0])
    axis = node.attributes.get_int("axis", 0)
    size = None if dims is None else dims[axis]
    if not isinstance(size, int):
        return None
    if len(node.inputs) < 2 or node.inputs[1] is None:
        return [1] * size
    given = ints_of(node.inputs[1])
    if given is None:
        return None
    value = node.inputs[1].const_value
    if value is not None and len(value.shape) == 0:
        step = given[0]
        return (
            [min(step, size - start) for start in range(0, size, step)]
            if step > 0
            else None
        )
    return given if sum(given) == size else None


_PARTS = {"SplitToSequence": _split, "SequenceConstruct": _constructed}


def _tensors(node: ir.Node, sizes: Sequence[int], edit: Edit) -> list[ir.Value]:
    """The parts as tensors, made by new nodes in front of `node`."""
    if node.op_type == "SequenceConstruct":
        return [value for value in node.inputs if value is not None]
    graph, axis = node.graph, node.attributes.get_int("axis", 0)
    assert isinstance(graph, ir.Graph)
    lengths = edit.constant(
        graph, np.array(sizes, np.int64), f"{node.outputs[0].name}_sizes"
    )
    split = ir.node(
        "Split",
        [node.inputs[0], lengths],
        attributes={"axis": axis},
        num_outputs=len(sizes),
    )
    split.name = edit.fresh(f"{node.name or 'Split'}_split")
    for value in split.outputs:
        value.name = edit.fresh(f"{node.outputs[0].name}_part")
        if node.inputs[0] is not None:
            value.type = node.inputs[0].type
    graph.insert_before(node, split)
    whole = len(node.inputs) > 1 and node.inputs[1] is not None
    if whole or node.attributes.get_int("keepdims", True):
        return list(split.outputs)
    axes = edit.constant(
        graph, np.array([axis], np.int64), f"{node.outputs[0].name}_axis"
    )
    return [_squeezed(node, value, axes, edit) for value in split.outputs]


def _squeezed(node: ir.Node, value: ir.Value, axes: ir.Value, edit: Edit) -> ir.Value:
    """A part without the axis of width 1 along which it was cut (`keepdims=0`)."""
    squeeze = edit.node_before(node, "Squeeze", [value, axes])
    squeeze.outputs[0].type = value.type
    return squeeze.outputs[0]
