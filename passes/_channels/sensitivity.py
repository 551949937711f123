"""Sensitivity of the model's outputs to the drift of a group's readers, measured on data.

The drift of a layer says nothing about what comes after it: a shortcut may carry most of the sum
that it is added to, and what all layers read costs more than what one reads. So part of each group
is shut off on its own, its readers fitted to do without, and the model's outputs are compared with
the whole model's on the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context
from .._calibrated.layers import LARGEST_WIDTH, fittable_layers
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._dims.groups import Group
from .._dims.solve import Solution
from .._reconstruct.layers import ridge_fit, rows_with_bias
from .._reconstruct.output_drift import Variant, output_drifts
from .contractions import Contraction, consumers_of, square_bytes
from .importance.scores import Scores, channel_places

SHARES = (0.25, 0.5, 1.0)
"""Shares of the channels of a group that are shut off to be measured; between them what comes of
drift is interpolated. Chosen by hand, not measured.
"""

MEMORY = 1 << 30
"""Bytes of Gram matrices, and of weights of variants, that are held at once. Chosen by hand, not
measured.
"""

Layers = Mapping[str, LinearLayer]
"""LinearLayer layers by the names of their nodes."""


@dataclass(frozen=True)
class Reader:
    """A linear layer of the whole model that multiplies channels of a group.

    `gone`: whether each input goes, (groups, K).
    """

    name: str
    gone: NDArray[np.bool_]


@dataclass(frozen=True)
class Trial:
    """The first `count` channels of the group number `index` shut off, and who reads them."""

    index: int
    count: int
    readers: list[Reader]


def output_losses(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    scores: Sequence[Scores],
    context: Context,
    samples: int,
    damp: float,
) -> list[Scores]:
    """Drift of the model's outputs once the first n channels of each group are gone, n = 0 .. all.

    `scores`: drift of the readers once each channel and those before it are gone. Drift is a share
    of variance, at the outputs of mean squares. Groups that cannot be measured are taken to be as
    sensitive as the median of all.
    """
    layers = _layers_by_name(model, LARGEST_WIDTH)
    reader_drifts = [_ascending(each) for each in scores]
    trials = _trials(
        groups,
        solution,
        scores,
        layers,
    )
    # by group, then by count: output drift for one unit of the readers' drift
    sensitivities: list[dict[int, float]] = [{} for _ in groups]
    for batch in _batches(trials, layers, model):
        variants = _variants(
            model,
            batch,
            layers,
            context,
            samples,
            damp,
        )
        drifts = output_drifts(model, variants, context, samples)
        for trial, drift in zip(batch, drifts, strict=True):
            index = trial.index
            count = trial.count
            local = reader_drifts[index][count]
            if local > 0 and np.isfinite(drift):
                sensitivities[index][count] = drift / local
    usual = _median(sensitivities)
    curves = []
    for own, measured in zip(reader_drifts, sensitivities, strict=True):
        if not measured:
            measured = {len(own): usual}
        curves.append(_curve(own, measured))
    return curves


def _ascending(scores: Scores) -> Scores:
    """Drift of a group's readers once its first n channels are gone, n = 0 .. all."""
    rising = np.sort(scores)
    # constant channels score below zero: they add nothing
    drift = np.maximum(rising, 0.0)
    return np.append(0.0, drift)


def _median(sensitivities: Sequence[Mapping[int, float]]) -> float:
    """Median of all sensitivities; 1 where none is known: drift reaches the outputs as it is."""
    known: list[float] = []
    for each in sensitivities:
        known += each.values()
    if not known:
        return 1.0
    return float(np.median(known))


def _layers_by_name(
    model: ir.Model, widest: int | None = None
) -> dict[str, LinearLayer]:
    """LinearLayer layers of a model, of at most so many inputs."""
    layers = {}
    found, _ = fittable_layers(model)
    for layer in found:
        if widest is None or layer.width <= widest:
            name = layer.node.name or ""
            layers[name] = layer
    return layers


def _trials(
    groups: Sequence[Group],
    solution: Solution,
    scores: Sequence[Scores],
    layers: Layers,
) -> list[Trial]:
    """Trials of every group: the least important shares of its channels shut off."""
    consumers = consumers_of(groups, solution)
    trials = []
    for index, each in enumerate(scores):
        order = np.argsort(each, kind="stable")
        size = len(each)
        counts = {max(round(share * size), 1) for share in SHARES}
        for count in sorted(counts):
            first = order[:count]
            readers = _readers(
                groups[index],
                consumers[index],
                first,
                solution,
                layers,
            )
            trials.append(Trial(index, count, readers))
    return trials


def _readers(
    group: Group,
    consumers: Sequence[Contraction],
    first: NDArray[np.intp],
    solution: Solution,
    layers: Layers,
) -> list[Reader]:
    """LinearLayer layers that read a group, and their inputs that go with its channels `first`.

    `first`: positions in `group.channels`.
    """
    # one more place, for slots that are none of the group's
    gone = np.zeros(len(group.channels) + 1, bool)
    gone[first] = True
    readers = []
    for consumer in consumers:
        name = consumer.node.name or ""
        # a product whose weight comes first is no linear layer, nor one that is too wide
        if name not in layers or consumer.tensor is not layers[name].input:
            continue
        axis = (consumer.tensor, consumer.axis)
        places = channel_places(group, solution, axis)
        columns = consumer.view.columns()
        gone_of_columns = gone[places[columns]]
        readers.append(Reader(name, gone_of_columns))
    return readers


def _curve(drift: Scores, sensitivity: Mapping[int, float]) -> Scores:
    """Drift of the readers times the sensitivity, which is known for some counts of channels."""
    counts = sorted(sensitivity)
    known = [sensitivity[count] for count in counts]
    every = np.arange(len(drift))
    # beyond the counts that were measured the nearest one serves
    factors = np.interp(every, counts, known)
    # losing more channels cannot cost less
    curve: Scores = np.maximum.accumulate(drift * factors)
    return curve


def _batches(
    trials: Sequence[Trial], layers: Layers, model: ir.Model
) -> Iterator[list[Trial]]:
    """Trials that have readers, in runs that fit in `MEMORY`, at least one in each."""
    weights = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            weights += tensor.nbytes
    batch: list[Trial] = []
    held = 0
    for trial in trials:
        if not trial.readers:
            continue
        # each variant is a model of its own until they are joined
        own = weights
        for reader in trial.readers:
            layer = layers[reader.name]
            own += square_bytes(layer.groups, layer.width)
        if batch and held + own > MEMORY:
            yield batch
            batch = []
            held = 0
        batch.append(trial)
        held += own
    if batch:
        yield batch


def _variants(
    model: ir.Model,
    trials: Sequence[Trial],
    layers: Layers,
    context: Context,
    samples: int,
    damp: float,
) -> list[Variant]:
    """The model with the channels of each trial shut off, its readers fitted to do without."""
    requests = {}
    for trial in trials:
        for reader in trial.readers:
            layer = layers[reader.name]
            requests[reader.name] = layer.request("gram")
    grams = context.collect(model, requests, samples)
    return [_variant(model, trial.readers, grams, damp) for trial in trials]


def _variant(
    model: ir.Model,
    readers: Sequence[Reader],
    grams: Mapping[str, NDArray[np.float64]],
    damp: float,
) -> Variant:
    """A copy whose readers give the inputs that go no weight, and are fitted to do without."""
    copy = model.clone()
    edit = Edit(copy)
    layers = _layers_by_name(copy)
    changed = []
    for reader in readers:
        layer = layers[reader.name]
        changed.append(layer.output.name or "")
        # a branch that no sample took
        if reader.name not in grams:
            continue
        gram = grams[reader.name]
        cross = _own_products(layer, gram)
        rows, bias = ridge_fit(
            layer,
            gram,
            cross,
            damp,
            reader.gone,
        )
        layer.set_rows(rows)
        layer.set_bias(bias, edit)
    return Variant(copy, changed)


def _own_products(layer: LinearLayer, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean of z y^T, y being what the layer itself makes of z = [x, 1].

    Shapes: gram (groups, K + 1, K + 1) -> (groups, K + 1, M / groups).
    """
    groups, size, _ = gram.shape
    own = rows_with_bias(layer)
    each = own.reshape(groups, -1, size)
    weights = each.transpose(0, 2, 1)
    products: NDArray[np.float64] = gram @ weights
    return products
