"""Rules for ops that only move or view data: Reshape, Transpose, Squeeze, Slice, Concat, Gather.

A rule looks at one node; it changes the graph and returns True, or returns False. Its first line is
the equation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir

from ..._core.edit import (
    Dim,
    Edit,
    array_of,
    dims_of,
    ints_given,
    ints_of,
    rank_of,
    static_dims,
    used_once,
)
from ..._core.graph import input_of, is_read_by, producer_of
from ..._core.ops import VIEWS
from ..symbols import all_ints, axes_of, named_dims, slice_parts, symbols_of

TO_THE_END = 2**31 - 1
"""Slice ends from here on mean "to the end", whatever the size (exporters write INT32 or INT64
maximum).
"""


def shape_constant(node: ir.Node, edit: Edit) -> bool:
    """An integer tensor computed from shapes, every element of which is known, is a constant."""
    output = node.outputs[0]
    if output.is_graph_output():
        return False
    if not isinstance(node.graph, ir.Graph):
        return False
    symbols = symbols_of(output, edit.found)
    if symbols is None or not all_ints(symbols):
        return False
    kind = np.int32 if output.dtype == ir.DataType.INT32 else np.int64
    elements = symbols.astype(kind)
    constant = edit.constant(
        node.graph,
        elements,
        f"{output.name}_value",
    )
    return edit.bypass(node, constant)


def transpose(node: ir.Node, edit: Edit) -> bool:
    """Transpose by the identity; Transpose of a Transpose is one by the composed permutation."""
    source = node.inputs[0]
    perm = _permutation(node, rank_of(source))
    if not perm or source is None:
        return False
    if perm == sorted(perm):
        return edit.bypass(node, source)
    inner = producer_of(source, "Transpose")
    if inner is None:
        return False
    first = _permutation(inner, len(perm))
    composed = [first[axis] for axis in perm]
    node.attributes["perm"] = ir.AttrInt64s("perm", composed)
    edit.set_input(
        node,
        0,
        inner.inputs[0],
    )
    return True


def _permutation(node: ir.Node, rank: int | None) -> list[int]:
    """Axes of a Transpose, reversed by default; empty if the rank is needed and not known."""
    perm = list(node.attributes.get_ints("perm", []))
    if not perm and rank is not None:
        perm = list(range(rank))[::-1]
    return perm


def reshape_same(node: ir.Node, edit: Edit) -> bool:
    """Reshape to the shape that the tensor has."""
    source = node.inputs[0]
    dims = named_dims(source)
    target = symbols_of(input_of(node, 1), edit.found)
    if source is None or dims is None:
        return False
    if target is None:
        return False
    if target.shape != (len(dims),):
        return False
    zero_copies = node.attributes.get_int("allowzero", 0) == 0
    others: list[Dim] = []
    for wanted, dim in zip(
        target,
        dims,
        strict=True,
    ):
        is_same = wanted is not None and wanted == dim
        is_copied = wanted == 0 and zero_copies
        if not is_same and not is_copied:
            others.append(wanted)
    # one -1 can only stand for the dim that the others leave
    if others and others != [-1]:
        return False
    return edit.bypass(node, source)


def reshape_view(node: ir.Node, edit: Edit) -> bool:
    """Reshape(Reshape(x)) = Reshape(x), likewise of Squeeze, Unsqueeze and Flatten."""
    inner = producer_of(node.inputs[0], *VIEWS)
    target = ints_of(input_of(node, 1))
    if inner is None or inner.inputs[0] is None:
        return False
    # a 0 would copy a dim of the inner result
    if target is None or 0 in target:
        return False
    edit.set_input(
        node,
        0,
        inner.inputs[0],
    )
    return True


def reshape_target(positive: frozenset[str]) -> Callable[[ir.Node, Edit], bool]:
    """A computed target of which all but one dim are known or copied is a constant with 0 and -1.

    `positive`: symbols that are at least 1 in every run; a -1 beside a copied dim needs them.
    """

    def rule(node: ir.Node, edit: Edit) -> bool:
        if len(node.inputs) < 2:
            return False
        if ints_of(node.inputs[1]) is not None:
            return False
        symbols = symbols_of(node.inputs[1], edit.found)
        if symbols is None or symbols.ndim != 1:
            return False
        takes_zeros = bool(node.attributes.get_int("allowzero", 0))
        if takes_zeros and 0 in symbols:
            return False
        dims = named_dims(node.inputs[0]) or []
        target = _materialized(
            list(symbols),
            dims,
            positive,
        )
        if target is None:
            return False
        if not isinstance(node.graph, ir.Graph) or edit.is_repeated(node):
            return False
        _set_ints(
            node,
            1,
            target,
            "shape",
            edit,
        )
        # every 0 in the constant copies a dim
        node.attributes.pop("allowzero", None)
        return True

    # counts of rules go by this name
    rule.__name__ = "reshape_target"
    return rule


def _materialized(
    wanted: list[Dim], dims: list[Dim], positive: frozenset[str]
) -> list[int] | None:
    """The target of a Reshape as numbers, 0 for a copied dim and -1 for an unknown one."""
    target: list[int] = []
    copied_maybe_empty = False
    for index, dim in enumerate(wanted):
        own = dims[index] if index < len(dims) else None
        if isinstance(dim, int):
            target.append(dim)
            if dim == 0:
                copied_maybe_empty |= not _positive(own, positive)
        elif dim is not None and own == dim:
            target.append(0)
            copied_maybe_empty |= not _positive(dim, positive)
        else:
            target.append(-1)
    if target.count(-1) > 1:
        return None
    # where a copied dim is 0, no number of elements decides the -1
    if -1 in target and copied_maybe_empty:
        return None
    return target


def _positive(dim: Dim, positive: frozenset[str]) -> bool:
    if isinstance(dim, int):
        return dim > 0
    return dim in positive


def reshape_transposed(node: ir.Node, edit: Edit) -> bool:
    """Reshape(Transpose(Reshape(x, (B, L, d)), (0, 2, 1)), (*B, d, L)) swaps x's last two axes."""
    swap = producer_of(node.inputs[0], "Transpose")
    if swap is None or swap.attributes.get_ints("perm", ()) != (0, 2, 1):
        return False
    inner = producer_of(swap.inputs[0], "Reshape")
    source = inner.inputs[0] if inner is not None else None
    dims = dims_of(source)
    if inner is None or source is None or dims is None or len(dims) < 3:
        return False
    *leading, rows, columns = dims
    merged = dims_of(inner.outputs[0])
    wanted = symbols_of(input_of(node, 1), edit.found)
    if merged is None or None in dims or wanted is None:
        return False
    if merged[1:] != [rows, columns] or list(wanted) != [*leading, columns, rows]:
        return False
    last = len(dims) - 1
    axes = [*range(last - 1), last, last - 1]
    swapped = edit.node_before(
        node,
        "Transpose",
        [source],
        perm=axes,
    )
    return edit.bypass(node, swapped.outputs[0])


def flatten(node: ir.Node, edit: Edit) -> bool:
    """Flatten at axis 1 of a matrix."""
    source = node.inputs[0]
    if source is None or rank_of(source) != 2:
        return False
    if node.attributes.get_int("axis", 1) not in (1, -1):
        return False
    return edit.bypass(node, source)


def squeeze_pair(node: ir.Node, edit: Edit) -> bool:
    """Squeeze(Unsqueeze(x)) = x and Unsqueeze(Squeeze(x)) = x at the same axes."""
    inverse = "Unsqueeze" if node.op_type == "Squeeze" else "Squeeze"
    inner = producer_of(node.inputs[0], inverse)
    if inner is None or inner.inputs[0] is None:
        return False
    unsqueeze = inner if inner.op_type == "Unsqueeze" else node
    rank = _expanded_rank(unsqueeze)
    axes = _normal(axes_of(inner), rank)
    if axes is None:
        return False
    if axes != _normal(axes_of(node), rank):
        return False
    return edit.bypass(node, inner.inputs[0])


def _expanded_rank(unsqueeze: ir.Node) -> int | None:
    rank = rank_of(unsqueeze.inputs[0])
    axes = axes_of(unsqueeze)
    if rank is None or axes is None:
        return None
    return rank + len(axes)


def _normal(axes: list[int] | None, rank: int | None) -> list[int] | None:
    """Axes sorted and counted from the front; None if they cannot be."""
    if axes is None:
        return None
    counted = []
    for axis in axes:
        if axis >= 0:
            counted.append(axis)
        elif rank is None:
            return None
        else:
            counted.append(axis + rank)
    return sorted(counted)


def unsqueeze_unsqueeze(node: ir.Node, edit: Edit) -> bool:
    """Unsqueeze(Unsqueeze(x)) = Unsqueeze(x) at the axes of both; not of an attention mask."""
    inner = producer_of(node.inputs[0], "Unsqueeze")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    # ONNX Runtime knows a mask of attention by its two Unsqueeze
    if is_read_by(
        node,
        "Sub",
        "Mul",
        "Add",
    ) or is_read_by(
        node,
        "Cast",
        "Sub",
        "Mul",
    ):
        return False
    inner_rank = _expanded_rank(inner)
    outer_rank = _expanded_rank(node)
    first = _normal(axes_of(inner), inner_rank)
    second = _normal(axes_of(node), outer_rank)
    if first is None or second is None:
        return False
    # the outer axes are final; the inner ones count among the places that the outer ones leave
    added = _places_without(second, first)
    merged = sorted([*second, *added])
    return _set_axes(
        node,
        inner,
        merged,
        edit,
    )


def squeeze_squeeze(node: ir.Node, edit: Edit) -> bool:
    """Squeeze(Squeeze(x)) = Squeeze(x) at the axes of both."""
    inner = producer_of(node.inputs[0], "Squeeze")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    rank = rank_of(inner.inputs[0])
    first = _normal(axes_of(inner), rank)
    if first is None:
        return False
    rank_between = None if rank is None else rank - len(first)
    second = _normal(axes_of(node), rank_between)
    if second is None:
        return False
    # the inner axes are final; the outer ones count among the places that the inner ones leave
    added = _places_without(first, second)
    merged = sorted([*first, *added])
    return _set_axes(
        node,
        inner,
        merged,
        edit,
    )


def _places_without(taken: list[int], numbers: list[int]) -> list[int]:
    """The axes that `numbers` count among all but the taken ones."""
    largest = max([*taken, *numbers], default=0)
    enough = len(taken) + len(numbers) + largest + 1
    left = [axis for axis in range(enough) if axis not in taken]
    return [left[number] for number in numbers]


def _set_axes(node: ir.Node, inner: ir.Node, axes: list[int], edit: Edit) -> bool:
    if edit.opset < 13:
        node.attributes["axes"] = ir.AttrInt64s("axes", axes)
    elif isinstance(node.graph, ir.Graph):
        _set_ints(
            node,
            1,
            axes,
            "axes",
            edit,
        )
    else:
        return False
    edit.set_input(
        node,
        0,
        inner.inputs[0],
    )
    edit.remove(inner)
    return True


def _set_ints(
    node: ir.Node,
    index: int,
    numbers: list[int],
    name: str,
    edit: Edit,
    kind: type[np.integer[Any]] = np.int64,
) -> None:
    """Make a new constant, called after the node's output and `name`, input `index` of a node."""
    assert isinstance(node.graph, ir.Graph)
    stem = f"{node.outputs[0].name}_{name}"
    constant = edit.constant(
        node.graph,
        np.array(numbers, kind),
        stem,
    )
    edit.set_input(
        node,
        index,
        constant,
    )


def slice_all(node: ir.Node, edit: Edit) -> bool:
    """Slice that keeps everything."""
    source = node.inputs[0]
    parts = slice_parts(node)
    if source is None or parts is None:
        return False
    dims = dims_of(source) or []
    rank = len(dims)
    for start, end, axis, step in zip(*parts, strict=True):
        if step != 1:
            return False
        dim = None
        if axis >= -rank and axis < rank:
            dim = dims[axis]
        if not _is_whole(
            start,
            end,
            dim,
        ):
            return False
    return edit.bypass(node, source)


def _is_whole(start: int, end: int, dim: Dim) -> bool:
    """True if a slice by steps of 1 is the whole axis."""
    if not isinstance(dim, int):
        return start == 0 and end >= TO_THE_END
    if end < dim:
        return False
    return start == 0 or start <= -dim


def slice_slice(node: ir.Node, edit: Edit) -> bool:
    """Slice(Slice(x)) along other axes is one Slice."""
    inner = producer_of(node.inputs[0], "Slice")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    if edit.opset < 10:
        return False
    if not isinstance(node.graph, ir.Graph):
        return False
    first = slice_parts(inner)
    second = slice_parts(node)
    if first is None or second is None:
        return False
    rank = rank_of(inner.inputs[0])
    inner_axes = _normal(first[2], rank)
    axes = _normal(second[2], rank)
    if inner_axes is None:
        return False
    if axes is None:
        return False
    if set(inner_axes) & set(axes):
        return False
    parts = [
        [*a, *b]
        for a, b in zip(
            first,
            second,
            strict=True,
        )
    ]
    _merge_slices(
        node,
        inner,
        parts,
        edit,
    )
    edit.set_input(
        node,
        0,
        inner.inputs[0],
    )
    edit.remove(inner)
    return True


def _merge_slices(
    node: ir.Node, inner: ir.Node, parts: list[list[int]], edit: Edit
) -> None:
    """Give a Slice the (starts, ends, axes, steps) of itself and the Slice before it."""
    bounds = [*inner.inputs[1:], *node.inputs[1:]]
    kinds = {value.dtype for value in bounds if value is not None}
    # all bounds of a Slice have one type
    kind = np.int32 if kinds == {ir.DataType.INT32} else np.int64
    if len(node.inputs) > 4:
        edit.set_input(
            node,
            4,
            None,
        )
        node.resize_inputs(4)
    for index, name in enumerate(("starts", "ends", "axes", "steps")):
        numbers = parts[index]
        # steps of 1 are the default
        if name == "steps" and set(numbers) == {1}:
            continue
        _set_ints(
            node,
            index + 1,
            numbers,
            name,
            edit,
            kind,
        )


def concat_concat(node: ir.Node, edit: Edit) -> bool:
    """Concat(Concat(a, b), c) = Concat(a, b, c) along the same axis."""
    inputs: list[ir.Value | None] = []
    merged: list[ir.Node] = []
    rank = _first_rank(node)
    for value in node.inputs:
        inner = producer_of(value, "Concat")
        if inner is not None and _can_merge(
            inner,
            node,
            rank,
        ):
            inputs.extend(inner.inputs)
            merged.append(inner)
        else:
            inputs.append(value)
    if not merged:
        return False
    node.resize_inputs(len(inputs))
    for index, value in enumerate(inputs):
        edit.set_input(
            node,
            index,
            value,
        )
    for inner in merged:
        edit.remove(inner)
    return True


def _first_rank(node: ir.Node) -> int | None:
    """Rank that the inputs of a Concat have, if it is known of one of them."""
    for value in node.inputs:
        rank = rank_of(value)
        if rank is not None:
            return rank
    return None


def _can_merge(inner: ir.Node, outer: ir.Node, rank: int | None) -> bool:
    """True if nothing else reads a Concat, and it runs along the axis of the outer one."""
    if not used_once(inner.outputs[0]):
        return False
    if inner.graph is not outer.graph:
        return False
    inner_axis = inner.attributes.get_int("axis", 0)
    axis = outer.attributes.get_int("axis", 0)
    if inner_axis == axis:
        return True
    return rank is not None and inner_axis % rank == axis % rank


def expand_same(node: ir.Node, edit: Edit) -> bool:
    """Expand to the shape that the tensor has, or to ones."""
    source = node.inputs[0]
    dims = named_dims(source)
    target = symbols_of(node.inputs[1], edit.found)
    if source is None or dims is None:
        return False
    if target is None:
        return False
    if target.ndim != 1:
        return False
    if target.size > len(dims):
        return False
    # broadcasting aligns shapes at their ends
    for wanted, dim in zip(
        target[::-1],
        dims[::-1],
        strict=False,
    ):
        if wanted is None or wanted not in (1, dim):
            return False
    return edit.bypass(node, source)


def expand_target(node: ir.Node, edit: Edit) -> bool:
    """A computed target of Expand is a constant with 1 for each dim that stays as it is."""
    dims = named_dims(node.inputs[0])
    target = symbols_of(node.inputs[1], edit.found)
    if dims is None or target is None or target.ndim != 1:
        return False
    if target.size < len(dims) or ints_of(node.inputs[1]) is not None:
        return False
    # broadcasting aligns shapes at their ends
    missing = target.size - len(dims)
    own: list[Dim] = [*[1] * missing, *dims]
    numbers: list[int] = []
    for wanted, dim in zip(
        target,
        own,
        strict=True,
    ):
        if wanted is None:
            return False
        number = 1 if wanted == dim else wanted
        if not isinstance(number, int):
            return False
        numbers.append(number)
    if not isinstance(node.graph, ir.Graph) or edit.is_repeated(node):
        return False
    _set_ints(
        node,
        1,
        numbers,
        "shape",
        edit,
    )
    return True


def unsqueeze_gather(node: ir.Node, edit: Edit) -> bool:
    """Unsqueeze(Gather(x, i)) at the gathered axis = Gather(x, [i]) for a scalar i.

    Not of a dim for the target of a Reshape.
    """
    inner = producer_of(node.inputs[0], "Gather")
    if inner is None or not used_once(inner.outputs[0]):
        return False
    # ONNX Runtime knows a Reshape whose target is constant but for such dims by these nodes
    is_dim = producer_of(inner.inputs[0], "Shape") is not None
    if is_dim and is_read_by(
        node,
        "Concat",
        "Reshape",
    ):
        return False
    index = array_of(inner.inputs[1])
    if index is None:
        return False
    if index.ndim != 0:
        return False
    if not isinstance(inner.graph, ir.Graph):
        return False
    axes = axes_of(node)
    rank = rank_of(inner.inputs[0])
    if axes is None:
        return False
    if len(axes) != 1:
        return False
    if rank is None:
        return False
    axis = inner.attributes.get_int("axis", 0)
    if axes[0] % rank != axis % rank:
        return False
    old = node.outputs[0]
    stem = f"{inner.outputs[0].name}_indices"
    listed = edit.constant(
        inner.graph,
        index.reshape(1),
        stem,
    )
    gather = edit.node_before(
        node,
        "Gather",
        [inner.inputs[0], listed],
        axis=axis,
    )
    new = gather.outputs[0]
    new.type = old.type
    new.shape = old.shape
    if not edit.bypass(node, new):
        return False
    edit.remove(inner)
    return True


def tile_once(node: ir.Node, edit: Edit) -> bool:
    """Tile once along every axis."""
    source = node.inputs[0]
    # opset 1 had two inputs more, with another meaning
    if len(node.inputs) != 2:
        return False
    repeats = ints_of(node.inputs[1])
    if source is None or repeats is None:
        return False
    if any(repeat != 1 for repeat in repeats):
        return False
    return edit.bypass(node, source)


def reduce_nothing(node: ir.Node, edit: Edit) -> bool:
    """Sum, mean, product, maximum or minimum over axes of size 1, dims kept."""
    source = node.inputs[0]
    dims = static_dims(source)
    axes = ints_given(
        node,
        "axes",
        1,
    )
    if source is None or dims is None or not axes:
        return False
    if not node.attributes.get_int("keepdims", 1):
        return False
    if any(dims[axis] != 1 for axis in axes):
        return False
    return edit.bypass(node, source)
