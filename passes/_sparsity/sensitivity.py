"""Loss of the model's outputs by the zeros of each weight, measured on data.

Half of one weight goes at a time, what stays of it is fitted to its layer's own outputs, and the
outputs of the model are compared with the whole model's. Below and above that half, the loss is
taken to grow as the sum of what the weights add to their layer's output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from .._base import Context
from .._calibrated.layers import LARGEST_WIDTH, fittable_layers
from .._core.edit import Edit
from .._core.graph import subgraphs
from .._core.lazy import set_tensor
from .._core.linear import LinearLayer
from .._core.weights import Weight, weights_of
from .._reconstruct.layers import Moments
from .._reconstruct.masked import fit_to_own_outputs
from .._reconstruct.output_drift import Variant, in_batches, output_drifts
from .loss_curves import LossCurve, energy_curve, score_curve
from .pools import zeroed

TRIED = 0.5
"""Share of a weight that goes in its trial. Chosen by hand: most models bear about as much."""

MEASURED = 64
"""Samples at most. Chosen by hand."""

MOST_RUNS = 2048
"""Samples times weights at most: models of many weights take fewer samples. Chosen by hand."""

MOST_TRIALS = 96
"""Weights that are tried, the largest; smaller ones are taken to be as sensitive as the median.

Chosen by hand: the largest 96 hold nearly all elements of the models at hand.
"""

Layers = Mapping[str, LinearLayer]
"""Linear layers by the names of their weights."""

Grams = Mapping[str, Moments]
"""Gram matrices of layers' inputs by the names of their weights."""


def measured_curves(
    model: ir.Model,
    weights: Sequence[Weight],
    context: Context,
    judge: Context,
    samples: int,
) -> dict[str, LossCurve]:
    """Losses of each weight, by name, on at most `samples` samples.

    `context`: data that what stays is fitted to; `judge`: data that the loss is measured on.
    Errors: NonFiniteError.
    """
    layers = _layers_by_weight(model)
    readers = outputs_by_weight(model)
    tried = sorted(weights, key=lambda weight: weight.size, reverse=True)[:MOST_TRIALS]
    affordable = max(MOST_RUNS // max(len(tried), 1), 1)
    measured = min(samples, MEASURED, affordable)
    curves: dict[str, LossCurve] = {}
    factors: dict[str, float] = {}
    with context.progress("measuring what weights are worth", len(tried)) as advance:
        for batch in in_batches(tried, _bytes_of_trials(tried, layers)):
            shapes, variants = _trials(model, batch, layers, readers, context, samples)
            curves.update(shapes)
            drifts = output_drifts(model, list(variants.values()), judge, measured)
            for name, drift in zip(variants, drifts, strict=True):
                shape = shapes[name]
                local = shape.at(_tried_count(shape.size))
                # no drift at all: the data never reached it, which says nothing of its worth
                if local > 0 and np.isfinite(drift) and drift > 0:
                    factors[name] = drift / local
            advance(len(batch))
    usual = float(np.median(list(factors.values()))) if factors else 1.0
    result = {}
    for weight in weights:
        name = weight.name
        shape = curves.get(name) or energy_curve(weight.tensor)
        result[name] = shape.scaled(factors.get(name, usual))
    return result


def _tried_count(size: int) -> int:
    return round(TRIED * size)


def _layers_by_weight(model: ir.Model) -> dict[str, LinearLayer]:
    layers = {}
    found, _ = fittable_layers(model)
    for layer in found:
        if layer.width <= LARGEST_WIDTH:
            layers[layer.weight.name or ""] = layer
    return layers


def outputs_by_weight(model: ir.Model) -> dict[str, list[str]]:
    """Outputs of the main graph's nodes that multiply by each weight, within subgraphs too."""
    holders: dict[object, ir.Node] = {}
    for node in model.graph:
        waiting = list(subgraphs(node))
        while waiting:
            inner = waiting.pop()
            holders[inner] = node
            for each in inner:
                waiting.extend(subgraphs(each))
    readers: dict[str, list[str]] = {}
    found, _ = weights_of(model)
    for weight in found:
        outputs = readers.setdefault(weight.name, [])
        for node, _ in weight.uses:
            # a function's node belongs to none of these graphs
            top = node if node.graph is model.graph else holders.get(node.graph)
            if top is not None:
                outputs.extend(value.name or "" for value in top.outputs)
    return readers


def _bytes_of_trials(
    weights: Sequence[Weight], layers: Layers
) -> Callable[[Weight], int]:
    """Memory that the trial of each weight takes."""
    # a runtime lays out the weights of each variant anew, on average those of half of the model
    half = sum(weight.tensor.nbytes for weight in weights) // 2

    def bytes_of(weight: Weight) -> int:
        layer = layers.get(weight.name)
        if layer is None:
            return half
        return half + 8 * layer.groups * (layer.width + 1) ** 2

    return bytes_of


def _trials(
    model: ir.Model,
    weights: Sequence[Weight],
    layers: Layers,
    readers: Mapping[str, Sequence[str]],
    context: Context,
    samples: int,
) -> tuple[dict[str, LossCurve], dict[str, Variant]]:
    """Shape of the loss of each weight, and the model with half of it gone, both by name."""
    requests = {}
    for weight in weights:
        if weight.name in layers:
            requests[weight.name] = layers[weight.name].request("gram")
    grams: Grams = context.collect(model, requests, samples) if requests else {}
    shapes = {}
    variants = {}
    for weight in weights:
        name = weight.name
        gram = grams.get(name)
        copy = model.clone()
        if gram is not None and np.isfinite(gram).all():
            shapes[name] = _fitted_trial(copy, name, gram)
        else:
            shapes[name] = energy_curve(weight.tensor)
            _plain_trial(copy, name)
        variants[name] = Variant(copy, readers[name])
    return shapes, variants


def _fitted_trial(copy: ir.Model, name: str, gram: Moments) -> LossCurve:
    """Take half of a weight and fit what stays, in a copy of the model."""
    layer = _layers_by_weight(copy)[name]
    rows, bias, scores = fit_to_own_outputs(layer, gram, TRIED)
    layer.set_rows(rows)
    layer.set_bias(bias, Edit(copy))
    return score_curve(scores**2)


def _plain_trial(copy: ir.Model, name: str) -> None:
    """Take the smaller half of a weight, in a copy of the model."""
    found, _ = weights_of(copy)
    for weight in found:
        if weight.name == name:
            set_tensor(weight.value, zeroed(weight, _tried_count(weight.size)))
