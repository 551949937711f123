"""A look at a few blocks of a large constant: may storing it otherwise pay at all?

Most constants of a large model may not, and gathering every fact of a weight that is still to be
computed takes as long as writing it.
"""

from __future__ import annotations

from dataclasses import dataclass

import onnx_ir as ir

from .._core.lazy import BLOCK
from .content import content_of
from .grid import grid_of
from .load_memory import least_load_bytes

FEW = 8
"""Blocks that are looked at. Chosen by hand; not measured."""

LARGE = 2 * FEW * BLOCK
"""Elements from which it pays to look at a few blocks first. Chosen by hand; not measured."""


@dataclass(frozen=True)
class Prospect:
    """`saves`: a codec may take fewer bytes. `load_bytes`: what decoding it takes at least."""

    saves: bool
    load_bytes: int


def prospect_of(tensor: ir.TensorProtocol) -> Prospect:
    """Judge a constant by evenly spread blocks of it; a small one is left to its codecs.

    Zeros that are all in the blocks between are missed: the constant then stays as large as it is.
    """
    if tensor.size < LARGE:
        return Prospect(True, 0)
    count = tensor.size // BLOCK
    few = content_of(tensor, every=count // FEW)
    # what a few blocks have more of than a codec takes, the whole has
    if few.palette is not None or few.narrower:
        return Prospect(True, 0)
    zeros = few.size - few.nonzeros
    # a mask takes a bit of each element
    saves = zeros * tensor.dtype.bitwidth > few.size or _is_on_grid(tensor)
    return Prospect(saves, least_load_bytes(tensor))


def _is_on_grid(tensor: ir.TensorProtocol) -> bool:
    return tensor.dtype == ir.DataType.FLOAT and grid_of(tensor) is not None
