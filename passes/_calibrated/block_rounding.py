"""Weights brought onto the grids of blocks that `quant(blocked)` stores, each layer's outputs kept.

Inputs are looked at in the float model: what earlier layers lose is not made up for.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.context import Context
from .._core.edit import Edit
from .._core.lazy import DerivedTensor, set_tensor
from .._core.linear import LinearLayer
from .._core.outcome import Chosen, PassOutcome
from .._quant.block_grids import BlockGrid, held_tops
from .block_compensation import (
    compensated_in_blocks,
    nearest_in_blocks,
    values_in_blocks,
)
from .layers import Grams, PerChannel, Rows
from .rounding import (
    FittedLayer,
    covariance,
    damped,
    decibels,
    decorrelated,
    fit_layers,
    output_error,
    output_shift,
)

DECORRELATION = 1.0
"""Share of each input's own power that is added to it: what inputs have in common then counts for a
half. Weights make up for each other by what inputs have in common on some text, and not all of that
holds on other text.

Divergence (KL, in nats) of SmolLM2's predictions at 4 bits from its own in float, all layers, by 16
windows of one text: on the same text and on another. A share of the mean power instead, 0.01: 0.099
and 0.187; each input's own, 0.3: 0.096 and 0.153; 1: 0.106 and 0.145; 3: 0.118 and 0.145. By text
that it wrote itself, mean of both: 0.193 with the mean power; each input's own, 0.5: 0.155; 2:
0.160. Standard errors 0.005 to 0.010.
"""

TOLD = 128
"""Channels of a layer from which its gain is told, at most."""


@dataclass(frozen=True)
class RoundedBlocks:
    """Outcome of rounding, and the layers that lose most, which stay as they were."""

    outcome: PassOutcome
    left: list[Chosen]


def round_in_blocks(
    model: ir.Model,
    context: Context,
    grid: BlockGrid,
    samples: int,
    damp: float,
    include: tuple[str, ...],
    exclude: tuple[str, ...] = (),
    sensitive: float = 0.0,
    fixed: Collection[str] = (),
) -> RoundedBlocks:
    """Store compensated codes for every layer but those that lose most.

    Stats: `layers`, `weights` and `gain_db` of those that are stored. `damp`: share of its mean
    diagonal added to the diagonal of an input's second moments. `sensitive`: share of all these
    weights that the layers left have at most. `fixed`: names of weights that are stored whatever
    they lose.
    """
    rounded: list[_Pending] = []

    def why_not(layer: LinearLayer) -> str | None:
        return _why_not(layer, grid)

    def fit(layer: LinearLayer, gram: Grams) -> FittedLayer:
        own = _pending(
            layer,
            gram,
            grid,
            damp,
        )

        def remember(_: Edit) -> None:
            # which layers change is known once all losses are
            rounded.append(own)

        return FittedLayer(layer, own.gain, remember)

    outcome = fit_layers(
        model,
        context,
        why_not,
        fit,
        samples,
        include,
        exclude,
    )
    free = [own for own in rounded if own.layer.weight.name not in fixed]
    room = sensitive * sum(own.size for own in rounded)
    left = _most_sensitive(free, room)
    spared = set(left)
    kept = [own for own in rounded if own not in spared]
    edit = Edit(model)
    for own in kept:
        own.store(edit)
    gains = [own.gain for own in kept]
    outcome.changed = len(kept)
    outcome.stats["layers"] = len(kept)
    outcome.stats["weights"] = sum(own.size for own in kept)
    outcome.stats["gain_db"] = round(float(np.mean(gains)), 2) if gains else 0.0
    return RoundedBlocks(outcome, [own.told(grid.bits) for own in left])


@dataclass(frozen=True, eq=False)
class _Pending:
    """A weight that a layer is to take, and a bias where it moves.

    `gain`: decibels over rounding to the nearest. `share`: of the power of its outputs that is lost
    all the same.
    """

    layer: LinearLayer
    weight: DerivedTensor
    bias: PerChannel | None
    gain: float
    share: float

    @property
    def size(self) -> int:
        """Count of its weights."""
        return self.layer.tensor.size

    def store(self, edit: Edit) -> None:
        """Change the layer."""
        if self.bias is not None:
            self.layer.set_bias(self.bias, edit)
        set_tensor(self.layer.weight, self.weight)

    def told(self, bits: int) -> Chosen:
        """The layer, by its weight, and why it stays as it was."""
        reason = f"{self.share:.2%} of what it gives would be noise at {bits} bits"
        return Chosen(self.layer.weight.name or "", "8 bits", reason)


def _pending(
    layer: LinearLayer,
    gram: Grams,
    grid: BlockGrid,
    damp: float,
) -> _Pending:
    """Codes of a layer whose errors make up for each other, and what is lost all the same."""
    rows = layer.rows()
    bias = layer.bias_row()
    hessian, mean = _moments_for(bias, gram)
    believed = decorrelated(hessian, DECORRELATION)
    invertible = damped(believed, damp)
    found = compensated_in_blocks(
        rows,
        invertible[0],
        grid,
    )
    difference = values_in_blocks(found, grid) - rows
    shift = -output_shift(difference, mean)
    gain = _gain_db(
        rows,
        difference,
        shift,
        gram,
        grid,
    )
    share = _share_lost(
        rows,
        difference,
        shift,
        gram,
    )
    return _Pending(
        layer,
        layer.block_codes(found.codes, found.scales, grid.block),
        bias + shift if shift.any() else None,
        gain,
        share,
    )


def _most_sensitive(rounded: list[_Pending], room: float) -> list[_Pending]:
    """Layers that lose most for the weights that they have, `room` weights at most."""
    by_loss = sorted(rounded, key=lambda own: own.share / own.size, reverse=True)
    found = []
    for own in by_loss:
        # only a row of the worst: one that does not fit ends it
        if own.size > room:
            break
        room -= own.size
        found.append(own)
    return found


def _share_lost(rows: Rows, difference: Rows, shift: PerChannel, gram: Grams) -> float:
    """Share of the power of a layer's outputs, bias left out, that rounding takes."""
    some = slice(None, None, -(-len(rows) // TOLD))
    moments = gram.astype(np.float32)
    lost = output_error(
        difference[some].astype(np.float32),
        shift[some],
        moments,
    )
    whole = output_error(
        rows[some].astype(np.float32),
        np.zeros_like(shift[some]),
        moments,
    )
    return lost / whole if whole > 0 else 0.0


def _why_not(layer: LinearLayer, grid: BlockGrid) -> str | None:
    """Reason why a weight is not to be rounded in blocks; None if it is."""
    if layer.node.op_type == "Conv":
        return "a Conv has no weights in blocks"
    rows = layer.rows()
    if not np.isfinite(rows).all():
        return "its weight holds NaN or infinity"
    if _is_held(rows, grid):
        return f"its weights are rounded to {grid.bits} bits already"
    return None


def _is_held(rows: Rows, grid: BlockGrid) -> bool:
    """Return whether every block lies on a grid already."""
    inputs = np.ascontiguousarray(rows.T, np.float32)
    for start in range(0, len(inputs), grid.block):
        block = inputs[start : start + grid.block]
        magnitudes = np.abs(block)
        largest_at = magnitudes.argmax(0)
        extreme = np.take_along_axis(
            block,
            largest_at[None],
            axis=0,
        )
        tops = held_tops(
            block,
            extreme[0],
            grid.bits,
        )
        # zeros lie on every grid
        is_free = (tops == 0) & (extreme[0] != 0)
        if is_free.any():
            return False
    return True


def _moments_for(
    bias: PerChannel, gram: Grams
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Second moments (1, K, K) to compensate by, and the mean (1, K) that a bias takes.

    A layer without a bias is not given one, which would take time: its mean counts as 0.
    """
    if bias.any():
        return covariance(gram)
    hessian = gram[:, :-1, :-1]
    return hessian, np.zeros(hessian.shape[:2])


def _gain_db(
    rows: Rows,
    difference: Rows,
    shift: PerChannel,
    gram: Grams,
    grid: BlockGrid,
) -> float:
    """Decibels by which the output error lies below that of rounding to the nearest."""
    # to be told, not to be used: some channels and half the digits do
    some = slice(None, None, -(-len(rows) // TOLD))
    rows = rows[some]
    difference = difference[some]
    shift = shift[some]
    moments = gram.astype(np.float32)
    nearest = nearest_in_blocks(rows, grid)
    lost = values_in_blocks(nearest, grid) - rows
    unmoved = np.zeros_like(shift)
    before = output_error(
        lost.astype(np.float32),
        unmoved,
        moments,
    )
    after = output_error(
        difference.astype(np.float32),
        shift,
        moments,
    )
    return decibels(before, after)
