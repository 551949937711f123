"""An If whose condition is always the same becomes the nodes of its branch."""

from __future__ import annotations

import onnx_ir as ir

from .._core.edit import Dim, Edit, array_of, release
from .._core.graph import input_of, producer_of, subgraphs
from .._core.ops import is_standard
from .._core.rewrites import permit
from .symbols import symbols_of

COMPARISONS = frozenset({"Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual"})

LOWEST = -(2**31)
"""Lower bound of a number of which nothing is known: `symbols` follows none below it."""


def inline_branches(model: ir.Model, edit: Edit, positive: frozenset[str]) -> int:
    """Inline every If of known condition, outer ones first; the number of them.

    `positive`: symbols that are at least 1 in every run.
    """
    count = 0
    todo: list[ir.Graph] = [model.graph]
    while todo:
        graph = todo.pop()
        for node in graph:
            if is_standard(node, "If") and _inline_known(node, edit, positive):
                # the walk goes on with the nodes that stand in its place now
                count += 1
                continue
            todo.extend(subgraphs(node))
    return count


def _inline_known(node: ir.Node, edit: Edit, positive: frozenset[str]) -> bool:
    """Inline an If whose condition is known, if it can be."""
    condition = _condition(node.inputs[0], edit, positive)
    leave = permit("fold-constants", "inline-branch", node)
    if condition is None or leave is None:
        return False
    if not _inline(node, condition, edit):
        return False
    leave.used()
    return True


def _condition(
    value: ir.Value | None, edit: Edit, positive: frozenset[str]
) -> bool | None:
    """A condition's value in every run, if known.

    Followed through Cast, Not, Identity, and the comparison of a dim with a number.
    """
    constant = array_of(value)
    if constant is not None:
        if constant.size != 1:
            return None
        element = constant.reshape(-1)[0]
        return bool(element)
    node = producer_of(value)
    if node is None:
        return None
    source = input_of(node, 0)
    if node.op_type == "Not":
        inner = _condition(source, edit, positive)
        if inner is None:
            return None
        return not inner
    if node.op_type == "Identity":
        return _condition(source, edit, positive)
    to = node.attributes.get_int("to", 0)
    if node.op_type == "Cast" and to == ir.DataType.BOOL:
        if source is not None and source.dtype == ir.DataType.BOOL:
            return _condition(source, edit, positive)
        # every number but 0 is true
        is_true = _low(source, edit, positive) >= 1
        return True if is_true else None
    return _comparison(node, edit, positive)


def _comparison(node: ir.Node, edit: Edit, positive: frozenset[str]) -> bool | None:
    """Result of comparing a dim with a number that it always exceeds."""
    if node.op_type not in COMPARISONS:
        return None
    dim, other = node.inputs
    bound = _element(other, edit)
    if _element(dim, edit) is None:
        return None
    if not isinstance(bound, int):
        return None
    if bound < _low(dim, edit, positive):
        return node.op_type in ("Greater", "GreaterOrEqual")
    return None


def _low(value: ir.Value | None, edit: Edit, positive: frozenset[str]) -> int:
    """A lower bound of a one-element integer tensor that is a dim."""
    element = _element(value, edit)
    if isinstance(element, int):
        return element
    if isinstance(element, str):
        return 1 if element in positive else 0
    return LOWEST


def _element(value: ir.Value | None, edit: Edit) -> Dim:
    """The element of a one-element integer tensor; None if nothing is known."""
    symbols = symbols_of(value, edit.found)
    if symbols is None or symbols.size != 1:
        return None
    element: Dim = symbols.reshape(-1)[0]
    return element


def _inline(node: ir.Node, condition: bool, edit: Edit) -> bool:
    """Move the nodes of one branch to the place of the If.

    Not where an output of the If, which is one of a graph, would have to be renamed.
    """
    outer = node.graph
    taken, dropped = "then_branch", "else_branch"
    if not condition:
        taken, dropped = dropped, taken
    branch = node.attributes[taken].as_graph()
    if not isinstance(outer, ir.Graph):
        return False
    results = list(branch.outputs)
    if not _can_take_names(node, branch):
        return False
    release(node.attributes[dropped].as_graph())
    # a value that is still an output of the branch could not be one of the outer graph
    branch.outputs.clear()
    _move(branch, outer, node, edit)
    for old, new in zip(node.outputs, results, strict=True):
        edit.replace(old, new)
    edit.remove(node)
    return True


def _can_take_names(node: ir.Node, branch: ir.Graph) -> bool:
    """True if for each name that must stay the branch makes a value that is one output only."""
    made: set[int] = set()
    for inner in branch:
        made.update(id(value) for value in inner.outputs)
    results = [id(value) for value in branch.outputs]
    for old, result in zip(node.outputs, results, strict=True):
        if not old.is_graph_output():
            continue
        if result not in made or results.count(result) > 1:
            return False
    return True


def _move(branch: ir.Graph, outer: ir.Graph, place: ir.Node, edit: Edit) -> None:
    """Move initializers and nodes, under fresh names: two branches may use the same ones."""
    for value in list(branch.initializers.values()):
        assert value.name is not None
        del branch.initializers[value.name]
        value.name = edit.fresh(value.name)
        outer.register_initializer(value)
    nodes = list(branch)
    branch.remove(nodes)
    for node in nodes:
        for value in node.outputs:
            if value.name:
                value.name = edit.fresh(value.name)
    outer.insert_after(place, nodes)
