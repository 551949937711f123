"""Activation outliers moved into weights: layers read even channels, weights take the factors."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, MomentRequest, Option, Pass, PassOutcome
from ._calibrated.block_factors import factors_for_blocks
from ._calibrated.layers import PerChannel, Rows, fittable_layers
from ._calibrated.levels import FEWEST_FOLDS, expected_levels, largest, left_out, noise
from ._calibrated.scaling import (
    Readers,
    Smoothing,
    input_energies,
    input_maxima,
    insert_mul,
    readers_of,
    scale_inputs,
    scale_outputs,
    scale_parameters,
    source_of,
)
from ._core.context import MomentKind
from ._core.edit import Edit
from ._core.linear import LinearLayer
from ._core.options import AUTO, Auto
from ._core.rewrites import permit
from ._quant.block_grids import BLOCK_BITS, BlockGrid

NOISE = 0.01
"""Gain in dB below which there is nothing left to smooth: it is rounding of the factors
themselves.
"""

LEAST_GAIN = 1.0
"""Gain in dB of 8-bit activations from which factors are worth a change of the model; chosen by
hand.
"""

AIMS: dict[str, MomentKind] = {"activations": "extremes", "weights": "profile"}
"""Moments that tell how to round, by the aim."""

LEAST_FACTOR = 2.0**-16
"""Least factor of a channel, in units of the loudest one's: what is quieter by more is float
noise.
"""


@dataclass(frozen=True)
class Smooth(Pass):
    """Divide what layers read by a factor per channel, and multiply their weights by it.

    Quiet channels become louder, so that the 8 bits of one range can represent all of them. With
    `aim=weights`, the weights that multiply loud channels become larger instead, so that blocks of
    few bits round them better; put it before quant(blocked).

    Effect: exact. Touches MatMul and Gemm with constant float32 weights. The factor is max|x|^alpha
    / max|w|^(1 - alpha). If nothing else reads the value, the node that makes it takes the factor:
    a LayerNormalization or RMSNormalization, a Mul by constants, or a layer (also through Relu, or
    a Mul by another value). If no node can take it, a Mul is inserted in front of the layers. The
    gain is judged on samples that the factors were not computed from.

    With `aim=activations`, the range of the value stays: no channel becomes so loud that it could
    leave the range on other samples, as far as the tails of its values tell. With `aim=weights`,
    the factor is a power of mean |x| instead: the one with the least error at the layers' outputs
    when weights are rounded to 4 bits in blocks of `block` inputs.

    Shapes: activations (..., C) and weights (C, M) keep theirs; one factor for each of the C
    channels.

    Errors: UsageError without calibration data; RefusedError if calibration meets NaN or infinity.

    Stats: `smoothed`, `inserted` (counts of values), `gain_db` (dB by which the noise of 8-bit
    activations, or of weights, falls, mean over the values).

    Source: Xiao et al., SmoothQuant: Accurate and Efficient Post-Training Quantization for Large
    Language Models, ICML 2023 (arXiv:2211.10438), equation 4; weights: Lin et al., AWQ:
    Activation-aware Weight Quantization for LLM Compression and Acceleration, MLSys 2024
    (arXiv:2306.00978).
    """

    name: ClassVar[str] = "smooth"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "values"

    aim: Literal["activations", "weights"] = Option(
        "activations",
        "What will be rounded: activations to 8 bits, or weights in blocks.",
    )
    alpha: float = Option(
        0.7,
        "Share of the activations' spread that moves into the weights: 0 none, 1 all; for "
        "aim=activations.",
        low=0.0,
        high=1.0,
    )
    min_gain: float | Auto = Option(
        AUTO,
        "Minimum reduction of a value's rounding noise for a factor that costs no time. auto: 1; "
        "with aim=weights, any.",
        low=0.0,
        high=300.0,
        unit="dB",
    )
    insert_gain: float = Option(
        1.5,
        "Minimum reduction of a value's rounding noise for which a Mul is inserted.",
        low=0.0,
        high=300.0,
        unit="dB",
    )
    block: int = Option(
        32, "Weights that share a scale, for aim=weights.", low=16, high=65536
    )
    samples: int = Option(
        512, "Maximum number of calibration samples to use.", low=1, high=10_000_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        return self.run_on(model, context)

    def run_on(
        self, model: ir.Model, context: Context, only: Collection[str] | None = None
    ) -> PassOutcome:
        """Run on values that none but layers of these weights multiply; by default on all."""
        layers, declined = fittable_layers(model)
        products = [layer for layer in layers if layer.node.op_type != "Conv"]
        all_readers = list(readers_of(products))
        if only is not None:
            declined = []
            all_readers = [each for each in all_readers if _is_of(each, only)]
        seen: Mapping[str, Rows] = {}
        if all_readers:
            seen = context.collect(
                model,
                _requests(all_readers, AIMS[self.aim]),
                self.samples,
            )
        makers = {layer.output: layer for layer in layers}
        edit = Edit(model)
        gains: list[float] = []
        inserted = 0
        for index, readers in enumerate(all_readers):
            source = source_of(readers, makers)
            moments = seen.get(str(index))
            smoothing = self._smoothing(readers, source, moments)
            if isinstance(smoothing, str):
                where = f"value {readers.value.name}"
                declined.append(Declined(where, smoothing))
                continue
            leave = permit(self.name, "scale", readers.value)
            if leave is None:
                continue
            leave.used()
            inserted += isinstance(source, str)
            gains.append(smoothing.gain)
            _move(
                readers,
                source,
                smoothing.factors,
                edit,
            )
        mean_gain = float(np.mean(gains or [0]))
        stats = {
            "smoothed": len(gains),
            "inserted": inserted,
            "gain_db": round(mean_gain, 2),
        }
        return PassOutcome(
            len(gains),
            dict(stats),
            declined,
        )

    def _smoothing(
        self,
        readers: Readers,
        source: LinearLayer | ir.Node | str,
        seen: Rows | None,
    ) -> Smoothing | str:
        """Factors for a value, or the reason why it is left as it is.

        `source`: what can take the factors, or why nothing can. `seen`: moments of the value,
        (folds, 3, C).
        """
        inserts = isinstance(source, str)
        if isinstance(source, str) and readers.value.producer() is None:
            return source
        found = self._judged(readers, seen)
        if found is None and seen is not None and 0 < len(seen) < FEWEST_FOLDS:
            return f"its channels need {FEWEST_FOLDS} samples or more: give more data"
        # a Mul costs time in every run, a factor in a parameter nothing
        least = self.insert_gain if inserts else self._least_gain
        if found is not None and found.gain >= max(least, NOISE):
            return found
        gain = 0.0 if found is None else found.gain
        why = f"; {source}, and an added Mul takes time" if inserts else ""
        return (
            f"scaling would lower its rounding noise by only {max(gain, 0):.1f} dB{why}"
        )

    @property
    def _least_gain(self) -> float:
        if isinstance(self.min_gain, str):
            return 0.0 if self.aim == "weights" else LEAST_GAIN
        return self.min_gain

    def _judged(self, readers: Readers, seen: Rows | None) -> Smoothing | None:
        """Factors for a value and their gain; None where there are none."""
        if self.aim == "activations":
            return _for_activations(readers, seen, self.alpha)
        grid = BlockGrid(BLOCK_BITS, self.block)
        return factors_for_blocks(readers, seen, grid)


def _is_of(readers: Readers, names: Collection[str]) -> bool:
    """True if all layers that read a value have weights of these names."""
    return all(layer.weight.name in names for layer in readers.layers)


def _requests(all_readers: list[Readers], kind: MomentKind) -> dict[str, MomentRequest]:
    requests = {}
    for index, readers in enumerate(all_readers):
        name = readers.value.name or ""
        requests[str(index)] = MomentRequest(
            name,
            kind,
            axis=readers.axis,
        )
    return requests


def _for_activations(
    readers: Readers, seen: Rows | None, alpha: float
) -> Smoothing | None:
    """Factors and their gain; None where too little was seen, or weights are not finite.

    The gain is that on samples which had no part in the factors: parts of those that were seen are
    left out in turn, and the least of their gains counts.
    """
    maxima = [input_maxima(layer) for layer in readers.layers]
    weights = np.max(maxima, axis=0)
    if seen is None or len(seen) < FEWEST_FOLDS:
        return None
    if seen.shape[2] != weights.size or not np.isfinite(weights).all():
        return None
    energies = [input_energies(layer) for layer in readers.layers]
    energy = np.sum(energies, axis=0)
    unscaled = np.ones(weights.size)
    gains = []
    for others, held in left_out(seen):
        # factors made without the folds that judge them
        factors = _factors(others, weights, alpha)
        before = noise(others, held, unscaled, energy)
        after = noise(others, held, factors, energy)
        gain = 0.0
        if before > 0 and after > 0:
            bels = np.log10(before / after)
            gain = 10 * float(bels)
        gains.append(gain)
    factors = _factors(seen, weights, alpha)
    return Smoothing(factors, min(gains))


def _factors(seen: Rows, weights: PerChannel, alpha: float) -> PerChannel:
    """Divisors of the channels that keep the largest |x| of all: 1 for the loudest, others less.

    No channel is made so loud that what it may yet reach (`expected_levels`) would go beyond it.
    """
    highest = largest(seen)
    is_seen = highest > 0
    is_read = weights > 0
    used = is_seen & is_read
    if not used.any():
        return np.ones(weights.size)
    loudest = highest.max()
    wanted = np.ones(weights.size)
    # equation 4 of SmoothQuant, then all factors times one number that keeps the range
    activations = highest[used] ** alpha
    by_weights = weights[used] ** (1 - alpha)
    raw = activations / by_weights
    scaled = highest[used] / raw
    keeps_range = scaled.max() / loudest
    wanted[used] = raw * keeps_range
    levels = expected_levels(seen) / loudest
    least = np.clip(levels, LEAST_FACTOR, 1.0)
    factors: PerChannel = np.clip(wanted, least, 1.0)
    return factors


def _move(
    readers: Readers,
    source: LinearLayer | ir.Node | str,
    factors: PerChannel,
    edit: Edit,
) -> None:
    """Divide where the value is made, multiply where it is read."""
    if isinstance(source, LinearLayer):
        scale_outputs(source, 1 / factors, edit)
    elif isinstance(source, ir.Node):
        scale_parameters(source, 1 / factors, edit)
    else:
        insert_mul(readers, 1 / factors, edit)
    for layer in readers.layers:
        scale_inputs(layer, factors)
