"""Time of each layer as float and as integers on this CPU, and of the borders between the two.

Times of layers come from ONNX Runtime's profile of the model in either form. Where a float layer
and one of integers meet, the values between them are converted and laid out anew: what that takes
is found on models in which some layers stay float, every other one or half of them by lot.
"""

from __future__ import annotations

import random
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from math import prod

import numpy as np
import onnx_ir as ir

from ...passes._core.weights import weights_of
from ...runtime.kernel_times import Profile
from .choices import FLOAT
from .kernel_owners import kernel_owners, owners_of, with_names
from .lab import Lab, Made
from .recipe import DEFAULT_FORM, quant_text
from .swaps import comparable

SEED = 1
"""Seed of the layers drawn by lot, the same for every search."""

Times = Mapping[str, float]
"""Time of a layer in ms, by the name of its weight."""

Edge = tuple[str, str]
"""Weights of two layers of which the second reads what the first gives."""


@dataclass(frozen=True)
class LayerTimes:
    """Times by which that of a mixture of forms is told.

    `forms`: times of layers by form. `rest_ms`: of all that belongs to no layer. `borders`: time in
    ms that an edge takes where its layers are of different forms.
    """

    forms: Mapping[str, Times]
    rest_ms: float
    borders: Mapping[Edge, float]

    def of(self, picked: Mapping[str, str]) -> float:
        """Time in ms of the model whose weights have these forms; the others have 8 bits."""
        total = self.rest_ms
        for weight, time in self.forms[DEFAULT_FORM].items():
            form = picked.get(weight, DEFAULT_FORM)
            total += self.forms[form].get(weight, time)
        for (first, second), time in self.borders.items():
            before = picked.get(first, DEFAULT_FORM)
            behind = picked.get(second, DEFAULT_FORM)
            if before != behind:
                total += time
        return total


def layer_times(lab: Lab, eight_bits: Made) -> LayerTimes:
    """Times of the layers of a model whose kernels can be timed.

    `eight_bits`: the model in integers. Errors: those of `quant`.
    """
    whole = with_names(comparable(eight_bits.reference, eight_bits.result))
    integers = with_names(eight_bits.result)
    mixtures = _mixtures(_weights_of_layers(whole))
    made = []
    for mixture in mixtures:
        text = quant_text(dict.fromkeys(mixture, FLOAT))
        made.append(lab.made(text).result)
    of_whole, of_integers, *of_mixtures = lab.context.profiles([whole, integers, *made])
    float_times, _ = _by_weight(of_whole, whole, whole)
    times, rest_ms = _by_weight(of_integers, whole, integers)
    forms = {FLOAT: float_times, DEFAULT_FORM: times}
    without_borders = LayerTimes(forms, rest_ms, {})
    beyond = []
    for mixture, profile in zip(mixtures, of_mixtures, strict=True):
        told = without_borders.of(dict.fromkeys(mixture, FLOAT))
        beyond.append(profile.latency_ms - told)
    borders = _border_times(
        _edges(whole),
        mixtures,
        beyond,
    )
    return LayerTimes(forms, rest_ms, borders)


def _weights_of_layers(whole: ir.Model) -> list[str]:
    """Names of the weights that own nodes of the main graph, in its order."""
    owned = set(owners_of(whole, whole).values())
    weights, _ = weights_of(whole)
    names = [weight.name for weight in weights]
    return [name for name in names if name in owned]


def _mixtures(weights: Sequence[str]) -> list[list[str]]:
    """Weights that stay float in each of the models that tell of borders.

    Every other layer in the order of the graph is between two of the other form, but sums of a
    residual network then join layers of one form: halves drawn by lot have borders there, too.
    """
    draw = random.Random(SEED)
    half = len(weights) // 2
    every_other = list(weights[::2])
    first = draw.sample(weights, half)
    second = draw.sample(weights, half)
    return [every_other, first, second]


def _by_weight(
    profile: Profile, whole: ir.Model, result: ir.Model
) -> tuple[dict[str, float], float]:
    """Times of kernels by the weight that they belong to, and of those that belong to none."""
    kernels = [kernel for kernel, _ in profile.kernels]
    owners = kernel_owners(kernels, owners_of(whole, result))
    times: dict[str, float] = {}
    rest = 0.0
    for owner, (_, time) in zip(owners, profile.kernels, strict=True):
        if owner is None:
            rest += time
        else:
            times[owner] = times.get(owner, 0.0) + time
    return times, rest


def _edges(whole: ir.Model) -> dict[Edge, int]:
    """Elements of the largest value that one layer hands to another."""
    owners = owners_of(whole, whole)
    found: dict[Edge, int] = {}
    for node in whole.graph:
        for value in node.outputs:
            first = owners.get(value.name or "")
            elements = _elements(value)
            for use in value.uses():
                reader = use.node.outputs[0]
                second = owners.get(reader.name or "")
                if first is None or second is None or first == second:
                    continue
                edge = (first, second)
                found[edge] = max(found.get(edge, 0), elements)
    return found


def _elements(value: ir.Value) -> int:
    """Elements of a value; an axis of unknown length counts once."""
    if value.shape is None:
        return 0
    return prod(dim for dim in value.shape if isinstance(dim, int))


def _border_times(
    edges: Mapping[Edge, int],
    mixtures: Sequence[Collection[str]],
    beyond: Sequence[float],
) -> dict[Edge, float]:
    """Time of each edge as a border: so much for each, and so much for each element.

    `beyond`: time of each mixture in ms that its layers do not explain. Neither part is negative.
    """
    # here, not above: scipy takes half a second to load
    from scipy.optimize import nnls

    rows = []
    for mixture in mixtures:
        crossed = [edge for edge in edges if _is_border(edge, mixture)]
        elements = sum(edges[edge] for edge in crossed)
        rows.append([float(len(crossed)), float(elements)])
    parts, _ = nnls(np.array(rows), np.array(beyond))
    each, by_element = map(float, parts)
    return {edge: each + by_element * count for edge, count in edges.items()}


def _is_border(edge: Edge, floats: Collection[str]) -> bool:
    first, second = edge
    return (first in floats) != (second in floats)
