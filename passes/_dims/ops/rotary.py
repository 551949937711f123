"""Rotary embeddings: the two head dimensions of a pair turn together, by one column of the angle
tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..._core.ops import MICROSOFT
from ..relations import Relations, name_of, required_input
from ..shapes import Shape
from ..surgery import Surgery, SurgeryError, set_int
from ..table import rule, update


@rule("RotaryEmbedding")
def rotary(node: ir.Node, relations: Relations) -> None:
    """X (N, h, L, d) or (N, L, h*d), tables (P, d/2) or (N, L, d/2)."""
    _rotate(node, 1, relations)
    for value in node.inputs[3:]:
        relations.freeze_all(value, "positions")


@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_of_runtime(node: ir.Node, relations: Relations) -> None:
    """The same with the positions second."""
    _rotate(node, 2, relations)
    relations.freeze_all(node.inputs[1], "positions")


def _rotate(node: ir.Node, table: int, relations: Relations) -> None:
    """Relate data and both tables of angles; `table`: the input that holds the cosines."""
    data = required_input(node, 0)
    cosine = required_input(node, table)
    sine = required_input(node, table + 1)
    shape = relations.dims(data)
    turned = _turned(relations.dims(cosine))
    for axis in range(len(shape)):
        relations.same(data, axis, node.outputs[0], axis)
    for value in (cosine, sine):
        for axis in range(relations.rank(value) - 1):
            relations.freeze(value, axis, "positions")
    relations.same(cosine, -1, sine, -1)
    size = _head_size(node, shape, turned)
    interleaved = bool(node.attributes.get_int("interleaved", 0))
    if size == turned:
        _turn_whole_heads(
            node,
            data,
            cosine,
            size,
            interleaved,
            relations,
        )
    elif shape[-1] == size:
        # one head on the axis: slots that turn go with their column, the others are free
        slots = np.arange(turned)
        columns = slots // 2 if interleaved else slots % (turned // 2)
        relations.link(
            data,
            -1,
            slots,
            cosine,
            -1,
            columns,
        )
    else:
        relations.freeze(
            cosine, -1, "the rotary embedding turns only some dimensions of each head"
        )
        relations.grouped(
            name_of(node),
            sizes=(shape[-1] // size, size),
            axes=[((data, len(shape) - 1), (0, 1))],
            options=[(0,)],
            heads=(0,),
        )


def _turn_whole_heads(
    node: ir.Node,
    data: ir.Value,
    cosine: ir.Value,
    size: int,
    interleaved: bool,
    relations: Relations,
) -> None:
    """Factors of the last axis: heads, and pairs of dimensions, of which one factor is the column.

    Interleaved pairs lie side by side, the others half a head apart.
    """
    shape = relations.dims(data)
    heads = shape[-1] // size
    column = 1 if interleaved else 2
    half = size // 2
    sizes = (heads, half, 2) if interleaved else (heads, 2, half)
    relations.grouped(
        name_of(node),
        sizes,
        axes=[((data, len(shape) - 1), (0, 1, 2)), ((cosine, -1), (column,))],
        options=[(0,), (column,)],
        heads=(0,),
    )


def _turned(table: Sequence[int]) -> int:
    """Dimensions of a head that are rotated."""
    return 2 * table[-1]


def _head_size(node: ir.Node, shape: Shape, turned: int) -> int:
    """Head size of X (N, h, L, d), or of (N, L, h*d) by its head count.

    Without a head count all of a head turns.
    """
    heads = node.attributes.get_int("num_heads", 0)
    if len(shape) == 4:
        return shape[-1]
    return shape[-1] // heads if heads else turned


@update("RotaryEmbedding")
def turn_fewer(node: ir.Node, surgery: Surgery) -> None:
    """Set the heads and rotated dimensions that stay."""
    _fit(node, required_input(node, 1), surgery)


@update("RotaryEmbedding", domain=MICROSOFT)
def turn_fewer_of_runtime(node: ir.Node, surgery: Surgery) -> None:
    """The same with the positions second."""
    _fit(node, required_input(node, 2), surgery)


def _fit(node: ir.Node, cosine: ir.Value, surgery: Surgery) -> None:
    """Set as many heads, and rotated dimensions of each, as stay."""
    data = required_input(node, 0)
    kept = surgery.kept(data, -1)
    if kept is None:
        return
    turned = _turned(surgery.before(cosine))
    size = _head_size(
        node,
        surgery.before(data),
        turned,
    )
    # the dimensions that turn are the first of each head
    dimensions = np.unique(kept % size)
    left = int((dimensions < turned).sum())
    if not left:
        raise SurgeryError(node, "no dimension that it turns would be left")
    counts = {
        "num_heads": len(np.unique(kept // size)),
        "rotary_embedding_dim": left,
    }
    for name, count in counts.items():
        # 0, the default, says that the shapes tell it
        if node.attributes.get_int(name, 0):
            set_int(node, name, count)
