"""Rotary embeddings: the two head dimensions of a pair turn together, by one column of the angle
tables.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from ..relations import Relations
from ..shapes import MICROSOFT
from ..surgery import Surgery, SurgeryError
from ..table import mend, rule


@rule("RotaryEmbedding")
def rotary(node: ir.Node, relations: Relations) -> None:
    """X (N, h, L, d) or (N, L, h*d), tables (P, d/2) or (N, L, d/2)."""
    _rotate(node, node.inputs[1:3], relations)
    for value in node.inputs[3:]:
        relations.freeze_all(value, "positions")


@rule("RotaryEmbedding", domain=MICROSOFT)
def rotary_of_runtime(node: ir.Node, relations: Relations) -> None:
    """The same with the positions second."""
    _rotate(node, node.inputs[2:4], relations)
    relations.freeze_all(node.inputs[1], "positions")


def _rotate(
    node: ir.Node, tables: Sequence[ir.Value | None], relations: Relations
) -> None:
    data, (cosine, sine) = node.inputs[0], tables
    assert data is not None
    assert cosine is not None
    assert sine is not None
    shape, turned = relations.shape(data) or (), _turned(relations.shape(cosine) or ())
    for axis in range(len(shape)):
        relations.same(data, axis, node.outputs[0], axis)
    for value in (cosine, sine):
        for axis in range(len(relations.shape(value) or ()) - 1):
            relations.freeze(value, axis, "positions")
    relations.same(cosine, -1, sine, -1)
    size, last = _head_size(node, shape, turned), (data, len(shape) - 1)
    interleaved, where = (
        node.attributes.get_int("interleaved", 0),
        f"{node.op_type} {node.name}",
    )
    if size == turned:
        pairs = (size // 2, 2) if interleaved else (2, size // 2)
        column = 1 if interleaved else 2
        relations.grouped(
            where,
            (shape[-1] // size, *pairs),
            [(last, (0, 1, 2)), ((cosine, -1), (column,))],
            [(0,), (column,)],
            heads=(0,),
        )
    elif shape[-1] == size:
        slots = np.arange(turned)
        relations.link(
            *last,
            slots,
            cosine,
            -1,
            slots // 2 if interleaved else slots % (turned // 2),
        )
    else:
        relations.freeze(cosine, -1, "some head dimensions turn, others do not")
        relations.grouped(
            where, (shape[-1] // size, size), [(last, (0, 1))], [(0,)], heads=(0,)
        )


def _turned(table: Sequence[int]) -> int:
    """How many dimensions of a head are rotated."""
    return 2 * table[-1]


def _head_size(node: ir.Node, shape: Sequence[int], turned: int) -> int:
    """The head size of X (N, h, L, d), or of (N, L, h*d) by its head count; without one all of a
    head turns.
    """
    heads = node.attributes.get_int("num_heads", 0)
    if len(shape) == 4:
        return shape[-1]
    return shape[-1] // heads if heads else turned


@mend("RotaryEmbedding")
def turn_fewer(node: ir.Node, surgery: Surgery) -> None:
    _fit(node, node.inputs[1], surgery)


@mend("RotaryEmbedding", domain=MICROSOFT)
def turn_fewer_of_runtime(node: ir.Node, surgery: Surgery) -> None:
    _fit(node, node.inputs[2], surgery)


def _fit(node: ir.Node, cosine: ir.Value | None, surgery: Surgery) -> None:
    """As many heads, and rotated dimensions of each, as stay."""
    data = node.inputs[0]
    assert data is not None
    assert cosine is not None
    kept, before = surgery.kept(data, -1), surgery.before(data)
    if kept is None:
        return
    turned = _turned(surgery.before(cosine))
    size = _head_size(node, before, turned)
    left = int((np.unique(kept % size) < turned).sum())
    if not left:
        raise SurgeryError(node, "none of the dimensions that it turns would stay")
    for name, count in (
        ("num_heads", len(np.unique(kept // size))),
        ("rotary_embedding_dim", left),
    ):
        if node.attributes.get_int(name, 0):
            node.attributes[name] = ir.AttrInt64(name, count)
