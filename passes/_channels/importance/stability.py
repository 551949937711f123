"""Importance as stability: how often a channel would have gone, had half of the calibration data
been seen.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Consumer, consumers_of
from .data import UNREAD, UNSEEN, Profiles, group_scores, key_of, per_slot, profiles
from .scores import Found, ScoreOptions, Scores

FEW = "the calibration data is one sample: there are no halves of it"


def stability(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """1 - the frequency with which a channel is among the `ratio` that go, over `rounds` halves of
    the data.

    Channels of one frequency are ordered by the base criterion on all data, by less than one round.
    The halves come in complementary pairs, the same for the same seed. Sources: Meinshausen &
    Buehlmann, Stability Selection, JRSS B 2010 (arXiv:0809.2932); pairs: Shah & Samworth, JRSS B
    2013 (arXiv:1105.5578).
    """
    consumers = consumers_of(groups, solution)
    seen = profiles(
        (c for each in consumers for c in each), model, context, options.samples
    )
    found: Found = []
    for group, each in zip(groups, consumers, strict=True):
        known = [c for c in each if key_of(c) in seen]
        if not known:
            found.append(UNSEEN if each else UNREAD)
        elif all(len(seen[key_of(c)]) < 2 for c in known):
            found.append(FEW)
        else:
            found.append(_scored(group, solution, known, seen, context.seed, options))
    return found


def removal_frequencies(scores: Scores, rounds: int) -> Scores:
    """What `stability` counted: of each channel the share of the rounds in which it would have
    gone, exactly.
    """
    pairs = 2 * max(rounds // 2, 1)
    return 1 - np.floor(scores * pairs + 1e-6) / pairs


def expected_errors(removed: float, channels: int, threshold: float) -> float:
    """Bound on how many channels go by chance alone where those of frequency >= threshold (above
    1/2) go.

    `removed`: how many of the `channels` go in a round. Source: Meinshausen & Buehlmann 2010,
    theorem 1.
    """
    return removed**2 / ((2 * threshold - 1) * channels)


def _scored(
    group: Group,
    solution: Solution,
    consumers: Sequence[Consumer],
    seen: Profiles,
    seed: int,
    options: ScoreOptions,
) -> Scores:
    squares = [c.squares() for c in consumers]

    def base(means: Sequence[NDArray[np.float64]]) -> Scores:
        slots = [
            (c, per_slot(options.base, mean, own))
            for c, mean, own in zip(consumers, means, squares, strict=True)
        ]
        return group_scores(group, solution, slots, options)

    rounds = max(options.rounds // 2, 1)
    count, quota = (
        np.zeros(len(group.channels)),
        int(options.ratio * len(group.channels)),
    )
    folds = [seen[key_of(c)] for c in consumers]
    for order in _orders(seed, rounds, max(map(len, folds))):
        for part in (0, 1):
            means = [_half(each, order, part).mean(0) for each in folds]
            count[np.argsort(base(means), kind="stable")[:quota]] += 1
    rank = np.empty(len(count))
    rank[np.argsort(base([each.mean(0) for each in folds]), kind="stable")] = np.arange(
        len(count)
    )
    scores: Scores = 1 - (count - rank / (2 * len(count))) / (2 * rounds)
    return scores


def _orders(seed: int, rounds: int, folds: int) -> Iterator[NDArray[np.intp]]:
    """Random orders of the folds, one a round; the halves are what comes first and what comes
    next.
    """
    random = np.random.default_rng(seed)
    for _ in range(rounds):
        yield random.permutation(folds)


def _half(
    folds: NDArray[np.float64], order: NDArray[np.intp], part: int
) -> NDArray[np.float64]:
    """The first or second half of the folds in an order; all of it where samples were not told
    apart.
    """
    own = order[order < len(folds)]
    size = len(own) // 2
    return folds[own[part * size : part * size + size]] if size else folds
