"""Evaluation of nodes that depend on constants only, within a size budget."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._core.edit import Edit, is_constant
from ._core.graph import graphs_of, label
from ._core.lazy import transposed
from ._core.limits import limit
from ._core.ops import is_standard
from ._core.rewrites import permit
from ._core.union_find import Sets
from ._simplify.branches import inline_branches
from ._simplify.evaluate import Array, NotFoldable, evaluate, foldable, result_elements
from .remove_identities import input_symbols

FREE = 64 * 1024
"""Bytes that a result may have whatever its inputs, and by which folding may grow the whole model.

Chosen by hand: nothing beside a model's weights.
"""

SHARED = 1024
"""Bytes of a constant above which its users are folded together or not at all.

Only together do they free it. Smaller ones, shapes and scalars, would join half of the model.
"""

LARGE = 1 << 20
"""Bytes of a weight from which its transpose is described, not computed: a model may have hundreds.

Chosen by hand.
"""

Result = Array | ir.LazyTensor


@dataclass(frozen=True)
class FoldConstants(Pass):
    """Replace nodes whose inputs are all constant by their results.

    An If whose condition is constant is replaced by its branch.

    Effect: exact. Never folds random ops, loops, quantization ops, defaults that callers may
    override, or a node whose result is larger than both its inputs and 64 KiB. Folding may enlarge
    the file by at most 64 KiB in all. Sizes are computed before anything is allocated.

    Shapes: unchanged.

    Stats: `nodes` folded, `branches` of If inlined (counts), `bytes` by which the model's weights
    grew.

    Source: follows from the definitions of the operators; onnx's reference implementation computes
    the results.
    """

    name: ClassVar[str] = "fold-constants"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    nonempty: bool = Option(
        True,
        "Assume that symbolic dims of the model's inputs are at least 1: no empty batch is ever "
        "fed.",
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        return fold(model, nonempty=self.nonempty)


def fold(
    model: ir.Model, *, nonempty: bool = True, only: Collection[ir.Node] | None = None
) -> PassOutcome:
    """Fold as FoldConstants does, of the nodes `only`; by default of all."""
    edit = Edit(model)
    evaluated, declined = _evaluate_all(model, edit, only)
    nodes, grown = _commit(evaluated, edit, declined, FREE)
    positive = input_symbols(model) if nonempty else frozenset[str]()
    branches = inline_branches(model, edit, positive)
    stats = {"nodes": nodes, "branches": branches, "bytes": grown}
    return PassOutcome(nodes + branches, dict(stats), declined)


def fold_only(nodes: Collection[ir.Node], model: ir.Model, edit: Edit) -> int:
    """Fold none but the given nodes, where the model does not grow by it; returns how many."""
    evaluated, declined = _evaluate_all(model, edit, nodes)
    folded, _ = _commit(evaluated, edit, declined, 0)
    return folded


@dataclass
class Evaluated:
    """Nodes with known results, and the results by output value."""

    nodes: list[ir.Node] = field(default_factory=list)
    results: dict[ir.Value, Result] = field(default_factory=dict)


def _evaluate_all(
    model: ir.Model, edit: Edit, only: Collection[ir.Node] | None = None
) -> tuple[Evaluated, list[Declined]]:
    """Evaluate in order, so that results are inputs of later nodes; outer graphs come first.

    `only`: nodes to evaluate, by default all.
    """
    done = Evaluated()
    declined = []
    for graph in graphs_of(model):
        for node in graph:
            if not foldable(node) or not _inputs_known(node, done):
                continue
            if only is not None and node not in only:
                continue
            leave = permit(FoldConstants.name, "evaluate", node)
            if leave is None:
                continue
            outputs: Sequence[Result]
            try:
                outputs = _results(node, done, edit.opset)
            except NotFoldable as reason:
                declined.append(Declined(label(node), str(reason)))
                continue
            done.nodes.append(node)
            done.results.update(zip(node.outputs, outputs, strict=True))
            # put in later, if at all: a node of known result is one rewrite with what it feeds
            leave.used()
    return done, declined


def _inputs_known(node: ir.Node, done: Evaluated) -> bool:
    for value in node.inputs:
        if value is None or value in done.results:
            continue
        if not _readable(value):
            return False
    return True


def _readable(value: ir.Value) -> bool:
    if not is_constant(value):
        return False
    tensor = value.const_value
    assert tensor is not None
    return tensor.dtype != ir.DataType.STRING and tensor.dtype.bitwidth >= 8


def _results(node: ir.Node, done: Evaluated, opset: int) -> Sequence[Result]:
    """The outputs of a node of known inputs. Errors: NotFoldable beyond the budget."""
    turned = _turned(node, done)
    if turned is not None:
        return [turned]
    largest = limit("FOLD_BYTES")
    # before any is read
    for value in node.inputs:
        if value is None or value in done.results:
            continue
        if _array_bytes(value) > largest:
            raise NotFoldable(
                f"a constant of more than {largest:,} bytes: ONNX Runtime folds it when "
                "it loads the model"
            )
    inputs = [_input_array(value, done) for value in node.inputs]
    given = sum(array.nbytes for array in inputs if array is not None)
    made = result_elements(node, inputs) * _item_size(node)
    if made > max(given, FREE) or made > largest:
        raise NotFoldable(
            f"its result of {made} bytes is larger than its inputs of {given} bytes"
        )
    return evaluate(node, inputs, opset)


def _turned(node: ir.Node, done: Evaluated) -> ir.LazyTensor | None:
    """The transpose of a large weight of the model, computed whenever it is read."""
    if not is_standard(node, "Transpose"):
        return None
    source = node.inputs[0]
    if source is None or source in done.results:
        return None
    tensor = source.const_value
    assert tensor is not None
    if not LARGE <= tensor.nbytes <= limit("FOLD_BYTES"):
        return None
    rank = len(tensor.shape)
    backwards = range(rank)[::-1]
    axes = node.attributes.get_ints("perm", backwards)
    if sorted(axes) != list(range(rank)):
        return None
    return transposed(tensor, axes)


def _input_array(value: ir.Value | None, done: Evaluated) -> Array | None:
    if value is None:
        return None
    if value not in done.results:
        return _array(value)
    result = done.results[value]
    if isinstance(result, ir.LazyTensor):
        return result.numpy()
    return result


def _array(value: ir.Value) -> Array:
    assert value.const_value is not None
    return value.const_value.numpy()


def _item_size(node: ir.Node) -> int:
    """Bytes of an element of a node's first output; the most that one has where it is not known."""
    kind = node.outputs[0].dtype
    if kind is None or kind.bitwidth < 8:
        return 8
    return kind.bitwidth // 8


def _commit(
    done: Evaluated, edit: Edit, declined: list[Declined], free: int
) -> tuple[int, int]:
    """Put in the results that pay: group by group, those that shrink the model first.

    `free`: bytes by which the model may grow. Returns nodes folded, and bytes that it grew by.
    """
    inside = set(done.nodes)
    priced = [(_growth(group, inside, done), group) for group in _groups(done)]
    # a stable sort: groups that grow alike stay in the order of the graph
    priced.sort(key=lambda pair: pair[0])
    folded = grown = 0
    for growth, group in priced:
        if growth > 0 and grown + growth > free:
            reason = f"folding would add {growth} bytes to the model"
            declined.extend(Declined(label(node), reason) for node in group)
            continue
        for node in group:
            _put(
                node,
                inside,
                done,
                edit,
            )
        count = _remove_dead(group, edit)
        folded += count
        grown += growth if count else 0
    return folded, grown


def _groups(done: Evaluated) -> Iterator[list[ir.Node]]:
    """Nodes that share results or constants, together; each group in order."""
    together: Sets[ir.Node] = Sets()
    first_user: dict[ir.Value, ir.Node] = {}
    for node in done.nodes:
        for value in node.inputs:
            if value is None:
                continue
            if value in done.results:
                other = value.producer()
            elif _array_bytes(value) > SHARED:
                other = first_user.setdefault(value, node)
            else:
                continue
            assert other is not None
            together.join(node, other)
    groups: dict[ir.Node, list[ir.Node]] = defaultdict(list)
    for node in done.nodes:
        groups[together.root(node)].append(node)
    yield from groups.values()


def _array_bytes(value: ir.Value) -> int:
    return 0 if value.const_value is None else value.const_value.nbytes


def _escapes(value: ir.Value, inside: set[ir.Node]) -> bool:
    """True if something other than the nodes inside needs a value."""
    if value.is_graph_output():
        return True
    return any(user not in inside for user in value.consumers())


def _growth(group: list[ir.Node], inside: set[ir.Node], done: Evaluated) -> int:
    """Bytes of results that stay, minus bytes of constants that go."""
    made = 0
    inputs = set()
    for node in group:
        for value in node.outputs:
            if _escapes(value, inside):
                made += done.results[value].nbytes
        for source in node.inputs:
            if source is not None and source not in done.results:
                inputs.add(source)
    freed = 0
    for source in inputs:
        if not _escapes(source, inside):
            freed += _array_bytes(source)
    return made - freed


def _put(node: ir.Node, inside: set[ir.Node], done: Evaluated, edit: Edit) -> None:
    """Make initializers of those results of a node that a node outside needs."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    for value in node.outputs:
        # a graph output stays with the node that makes it
        if value.is_graph_output() or not _escapes(value, inside):
            continue
        name = f"{value.name}_folded"
        result = done.results[value]
        if isinstance(result, ir.LazyTensor):
            constant = edit.initializer(graph, result, name)
        else:
            constant = edit.constant(graph, result, name)
        edit.replace(value, constant)


def _remove_dead(group: list[ir.Node], edit: Edit) -> int:
    """Remove nodes of a group that nobody needs any more, and the constants that only they used."""
    count = 0
    # users before what they use
    for node in reversed(group):
        if any(value.uses() or value.is_graph_output() for value in node.outputs):
            continue
        inputs = {value for value in node.inputs if value is not None}
        edit.remove(node)
        count += 1
        for value in inputs:
            if value.uses() or value.is_graph_output():
                continue
            if is_constant(value):
                assert value.graph is not None
                del value.graph.initializers[value.name or ""]
    return count
