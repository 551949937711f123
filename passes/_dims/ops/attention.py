"""Fused attention: queries, keys and values of heads x head size, in one axis or in two.

Whole heads go, or head sizes: those of queries with those of keys, those of values with those of
the result. With fewer key heads than query heads (grouped queries) a key head takes its queries
along; one that is cached stays, and as many queries of each go.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt

import numpy as np
import onnx_ir as ir

from ..relations import Axis, Relations
from ..shapes import MICROSOFT
from ..surgery import Surgery
from ..table import mend, rule

Parts = dict[str, ir.Value | None]

MAIN = ("query", "key", "value", "result")
CACHES = {"past_key": 2, "past_value": 3, "present_key": 2, "present_value": 3}
"""(N, k, S, d) each; which factor their last axis is."""

SCORES = ("mask", "scores")
"""(N, k*g, L, S), axes of width 1 or absent in masks."""


def _named(node: ir.Node, *names: str) -> Parts:
    return dict(zip(names, [*node.inputs, *[None] * len(names)], strict=False))


@rule("Attention")
def attention(node: ir.Node, relations: Relations) -> None:
    """Q (N, L, g*k*d) or (N, k*g, L, d), K and V with k heads, past and present (N, k, S, d), mask
    (.., k*g, L, S).
    """
    parts = _named(
        node, "query", "key", "value", "mask", "past_key", "past_value", "lengths"
    )
    parts |= dict(
        zip(
            ("result", "present_key", "present_value", "scores"),
            node.outputs,
            strict=False,
        )
    )
    heads = _head_counts(node, relations)
    query = parts["query"]
    assert query is not None
    _attend(node, parts, heads, relations)
    relations.freeze_all(parts["lengths"], "sequence lengths")
    relations.mix(node, "contract", (0, len(relations.shape(query) or ()) - 1))


def _head_counts(node: ir.Node, relations: Relations) -> tuple[int, int]:
    """Heads of queries, heads of keys."""
    query, key = (relations.shape(value) or () for value in node.inputs[:2])
    if len(query) == 4:
        return query[1], key[1]
    return node.attributes.get_int("q_num_heads", 1), node.attributes.get_int(
        "kv_num_heads", 1
    )


def _attend(
    node: ir.Node, parts: Parts, heads: tuple[int, int], relations: Relations
) -> None:
    """Heads (k, g) and head sizes (d of keys, v of values), cut as each tensor has them."""
    queries, keys = heads
    query, key, value, result = (parts[name] for name in MAIN)
    assert query is not None
    assert key is not None
    assert value is not None
    assert result is not None
    packed = len(relations.shape(query) or ()) == 3
    widths = [
        (relations.shape(one) or ())[-1] // (keys if packed else 1)
        for one in (key, value)
    ]
    axes: list[tuple[Axis, tuple[int, ...]]] = []
    for one, own, size in (
        (query, (0, 1), 2),
        (key, (0,), 2),
        (value, (0,), 3),
        (result, (0, 1), 3),
    ):
        axes.append(((one, 2), (*own, size)) if packed else ((one, 1), own))
    caches = [
        (name, size)
        for name, size in CACHES.items()
        if relations.shape(parts.get(name))
    ]
    for name, size in caches:
        cache = parts[name]
        assert cache is not None
        axes.append(((cache, 1), (0,)))
        if packed:
            axes.append(((cache, 3), (size,)))
        else:
            relations.same(cache, 3, key if size == 2 else value, 3)
    axes += [
        ((one, rank - 3), (0, 1)) for one, rank in _by_head(parts, queries, relations)
    ]
    options = [(1,) if keys == 1 or caches else (0,), *([(2, 3)] if packed else [])]
    sizes = (keys, queries // keys, *(widths if packed else ()))
    relations.grouped(f"{node.op_type} {node.name}", sizes, axes, options, heads=(0, 1))
    if not packed:
        for one in (query, key, value, result):
            relations.tag_heads(one, 1)
        relations.same(query, 3, key, 3)
        relations.same(value, 3, result, 3)
    _positions(parts, packed, relations)


def _by_head(
    parts: Parts, queries: int, relations: Relations
) -> Iterator[tuple[ir.Value, int]]:
    """Masks and scores that differ by head, with their rank."""
    for one in (parts.get(name) for name in SCORES):
        shape = relations.shape(one) or ()
        if one is not None and len(shape) > 2 and shape[-3] == queries:
            yield one, len(shape)


def _positions(parts: Parts, packed: bool, relations: Relations) -> None:
    """Samples and positions of queries stay apart; keys are summed over by position, so those
    stay.
    """
    query, row = parts["query"], 1 if packed else 2
    assert query is not None
    for name in (*MAIN[1:], *CACHES):
        one = parts.get(name)
        if one is None or not relations.shape(one):
            continue
        relations.same(one, 0, query, 0)
        if name == "result":
            relations.same(one, row, query, row)
        else:
            relations.freeze(one, 2 if name in CACHES else row, "attended over")
    for one in (parts.get(name) for name in SCORES):
        rank = len(relations.shape(one) or ())
        if one is not None and rank:
            relations.freeze(one, -1, "attended over")
        if one is not None and rank > 1:
            relations.same(one, -2, query, row)
        if one is not None and rank == 4:
            relations.same(one, 0, query, 0)


@mend("Attention")
def fewer_heads(node: ir.Node, surgery: Surgery) -> None:
    """The head counts of what stays, and the scale of the head size that was."""
    query, key = node.inputs[:2]
    assert query is not None
    assert key is not None
    packed = len(surgery.before(query)) == 3
    size = surgery.before(query)[-1] // (
        node.attributes.get_int("q_num_heads", 1) if packed else 1
    )
    if packed:
        for value, name in ((query, "q_num_heads"), (key, "kv_num_heads")):
            _recount(node, name, value, size, surgery)
    if "scale" not in node.attributes and surgery.narrowed(query, -1):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / sqrt(size))


def _recount(
    node: ir.Node, name: str, value: ir.Value, size: int, surgery: Surgery
) -> None:
    """Set a number of heads to those of which some slot of the last axis stays."""
    kept = surgery.kept(value, -1)
    if kept is not None:
        node.attributes[name] = ir.AttrInt64(name, len(np.unique(kept // size)))


@rule("MultiHeadAttention", domain=MICROSOFT)
def heads_attention(node: ir.Node, relations: Relations) -> None:
    """Separate queries, keys and values (N, L, h*d) without a cache; bias (q + k + v,)."""
    parts = _named(
        node,
        "query",
        "key",
        "value",
        "bias",
        "padding",
        "mask",
        "past_key",
        "past_value",
    )
    plain = all(
        len(relations.shape(parts[name]) or ()) == 3
        for name in ("query", "key", "value")
    )
    if not plain or len(node.inputs) > 6 or len(node.outputs) > 1:
        for value in (*node.inputs, *node.outputs):
            relations.freeze_all(value, "a packed or cached MultiHeadAttention")
        return
    heads = node.attributes.get_int("num_heads", 1)
    parts["result"] = node.outputs[0]
    _attend(node, parts, (heads, heads), relations)
    relations.freeze_all(parts["padding"], "a padding mask")
    offset = 0
    for name in ("query", "key", "value"):
        one, bias = parts[name], parts["bias"]
        assert one is not None
        if bias is not None:
            slots = np.arange((relations.shape(one) or ())[2])
            relations.link(bias, 0, offset + slots, one, 2, slots)
            offset += len(slots)
    relations.mix(
        node, "contract", (0, 2), *([] if parts["bias"] is None else [(3, 0)])
    )


@mend("MultiHeadAttention", domain=MICROSOFT)
def fewer_separate_heads(node: ir.Node, surgery: Surgery) -> None:
    query = node.inputs[0]
    assert query is not None
    size = surgery.before(query)[-1] // node.attributes.get_int("num_heads", 1)
    if "scale" not in node.attributes and surgery.narrowed(query, -1):
        node.attributes["scale"] = ir.AttrFloat32("scale", 1 / sqrt(size))
    _recount(node, "num_heads", query, size, surgery)


@rule("Attention", domain=MICROSOFT)
def packed_attention(node: ir.Node, relations: Relations) -> None:
    """Input (N, L, C), weight (C, 3*h*d), bias (3*h*d,) -> (N, L, h*d), without a cache."""
    data, weight, bias = [*node.inputs, None][:3]
    result, heads = node.outputs[0], node.attributes.get_int("num_heads", 1)
    assert data is not None
    assert weight is not None
    width = (relations.shape(weight) or ())[1]
    cached = len(node.outputs) > 1 or any(
        value is not None for value in (*node.inputs[4:5], *node.inputs[6:])
    )
    sizes = list(node.attributes.get_ints("qkv_hidden_sizes", [width // 3] * 3))
    rotated = node.attributes.get_int("do_rotary", 0)
    if cached or rotated or sizes != [width // 3] * 3 or sum(sizes) != width:
        for value in (*node.inputs, *node.outputs):
            relations.freeze_all(
                value, "Attention with a cache, rotation or sizes of its own"
            )
        return
    relations.same(data, 2, weight, 0)
    for axis in (0, 1):
        relations.same(data, axis, result, axis)
    for value in node.inputs[3:]:
        relations.freeze_all(value, "an attention mask")
    axes: list[tuple[Axis, tuple[int, ...]]] = [
        ((weight, 1), (0, 1, 2)),
        ((result, 2), (1, 2)),
    ]
    if bias is not None:
        axes.append(((bias, 0), (0, 1, 2)))
    biased = any(
        (relations.shape(value) or (1,) * 4)[1] > 1 for value in node.inputs[5:6]
    )
    options = [(2,)] if biased else [(1,), (2,)]
    relations.grouped(
        f"{node.op_type} {node.name}",
        (3, heads, width // 3 // heads),
        axes,
        options,
        heads=(1,),
    )
    relations.mix(node, "contract", (0, 2), (1, 1), *([] if bias is None else [(2, 0)]))


@mend("Attention", domain=MICROSOFT)
def fewer_packed_heads(node: ir.Node, surgery: Surgery) -> None:
    result, weight = node.outputs[0], node.inputs[1]
    assert weight is not None
    kept = surgery.kept(result, 2)
    size = surgery.before(weight)[1] // 3 // node.attributes.get_int("num_heads", 1)
    if kept is not None:
        if "scale" not in node.attributes:
            node.attributes["scale"] = ir.AttrFloat32("scale", 1 / sqrt(size))
        node.attributes["num_heads"] = ir.AttrInt64(
            "num_heads", len(np.unique(kept // size))
        )
        if "qkv_hidden_sizes" in node.attributes:
            node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s(
                "qkv_hidden_sizes", [len(kept)] * 3
            )
