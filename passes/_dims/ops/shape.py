"""Ops that move elements and change none: their axes are cut, joined, permuted, repeated."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from ..relations import Relations, Slots
from ..surgery import Surgery, SurgeryError
from ..table import mend, rule


@rule("Reshape", "Flatten", "Squeeze", "Unsqueeze")
def reshape(node: ir.Node, relations: Relations) -> None:
    """The same elements in the same order: runs of axes with equal products are blocks."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    if 0 in before:
        for value in (data, result):
            relations.freeze_all(value, "the tensor is empty")
        return
    left, right = 0, 0
    while left < len(before) and right < len(after):
        starts, a, b = (left, right), before[left], after[right]
        left, right = left + 1, right + 1
        while a != b:
            if a < b:
                a, left = a * before[left], left + 1
            else:
                b, right = b * after[right], right + 1
        if (left, right) == (starts[0] + 1, starts[1] + 1):
            relations.same(data, left - 1, result, right - 1)
        else:
            relations.block(
                f"{node.op_type} {node.name}",
                [(data, i) for i in range(starts[0], left)],
                [(result, i) for i in range(starts[1], right)],
            )


@rule("Transpose")
def transpose(node: ir.Node, relations: Relations) -> None:
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    rank = len(relations.shape(data) or ())
    for after, before in enumerate(node.attributes.get_ints("perm", range(rank)[::-1])):
        relations.same(data, before, result, after)


@rule("Expand")
def expand(node: ir.Node, relations: Relations) -> None:
    """Axes that keep their size; those repeated from 1 are new ones."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    for back in range(1, len(relations.shape(data) or ()) + 1):
        relations.same(data, -back, result, -back)


@rule("Tile")
def tile(node: ir.Node, relations: Relations) -> None:
    """Copies along an axis go together."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    for axis, (size, total) in enumerate(
        zip(relations.shape(data) or (), relations.shape(result) or (), strict=True)
    ):
        if size == total:
            relations.same(data, axis, result, axis)
        elif size > 1 and total:
            relations.link(
                result, axis, np.arange(total), data, axis, np.arange(total) % size
            )


@rule("Concat")
def concat(node: ir.Node, relations: Relations) -> None:
    """Slots of the result are those of the parts, one after the other."""
    _parts(node.outputs[0], node.inputs, node, relations)


@rule("Split")
def split(node: ir.Node, relations: Relations) -> None:
    assert node.inputs[0] is not None
    _parts(node.inputs[0], node.outputs, node, relations)


def _parts(
    whole: ir.Value,
    parts: Sequence[ir.Value | None],
    node: ir.Node,
    relations: Relations,
) -> None:
    """`whole` is its parts one after the other along the node's axis."""
    rank = len(relations.shape(whole) or ())
    cut = node.attributes.get_int("axis", 0) % rank
    offset = 0
    for value in parts:
        assert value is not None
        for axis in range(rank):
            if axis != cut:
                relations.same(whole, axis, value, axis)
        size = (relations.shape(value) or ())[cut]
        relations.link(
            whole, cut, offset + np.arange(size), value, cut, np.arange(size)
        )
        offset += size


@mend("Split")
def split_sizes(node: ir.Node, surgery: Surgery) -> None:
    cut = node.attributes.get_int("axis", 0)
    if any(surgery.narrowed(value, cut) for value in (node.inputs[0], *node.outputs)):
        sizes = [surgery.after(value)[cut] for value in node.outputs]
        node.attributes.pop("num_outputs", None)
        surgery.constant(node, 1, sizes)


Ints = Callable[[ir.Value | None], list[int] | None]


def _constant_slice(
    bounds: list[list[int] | None], rank: int
) -> dict[int, slice] | None:
    """By axis, what a Slice with known bounds takes."""
    if any(part is None for part in bounds):
        return None
    starts, ends, axes, steps = (part or [] for part in bounds)
    axes, steps = axes or list(range(len(starts))), steps or [1] * len(starts)
    cuts = zip(axes, starts, ends, steps, strict=True)
    return {axis % rank: slice(start, end, step) for axis, start, end, step in cuts}


def _taken(cut: slice, size: int) -> Slots:
    """The positions that a Slice takes of an axis: ONNX clamps an end below -size, Python would
    wrap it.
    """
    step = cut.step
    stop = None if step < 0 and cut.stop < -size else cut.stop
    return np.arange(size)[slice(cut.start, stop, step)]


def _bounds(node: ir.Node, ints: Ints) -> list[list[int] | None]:
    inputs = [*node.inputs[1:], None, None, None, None][:4]
    return [[] if value is None else ints(value) for value in inputs]


@rule("Slice")
def cut_out(node: ir.Node, relations: Relations) -> None:
    """Slots that are taken go with those they become; bounds that are computed freeze the axes they
    cut.
    """
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before, after = relations.shape(data) or (), relations.shape(result) or ()
    cuts = _constant_slice(_bounds(node, relations.trace.constants), len(before))
    for axis, size in enumerate(before):
        if cuts is None and size != after[axis]:
            relations.freeze(data, axis, "cut at computed bounds")
            relations.freeze(result, axis, "cut at computed bounds")
        elif cuts is None or axis not in cuts:
            relations.same(data, axis, result, axis)
        else:
            taken = _taken(cuts[axis], size)
            relations.link(result, axis, np.arange(len(taken)), data, axis, taken)


@mend("Slice")
def move_bounds(node: ir.Node, surgery: Surgery) -> None:
    """New bounds where what stays is one run; else a Gather of that axis."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before = surgery.before(data)
    cuts = _constant_slice(_bounds(node, surgery.old_constants), len(before))
    if cuts is None or not any(
        surgery.narrowed(v, axis) for v in (data, result) for axis in cuts
    ):
        return
    for axis, cut in list(cuts.items()):
        if not surgery.narrowed(data, axis) and not surgery.narrowed(result, axis):
            continue
        taken = _taken(cut, before[axis])
        kept = surgery.kept(result, axis)
        now = surgery.positions(data, axis, taken if kept is None else taken[kept])
        if len(now) and (np.diff(now) == 1).all():
            cuts[axis] = slice(int(now[0]), int(now[-1]) + 1, 1)
        else:
            surgery.select(node, 0, axis, now)
            cuts[axis] = slice(0, len(now), 1)
    for index, part in enumerate(
        (
            [c.start for c in cuts.values()],
            [c.stop for c in cuts.values()],
            list(cuts),
            [c.step for c in cuts.values()],
        ),
        1,
    ):
        surgery.constant(node, index, part)


@rule("Gather")
def gather(node: ir.Node, relations: Relations) -> None:
    """Constant indices: slots go with those they become. Computed indices (tokens): the axis
    stays.
    """
    data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None
    assert indices is not None
    before, places = relations.shape(data) or (), relations.shape(indices) or ()
    axis = node.attributes.get_int("axis", 0) % len(before)
    for other in range(len(before)):
        if other != axis:
            relations.same(
                data, other, result, other if other < axis else other + len(places) - 1
            )
    known = relations.trace.constants(indices)
    if known is None:
        relations.freeze(data, axis, "looked up by computed indices")
        for i in range(len(places)):
            relations.same(indices, i, result, axis + i)
        return
    taken = np.array(known, np.intp) % max(before[axis], 1)
    relations.freeze_all(indices, "indices")
    if len(places) == 1:
        relations.link(result, axis, np.arange(len(taken)), data, axis, taken)
    else:
        relations.freeze(data, axis, "some of its slots are picked out", taken)
        for i in range(len(places)):
            relations.freeze(result, axis + i, "picked out by constant indices")


@mend("Gather")
def renumber(node: ir.Node, surgery: Surgery) -> None:
    """Constant indices into an axis that shrank, and only those that stay."""
    data, indices, result = node.inputs[0], node.inputs[1], node.outputs[0]
    assert data is not None
    assert indices is not None
    axis = node.attributes.get_int("axis", 0) % len(surgery.before(data))
    shape = surgery.before(indices)
    if not surgery.narrowed(data, axis) and not (
        len(shape) == 1 and surgery.narrowed(result, axis)
    ):
        return
    old = surgery.old_constants(indices)
    if old is None:
        raise SurgeryError(node, "its indices are computed")
    taken = np.array(old, np.intp) % surgery.before(data)[axis]
    kept = surgery.kept(result, axis) if len(shape) == 1 else None
    now = surgery.positions(data, axis, taken if kept is None else taken[kept])
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    array = now.astype(np.int64).reshape(-1 if len(shape) == 1 else shape)
    value = surgery.edit.constant(graph, array, f"{indices.name}_kept")
    surgery.edit.set_input(node, 1, value)
    surgery.new.know(value)


@rule("Pad")
def pad(node: ir.Node, relations: Relations) -> None:
    """Padding with a constant makes new slots around the old ones (a ResNet's shortcut of option
    A).
    """
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before = relations.shape(data) or ()
    pads = _pads(node, relations.trace.constants, len(before))
    constant = node.attributes.get_string("mode", "constant") == "constant"
    for axis, size in enumerate(before):
        if pads is None or ((pads[axis] != (0, 0)) and not constant):
            relations.freeze(data, axis, "padded")
            relations.freeze(result, axis, "padded")
        elif pads[axis] == (0, 0):
            relations.same(data, axis, result, axis)
        else:
            left, right = pads[axis]
            old = np.arange(max(-left, 0), size - max(-right, 0))
            relations.link(result, axis, old + left, data, axis, old)


def _pads(node: ir.Node, ints: Ints, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) by axis; None if computed."""
    given = ints(node.inputs[1])
    chosen = node.inputs[3] if len(node.inputs) > 3 else None
    axes = list(range(rank)) if chosen is None else ints(chosen)
    if given is None or axes is None:
        return None
    pads = [(0, 0)] * rank
    for position, axis in enumerate(axes):
        pads[axis % rank] = (given[position], given[position + len(axes)])
    return pads


@mend("Pad")
def repad(node: ir.Node, surgery: Surgery) -> None:
    """As many new slots on each side as stay of them."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    before = surgery.before(data)
    pads = _pads(node, surgery.old_constants, len(before))
    if pads is None or not any(
        surgery.narrowed(v, a) for v in (data, result) for a in range(len(before))
    ):
        return
    for axis, size in enumerate(before):
        left, right = pads[axis]
        if (left, right) == (0, 0) or not (
            surgery.narrowed(data, axis) or surgery.narrowed(result, axis)
        ):
            continue
        out, into = surgery.kept(result, axis), surgery.kept(data, axis)
        out = np.arange(size + left + right) if out is None else out
        into = np.arange(size) if into is None else into
        pads[axis] = (
            int((out < left).sum()) if left >= 0 else -int((into < -left).sum()),
            int((out >= left + size).sum())
            if right >= 0
            else -int((into >= size + right).sum()),
        )
    surgery.constant(node, 1, [p[0] for p in pads] + [p[1] for p in pads])
    if len(node.inputs) > 3:
        surgery.edit.set_input(node, 3, None)


@rule("DepthToSpace")
def depth_to_space(node: ir.Node, relations: Relations) -> None:
    """The blocksize^2 channels that become one go together."""
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    _between_depth_and_space(
        data, result, node.attributes.get_string("mode", "DCR") == "CRD", relations
    )


@rule("SpaceToDepth")
def space_to_depth(node: ir.Node, relations: Relations) -> None:
    data, result = node.inputs[0], node.outputs[0]
    assert data is not None
    _between_depth_and_space(result, data, False, relations)


def _between_depth_and_space(
    deep: ir.Value, wide: ir.Value, column: bool, relations: Relations
) -> None:
    """Channels of `deep` are (r*r, C), or (C, r*r) in column order, of `wide`."""
    count, channels = (relations.shape(deep) or ())[1], (relations.shape(wide) or ())[1]
    slots = np.arange(count)
    mine = slots // (count // channels) if column else slots % channels
    relations.link(deep, 1, slots, wide, 1, mine)
    relations.same(deep, 0, wide, 0)
    for value in (deep, wide):
        for axis in (2, 3):
            relations.freeze(value, axis, "a spatial axis")


@rule("Shape", "Size", "ConstantOfShape")
def sizes(node: ir.Node, relations: Relations) -> None:
    """The numbers follow the axes by themselves; a tensor of given shape is told its new one."""
    if node.op_type != "ConstantOfShape":
        relations.freeze_all(node.outputs[0], "a shape")
