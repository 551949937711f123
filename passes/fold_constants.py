"""Evaluation of what depends on constants only, within a budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import Edit, is_constant
from ._core.graph import graphs_of, label
from ._simplify.branches import inline_branches
from ._simplify.evaluate import Array, NotFoldable, evaluate, foldable, result_elements
from .remove_identities import input_symbols

FREE = 64 * 1024
"""Bytes that a result may have whatever its inputs, and by which folding may make the whole model
grow.
"""

LARGEST = 32 * 2**20
"""Bytes of the largest tensor that is read or made: what is larger, ONNX Runtime folds when it
loads the model.
"""


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their results, and an If of constant condition
    by its branch.

    Effect: exact. Never folds random ops, loops, quantization ops, a default that callers may
    override, or a result larger than its inputs and 64 KiB; and no group of nodes whose folding
    makes the file grow, beyond 64 KiB in all. Sizes are computed before anything is allocated.

    Shapes: unchanged.

    Stats: `nodes` folded, `branches` of If inlined (counts), `bytes` of weights that the model grew
    by.

    Source: follows from the definitions of the operators; onnx's reference implementation computes
    them.
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = "exact"

    nonempty: bool = Option(
        True,
        "Take symbolic dims of the model's inputs as at least 1: no empty batch is ever fed.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        edit = Edit(model)
        evaluated, declined = _evaluate_all(model, edit)
        nodes, grown = _commit(evaluated, edit, declined)
        branches = inline_branches(
            model, edit, input_symbols(model) if self.nonempty else frozenset()
        )
        stats = {"nodes": nodes, "branches": branches, "bytes": grown}
        return PassOutcome(nodes + branches, dict(stats), declined)


@dataclass
class Evaluated:
    """Nodes of known result, and the results by output value."""

    nodes: list[ir.Node] = field(default_factory=list)
    results: dict[ir.Value, Array] = field(default_factory=dict)


def _evaluate_all(model: ir.Model, edit: Edit) -> tuple[Evaluated, list[Declined]]:
    """Evaluate in order, so that results are inputs of what follows; graphs before the subgraphs
    they hold.
    """
    done, declined = Evaluated(), []
    for graph in graphs_of(model):
        for node in graph:
            if not foldable(node) or not _inputs_known(node, done):
                continue
            try:
                outputs = _results(node, done, edit.opset)
            except NotFoldable as reason:
                declined.append(Declined(label(node), str(reason)))
                continue
            done.nodes.append(node)
            done.results.update(zip(node.outputs, outputs, strict=True))
    return done, declined


def _inputs_known(node: ir.Node, done: Evaluated) -> bool:
    return all(v is None or v in done.results or _readable(v) for v in node.inputs)


def _readable(value: ir.Value) -> bool:
    if not is_constant(value):
        return False
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8


def _results(node: ir.Node, done: Evaluated, opset: int) -> list[Array]:
    tensors = [
        None if v is None or v in done.results else v.const_value for v in node.inputs
    ]
    if any(t is not None and t.nbytes > LARGEST for t in tensors):
        raise NotFoldable(
            f"a constant of more than {LARGEST >> 20} MiB: ONNX Runtime folds it when "
            "it loads the model"
        )
    inputs = [
        None if v is None else done.results[v] if v in done.results else _array(v)
        for v in node.inputs
    ]
    given = sum(a.nbytes for a in inputs if a is not None)
    made = result_elements(node, inputs) * _item_size(node)
    if made > max(given, FREE) or made > LARGEST:
        raise NotFoldable(
            f"its result of {made} bytes is larger than its inputs of {given} bytes"
        )
    return evaluate(node, inputs, opset)


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _item_size(node: ir.Node) -> int:
    kind = node.outputs[0].dtype
    return 8 if kind is None or kind.bitwidth < 8 else kind.bitwidth // 8


def _commit(done: Evaluated, edit: Edit, declined: list[Declined]) -> tuple[int, int]:
    """Put in the results that pay: group by group, those that shrink the model first."""
    inside = set(done.nodes)
    groups = sorted(
        (
            (_growth(group, inside, done), i, group)
            for i, group in enumerate(_groups(done))
        )
    )
    folded = grown = 0
    for growth, _, group in groups:
        if growth > 0 and grown + growth > FREE:
            declined.extend(
                Declined(label(node), f"folding would add {growth} bytes to the model")
                for node in group
            )
            continue
        for node in group:
            _put(node, inside, done, edit)
        count = _remove_dead(group, edit)
        folded += count
        grown += growth if count else 0
    return folded, grown


def _groups(done: Evaluated) -> Iterator[list[ir.Node]]:
    """Nodes that share results or constants, together; each group in order."""
    parent: dict[ir.Node, ir.Node] = {node: node for node in done.nodes}

    def root(node: ir.Node) -> ir.Node:
        while parent[node] is not node:
            parent[node] = node = parent[parent[node]]
        return node

    first_user: dict[ir.Value, ir.Node] = {}
    for node in done.nodes:
        for value in node.inputs:
            if value is None or (
                value not in done.results and _array_bytes(value) <= 1024
            ):
                continue
            other = (
                value.producer()
                if value in done.results
                else first_user.setdefault(value, node)
            )
            assert other is not None
            parent[root(other)] = root(node)
    groups: dict[ir.Node, list[ir.Node]] = defaultdict(list)
    for node in done.nodes:
        groups[root(node)].append(node)
    yield from groups.values()


def _array_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _escapes(value: ir.Value, inside: set[ir.Node]) -> bool:
    return value.is_graph_output() or any(
        user not in inside for user in value.consumers()
    )


def _growth(group: list[ir.Node], inside: set[ir.Node], done: Evaluated) -> int:
    """Bytes of results that stay, minus bytes of constants and nodes that go."""
    made = sum(
        done.results[v].nbytes
        for node in group
        for v in node.outputs
        if _escapes(v, inside)
    )
    inputs = {
        v
        for node in group
        for v in node.inputs
        if v is not None and v not in done.results
    }
    freed = sum(_array_bytes(v) for v in inputs if not _escapes(v, inside))
    return made - freed


def _put(node: ir.Node, inside: set[ir.Node], done: Evaluated, edit: Edit) -> None:
    """Make initializers of those results of a node that a node outside needs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for value in node.outputs:
        if not value.is_graph_output() and _escapes(value, inside):
            edit.replace(
                value, edit.constant(graph, done.results[value], f"{value.name}_folded")
            )


def _remove_dead(group: list[ir.Node], edit: Edit) -> int:
    """Remove nodes of a group that nobody needs any more, and the constants that only they used."""
    count = 0
    for node in reversed(group):
        if any(v.uses() or v.is_graph_output() for v in node.outputs):
            continue
        inputs = {v for v in node.inputs if v is not None}
        edit.remove(node)
        count += 1
        for value in inputs:
            if is_constant(value) and not value.uses() and not value.is_graph_output():
                assert value.graph is not None
                del value.graph.initializers[value.name or ""]
    return count
