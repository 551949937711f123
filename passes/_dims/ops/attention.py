"""Fused attention: queries, keys and values of heads x head size, in one axis or in two.

Whole heads go, or head sizes: those of queries with those of keys, those of values with those of
the result. With fewer key heads than query heads (grouped queries) a key head takes its queries
along; one that is cached stays, and as many queries of each go.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import numpy as np
import onnx_ir as ir

from ..._core.ops import MICROSOFT
from ..relations import (
    Axis,
    Factors,
    Relations,
    name_of,
    optional_input,
    required_input,
)
from ..surgery import Surgery, set_int
from ..table import rule, update

# factors of the axes of an attention
KEY_HEAD = 0
QUERY_OF_HEAD = 1
KEY_SIZE = 2
VALUE_SIZE = 3

CACHE_SIZES = {
    "past_key": KEY_SIZE,
    "past_value": VALUE_SIZE,
    "present_key": KEY_SIZE,
    "present_value": VALUE_SIZE,
}
"""Caches are (N, k, S, d) each; by name, which factor their last axis is."""

ATTENDED = "attended over"

KEYS_STAY = (
    "it makes keys and values of heads that the cache, which the model reads and gives, holds: "
    "only queries of each may go"
)


@dataclass(frozen=True)
class Parts:
    """Tensors of an attention. `others` are masks and scores (N, k*g, L, S), axes of width 1 or
    absent in masks; `caches` (N, k, S, d), by their names in CACHE_SIZES.
    """

    query: ir.Value
    key: ir.Value
    value: ir.Value
    result: ir.Value
    others: list[ir.Value]
    caches: dict[str, ir.Value]


def _present(
    relations: Relations, values: dict[str, ir.Value | None]
) -> dict[str, ir.Value]:
    """Values that are not left out and have axes."""
    return {
        name: value
        for name, value in values.items()
        if value is not None and relations.rank(value)
    }


@rule("Attention")
def attention(node: ir.Node, relations: Relations) -> None:
    """Q (N, L, g*k*d) or (N, k*g, L, d), K and V with k heads, past and present (N, k, S, d), mask
    (.., k*g, L, S).
    """
    outputs: list[ir.Value | None] = [*node.outputs, None, None, None]
    caches = {
        "past_key": optional_input(node, 4),
        "past_value": optional_input(node, 5),
        "present_key": outputs[1],
        "present_value": outputs[2],
    }
    others = {"mask": optional_input(node, 3), "scores": outputs[3]}
    present_others = _present(relations, others)
    parts = Parts(
        query=required_input(node, 0),
        key=required_input(node, 1),
        value=required_input(node, 2),
        result=node.outputs[0],
        others=list(present_others.values()),
        caches=_present(relations, caches),
    )
    heads = _head_counts(node, relations)
    _attend(
        node,
        parts,
        heads,
        relations,
    )
    relations.freeze_all(optional_input(node, 6), "sequence lengths")
    last = relations.rank(parts.query) - 1
    # scores sum over the head size of queries and keys
    relations.mix(
        node,
        "contract",
        (0, last),
    )


def _head_counts(node: ir.Node, relations: Relations) -> tuple[int, int]:
    """Heads of queries, heads of keys."""
    query = relations.dims(node.inputs[0])
    if len(query) == 4:
        key = relations.dims(node.inputs[1])
        return query[1], key[1]
    queries = node.attributes.get_int("q_num_heads", 1)
    keys = node.attributes.get_int("kv_num_heads", 1)
    return queries, keys


def _attend(
    node: ir.Node, parts: Parts, heads: tuple[int, int], relations: Relations
) -> None:
    """Relate heads and head sizes, cut as each tensor has them."""
    queries, keys = heads
    packed = relations.rank(parts.query) == 3
    sizes: tuple[int, ...] = (keys, queries // keys)
    options: list[Factors] = [(_leaving_head(parts, keys),)]
    if packed:
        sizes += (
            relations.size(parts.key, -1) // keys,
            relations.size(parts.value, -1) // keys,
        )
        options.append((KEY_SIZE, VALUE_SIZE))
    axes = _factored_axes(
        parts,
        packed,
        queries,
        relations,
    )
    relations.grouped(
        name_of(node),
        sizes,
        axes=list(axes),
        options=options,
        heads=(KEY_HEAD, QUERY_OF_HEAD),
    )
    if not packed:
        for value in (parts.query, parts.key, parts.value, parts.result):
            relations.tag_heads(value, 1)
        relations.same(
            parts.query,
            3,
            parts.key,
            3,
        )
        relations.same(
            parts.value,
            3,
            parts.result,
            3,
        )
    _relate_positions(
        parts,
        packed,
        relations,
    )


def _factored_axes(
    parts: Parts, packed: bool, queries: int, relations: Relations
) -> Iterator[tuple[Axis, Factors]]:
    """Axes that heads and head sizes make up; head sizes of caches by themselves are related."""
    made_of: list[tuple[ir.Value, Factors, int]] = [
        (parts.query, (KEY_HEAD, QUERY_OF_HEAD), KEY_SIZE),
        (parts.key, (KEY_HEAD,), KEY_SIZE),
        (parts.value, (KEY_HEAD,), VALUE_SIZE),
        (parts.result, (KEY_HEAD, QUERY_OF_HEAD), VALUE_SIZE),
    ]
    for value, heads, size in made_of:
        if packed:
            # (N, L, heads * size)
            yield (value, 2), (*heads, size)
        else:
            # (N, heads, L, size)
            yield (value, 1), heads
    for name, cache in parts.caches.items():
        size = CACHE_SIZES[name]
        yield (cache, 1), (KEY_HEAD,)
        if packed:
            yield (cache, 3), (size,)
        else:
            uncached = parts.key if size == KEY_SIZE else parts.value
            relations.same(
                cache,
                3,
                uncached,
                3,
            )
    for other in parts.others:
        rank = relations.rank(other)
        # a mask may be the same for all heads
        heads_of_other = relations.dims(other)[-3:-2]
        if heads_of_other == (queries,):
            yield (other, rank - 3), (KEY_HEAD, QUERY_OF_HEAD)


def _relate_positions(parts: Parts, packed: bool, relations: Relations) -> None:
    """Samples and positions of queries stay apart; keys are summed over by position, so those
    stay.
    """
    query = parts.query
    row = 1 if packed else 2
    for value in (parts.key, parts.value):
        relations.same(
            value,
            0,
            query,
            0,
        )
        relations.freeze(
            value,
            row,
            ATTENDED,
        )
    relations.same(
        parts.result,
        0,
        query,
        0,
    )
    relations.same(
        parts.result,
        row,
        query,
        row,
    )
    for cache in parts.caches.values():
        relations.same(
            cache,
            0,
            query,
            0,
        )
        relations.freeze(
            cache,
            2,
            ATTENDED,
        )
    for other in parts.others:
        rank = relations.rank(other)
        relations.freeze(
            other,
            -1,
            ATTENDED,
        )
        if rank > 1:
            relations.same(
                other,
                -2,
                query,
                row,
            )
        if rank == 4:
            relations.same(
                other,
                0,
                query,
                0,
            )


@update("Attention")
def fewer_heads(node: ir.Node, surgery: Surgery) -> None:
    """Set the head counts of what stays, and the scale of the head size that was."""
    query = required_input(node, 0)
    key = required_input(node, 1)
    size = surgery.before(query)[-1]
    if len(surgery.before(query)) == 3:
        size //= node.attributes.get_int("q_num_heads", 1)
        _recount(
            node,
            "q_num_heads",
            query,
            size,
            surgery,
        )
        _recount(
            node,
            "kv_num_heads",
            key,
            size,
            surgery,
        )
    if surgery.narrowed(query, -1):
        _keep_scale(node, size)


def _recount(
    node: ir.Node, name: str, value: ir.Value, size: int, surgery: Surgery
) -> None:
    """Set a number of heads to those of which some slot of the last axis stays."""
    kept = surgery.kept(value, -1)
    if kept is not None:
        heads = np.unique(kept // size)
        set_int(
            node,
            name,
            len(heads),
        )


def _keep_scale(node: ir.Node, size: int) -> None:
    """Write out the scale of a head size: left out, it follows the size that stays."""
    if "scale" not in node.attributes:
        scale = 1 / sqrt(size)
        node.attributes["scale"] = ir.AttrFloat32("scale", scale)


@rule("MultiHeadAttention", domain=MICROSOFT)
def heads_attention(node: ir.Node, relations: Relations) -> None:
    """Separate queries, keys and values (N, L, h*d) without a cache; bias (q + k + v,)."""
    separate = [value for value in node.inputs[:3] if relations.rank(value) == 3]
    cached = len(node.inputs) > 6 or len(node.outputs) > 1
    if len(separate) < 3 or cached:
        relations.freeze_node(
            node, "it belongs to a MultiHeadAttention with packed inputs or a cache"
        )
        return
    heads = node.attributes.get_int("num_heads", 1)
    bias = optional_input(node, 3)
    mask = {"mask": optional_input(node, 5)}
    present_mask = _present(relations, mask)
    parts = Parts(
        query=required_input(node, 0),
        key=required_input(node, 1),
        value=required_input(node, 2),
        result=node.outputs[0],
        others=list(present_mask.values()),
        caches={},
    )
    _attend(
        node,
        parts,
        (heads, heads),
        relations,
    )
    relations.freeze_all(optional_input(node, 4), "it is a padding mask")
    summed = [(0, 2)]
    if bias is not None:
        offset = 0
        for value in (parts.query, parts.key, parts.value):
            # one bias for all three, after each other
            slots = relations.slots(value, 2)
            relations.link(
                bias,
                0,
                offset + slots,
                value,
                2,
                slots,
            )
            offset += len(slots)
        summed.append((3, 0))
    relations.mix(
        node,
        "contract",
        *summed,
    )


@update("MultiHeadAttention", domain=MICROSOFT)
def fewer_separate_heads(node: ir.Node, surgery: Surgery) -> None:
    """Set the head count of what stays, and the scale of the head size that was."""
    query = required_input(node, 0)
    heads = node.attributes.get_int("num_heads", 1)
    size = surgery.before(query)[-1] // heads
    if surgery.narrowed(query, -1):
        _keep_scale(node, size)
    _recount(
        node,
        "num_heads",
        query,
        size,
        surgery,
    )


@rule("GroupQueryAttention", domain=MICROSOFT)
def grouped_attention(node: ir.Node, relations: Relations) -> None:
    """Q (N, L, g*k*d), K and V (N, L, k*d), or all three after each other in Q; caches
    (N, k, P, d), angles of a rotation, scores to add.

    Heads go, never head sizes: the kernel takes few of those.
    """
    outputs: list[ir.Value | None] = [*node.outputs, None, None, None]
    caches = {
        "past_key": optional_input(node, 3),
        "past_value": optional_input(node, 4),
        "present_key": outputs[1],
        "present_value": outputs[2],
    }
    others = _present(
        relations, {"bias": optional_input(node, 10), "scores": outputs[3]}
    )
    query = required_input(node, 0)
    result = node.outputs[0]
    parts = Parts(
        query=query,
        key=optional_input(node, 1) or query,
        value=optional_input(node, 2) or query,
        result=result,
        others=list(others.values()),
        caches=_present(relations, caches),
    )
    settings = (*node.inputs[5:10], *node.inputs[12:])
    for value in settings:
        relations.freeze_all(value, "it holds lengths, positions, angles or scales")
    queries = node.attributes.get_int("num_heads", 1)
    keys = node.attributes.get_int("kv_num_heads", 1)
    size = relations.size(result, -1) // queries
    sizes = (keys, queries // keys, size, size)
    axes = list(
        _factored_axes(
            parts,
            True,
            queries,
            relations,
        )
    )
    if parts.key is query:
        # all three lie on one axis: its slots are linked to those of the result
        axes = [(axis, factors) for axis, factors in axes if axis[0] is not query]
    sink = optional_input(node, 11)
    if relations.rank(sink):
        axes.append(((required_input(node, 11), 0), (KEY_HEAD, QUERY_OF_HEAD)))
    head = _leaving_head(parts, keys)
    relations.grouped(
        name_of(node),
        sizes,
        axes=axes,
        options=[(head,)],
        heads=(KEY_HEAD, QUERY_OF_HEAD),
    )
    if parts.key is query:
        _link_packed(
            parts,
            sizes[:3],
            head,
            relations,
        )
    _relate_positions(
        parts,
        True,
        relations,
    )
    relations.mix(
        node,
        "contract",
        (0, 2),
    )


def _leaving_head(parts: Parts, keys: int) -> int:
    """Factor along which heads go.

    One key head cannot go, and a cached one stays: then as many queries of each go.
    """
    return QUERY_OF_HEAD if keys == 1 or parts.caches else KEY_HEAD


def _link_packed(
    parts: Parts, sizes: tuple[int, int, int], head: int, relations: Relations
) -> None:
    """Relate queries, keys and values on one axis to the result's channels.

    `sizes`: key heads, queries of each, head size.
    """
    result = relations.slots(parts.result, 2)
    relations.link(
        parts.query,
        2,
        result,
        parts.result,
        2,
        result,
    )
    keys, _, size = sizes
    of_one = np.arange(keys * size).reshape(
        keys,
        1,
        size,
    )
    # every query of a key head goes with the key's own channels, and with the value's
    of_queries = np.broadcast_to(of_one, sizes).reshape(-1)
    for offset in (len(result), len(result) + keys * size):
        if head == KEY_HEAD:
            slots = offset + of_queries
            relations.link(
                parts.query,
                2,
                slots,
                parts.result,
                2,
                result,
            )
        else:
            slots = offset + np.arange(keys * size)
            relations.freeze(
                parts.query,
                2,
                KEYS_STAY,
                slots,
            )


@update("GroupQueryAttention", domain=MICROSOFT)
def fewer_grouped_heads(node: ir.Node, surgery: Surgery) -> None:
    """Set the head counts of what stays."""
    query = required_input(node, 0)
    result = node.outputs[0]
    queries = node.attributes.get_int("num_heads", 1)
    keys = node.attributes.get_int("kv_num_heads", 1)
    width = surgery.before(result)[-1]
    size = width // queries
    _recount(
        node,
        "num_heads",
        result,
        size,
        surgery,
    )
    key = optional_input(node, 1)
    if key is not None:
        _recount(
            node,
            "kv_num_heads",
            key,
            size,
            surgery,
        )
        return
    kept = surgery.kept(query, 2)
    if kept is not None:
        # keys come behind the queries
        heads = np.unique(kept // size) - queries
        left = np.count_nonzero((heads >= 0) & (heads < keys))
        set_int(
            node,
            "kv_num_heads",
            int(left),
        )


# factors of the axes of an attention whose weight makes queries, keys and values together
PACKED = 0
HEAD = 1
HEAD_SIZE = 2


@rule("Attention", domain=MICROSOFT)
def packed_attention(node: ir.Node, relations: Relations) -> None:
    """Input (N, L, C), weight (C, 3*h*d), bias (3*h*d,) -> (N, L, h*d), without a cache."""
    data = required_input(node, 0)
    weight = required_input(node, 1)
    bias = optional_input(node, 2)
    result = node.outputs[0]
    if not _is_plain(node, relations):
        reason = (
            "it belongs to an Attention with a cache, a rotation or sizes of its own"
        )
        relations.freeze_node(node, reason)
        return
    relations.same(
        data,
        2,
        weight,
        0,
    )
    relations.same(
        data,
        0,
        result,
        0,
    )
    relations.same(
        data,
        1,
        result,
        1,
    )
    for value in node.inputs[3:]:
        relations.freeze_all(value, "it is an attention mask")
    axes: list[tuple[Axis, Factors]] = [
        ((weight, 1), (PACKED, HEAD, HEAD_SIZE)),
        ((result, 2), (HEAD, HEAD_SIZE)),
    ]
    summed = [(0, 2), (1, 1)]
    if bias is not None:
        axes.append(((bias, 0), (PACKED, HEAD, HEAD_SIZE)))
        summed.append((2, 0))
    options: list[Factors] = [(HEAD,), (HEAD_SIZE,)]
    # a score bias (N, h, L, S) that differs by head is not cut: heads stay
    scores_bias = relations.dims(optional_input(node, 5))
    if scores_bias and scores_bias[1] > 1:
        options = [(HEAD_SIZE,)]
    heads = node.attributes.get_int("num_heads", 1)
    width = relations.size(weight, 1) // 3
    relations.grouped(
        name_of(node),
        sizes=(3, heads, width // heads),
        axes=axes,
        options=options,
        heads=(HEAD,),
    )
    relations.mix(
        node,
        "contract",
        *summed,
    )


def _is_plain(node: ir.Node, relations: Relations) -> bool:
    """Return whether it has no cache, no rotation, and queries, keys and values of one size."""
    width = relations.size(node.inputs[1], 1)
    equal = [width // 3] * 3
    sizes = node.attributes.get_ints("qkv_hidden_sizes", equal)
    if list(sizes) != equal or sum(equal) != width:
        return False
    if node.attributes.get_int("do_rotary", 0) or len(node.outputs) > 1:
        return False
    of_cache = (*node.inputs[4:5], *node.inputs[6:])
    return all(value is None for value in of_cache)


@update("Attention", domain=MICROSOFT)
def fewer_packed_heads(node: ir.Node, surgery: Surgery) -> None:
    """Set head count and sizes of what stays, and the scale of the head size that was."""
    weight = required_input(node, 1)
    kept = surgery.kept(node.outputs[0], 2)
    if kept is None:
        return
    width = surgery.before(weight)[1] // 3
    # channels of the result are heads times head size, as those of each third of the weight
    size = width // node.attributes.get_int("num_heads", 1)
    _keep_scale(node, size)
    heads = len(np.unique(kept // size))
    set_int(
        node,
        "num_heads",
        heads,
    )
    if "qkv_hidden_sizes" in node.attributes:
        sizes = [len(kept)] * 3
        node.attributes["qkv_hidden_sizes"] = ir.AttrInt64s("qkv_hidden_sizes", sizes)
