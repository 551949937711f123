"""Time of each layer as float and as integers on this CPU, and of the borders between the two.

Times of layers come from ONNX Runtime's profile of the model in either form. Where a float layer
and one of integers meet, the values between them are converted and laid out anew: what that takes
is found on models in which some layers stay float, every other one, or some of them by lot.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import NamedTuple

import numpy as np
import onnx_ir as ir

from ...passes._core.weights import weights_of
from ...runtime.kernel_times import Profile
from .choices import FLOAT, Border, Borders
from .kernel_owners import Owners, kernel_owners, owners_of, with_names
from .lab import Lab, Made
from .recipe import DEFAULT_FORM, quant_text
from .swaps import comparable

SEED = 1
"""Seed of the layers drawn by lot, the same for every search."""

Times = Mapping[str, float]
"""Time of a layer in ms, by the name of its weight."""


class InCommon(NamedTuple):
    """Elements that layers have in common.

    `passed`: of values that one of them makes and others read, which are converted once for all
    readers of the other form. `joined`: of what nodes make of values of several of them, as sums
    do: such a node runs on integers only where all of these are.
    """

    passed: int
    joined: int


@dataclass(frozen=True)
class LayerTimes:
    """Times by which that of a mixture of forms is told.

    `forms`: times of layers by form. `rest_ms`: of all that belongs to no layer. `borders`: time in
    ms that layers take more where some are float and others are not.
    """

    forms: Mapping[str, Times]
    rest_ms: float
    borders: Borders

    def of(self, picked: Mapping[str, str]) -> float:
        """Time in ms of the model whose weights have these forms; the others have 8 bits."""
        total = self.rest_ms
        for weight, time in self.forms[DEFAULT_FORM].items():
            form = picked.get(weight, DEFAULT_FORM)
            total += self.forms[form].get(weight, time)
        for border, time in self.borders.items():
            forms = {picked.get(weight, DEFAULT_FORM) for weight in border}
            if len(forms) > 1:
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
        _borders(whole),
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
    residual network then join layers of one form: halves and thirds drawn by lot have borders
    there, too.
    """
    draw = random.Random(SEED)
    count = len(weights)
    drawn = [
        draw.sample(weights, size)
        for size in (count // 2, count // 2, count // 3, count // 3)
    ]
    return [list(weights[::2]), *drawn]


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


def _borders(whole: ir.Model) -> dict[Border, InCommon]:
    """Layers that have values or nodes in common, by their weights."""
    owners = owners_of(whole, whole)
    passed = Counter[Border]()
    joined = Counter[Border]()
    for node in whole.graph:
        makers = [value for value in node.inputs if value is not None]
        together = _border(makers, owners)
        joined[together] += _elements(node.outputs[0])
        for value in node.outputs:
            readers = [use.node.outputs[0] for use in value.uses()]
            apart = _border([value, *readers], owners)
            passed[apart] += _elements(value)
    every = dict.fromkeys([*passed, *joined])
    return {
        border: InCommon(passed[border], joined[border])
        for border in every
        if len(border) > 1
    }


def _border(values: Iterable[ir.Value], owners: Owners) -> Border:
    """The different owners of values, sorted; those that none owns are left out."""
    found = {owners.get(value.name or "") for value in values}
    return tuple(sorted(owner for owner in found if owner is not None))


def _elements(value: ir.Value) -> int:
    """Elements of a value; an axis of unknown length counts once."""
    if value.shape is None:
        return 0
    return prod(dim for dim in value.shape if isinstance(dim, int))


def _border_times(
    borders: Mapping[Border, InCommon],
    mixtures: Sequence[Collection[str]],
    beyond: Sequence[float],
) -> dict[Border, float]:
    """Time of each border: so much for an element that is passed, and for one that is joined.

    `beyond`: time of each mixture in ms that its layers do not explain. Neither part is negative.
    """
    # here, not above: scipy takes half a second to load
    from scipy.optimize import nnls

    rows = []
    for mixture in mixtures:
        crossed = [borders[each] for each in borders if _is_mixed(each, mixture)]
        passed = sum(shared.passed for shared in crossed)
        joined = sum(shared.joined for shared in crossed)
        rows.append([float(passed), float(joined)])
    parts, _ = nnls(np.array(rows), np.array(beyond))
    by_passed, by_joined = map(float, parts)
    return {
        border: by_passed * shared.passed + by_joined * shared.joined
        for border, shared in borders.items()
    }


def _is_mixed(border: Border, floats: Collection[str]) -> bool:
    count = sum(weight in floats for weight in border)
    return 0 < count < len(border)
