"""An If whose condition is always the same becomes the nodes of its branch."""

from __future__ import annotations

import onnx_ir as ir

from .._core.edit import Edit, array_of, release
from .._core.graph import subgraphs
from .symbols import symbols_of


def inline_branches(model: ir.Model, edit: Edit, positive: frozenset[str]) -> int:
    """Inline every If of known condition, outer ones first; how many. `positive`: symbols that are
    at least 1.
    """
    count = 0
    todo: list[ir.Graph] = [model.graph]
    while todo:
        graph = todo.pop()
        for node in graph:
            if node.op_type == "If" and node.domain == "":
                condition = _condition(node.inputs[0], edit, positive)
                if condition is not None and _inline(node, condition, edit):
                    count += 1  # the walk goes on with the nodes put in its place
                    continue
            todo.extend(subgraphs(node))
    return count


def _condition(
    value: ir.Value | None, edit: Edit, positive: frozenset[str]
) -> bool | None:
    """What a condition always is, if known; through Cast, Not, and comparison of a dim with a
    number.
    """
    constant = array_of(value)
    if constant is not None:
        return bool(constant.reshape(-1)[0]) if constant.size == 1 else None
    node = value.producer() if value is not None else None
    if node is None or node.domain != "":
        return None
    if node.op_type == "Not":
        inner = _condition(node.inputs[0], edit, positive)
        return None if inner is None else not inner
    if node.op_type == "Identity":
        return _condition(node.inputs[0], edit, positive)
    if node.op_type == "Cast" and node.attributes.get_int("to", 0) == ir.DataType.BOOL:
        if node.inputs[0] is not None and node.inputs[0].dtype == ir.DataType.BOOL:
            return _condition(node.inputs[0], edit, positive)
        return True if _low(node.inputs[0], edit, positive) >= 1 else None
    return _comparison(node, edit, positive)


def _comparison(node: ir.Node, edit: Edit, positive: frozenset[str]) -> bool | None:
    """A dim of at least 1 against a number of at most 0."""
    if node.op_type not in (
        "Equal",
        "Greater",
        "GreaterOrEqual",
        "Less",
        "LessOrEqual",
    ):
        return None
    dim, other = node.inputs
    sides = symbols_of(dim, edit.found), symbols_of(other, edit.found)
    if any(side is None or side.size != 1 for side in sides):
        return None
    number = sides[1].reshape(-1)[0] if sides[1] is not None else None
    if isinstance(number, int) and number < _low(dim, edit, positive):
        return node.op_type in ("Greater", "GreaterOrEqual")
    return None


def _low(value: ir.Value | None, edit: Edit, positive: frozenset[str]) -> int:
    """A lower bound of a one-element integer tensor that is a dim."""
    symbols = symbols_of(value, edit.found)
    if symbols is None or symbols.size != 1:
        return -(2**31)
    element = symbols.reshape(-1)[0]
    return (
        element
        if isinstance(element, int)
        else int(element in positive)
        if element is not None
        else -(2**31)
    )


def _inline(node: ir.Node, condition: bool, edit: Edit) -> bool:
    """Move the nodes of one branch to the place of the If. Not where an output of the If would have
    to be renamed.
    """
    outer = node.graph
    branch = node.attributes["then_branch" if condition else "else_branch"].as_graph()
    other = node.attributes["else_branch" if condition else "then_branch"].as_graph()
    if not isinstance(outer, ir.Graph):
        return False
    made = {id(v) for n in branch for v in n.outputs}
    results = list(branch.outputs)
    for old, new in zip(node.outputs, results, strict=True):
        if old.is_graph_output() and (
            id(new) not in made or [id(v) for v in results].count(id(new)) > 1
        ):
            return False
    release(other)
    branch.outputs.clear()
    _move(branch, outer, node, edit)
    for old, new in zip(node.outputs, results, strict=True):
        edit.replace(old, new)
    edit.remove(node)
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
