"""Layers of which one grid for all samples leaves the quiet ones too little.

Calibrated grids reach as far as the loudest sample does. Where some samples are hundreds of times
as loud as others, as recordings are and their spectra, what the quiet ones hold rounds to a few
steps. Such a layer reads floats, and its weights alone are integers.

    noise of a grid      step^2 / 12 for each value
    share of a sample    that, by the sample's mean square; at most all of it
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.bodies import RunNames, repeated_bodies
from .._core.context import Context, MomentRequest
from .._core.drift_budget import sqnr_of
from .._core.targets import QuantRules
from .calibrate import LEVELS_OF_8_BITS
from .layers import QuantLayer
from .outliers import RowNoise, Sparing
from .plan import GraphPlan, PlanRequest, QuantPlan
from .schemes import STATIC

QUIETEST = 0.1
"""Share of the samples that may be quieter: pauses, say, of which nobody asks anything. Chosen by
hand.
"""

LEAST = 16.0
"""SQNR in dB that all other samples keep where the layers that read them stay integers.

Of silero VAD, on speech in noise of several strengths, the spectrum keeps 10 dB in the mean, all
else 27 and more. Layers of the other models of the README keep at least 20.
"""

SAMPLES = 32
"""Samples that are looked at, each for itself; chosen by hand."""

CHANNEL_AXIS = 1
"""Axis of the channels of a Conv's input; of other layers it is the last."""

NOISE_OF_A_STEP = 1 / 12
"""Mean square of a rounding error, in squares of a step: errors within a step are as likely."""


@dataclass
class SampleNoise:
    """Shares that grids of 8 bits take from what layers read, each found once.

    A trial of the same model with other layers asks again: a name stands for the same value.
    """

    context: Context
    _found: dict[str, float] = field(default_factory=dict)

    def quiet_layers(
        self, model: ir.Model, planned: QuantPlan, rules: QuantRules
    ) -> list[QuantLayer]:
        """Find the planned layers of whose input some samples are too quiet for 8 bits.

        Where an integer kernel makes what a layer reads, it is on a grid in any case. Layers that
        the user named stay what he chose.
        """
        readers: dict[str, list[QuantLayer]] = {}
        names = RunNames.of(model)
        repeated = repeated_bodies(model)
        for graph_plan in planned.graphs:
            # what is brought out of a Loop has another axis for its rounds
            if graph_plan.graph in repeated:
                continue
            for layer in _readers_of_floats(graph_plan, rules):
                name = names.name(layer.input, graph_plan.graph)
                readers.setdefault(name, []).append(layer)
        self._look(model, readers)
        found = []
        for name, layers in readers.items():
            # a branch that no sample enters is not known
            share = self._found.get(name, 0.0)
            if sqnr_of(share) < LEAST:
                found += layers
        return found

    def _look(self, model: ir.Model, readers: Mapping[str, list[QuantLayer]]) -> None:
        names = [name for name in readers if name not in self._found]
        if not names:
            return
        requests = {}
        for name in names:
            axis = CHANNEL_AXIS if readers[name][0].node.op_type == "Conv" else -1
            requests[f"power {name}"] = MomentRequest(name, "profile", axis)
            requests[f"range {name}"] = MomentRequest(name, "extremes", axis)
        moments = self.context.collect(model, requests, SAMPLES)
        for name in names:
            power = moments.get(f"power {name}")
            extremes = moments.get(f"range {name}")
            if power is not None and extremes is not None:
                self._found[name] = _share(power, extremes)


def with_quiet_samples(
    model: ir.Model, planned: QuantPlan, request: PlanRequest, noise: SampleNoise
) -> Sparing:
    """Find the planned layers that go on reading floats, their weights alone being integers.

    None where weights in codes cannot be read by float kernels.
    """
    if not request.stores_floats:
        return Sparing()
    layers = noise.quiet_layers(model, planned, request.rules)
    return Sparing(tuple(layers), lambda choice: replace(choice, reads_floats=True))


@dataclass(frozen=True)
class InputNoise:
    """Losses of layers' inputs in 8 bits: of rows of channels, and of whole samples."""

    of_rows: RowNoise
    of_samples: SampleNoise


def _readers_of_floats(graph_plan: GraphPlan, rules: QuantRules) -> list[QuantLayer]:
    """Calibrated layers whose input is put on a grid for integer kernels alone."""
    layers = graph_plan.engines.get(STATIC, [])
    if not layers:
        return []
    placement = graph_plan.placement(rules)
    on_grids = placement.int8_made | placement.two_term
    return [
        layer
        for layer in layers
        if layer.input not in on_grids and not graph_plan.choices[layer].named
    ]


def _share(profile: NDArray[np.float64], extremes: NDArray[np.float64]) -> float:
    """The noise of a grid, as a share of a sample; that of the quietest samples but for a few.

    Shapes: moments (folds, 3, C) both, as `MomentRequest` has them.
    """
    lowest = min(float(extremes[:, 1].min()), 0.0)
    highest = max(float(extremes[:, 2].max()), 0.0)
    step = (highest - lowest) / LEVELS_OF_8_BITS
    noise = NOISE_OF_A_STEP * step**2
    power = profile[:, 2].mean(axis=1)
    # a silent sample loses nothing
    is_silent = power == 0
    divisors = np.where(is_silent, 1.0, power)
    shares = np.minimum(noise / divisors, 1.0)
    by_sample = np.where(is_silent, 0.0, shares)
    return float(np.quantile(by_sample, 1 - QUIETEST, method="lower"))
