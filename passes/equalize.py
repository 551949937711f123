"""Cross-layer equalization: adjacent layers share the range of each channel evenly."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._calibrated.layers import PerChannel, Rows, fittable_layers
from ._calibrated.scaling import (
    input_blocks,
    input_channels,
    readers_of,
    scale_inputs,
    scale_outputs,
    source_of,
)
from ._core.edit import Edit
from ._core.linear import LinearLayer
from ._core.rewrites import permit

SETTLED = 1e-3
"""Largest |ln factor| that is left alone: the ranges of a pair count as equal. Chosen by hand; not
measured.
"""

LARGEST_LOG = 12
"""Largest |ln factor| of one step, a factor of about 160,000: ranges that lie farther apart take
several sweeps. Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale the channels between two layers until both have the same weight range for each.

    Effect: exact. Touches Conv, Gemm and MatMul with constant float32 weights that follow each
    other directly or through Relu and pooling; MatMul and Gemm also through a product with another
    value. Channel i of the first layer's output is divided by s_i = sqrt(r1_i / r2_i), where r1 and
    r2 are the channel's max|w| in the first and in the second layer. The sweep over all pairs is
    repeated until nothing changes. Needs no data.

    Shapes: weights and biases keep theirs; one factor per channel between two layers.

    Stats: `pairs` (count of changed pairs), `sweeps` (count).

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019, section 4.1 (arXiv:1906.04721).
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "pairs of layers"

    sweeps: int = Option(
        100, "Maximum number of sweeps over all pairs.", low=1, high=10_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        layers, declined = fittable_layers(model)
        pairs = _pairs(layers, declined)
        # sweeps work on maxima in memory; weights are re-described once, at the end
        blocks: dict[LinearLayer, Rows] = {}
        for pair in pairs:
            for layer in (pair.first, pair.second):
                blocks[layer] = input_blocks(layer)
        count = 0
        while count < self.sweeps and _sweep(pairs, blocks):
            count += 1
        edit = Edit(model)
        # products of steps may come back to 1: such a pair is as it was
        changed = [pair for pair in pairs if pair.is_changed and _may_change(pair)]
        for pair in changed:
            scale_outputs(
                pair.first,
                1 / pair.factors,
                edit,
            )
            scale_inputs(pair.second, pair.factors)
        stats = {"pairs": len(changed), "sweeps": count}
        return PassOutcome(
            len(changed),
            dict(stats),
            declined,
        )


def _may_change(pair: LayerPair) -> bool:
    leave = permit(Equalize.name, "scale", pair.first.node)
    if leave is None:
        return False
    leave.used()
    return True


@dataclass(eq=False)
class LayerPair:
    """Two layers, of which the second is the only reader of the first.

    `factors`: divisors of the channels between them.
    """

    first: LinearLayer
    second: LinearLayer
    factors: PerChannel

    @property
    def is_changed(self) -> bool:
        """True if some factor is not 1."""
        return bool((self.factors != 1).any())

    def equalize(self, blocks: dict[LinearLayer, Rows]) -> bool:
        """Make the ranges of both layers equal in `blocks`, and return whether they were not.

        `blocks`: max|w| of each pair of channels, (groups, M / groups, C / groups), changed in
        place.
        """
        first = blocks[self.first]
        second = blocks[self.second]
        made = first.max(axis=2)
        made = made.reshape(-1)
        read = second.max(axis=1)
        read = read.reshape(-1)
        positive = (made > 0) & (read > 0)
        finite = np.isfinite(made) & np.isfinite(read)
        used = positive & finite
        logs = np.zeros(made.size)
        difference = np.log(made[used]) - np.log(read[used])
        logs[used] = 0.5 * difference
        if np.abs(logs).max() < SETTLED:
            return False
        limited = np.clip(logs, -LARGEST_LOG, LARGEST_LOG)
        step = np.exp(limited)
        # what one layer gives up the other takes: the product of both stays
        groups_of_first = len(first)
        groups_of_second = len(second)
        first /= step.reshape(groups_of_first, -1, 1)
        second *= step.reshape(groups_of_second, 1, -1)
        self.factors = self.factors * step
        return True


def _sweep(pairs: list[LayerPair], blocks: dict[LinearLayer, Rows]) -> int:
    """Equalize every pair once, in order; return how many changed."""
    changed = 0
    for pair in pairs:
        changed += pair.equalize(blocks)
    return changed


def _pairs(layers: list[LinearLayer], declined: list[Declined]) -> list[LayerPair]:
    """Layers that follow each other so that a factor can pass from one to the other."""
    makers = {layer.output: layer for layer in layers}
    pairs = []
    for readers in readers_of(layers):
        source = source_of(readers, makers)
        reader = readers.layers[0]
        if isinstance(source, LinearLayer) and len(readers.layers) == 1:
            factors = np.ones(input_channels(reader))
            pairs.append(LayerPair(source, reader, factors))
            continue
        reason = "it does not lie between exactly two layers"
        if isinstance(source, str):
            reason = source
        declined.append(Declined(f"value {readers.value.name}", reason))
    return pairs
