"""Loss of a model by the number of weights that each layer gives up, and what to take of each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .allocation import squares_by_magnitude, whole_counts
from .magnitude import NonFiniteError, is_finite, key_kind, sample_of, value_of

SHARES = np.linspace(0.0, 0.99, 100)
"""Shares of a weight at which its loss is known; between them it is taken to be linear."""

SAMPLED = 1 << 22
"""Elements above which an energy curve is that of a sample: 64 K tell it to about a percent."""

Losses = NDArray[np.float64]
"""Shares of the outputs' mean square that are lost, at each of `SHARES`."""


@dataclass(frozen=True)
class LossCurve:
    """Loss by the share of one weight that is zero; `size`: its elements."""

    size: int
    losses: Losses

    def scaled(self, factor: float) -> LossCurve:
        """The curve times a factor."""
        losses = self.losses * factor
        return LossCurve(self.size, losses)

    def at(self, count: int) -> float:
        """Loss once `count` elements are zero."""
        # a weight without elements loses nothing
        size = max(self.size, 1)
        return self.at_share(count / size)

    def at_share(self, share: float) -> float:
        """Loss once this share of the elements is zero."""
        loss = np.interp(share, SHARES, self.losses)
        return float(loss)


Curves = Mapping[str, LossCurve]
"""Curves by the names of weights."""


def energy_curve(tensor: ir.TensorProtocol) -> LossCurve:
    """Share of a weight's energy that its smallest elements hold.

    It is the share of the output's mean square that they make where inputs are alike and
    independent. Errors: NonFiniteError.
    """
    if tensor.size > SAMPLED:
        return _sampled_curve(tensor)
    squares, counts = squares_by_magnitude(tensor)
    energy = np.cumsum(squares)
    energy = np.append(0.0, energy)
    elements = np.cumsum(counts)
    elements = np.append(0, elements)
    losses = _share_held(tensor.size, elements, energy)
    return LossCurve(tensor.size, losses)


def _sampled_curve(tensor: ir.TensorProtocol) -> LossCurve:
    """Energy curve by a sample of the elements. Errors: NonFiniteError for what is among them."""
    kind = key_kind([tensor])
    keys = sample_of([tensor], tensor.size, kind)
    if not is_finite(keys):
        raise NonFiniteError(0)
    values = value_of(keys, kind)
    # squares of float16 would leave its range
    values = values.astype(np.float64)
    of_sample = score_curve(values**2)
    return LossCurve(tensor.size, of_sample.losses)


def score_curve(scores: NDArray[np.float64]) -> LossCurve:
    """Share of the sum of all scores that the smallest of them hold."""
    ascending = np.sort(scores, axis=None)
    sums = np.cumsum(ascending)
    sums = np.append(0.0, sums)
    elements = np.arange(len(sums))
    losses = _share_held(scores.size, elements, sums)
    return LossCurve(scores.size, losses)


def _share_held(
    size: int,
    elements: NDArray[np.integer],
    sums: NDArray[np.float64],
) -> Losses:
    """Share of the last sum that the smallest elements hold, at each of `SHARES`.

    `elements`, `sums`: numbers of the smallest elements, and what they sum to.
    """
    # a weight of zeros has nothing to lose, whatever it is divided by
    total = sums[-1] or 1.0
    removed = SHARES * size
    held = np.interp(removed, elements, sums)
    losses: Losses = held / total
    return losses


@dataclass(frozen=True)
class _Steps:
    """Steps from one share to the next, over all weights, the cheapest for what it takes first.

    `weight`: number of the weight that each step belongs to. `elements`, `losses`: what it adds.
    """

    weight: NDArray[np.intp]
    elements: NDArray[np.float64]
    losses: NDArray[np.float64]


def counts_within(curves: Curves, budget: float, most: float) -> dict[str, int]:
    """Zeros of each weight, as many as a total loss allows.

    `most`: largest share of each weight.
    """
    steps = _steps(list(curves.values()), most)
    spent = np.cumsum(steps.losses)
    affordable = spent <= budget
    taken = np.where(affordable, steps.elements, 0.0)
    return _by_name(curves, steps, taken)


def counts_for(curves: Curves, total: int) -> dict[str, int]:
    """Zeros of each weight that lose least, `total` in all (less where no weight may be empty)."""
    if not curves:
        return {}
    each = list(curves.values())
    steps = _steps(each, SHARES[-1])
    after = np.cumsum(steps.elements)
    before = after - steps.elements
    # the step at which the total is reached is taken in part
    wanted = total - before
    taken = np.clip(wanted, 0.0, steps.elements)
    exact = _sums(curves, steps, taken)
    # no weight may be empty
    most = [max(curve.size - 1, 0) for curve in each]
    counts = whole_counts(exact, np.array(most), total)
    by_name = zip(curves, counts, strict=True)
    return dict(by_name)


def predicted_loss(curves: Curves, counts: Mapping[str, int]) -> float:
    """Total loss, if errors of different weights are independent."""
    total = 0.0
    for name, curve in curves.items():
        zeros = counts.get(name, 0)
        total += curve.at(zeros)
    return total


def _steps(curves: Sequence[LossCurve], most: float) -> _Steps:
    # rounding may leave the share that `most` means just above it
    limit = most + 1e-9
    inside = SHARES[1:] <= limit
    widths = np.diff(SHARES)
    widths = widths[inside]
    number: list[NDArray[np.intp]] = []
    elements: list[NDArray[np.float64]] = []
    losses: list[NDArray[np.float64]] = []
    prices: list[NDArray[np.float64]] = []
    for index, curve in enumerate(curves):
        wide = widths * curve.size
        lost = np.diff(curve.losses)
        lost = lost[inside]
        not_zero = np.maximum(wide, 1e-9)
        own_price = lost / not_zero
        # a step waits for those before it, so that it counts at the dearest of them
        price = np.maximum.accumulate(own_price)
        owner = np.full(len(wide), index)
        number.append(owner)
        elements.append(wide)
        losses.append(lost)
        prices.append(price)
    all_prices = np.concatenate(prices)
    cheapest_first = np.argsort(all_prices, kind="stable")
    all_numbers = np.concatenate(number)
    all_elements = np.concatenate(elements)
    all_losses = np.concatenate(losses)
    return _Steps(
        weight=all_numbers[cheapest_first],
        elements=all_elements[cheapest_first],
        losses=all_losses[cheapest_first],
    )


def _sums(
    curves: Curves, steps: _Steps, taken: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Elements taken of each weight."""
    # a weight of which nothing is taken has a sum too
    weights = len(curves)
    sums = np.bincount(
        steps.weight,
        weights=taken,
        minlength=weights,
    )
    return np.asarray(sums, np.float64)


def _by_name(
    curves: Curves, steps: _Steps, taken: NDArray[np.float64]
) -> dict[str, int]:
    sums = _sums(curves, steps, taken)
    counts = {}
    for name, exact in zip(curves, sums, strict=True):
        # 1e-6: a whole number that sums of fractions left just below itself is not to lose one
        counts[name] = int(exact + 1e-6)
    return counts
