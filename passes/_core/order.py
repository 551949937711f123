"""Orders of passes in which one leaves another nothing to work on, or undoes what it did."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

ON_FLOATS = frozenset(
    {
        "clip-weights",
        "compress-weights",
        "correct-bias",
        "equalize",
        "gptq",
        "prune",
        "prune-channels",
        "quant",
        "round-weights",
        "smooth",
    }
)
"""Passes that work on float weights."""

ON_GRID = frozenset({"clip-weights", "correct-bias", "gptq", "round-weights"})
"""Passes that move weights onto a grid, and leave those that lie on it."""

_NAMING = ("include", "exclude", "layers")
"""Options that name layers."""


@dataclass(frozen=True)
class CostlyOrder:
    """An order that costs something.

    `sign`: words of the reason that `later` passes give for each layer that `earlier` ones took
    from them; "" where they take it all the same, and undo what was done. `why`: what it costs.
    `is_either`: one of the two is enough; else the later goes first.
    """

    earlier: frozenset[str]
    later: frozenset[str]
    sign: str
    why: str
    is_either: bool = False


ORDERS = (
    CostlyOrder(
        frozenset({"pack"}),
        ON_FLOATS,
        "already quantized",
        "{earlier} puts weights behind nodes that decode them, which {later} leaves",
    ),
    # what quant leaves float, compress-weights or another form may take
    CostlyOrder(
        frozenset({"quant"}),
        ON_FLOATS - {"quant", "compress-weights"},
        "already quantized",
        "{earlier} makes integers of weights, which {later} leaves",
    ),
    CostlyOrder(
        frozenset({"compress-weights"}),
        ON_FLOATS - {"compress-weights"},
        "already quantized",
        "{earlier} stores weights in few bits, which {later} leaves",
    ),
    CostlyOrder(
        frozenset({"compress-weights"}),
        ON_FLOATS - {"compress-weights"},
        "",
        "{later} makes other weights of those that {earlier} has rounded: they lose twice",
    ),
    CostlyOrder(
        frozenset({"quant", "compress-weights"}),
        ON_FLOATS,
        "FLOAT16, not FLOAT",
        "{earlier} stores weights in half precision, which {later} leaves",
    ),
    CostlyOrder(
        ON_GRID,
        ON_GRID,
        "bits already",
        "{earlier} moves weights onto the grid, where {later} leaves them",
        is_either=True,
    ),
)


class Ran(NamedTuple):
    """A pass that ran: its pipeline text, how much it changed, and why it declined what it did."""

    name: str
    text: str
    changed: int
    reasons: Sequence[str]

    @property
    def takes_all(self) -> bool:
        """True if it changed something, and no option of it names layers."""
        return self.changed > 0 and not any(word in self.text for word in _NAMING)


def lost_by_order(earlier: Ran, later: Ran) -> str | None:
    """Say what it costs that a pass ran before another, and what to write; None: nothing."""
    if not earlier.changed:
        return None
    for order in ORDERS:
        if earlier.name not in order.earlier or later.name not in order.later:
            continue
        signs = [order.sign for reason in later.reasons if order.sign in reason]
        is_lost = bool(signs)
        if not order.sign:
            is_lost = earlier.takes_all and later.takes_all
        if is_lost:
            why = order.why.format(earlier=earlier.name, later=later.name)
            count = f" ({len(signs)})" if order.sign else ""
            advice = f"write '{later.text}, {earlier.text}'"
            if order.is_either:
                advice = "one of them is enough"
            return f"{why}{count}: {advice}"
    return None
