"""x * cos + rotate_half(x) * sin, where cos and sin hold each angle twice: RotaryEmbedding."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from .._core.edit import array_of, dims_of
from .._core.graph import producer_of
from .._simplify.symbols import axes_of, slice_parts
from .operands import beside_scalar, is_last, pair_of
from .shared import Shared

TRANSPARENT = ("Cos", "Sin", "Cast", "Unsqueeze", "Identity", "Mul")
"""Ops that keep halves equal: elementwise, with a constant number, or on other axes."""


@dataclass(frozen=True)
class Rotation:
    """Data (N, h, L, d), and angles (N or 1, 1, L, d) whose two halves are the same."""

    data: ir.Value
    cosine: ir.Value
    sine: ir.Value

    opset: ClassVar[int] = 23
    kind: ClassVar[str] = "rotary"

    def write(self, node: ir.Node, shared: Shared) -> bool:
        """Put one operator in the place of the pattern that ends at a node."""
        tables = [
            self._table(
                angles,
                node,
                shared,
            )
            for angles in (self.cosine, self.sine)
        ]
        return shared.finish(
            node,
            "RotaryEmbedding",
            [self.data, *tables],
        )

    def _table(self, angles: ir.Value, node: ir.Node, shared: Shared) -> ir.Value:
        """Angles as the operator reads them, (N, L, d / 2): it broadcasts none."""
        dims = dims_of(self.data)
        assert dims is not None
        batch = dims[0]
        # a batch of unknown size may differ from that of another layer
        key = (angles, self.data if batch is None else batch)
        found = shared.get(node, *key)
        if found is not None:
            return found
        size = dims[-1]
        assert isinstance(size, int)
        bounds = [shared.integers(node, bound) for bound in (0, size // 2, -1)]
        table = shared.result(
            node,
            "Slice",
            [angles, *bounds],
        )
        own = dims_of(angles)
        if own is not None and len(own) == 4:
            # the axis of heads
            heads = shared.integers(node, 1)
            table = shared.result(
                node,
                "Squeeze",
                [table, heads],
            )
        if batch is None or own is None or len(own) < 4 or own[0] != batch:
            count = shared.result(
                node,
                "Shape",
                [self.data],
                start=0,
                end=1,
            )
            ones = shared.integers(
                node,
                1,
                1,
            )
            shape = shared.result(
                node,
                "Concat",
                [count, ones],
                axis=0,
            )
            table = shared.result(
                node,
                "Expand",
                [table, shape],
            )
        return shared.keep(
            table,
            node,
            *key,
        )


def rotation(node: ir.Node) -> Rotation | str | None:
    """The pattern whose last node, an Add, this is; a reason where it is nearly one."""
    pair = pair_of(node)
    if node.op_type != "Add" or pair is None:
        return None
    for plain, turned in (pair, pair[::-1]):
        found = _terms(plain, turned)
        if found is not None:
            return _checked(found)
    return None


def _terms(plain: ir.Value, turned: ir.Value) -> Rotation | None:
    """The sum of x * cos and rotate_half(x) * sin, factors in any order."""
    first = producer_of(plain, "Mul")
    second = producer_of(turned, "Mul")
    factors = pair_of(first) if first is not None else None
    others = pair_of(second) if second is not None else None
    if factors is None or others is None:
        return None
    for half, sine in (others, others[::-1]):
        source = _rotated(half)
        if source is None or source not in factors:
            continue
        cosine = factors[1] if factors[0] is source else factors[0]
        return Rotation(
            source,
            cosine,
            sine,
        )
    return None


def _rotated(value: ir.Value) -> ir.Value | None:
    """The x of which a value is Concat(-second half, first half) along the last axis."""
    concat = producer_of(value, "Concat")
    pair = pair_of(concat) if concat is not None else None
    dims = dims_of(value)
    if concat is None or pair is None or dims is None or not isinstance(dims[-1], int):
        return None
    if not is_last(concat.attributes.get_int("axis", 0), len(dims)):
        return None
    negated = producer_of(pair[0], "Neg")
    if negated is None:
        return None
    middle = dims[-1] // 2
    low = _part(
        pair[1],
        0,
        middle,
    )
    high = _part(
        negated.inputs[0],
        middle,
        dims[-1],
    )
    return low if low is high else None


def _part(value: ir.Value | None, start: int, stop: int) -> ir.Value | None:
    """The tensor of whose last axis a value is the slots from `start` to `stop`."""
    node = producer_of(
        value,
        "Slice",
        "Split",
    )
    source = node.inputs[0] if node is not None else None
    dims = dims_of(source)
    if node is None or value is None or dims is None:
        return None
    size = dims[-1]
    if not isinstance(size, int):
        return None
    if node.op_type == "Split":
        bounds = _split_bounds(
            node,
            value,
            size,
        )
        axis = node.attributes.get_int("axis", 0)
    else:
        bounds, axis = _slice_bounds(node, size)
    is_part = bounds == (start, stop) and is_last(axis, len(dims))
    return source if is_part else None


def _split_bounds(node: ir.Node, value: ir.Value, size: int) -> tuple[int, int] | None:
    """Bounds of one output of a Split into two halves."""
    half = size // 2
    widths = [(dims_of(output) or [None])[-1] for output in node.outputs]
    if widths != [half, half]:
        return None
    position = list(node.outputs).index(value)
    start = position * half
    return start, start + half


def _slice_bounds(node: ir.Node, size: int) -> tuple[tuple[int, int] | None, int]:
    """Bounds of a Slice of one axis, in steps of one, and the axis; None of any other."""
    parts = slice_parts(node)
    if parts is None or len(parts[2]) != 1:
        return None, 0
    (start,), (stop,), (axis,), (step,) = parts
    if step != 1:
        return None, axis
    whole = slice(start, stop).indices(size)
    return whole[:2], axis


def _checked(found: Rotation) -> Rotation | str:
    dims = dims_of(found.data)
    if dims is None or len(dims) != 4 or not isinstance(dims[-1], int):
        return "the shape of what it rotates is not known to be (N, heads, L, size)"
    if found.data.dtype != ir.DataType.FLOAT:
        return "it rotates other numbers than float32"
    for angles in (found.cosine, found.sine):
        given = dims_of(angles)
        if given is None or not 2 <= len(given) <= 4:
            return "the shape of its angles is not known"
        own = [*[1] * (4 - len(given)), *given]
        if own[0] not in (1, dims[0]) or own[0] is None:
            return "its angles are not known to be of as many samples"
        if own[1] != 1 or own[3] != dims[3]:
            return "its angles are not the same for all heads"
        if own[2] != dims[2]:
            return "its angles are not known to be as many as positions"
        if not _is_doubled(angles):
            return "nothing shows that its angles are the same in both halves of a head"
    return found


def _is_doubled(value: ir.Value) -> bool:
    """True if the two halves along the last axis are proved to be the same."""
    current: ir.Value | None = value
    while current is not None:
        array = array_of(current)
        if array is not None:
            half = array.shape[-1] // 2
            return np.array_equal(array[..., :half], array[..., half:])
        node = producer_of(
            current,
            "Concat",
            *TRANSPARENT,
        )
        dims = dims_of(current)
        if node is None or dims is None:
            return False
        if node.op_type == "Concat":
            is_along = is_last(node.attributes.get_int("axis", 0), len(dims))
            return is_along and len(node.inputs) == 2 and len(set(node.inputs)) == 1
        if node.op_type == "Unsqueeze" and not _keeps_last(node, len(dims)):
            return False
        if node.op_type == "Mul":
            found = beside_scalar(node)
            current = found[0] if found is not None else None
        else:
            current = node.inputs[0]
    return False


def _keeps_last(unsqueeze: ir.Node, rank: int) -> bool:
    axes = axes_of(unsqueeze)
    return axes is not None and not any(is_last(axis, rank) for axis in axes)
