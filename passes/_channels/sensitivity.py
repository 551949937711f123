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

from .._base import Context, MomentRequest
from .._calibrated.layers import LARGEST_WIDTH, fittable_layers
from .._core.edit import Edit
from .._core.linear import LinearLayer
from .._core.ops import FLOATS
from .._dims.groups import Group
from .._dims.solve import Solution
from .._reconstruct.joint_graph import WHOLE, data_inputs, join_models, submodel
from .._reconstruct.layers import ridge_fit, rows_with_bias
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
        drifts = _output_drifts(
            model,
            batch,
            layers,
            context,
            samples,
            damp,
        )
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


def _output_drifts(
    model: ir.Model,
    trials: Sequence[Trial],
    layers: Layers,
    context: Context,
    samples: int,
    damp: float,
) -> list[float]:
    """Share of the outputs' mean square that each trial costs, the mean over float outputs.

    NaN where there is none. All trials are variants in one graph, run once.
    """
    outputs = _float_outputs(model)
    if not outputs:
        return [float("nan")] * len(trials)
    requests = {}
    for trial in trials:
        for reader in trial.readers:
            layer = layers[reader.name]
            requests[reader.name] = layer.request("gram")
    grams = context.collect(model, requests, samples)
    variants = {}
    for number, trial in enumerate(trials):
        prefix = f"{number}/"
        variants[prefix] = _variant(
            model,
            trial.readers,
            grams,
            damp,
        )
    family = join_models({WHOLE: model, **variants})
    values = _values_by_name(family)
    for prefix, trial in zip(variants, trials, strict=True):
        changed = {reader.name for reader in trial.readers}
        _share_unchanged(
            prefix,
            changed,
            model,
            values,
        )
    prefixes = list(variants)
    squares = _square_requests(
        family,
        values,
        outputs,
        prefixes,
    )
    tensors = [request.tensor for request in squares.values()]
    measured = submodel(family, data_inputs(model), tensors)
    found = context.collect(measured, squares, samples)
    return [_mean_share(found, prefix, outputs) for prefix in prefixes]


def _values_by_name(model: ir.Model) -> dict[str, ir.Value]:
    """Values that nodes of the main graph make."""
    values = {}
    for node in model.graph:
        for value in node.outputs:
            values[value.name or ""] = value
    return values


def _float_outputs(model: ir.Model) -> list[str]:
    """Names of the model's float outputs that a node makes."""
    floats = [value for value in model.graph.outputs if value.dtype in FLOATS]
    made = [value for value in floats if value.producer() is not None]
    return [value.name or "" for value in made]


def _square_requests(
    family: ir.Model,
    values: Mapping[str, ir.Value],
    outputs: Sequence[str],
    prefixes: Sequence[str],
) -> dict[str, MomentRequest]:
    """Requests of the mean squares of the whole model's outputs, and of what each variant loses."""
    requests: dict[str, MomentRequest] = {}
    edit = Edit(family)
    for name in outputs:
        wanted = values[WHOLE + name]
        square = _mean_square(wanted, edit)
        requests[WHOLE + name] = MomentRequest(square, "mean")
        for prefix in prefixes:
            own = values[prefix + name]
            lost = _appended("Sub", [own, wanted], edit)
            square = _mean_square(lost, edit)
            requests[prefix + name] = MomentRequest(square, "mean")
    return requests


def _mean_share(
    found: Mapping[str, NDArray[np.float64]], prefix: str, outputs: Sequence[str]
) -> float:
    """Mean over outputs of the share of its mean square that a variant loses; NaN of none."""
    shares = []
    for name in outputs:
        whole = found[WHOLE + name][0]
        lost = found.get(prefix + name)
        if lost is not None and whole > 0:
            share = lost[0] / whole
            shares.append(float(share))
    if not shares:
        return float("nan")
    return float(np.mean(shares))


def _mean_square(value: ir.Value, edit: Edit) -> str:
    """Append the mean square of a value's finite elements; the name of the (1, 1) tensor.

    Elements that are not finite count as 0: masks of attention may reach an output.
    """
    graph = edit.model.graph
    floats = _appended("Cast", [value], edit, to=ir.DataType.FLOAT)
    infinite = _appended("IsInf", [floats], edit)
    not_a_number = _appended("IsNaN", [floats], edit)
    odd = _appended("Or", [infinite, not_a_number], edit)
    zero = edit.constant(graph, np.zeros((), np.float32), "zero")
    finite = _appended("Where", [odd, zero, floats], edit)
    squares = _appended("Mul", [finite, finite], edit)
    mean = _appended("ReduceMean", [squares], edit, keepdims=0)
    mean.type = ir.TensorType(ir.DataType.FLOAT)
    # moments are taken along an axis, and over batches: a scalar has neither
    one_by_one = np.ones(2, np.int64)
    shape = edit.constant(graph, one_by_one, "one_by_one")
    result = _appended("Reshape", [mean, shape], edit)
    return result.name or ""


def _appended(
    op_type: str, inputs: Sequence[ir.Value], edit: Edit, **attributes: int
) -> ir.Value:
    node = ir.node(
        op_type,
        inputs,
        attributes=attributes,
        name=edit.fresh(op_type),
    )
    output = node.outputs[0]
    output.name = edit.fresh(op_type)
    edit.model.graph.append(node)
    return output


def _variant(
    model: ir.Model,
    readers: Sequence[Reader],
    grams: Mapping[str, NDArray[np.float64]],
    damp: float,
) -> ir.Model:
    """A copy whose readers give the inputs that go no weight, and are fitted to do without."""
    copy = model.clone()
    edit = Edit(copy)
    layers = _layers_by_name(copy)
    for reader in readers:
        # a branch that no sample took
        if reader.name not in grams:
            continue
        layer = layers[reader.name]
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
    return copy


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


def _share_unchanged(
    prefix: str, changed: set[str], model: ir.Model, values: Mapping[str, ir.Value]
) -> None:
    """Let a variant read from the whole model whatever its changed layers do not influence."""
    influenced: set[ir.Value] = set()
    for node in model.graph:
        reads = any(value in influenced for value in node.inputs)
        if reads or node.name in changed:
            influenced.update(node.outputs)
            continue
        for value in node.outputs:
            if value.name:
                same = values[WHOLE + value.name]
                values[prefix + value.name].replace_all_uses_with(same)
