"""Einsum: axes with one label are one index space; labels that the result lacks are summed over."""

from __future__ import annotations

import itertools

import onnx_ir as ir

from ..._core.edit import is_constant
from ..relations import Axis, Relations, required_input
from ..table import rule

DOTS = "..."
DOT = "."
"""First letter of the label of an axis that an ellipsis stands for; its number follows."""

Place = tuple[int, Axis]
"""An operand, and the axis of it that has a label."""


@rule("Einsum")
def einsum(node: ir.Node, relations: Relations) -> None:
    """Labels that two computed operands share with the result count heads."""
    operands, made = _labels(node, relations)
    places: dict[str, list[Place]] = {}
    for index, labels in enumerate(operands):
        value = required_input(node, index)
        for axis, label in enumerate(labels):
            place = (index, (value, axis))
            places.setdefault(label, []).append(place)
    for label, found in places.items():
        # an axis of width 1 is broadcast: the widest stands for the label
        index, widest = max(found, key=lambda place: _width(place, relations))
        for _, (value, axis) in found:
            relations.same(value, axis, *widest)
        if label not in made:
            relations.mix(
                node,
                "contract",
                (index, widest[1]),
            )
            continue
        relations.same(*widest, node.outputs[0], made.index(label))
        computed = set()
        for operand, (value, _) in found:
            if not is_constant(value):
                computed.add(operand)
        if len(computed) > 1:
            relations.tag_heads(*widest)


def _width(place: Place, relations: Relations) -> int:
    _, (value, axis) = place
    root = relations.find(value, axis)
    return relations.sizes[root]


def _labels(node: ir.Node, relations: Relations) -> tuple[list[list[str]], list[str]]:
    """Labels of the axes of every operand, and of the result.

    The axes of an ellipsis are numbered from the end.
    """
    equation = node.attributes.get_string("equation", "")
    compact = equation.replace(" ", "")
    left, arrow, right = compact.partition("->")
    operands = []
    for index, text in enumerate(left.split(",")):
        rank = relations.rank(node.inputs[index])
        operands.append(_term(text, rank))
    if arrow:
        rank = relations.rank(node.outputs[0])
        return operands, _term(right, rank)
    return operands, _implied_result(operands)


def _implied_result(operands: list[list[str]]) -> list[str]:
    """Labels of a result without an arrow: the ellipsis, then what appears once, sorted."""
    every = list(itertools.chain.from_iterable(operands))
    dots = {label for label in every if label.startswith(DOT)}
    letters = set(every) - dots
    once = [label for label in letters if every.count(label) == 1]

    def from_the_end(dot: str) -> int:
        return int(dot.removeprefix(DOT))

    outermost_first = sorted(dots, key=from_the_end, reverse=True)
    return outermost_first + sorted(once)


def _term(text: str, rank: int) -> list[str]:
    """Labels of a tensor of that rank."""
    before, dots, after = text.partition(DOTS)
    count = 0
    if dots:
        letters = len(before) + len(after)
        count = rank - letters
    # numbered from the end, so that ellipses of several ranks meet at the last axis
    numbers = range(count, 0, -1)
    ellipsis = [f"{DOT}{number}" for number in numbers]
    return [*before, *ellipsis, *after]
