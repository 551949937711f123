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
        return LossCurve(self.size, self.losses * factor)

    def at(self, count: int) -> float:
        """Loss once `count` elements are zero."""
        share = count / max(self.size, 1)
        return float(np.interp(share, SHARES, self.losses))


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
    energy = np.append(0.0, np.cumsum(squares))
    elements = np.append(0, np.cumsum(counts))
    total = energy[-1] or 1.0
    losses = np.interp(SHARES * tensor.size, elements, energy) / total
    return LossCurve(tensor.size, losses)


def _sampled_curve(tensor: ir.TensorProtocol) -> LossCurve:
    """Energy curve by a sample of the elements. Errors: NonFiniteError for what is among them."""
    kind = key_kind([tensor])
    keys = sample_of([tensor], tensor.size, kind)
    if not is_finite(keys):
        raise NonFiniteError(0)
    values = value_of(keys, kind).astype(np.float64)
    return LossCurve(tensor.size, score_curve(values**2).losses)


def score_curve(scores: NDArray[np.float64]) -> LossCurve:
    """Share of the sum of all scores that the smallest of them hold."""
    ascending = np.sort(scores, axis=None)
    sums = np.append(0.0, np.cumsum(ascending))
    total = sums[-1] or 1.0
    elements = np.arange(len(sums))
    losses = np.interp(SHARES * scores.size, elements, sums) / total
    return LossCurve(scores.size, losses)


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
    affordable = np.cumsum(steps.losses) <= budget
    taken = np.where(affordable, steps.elements, 0.0)
    return _by_name(curves, steps, taken)


def counts_for(curves: Curves, total: int) -> dict[str, int]:
    """Zeros of each weight that lose least, `total` in all (less where no weight may be empty)."""
    if not curves:
        return {}
    steps = _steps(list(curves.values()), SHARES[-1])
    before = np.cumsum(steps.elements) - steps.elements
    taken = np.clip(total - before, 0.0, steps.elements)
    exact = _sums(curves, steps, taken)
    most = np.array([max(curve.size - 1, 0) for curve in curves.values()])
    counts = whole_counts(exact, most, total)
    return dict(zip(curves, counts, strict=True))


def predicted_loss(curves: Curves, counts: Mapping[str, int]) -> float:
    """Total loss, if errors of different weights are independent."""
    return sum(curve.at(counts.get(name, 0)) for name, curve in curves.items())


def _steps(curves: Sequence[LossCurve], most: float) -> _Steps:
    inside = SHARES[1:] <= most + 1e-9
    widths = np.diff(SHARES)[inside]
    number: list[NDArray[np.intp]] = []
    elements: list[NDArray[np.float64]] = []
    losses: list[NDArray[np.float64]] = []
    prices: list[NDArray[np.float64]] = []
    for index, curve in enumerate(curves):
        wide = widths * curve.size
        lost = np.diff(curve.losses)[inside]
        # a step waits for those before it, so that it counts at the dearest of them
        price = np.maximum.accumulate(lost / np.maximum(wide, 1e-9))
        number.append(np.full(len(wide), index))
        elements.append(wide)
        losses.append(lost)
        prices.append(price)
    order = np.argsort(np.concatenate(prices), kind="stable")
    return _Steps(
        np.concatenate(number)[order],
        np.concatenate(elements)[order],
        np.concatenate(losses)[order],
    )


def _sums(
    curves: Curves, steps: _Steps, taken: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Elements taken of each weight."""
    sums = np.bincount(steps.weight, weights=taken, minlength=len(curves))
    return np.asarray(sums, np.float64)


def _by_name(
    curves: Curves, steps: _Steps, taken: NDArray[np.float64]
) -> dict[str, int]:
    sums = _sums(curves, steps, taken)
    # 1e-6: a whole number that sums of fractions left just below itself is not to lose one
    return {name: int(count + 1e-6) for name, count in zip(curves, sums, strict=True)}
