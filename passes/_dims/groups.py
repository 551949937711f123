"""Groups of channels that lie on the same axes, so that pruning may choose freely among them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.ops import FLOATS
from .relations import Axis
from .solve import COUPLED, FROZEN, Solution
from .surgery import Kept

QUANTIZED = frozenset(
    {
        ir.DataType.INT8,
        ir.DataType.UINT8,
        ir.DataType.INT4,
        ir.DataType.UINT4,
        ir.DataType.INT2,
        ir.DataType.UINT2,
    }
)
"""Integer types that codes of weights have; larger ones are biases, indices and shapes."""

WEIGHT_TYPES = FLOATS | QUANTIZED

Place = tuple[int, int]
"""A class of axes, and the slots of it that each channel of a group takes."""


@dataclass(frozen=True)
class Group:
    """Channels with the same places.

    `channels` are ids of the solution. `weights`: (initializer, axis) of every constant that loses
    slots with them. `name`: that of one of its weights in reports; no two groups of a model share
    it.
    """

    channels: NDArray[np.intp]
    places: tuple[Place, ...]
    weights: tuple[Axis, ...]
    name: str


def channel_groups(solution: Solution) -> list[Group]:
    """Groups of at least two channels that some matrix, kernel or table depends on.

    They are in graph order.
    """
    places = _places(solution)
    together: dict[tuple[Place, ...], list[int]] = defaultdict(list)
    for channel in sorted(places):
        where = tuple(places[channel])
        together[where].append(channel)
    by_class = _weights_by_class(solution)
    groups = []
    for where, channels in together.items():
        weights: list[Axis] = []
        for root, _ in where:
            weights.extend(by_class.get(root, ()))
        # a single channel leaves nothing to choose
        if len(channels) < 2:
            continue
        # vectors alone, as a scale and its shift, are no layer that becomes smaller
        largest_rank = max((_rank(value) for value, _ in weights), default=0)
        if largest_rank < 2:
            continue
        numbers = np.array(channels)
        name = _name(weights)
        group = Group(
            channels=numbers,
            places=where,
            weights=tuple(weights),
            name=name,
        )
        groups.append(group)
    shapes = solution.relations.trace.shapes
    # the trace met initializers in the order of the graph
    order = {value: index for index, value in enumerate(shapes)}

    def first_weight(group: Group) -> int:
        return min(order[value] for value, _ in group.weights)

    groups.sort(key=first_weight)
    return _numbered(groups)


def _places(solution: Solution) -> dict[int, list[Place]]:
    """Places of each channel, classes in the order of the solution."""
    places: dict[int, list[Place]] = defaultdict(list)
    for root, slots in solution.channels.items():
        is_free = slots != FROZEN
        free = slots[is_free]
        # a channel may take several slots of a class, as copies by Tile do
        found, counts = np.unique(free, return_counts=True)
        pairs = zip(found.tolist(), counts.tolist(), strict=True)
        for channel, count in pairs:
            place = (root, count)
            places[channel].append(place)
    return places


def _weights_by_class(solution: Solution) -> dict[int, list[Axis]]:
    found: dict[int, list[Axis]] = defaultdict(list)
    for place, root in solution.classes.items():
        value, _ = place
        if not value.is_initializer():
            continue
        if value.dtype in WEIGHT_TYPES:
            found[root].append(place)
    return found


def _name(weights: Sequence[Axis]) -> str:
    """Name of the matrix with the shortest axis; of several rather axis 0.

    Longer axes may hold further groups.
    """

    def rank(place: Axis) -> tuple[bool, int, bool]:
        value, axis = place
        is_matrix = _rank(value) > 1
        length = _length(place)
        is_first = axis == 0
        return is_matrix, -length, is_first

    value, axis = max(weights, key=rank)
    return f"{value.name}:{axis}"


def _rank(value: ir.Value) -> int:
    if value.const_value is None:
        return 0
    return len(value.const_value.shape)


def _length(place: Axis) -> int:
    value, axis = place
    if value.const_value is None:
        return 0
    dims = value.const_value.shape.numpy()
    return int(dims[axis])


def _numbered(groups: Sequence[Group]) -> list[Group]:
    """Number the groups that one weight would name alike."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        if number > 1:
            group = replace(group, name=f"{group.name}#{number}")
        result.append(group)
    return result


def kept_slots(
    solution: Solution,
    removed: Collection[int] | NDArray[np.intp],
) -> Kept:
    """Slots that stay of every axis that loses some when the given channels go, by value name."""
    # one more entry, never set: FROZEN (-1) as an index reads it
    gone = np.zeros(solution.count + 1, bool)
    indices = np.array(list(removed), np.intp)
    gone[indices] = True
    stays = {}
    for root, slots in solution.channels.items():
        is_free = slots != FROZEN
        lost = gone[slots] & is_free
        if lost.any():
            stays[root] = np.flatnonzero(~lost)
    kept: dict[str, dict[int, NDArray[np.intp]]] = defaultdict(dict)
    for (value, axis), root in solution.classes.items():
        if root not in stays:
            continue
        if value.name:
            by_axis = kept[value.name]
            by_axis[axis] = stays[root]
    return kept


def frozen_weights(solution: Solution) -> Iterator[tuple[Axis, str]]:
    """(initializer, axis) of matrices and kernels that cannot lose any slot, with the reason.

    Axes one wide are left out.
    """
    for (value, axis), root in solution.classes.items():
        if not value.is_initializer():
            continue
        if value.dtype not in WEIGHT_TYPES:
            continue
        # a vector alone is no layer
        if _rank(value) < 2:
            continue
        slots = solution.channels[root]
        stays = slots == FROZEN
        if len(slots) > 1 and stays.all():
            reason = solution.reasons.get(root, COUPLED)
            yield (value, axis), reason
