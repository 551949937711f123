"""Scale and zero point of each quantized value, from its calibrated range."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.targets import QuantRules
from .._core.union_find import Sets
from .placement import Carried, Placement

Range = tuple[float, float]

SHARE_LIMIT = 4.0
"""Widest common range of the values of a Concat, in units of each own range, for which they share
parameters; chosen by hand, not measured.
"""

LARGEST_GROWTH = math.sqrt(3 / 2)
"""Factor by which a scale may grow so that an Add has one scale for all its values. Of three
roundings with noise scale**2 / 12 two remain, each at most 3/2 as large: the sum is never above
what it was. (Growing without limit would trade the noise of one value for another's.)
"""

TERM_RATIO = 16
"""Scale of the first term of a value in two terms, in units of the second's: 24 dB less noise."""

TERM_ROOM = TERM_RATIO // 2
"""Codes that the second term needs on either side of zero: what remains is at most half a step of
the first.
"""

LEAST_STEP, LARGEST_STEP = 1e-12, 1e30
"""Bounds of a scale: products of scales must not underflow float32, nor overflow it."""


@dataclass(frozen=True)
class Parameters:
    """real = scale * (quantized - zero_point), in the target's activation type.

    `lowest`, `highest`: the ends of codes of fewer bits.
    """

    scale: np.float32
    zero_point: int
    lowest: int = 0
    highest: int = 255


def scale_of(range_: Range, rules: QuantRules) -> np.float32:
    """The step of the grid that covers [low, high] and 0."""
    low, high = _with_zero(range_)
    if rules.symmetric:
        largest = max(-low, high)
        return _usable(largest / 127)
    width = high - low
    return _usable(width / _levels(rules))


def parameters_of(range_: Range, scale: np.float32, rules: QuantRules) -> Parameters:
    """The grid of that scale that begins at low and holds 0 exactly."""
    if rules.symmetric:
        return Parameters(scale, 0)
    low, _ = _with_zero(range_)
    levels = _levels(rules)
    zero_point = _zero_point(low, scale, levels)
    return Parameters(scale, zero_point)


def low_bit_parameters(range_: Range, bits: int, rules: QuantRules) -> Parameters:
    """The grid of so few bits in the activation type: 2**bits codes from 0 up.

    Two-sided and symmetric ones lie around 0.
    """
    low, high = _with_zero(range_)
    if rules.symmetric and low < 0:
        # one code more lies below zero than above
        codes_below = 2 ** (bits - 1)
        codes_above = codes_below - 1
        step = max(-low / codes_below, high / codes_above)
        return Parameters(
            scale=_usable(step),
            zero_point=0,
            lowest=-codes_below,
            highest=codes_above,
        )
    steps = 2**bits - 1
    width = high - low
    scale = _usable(width / steps)
    return Parameters(
        scale=scale,
        zero_point=_zero_point(low, scale, steps),
        lowest=0,
        highest=steps,
    )


def _with_zero(range_: Range) -> Range:
    """The range widened to hold 0: padding and Relu need it as a code of its own."""
    low, high = range_
    return min(low, 0.0), max(high, 0.0)


def _levels(rules: QuantRules) -> int:
    """Largest code of the target's unsigned activation type."""
    return int(np.iinfo(rules.activation).max)


def _zero_point(low: float, scale: np.float32, levels: int) -> int:
    exact = -low / float(scale)
    within = np.clip(exact, 0, levels)
    return round(float(within))


def _usable(value: float) -> np.float32:
    """A scale in float32 within the bounds; 1 for a value that is always zero."""
    if value == 0.0:
        return np.float32(1.0)
    bounded = min(max(value, LEAST_STEP), LARGEST_STEP)
    return np.float32(bounded)


def with_room(range_: Range, rules: QuantRules) -> Range:
    """The range widened where the zero point would leave less than `TERM_ROOM` codes on a side."""
    low, high = _with_zero(range_)
    codes = _levels(rules) - TERM_ROOM
    largest = max(-low, high)
    least = largest * TERM_ROOM / codes
    return min(low, -least), max(high, least)


def assign(
    placement: Placement, ranges: dict[ir.Value, Range], rules: QuantRules
) -> dict[ir.Value, Parameters]:
    """Parameters of every quantized value.

    Values that are only moved, pooled or concatenated share theirs.
    """
    covered, shared = _shared_ranges(placement, ranges)
    for value in placement.two_term:
        covered[value] = with_room(covered[value], rules)
    own = {value: scale_of(covered[value], rules) for value in placement.quantized}
    scales = with_even_sums(placement, own, shared)
    parameters = {}
    for value in placement.quantized:
        parameters[value] = parameters_of(
            covered[value],
            scales[value],
            rules,
        )
    return parameters


def _shared_ranges(
    placement: Placement, ranges: dict[ir.Value, Range]
) -> tuple[dict[ir.Value, Range], Sets[ir.Value]]:
    """Ranges after sharing, and the sets of values that share: those of each mover."""
    shared = Sets[ir.Value]()
    # range of each set, by its root
    union: dict[ir.Value, Range] = {}
    for value in placement.quantized:
        union[value] = ranges[value]
    for carried in placement.carried:
        if not carried.shared:
            continue
        members = _members(carried, union, shared)
        if not members:
            continue
        first = shared.root(members[0])
        for member in members[1:]:
            other = shared.root(member)
            if other is first:
                continue
            union[first] = _hull(union[first], union[other])
            shared.join(first, other)
    covered = {}
    for value in placement.quantized:
        root = shared.root(value)
        covered[value] = union[root]
    return covered, shared


def _members(
    carried: Carried, union: dict[ir.Value, Range], shared: Sets[ir.Value]
) -> list[ir.Value]:
    """The values of a mover that are to share their parameters; none where they must not."""
    if carried.node.op_type == "Concat":
        members = [*carried.inputs, *carried.outputs]
        found = [union[shared.root(value)] for value in members]
        if not _may_share(found):
            return []
        return members
    # a mover's output holds nothing but its input's values: the input's range is the right one
    source = carried.inputs[0]
    for output in carried.outputs:
        of_source = union[shared.root(source)]
        union[shared.root(output)] = of_source
    return [source, *carried.outputs]


def _hull(one: Range, other: Range) -> Range:
    """The range that holds both."""
    low = min(one[0], other[0])
    high = max(one[1], other[1])
    return low, high


def _may_share(ranges: Sequence[Range]) -> bool:
    """True for ranges of one sign and of like widths."""
    lows = [low for low, _ in ranges]
    highs = [high for _, high in ranges]
    signs = {low >= 0 for low in lows}
    if len(signs) > 1:
        # a Relu folds only into a zero point of 0, which a signed neighbour would move
        return False
    widest = max(highs) - min(lows)
    return all(widest <= SHARE_LIMIT * (high - low) for low, high in ranges)


def with_even_sums(
    placement: Placement, scales: dict[ir.Value, np.float32], shared: Sets[ir.Value]
) -> dict[ir.Value, np.float32]:
    """`scales` with one scale for all three values of an Add, so that codes just add.

    Wherever no scale has to grow beyond `LARGEST_GROWTH` times. `shared` holds values that have
    their parameters in common: those grow together. Sums are joined in graph order, a value may be
    part of several.
    """
    groups = Sets[ir.Value]()
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in placement.quantized:
        root = shared.root(value)
        groups.join(root, value)
        members.setdefault(root, []).append(value)
    for carried in placement.carried:
        if carried.node.op_type != "Add":
            continue
        values = [*carried.inputs, *carried.outputs]
        # each root once, in order: an Add may add a value to itself
        roots = list(dict.fromkeys(map(groups.root, values)))
        joined: list[ir.Value] = []
        for root in roots:
            joined += members[root]
        found = [scales[value] for value in joined]
        if max(found) > LARGEST_GROWTH * min(found):
            continue
        first, *others = roots
        for root in others:
            groups.join(first, root)
        members[first] = joined
    # lists of roots that were joined to others are left over, and never looked up below
    widest = {}
    for root, of_root in members.items():
        widest[root] = max(scales[value] for value in of_root)
    even = {}
    for value in placement.quantized:
        root = groups.root(value)
        even[value] = widest[root]
    return even
