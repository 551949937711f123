"""Multiplication and addition of constants into the weights before them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from ._base import Context, Declined, Effect, Pass, PassOutcome
from ._core.edit import Edit, array_of, rank_of
from ._core.graph import graphs_of, label
from ._simplify.affine import Affine, Channels, Target, fold, target_of


@dataclass(frozen=True)
class FoldAffine(Pass):
    """Fold Mul, Div, Add and Sub of one constant per channel into the Conv, ConvTranspose or Gemm
    before them.

    Effect: exact. Weights are recomputed in float64 and rounded once. Declines constants that vary
    along other axes or widen the tensor, weights that are shared, overridable or of 16 bits,
    outputs that something else uses too, and factors of zero or beyond 2^±24 (rounding would no
    longer be noise).

    Shapes: weight (M, C, *K) * scale (M,), bias (M,) * scale + shift.

    Stats: `folded` (count).

    Source: follows from linearity.
    """

    name: ClassVar[str] = "fold-affine"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        edit, declined, count = Edit(model), list[Declined](), 0
        for graph in graphs_of(model):
            for node in graph:
                if (
                    node.op_type in ("Mul", "Div", "Add", "Sub")
                    and node.domain == ""
                    and len(node.inputs) == 2
                ):
                    reason = _fold(node, edit)
                    count += reason is None
                    if reason:
                        declined.append(Declined(label(node), reason))
        return PassOutcome(count, {"folded": count}, declined)


def _fold(node: ir.Node, edit: Edit) -> str | None:
    """Fold one node; otherwise the reason why it stays, empty where there is nothing to fold
    into.
    """
    side = 1 if array_of(node.inputs[1]) is not None else 0
    constant, source = array_of(node.inputs[side]), node.inputs[1 - side]
    target = target_of(source)
    if constant is None or target is None:
        return ""
    if isinstance(target, str):
        return target
    channels = _per_channel(constant.astype(np.float64), target, source)
    if channels is None:
        return "its constant is not one number for each channel"
    affine = _affine(node.op_type, channels, side)
    if affine is None:
        return "its factor is no plain number"
    if not edit.bypass(node, target.node.outputs[0]):
        return "its output must keep its name"
    fold(target, affine, edit)
    return None


def _per_channel(
    constant: Channels, target: Target, source: ir.Value | None
) -> Channels | None:
    """The constant as (M,), if broadcasting it neither widens the output nor varies along other
    axes.
    """
    assert target.weight.const_value is not None
    rank = 2 if target.node.op_type == "Gemm" else len(target.weight.const_value.shape)
    if constant.ndim > rank or rank_of(source) not in (None, rank):
        return None
    aligned = (1,) * (rank - constant.ndim) + constant.shape
    if any(size != 1 for axis, size in enumerate(aligned) if axis != 1) or aligned[
        1
    ] not in (1, target.channels):
        return None
    return np.broadcast_to(constant.reshape(-1), (target.channels,))


def _affine(op_type: str, constant: Channels, side: int) -> Affine | None:
    """What the node does to each channel; None for a constant divided by the tensor, and for wild
    factors.
    """
    one, zero = np.ones_like(constant), np.zeros_like(constant)
    if op_type == "Div" and side == 0:
        return None
    if op_type in ("Mul", "Div"):
        if not (
            np.isfinite(constant).all()
            and (np.abs(constant) < 2**24).all()
            and (np.abs(constant) > 2**-24).all()
        ):
            return None
        return Affine(constant if op_type == "Mul" else one / constant, zero)
    if not np.isfinite(constant).all():
        return None
    if op_type == "Add":
        return Affine(one, constant)
    return Affine(one, -constant) if side == 1 else Affine(-one, constant)
