"""Importance from what calibration data makes of the channels: how large they are, and how much
they vary.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, MomentRequest
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Consumer, consumers_of
from .scores import Base, Found, ScoreOptions, Scores, by_channel, combined

Profiles = dict[str, NDArray[np.float64]]
"""By `key_of` a consumer: means of x, |x| and x^2 of each channel it reads, (folds, 3, C)."""

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
    return _scored("activation", groups, solution, model, context, options)


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
    return _scored("variance", groups, solution, model, context, options)


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
        (c for each in consumers for c in each), model, context, options.samples
    )
    means = {key: profile.mean(0) for key, profile in found.items()}
    result: Found = []
    for group, each in zip(groups, consumers, strict=True):
        seen = [
            (c, per_slot(base, means[key_of(c)], c.squares()))
            for c in each
            if key_of(c) in means
        ]
        result.append(
            group_scores(group, solution, seen, options)
            if seen
            else UNSEEN
            if each
            else UNREAD
        )
    return result


def group_scores(
    group: Group,
    solution: Solution,
    seen: Sequence[tuple[Consumer, Scores]],
    options: ScoreOptions,
) -> Scores:
    """Scores of a group from those of the slots that its consumers read."""
    return combined(
        [by_channel(group, solution, (c.tensor, c.axis), slots) for c, slots in seen],
        options,
    )


def per_slot(base: Base, means: NDArray[np.float64], squares: Scores) -> Scores:
    """Scores of the slots a consumer reads from their means of x, |x|, x^2, (3, C), and its
    ||W_s||^2, (C,).
    """
    if base == "activation":
        scores: Scores = np.sqrt(squares) * means[1]
        return scores
    spread = means[2] - np.square(means[0])
    return np.where(spread > NOISE * means[2], spread, 0.0) * squares


def profiles(
    consumers: Iterable[Consumer], model: ir.Model, context: Context, samples: int
) -> Profiles:
    """What calibration data makes of the inputs of consumers; absent where no sample reached
    them.
    """
    requests = {
        key_of(c): MomentRequest(c.tensor.name or "", "profile", axis=c.axis)
        for c in consumers
    }
    return context.collect(model, requests, samples) if requests else {}


def key_of(consumer: Consumer) -> str:
    """The same for consumers that read the same axis of the same tensor."""
    return f"{consumer.tensor.name}[{consumer.axis}]"
