"""Heads and head sizes on one axis, (N, L, h*d), and the way between that and (N, h, L, d)."""

from __future__ import annotations

import onnx_ir as ir

from .._core.edit import Dim, dims_of, used_once
from .._core.graph import producer_of
from .shared import Shared

EXCHANGED = [0, 2, 1, 3]
"""Permutation between (N, h, L, d) and (N, L, h, d)."""


def merged_heads(value: ir.Value, node: ir.Node, shared: Shared) -> ir.Value:
    """The tensor (N, h, L, d) as (N, L, h*d); the one that it was made of, where that is it."""
    found = _made_of(value) or _rotated(value, node, shared)
    if found is not None:
        return found
    dims = dims_of(value)
    assert dims is not None
    merged = _merged(dims)
    rows = shared.result(
        node,
        "Transpose",
        [value],
        perm=EXCHANGED,
    )
    width = merged[2]
    target = shared.integers(
        node,
        0,
        0,
        width if isinstance(width, int) else -1,
    )
    return shared.result(
        node,
        "Reshape",
        [rows, target],
    )


def _made_of(value: ir.Value) -> ir.Value | None:
    """The tensor (N, L, h*d) of which a Reshape and a Transpose made (N, h, L, d)."""
    dims = dims_of(value)
    turn = producer_of(value, "Transpose")
    if dims is None or turn is None or not _exchanges(turn):
        return None
    view = producer_of(turn.inputs[0], "Reshape")
    source = None if view is None else view.inputs[0]
    merged = _merged(dims)
    if source is None or None in merged or dims_of(source) != merged:
        return None
    return source


def _rotated(value: ir.Value, node: ir.Node, shared: Shared) -> ir.Value | None:
    """The rotary embedding of heads (N, h, L, d) as one of (N, L, h*d), which it takes as well."""
    rotary = producer_of(value, "RotaryEmbedding")
    # what else reads it would have it rotated twice
    if rotary is None or not used_once(value):
        return None
    data, *angles = rotary.inputs
    dims = dims_of(data)
    source = None if data is None else _made_of(data)
    if dims is None or source is None:
        return None
    attributes = {
        name: attribute.value
        for name, attribute in rotary.attributes.items()
        if name != "num_heads"
    }
    rotated = shared.result(
        node,
        "RotaryEmbedding",
        [source, *angles],
        num_heads=dims[1],
        **attributes,
    )
    rotated.shape = source.shape
    return rotated


def leave_heads(
    node: ir.Node, merged: ir.Value, heads: int, size: Dim, shared: Shared
) -> bool:
    """Let what reads a node's output (N, h, L, d) read (N, L, h*d) instead; False if it must stay.

    A view that brings it into that shape goes. `size`: d.
    """
    output = node.outputs[0]
    dims = dims_of(output)
    turn = _only_reader(output, "Transpose")
    view = _only_reader(turn.outputs[0], "Reshape") if turn is not None else None
    if dims is not None and turn is not None and view is not None and _exchanges(turn):
        wanted = _merged(dims)
        if None not in wanted and dims_of(view.outputs[0]) == wanted:
            return shared.edit.bypass(view, merged)
    target = shared.integers(
        node,
        0,
        0,
        heads,
        size if isinstance(size, int) else -1,
    )
    rows = shared.result(
        node,
        "Reshape",
        [merged, target],
    )
    return shared.finish(
        node,
        "Transpose",
        [rows],
        perm=EXCHANGED,
    )


def _merged(dims: list[Dim]) -> list[Dim]:
    batch, heads, length, size = dims
    if not isinstance(heads, int) or not isinstance(size, int):
        return [batch, length, None]
    return [batch, length, heads * size]


def _exchanges(transpose: ir.Node) -> bool:
    return list(transpose.attributes.get_ints("perm", ())) == EXCHANGED


def _only_reader(value: ir.Value, op_type: str) -> ir.Node | None:
    if not used_once(value):
        return None
    (use,) = value.uses()
    is_wanted = use.node.domain == "" and use.node.op_type == op_type
    return use.node if is_wanted and use.idx == 0 else None
