"""A look at a few blocks of a large constant: may storing it otherwise pay at all?

Most constants of a large model may not, and gathering every fact of a weight that is still to be
computed takes as long as writing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .._core.lazy import BLOCK
from .content import Content, content_of
from .grid import grid_of
from .load_memory import least_load_bytes

FEW = 8
"""Blocks that are looked at. Chosen by hand; not measured."""

LARGE = 2 * FEW * BLOCK
"""Elements from which it pays to look at a few blocks first. Chosen by hand; not measured."""


MARGIN = 0.02
"""Share of elements by which the blocks may err about the nonzeros of the whole. Chosen by hand."""


@dataclass(frozen=True)
class Prospect:
    """`saves`: a codec may save enough. `load_bytes`: what decoding the constant takes at least."""

    saves: bool
    load_bytes: int


def prospect_of(tensor: ir.TensorProtocol, min_saving: float) -> Prospect:
    """Judge a constant by evenly spread blocks of it; a small one is left to its codecs.

    `min_saving`: part of its bytes that a codec must save. Zeros that are all in the blocks between are missed: the constant then stays as large as it is.
    """
    if tensor.size < LARGE:
        return Prospect(True, 0)
    count = tensor.size // BLOCK
    few = content_of(tensor, every=count // FEW)
    # what a few blocks have more of than a codec takes, the whole has
    if few.palette is not None or few.narrower:
        return Prospect(True, 0)
    saves = _least_part(few) <= 1 - min_saving or _is_on_grid(tensor)
    return Prospect(saves, least_load_bytes(tensor.size, few))


def _least_part(few: Content) -> float:
    """Part of a constant's bytes that its best codec takes, if it has neither palette nor grid."""
    item = few.dtype.bitwidth / 8
    share = max(few.nonzeros / few.size - MARGIN, 0.0)
    # a bit of each element, or at least half a byte with each that is not zero
    mask = share * item + 1 / 8
    gaps = share * (item + 1 / 2)
    return min(mask, gaps) / item


def _is_on_grid(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.FLOAT and grid_of(tensor) is not None
