"""Cross-layer equalization: neighbouring layers share the range of each channel between them
evenly.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, Option, Pass, PassOutcome
from ._calibrated.layers import Linear, Rows, linear_layers
from ._calibrated.scaling import (
    input_blocks,
    input_channels,
    readers_of,
    scale_inputs,
    scale_outputs,
    source_of,
)
from ._core.edit import Edit

SETTLED = 1e-3
"""Largest |ln factor| that is left alone: the ranges of a pair count as equal."""


@dataclass(frozen=True)
class Equalize(Pass):
    """Scale channels between two layers until both have weights of the same range for each.

    Effect: exact. Touches Conv, Gemm and MatMul with constant float32 weights that follow each
    other directly or through Relu and pooling. Channel i is divided by s_i = sqrt(r1_i / r2_i)
    behind the first layer, r1 and r2 being max|w| of the channel in either; the sweep over all
    pairs is repeated until nothing changes. Needs no data.

    Shapes: weights and biases keep theirs; one factor for each channel between two layers.

    Stats: `pairs` (count of changed ones), `sweeps` (count).

    Source: Nagel et al., Data-Free Quantization Through Weight Equalization and Bias Correction,
    ICCV 2019, section 4.1 (arXiv:1906.04721).
    """

    name: ClassVar[str] = "equalize"
    effect: ClassVar[Effect] = "exact"

    sweeps: int = Option(
        100, "Times that every pair is looked at, at most.", low=1, high=10_000
    )

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        layers, declined = linear_layers(model)
        pairs = _pairs(layers, declined)
        ends = {
            id(layer): layer for pair in pairs for layer in (pair.first, pair.second)
        }
        blocks = {key: input_blocks(layer) for key, layer in ends.items()}
        count = 0
        while count < self.sweeps and sum(pair.settle(blocks) for pair in pairs):
            count += 1
        edit, changed = (
            Edit(model),
            [pair for pair in pairs if (pair.factors != 1).any()],
        )
        for pair in changed:
            scale_outputs(pair.first, 1 / pair.factors, edit)
            scale_inputs(pair.second, pair.factors)
        return PassOutcome(
            len(changed), {"pairs": len(changed), "sweeps": count}, declined
        )


@dataclass(eq=False)
class Pair:
    """Two layers, the second the only reader of the first; `factors`: what the channels between are
    divided by.
    """

    first: Linear
    second: Linear
    factors: Rows

    def settle(self, blocks: dict[int, Rows]) -> bool:
        """Make the ranges of both layers equal in `blocks` (max|w| of each pair of channels);
        whether they were not.
        """
        first, second = blocks[id(self.first)], blocks[id(self.second)]
        made, read = first.max(axis=2).reshape(-1), second.max(axis=1).reshape(-1)
        used = (made > 0) & (read > 0) & np.isfinite(made) & np.isfinite(read)
        logs = np.zeros(made.size)
        logs[used] = 0.5 * (np.log(made[used]) - np.log(read[used]))
        if np.abs(logs).max() < SETTLED:
            return False
        step = np.exp(np.clip(logs, -12, 12))
        first /= step.reshape(first.shape[0], -1, 1)
        second *= step.reshape(second.shape[0], 1, -1)
        self.factors = self.factors * step
        return True


def _pairs(layers: list[Linear], declined: list[Declined]) -> list[Pair]:
    """Layers that follow each other so that a factor can pass from one to the other."""
    makers, pairs = {layer.output: layer for layer in layers}, []
    for readers in readers_of(layers):
        source = source_of(readers, makers)
        if isinstance(source, Linear) and len(readers.layers) == 1:
            pairs.append(
                Pair(
                    source,
                    readers.layers[0],
                    np.ones(input_channels(readers.layers[0])),
                )
            )
        else:
            reason = (
                source
                if isinstance(source, str)
                else "no single layer makes and reads it"
            )
            declined.append(Declined(f"value {readers.value.name}", reason))
    return pairs
