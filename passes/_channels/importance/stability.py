"""Importance as stability: how often a random half of the data would have a channel pruned."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Contraction, consumers_of
from .data import UNREAD, UNSEEN, Profiles, group_scores, key_of, per_slot, profiles
from .scores import Base, Found, ScoreOptions, Scores

FEW = "the calibration data is one sample, and cannot be halved: give more"

HALVES = 100
"""Halves of the data that vote, in pairs: frequencies in steps of 1 %. Chosen by hand, not
measured; Shah & Samworth (2013) take 50 pairs, too.
"""

BASE: Base = "variance"
"""Criterion by which channels go in each half."""

Means = Sequence[NDArray[np.float64]]
"""Means of x, |x| and x^2, (3, C), of each consumer of a group."""


def stability(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """1 - the frequency with which a channel is among the `ratio` that go, over halves of the data.

    Channels of one frequency are ordered by the base criterion on all data, by less than one half's
    vote. The halves come in complementary pairs, the same for the same seed. Sources: Meinshausen &
    Buehlmann, Stability Selection, JRSS B 2010 (arXiv:0809.2932); pairs: Shah & Samworth, JRSS B
    2013 (arXiv:1105.5578).
    """
    consumers = consumers_of(groups, solution)
    seen = profiles(
        consumers,
        model,
        context,
        options.samples,
    )
    found: Found = []
    for group, each in zip(groups, consumers, strict=True):
        known = [consumer for consumer in each if key_of(consumer) in seen]
        folds = [len(seen[key_of(consumer)]) for consumer in known]
        if not folds:
            found.append(UNSEEN if each else UNREAD)
            continue
        if max(folds) < 2:
            found.append(FEW)
            continue
        scores = _scored(
            group,
            solution,
            known,
            seen,
            context.seed,
            options,
        )
        found.append(scores)
    return found


def removal_frequencies(scores: Scores) -> Scores:
    """Exact share of the halves in which each channel would go, from the scores of `stability`."""
    halves = 2 * pairs()
    # scores lie less than one vote above the frequency; the margin absorbs their rounding
    stayed = np.floor(scores * halves + 1e-6)
    return 1 - stayed / halves


def pairs() -> int:
    """Pairs of complementary halves, at least one."""
    return max(HALVES // 2, 1)


def _scored(
    group: Group,
    solution: Solution,
    consumers: Sequence[Contraction],
    seen: Profiles,
    seed: int,
    options: ScoreOptions,
) -> Scores:
    squares = [consumer.squares() for consumer in consumers]

    def ascending(means: Means) -> NDArray[np.intp]:
        """Positions of the channels in the order of the base criterion."""
        read = []
        for consumer, mean, own in zip(consumers, means, squares, strict=True):
            slots = per_slot(BASE, mean, own)
            read.append((consumer, slots))
        scores = group_scores(
            group,
            solution,
            read,
            options,
        )
        # ties go in graph order
        return np.argsort(scores, kind="stable")

    folds = [seen[key_of(consumer)] for consumer in consumers]
    channels = len(group.channels)
    quota = int(options.ratio * channels)
    votes = np.zeros(channels)
    for means in _half_means(folds, seed):
        by_score = ascending(means)
        lowest = by_score[:quota]
        votes[lowest] += 1
    whole = [each.mean(axis=0) for each in folds]
    order = ascending(whole)
    rank = np.empty(channels)
    rank[order] = np.arange(channels)
    # less than half a vote: ties alone are decided by it
    tie_break = rank / (2 * channels)
    halves = 2 * pairs()
    scores: Scores = 1 - (votes - tie_break) / halves
    return scores


def _half_means(
    folds: Sequence[NDArray[np.float64]], seed: int
) -> Iterator[list[NDArray[np.float64]]]:
    """Means over each half of the data, for the profile (folds, 3, C) of each consumer."""
    longest = max(len(each) for each in folds)
    for order in _orders(seed, longest):
        for half in (0, 1):
            halves = [_half(each, order, half) for each in folds]
            yield [each.mean(axis=0) for each in halves]


def _orders(seed: int, folds: int) -> Iterator[NDArray[np.intp]]:
    """Random orders of the folds, one a pair; each half is a run of an order."""
    random = np.random.default_rng(seed)
    for _ in range(pairs()):
        yield random.permutation(folds)


def _half(
    folds: NDArray[np.float64], order: NDArray[np.intp], half: int
) -> NDArray[np.float64]:
    """First (0) or second (1) half of the folds in an order.

    All of them where there is only one: samples were not told apart.
    """
    # a consumer that fewer samples reached has fewer folds
    own = order[order < len(folds)]
    size = len(own) // 2
    if size == 0:
        return folds
    start = half * size
    stop = start + size
    return folds[own[start:stop]]
