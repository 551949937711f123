"""Einsum: axes with one label are one index space; labels that the result lacks are summed over."""

from __future__ import annotations

import onnx_ir as ir

from ..._core.edit import is_constant
from ..relations import Axis, Relations
from ..table import rule


@rule("Einsum")
def einsum(node: ir.Node, relations: Relations) -> None:
    """Labels that two computed operands share with the result count heads."""
    operands, made = _labels(node, relations)
    places: dict[str, list[tuple[int, Axis]]] = {}
    for index, (value, labels) in enumerate(zip(node.inputs, operands, strict=True)):
        assert value is not None
        for position, one in enumerate(labels):
            places.setdefault(one, []).append((index, (value, position)))
    for one, found in places.items():
        # an axis of width 1 is broadcast: the widest stands for the label
        index, widest = max(
            found, key=lambda place: relations.sizes[relations.find(*place[1])]
        )
        for _, (value, axis) in found:
            relations.same(value, axis, *widest)
        if one not in made:
            relations.mix(node, "contract", (index, widest[1]))
            continue
        relations.same(*widest, node.outputs[0], made.index(one))
        if len({i for i, (value, _) in found if not is_constant(value)}) > 1:
            relations.tag_heads(*widest)


def _labels(node: ir.Node, relations: Relations) -> tuple[list[list[str]], list[str]]:
    """The label of every axis of every operand and of the result; the axes of an ellipsis are
    numbered from the end.
    """
    left, arrow, right = (
        node.attributes.get_string("equation", "").replace(" ", "").partition("->")
    )
    ranks = [len(relations.shape(value) or ()) for value in node.inputs]
    operands = [
        _term(text, rank) for text, rank in zip(left.split(","), ranks, strict=True)
    ]
    if arrow:
        return operands, _term(right, len(relations.shape(node.outputs[0]) or ()))
    counts = [one for labels in operands for one in labels]
    dots = sorted(
        {one for one in counts if one[0] == "."}, key=lambda one: -int(one[1:])
    )
    return operands, dots + sorted(
        one for one in set(counts) if one[0] != "." and counts.count(one) == 1
    )


def _term(text: str, rank: int) -> list[str]:
    before, dots, after = text.partition("...")
    count = rank - len(before) - len(after) if dots else 0
    return [*before, *(f".{count - i}" for i in range(count)), *after]
