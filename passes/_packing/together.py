"""Small constants of one codec, stored as one: the nodes that decode them are there once.

    weights of one key   elements side by side, by their codec -> Split -> Reshape
    vectors              of one value, or of a smaller type    -> Split
    channel palettes     indices the same way, tables too      -> Split by the length of a channel
                         -> GatherElements in the row of each channel -> Split -> Reshape
    codebook             numbers of vectors, the table once    -> Gather -> Split -> Reshape

Of ResNet-20's 115 kB at three bits, decoders of single weights take three more than these.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.channel_palettes import ChannelPalettes, channel_palettes_of
from .._core.vector_codebooks import (
    MOST_VECTORS,
    VectorCodebook,
    Vectors,
    codebook_of,
    index_into,
    merged,
)
from .codecs import (
    CODECS,
    Codec,
    by_codebook,
    by_palettes,
    in_shape,
    index_codec,
    stored_table,
)
from .content import Content, content_of
from .draft import Draft

MOST_ELEMENTS = 1 << 17
"""Elements of the largest constant that is stored with others; chosen by hand.

Nodes of its own take less than half a kilobyte: one hundredth of such a constant at three bits.
"""

MOST_TOGETHER = 1 << 22
"""Elements of all that are stored as one, which are decoded at once; chosen by hand."""

MIN_BYTES = 256
"""Bytes below which a constant is not stored alone: a decoder's nodes take 150 to 250."""

MOST_OF_A_VECTOR = 1 << 12
"""Elements of the largest vector that is stored with others; chosen by hand."""

_FLAT_CODECS = ("palette", "bit planes", "mask", "gaps", "short gaps")
"""Codecs that take elements of several constants one behind the other."""


@dataclass(frozen=True, eq=False)
class StoredPart:
    """A constant among others of one `key`: its elements, or indices into `palettes` or `codebook`.

    `codec`: name of the codec for the constant alone. `elements` are stored by `inner`.
    """

    key: Hashable
    content: Content
    codec: str
    elements: ir.TensorProtocol
    inner: Codec
    palettes: ChannelPalettes | None = None
    codebook: VectorCodebook | None = None

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
        return StoredPart(
            key,
            content,
            codec,
            tensor,
            CODECS[codec],
        )
    if codec == "channel palettes":
        palettes = channel_palettes_of(tensor)
        assert palettes is not None
        inner = index_codec(palettes, trial)
        if inner is not None:
            values = palettes.table.shape[1]
            key = (codec, inner, values)
            return StoredPart(
                key,
                content,
                codec,
                palettes.index,
                inner,
                palettes,
            )
    if codec == "codebook":
        codebook = codebook_of(tensor)
        assert codebook is not None
        key = (codec, codebook.length)
        inner = CODECS[codec]
        return StoredPart(
            key,
            content,
            codec,
            codebook.index,
            inner,
            codebook=codebook,
        )
    # of a kind of its own
    return StoredPart(
        object(),
        content,
        codec,
        tensor,
        CODECS[codec],
    )


def _kind(content: Content) -> tuple[Hashable, ...]:
    """Facts that constants must have in common: of other values each would take more bits."""
    values = None if content.palette is None else content.palette.tobytes()
    narrower = tuple(content.narrower[:1])
    return content.dtype, values, narrower


def vector_of(tensor: ir.TensorProtocol) -> StoredPart | None:
    """The part that a vector is, scales or zero points say; None where no codec of these fits.

    Alone it would take more bytes for nodes than it saves.
    """
    if len(tensor.shape) != 1 or not 0 < tensor.size <= MOST_OF_A_VECTOR:
        return None
    content = content_of(tensor)
    values = content.palette
    if values is not None and values.size == 1:
        return _part_of_vectors(content, "one value", values.tobytes())
    # few values, and zeros, have smaller forms
    is_dense = values is None and 2 * content.nonzeros > content.size
    if content.narrower and (is_dense or tensor.nbytes < MIN_BYTES):
        return _part_of_vectors(content, "narrow", content.narrower[0])
    return None


def _part_of_vectors(content: Content, codec: str, common: Hashable) -> StoredPart:
    """The part of a vector; `common`: what the codec needs all to have in common."""
    key = (codec, content.dtype, common)
    return StoredPart(
        key,
        content,
        codec,
        content.tensor,
        CODECS[codec],
    )


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
    if parts[0].palettes is not None:
        return _draft_palettes(parts, draft)
    if parts[0].codebook is not None:
        return _draft_codebooks(parts, draft)
    pieces = _split_up(draft, _decoded(parts, draft), [part.size for part in parts])
    constants = []
    for part, piece in zip(parts, pieces, strict=True):
        is_vector = len(part.dims) == 1
        constants.append(
            piece if is_vector else draft.node("Reshape", piece, part.dims)
        )
    return constants


def _draft_palettes(parts: Sequence[StoredPart], draft: Draft) -> list[ir.Value]:
    """The same of parts with palettes: rows of one length are looked up at once."""
    by_length: dict[int, list[StoredPart]] = {}
    for part in parts:
        length = _row_length(part)
        alike = by_length.setdefault(length, [])
        alike.append(part)
    in_order = list(itertools.chain.from_iterable(by_length.values()))
    tables = [_palettes(part).table for part in in_order]
    stored = stored_table(draft, np.concatenate(tables))
    decoded = _decoded(in_order, draft)
    sizes = []
    rows = []
    for alike in by_length.values():
        size = sum(part.size for part in alike)
        count = sum(_groups(part) for part in alike)
        sizes.append(size)
        rows.append(count)
    indices = _split_up(draft, decoded, sizes)
    palettes = _split_up(draft, stored, rows)
    constants = {}
    looked_up = zip(by_length.items(), palettes, indices, strict=True)
    for (length, alike), table, flat in looked_up:
        index = draft.node("Reshape", flat, [-1, length])
        elements = by_palettes(draft, table, index)
        groups_each = [_groups(part) for part in alike]
        pieces = _split_up(draft, elements, groups_each)
        for part, piece in zip(alike, pieces, strict=True):
            layout = _palettes(part).layout
            constant = in_shape(draft, layout, piece, part.dims)
            constants[part] = constant
    return [constants[part] for part in parts]


def _draft_codebooks(parts: Sequence[StoredPart], draft: Draft) -> list[ir.Value]:
    """The same of parts with codebooks, which become one where it is small enough."""
    codebooks = [_codebook(part) for part in parts]
    every = [codebook.vectors for codebook in codebooks]
    vectors = merged(every)
    if len(vectors) > MOST_VECTORS:
        return draft_apart(parts, draft)
    indices = [_renumbered(codebook, vectors) for codebook in codebooks]
    sizes = [index.size for index in indices]
    decoded = by_codebook(draft, vectors, _side_by_side(indices))
    pieces = _split_up(draft, decoded, sizes)
    constants = []
    for part, codebook, piece in zip(parts, codebooks, pieces, strict=True):
        layout = codebook.layout
        constant = in_shape(draft, layout, piece, part.dims)
        constants.append(constant)
    return constants


def _renumbered(codebook: VectorCodebook, vectors: Vectors) -> ir.TensorProtocol:
    """The index of a codebook, into one that holds all of its vectors."""
    numbers = index_into(vectors, codebook.vectors)

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(numbers[codebook.index.numpy()])

    index = codebook.index
    shape = ir.Shape([index.size])
    return ir.LazyTensor(compute, dtype=index.dtype, shape=shape)


def _codebook(part: StoredPart) -> VectorCodebook:
    assert part.codebook is not None
    return part.codebook


def _palettes(part: StoredPart) -> ChannelPalettes:
    assert part.palettes is not None
    return part.palettes


def _groups(part: StoredPart) -> int:
    """Number of a part's palettes."""
    return len(_palettes(part).table)


def _row_length(part: StoredPart) -> int:
    """Number of elements that share a palette."""
    return part.size // _groups(part)


def _decoded(parts: Sequence[StoredPart], draft: Draft) -> ir.Value:
    """All elements of parts of one key, side by side."""
    content = content_of(_side_by_side([part.elements for part in parts]))
    decoded = parts[0].inner(content, draft)
    assert decoded is not None
    return decoded


def _split_up(draft: Draft, value: ir.Value, sizes: list[int]) -> list[ir.Value]:
    """Pieces of a value along its first axis; the value itself where there is but one."""
    return draft.split(value, sizes) if len(sizes) > 1 else [value]


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
