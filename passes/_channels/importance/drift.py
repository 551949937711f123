"""Importance as drift: what a group's readers lose with a channel once the others make up for it.

With S the covariance of what a reader multiplies and W its weight, taking columns c away and
refitting the rest and the bias costs tr(W_c (S^-1_cc)^-1 W_c^T) of the variance of its output
(Optimal Brain Surgeon on the Gram matrix). Channels go greedily, S^-1 and W updated after each, so
two copies of one channel are not both taken to be superfluous.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ..._base import Context, MomentRequest
from ..._calibrated.layers import LARGEST_WIDTH
from ..._core.graph import label
from ..._dims.groups import Group
from ..._dims.solve import Solution
from ..contractions import Contraction, consumers_of, moment_bytes
from .data import UNREAD, UNSEEN
from .obs import ObsInput
from .scores import Aggregate, Found, ScoreOptions, Scores, aggregated, channel_places

MEMORY = 1 << 30
"""Bytes of Gram matrices held at once: groups whose readers need less in all share a run over the
data. Chosen by hand, not measured.
"""

ROUNDS = 64
"""Updates of the whole inverse for one group; between them channels go in turn out of those that
cost least. Bounds the time at 64 updates, each cubic in the width; chosen by hand.
"""

DAMP = 1e-4
"""Share of the mean variance of a reader's inputs that is added to each: inverses of covariances
without full rank stay finite. Chosen by hand, not measured.
"""

SUMS = ("mean", "sum")
"""Aggregates for which readers of one tensor count together."""

OVERFLOW = "the squares of its values overflow"


@dataclass(frozen=True)
class DriftOrder:
    """Order in which the channels of a group go, and the drift that they cost.

    `order`: positions in `group.channels`, the first to go first. `drift`: relative drift once each
    has gone, the share of the variance of the readers' outputs that is lost after refitting, 0 to
    1, over readers as `aggregate` says.
    """

    order: NDArray[np.intp]
    drift: Scores

    @property
    def scores(self) -> Scores:
        """Drift once each channel has gone, by channel.

        Channels of a score of at most epsilon are what a budget of epsilon removes.
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
    """Relative drift of the readers' outputs once a channel and all that go before it are gone.

    The others make up for them. Not normalised: a share of the output's variance already. Source:
    Hassibi & Stork, Second Order Derivatives for Network Pruning: Optimal Brain Surgeon, NeurIPS
    1992, eq. 5, on a layer's Gram matrix as in Frantar & Alistarh, Optimal Brain Compression,
    NeurIPS 2022 (arXiv:2208.11580), for blocks of columns.
    """
    scores: Found = []
    for found in drift_order(
        groups,
        solution,
        model,
        context,
        options,
    ):
        scores.append(found if isinstance(found, str) else found.scores)
    return scores


def drift_order(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    context: Context,
    options: ScoreOptions,
) -> list[DriftOrder | str]:
    """Order in which the channels of each group go, or the reason why there is none.

    Readers without a Gram matrix count only where all are so: then the first one's reason is given.
    """
    consumers = consumers_of(groups, solution)
    readers = []
    found: list[DriftOrder | str] = []
    for each in consumers:
        readers.append([reader for reader in each if _no_gram(reader) is None])
        if each:
            first = each[0]
            found.append(f"{label(first.node)}: {_no_gram(first)}")
        else:
            found.append(UNREAD)
    for batch in _batches(readers):
        moments = _collected(
            readers,
            batch,
            model,
            context,
            options.samples,
        )
        for index in batch:
            own = readers[index]
            found[index] = _order_of(
                groups[index],
                solution,
                own,
                moments,
                options,
            )
    return found


def _no_gram(consumer: Contraction) -> str | None:
    """Reason why a consumer has no Gram matrix to work with; None if it has one."""
    problem = consumer.view.not_a_product()
    if problem:
        return problem
    width = consumer.view.columns().shape[1]
    if width > LARGEST_WIDTH or moment_bytes(consumer) > MEMORY:
        return f"a layer that reads it has {width} inputs, too many to compare"
    return None


def _batches(readers: Sequence[Sequence[Contraction]]) -> Iterator[list[int]]:
    """Indices of groups that have readers, in runs whose Gram matrices fit in `MEMORY`.

    At least one group in each.
    """
    batch: list[int] = []
    held: dict[MomentRequest, int] = {}
    for index, each in enumerate(readers):
        own = {reader.request(): moment_bytes(reader) for reader in each}
        # equal requests are one matrix, also of several groups
        together = held | own
        if batch and sum(together.values()) > MEMORY:
            yield batch
            batch, held = [], {}
        if own:
            batch.append(index)
            held |= own
    if batch:
        yield batch


def _collected(
    readers: Sequence[Sequence[Contraction]],
    batch: Sequence[int],
    model: ir.Model,
    context: Context,
    samples: int,
) -> dict[MomentRequest, NDArray[np.float64]]:
    """Gram matrices of the readers of a batch of groups, in one run over the data."""
    wanted: dict[MomentRequest, None] = {}
    for index in batch:
        for reader in readers[index]:
            wanted[reader.request()] = None
    requests = {str(number): request for number, request in enumerate(wanted)}
    moments = context.collect(model, requests, samples)
    found = {}
    for key, request in requests.items():
        if key in moments:
            found[request] = moments[key]
    return found


def _order_of(
    group: Group,
    solution: Solution,
    readers: Sequence[Contraction],
    moments: Mapping[MomentRequest, NDArray[np.float64]],
    options: ScoreOptions,
) -> DriftOrder | str:
    """Order of the channels of one group, by the readers whose moments are known and finite."""
    sharing: dict[Hashable, list[Contraction]] = {}
    reached = False
    for number, reader in enumerate(readers):
        request = reader.request()
        moment = moments.get(request)
        if moment is None:
            continue
        reached = True
        if np.isfinite(moment).all():
            # sums over layers that read the same columns of one tensor take one inverse for all
            key: Hashable = number
            if options.aggregate in SUMS:
                key = request, reader.view.columns().tobytes()
            sharing.setdefault(key, []).append(reader)
    inputs = []
    for alike in sharing.values():
        first = alike[0]
        read = ObsInput.of(
            [reader.view.matrix() for reader in alike],
            first.grams(moments[first.request()]),
            _owners(group, solution, first),
            DAMP,
        )
        inputs.append(read)
    if inputs:
        return _greedy_order(inputs, len(group.channels), options.aggregate)
    return OVERFLOW if reached else UNSEEN


def _owners(
    group: Group, solution: Solution, consumer: Contraction
) -> NDArray[np.intp]:
    """Position in `group.channels` that each column of a consumer's matrix belongs to.

    -1 for none. Shape (groups, K).
    """
    axis = (consumer.tensor, consumer.axis)
    places = channel_places(group, solution, axis)
    owner = places[consumer.view.columns()]
    elsewhere = len(group.channels)
    return np.where(owner == elsewhere, -1, owner)


def _greedy_order(
    inputs: Sequence[ObsInput], count: int, aggregate: Aggregate
) -> DriftOrder:
    """Take `count` channels out greedily, the cheapest first.

    Costs are exact within a pool of the cheapest channels; the whole inverses are updated after
    each batch.
    """
    batch = -(-count // ROUNDS)
    # twice the batch: which channels are cheapest may change as others go
    pool_size = 2 * batch if batch > 1 else 1
    left = np.ones(count, bool)
    order: list[int] = []
    drift: list[float] = []
    total = 0.0
    while left.any():
        costs = _costs(inputs, count, aggregate)
        costs = np.where(left, costs, np.inf)
        size = min(pool_size, int(left.sum()))
        cheapest = np.argsort(costs, kind="stable")
        pool = cheapest[:size]
        taken = []
        removals = _taken_from(
            pool,
            batch,
            inputs,
            count,
            aggregate,
        )
        # costs are those of the layers as the channels before have left it: they add up
        for channel, cost in removals:
            total = cost + total
            drift.append(total)
            taken.append(channel)
        for read in inputs:
            read.remove(taken)
        left[taken] = False
        order += taken
    return DriftOrder(np.array(order, np.intp), np.array(drift))


def _taken_from(
    pool: NDArray[np.intp],
    batch: int,
    inputs: Sequence[ObsInput],
    count: int,
    aggregate: Aggregate,
) -> Iterator[tuple[int, float]]:
    """Channels of a pool with their costs, the cheapest first, as each goes; a batch at most."""
    parts = [read.restricted(pool) for read in inputs]
    left = np.zeros(count, bool)
    left[pool] = True
    size = min(batch, len(pool))
    for _ in range(size):
        costs = _costs(parts, count, aggregate)
        costs = np.where(left, costs, np.inf)
        channel = int(np.argmin(costs))
        cost = float(costs[channel])
        yield channel, cost
        left[channel] = False
        for part in parts:
            part.remove([channel])


def _costs(inputs: Sequence[ObsInput], count: int, aggregate: Aggregate) -> Scores:
    """Costs of `count` channels over readers, unscaled: they are shares already."""
    shares = [read.costs(count) for read in inputs]
    if aggregate == "mean":
        readers = sum(read.readers for read in inputs)
        mean: Scores = np.sum(shares, axis=0) / readers
        return mean
    return aggregated(shares, aggregate)
