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
from .layers import (
    Moments,
    damping,
    own_products,
    regression_loss,
    regression_parts,
    rows_with_bias,
)

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

FEWEST_STEPS = 4
"""Steps where a layer's loss is only estimated, and it is too large to be searched."""

SEARCHED = 5e7
"""Products of one step (outputs times inputs squared) up to which masks and factors are searched:
about 1 s a layer on two cores.
"""

WIDE = "activation"
"""Criterion of layers that are not searched."""

ROUNDS = 8
"""Rounds in which weights go step by step.

A layer of ResNet-20 at half of its weights loses 1.17 times as much with 4 of them as by removing
one at a time (Optimal Brain Compression), 1.05 times with 12.
"""

TOLERANCE = 1e-4
"""Fall of the residual's norm at which the steps end."""


PerInput = NDArray[np.float64]
"""A number for each input of each group, (groups, K)."""


def magnitude(gram: Moments) -> PerInput:
    """All inputs alike. Source: Han et al., NeurIPS 2015 (arXiv:1506.02626)."""
    groups, size, _ = gram.shape
    # the last row belongs to the bias, which always stays
    inputs = size - 1
    return np.ones((groups, inputs))


def activation(gram: Moments) -> PerInput:
    """Norm of the input. Source: Wanda, ICLR 2024 (arXiv:2306.11695)."""
    diagonal = np.einsum("gkk->gk", gram)
    power = np.maximum(diagonal[:, :-1], 0)
    norm = np.sqrt(power)
    return np.asarray(norm, np.float64)


def second_order(gram: Moments) -> PerInput:
    """Loss by removing a weight while the others make up for it: w^2 / [H^-1]_kk.

    Source: Hassibi and Stork, Optimal Brain Surgeon, NeurIPS 1992.
    """
    # the inverse of a matrix damped by a thousandth takes more than single precision
    exact = gram.astype(np.float64)
    pull = damping(exact, DAMP)
    # without the bias, which is never removed
    of_inputs = exact[:, :-1, :-1]
    damped = _damped(of_inputs, pull[:, :-1])
    inverse = np.linalg.inv(damped)
    diagonal = np.einsum("gkk->gk", inverse)
    root = np.sqrt(diagonal)
    return np.asarray(1 / root)


Worth = Callable[[Moments], PerInput]
"""Worth of inputs by their Gram matrices; weights of smallest |w| times worth go."""

CRITERIA: dict[str, Worth] = {
    "magnitude": magnitude,
    "activation": activation,
    "second order": second_order,
}
"""Criteria that are tried."""


def scores_of(rows: Rows, worth: PerInput) -> Rows:
    """|w| times the worth of its input, (M, K)."""
    groups = len(worth)
    rows_of_group = len(rows) // groups
    each = np.repeat(worth, rows_of_group, axis=0)
    size = np.abs(rows)
    return np.asarray(size * each)


GIVEN = "given"
"""Name of the mask that the pruned layer has already."""


@dataclass(frozen=True)
class MaskedProblem:
    """One pruned layer to be fitted.

    `dense`: weights and bias as they were, (M, K + 1). `given`: the mask that it has, (M, K).
    `criteria`: names by which a mask may be chosen. `step_by_step`: whether weights go in rounds.
    `factors`: of the damping, that are tried.
    """

    dense: Rows
    given: Mask
    criteria: Sequence[str]
    step_by_step: bool
    factors: Sequence[float]

    def mask(self, criterion: str, gram: Moments) -> Mask:
        """The mask that a criterion gives at once, with as many weights as the given."""
        if criterion == GIVEN:
            return self.given
        worth = CRITERIA[criterion](gram)
        weights = self.dense[:, :-1]
        scores = scores_of(weights, worth)
        return _largest(scores, self.kept)

    def best_mask(self, criterion: str, gram: Moments, cross: Moments) -> Mask:
        """The mask that a criterion gives; weights go step by step where that is affordable."""
        if criterion == GIVEN:
            return self.given
        if not self.step_by_step:
            return self.mask(criterion, gram)
        worth = CRITERIA[criterion](gram)
        return _gradual(
            self.dense,
            gram,
            cross,
            self.kept,
            worth,
        )

    @property
    def kept(self) -> int:
        """Number of weights that stay."""
        return int(self.given.sum())


def fit_masked(
    original: LinearLayer,
    pruned: LinearLayer,
    halves: Sequence[Moments],
    free_mask: bool,
    edit: Edit,
) -> str | None:
    """Give a pruned layer the weights that the moments ask for; zeros stay as many as they are.

    `original`: the layer as it was. `free_mask`: whether other weights may be zero than those that
    are. Returns the criterion of the mask; None, and the layer stays, where the data cannot show
    that a fit is better than the weights as they are.
    """
    # one half has nothing to be judged on
    if len(halves) < 2:
        return None
    if not np.isfinite(halves).all():
        return None
    problem = _problem(original, pruned, free_mask)
    best = _best(problem, pruned, halves)
    if best is None:
        return None
    criterion, factor = best
    # what was judged on one half is made anew from all of the data
    both = np.mean(halves, axis=0)
    gram, cross = regression_parts(pruned, both)
    mask = problem.best_mask(criterion, gram, cross)
    fitted = _solved(
        problem.dense,
        gram,
        cross,
        mask,
        DAMP * factor,
        STEPS,
    )
    if not np.isfinite(fitted).all():
        return None
    pruned.set_rows(fitted[:, :-1])
    pruned.set_bias(fitted[:, -1], edit)
    return criterion


def fit_to_own_outputs(
    layer: LinearLayer, gram: Moments, share: float
) -> tuple[Rows, Rows, Rows]:
    """Rows, bias and scores of a layer that gives up a share of its weights.

    What stays is fitted to what the layer itself makes of its inputs. Scores, squared, are what
    each weight alone adds to the mean square of its output. Shapes: gram (groups, K + 1, K + 1);
    (M, K), (M,), (M, K).
    """
    dense = rows_with_bias(layer)
    worth = activation(gram)
    weights = dense[:, :-1]
    scores = scores_of(weights, worth)
    removed = round(share * scores.size)
    kept = scores.size - removed
    mask = _largest(scores, kept)
    cross = own_products(layer, gram)
    steps = FEWEST_STEPS
    if _is_searched(layer):
        steps = JUDGING_STEPS
    fitted = _solved(
        dense,
        gram,
        cross,
        mask,
        DAMP,
        steps,
    )
    rows = fitted[:, :-1]
    bias = fitted[:, -1]
    return rows, bias, scores


def _is_searched(layer: LinearLayer) -> bool:
    """True if a layer is small enough for its mask and factor to be searched."""
    # the cost of a step grows with the width squared
    products = layer.channels * layer.width**2
    return products <= SEARCHED


def _problem(
    original: LinearLayer, pruned: LinearLayer, free_mask: bool
) -> MaskedProblem:
    dense = rows_with_bias(original)
    given = pruned.rows() != 0
    is_free = free_mask and not given.all()
    searched = _is_searched(pruned)
    if not is_free:
        criteria = [GIVEN]
    elif searched:
        criteria = list(CRITERIA)
    else:
        criteria = [WIDE]
    factors: Sequence[float] = FACTORS
    if not searched:
        factors = FACTORS[:1]
    return MaskedProblem(
        dense=dense,
        given=given,
        criteria=criteria,
        step_by_step=searched,
        factors=factors,
    )


def _best(
    problem: MaskedProblem, layer: LinearLayer, halves: Sequence[Moments]
) -> tuple[str, float] | None:
    """Criterion and factor of the damping that do best on the half of the data not used.

    Mask and weights are made from one half and judged on the other, both ways; masks are made at
    once, which costs a fifth of making them step by step. None where the layer as it is does
    better, or moments leave the range of single precision.
    """
    # single precision ranks as well, in half of the time
    with np.errstate(over="ignore"):
        halves = [half.astype(np.float32) for half in halves]
    if not np.isfinite(halves).all():
        return None
    pairs = []
    for one, other in (halves, halves[::-1]):
        seen = regression_parts(layer, one)
        unseen = regression_parts(layer, other)
        pairs.append((seen, unseen))

    def loss(masks: Sequence[Mask], factor: float) -> float:
        damp = DAMP * factor
        total = 0.0
        for mask, (seen, unseen) in zip(masks, pairs, strict=True):
            gram, cross = seen
            fitted = _solved(
                problem.dense,
                gram,
                cross,
                mask,
                damp,
                JUDGING_STEPS,
            )
            weights = fitted[:, :-1]
            bias = fitted[:, -1]
            total += regression_loss((weights, bias), *unseen)
        return total

    masks = {}
    losses = {}
    for criterion in problem.criteria:
        tried = []
        for (gram, _), _ in pairs:
            mask = problem.mask(criterion, gram)
            tried.append(mask)
        masks[criterion] = tried
        losses[criterion] = loss(tried, FACTORS[0])
    criterion = min(losses, key=lambda name: losses[name])

    # only the best criterion tries the other factors
    best_masks = masks[criterion]
    by_factor = {FACTORS[0]: losses[criterion]}
    for factor in problem.factors[1:]:
        by_factor[factor] = loss(best_masks, factor)
    factor = min(by_factor, key=lambda each: by_factor[each])

    rows = layer.rows()
    bias = layer.bias_row()
    unchanged = 0.0
    for _, unseen in pairs:
        unchanged += regression_loss((rows, bias), *unseen)
    if by_factor[factor] < unchanged:
        return criterion, factor
    return None


def _gradual(
    dense: Rows, gram: Moments, cross: Moments, kept: int, worth: PerInput
) -> Mask:
    """Remove weights in rounds; what is left is fitted before it is scored again."""
    gram = gram.astype(np.float32)
    cross = cross.astype(np.float32)
    rows = dense[:, :-1]
    mask = np.ones(rows.shape, bool)
    removed = rows.size - kept
    shares = np.linspace(0, 1, ROUNDS + 1)
    # none are removed at the first share, 0
    for share in shares[1:]:
        scores = scores_of(rows, worth)
        # a weight that is gone stays gone: no score is below zero
        standing = np.where(mask, scores, -1.0)
        gone = round(share * removed)
        left = rows.size - gone
        mask = _largest(standing, left)
        fitted = _solved(
            dense,
            gram,
            cross,
            mask,
            DAMP,
            JUDGING_STEPS,
        )
        rows = fitted[:, :-1]
    return mask


def _largest(scores: Rows, kept: int) -> Mask:
    """True for the `kept` largest scores, ties by index."""
    ascending = np.argsort(scores, axis=None, kind="stable")
    # counted from the front: a slice of the last 0 would take all
    first = scores.size - kept
    largest = ascending[first:]
    mask = np.zeros(scores.size, bool)
    mask[largest] = True
    return mask.reshape(scores.shape)


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
    start = start.astype(gram.dtype)
    pull = damping(gram, damp)
    pull = pull.astype(gram.dtype)
    matrix = _damped(gram, pull)
    # damping pulls the weights to where they were, not to zero
    towards_start = start * pull[:, None]
    wanted = cross.transpose(0, 2, 1)
    wanted = wanted + towards_start
    diagonal = np.einsum("gkk->gk", matrix)
    scale = 1.0 / diagonal[:, None]
    weights = start * stays
    explained = weights @ matrix
    residual = (wanted - explained) * stays
    direction = residual * scale
    power = _row_products(residual, direction)
    # powers are squares of the residual's norm
    enough = TOLERANCE**2 * power
    for _ in range(steps):
        solved = power <= enough
        if solved.all():
            break
        image = direction @ matrix
        # no step leaves the space of the weights that stay
        image = image * stays
        curvature = _row_products(direction, image)
        # rows that are solved already have no direction left
        length = _ratio(power, curvature)
        weights += length * direction
        residual -= length * image
        before = power
        power = _row_sums(residual**2 * scale)
        turn = _ratio(power, before)
        steepest = residual * scale
        direction = steepest + turn * direction
    return np.asarray(weights.reshape(len(dense), size))


def _damped(gram: Moments, pull: Moments) -> Moments:
    """Gram matrices with the damping on their diagonals: (groups, K, K), (groups, K)."""
    width = gram.shape[2]
    identity = np.eye(width, dtype=gram.dtype)
    ridge = identity * pull[:, None]
    damped: Moments = gram + ridge
    return damped


def _row_products(one: Moments, other: Moments) -> Moments:
    """Scalar products of the rows of two arrays, (groups, M / groups, 1)."""
    products = one * other
    return _row_sums(products)


def _row_sums(products: Moments) -> Moments:
    """Sums over the weights of each row: (groups, M / groups, K) -> (groups, M / groups, 1)."""
    sums: Moments = products.sum(axis=2, keepdims=True)
    return sums


def _ratio(numerator: Moments, denominator: Moments) -> Moments:
    """Quotients, and 0 where the denominator is none."""
    zeros = np.zeros_like(numerator)
    return np.divide(
        numerator,
        denominator,
        out=zeros,
        where=denominator > 0,
    )
