"""Account of what each group gives where the outputs decide, and why it gives no more."""

from __future__ import annotations

from collections.abc import Sequence

from .._base import Chosen
from .._core.drift_budget import sqnr_of
from .budget import Offer
from .select import Candidates, Choice


def account_of(
    candidates: Candidates,
    offers: Sequence[Offer],
    choice: Choice,
    budget: float,
    on_data: bool,
) -> list[Chosen]:
    """Say what each group gives under a choice, and why no more.

    `budget`: share of the outputs' mean square that may be lost. `on_data`: whether the losses of
    the offers are such shares; else they are shares of a group's squared scores.
    """
    chosen = []
    for index, count in enumerate(choice):
        size = candidates.size(index)
        reason = _why_no_more(
            offers[index],
            count,
            size,
            budget,
            on_data,
        )
        where = candidates.groups[index].name
        chosen.append(Chosen(where, f"{count} of {size} channels", reason))
    return chosen


def _why_no_more(
    offer: Offer, count: int, size: int, budget: float, on_data: bool
) -> str:
    more = offer.counts[offer.counts > count]
    if not len(more):
        return f"fewer than {size - count} are not allowed (least, multiple)"
    further = int(more[0])
    loss = offer.loss_at(further)
    if not on_data:
        return f"{further} would take {loss:.1%} of its weights' energy"
    at_outputs = f"{further} would leave {sqnr_of(loss):.1f} dB at the outputs"
    if loss > budget:
        return at_outputs
    return f"{at_outputs}, and other groups save more for that"
