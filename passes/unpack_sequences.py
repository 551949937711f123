"""Sequences that are only made to be taken apart again, replaced by plain tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import Edit, dims_of, ints_of
from ._core.graph import input_of
from ._simplify.folding import fold_nodes

SPLIT_INPUT = 13
"""Opset from which Split takes its sizes as an input, as the new nodes give them."""


@dataclass(frozen=True)
class UnpackSequences(Pass):
    """Replace SplitToSequence and SequenceConstruct by the tensors that SequenceAt takes from them.

    Effect: exact. Applies only if every reader of the sequence is a SequenceAt with a constant
    position and the sizes of the parts are known. Exporters write torch's `chunk`, `split` and
    `unbind` this way; runtimes run a Split faster, and other passes can see through it.

    Shapes: unchanged.

    Stats: `sequences` replaced (count).

    Source: follows from the definitions of the operators.
    """

    name: ClassVar[str] = "unpack-sequences"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "sequences"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        if model.opset_imports.get("", 1) < SPLIT_INPUT:
            return PassOutcome()
        outcome = fold_nodes(model, self.name, tuple(_SIZES), _unpack)
        outcome.stats["sequences"] = outcome.changed
        return outcome


def _unpack(node: ir.Node, edit: Edit) -> str | None:
    """Give every user of the sequence its tensor; the reason if one cannot have it."""
    sequence = node.outputs[0]
    users = [use.node for use in sequence.uses()]
    if not users or sequence.is_graph_output():
        return "its sequence is not taken apart"
    sizes = _SIZES[node.op_type](node)
    if sizes is None:
        return "the sizes of its parts are not known"
    positions: list[int] = []
    for user in users:
        position = _position(user, len(sizes))
        if position is None:
            return "its sequence is used in another way, or at computed positions"
        positions.append(position)
    parts = _tensors(node, sizes, edit)
    for user, position in zip(users, positions, strict=True):
        if not edit.bypass(user, parts[position]):
            return "a part is an output of the model"
    edit.remove(node)
    return None


def _position(user: ir.Node, count: int) -> int | None:
    """Number of the part that a SequenceAt takes, if it is constant and one of `count`."""
    if user.op_type != "SequenceAt":
        return None
    given = ints_of(user.inputs[1])
    if given is None:
        return None
    if given[0] < -count:
        return None
    if given[0] >= count:
        return None
    return given[0] % count


def _constructed(node: ir.Node) -> list[int] | None:
    # only their number counts: the parts are there already
    return [1] * len(node.inputs)


def _split(node: ir.Node) -> list[int] | None:
    """Sizes of the parts of SplitToSequence; None if they are not known."""
    dims = dims_of(node.inputs[0])
    if dims is None:
        return None
    size = dims[node.attributes.get_int("axis", 0)]
    if not isinstance(size, int):
        return None
    split = input_of(node, 1)
    if split is None:
        return [1] * size
    given = ints_of(split)
    if given is None:
        return None
    if split.const_value is not None and len(split.const_value.shape) == 0:
        return _equal_parts(size, given[0])
    return given if sum(given) == size else None


def _equal_parts(size: int, step: int) -> list[int] | None:
    """Parts of `step` elements, the last one shorter where they do not divide the size."""
    if step <= 0:
        return None
    return [min(step, size - start) for start in range(0, size, step)]


_SIZES = {"SplitToSequence": _split, "SequenceConstruct": _constructed}
"""Sizes of the parts of a sequence along its axis, by the op that makes it."""


def _tensors(node: ir.Node, sizes: Sequence[int], edit: Edit) -> list[ir.Value]:
    """The parts as tensors, made by new nodes in front of `node`."""
    if node.op_type == "SequenceConstruct":
        return [value for value in node.inputs if value is not None]
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    axis = node.attributes.get_int("axis", 0)
    sequence = node.outputs[0].name
    lengths = edit.constant(
        graph,
        np.array(sizes, np.int64),
        f"{sequence}_sizes",
    )
    split = ir.node(
        "Split",
        [node.inputs[0], lengths],
        attributes={"axis": axis},
        num_outputs=len(sizes),
    )
    split.name = edit.fresh(f"{node.name or 'Split'}_split")
    for value in split.outputs:
        value.name = edit.fresh(f"{sequence}_part")
        if node.inputs[0] is not None:
            value.type = node.inputs[0].type
    graph.insert_before(node, split)
    # keepdims counts only without given sizes
    if input_of(node, 1) is not None or node.attributes.get_int("keepdims", True):
        return list(split.outputs)
    axes = edit.constant(
        graph,
        np.array([axis], np.int64),
        f"{sequence}_axis",
    )
    return [_squeezed(node, value, axes, edit) for value in split.outputs]


def _squeezed(node: ir.Node, value: ir.Value, axes: ir.Value, edit: Edit) -> ir.Value:
    """A part without the axis of width 1 along which it was cut (`keepdims=0`)."""
    squeeze = edit.node_before(node, "Squeeze", [value, axes])
    squeeze.outputs[0].type = value.type
    return squeeze.outputs[0]
