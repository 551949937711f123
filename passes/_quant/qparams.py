"""Scale and zero point of each quantized value, from its calibrated range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.targets import QuantRules
from .._core.union_find import Sets
from .placement import Placement
from .residual_input import with_room
from .sums import with_even_sums

Range = tuple[float, float]

SHARE_LIMIT = 4.0
"""Values share parameters across a Concat only while the common range is at most this much wider
than each own.
"""


@dataclass(frozen=True)
class Parameters:
    """real = scale * (quantized - zero_point), in the target's activation type; codes of fewer bits
    end earlier.
    """

    scale: np.float32
    zero_point: int
    lowest: int = 0
    highest: int = 255


def scale_of(range_: Range, rules: QuantRules) -> np.float32:
    """The step of the grid that covers [low, high] and 0."""
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    if rules.symmetric:
        return _scale(max(-low, high) / 127)
    return _scale((high - low) / int(np.iinfo(rules.activation).max))


def parameters_of(range_: Range, scale: np.float32, rules: QuantRules) -> Parameters:
    """The grid of that scale that begins at low and holds 0 exactly."""
    if rules.symmetric:
        return Parameters(scale, 0)
    low, levels = min(range_[0], 0.0), int(np.iinfo(rules.activation).max)
    return Parameters(scale, round(float(np.clip(-low / float(scale), 0, levels))))


def coarse_parameters(range_: Range, bits: int, rules: QuantRules) -> Parameters:
    """The grid of so few bits in the activation type: 2**bits codes from 0, or, two-sided and
    symmetric, around 0.
    """
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    steps = 2**bits - 1
    if rules.symmetric and low < 0:
        half = 2 ** (bits - 1)
        return Parameters(
            _scale(max(-low / half, high / (half - 1))), 0, -half, half - 1
        )
    scale = _scale((high - low) / steps)
    return Parameters(
        scale, round(float(np.clip(-low / float(scale), 0, steps))), 0, steps
    )


def _scale(value: float) -> np.float32:
    """float32, never zero or so small that scale products underflow; 1 for a value that is always
    zero.
    """
    if value == 0.0:
        return np.float32(1.0)
    return np.float32(min(max(value, 1e-12), 1e30))


def assign(
    placement: Placement, ranges: dict[ir.Value, Range], rules: QuantRules
) -> dict[ir.Value, Parameters]:
    """Parameters of every quantized value; values that are only moved, pooled or concatenated share
    theirs.
    """
    covered, shared = _shared_ranges(placement, ranges)
    covered.update(
        {value: with_room(covered[value], rules) for value in placement.limbed}
    )
    scales = {value: scale_of(covered[value], rules) for value in placement.quantized}
    scales = with_even_sums(placement, scales, shared)
    return {
        value: parameters_of(covered[value], scales[value], rules)
        for value in placement.quantized
    }


def _shared_ranges(
    placement: Placement, ranges: dict[ir.Value, Range]
) -> tuple[dict[ir.Value, Range], Sets[ir.Value]]:
    """Ranges after sharing, and who shares: the values of each mover, joined while their union
    stays narrow.
    """
    shared = Sets[ir.Value]()
    union: dict[ir.Value, Range] = {v: ranges[v] for v in placement.quantized}
    root = shared.root
    for carried in placement.carried:
        if not carried.shared:
            continue
        source = carried.inputs[0]
        if carried.node.op_type == "Concat":
            members = [*carried.inputs, *carried.outputs]
            if not _may_share([union[root(v)] for v in members]):
                continue
        else:  # a mover's output holds nothing but its input's values: the input's range is the right one
            members = [source, *carried.outputs]
            for output in carried.outputs:
                union[root(output)] = union[root(source)]
        first = root(members[0])
        for member in members[1:]:
            other = root(member)
            if other is not first:
                union[first] = (
                    min(union[first][0], union[other][0]),
                    max(union[first][1], union[other][1]),
                )
                shared.join(first, other)
    return {v: union[root(v)] for v in placement.quantized}, shared


def _may_share(ranges: Sequence[Range]) -> bool:
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if len({r[0] >= 0 for r in ranges}) > 1:
        return False  # a Relu folds only into a zero point of 0, which a signed neighbour would move
    return all((high - low) <= SHARE_LIMIT * (r[1] - r[0]) for r in ranges)
