"""Removal of ops that change nothing, and merging of pairs that one op can replace."""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Option, Pass, PassOutcome
from ._core.edit import Edit
from ._core.graph import graphs_of, holds_graphs
from ._core.ops import is_standard
from ._core.rewrites import permit
from ._simplify.rules import arithmetic, cast, shape

Rule = Callable[[ir.Node, Edit], bool]
"""Try to rewrite at a node; True if it did. Constant work, so that the whole pass is linear."""


@dataclass(frozen=True)
class RemoveIdentities(Pass):
    """Remove no-ops and merge pairs of ops, by a table of small rules, until none applies.

    Effect: exact. Names, types and shapes of the model's inputs and outputs stay, and so does an
    Identity from an input to an output. Ops that ONNX Runtime fuses best (HardSwish, Gelu,
    LayerNormalization, Softmax, MatMul with Add) are never split. `x + 0` becomes `x`, although
    -0.0 + 0.0 is 0.0: the two are equal numbers, and ONNX Runtime's own optimizer does the same.

    Shapes: unchanged. A computed Reshape target with at most one unknown dim becomes a constant
    with 0 and -1.

    Stats: `rewrites` (count), and one count for each rule that applied.

    Source: follows from the definitions of the operators; each rule states its equation.
    """

    name: ClassVar[str] = "remove-identities"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    nonempty: bool = Option(
        True,
        "Assume that symbolic dims of the model's inputs are at least 1: no empty batch is ever "
        "fed.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        positive = input_symbols(model) if self.nonempty else frozenset[str]()
        counts = rewrite(model, rule_table(positive))
        stats = {"rewrites": counts.total(), **counts}
        return PassOutcome(counts.total(), dict(stats))


def input_symbols(model: ir.Model) -> frozenset[str]:
    """Names of the symbolic dims of the model's inputs."""
    names = set()
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if not isinstance(dim, int) and dim.value is not None:
                names.add(dim.value)
    return frozenset(names)


def rewrite(model: ir.Model, table: dict[str, list[Rule]]) -> Counter[str]:
    """Apply the rules to every node of all graphs, and again around every change.

    Returns how often each rule applied.
    """
    edit = Edit(model)
    counts = Counter[str]()
    queue: deque[ir.Node] = deque()
    for graph in graphs_of(model):
        queue.extend(graph)
    waiting = set(queue)
    while queue:
        node = queue.popleft()
        waiting.discard(node)
        # removed while it waited, or of a domain that no rule knows
        if node.graph is None or not is_standard(node):
            continue
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            applied = _apply(node, table, edit)
            if applied is not None:
                counts[applied] += 1
                # another rule may apply now
                edit.touched.append(node)
        # subgraphs use values of outer graphs; remove-unused releases them
        elif not holds_graphs(node):
            _remove(node, edit)
        for other in edit.touched:
            if other not in waiting and other.graph is not None:
                waiting.add(other)
                queue.append(other)
        edit.touched.clear()
    return counts


def _apply(node: ir.Node, table: dict[str, list[Rule]], edit: Edit) -> str | None:
    """Name of the first rule that rewrites a node; None if none does."""
    for rule in table.get(node.op_type, ()):
        name = rule.__name__.replace("_", "-")
        leave = permit(RemoveIdentities.name, name, node)
        if leave is not None and rule(node, edit):
            leave.used()
            return name
    return None


def _remove(node: ir.Node, edit: Edit) -> None:
    """Remove a node that nothing needs."""
    leave = permit(RemoveIdentities.name, "unused", node)
    if leave is not None:
        edit.remove(node)
        leave.used()


def rule_table(positive: frozenset[str]) -> dict[str, list[Rule]]:
    """Op type to its rules; the first that applies wins.

    `positive`: symbols that are at least 1 in every run.
    """
    views = {"Squeeze": shape.squeeze_squeeze, "Unsqueeze": shape.unsqueeze_unsqueeze}
    table: dict[str, list[Rule]] = {
        "Identity": [shape.shape_constant, arithmetic.identity],
        "Dropout": [arithmetic.dropout],
        "Add": [shape.shape_constant, arithmetic.neutral(0, (0, 1))],
        "Sub": [shape.shape_constant, arithmetic.neutral(0, (1,))],
        "Mul": [
            shape.shape_constant,
            arithmetic.neutral(1, (0, 1)),
            arithmetic.by_reciprocal,
        ],
        "Div": [shape.shape_constant, arithmetic.neutral(1, (1,))],
        "Pow": [arithmetic.neutral(1, (1,))],
        "And": [arithmetic.neutral(1, (0, 1))],
        "Or": [arithmetic.neutral(0, (0, 1))],
        "Cast": [shape.shape_constant, cast.cast_to_same, cast.cast_cast],
        "CastLike": [cast.cast_like],
        "Clip": [arithmetic.clip_clip],
        "Pad": [arithmetic.pad_nothing],
        "Concat": [shape.shape_constant, arithmetic.one_input, shape.concat_concat],
        "Shape": [shape.shape_constant],
        "Size": [shape.shape_constant],
        "Gather": [shape.shape_constant],
        "Transpose": [shape.transpose],
        "Reshape": [
            shape.shape_constant,
            shape.reshape_same,
            shape.reshape_transposed,
            shape.reshape_target(positive),
            shape.reshape_view,
        ],
        "Flatten": [shape.flatten],
        "Slice": [shape.shape_constant, shape.slice_all, shape.slice_slice],
        "Expand": [shape.expand_same, shape.expand_target],
        "Tile": [shape.tile_once],
        **{
            op: [shape.shape_constant, shape.squeeze_pair, merge]
            for op, merge in views.items()
        },
        **{op: [arithmetic.one_input] for op in ("Sum", "Mean", "Max", "Min")},
        **{op: [arithmetic.repeated] for op in arithmetic.IDEMPOTENT},
        **{op: [arithmetic.involution] for op in arithmetic.INVOLUTIONS},
        **{
            op: [shape.reduce_nothing]
            for op in (
                "ReduceSum",
                "ReduceMean",
                "ReduceProd",
                "ReduceMax",
                "ReduceMin",
            )
        },
    }
    table["Unsqueeze"].append(shape.unsqueeze_gather)
    return table
