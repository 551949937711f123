"""Small constants of one codec, stored as one: the nodes that decode them are there once.

    weights of one key   elements side by side, by their codec -> Split -> Reshape
    channel palettes     indices the same way, tables too      -> Split -> GatherElements in the row
                                                                  of each channel -> Reshape

Of ResNet-20's 115 kB at three bits, decoders of single weights take three more than these.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_palettes import ChannelPalettes, channel_palettes_of
from .codecs import CODECS, Codec, index_codec, of_palettes
from .content import Content, content_of
from .draft import Draft

MOST_ELEMENTS = 1 << 17
"""Elements of the largest constant that is stored with others; chosen by hand.

Nodes of its own take less than half a kilobyte: one hundredth of such a constant at three bits.
"""

MOST_TOGETHER = 1 << 22
"""Elements of all that are stored as one, which are decoded at once; chosen by hand."""

_FLAT_CODECS = ("palette", "bit planes", "mask", "gaps", "short gaps")
"""Codecs that take elements of several constants one behind the other."""


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A constant among others of one `key`: its elements, or its indices into `palettes`.

    `codec`: name of the codec for the constant alone. `elements` are stored by `inner`.
    """

    key: Hashable
    content: Content
    codec: str
    elements: ir.TensorProtocol
    inner: Codec
    palettes: ChannelPalettes | None = None

    @property
    def size(self) -> int:
        """Number of elements."""
        return self.content.size

    @property
    def load_bytes(self) -> int:
        """Memory that its piece of what is decoded takes at load, beside what its codec does."""
        return self.elements.nbytes

    @property
    def dims(self) -> list[int]:
        """Shape of the constant."""
        return self.content.dims


def is_small(content: Content) -> bool:
    """True if a constant may be stored with others."""
    return content.size <= MOST_ELEMENTS


def part_of(content: Content, codec: str, trial: Draft) -> StoredPart:
    """The part that a small constant is, which is best stored by that codec.

    `trial`: a draft of the graph that costs are counted in.
    """
    tensor = content.tensor
    if codec in _FLAT_CODECS:
        key = (codec, *_kind(content))
        return StoredPart(key, content, codec, tensor, CODECS[codec])
    if codec == "channel palettes":
        palettes = channel_palettes_of(tensor)
        assert palettes is not None
        inner = index_codec(palettes, trial)
        if inner is not None:
            values = palettes.table.shape[1]
            key = (codec, inner, values)
            return StoredPart(key, content, codec, palettes.index, inner, palettes)
    # of a kind of its own
    return StoredPart(object(), content, codec, tensor, CODECS[codec])


def _kind(content: Content) -> tuple[Hashable, ...]:
    """Facts that constants must have in common: of other values each would take more bits."""
    values = None if content.palette is None else content.palette.tobytes()
    narrower = tuple(content.narrower[:1])
    return content.dtype, values, narrower


def groups(parts: Iterable[StoredPart]) -> list[list[StoredPart]]:
    """Parts that are stored as one: of one key, and not too many elements."""
    found: list[list[StoredPart]] = []
    latest: dict[Hashable, list[StoredPart]] = {}
    sizes = Counter[Hashable]()
    for part in parts:
        key = part.key
        sizes[key] += part.size
        if key not in latest or sizes[key] > MOST_TOGETHER:
            latest[key] = []
            found.append(latest[key])
            sizes[key] = part.size
        latest[key].append(part)
    return found


def draft_apart(parts: Sequence[StoredPart], draft: Draft) -> list[ir.Value]:
    """Draft a decoder of each part's own; the constants, in the same order."""
    constants = []
    for part in parts:
        constant = CODECS[part.codec](part.content, draft)
        assert constant is not None
        constants.append(constant)
    return constants


def draft_together(parts: Sequence[StoredPart], draft: Draft) -> list[ir.Value]:
    """Draft what decodes several parts of one key; the constants, in the same order."""
    first = parts[0]
    tensors = [part.elements for part in parts]
    content = content_of(_side_by_side(tensors))
    decoded = first.inner(content, draft)
    assert decoded is not None
    sizes = [part.size for part in parts]
    pieces = draft.split(decoded, sizes)
    tables = iter(_tables(parts, draft))
    constants = []
    for part, piece in zip(parts, pieces, strict=True):
        if part.palettes is None:
            constant = draft.node("Reshape", piece, part.dims)
        else:
            groups = len(part.palettes.table)
            index = draft.node("Reshape", piece, [groups, -1])
            constant = of_palettes(
                draft,
                part.palettes,
                next(tables),
                index,
                part.dims,
            )
        constants.append(constant)
    return constants


def _tables(parts: Sequence[StoredPart], draft: Draft) -> list[ir.Value]:
    """The palettes of each part, stored as one tensor; none where parts have no palettes."""
    tables = [part.palettes.table for part in parts if part.palettes is not None]
    if not tables:
        return []
    rows = np.concatenate(tables)
    stored = draft.stored(ir.Tensor(rows))
    sizes = [len(table) for table in tables]
    return draft.split(stored, sizes)


def _side_by_side(tensors: Sequence[ir.TensorProtocol]) -> ir.TensorProtocol:
    """One flat tensor of all elements, which is made when it is read."""
    dtype = tensors[0].dtype
    size = sum(tensor.size for tensor in tensors)

    def compute() -> ir.TensorProtocol:
        parts: list[NDArray[Any]] = []
        for tensor in tensors:
            array = tensor.numpy()
            parts.append(array.reshape(-1))
        together = np.concatenate(parts)
        return ir.Tensor(together, dtype=dtype)

    shape = ir.Shape([size])
    return ir.LazyTensor(compute, dtype=dtype, shape=shape)
