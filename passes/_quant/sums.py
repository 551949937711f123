"""Sums without a rounding of their own: where both inputs and the output of an Add have one scale,
codes just add.
"""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir

from .._core.union_find import Sets
from .placement import Placement

WIDEST = math.sqrt(3 / 2)
"""How much a scale may grow for this. Of three roundings with noise scale**2 / 12 two remain, each
at most 3/2 as large: the sum is never above what it was. (Growing without limit would trade the
noise of one value for another's.)
"""


def with_even_sums(
    placement: Placement, scales: dict[ir.Value, np.float32], shared: Sets[ir.Value]
) -> dict[ir.Value, np.float32]:
    """`scales` with one scale for all three values of an Add, wherever no scale has to grow beyond
    `WIDEST` times.

    `shared` holds values that have their parameters in common: those grow together. Sums are joined
    in graph order, a value may be part of several.
    """
    groups = Sets[ir.Value]()
    members: dict[ir.Value, list[ir.Value]] = {}
    for value in placement.quantized:
        groups.join(shared.root(value), value)
        members.setdefault(shared.root(value), []).append(value)
    for carried in placement.carried:
        if carried.node.op_type != "Add":
            continue
        roots = list(
            dict.fromkeys(groups.root(v) for v in (*carried.inputs, *carried.outputs))
        )
        joined = [v for root in roots for v in members[root]]
        if max(scales[v] for v in joined) <= WIDEST * min(scales[v] for v in joined):
            for root in roots[1:]:
                groups.join(roots[0], root)
            members[roots[0]] = joined
    widest = {root: max(scales[v] for v in of) for root, of in members.items()}
    return {value: widest[groups.root(value)] for value in placement.quantized}
