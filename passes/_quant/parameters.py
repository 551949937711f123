"""Scale and zero point of each quantized value, from its calibrated range."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .placement import Placement
from .rules import TargetRules

Range = tuple[float, float]

SHARE_LIMIT = 4.0
"""Values share parameters across a Concat only while the common range is at most this much wider than each own."""


@dataclass(frozen=True)
class Parameters:
    """real = scale * (quantized - zero_point), in the target's activation type."""

    scale: np.float32
    zero_point: int


def parameters_of(range_: Range, rules: TargetRules) -> Parameters:
    """The grid that covers [low, high] and holds 0 exactly; a usable one for an all-zero value too."""
    low, high = min(range_[0], 0.0), max(range_[1], 0.0)
    if rules.symmetric:
        bound = max(-low, high)
        return Parameters(_scale(bound / 127), 0)
    levels = int(np.iinfo(rules.activation).max)
    scale = _scale((high - low) / levels)
    return Parameters(scale, round(float(np.clip(-low / float(scale), 0, levels))))


def _scale(value: float) -> np.float32:
    """float32, never zero or so small that scale products underflow; 1 for a value that is always zero."""
    if value == 0.0:
        return np.float32(1.0)
    return np.float32(min(max(value, 1e-12), 1e30))


def assign(placement: Placement, ranges: dict[ir.Value, Range], rules: TargetRules) -> dict[ir.Value, Parameters]:
    """Parameters of every quantized value; values that are only moved, pooled or concatenated share theirs."""
    shared = _shared_ranges(placement, ranges)
    return {value: parameters_of(shared[value], rules) for value in placement.quantized}


def _shared_ranges(placement: Placement, ranges: dict[ir.Value, Range]) -> dict[ir.Value, Range]:
    """Ranges after sharing: disjoint sets over the values of each mover, joined while the union stays narrow."""
    parent: dict[ir.Value, ir.Value] = {v: v for v in placement.quantized}
    union: dict[ir.Value, Range] = {v: ranges[v] for v in placement.quantized}

    def root(value: ir.Value) -> ir.Value:
        while parent[value] is not value:
            parent[value] = parent[parent[value]]
            value = parent[value]
        return value

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
                union[first] = (min(union[first][0], union[other][0]), max(union[first][1], union[other][1]))
                parent[other] = first
    return {v: union[root(v)] for v in placement.quantized}


def _may_share(ranges: Sequence[Range]) -> bool:
    low, high = min(r[0] for r in ranges), max(r[1] for r in ranges)
    if len({r[0] >= 0 for r in ranges}) > 1:
        return False  # a Relu folds only into a zero point of 0, which a signed neighbour would move
    return all((high - low) <= SHARE_LIMIT * (r[1] - r[0]) for r in ranges)
