"""A look at a few blocks of a large constant: may storing it otherwise pay at all?

Most constants of a large model may not, and gathering every fact of a weight that is still to be
computed takes as long as writing it.
"""

from __future__ import annotations

from collections import Counter

import onnx_ir as ir

from .._core.channel_palettes import channel_palettes_of
from .._core.lazy import BLOCK
from .._core.vector_codebooks import codebook_of
from .content import LONGEST_GAPS, Content, content_of
from .grid import grid_of
from .load_memory import load_bytes

FEW = 8
"""Blocks that are looked at. Chosen by hand; not measured."""

LARGE = 2 * FEW * BLOCK
"""Elements from which it pays to look at a few blocks first. Chosen by hand; not measured."""

MARGIN = 0.02
"""Share of elements by which the blocks may err about the nonzeros of the whole. Chosen by hand."""


def least_load_bytes(tensor: ir.TensorProtocol, min_saving: float) -> int | None:
    """Memory that decoding a constant takes at least, by codecs that may save enough.

    None: none may. `min_saving`: part of its bytes. Evenly spread blocks are looked at; 0 for a
    small constant, which is left to its codecs. Zeros that are all in the blocks between are
    missed: the constant then stays as large as it is.
    """
    if tensor.size < LARGE:
        return 0
    count = tensor.size // BLOCK
    few = content_of(tensor, every=count // FEW)
    # what a few blocks have more of than a codec takes, the whole has
    if few.palette is not None or few.narrower:
        return 0
    whole = _extrapolated(few)
    share = 1 - min_saving
    limit = share * tensor.nbytes
    enough = []
    for name, nbytes in _stored_bytes(whole).items():
        if nbytes <= limit:
            enough.append(name)
    is_float = tensor.dtype == ir.DataType.FLOAT
    if is_float and grid_of(tensor) is not None:
        enough.append("grid")
    if channel_palettes_of(tensor) is not None:
        enough.append("channel palettes")
    if codebook_of(tensor) is not None:
        enough.append("codebook")
    needed = [load_bytes(name, whole) for name in enough]
    return min(needed, default=None)


def _extrapolated(few: Content) -> Content:
    """Facts about the whole constant: as few nonzeros as its blocks allow, none with a filler."""
    seen = few.nonzeros / few.size
    share = max(seen - MARGIN, 0.0)
    size = few.tensor.size
    nonzeros = int(share * size)
    counts = dict.fromkeys(LONGEST_GAPS, nonzeros)
    entries = Counter(counts)
    return Content(few.tensor, size, nonzeros, entries)


def _stored_bytes(whole: Content) -> dict[str, float]:
    """Bytes of the codecs of zeros: a bit of each element, or a distance with each nonzero."""
    item = whole.dtype.bitwidth / 8
    bits = whole.size / 8
    with_byte = item + 1
    with_half_byte = item + 1 / 2
    return {
        "mask": bits + whole.nonzeros * item,
        "gaps": whole.nonzeros * with_byte,
        "short gaps": whole.nonzeros * with_half_byte,
    }
