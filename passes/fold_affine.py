"""Folding of multiplications and additions by constants into the weights before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import Edit, array_of, rank_of
from ._simplify.affine import Affine, Channels, FoldTarget, fold, target_of
from ._simplify.folding import fold_nodes


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold Mul, Div, Add and Sub by one constant per channel into the layer before them.

    The layer is a Conv, a ConvTranspose or a Gemm.

    Effect: exact. Weights are recomputed in float64 and rounded once. Declines constants that vary
    along other axes or widen the tensor; weights that are shared, overridable or 16-bit; outputs
    that have other readers; and factors of zero or beyond 2^±24, for which rounding would exceed
    float noise.

    Shapes: weight (M, C, *K) * scale (M,), bias (M,) * scale + shift.

    Stats: `folded` (count).

    Source: follows from linearity.
    """

    name: ClassVar[str] = "fold-affine"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = fold_nodes(model, self.name, ("Mul", "Div", "Add", "Sub"), _fold)
        outcome.stats["folded"] = outcome.changed
        return outcome


def _fold(node: ir.Node, edit: Edit) -> str | None:
    """Fold one node; otherwise the reason why it stays, "" where nothing is there to fold into."""
    if len(node.inputs) != 2:
        return ""
    # either side of Add and Mul may be constant
    side = 1 if array_of(node.inputs[1]) is not None else 0
    constant = array_of(node.inputs[side])
    source = node.inputs[1 - side]
    target = target_of(source)
    if constant is None or target is None:
        return ""
    if isinstance(target, str):
        return target
    channels = _per_channel(
        constant.astype(np.float64),
        target,
        source,
    )
    if channels is None:
        return "its constant is not one number for each channel"
    affine = _affine(node.op_type, channels, side)
    if affine is None:
        return (
            "its factors are zero, infinite, or so far from 1 that digits would be lost"
        )
    if not edit.bypass(node, target.node.outputs[0]):
        return "it gives an output of the model, whose name stays"
    fold(target, affine, edit)
    return None


def _per_channel(
    constant: Channels, target: FoldTarget, source: ir.Value | None
) -> Channels | None:
    """The constant as (M,); None if it varies along other axes or widens the output.

    `source`: the target's output.
    """
    assert target.weight.const_value is not None
    rank = 2 if target.node.op_type == "Gemm" else len(target.weight.const_value.shape)
    if constant.ndim > rank:
        return None
    if rank_of(source) not in (None, rank):
        return None
    # broadcasting aligns shapes at their ends; channels are axis 1
    aligned = (1,) * (rank - constant.ndim) + constant.shape
    batch, channels, *spatial = aligned
    if batch != 1:
        return None
    if any(size != 1 for size in spatial):
        return None
    if channels not in (1, target.channels):
        return None
    return np.broadcast_to(constant.reshape(-1), (target.channels,))


def _affine(op_type: str, constant: Channels, side: int) -> Affine | None:
    """The map of a node whose constant is input `side`.

    None for a constant divided by the tensor, and for factors that are 0 or beyond 2^±24.
    """
    one = np.ones_like(constant)
    zero = np.zeros_like(constant)
    if not np.isfinite(constant).all():
        return None
    if op_type == "Add":
        return Affine(one, constant)
    if op_type == "Sub":
        return Affine(one, -constant) if side == 1 else Affine(-one, constant)
    if op_type == "Div" and side == 0:
        return None
    magnitude = np.abs(constant)
    # beyond the 24 bits of float32's significand, rounding would no longer be noise
    if (magnitude >= 2**24).any():
        return None
    if (magnitude <= 2**-24).any():
        return None
    factor = constant if op_type == "Mul" else one / constant
    return Affine(factor, zero)
