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
from .._core.output_drift import Variant, in_batches, output_drifts
from .._core.weights import Weight, weights_of
from .._reconstruct.layers import Moments
from .._reconstruct.masked import fit_to_own_outputs
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
    largest_first = sorted(weights, key=lambda weight: weight.size, reverse=True)
    tried = largest_first[:MOST_TRIALS]
    trials = max(len(tried), 1)
    affordable = max(MOST_RUNS // trials, 1)
    measured = min(samples, MEASURED, affordable)
    curves: dict[str, LossCurve] = {}
    factors: dict[str, float] = {}
    bytes_of = _bytes_of_trials(tried, layers)
    with context.progress("measuring what weights are worth", len(tried)) as advance:
        for batch in in_batches(tried, bytes_of):
            shapes, variants = _trials(
                model,
                batch,
                layers,
                readers,
                context,
                samples,
            )
            curves.update(shapes)
            drifts = output_drifts(
                model,
                list(variants.values()),
                judge,
                measured,
            )
            for name, drift in zip(variants, drifts, strict=True):
                factor = _factor(shapes[name], drift)
                if factor is not None:
                    factors[name] = factor
            advance(len(batch))
    usual = 1.0
    if factors:
        found = list(factors.values())
        usual = float(np.median(found))
    result = {}
    for weight in weights:
        name = weight.name
        shape = curves.get(name) or energy_curve(weight.tensor)
        factor = factors.get(name, usual)
        result[name] = shape.scaled(factor)
    return result


def _factor(shape: LossCurve, drift: float) -> float | None:
    """Loss of the model's outputs by loss of the layer's; None where a trial tells nothing."""
    if not np.isfinite(drift):
        return None
    # no drift at all: the data never reached it, which says nothing of its worth
    if drift <= 0:
        return None
    zeros = _tried_count(shape.size)
    local = shape.at(zeros)
    if local > 0:
        return drift / local
    return None


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
            top = holders.get(node.graph)
            if node.graph is model.graph:
                top = node
            if top is None:
                continue
            for value in top.outputs:
                outputs.append(value.name or "")
    return readers


def _bytes_of_trials(
    weights: Sequence[Weight], layers: Layers
) -> Callable[[Weight], int]:
    """Memory that the trial of each weight takes."""
    # a runtime lays out the weights of each variant anew, on average those of half of the model
    all_bytes = sum(weight.tensor.nbytes for weight in weights)
    half = all_bytes // 2

    def bytes_of(weight: Weight) -> int:
        layer = layers.get(weight.name)
        if layer is None:
            return half
        # the bias counts as one more input, and the Gram matrix is one of doubles
        inputs = layer.width + 1
        gram_size = layer.groups * inputs**2
        gram_bytes = 8 * gram_size
        return half + gram_bytes

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
        name = weight.name
        if name in layers:
            requests[name] = layers[name].request("gram")
    grams: Grams = {}
    if requests:
        grams = context.collect(model, requests, samples)
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
    edit = Edit(copy)
    layer.set_bias(bias, edit)
    squares = scores**2
    return score_curve(squares)


def _plain_trial(copy: ir.Model, name: str) -> None:
    """Take the smaller half of a weight, in a copy of the model."""
    found, _ = weights_of(copy)
    for weight in found:
        if weight.name == name:
            zeros = _tried_count(weight.size)
            smaller = zeroed(weight, zeros)
            set_tensor(weight.value, smaller)
