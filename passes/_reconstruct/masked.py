"""Fit of layers whose weights are zero at many places: least squares over the weights that stay.

The mask may be chosen anew, by whichever criterion fits best on data that the fit did not see.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from .._calibrated.layers import Rows
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .layers import Moments, damping, regression_loss, regression_parts, rows_with_bias

Mask = NDArray[np.bool_]
"""True where a weight stays, (M, K)."""

DAMP = 1e-3
"""Damping of the weights, in units of the inputs' mean power: as in the measurements that fitted
pruning was judged by.
"""

FACTORS = (1.0, 10.0, 100.0)
"""Factors of the damping that are tried on one half of the data and judged on the other."""

STEPS = 60
"""Steps of conjugate gradients at most. They end earlier where the residual has fallen enough."""

JUDGING_STEPS = 12
"""Steps while criteria and factors are compared: enough to rank them."""

SEARCHED = 5e7
"""Products of one step (outputs times inputs squared) up to which masks and factors are searched:
about 1 s a layer on two cores.
"""

WIDE = "activation"
"""Criterion of layers that are not searched."""

ROUNDS = 4
"""Rounds in which weights go step by step."""

TOLERANCE = 1e-4
"""Fall of the residual's norm at which the steps end."""


def magnitude(rows: Rows, gram: Moments) -> Rows:
    """|w|. Source: Han et al., NeurIPS 2015 (arXiv:1506.02626)."""
    return np.asarray(np.abs(rows))


def activation(rows: Rows, gram: Moments) -> Rows:
    """|w| times the norm of its input. Source: Wanda, ICLR 2024 (arXiv:2306.11695)."""
    groups, size, _ = gram.shape
    power = np.einsum("gkk->gk", gram)[:, : size - 1]
    each = np.repeat(np.sqrt(np.maximum(power, 0)), len(rows) // groups, axis=0)
    return np.asarray(np.abs(rows) * each)


def second_order(rows: Rows, gram: Moments) -> Rows:
    """Loss by removing a weight while the others make up for it: w^2 / [H^-1]_kk.

    Source: Hassibi and Stork, Optimal Brain Surgeon, NeurIPS 1992.
    """
    groups, size, _ = gram.shape
    inputs = gram[:, : size - 1, : size - 1]
    pull = damping(gram, DAMP)[:, : size - 1]
    inverse = np.linalg.inv(inputs + np.eye(size - 1) * pull[:, None])
    diagonal = np.einsum("gkk->gk", inverse)
    each = np.repeat(diagonal, len(rows) // groups, axis=0)
    return np.asarray(rows**2 / each)


Score = Callable[[Rows, Moments], Rows]
"""Scores (M, K) of weights (M, K) by the Gram matrices of their inputs; the smallest go."""

CRITERIA: dict[str, Score] = {
    "magnitude": magnitude,
    "activation": activation,
    "second order": second_order,
}
"""Criteria that are tried."""


@dataclass(frozen=True)
class MaskedFit:
    """Weights (M, K), bias (M,) and mask (M, K) of a fitted layer; `criterion` of the mask."""

    rows: Rows
    bias: Rows
    mask: Mask
    criterion: str


def fit_masked(
    original: LinearLayer,
    pruned: LinearLayer,
    halves: Sequence[Moments],
    free_mask: bool,
    edit: Edit,
) -> MaskedFit | None:
    """Give a pruned layer the weights that the moments ask for; zeros stay as many as they are.

    `original`: the layer as it was. `free_mask`: whether other weights may be zero than those that
    are. None, and the layer stays, where the moments overflow.
    """
    dense = rows_with_bias(original)
    given = pruned.rows() != 0
    masks = {"given": given}
    moments = np.mean(halves, axis=0)
    gram, cross = regression_parts(pruned, moments)
    if not np.isfinite(moments).all():
        return None
    factor = FACTORS[0]
    if free_mask and not given.all():
        kept = int(given.sum())
        # wide layers take the criterion that needs no search
        masks = {WIDE: _largest(CRITERIA[WIDE](dense[:, :-1], gram), kept)}
        if _is_searched(pruned):
            masks = _candidates(dense, gram, cross, kept)
    criterion = next(iter(masks))
    if _is_searched(pruned):
        criterion, factor = _best(dense, pruned, halves, masks)
    mask = masks[criterion]
    fitted = _solved(dense, gram, cross, mask, DAMP * factor, STEPS)
    if not np.isfinite(fitted).all():
        return None
    rows, bias = fitted[:, :-1], fitted[:, -1]
    pruned.set_rows(rows)
    pruned.set_bias(bias, edit)
    return MaskedFit(rows, bias, mask, criterion)


def _is_searched(layer: LinearLayer) -> bool:
    """Return whether masks and damping are searched: the cost grows with the width squared."""
    return layer.channels * layer.width**2 <= SEARCHED


def _candidates(
    dense: Rows, gram: Moments, cross: Moments, kept: int
) -> dict[str, Mask]:
    """The mask that each criterion gives, with as many weights: at once, and step by step."""
    masks = {}
    for name, score in CRITERIA.items():
        masks[name] = _largest(score(dense[:, :-1], gram), kept)
        masks[f"{name}, step by step"] = _gradual(dense, gram, cross, kept, score)
    return masks


def _gradual(
    dense: Rows, gram: Moments, cross: Moments, kept: int, score: Score
) -> Mask:
    """Remove weights in rounds; what is left is fitted before it is scored again."""
    size = dense.size - len(dense)
    mask = np.ones((len(dense), dense.shape[1] - 1), bool)
    rows = dense[:, :-1]
    for share in np.linspace(0, 1, ROUNDS + 1)[1:]:
        # a weight that is gone stays gone
        scores = np.where(mask, score(rows, gram), -1.0)
        mask = _largest(scores, size - round(share * (size - kept)))
        fitted = _solved(dense, gram, cross, mask, DAMP, JUDGING_STEPS)
        rows = fitted[:, :-1]
    return mask


def _largest(scores: Rows, kept: int) -> Mask:
    """True for the `kept` largest scores, ties by index."""
    order = np.argsort(scores, axis=None, kind="stable")
    mask = np.zeros(scores.size, bool)
    mask[order[scores.size - kept :]] = True
    return mask.reshape(scores.shape)


def _best(
    dense: Rows, layer: LinearLayer, halves: Sequence[Moments], masks: dict[str, Mask]
) -> tuple[str, float]:
    """Criterion and factor of the damping that fit best on the half that the fit did not see."""
    names = list(masks)
    if len(halves) < 2:
        return names[0], FACTORS[0]

    def loss(name: str, factor: float) -> float:
        total = 0.0
        for one, other in (halves, halves[::-1]):
            gram, cross = regression_parts(layer, one)
            fitted = _solved(
                dense, gram, cross, masks[name], DAMP * factor, JUDGING_STEPS
            )
            gram, cross = regression_parts(layer, other)
            total += regression_loss((fitted[:, :-1], fitted[:, -1]), gram, cross)
        return total

    name = (
        min(names, key=lambda each: loss(each, FACTORS[0]))
        if len(names) > 1
        else names[0]
    )
    return name, min(FACTORS, key=lambda factor: loss(name, factor))


def _solved(
    dense: Rows, gram: Moments, cross: Moments, mask: Mask, damp: float, steps: int
) -> Rows:
    """Weights and bias (M, K + 1) that minimise the damped squared error under the mask.

    Conjugate gradients on the normal equations of all rows at once, each row in the space of its
    own weights, preconditioned by the diagonal. Shapes: dense (M, K + 1), gram (groups, K + 1,
    K + 1), cross (groups, K + 1, M / groups), mask (M, K).
    """
    groups, size, _ = gram.shape
    # the bias always stays
    bias = np.ones((len(mask), 1), bool)
    stays = np.concatenate([mask, bias], axis=1)
    stays = stays.reshape(groups, -1, size)
    start = dense.reshape(groups, -1, size)
    pull = damping(gram, damp)
    matrix = gram + np.eye(size) * pull[:, None]
    wanted = cross.transpose(0, 2, 1)
    wanted = wanted + start * pull[:, None]
    diagonal = np.einsum("gkk->gk", matrix)
    scale = 1.0 / diagonal[:, None]
    weights = start * stays
    residual = (wanted - weights @ matrix) * stays
    direction = residual * scale
    power = (residual * direction).sum(axis=2, keepdims=True)
    enough = TOLERANCE**2 * power
    for _ in range(steps):
        if (power <= enough).all():
            break
        image = (direction @ matrix) * stays
        curvature = (direction * image).sum(axis=2, keepdims=True)
        # rows that are solved already have no direction left
        length = _ratio(power, curvature)
        weights += length * direction
        residual -= length * image
        before = power
        power = (residual**2 * scale).sum(axis=2, keepdims=True)
        turn = _ratio(power, before)
        direction = residual * scale + turn * direction
    return np.asarray(weights.reshape(len(dense), size))


def _ratio(numerator: Moments, denominator: Moments) -> Moments:
    """Quotients, and 0 where the denominator is none."""
    return np.divide(
        numerator,
        denominator,
        out=np.zeros_like(numerator),
        where=denominator > 0,
    )
