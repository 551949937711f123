"""Masks as the runtime's Attention reads them: added to scores, (.., L, T), never the lowest float.

ONNX Runtime takes a row of lowest floats for one that attends to nothing and gives zeros, where
Softmax gives equal weights. -1e30 absorbs every score just as the lowest float does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from .._core.edit import array_of, dims_of, rank_of
from .._core.graph import producer_of
from .operands import scalar_of
from .shared import Shared

ABSORBING = -1e30
"""Float32 that stays what it is when a score is added: those are below 1e22."""


@dataclass(frozen=True)
class Mask:
    """Numbers added to scores, or written over them where a condition is `replaces`.

    `fill`: the number that stands for "not attended to"; None where it is not known.
    """

    source: ir.Value
    fill: float | None
    replaces: bool | None = None

    @property
    def is_infinite(self) -> bool:
        """True if rows that attend to nothing are known to be minus infinity."""
        return self.fill is not None and bool(np.isneginf(self.fill))


def added(value: ir.Value) -> Mask:
    """A mask that is added: its fill where one Where makes it, or where it is constant."""
    array = array_of(value)
    if array is not None:
        return Mask(value, _lowest(np.unique(array).tolist()))
    node = producer_of(value, "Where")
    if node is None:
        return Mask(value, None)
    numbers = [scalar_of(operand) for operand in node.inputs[1:]]
    if None in numbers:
        return Mask(value, None)
    return Mask(value, _lowest([number for number in numbers if number is not None]))


def _lowest(numbers: list[float]) -> float | None:
    """The number that positions are filled with; None where there are several such."""
    fills = [number for number in numbers if number <= ABSORBING]
    return min(numbers, default=0.0) if len(fills) < 2 else None


def problem(mask: Mask, guarded: bool) -> str | None:
    """Reason why a mask cannot be one that Attention reads; None if it can.

    `guarded`: rows that attend to nothing are given zeros behind the Softmax.
    """
    rank = rank_of(mask.source)
    if rank is None or not 2 <= rank <= 4:
        return "the rank of its mask is unknown, or not 2 to 4"
    if guarded and mask.fill is None:
        return "rows without numbers become zeros, and nothing shows what its mask is filled with"
    if mask.replaces is None or mask.fill is None or mask.fill <= ABSORBING:
        return None
    return "its mask replaces scores by a number that does not absorb them when added"


def written(
    mask: Mask,
    node: ir.Node,
    operands: tuple[ir.Value, ir.Value],
    shared: Shared,
    standard: bool,
) -> ir.Value:
    """The mask as an input of a new node in front of `node`.

    `operands`: queries and keys (N, h, L, d).
    """
    lengths = tuple(_length(operand) for operand in operands)
    # lengths that are unknown may be others in another layer
    ends = operands if None in lengths else lengths
    identity = (mask.source, mask.replaces, mask.fill, standard, *ends)
    found = shared.get(node, *identity)
    if found is not None:
        return found
    value = _absorbing(
        mask,
        node,
        shared,
        standard,
    )
    dims = dims_of(mask.source) or []
    is_long = None not in lengths and tuple(dims[-2:]) == lengths
    # the operators broadcast neither length, and one of them asks for four axes
    if not is_long or (len(dims) < 4 and not standard):
        shapes = [
            shared.integers(
                node,
                1,
                1,
            )
        ]
        for operand in operands:
            length = shared.result(
                node,
                "Shape",
                [operand],
                start=2,
                end=3,
            )
            shapes.append(length)
        size = shared.result(
            node,
            "Concat",
            [*shapes],
            axis=0,
        )
        value = shared.result(
            node,
            "Expand",
            [value, size],
        )
    return shared.keep(
        value,
        node,
        *identity,
    )


def _absorbing(mask: Mask, node: ir.Node, shared: Shared, standard: bool) -> ir.Value:
    """The mask as it is added; for the standard operator without the lowest float."""
    if mask.replaces is not None:
        # written over scores or added to them is the same: it absorbs them
        low = shared.number(node, -np.inf if mask.is_infinite else ABSORBING)
        zero = shared.number(node, 0.0)
        choices = (low, zero) if mask.replaces else (zero, low)
        return shared.result(
            node,
            "Where",
            [mask.source, *choices],
        )
    is_above = mask.fill is not None and mask.fill >= ABSORBING
    if not standard or mask.is_infinite or is_above:
        return mask.source
    low = shared.number(node, ABSORBING)
    return shared.result(
        node,
        "Max",
        [mask.source, low],
    )


def _length(value: ir.Value) -> int | str | None:
    dims = dims_of(value)
    return None if dims is None else dims[2]
