"""Folding of zero padding into the convolution after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Effect, Pass, PassOutcome
from ._core.edit import Edit, array_of, ints_given, ints_of, rank_of, used_once
from ._core.graph import input_of, label
from ._core.ops import is_standard
from ._simplify.folding import fold_nodes


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold a Pad with constant zeros into the `pads` of the Conv that is its only reader.

    Effect: exact. Declines other modes and values, padding of the batch or the channels, negative
    or computed pads, and a Conv with automatic padding.

    Shapes: unchanged.

    Stats: `folded` (count).

    Source: follows from the definitions of Pad and Conv.
    """

    name: ClassVar[str] = "fold-pad"
    effect: ClassVar[Effect] = "exact"
    unit: ClassVar[str] = "nodes"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        outcome = fold_nodes(model, self.name, ("Pad",), _fold)
        outcome.stats["folded"] = outcome.changed
        return outcome


def _fold(pad: ir.Node, edit: Edit) -> str | None:
    """Fold a Pad into its Conv; the reason if it stays, "" where no Conv reads it."""
    conv = _conv_behind(pad)
    if conv is None:
        return ""
    if not used_once(pad.outputs[0]):
        return "its output is used elsewhere too"
    if not _pads_zero(pad):
        return "it does not pad with zeros"
    rank = rank_of(conv.inputs[1])
    sides = None if rank is None else _sides(pad, rank)
    if sides is None:
        return "its pads are computed or negative"
    if any(low < 0 or high < 0 for low, high in sides):
        return "its pads are computed or negative"
    batch, channels, *spatial = sides
    if batch != (0, 0) or channels != (0, 0):
        return "it pads the batch or the channels"
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{label(conv)} pads automatically"
    _add_pads(conv, spatial)
    edit.set_input(conv, 0, pad.inputs[0])
    edit.remove(pad)
    return None


def _conv_behind(pad: ir.Node) -> ir.Node | None:
    """The first Conv that a Pad is the input of."""
    for use in pad.outputs[0].uses():
        if use.idx == 0 and is_standard(use.node, "Conv"):
            return use.node
    return None


def _add_pads(conv: ir.Node, sides: list[tuple[int, int]]) -> None:
    """Add (before, after) of each spatial axis to the pads of a Conv."""
    # ONNX lists all befores, then all afters
    befores = [before for before, _ in sides]
    afters = [after for _, after in sides]
    added = befores + afters
    own = list(conv.attributes.get_ints("pads", []))
    if not own:
        own = [0] * len(added)
    pads = [old + new for old, new in zip(own, added, strict=True)]
    conv.attributes["pads"] = ir.AttrInt64s("pads", pads)
    # VALID forbids pads of one's own
    conv.attributes.pop("auto_pad", None)


def _pads_zero(pad: ir.Node) -> bool:
    if pad.attributes.get_string("mode", "constant") != "constant":
        return False
    filling = input_of(pad, 2)
    if filling is None:
        # an attribute of opsets before 11
        return pad.attributes.get_float("value", 0.0) == 0
    value = array_of(filling)
    return value is not None and value.size == 1 and not value.any()


def _sides(pad: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) of every axis; None if computed."""
    pads = ints_given(pad, "pads", 1)
    listed = input_of(pad, 3)
    axes = list(range(rank)) if listed is None else ints_of(listed)
    if pads is None:
        return None
    if axes is None:
        return None
    if len(pads) != 2 * len(axes):
        return None
    sides = [(0, 0)] * rank
    befores = pads[: len(axes)]
    afters = pads[len(axes) :]
    for axis, before, after in zip(axes, befores, afters, strict=True):
        sides[axis] = (before, after)
    return sides
