"""Importance as drift: what the readers of a group lose with a channel once the others make up for
it.

With S the covariance of what a reader multiplies and W its weight, taking columns c away and
refitting the rest and the bias costs tr(W_c (S^-1_cc)^-1 W_c^T) of the variance of its output
(Optimal Brain Surgeon on the Gram matrix). Channels go greedily, S^-1 and W updated after each, so
two copies of one channel are not both taken to be superfluous.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, MomentRequest
from ..._calibrated.layers import LARGEST_WIDTH
from ..._core.graph import label
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Consumer, consumers_of
from .data import UNREAD, UNSEEN
from .obs import Surgeon
from .scores import Found, ScoreOptions, Scores, channel_places

MEMORY = 1 << 30
"""Bytes of Gram matrices held at once: groups whose readers need less in all share a run over the
data.
"""

ROUNDS = 64
"""Updates of the whole inverse for one group; between them channels go in turn out of those that
cost least.
"""


OVERFLOW = "what it gives its readers is too large to be squared"


@dataclass(frozen=True)
class DriftOrder:
    """`order`: positions in `group.channels`, the first to go first. `drift`: relative drift once
    each has gone.

    Drift is the share of the variance of the readers' outputs that is lost after refitting, 0 to 1,
    over readers as `aggregate` says.
    """

    order: NDArray[np.intp]
    drift: Scores

    @property
    def scores(self) -> Scores:
        """Of each channel the drift once it has gone: those at most epsilon are what a budget of
        epsilon removes.
        """
        scores = np.empty(len(self.order))
        scores[self.order] = self.drift
        return scores


def drift(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> Found:
    """Relative drift of the readers' outputs once the channel, and all that go before it, are gone
    and made up for.

    Not normalised: a share of the output's variance already. Source: Hassibi & Stork, Second Order
    Derivatives for Network Pruning: Optimal Brain Surgeon, NeurIPS 1992, eq. 5, on a layer's Gram
    matrix as in Frantar & Alistarh, Optimal Brain Compression, NeurIPS 2022 (arXiv:2208.11580), for
    blocks of columns.
    """
    return [
        found if isinstance(found, str) else found.scores
        for found in drift_order(groups, solution, model, context, options)
    ]


def drift_order(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> list[DriftOrder | str]:
    """For each group the order in which its channels go and the drift they cost, or why there is
    none.

    Readers without a Gram matrix count only where all are so: then the first one's reason is given.
    """
    consumers = consumers_of(groups, solution)
    readers = [[c for c in each if not _problem(c)] for each in consumers]
    found: list[DriftOrder | str] = [
        f"{label(each[0].node)}: {_problem(each[0])}" if each else UNREAD
        for each in consumers
    ]
    for batch in _batches(readers):
        wanted = {c.request(): c for index in batch for c in readers[index]}
        keys = {request: str(number) for number, request in enumerate(wanted)}
        moments = context.collect(
            model, {key: request for request, key in keys.items()}, options.samples
        )
        for index in batch:
            seen = [
                (c, moments[key])
                for c in readers[index]
                if (key := keys[c.request()]) in moments
                and np.isfinite(moments[key]).all()
            ]
            surgeons = [
                Surgeon.of(
                    c.matrix(),
                    c.grams(moment),
                    _owners(groups[index], solution, c),
                    options.damp,
                )
                for c, moment in seen
            ]
            missing = (
                OVERFLOW
                if any(keys[c.request()] in moments for c in readers[index])
                else UNSEEN
            )
            found[index] = (
                _ordered(surgeons, len(groups[index].channels), options)
                if surgeons
                else missing
            )
    return found


def _problem(consumer: Consumer) -> str:
    """Why a consumer has no Gram matrix to work with; "" if it has."""
    if problem := consumer.unsuited():
        return problem
    width = consumer.columns().shape[1]
    return (
        f"a Gram matrix of {width} inputs is too large"
        if width > LARGEST_WIDTH or _bytes(consumer) > MEMORY
        else ""
    )


def _bytes(consumer: Consumer) -> int:
    """Of the Gram matrix that the consumer asks for."""
    columns = consumer.columns()
    blocks, width = (
        columns.shape
        if consumer.kernel and consumer.node.op_type == "Conv"
        else (1, columns.size)
    )
    return 8 * int(blocks) * (int(width) + 1) ** 2


def _batches(readers: Sequence[Sequence[Consumer]]) -> Iterator[list[int]]:
    """Indices of groups that have readers, cut into runs whose Gram matrices fit `MEMORY`, at least
    one in each.
    """
    batch: list[int] = []
    held: dict[MomentRequest, int] = {}
    for index, each in enumerate(readers):
        own = {c.request(): _bytes(c) for c in each}
        if batch and sum((held | own).values()) > MEMORY:
            yield batch
            batch, held = [], {}
        if own:
            batch.append(index)
            held |= own
    if batch:
        yield batch


def _owners(group: Group, solution: Solution, consumer: Consumer) -> NDArray[np.intp]:
    """The position in `group.channels` that each column of the consumer's matrix belongs to, -1 for
    none.
    """
    place = channel_places(group, solution, (consumer.tensor, consumer.axis))[
        consumer.columns()
    ]
    return np.where(place == len(group.channels), -1, place)


def _ordered(surgeons: list[Surgeon], count: int, options: ScoreOptions) -> DriftOrder:
    """Take channels out greedily. Between updates of the whole inverses, of a pool of the cheapest
    ones, exactly.
    """
    batch = -(-count // ROUNDS)
    left = np.ones(count, bool)
    order: list[int] = []
    drift: list[float] = []
    while left.any():
        costs = np.where(
            left, _over([s.costs(count) for s in surgeons], options), np.inf
        )
        pool = np.argsort(costs, kind="stable")[
            : min(2 * batch if batch > 1 else 1, int(left.sum()))
        ]
        parts = [s.restricted(pool) for s in surgeons]
        taken: list[int] = []
        while len(taken) < min(batch, len(pool)):
            now = np.full(count, np.inf)
            now[pool] = _over([s.costs(count) for s in parts], options)[pool]
            now[taken] = np.inf
            taken.append(int(np.argmin(now)))
            drift.append(float(now[taken[-1]]) + (drift[-1] if drift else 0.0))
            for part in parts:
                part.remove([taken[-1]])
        for surgeon in surgeons:
            surgeon.remove(taken)
        left[taken] = False
        order += taken
    return DriftOrder(np.array(order, np.intp), np.array(drift))


def _over(costs: Sequence[Scores], options: ScoreOptions) -> Scores:
    """Costs over readers, unscaled: they are shares already."""
    if options.aggregate == "first":
        return costs[0]
    stacked = np.stack(costs)
    result: Scores = stacked.max(0) if options.aggregate == "max" else stacked.sum(0)
    return result / len(costs) if options.aggregate == "mean" else result
