"""How far drift reaches: what the readers of a group lose, measured where it counts, at the outputs
of the model.

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
from .contractions import Consumer, consumers_of
from .importance.scores import Scores, channel_places
from .joint_graph import WHOLE, joined, part
from .reconstruct import solved

SHARES = (0.25, 0.5, 1.0)
"""Of the channels of a group that are shut off to be measured; between them what comes of drift is
interpolated.
"""

MEMORY = 1 << 30
"""Bytes of Gram matrices, and of weights of variants, that are held at once."""


@dataclass(frozen=True)
class Reader:
    """A linear layer of the whole model that multiplies channels of a group. `columns`: by input,
    whether it goes.
    """

    name: str
    columns: NDArray[np.bool_]


def output_losses(
    groups: Sequence[Group],
    solution: Solution,
    model: ir.Model,
    scores: Sequence[Scores],
    context: Context,
    samples: int,
    damp: float,
) -> list[Scores]:
    """Of each group the drift of the model's outputs once its first n channels are gone, n = 0 ..
    all.

    `scores`: drift of the readers once each channel and those before it are gone. Drift is a share
    of variance, at the outputs of mean squares. Groups that cannot be measured are taken to reach
    as far as the median of all.
    """
    layers = {
        layer.node.name or "": layer
        for layer in fittable_layers(model)[0]
        if layer.width <= LARGEST_WIDTH
    }
    local = [np.append(0.0, np.maximum(np.sort(each), 0.0)) for each in scores]
    trials = [
        (index, count)
        for index, each in enumerate(scores)
        for count in sorted({max(round(share * len(each)), 1) for share in SHARES})
    ]
    consumers = consumers_of(groups, solution)
    readers = [
        _readers(
            groups[i],
            consumers[i],
            np.argsort(scores[i], kind="stable")[:count],
            solution,
            layers,
        )
        for i, count in trials
    ]
    reach: list[dict[int, float]] = [{} for _ in groups]
    for batch in _batches(readers, layers, model):
        drifts = _output_drift(
            model, [readers[trial] for trial in batch], layers, context, samples, damp
        )
        for (index, count), drift in zip(
            (trials[trial] for trial in batch), drifts, strict=True
        ):
            if local[index][count] > 0 and np.isfinite(drift):
                reach[index][count] = drift / local[index][count]
    usual = float(
        np.median([factor for each in reach for factor in each.values()] or [1.0])
    )
    return [
        _curve(drift, each or {len(drift): usual})
        for drift, each in zip(local, reach, strict=True)
    ]


def _readers(
    group: Group,
    consumers: Sequence[Consumer],
    first: NDArray[np.intp],
    solution: Solution,
    layers: Mapping[str, LinearLayer],
) -> list[Reader]:
    """The linear layers that read a group, and which of their inputs go with its channels at the
    positions `first`.
    """
    gone = np.zeros(len(group.channels) + 1, bool)
    gone[first] = True
    return [
        Reader(
            name,
            gone[
                channel_places(group, solution, (each.tensor, each.axis))[
                    each.columns()
                ]
            ],
        )
        for each in consumers
        if (name := each.node.name or "") in layers
        and each.tensor is layers[name].input
    ]


def _curve(drift: Scores, reach: Mapping[int, float]) -> Scores:
    """Drift of the readers times how far it reaches, which is known for some counts of channels."""
    counts = sorted(reach)
    factors = np.interp(
        np.arange(len(drift)), counts, [reach[count] for count in counts]
    )
    curve: Scores = np.maximum.accumulate(drift * factors)
    return curve


def _batches(
    readers: Sequence[Sequence[Reader]],
    layers: Mapping[str, LinearLayer],
    model: ir.Model,
) -> Iterator[list[int]]:
    """Indices of groups with readers, cut into runs that fit `MEMORY`, at least one in each."""
    weights = sum(
        v.const_value.nbytes
        for v in model.graph.initializers.values()
        if v.const_value is not None
    )
    batch: list[int] = []
    held = 0
    for index, each in enumerate(readers):
        if not each:
            continue
        own = weights + sum(
            8 * layers[r.name].groups * (layers[r.name].width + 1) ** 2 for r in each
        )
        if batch and held + own > MEMORY:
            yield batch
            batch, held = [], 0
        batch.append(index)
        held += own
    if batch:
        yield batch


def _output_drift(
    model: ir.Model,
    variants: Sequence[Sequence[Reader]],
    layers: Mapping[str, LinearLayer],
    context: Context,
    samples: int,
    damp: float,
) -> list[float]:
    """Of each variant the share of the outputs' mean square that its readers' loss costs, over
    float outputs.

    NaN where there is none.
    """
    outputs = [
        v.name or ""
        for v in model.graph.outputs
        if v.dtype in FLOATS and v.producer() is not None
    ]
    if not outputs:
        return [float("nan")] * len(variants)
    names = {reader.name for variant in variants for reader in variant}
    grams = context.collect(
        model, {name: layers[name].request("gram") for name in names}, samples
    )
    prefixes = [f"{number}/" for number in range(len(variants))]
    changed = (_variant(model, variant, grams, damp) for variant in variants)
    family = joined({WHOLE: model, **dict(zip(prefixes, changed, strict=True))})
    values = {
        value.name or "": value for node in family.graph for value in node.outputs
    }
    for prefix, variant in zip(prefixes, variants, strict=True):
        _share_prefix(prefix, {reader.name for reader in variant}, model, values)
    inputs = [
        value.name or "" for value in model.graph.inputs if not value.is_initializer()
    ]
    requests: dict[str, MomentRequest] = {}
    edit = Edit(family)
    for name in outputs:
        requests[WHOLE + name] = MomentRequest(
            _mean_square(values[WHOLE + name], edit), "mean"
        )
        for prefix in prefixes:
            lost = _appended("Sub", [values[prefix + name], values[WHOLE + name]], edit)
            requests[prefix + name] = MomentRequest(_mean_square(lost, edit), "mean")
    found = context.collect(
        part(family, inputs, [r.tensor for r in requests.values()]), requests, samples
    )
    shares = (
        [
            float(found[prefix + name][0] / found[WHOLE + name][0])
            for name in outputs
            if prefix + name in found and found[WHOLE + name][0] > 0
        ]
        for prefix in prefixes
    )
    return [float(np.mean(each)) if each else float("nan") for each in shares]


def _mean_square(value: ir.Value, edit: Edit) -> str:
    """The name of a new (1, 1) tensor: the mean square of a value's finite elements, the others
    counted as 0.
    """
    graph = edit.model.graph
    floats = _appended("Cast", [value], edit, to=ir.DataType.FLOAT)
    odd = _appended(
        "Or",
        [_appended("IsInf", [floats], edit), _appended("IsNaN", [floats], edit)],
        edit,
    )
    finite = _appended(
        "Where",
        [odd, edit.constant(graph, np.zeros((), np.float32), "zero"), floats],
        edit,
    )
    mean = _appended(
        "ReduceMean", [_appended("Mul", [finite, finite], edit)], edit, keepdims=0
    )
    mean.type = ir.TensorType(ir.DataType.FLOAT)
    shape = edit.constant(graph, np.ones(2, np.int64), "one_by_one")
    return _appended("Reshape", [mean, shape], edit).name or ""


def _appended(
    op_type: str, inputs: Sequence[ir.Value], edit: Edit, **attributes: int
) -> ir.Value:
    node = ir.node(op_type, inputs, attributes=attributes, name=edit.fresh(op_type))
    node.outputs[0].name = edit.fresh(op_type)
    edit.model.graph.append(node)
    return node.outputs[0]


def _variant(
    model: ir.Model,
    readers: Sequence[Reader],
    grams: Mapping[str, NDArray[np.float64]],
    damp: float,
) -> ir.Model:
    """A copy whose readers give the columns that go no weight, and are fitted to do without."""
    copy = model.clone()
    edit = Edit(copy)
    layers = {layer.node.name or "": layer for layer in fittable_layers(copy)[0]}
    for reader in readers:
        if reader.name in grams:
            layer, gram = layers[reader.name], grams[reader.name]
            rows, bias = solved(layer, gram, _aimed(layer, gram), damp, reader.columns)
            layer.set_rows(rows)
            layer.set_bias(bias, edit)
    return copy


def _aimed(layer: LinearLayer, gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean of z y^T, (groups, K + 1, M / groups), y being what the layer itself makes of z =
    [x, 1].
    """
    start = np.concatenate([layer.rows(), layer.bias_row()[:, None]], axis=1)
    aimed: NDArray[np.float64] = gram @ start.reshape(
        len(gram), -1, layer.width + 1
    ).transpose(0, 2, 1)
    return aimed


def _share_prefix(
    prefix: str, changed: set[str], model: ir.Model, values: Mapping[str, ir.Value]
) -> None:
    """Let a variant read from the whole model what its changed layers do not reach."""
    reached: set[ir.Value] = set()
    for node in model.graph:
        if node.name in changed or any(value in reached for value in node.inputs):
            reached.update(node.outputs)
            continue
        for value in node.outputs:
            if value.name:
                values[prefix + value.name].replace_all_uses_with(
                    values[WHOLE + value.name]
                )
