"""Sensitivity of the model's outputs to the drift of a group's readers, measured on data.

The drift of a layer says nothing about what comes after it: a shortcut may carry most of the sum
that it is added to, and what all layers read costs more than what one reads. So part of each group
is shut off on its own, its readers fitted to do without, and the model's outputs are compared with
the whole model's on the same data.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._base import Context
from .._calibrated.layers import LARGEST_WIDTH, fittable_layers
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._core.output_drift import MEMORY, Variant, in_batches, output_drifts
from .._dims.groups import Group
from .._dims.solve import Solution
from .._reconstruct.layers import own_products, ridge_fit
from .contractions import Contraction, consumers_of, square_bytes
from .importance.scores import Scores, channel_places

SHARES = (0.25, 0.5, 1.0)
"""Shares of the channels of a group that are shut off to be measured; between them what comes of
drift is interpolated. Chosen by hand, not measured.
"""

MEASURED = 64
"""Samples on which losses of parts of each group are measured at the model's outputs, at most.
Chosen by hand, not measured.
"""

Layers = Mapping[str, LinearLayer]
"""LinearLayer layers by the names of their nodes."""


@dataclass(frozen=True)
class FitData:
    """Data that readers are fitted to, and data on which the outputs are then compared.

    At most `fitted` and `judged` samples of them. `damp`: as `ridge_fit` takes it.
    """

    fitting: Context
    judging: Context
    fitted: int
    judged: int
    damp: float
    _grams: dict[str, NDArray[np.float64]] = field(default_factory=dict)

    def grams_of(
        self, model: ir.Model, layers: Layers
    ) -> dict[str, NDArray[np.float64]]:
        """Gram matrices of the inputs of layers, by their names; absent of those not reached.

        Those of the last calls are held up to `MEMORY`, all calls being of one model.
        """
        requests = {}
        for name, layer in layers.items():
            if name not in self._grams:
                requests[name] = layer.request("gram")
        if requests:
            self._grams.update(self.fitting.collect(model, requests, self.fitted))
        found = {name: self._grams[name] for name in layers if name in self._grams}
        held = sum(gram.nbytes for gram in self._grams.values())
        if held > MEMORY:
            self._grams.clear()
        return found


@dataclass(frozen=True)
class Reader:
    """A linear layer of the whole model that multiplies channels of a group.

    `gone`: whether each input goes, (groups, K).
    """

    name: str
    gone: NDArray[np.bool_]


@dataclass(frozen=True)
class GroupPart:
    """The first `count` channels of the group number `index` shut off."""

    index: int
    count: int


def output_losses(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    scores: Sequence[Scores],
    data: FitData,
) -> list[Scores]:
    """Drift of the model's outputs once the first n channels of each group are gone, n = 0 .. all.

    `scores`: drift of the readers once each channel and those before it are gone. Drift is a share
    of variance, at the outputs of mean squares. Groups that cannot be measured are taken to be as
    sensitive as the median of all.
    """
    reader_drifts = [_ascending(each) for each in scores]
    trials = _trials(scores)
    choices = []
    for trial in trials:
        alone = [0] * len(groups)
        alone[trial.index] = trial.count
        choices.append(alone)
    drifts = choice_drifts(groups, solution, model, scores, choices, data)
    # by group, then by count: output drift for one unit of the readers' drift
    sensitivities: list[dict[int, float]] = [{} for _ in groups]
    for trial, drift in zip(trials, drifts, strict=True):
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


def choice_drifts(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    scores: Sequence[Scores],
    choices: Sequence[Sequence[int]],
    data: FitData,
) -> list[float]:
    """Drift of the model's outputs once the channels of each choice are shut off.

    `choices`: how many of each group, in the order of their scores. The layers that read them are
    fitted to do without, each to what it gave before. NaN where no such layer reads them.
    """
    layers = _layers_by_name(model, LARGEST_WIDTH)
    consumers = consumers_of(groups, solution)
    orders = [np.argsort(each, kind="stable") for each in scores]
    readers = []
    for choice in choices:
        own: list[Reader] = []
        for index, count in enumerate(choice):
            # what gives nothing has no inputs to shut off
            if count:
                own += _readers(
                    groups[index],
                    consumers[index],
                    orders[index][:count],
                    solution,
                    layers,
                )
        readers.append(_merged(own))
    drifts = [float("nan")] * len(choices)
    for batch in _batches(readers, layers, model):
        variants = _variants(
            model,
            [readers[number] for number in batch],
            layers,
            data,
        )
        found = output_drifts(model, variants, data.judging, data.judged)
        for number, drift in zip(batch, found, strict=True):
            drifts[number] = drift
    return drifts


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
    found, _ = fittable_layers(model, tied=True)
    for layer in found:
        # no copy of the weight fits in front of nodes that others read behind
        if layer.chain.nodes and not layer.chain.has_one_reader:
            continue
        if widest is None or layer.width <= widest:
            name = layer.node.name or ""
            layers[name] = layer
    return layers


def _trials(scores: Sequence[Scores]) -> list[GroupPart]:
    """Trials of every group: the least important shares of its channels shut off."""
    trials = []
    for index, each in enumerate(scores):
        size = len(each)
        counts = {max(round(share * size), 1) for share in SHARES}
        trials += [GroupPart(index, count) for count in sorted(counts)]
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


def _merged(readers: Sequence[Reader]) -> list[Reader]:
    """One of each layer: it may read several groups."""
    gone: dict[str, NDArray[np.bool_]] = {}
    for reader in readers:
        own = gone.get(reader.name)
        gone[reader.name] = reader.gone if own is None else own | reader.gone
    return [Reader(name, inputs) for name, inputs in gone.items()]


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
    trials: Sequence[Sequence[Reader]], layers: Layers, model: ir.Model
) -> Iterator[list[int]]:
    """Numbers of trials that have readers, in runs that fit in memory."""
    weights = 0
    for value in model.graph.initializers.values():
        tensor = value.const_value
        if tensor is not None:
            weights += tensor.nbytes

    def bytes_of(number: int) -> int:
        # each variant is a model of its own until they are joined
        own = weights
        for reader in trials[number]:
            layer = layers[reader.name]
            own += square_bytes(layer.groups, layer.width)
        return own

    with_readers = [number for number, readers in enumerate(trials) if readers]
    return in_batches(with_readers, bytes_of)


def _variants(
    model: ir.Model,
    trials: Sequence[Sequence[Reader]],
    layers: Layers,
    data: FitData,
) -> list[Variant]:
    """The model with the channels of each trial shut off, its readers fitted to do without."""
    read = {}
    for readers in trials:
        for reader in readers:
            read[reader.name] = layers[reader.name]
    grams = data.grams_of(model, read)
    return [_variant(model, readers, grams, data.damp) for readers in trials]


def _variant(
    model: ir.Model,
    readers: Sequence[Reader],
    grams: Mapping[str, NDArray[np.float64]],
    damp: float,
) -> Variant:
    """A copy whose readers give the inputs that go no weight, and are fitted to do without."""
    copy = model.clone()
    edit = Edit(copy)
    _untie(copy, edit)
    layers = _layers_by_name(copy)
    changed = []
    for reader in readers:
        layer = layers[reader.name]
        changed.append(layer.output.name or "")
        # a branch that no sample took
        if reader.name not in grams:
            continue
        gram = grams[reader.name]
        cross = own_products(layer, gram)
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


def _untie(model: ir.Model, edit: Edit) -> None:
    """Give each layer a weight of its own, so that each is fitted to what it reads."""
    for layer in _layers_by_name(model).values():
        weight = layer.weight
        if layer.chain.has_one_reader:
            continue
        graph = layer.node.graph
        assert isinstance(graph, ir.Graph)
        own = ir.Value(
            name=edit.fresh(weight.name or "weight"),
            shape=weight.shape,
            type=weight.type,
            const_value=weight.const_value,
        )
        graph.register_initializer(own)
        layer.node.replace_input_with(1, own)
