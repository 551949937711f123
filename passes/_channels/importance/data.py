"""Importance from what calibration data makes of the channels: their size and their variance."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, MomentRequest
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Contraction, consumers_of
from .scores import Base, Found, ScoreOptions, Scores, by_channel, combined

Profiles = dict[str, NDArray[np.float64]]
"""Means of x, |x| and x^2 of each channel that a reader multiplies, (folds, 3, C), by `key_of`."""

UNREAD = "no node reads its channels with a constant weight"
UNSEEN = "no calibration sample reached the nodes that read it"

NOISE = 1e-12
"""Share of the mean square below which a variance is rounding: float32 data has 1e-14 of it
anyway.
"""


def activation(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """||W_c|| E|x_c| of every consumer: what a channel brings to it.

    Source: Sun et al., A Simple and Effective Pruning Approach for LLMs (Wanda), ICLR 2024
    (arXiv:2306.11695), eq. 1, summed over the rows of a channel.
    """
    return _scored(
        "activation",
        groups,
        solution,
        model,
        context,
        options,
    )


def variance(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Var(a_c) ||W_c||^2 of every consumer: a bound on what it loses once the mean is in its bias.

    A channel that does not vary scores 0, and removing it is exact. Source: follows from E||W_c
    (a_c - E a_c)||^2 = Var(a_c) ||W_c||^2; for convolutions away from the padded border.
    """
    return _scored(
        "variance",
        groups,
        solution,
        model,
        context,
        options,
    )


def _scored(
    base: Base,
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    consumers = consumers_of(groups, solution)
    found = profiles(
        consumers,
        model,
        context,
        options.samples,
    )
    means = {key: profile.mean(axis=0) for key, profile in found.items()}
    result: Found = []
    for group, each in zip(groups, consumers, strict=True):
        seen = []
        for consumer in each:
            key = key_of(consumer)
            if key in means:
                slots = per_slot(base, means[key], consumer.squares())
                seen.append((consumer, slots))
        if seen:
            scores = group_scores(
                group,
                solution,
                seen,
                options,
            )
            result.append(scores)
        else:
            result.append(UNSEEN if each else UNREAD)
    return result


def group_scores(
    group: Group,
    solution: Solution,
    seen: Sequence[tuple[Contraction, Scores]],
    options: ScoreOptions,
) -> Scores:
    """Scores of a group from those of the slots that its consumers read."""
    parts = []
    for consumer, slots in seen:
        axis = (consumer.tensor, consumer.axis)
        part = by_channel(group, solution, axis, slots)
        parts.append(part)
    return combined(parts, options)


def per_slot(base: Base, means: NDArray[np.float64], squares: Scores) -> Scores:
    """Scores of the slots that a consumer reads.

    Shapes: `means` of x, |x| and x^2 (3, C), `squares` ||W_s||^2 (C,) -> (C,).
    """
    mean, mean_size, mean_square = means
    if base == "activation":
        scores: Scores = np.sqrt(squares) * mean_size
        return scores
    spread = mean_square - np.square(mean)
    # a constant channel must score 0, not what rounding left of its variance
    varies = spread > NOISE * mean_square
    return np.where(varies, spread, 0.0) * squares


def profiles(
    consumers: Sequence[Sequence[Contraction]],
    model: ir.Model,
    context: Context,
    samples: int,
) -> Profiles:
    """Profiles of the inputs of all groups' consumers; absent where no sample reached them."""
    requests = {}
    for each in consumers:
        for consumer in each:
            name = consumer.tensor.name or ""
            request = MomentRequest(name, "profile", axis=consumer.axis)
            # readers of one tensor share its profile
            requests[key_of(consumer)] = request
    return context.collect(model, requests, samples) if requests else {}


def key_of(consumer: Contraction) -> str:
    """Key of a profile, the same for consumers that read the same axis of the same tensor."""
    return f"{consumer.tensor.name}[{consumer.axis}]"
