"""Activation outliers into weights: what a layer reads becomes even over channels, its weights take
the factors.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, MomentRequest, Option, Pass, PassOutcome
from ._calibrated.layers import Linear, Rows, linear_layers
from ._calibrated.levels import FEWEST_FOLDS, expected_levels, largest, left_out, noise
from ._calibrated.scaling import (
    Readers,
    input_energies,
    input_maxima,
    insert_mul,
    readers_of,
    scale_inputs,
    scale_outputs,
    scale_parameters,
    source_of,
)
from ._core.edit import Edit

NOISE = 0.01
"""Gains (dB) below this are rounding of the factors themselves: there is nothing left to smooth."""

LEAST_FACTOR = 2.0**-16
"""Of a channel: what is quieter by more is float noise."""


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide what layers read by one factor a channel and multiply their weights by it, so that 8
    bits hold both.

    Effect: exact. Touches MatMul and Gemm with constant float32 weights. The factor max|x|^alpha /
    max|w|^(1 - alpha) goes into what makes the value, where nothing else reads it: a
    LayerNormalization, a Mul by constants, or a layer (through Relu). Where nothing can take it, a
    Mul is inserted in front of the layers. The range of the value stays: no channel is made so loud
    that it could leave it on other samples, as far as the tails of its values tell. The gain is
    judged on samples that had no part in the factors.

    Shapes: activations (..., C) and weights (C, M) keep theirs; one factor for each of the C
    channels.

    Errors: UsageError without calibration data; RefusedError if it meets NaN or infinity.

    Stats: `smoothed`, `inserted` (counts of values), `gain_db` (dB that the noise of 8-bit
    activations falls by, mean over the values).

    Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    Language Models, ICML 2023 (arXiv:2211.10438), equation 4.
    """

    name: ClassVar[str] = "smooth"
    effect: ClassVar[Effect] = "exact"

    alpha: float = Option(
        0.7,
        "How much of the spread of activations goes into weights: 0 none, 1 all.",
        low=0.0,
        high=1.0,
    )
    min_gain: float = Option(
        1.0,
        "Least fall of a value's rounding noise, where the factor costs nothing.",
        low=0.0,
        high=300.0,
        unit="dB",
    )
    insert_gain: float = Option(
        1.5,
        "Least fall of a value's rounding noise for which a Mul is inserted.",
        low=0.0,
        high=300.0,
        unit="dB",
    )
    samples: int = Option(
        512, "Calibration samples to use at most.", low=1, high=10_000_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        layers, declined = linear_layers(model)
        all_readers = list(readers_of([v for v in layers if v.node.op_type != "Conv"]))
        seen = (
            context.collect(model, _requests(all_readers), self.samples)
            if all_readers
            else {}
        )
        makers = {layer.output: layer for layer in layers}
        edit, gains, inserted = Edit(model), list[float](), 0
        for index, readers in enumerate(all_readers):
            where = f"value {readers.value.name}"
            source = source_of(readers, makers)
            if isinstance(source, str) and readers.value.producer() is None:
                declined.append(Declined(where, source))
                continue
            factors, gain = _judged(readers, seen.get(str(index)), self.alpha)
            least = self.insert_gain if isinstance(source, str) else self.min_gain
            if factors is None and len(seen.get(str(index), ())) in range(
                1, FEWEST_FOLDS
            ):
                why = f"fewer than {FEWEST_FOLDS} samples do not tell how far its channels reach"
                declined.append(Declined(where, why))
                continue
            if factors is None or gain < max(least, NOISE):
                why = (
                    f"; {source}, and a Mul costs time"
                    if isinstance(source, str)
                    else ""
                )
                declined.append(
                    Declined(
                        where,
                        f"its rounding noise would fall by {gain:.1f} dB only{why}",
                    )
                )
                continue
            inserted += isinstance(source, str)
            gains.append(gain)
            _move(readers, source, factors, edit)
        stats = {
            "smoothed": len(gains),
            "inserted": inserted,
            "gain_db": round(float(np.mean(gains or [0])), 2),
        }
        return PassOutcome(len(gains), dict(stats), declined)


def _requests(all_readers: list[Readers]) -> dict[str, MomentRequest]:
    return {
        str(i): MomentRequest(r.value.name or "", "extremes", axis=r.axis)
        for i, r in enumerate(all_readers)
    }


def _judged(
    readers: Readers, seen: Rows | None, alpha: float
) -> tuple[Rows | None, float]:
    """The divisor of each channel, and the dB that the noise of 8-bit activations falls by.

    The gain is that on samples which had no part in the factors: parts of those that were seen are
    left out in turn, and the least of their gains counts.
    """
    weights = np.max([input_maxima(layer) for layer in readers.layers], axis=0)
    if (
        seen is None
        or len(seen) < FEWEST_FOLDS
        or seen.shape[2] != weights.size
        or not np.isfinite(weights).all()
    ):
        return None, 0.0
    energy = np.sum([input_energies(layer) for layer in readers.layers], axis=0)
    gains = []
    for others, held in left_out(seen):
        before = noise(others, held, np.ones(weights.size), energy)
        after = noise(others, held, _factors(others, weights, alpha), energy)
        gains.append(
            10 * float(np.log10(before / after)) if before > 0 and after > 0 else 0.0
        )
    return _factors(seen, weights, alpha), min(gains)


def _factors(seen: Rows, weights: Rows, alpha: float) -> Rows:
    """What to divide channels by so that the largest |x| of all stays: 1 for the loudest, less to
    make others louder.

    No channel is made so loud that what it may yet reach (`expected_levels`) would go beyond it.
    """
    highest = largest(seen)
    used = (highest > 0) & (weights > 0)
    if not used.any():
        return np.ones(weights.size)
    wanted = np.ones(weights.size)
    wanted[used] = highest[used] ** alpha / weights[used] ** (1 - alpha)
    wanted[used] *= (highest[used] / wanted[used]).max() / highest.max()
    least = np.clip(expected_levels(seen) / highest.max(), LEAST_FACTOR, 1.0)
    factors: Rows = np.clip(wanted, least, 1.0)
    return factors


def _move(
    readers: Readers, source: Linear | ir.Node | str, factors: Rows, edit: Edit
) -> None:
    """Divide where the value is made, multiply where it is read."""
    if isinstance(source, Linear):
        scale_outputs(source, 1 / factors, edit)
    elif isinstance(source, ir.Node):
        scale_parameters(source, 1 / factors, edit)
    else:
        insert_mul(readers, 1 / factors, edit)
    for layer in readers.layers:
        scale_inputs(layer, factors)
