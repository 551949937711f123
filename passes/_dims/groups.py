"""Channel groups: channels that appear on the same axes, so that one may stay in the place of
another.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.ops import FLOATS
from .relations import Axis
from .solve import FROZEN, Solution
from .surgery import Kept

QUANTIZED = {
    ir.DataType.INT8,
    ir.DataType.UINT8,
    ir.DataType.INT4,
    ir.DataType.UINT4,
    ir.DataType.INT2,
    ir.DataType.UINT2,
}


@dataclass(frozen=True)
class Group:
    """Channels with the same places. `places`: (class of an axis, slots of it that each channel
    takes).

    `weights`: (initializer, axis) of every constant that loses slots with them. `channels` are ids
    of the solution. `name`: what reports call it, of one of its weights; no two groups of a model
    share it.
    """

    channels: NDArray[np.intp]
    places: tuple[tuple[int, int], ...]
    weights: tuple[Axis, ...]
    name: str


def _rank(value: ir.Value) -> int:
    return 0 if value.const_value is None else len(value.const_value.shape)


def _name(weights: Sequence[Axis]) -> str:
    """That of the matrix with the shortest axis, as others may hold further groups; of several
    rather axis 0.
    """
    value, axis = max(weights, key=lambda a: (_rank(a[0]) > 1, -_length(a), a[1] == 0))
    return f"{value.name}:{axis}"


def _length(axis: Axis) -> int:
    return (
        0
        if axis[0].const_value is None
        else int(axis[0].const_value.shape.numpy()[axis[1]])
    )


def channel_groups(solution: Solution) -> list[Group]:
    """Groups of at least two channels that some matrix, kernel or table depends on, in graph
    order.
    """
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    for root, slots in solution.channels.items():
        found, counts = np.unique(slots[slots != FROZEN], return_counts=True)
        for channel, count in zip(found.tolist(), counts.tolist(), strict=True):
            places[channel].append((root, count))
    together: dict[tuple[tuple[int, int], ...], list[int]] = defaultdict(list)
    for channel in sorted(places):
        together[tuple(places[channel])].append(channel)
    by_class = _weights_by_class(solution)
    groups = []
    for where, channels in together.items():
        weights = tuple(axis for root, _ in where for axis in by_class.get(root, ()))
        if len(channels) > 1 and any(_rank(value) > 1 for value, _ in weights):
            groups.append(Group(np.array(channels), where, weights, _name(weights)))
    order = {value: i for i, value in enumerate(solution.relations.trace.shapes)}
    groups.sort(key=lambda g: min(order[value] for value, _ in g.weights))
    return _told_apart(groups)


def _told_apart(groups: Sequence[Group]) -> list[Group]:
    """Number those that one weight would name alike."""
    seen: dict[str, int] = defaultdict(int)
    result = []
    for group in groups:
        seen[group.name] += 1
        number = seen[group.name]
        result.append(
            group if number == 1 else replace(group, name=f"{group.name}#{number}")
        )
    return result


def _weights_by_class(solution: Solution) -> dict[int, list[Axis]]:
    found: dict[int, list[Axis]] = defaultdict(list)
    for (value, axis), root in solution.classes.items():
        if value.is_initializer() and value.dtype in FLOATS | QUANTIZED:
            found[root].append((value, axis))
    return found


def kept_slots(solution: Solution, removed: Collection[int] | NDArray[np.intp]) -> Kept:
    """What stays of every axis that loses slots when the given channels go, by value name."""
    gone = np.zeros(solution.count + 1, bool)
    gone[np.array(list(removed), np.intp)] = True
    stays = {}
    for root, slots in solution.channels.items():
        lost = gone[slots] & (slots != FROZEN)
        if lost.any():
            stays[root] = np.flatnonzero(~lost)
    kept: dict[str, dict[int, NDArray[np.intp]]] = defaultdict(dict)
    for (value, axis), root in solution.classes.items():
        if root in stays and value.name:
            kept[value.name][axis] = stays[root]
    return kept


def frozen_weights(solution: Solution) -> Iterator[tuple[Axis, str]]:
    """(initializer, axis) of matrices and kernels that cannot lose any slot, with the reason;
    spatial axes left out.
    """
    for (value, axis), root in solution.classes.items():
        weight = (
            value.is_initializer()
            and value.dtype in FLOATS | QUANTIZED
            and _rank(value) > 1
        )
        if (
            weight
            and (solution.channels[root] == FROZEN).all()
            and len(solution.channels[root]) > 1
        ):
            yield (
                (value, axis),
                solution.reasons.get(root, "coupled with slots that stay"),
            )
