"""Zero padding into the convolution after it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from ._base import Context, Declined, Effect, Pass, PassOutcome
from ._core.edit import Edit, array_of, ints_of, rank_of, used_once
from ._core.graph import graphs_of, label


@dataclass(frozen=True)
class FoldPad(Pass):
    """Fold a Pad by constant zeros into the `pads` of the Conv that alone uses it.

    Effect: exact. Declines other modes and values, padding of batch or channels, negative or
    computed pads, and automatic padding of the Conv.

    Shapes: unchanged.

    Stats: `folded` (count).

    Source: follows from the definitions of Pad and Conv.
    """

    name: ClassVar[str] = "fold-pad"
    effect: ClassVar[Effect] = "exact"

    def run(self, model: ir.Model, context: Context) -> PassOutcome:
        edit, declined, count = Edit(model), list[Declined](), 0
        for graph in graphs_of(model):
            for node in graph:
                pad = (
                    node.inputs[0].producer()
                    if node.op_type == "Conv" and node.inputs[0] is not None
                    else None
                )
                if (
                    pad is None
                    or pad.op_type != "Pad"
                    or pad.domain != ""
                    or node.domain != ""
                ):
                    continue
                reason = _fold(pad, node, edit)
                count += reason is None
                if reason is not None:
                    declined.append(Declined(label(pad), reason))
        return PassOutcome(count, {"folded": count}, declined)


def _fold(pad: ir.Node, conv: ir.Node, edit: Edit) -> str | None:
    """Fold one pair; the reason if it stays."""
    if not used_once(pad.outputs[0]):
        return "its output is used elsewhere too"
    if pad.attributes.get_string("mode", "constant") != "constant" or not _pads_zero(
        pad
    ):
        return "it does not pad with zeros"
    rank = rank_of(conv.inputs[1])
    sides = None if rank is None else _sides(pad, rank)
    if rank is None or sides is None or any(low < 0 or high < 0 for low, high in sides):
        return "its pads are computed or negative"
    if any(pair != (0, 0) for pair in sides[:2]):
        return "it pads the batch or the channels"
    if conv.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{label(conv)} pads automatically"
    own = list(conv.attributes.get_ints("pads", [])) or [0] * (2 * (rank - 2))
    more = [low for low, _ in sides[2:]] + [high for _, high in sides[2:]]
    conv.attributes["pads"] = ir.AttrInt64s(
        "pads", [a + b for a, b in zip(own, more, strict=True)]
    )
    conv.attributes.pop("auto_pad", None)
    edit.set_input(conv, 0, pad.inputs[0])
    edit.remove(pad)
    return None


def _pads_zero(pad: ir.Node) -> bool:
    if len(pad.inputs) > 2 and pad.inputs[2] is not None:
        value = array_of(pad.inputs[2])
        return value is not None and value.size == 1 and not value.any()
    return pad.attributes.get_float("value", 0.0) == 0


def _sides(pad: ir.Node, rank: int) -> list[tuple[int, int]] | None:
    """(before, after) of every axis; None if computed."""
    pads = list(pad.attributes.get_ints("pads", [])) or (
        ints_of(pad.inputs[1]) if len(pad.inputs) > 1 else None
    )
    given = (
        ints_of(pad.inputs[3])
        if len(pad.inputs) > 3 and pad.inputs[3] is not None
        else list(range(rank))
    )
    if pads is None or given is None or len(pads) != 2 * len(given):
        return None
    sides = [(0, 0)] * rank
    for place, axis in enumerate(given):
        sides[axis] = (pads[place], pads[place + len(given)])
    return sides
