"""Rules for ops that only move or view data: Reshape, Transpose, Squeeze, Slice, Concat, Expand,
Flatten, Gather.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from ..._core.edit import (
    Dim,
    Edit,
    array_of,
    dims_of,
    ints_of,
    rank_of,
    static_dims,
    used_once,
)
from ..._core.ops import VIEWS, is_standard
from ..symbols import all_ints, axes_of, slice_parts, symbols_of

TO_THE_END = 2**31 - 1
"""Slice ends from here on mean "to the end", whatever the size."""


def _behind(value: ir.Value | None, *op_types: str) -> ir.Node | None:
    """The standard node of one of these types that makes `value`."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, *op_types):
        return None
    return node


def shape_constant(node: ir.Node, edit: Edit) -> bool:
    """An integer tensor computed from shapes, every element of which is known, is a constant."""
    output = node.outputs[0]
    if (
        output.is_graph_output()
        or node.graph is None
        or not isinstance(node.graph, ir.Graph)
    ):
        return False
    symbols = symbols_of(output, edit.found)
    if symbols is None or not all_ints(symbols):
        return False
    kind = np.int32 if output.dtype == ir.DataType.INT32 else np.int64
    return edit.bypass(
        node, edit.constant(node.graph, symbols.astype(kind), f"{output.name}_value")
    )


def transpose(node: ir.Node, edit: Edit) -> bool:
    """Transpose by the identity; Transpose of a Transpose is one by the composed permutation."""
    perm = list(node.attributes.get_ints("perm", []))
    source = node.inputs[0]
    rank = rank_of(source)
    if not perm and rank is not None:
        perm = list(range(rank))[::-1]
    if perm and perm == sorted(perm) and source is not None:
        return edit.bypass(node, source)
    inner = _behind(source, "Transpose")
    first = list(inner.attributes.get_ints("perm", [])) if inner is not None else []
    if inner is None or not perm:
        return False
    first = first or list(range(len(perm)))[::-1]
    node.attributes["perm"] = ir.AttrInt64s("perm", [first[p] for p in perm])
    edit.set_input(node, 0, inner.inputs[0])
    return True


def reshape_same(node: ir.Node, edit: Edit) -> bool:
    """Reshape to the shape that the tensor has."""
    source, dims = node.inputs[0], dims_of(node.inputs[0])
    target = symbols_of(node.inputs[1], edit.found) if len(node.inputs) > 1 else None
    if source is None or dims is None or target is None or target.shape != (len(dims),):
        return False
    copies = node.attributes.get_int("allowzero", 0) == 0
    wanted: list[Dim] = list(target)
    kept = [
        t is not None and (t == d or (t == 0 and copies))
        for t, d in zip(wanted, dims, strict=True)
    ]
    others = [t for t, same in zip(wanted, kept, strict=True) if not same]
    return others in ([], [-1]) and edit.bypass(node, source)


def reshape_view(node: ir.Node, edit: Edit) -> bool:
    """Reshape(Reshape(x)) = Reshape(x), likewise of Squeeze, Unsqueeze, Flatten, where no dim is
    copied by a 0.
    """
    inner = _behind(node.inputs[0], *VIEWS)
    target = ints_of(node.inputs[1]) if len(node.inputs) > 1 else None
    if inner is None or target is None or 0 in target or inner.inputs[0] is None:
        return False
    edit.set_input(node, 0, inner.inputs[0])
    return True


def reshape_target(positive: frozenset[str]) -> Callable[[ir.Node, Edit], bool]:
    """A computed target of which all but one dim are known, or copied from the input, is a constant
    with 0 and -1.

    `positive`: symbols that are at least 1 in every run; a -1 beside a copied dim needs them.
    """

    def rule(node: ir.Node, edit: Edit) -> bool:
        if (
            len(node.inputs) < 2
            or ints_of(node.inputs[1]) is not None
            or bool(node.attributes.get_int("allowzero", 0))
        ):
            return False
        symbols, dims = symbols_of(node.inputs[1], edit.found), dims_of(node.inputs[0])
        if symbols is None or symbols.ndim != 1:
            return False
        target = _materialized(list(symbols), dims or [], positive)
        if target is None or not isinstance(node.graph, ir.Graph):
            return False
        stem = f"{node.outputs[0].name}_shape"
        edit.set_input(
            node, 1, edit.constant(node.graph, np.array(target, np.int64), stem)
        )
        return True

    rule.__name__ = "reshape_target"
    return rule


def _materialized(
    wanted: list[Dim], dims: list[Dim], positive: frozenset[str]
) -> list[int] | None:
    target: list[int] = []
    copied_maybe_empty = False
    for index, dim in enumerate(wanted):
        if isinstance(dim, int):
            target.append(dim)
            copied_maybe_empty |= dim == 0 and not _positive(
                dims[index] if index < len(dims) else None, positive
            )
        elif dim is not None and index < len(dims) and dims[index] == dim:
            target.append(0)
            copied_maybe_empty |= not _positive(dim, positive)
        else:
            target.append(-1)
    if target.count(-1) > 1 or (-1 in target and copied_maybe_empty):
        return None
    return target


def _positive(dim: Dim, positive: frozenset[str]) -> bool:
    return dim > 0 if isinstance(dim, int) else dim in positive


def flatten(node: ir.Node, edit: Edit) -> bool:
    """Flatten at axis 1 of a matrix."""
    source = node.inputs[0]
    if (
        source is None
        or rank_of(source) != 2
        or node.attributes.get_int("axis", 1) not in (1, -1)
    ):
        return False
    return edit.bypass(node, source)


def squeeze_pair(node: ir.Node, edit: Edit) -> bool:
    """Squeeze(Unsqueeze(x)) = x and Unsqueeze(Squeeze(x)) = x at the same axes."""
    inner = _behind(
        node.inputs[0], "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    )
    if inner is None or inner.inputs[0] is None:
        return False
    wide = _expanded_rank(inner if inner.op_type == "Unsqueeze" else node)
    axes = [_normal(axes_of(n), wide) for n in (inner, node)]
    return (
        axes[0] is not None
        and axes[0] == axes[1]
        and edit.bypass(node, inner.inputs[0])
    )


def _expanded_rank(unsqueeze: ir.Node) -> int | None:
    rank, axes = rank_of(unsqueeze.inputs[0]), axes_of(unsqueeze)
    return None if rank is None or axes is None else rank + len(axes)


def _normal(axes: list[int] | None, rank: int | None) -> list[int] | None:
    """Axes sorted and counted from the front; None if they cannot be."""
    if axes is None or (rank is None and any(a < 0 for a in axes)):
        return None
    return sorted(a + (rank or 0) if a < 0 else a for a in axes)


def unsqueeze_unsqueeze(node: ir.Node, edit: Edit) -> bool:
    """Unsqueeze(Unsqueeze(x)) = Unsqueeze(x) at the axes of both."""
    inner = _behind(node.inputs[0], "Unsqueeze")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    first, second = (
        _normal(axes_of(inner), _expanded_rank(inner)),
        _normal(axes_of(node), _expanded_rank(node)),
    )
    if first is None or second is None:
        return False
    # the axes of the outer are final; those of the inner lie among the places that the outer leaves
    left = [
        a
        for a in range(len(first) + len(second) + max([*first, *second]) + 1)
        if a not in second
    ]
    return _set_axes(node, inner, sorted([*second, *(left[a] for a in first)]), edit)


def squeeze_squeeze(node: ir.Node, edit: Edit) -> bool:
    """Squeeze(Squeeze(x)) = Squeeze(x) at the axes of both."""
    inner = _behind(node.inputs[0], "Squeeze")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    wide = rank_of(inner.inputs[0])
    first = _normal(axes_of(inner), wide)
    second = _normal(
        axes_of(node), None if wide is None or first is None else wide - len(first)
    )
    if first is None or second is None:
        return False
    left = [a for a in range(len(first) + max([*first, *second]) + 1) if a not in first]
    return _set_axes(node, inner, sorted([*first, *(left[a] for a in second)]), edit)


def _set_axes(node: ir.Node, inner: ir.Node, axes: list[int], edit: Edit) -> bool:
    if edit.opset < 13:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif isinstance(node.graph, ir.Graph):
        stem = f"{node.outputs[0].name}_axes"
        edit.set_input(
            node, 1, edit.constant(node.graph, np.array(axes, np.int64), stem)
        )
    else:
        return False
    edit.set_input(node, 0, inner.inputs[0])
    edit.remove(inner)
    return True


def slice_all(node: ir.Node, edit: Edit) -> bool:
    """Slice that keeps everything."""
    source, parts = node.inputs[0], slice_parts(node)
    dims = dims_of(source)
    if source is None or parts is None:
        return False
    for start, end, axis, step in zip(*parts, strict=True):
        size = (
            dims[axis] if dims is not None and -len(dims) <= axis < len(dims) else None
        )
        known = size if isinstance(size, int) else TO_THE_END
        if (
            step != 1
            or end < known
            or not (start == 0 or (isinstance(size, int) and start <= -size))
        ):
            return False
    return edit.bypass(node, source)


def slice_slice(node: ir.Node, edit: Edit) -> bool:
    """Slice(Slice(x)) along other axes is one Slice."""
    inner = _behind(node.inputs[0], "Slice")
    if (
        inner is None
        or edit.opset < 10
        or not used_once(inner.outputs[0])
        or not isinstance(node.graph, ir.Graph)
    ):
        return False
    first, second = slice_parts(inner), slice_parts(node)
    if first is None or second is None:
        return False
    rank = rank_of(inner.inputs[0])
    axes = [_normal(part[2], rank) for part in (first, second)]
    if axes[0] is None or axes[1] is None or set(axes[0]) & set(axes[1]):
        return False
    kinds = {v.dtype for n in (inner, node) for v in n.inputs[1:] if v is not None}
    kind = np.int32 if kinds == {ir.DataType.INT32} else np.int64
    if len(node.inputs) > 4:
        edit.set_input(node, 4, None)
        node.resize_inputs(4)
    for index, name in enumerate(("starts", "ends", "axes", "steps")):
        numbers = [*first[index], *second[index]]
        if name == "steps" and set(numbers) == {1}:
            continue
        stem = f"{node.outputs[0].name}_{name}"
        edit.set_input(
            node, index + 1, edit.constant(node.graph, np.array(numbers, kind), stem)
        )
    edit.set_input(node, 0, inner.inputs[0])
    edit.remove(inner)
    return True


def concat_concat(node: ir.Node, edit: Edit) -> bool:
    """Concat(Concat(a, b), c) = Concat(a, b, c) along the same axis."""
    axis = node.attributes.get_int("axis", 0)
    rank = next((r for r in map(rank_of, node.inputs) if r is not None), None)
    inputs: list[ir.Value | None] = []
    merged: list[ir.Node] = []
    for value in node.inputs:
        inner = _behind(value, "Concat")
        inner_axis = inner.attributes.get_int("axis", 0) if inner is not None else 0
        same = inner_axis == axis or (
            rank is not None and inner_axis % rank == axis % rank
        )
        if (
            inner is None
            or value is None
            or not used_once(value)
            or not same
            or inner.graph is not node.graph
        ):
            inputs.append(value)
        else:
            inputs.extend(inner.inputs)
            merged.append(inner)
    if not merged:
        return False
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        edit.set_input(node, index, value)
    for inner in merged:
        edit.remove(inner)
    return True


def expand_same(node: ir.Node, edit: Edit) -> bool:
    """Expand to the shape that the tensor has, or to ones."""
    source, dims = node.inputs[0], dims_of(node.inputs[0])
    target = symbols_of(node.inputs[1], edit.found)
    if (
        source is None
        or dims is None
        or target is None
        or target.ndim != 1
        or target.size > len(dims)
    ):
        return False
    pairs = zip(list(target)[::-1], dims[::-1], strict=False)
    return all(t is not None and t in (1, d) for t, d in pairs) and edit.bypass(
        node, source
    )


def unsqueeze_gather(node: ir.Node, edit: Edit) -> bool:
    """Unsqueeze(Gather(x, i)) at the gathered axis = Gather(x, [i]) for a scalar i."""
    inner = _behind(node.inputs[0], "Gather")
    if (
        inner is None
        or not used_once(inner.outputs[0])
        or not isinstance(inner.graph, ir.Graph)
    ):
        return False
    index, rank, axes = (
        array_of(inner.inputs[1]),
        rank_of(inner.inputs[0]),
        axes_of(node),
    )
    axis = inner.attributes.get_int("axis", 0)
    if (
        index is None
        or index.ndim != 0
        or axes is None
        or len(axes) != 1
        or rank is None
    ):
        return False
    if axes[0] % rank != axis % rank:
        return False
    listed = edit.constant(
        inner.graph, index.reshape(1), f"{inner.outputs[0].name}_indices"
    )
    gather = edit.node_before(node, "Gather", [inner.inputs[0], listed], axis=axis)
    gather.outputs[0].type, gather.outputs[0].shape = (
        node.outputs[0].type,
        node.outputs[0].shape,
    )
    if not edit.bypass(node, gather.outputs[0]):
        return False
    edit.remove(inner)
    return True


def tile_once(node: ir.Node, edit: Edit) -> bool:
    """Tile once along every axis."""
    source = node.inputs[0]
    repeats = ints_of(node.inputs[1]) if len(node.inputs) == 2 else None
    return (
        source is not None
        and repeats is not None
        and set(repeats) <= {1}
        and edit.bypass(node, source)
    )


def reduce_nothing(node: ir.Node, edit: Edit) -> bool:
    """Sum, mean, product, maximum or minimum over axes of size 1, dims kept."""
    source, dims = node.inputs[0], static_dims(node.inputs[0])
    axes = list(node.attributes.get_ints("axes", [])) or (
        ints_of(node.inputs[1]) if len(node.inputs) > 1 else None
    )
    if (
        source is None
        or dims is None
        or not axes
        or not node.attributes.get_int("keepdims", 1)
    ):
        return False
    return all(dims[a] == 1 for a in axes) and edit.bypass(node, source)
