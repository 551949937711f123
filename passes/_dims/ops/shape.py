"""Ops that move elements and change none: their axes are cut, joined, permuted, repeated."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from math import prod

import numpy as np
import onnx_ir as ir

from ..._core.ops import VIEWS
from ..relations import (
    SPATIAL,
    Relations,
    Slots,
    axis_attribute,
    name_of,
    optional_input,
    required_input,
)
from ..shapes import Shape
from ..surgery import Surgery, SurgeryError
from ..table import rule, update
from .elementwise import elementwise

Ints = Callable[[ir.Value | None], list[int] | None]
"""Reads a small integer tensor; None where it is computed."""


# --- one order of elements ------------------------------------------------------


@rule(*VIEWS)
def reshape(node: ir.Node, relations: Relations) -> None:
    """The same elements in the same order: runs of axes with equal products are blocks."""
    data = required_input(node, 0)
    result = node.outputs[0]
    before = relations.dims(data)
    after = relations.dims(result)
    reason = None
    if 0 in before:
        reason = "it belongs to an empty tensor"
    elif prod(before) != prod(after):
        reason = f"{name_of(node)} fails at the input sizes that were tried"
    if reason is not None:
        for value in (data, result):
            relations.freeze_all(value, reason)
        return
    for old_axes, new_axes in _equal_runs(before, after):
        if len(old_axes) == 1 and len(new_axes) == 1:
            relations.same(data, old_axes[0], result, new_axes[0])
        else:
            relations.block(
                name_of(node),
                [(data, axis) for axis in old_axes],
                [(result, axis) for axis in new_axes],
            )


def _equal_runs(before: Shape, after: Shape) -> Iterator[tuple[range, range]]:
    """Shortest runs of axes of both shapes with the same number of elements, in order."""
    left = 0
    right = 0
    while left < len(before) and right < len(after):
        first_left = left
        first_right = right
        old = before[left]
        new = after[right]
        left += 1
        right += 1
        # the smaller product takes the next axis until both are equal
        while old != new:
            if old < new:
                old *= before[left]
                left += 1
            else:
                new *= after[right]
                right += 1
        yield range(first_left, left), range(first_right, right)


@rule("Transpose")
def transpose(node: ir.Node, relations: Relations) -> None:
    """The axes in another order, by default the reverse one."""
    data = required_input(node, 0)
    result = node.outputs[0]
    reverse = range(relations.rank(data))[::-1]
    order = node.attributes.get_ints("perm", reverse)
    for after, before in enumerate(order):
        relations.same(data, before, result, after)


# --- repetition -----------------------------------------------------------------


@rule("Expand")
def expand(node: ir.Node, relations: Relations) -> None:
    """Axes that keep their size; those repeated from 1 are new ones."""
    data = required_input(node, 0)
    result = node.outputs[0]
    elementwise(data, result, relations)


@rule("Tile")
def tile(node: ir.Node, relations: Relations) -> None:
    """Copies along an axis go together."""
    data = required_input(node, 0)
    result = node.outputs[0]
    totals = relations.dims(result)
    for axis, size in enumerate(relations.dims(data)):
        total = totals[axis]
        if size == total:
            relations.same(data, axis, result, axis)
        # an axis of width 1 cannot lose its slot: copies of it are new ones
        elif size > 1 and total:
            copies = np.arange(total)
            originals = copies % size
            relations.link(
                result,
                axis,
                copies,
                data,
                axis,
                originals,
            )


# --- parts ----------------------------------------------------------------------


@rule("Concat")
def concat(node: ir.Node, relations: Relations) -> None:
    """Slots of the result are those of the parts, one after the other."""
    _relate_parts(
        node.outputs[0],
        node.inputs,
        node,
        relations,
    )


@rule("Split")
def split(node: ir.Node, relations: Relations) -> None:
    """Slots of the data are those of the parts, one after the other."""
    _relate_parts(
        required_input(node, 0),
        node.outputs,
        node,
        relations,
    )


def _relate_parts(
    whole: ir.Value,
    parts: Sequence[ir.Value | None],
    node: ir.Node,
    relations: Relations,
) -> None:
    """`whole` is its parts one after the other along the node's axis."""
    rank = relations.rank(whole)
    cut = axis_attribute(node, 0, rank)
    offset = 0
    for value in parts:
        assert value is not None
        for axis in range(rank):
            if axis != cut:
                relations.same(whole, axis, value, axis)
        slots = relations.slots(value, cut)
        places = offset + slots
        relations.link(
            whole,
            cut,
            places,
            value,
            cut,
            slots,
        )
        offset += len(slots)


@update("Split")
def split_sizes(node: ir.Node, surgery: Surgery) -> None:
    """Set the sizes of the parts that stay."""
    cut = node.attributes.get_int("axis", 0)
    both = (node.inputs[0], *node.outputs)
    if _any_narrowed(both, [cut], surgery):
        sizes = [surgery.after(value)[cut] for value in node.outputs]
        # parts need not be equal any more
        node.attributes.pop("num_outputs", None)
        surgery.constant(node, 1, sizes)


def _any_narrowed(
    values: Sequence[ir.Value | None],
    axes: Sequence[int],
    surgery: Surgery,
) -> bool:
    places = itertools.product(values, axes)
    return any(surgery.narrowed(value, axis) for value, axis in places)


# --- Slice ----------------------------------------------------------------------


def _cuts(node: ir.Node, ints: Ints, rank: int) -> dict[int, slice] | None:
    """By axis, what a Slice takes; None where a bound is computed."""
    bounds = []
    for index in range(1, 5):
        value = optional_input(node, index)
        part = [] if value is None else ints(value)
        if part is None:
            return None
        bounds.append(part)
    starts, ends, axes, steps = bounds
    axes = axes or list(range(len(starts)))
    steps = steps or [1] * len(starts)
    cuts = {}
    for axis, start, end, step in zip(axes, starts, ends, steps, strict=True):
        cuts[axis % rank] = slice(start, end, step)
    return cuts


def _taken(cut: slice, size: int) -> Slots:
    """Positions that a Slice takes of an axis of that size."""
    # ONNX clamps an end below -size, Python would wrap it
    stop = cut.stop
    if cut.step < 0 and stop < -size:
        stop = None
    slots = np.arange(size)
    return slots[cut.start : stop : cut.step]


@rule("Slice")
def cut_out(node: ir.Node, relations: Relations) -> None:
    """Slots that are taken go with those they become.

    Bounds that are computed freeze the axes they cut.
    """
    data = required_input(node, 0)
    result = node.outputs[0]
    before = relations.dims(data)
    after = relations.dims(result)
    cuts = _cuts(
        node,
        relations.trace.constants,
        len(before),
    )
    for axis, size in enumerate(before):
        if cuts is None and size != after[axis]:
            relations.freeze(
                data, axis, "it is cut at bounds that are computed at run time"
            )
            relations.freeze(
                result, axis, "it is cut at bounds that are computed at run time"
            )
        elif cuts is None or axis not in cuts:
            relations.same(data, axis, result, axis)
        else:
            taken = _taken(cuts[axis], size)
            slots = np.arange(len(taken))
            relations.link(
                result,
                axis,
                slots,
                data,
                axis,
                taken,
            )


@update("Slice")
def move_bounds(node: ir.Node, surgery: Surgery) -> None:
    """Set new bounds where what stays is one run; else put a Gather of that axis in front."""
    data = required_input(node, 0)
    result = node.outputs[0]
    before = surgery.before(data)
    cuts = _cuts(
        node,
        surgery.old_constants,
        len(before),
    )
    if cuts is None or not _any_narrowed((data, result), list(cuts), surgery):
        return
    for axis, cut in list(cuts.items()):
        if not _any_narrowed((data, result), [axis], surgery):
            continue
        taken = _taken(cut, before[axis])
        kept = surgery.kept(result, axis)
        if kept is not None:
            taken = taken[kept]
        now = surgery.positions(data, axis, taken)
        if len(now) and (np.diff(now) == 1).all():
            first = int(now[0])
            cuts[axis] = slice(first, first + len(now), 1)
        else:
            # no bounds and step give these: the Slice takes all of a Gather
            surgery.select(node, 0, axis, now)
            cuts[axis] = slice(0, len(now), 1)
    slices = list(cuts.values())
    starts = [cut.start for cut in slices]
    ends = [cut.stop for cut in slices]
    axes = list(cuts)
    steps = [cut.step for cut in slices]
    surgery.constant(node, 1, starts)
    surgery.constant(node, 2, ends)
    surgery.constant(node, 3, axes)
    surgery.constant(node, 4, steps)


# --- Gather ---------------------------------------------------------------------


@rule("Gather")
def gather(node: ir.Node, relations: Relations) -> None:
    """Constant indices: slots go with those they become. Computed ones (tokens): the axis stays."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    result = node.outputs[0]
    before = relations.dims(data)
    places = relations.rank(indices)
    axis = axis_attribute(node, 0, len(before))
    for other in range(len(before)):
        if other != axis:
            # the indices' axes stand in the place of one
            moved = other if other < axis else other + places - 1
            relations.same(data, other, result, moved)
    known = relations.trace.constants(indices)
    if known is None:
        relations.freeze(
            data, axis, "it is looked up at indices that are computed at run time"
        )
        for place in range(places):
            relations.same(indices, place, result, axis + place)
        return
    size = max(before[axis], 1)
    # negative indices count from the end
    taken = np.array(known, np.intp) % size
    relations.freeze_all(indices, "it holds indices")
    if places == 1:
        slots = np.arange(len(taken))
        relations.link(
            result,
            axis,
            slots,
            data,
            axis,
            taken,
        )
        return
    # a table of indices is not renumbered in part
    relations.freeze(data, axis, "constant indices look up only a part of it", taken)
    for place in range(places):
        relations.freeze(
            result, axis + place, "it is made by looking up constant indices"
        )


@update("Gather")
def renumber(node: ir.Node, surgery: Surgery) -> None:
    """Number constant indices into an axis that shrank anew, only those that stay."""
    data = required_input(node, 0)
    indices = required_input(node, 1)
    result = node.outputs[0]
    before = surgery.before(data)
    axis = axis_attribute(node, 0, len(before))
    shape = surgery.before(indices)
    # of one index, or of a table of them, every one stays
    kept = surgery.kept(result, axis) if len(shape) == 1 else None
    if kept is None and not surgery.narrowed(data, axis):
        return
    old = surgery.old_constants(indices)
    if old is None:
        raise SurgeryError(node, "its indices are computed")
    taken = np.array(old, np.intp) % before[axis]
    if kept is not None:
        taken = taken[kept]
    now = surgery.positions(data, axis, taken).astype(np.int64)
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    array = now if len(shape) == 1 else now.reshape(shape)
    value = surgery.edit.constant(
        graph,
        array,
        f"{indices.name}_kept",
    )
    surgery.edit.set_input(node, 1, value)
    surgery.new.know(value)


# --- Pad ------------------------------------------------------------------------


@rule("Pad")
def pad(node: ir.Node, relations: Relations) -> None:
    """Padding with a constant makes new slots around the old ones.

    So does a ResNet's shortcut of option A.
    """
    data = required_input(node, 0)
    result = node.outputs[0]
    before = relations.dims(data)
    pads = _pads(
        node,
        relations.trace.constants,
        len(before),
    )
    constant = node.attributes.get_string("mode", "constant") == "constant"
    for axis, size in enumerate(before):
        if pads is not None and pads[axis] == (0, 0):
            relations.same(data, axis, result, axis)
        elif pads is None or not constant:
            relations.freeze(data, axis, "padded")
            relations.freeze(result, axis, "padded")
        else:
            left, right = pads[axis]
            # negative pads cut slots off
            first = max(-left, 0)
            last = size - max(-right, 0)
            old = np.arange(first, last)
            places = old + left
            relations.link(
                result,
                axis,
                places,
                data,
                axis,
                old,
            )


def _pads(node: ir.Node, ints: Ints, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) by axis; None if computed."""
    given = ints(node.inputs[1])
    chosen = optional_input(node, 3)
    axes: list[int] | None = list(range(rank))
    if chosen is not None:
        axes = ints(chosen)
    if given is None or axes is None:
        return None
    pads = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        left = given[position]
        right = given[position + len(axes)]
        pads[axis % rank] = (left, right)
    return pads


@update("Pad")
def repad(node: ir.Node, surgery: Surgery) -> None:
    """Set as many new slots on each side as stay of them."""
    data = required_input(node, 0)
    result = node.outputs[0]
    before = surgery.before(data)
    pads = _pads(
        node,
        surgery.old_constants,
        len(before),
    )
    axes = range(len(before))
    if pads is None or not _any_narrowed((data, result), axes, surgery):
        return
    for axis, size in enumerate(before):
        narrowed = _any_narrowed(
            (data, result),
            [axis],
            surgery,
        )
        if narrowed and pads[axis] != (0, 0):
            left, right = pads[axis]
            made = surgery.kept(result, axis)
            read = surgery.kept(data, axis)
            if made is None:
                made = np.arange(size + left + right)
            if read is None:
                read = np.arange(size)
            new_left = _left_pad(left, made, read)
            new_right = _right_pad(
                left,
                right,
                size,
                made,
                read,
            )
            pads[axis] = (new_left, new_right)
    # ONNX has all pads in front first, then all behind
    fronts = [left for left, _ in pads]
    ends = [right for _, right in pads]
    surgery.constant(node, 1, fronts + ends)
    # the new pads are of all axes
    if len(node.inputs) > 3:
        surgery.edit.set_input(node, 3, None)


def _left_pad(left: int, made: Slots, read: Slots) -> int:
    """Slots to add in front, negative ones to cut off, by those made and read that stay."""
    if left >= 0:
        return int((made < left).sum())
    return -int((read < -left).sum())


def _right_pad(left: int, right: int, size: int, made: Slots, read: Slots) -> int:
    """Slots to add behind, negative ones to cut off, by those made and read that stay."""
    if right >= 0:
        return int((made >= left + size).sum())
    return -int((read >= size + right).sum())


# --- depth and space ------------------------------------------------------------


@rule("DepthToSpace")
def depth_to_space(node: ir.Node, relations: Relations) -> None:
    """The blocksize^2 channels that become one go together."""
    channels_first = node.attributes.get_string("mode", "DCR") == "CRD"
    _between_depth_and_space(
        required_input(node, 0),
        node.outputs[0],
        channels_first,
        relations,
    )


@rule("SpaceToDepth")
def space_to_depth(node: ir.Node, relations: Relations) -> None:
    """The blocksize^2 channels that one becomes go together."""
    _between_depth_and_space(
        node.outputs[0],
        required_input(node, 0),
        False,
        relations,
    )


def _between_depth_and_space(
    deep: ir.Value,
    wide: ir.Value,
    channels_first: bool,
    relations: Relations,
) -> None:
    """Channels of `deep` are (r*r, C) of `wide`, or (C, r*r) where channels come first."""
    count = relations.size(deep, 1)
    channels = relations.size(wide, 1)
    slots = np.arange(count)
    channel = slots % channels
    if channels_first:
        channel = slots // (count // channels)
    relations.link(
        deep,
        1,
        slots,
        wide,
        1,
        channel,
    )
    relations.same(deep, 0, wide, 0)
    for value in (deep, wide):
        for axis in (2, 3):
            relations.freeze(value, axis, SPATIAL)


@rule("Shape", "Size", "ConstantOfShape")
def sizes(node: ir.Node, relations: Relations) -> None:
    """The numbers follow the axes by themselves; a tensor of given shape is told its new one."""
    # surgery gives it another shape to make, as to Reshape
    if node.op_type != "ConstantOfShape":
        relations.freeze_all(node.outputs[0], "a shape")
