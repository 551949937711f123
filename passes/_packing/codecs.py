"""Codecs: ways to store one constant, each with the nodes that decode it bit for bit.

ONNX Runtime folds nodes whose inputs are all constants before it looks for kernels, so what these
nodes compute ends as an ordinary initializer: same kernels, same speed, same memory.

    one value   value (1,)                            -> Expand
    narrow      values of a smaller type              -> Cast
    palette     indices of b bits, 2^b values         -> unpack -> Gather
    mask        a bit an element, the nonzeros        -> CumSum of the bits -> Gather
    gaps        distances between nonzeros, nonzeros  -> CumSum -> ScatterElements

The nonzeros of the last two may be stored by narrow or palette again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .content import (
    LONGEST_GAP,
    Bits,
    Content,
    as_type,
    bit_blocks,
    narrowed,
)
from .draft import Draft

Codec = Callable[[Content, Draft], ir.Value | None]
"""Draft a decoder of the constant; None where the codec does not fit it."""

OPSET = 13
"""Least opset of the decoders: ReduceSum takes its axes as an input from then on."""


def one_value(content: Content, draft: Draft) -> ir.Value | None:
    """Every element the same."""
    if content.palette is None or content.palette.size != 1:
        return None
    value = draft.stored(ir.Tensor(_elements(content.palette, content)))
    return draft.node("Expand", [value, _shape(draft, content.dims)])


def narrow(content: Content, draft: Draft) -> ir.Value | None:
    """Elements that a smaller type holds exactly."""
    if not content.narrower:
        return None
    kind = content.narrower[0]

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(
            narrowed(content.tensor, kind).reshape(content.dims), dtype=kind
        )

    stored = draft.stored(_lazy(compute, kind, content.dims))
    return draft.node("Cast", [stored], to=int(content.dtype))


def palette(content: Content, draft: Draft) -> ir.Value | None:
    """Few distinct elements: indices of as many bits as they need, into a table of them."""
    if content.palette is None or content.palette.size < 2:
        return None
    values = content.palette
    bits = int(values.size - 1).bit_length()
    per_byte = 8 // bits if bits in (1, 2, 4) else 0
    table = draft.stored(ir.Tensor(_elements(values, content)))
    if per_byte:
        index = _digits(content, draft, values, bits, per_byte)
        size = -(-content.size // per_byte) * per_byte
    else:
        index = _from_planes(content, draft, values, bits)
        size = -(-content.size // 8) * 8
    looked_up = draft.node("Gather", [table, index], axis=0)
    return _cut_to_size(draft, looked_up, content, size)


def _digits(
    content: Content, draft: Draft, values: Bits, bits: int, per_byte: int
) -> ir.Value:
    """Indices of 1, 2 or 4 bits, whole ones in a byte: (bytes, per byte)."""
    count = -(-content.size // per_byte)

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(_index_digits(content, values, bits, per_byte))

    stored = draft.stored(_lazy(compute, ir.DataType.UINT8, [count, 1]))
    wide = draft.node("Cast", [stored], to=int(ir.DataType.INT32))
    powers = draft.constant(2 ** np.arange(0, 8, bits, dtype=np.int32))
    shifted = draft.node("Div", [wide, powers])
    return draft.node("Mod", [shifted, draft.constant(np.array([2**bits], np.int32))])


def _from_planes(content: Content, draft: Draft, values: Bits, bits: int) -> ir.Value:
    """Indices of 3, 5 or 6 bits, which fill no byte: a bit of each in a plane, (bytes, 8)."""
    count = -(-content.size // 8)

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(_index_planes(content, values, bits))

    stored = draft.stored(_lazy(compute, ir.DataType.UINT8, [bits, count, 1]))
    wide = draft.node("Cast", [stored], to=int(ir.DataType.INT32))
    powers = draft.constant(2 ** np.arange(8, dtype=np.int32))
    shifted = draft.node("Div", [wide, powers])
    planes = draft.node("Mod", [shifted, draft.constant(np.array([2], np.int32))])
    weights = 2 ** np.arange(bits, dtype=np.int32).reshape(-1, 1, 1)
    weighed = draft.node("Mul", [planes, draft.constant(weights)])
    axis = draft.constant(np.array([0], np.int64))
    return draft.node("ReduceSum", [weighed, axis], keepdims=0)


def mask(content: Content, draft: Draft) -> ir.Value | None:
    """Many zeros: a bit for each element, and the elements that are not zero."""
    if not 0 < content.nonzeros < content.size:
        return None
    count = -(-content.size // 8)

    def compute() -> ir.TensorProtocol:
        return ir.Tensor(_mask_bytes(content))

    stored = draft.stored(_lazy(compute, ir.DataType.UINT8, [count]))
    byte = draft.node("Cast", [stored], to=int(ir.DataType.INT32))
    # the n-th nonzero lies at n in the values, a zero before them
    counts = draft.node(
        "Gather", [draft.shared("counts", lambda: _counts(draft)), byte], axis=0
    )
    before = draft.node(
        "CumSum", [counts, draft.constant(np.array(0, np.int64))], exclusive=1
    )
    ranks = draft.node(
        "Gather", [draft.shared("ranks", lambda: _ranks(draft)), byte], axis=0
    )
    ordinals = draft.node("Add", [before, ranks])
    index = draft.node("Max", [ordinals, draft.constant(np.array([0], np.int32))])
    decoded = draft.node("Gather", [_nonzeros(content, draft), index], axis=0)
    return _cut_to_size(draft, decoded, content, 8 * count)


def gaps(content: Content, draft: Draft) -> ir.Value | None:
    """Nearly all zeros: distances between the elements that are not, and these."""
    if content.nonzeros == 0:
        return None

    def distances() -> ir.TensorProtocol:
        return ir.Tensor(_gaps(content)[0])

    def entries() -> ir.TensorProtocol:
        return ir.Tensor(as_type(_gaps(content)[1], content.dtype))

    dims = [content.gap_entries]
    stored = draft.stored(_lazy(distances, ir.DataType.UINT8, dims))
    values = draft.stored(_lazy(entries, content.dtype, dims))
    steps = draft.node("Cast", [stored], to=int(ir.DataType.INT32))
    ends = draft.node("CumSum", [steps, draft.constant(np.array(0, np.int64))])
    places = draft.node("Sub", [ends, draft.constant(np.array([1], np.int32))])
    filled = _scattered(draft, content, places, values, content.size)
    return _cut_to_size(draft, filled, content, content.size)


CODECS: dict[str, Codec] = {
    "one value": one_value,
    "narrow": narrow,
    "palette": palette,
    "mask": mask,
    "gaps": gaps,
}
"""All codecs by the name that the account gives them."""

NONZERO_CODECS = (narrow, palette)
"""Codecs that the nonzeros under a mask may be stored by."""


def _nonzeros(content: Content, draft: Draft) -> ir.Value:
    """Store a zero and the elements that are none, (nonzeros + 1,), in the cheapest way."""
    dims = [content.nonzeros + 1]

    def compute() -> ir.TensorProtocol:
        parts = [block[block != 0] for _, block in bit_blocks(content.tensor)]
        zero = np.zeros(1, parts[0].dtype)
        return ir.Tensor(as_type(np.concatenate([zero, *parts]), content.dtype))

    tensor = _lazy(compute, content.dtype, dims)
    inner = dataclasses.replace(content, tensor=tensor, size=dims[0])
    best, cheapest = None, tensor.nbytes
    for codec in NONZERO_CODECS:
        alone = Draft({})
        if codec(inner, alone) is not None and alone.nbytes() < cheapest:
            best, cheapest = codec, alone.nbytes()
    stored = draft.stored(tensor) if best is None else best(inner, draft)
    assert stored is not None
    return stored


def _counts(draft: Draft) -> ir.Value:
    """Ones among the bits of each byte: (256, 1) int32."""
    bits = _bits_of_bytes()
    table = draft.constant(bits.sum(axis=1, keepdims=True, dtype=np.uint8))
    return draft.node("Cast", [table], to=int(ir.DataType.INT32))


def _ranks(draft: Draft) -> ir.Value:
    """Ordinal of each one among the bits of a byte, from 1; far below zero for bits that are 0.

    Shape (256, 8) int32, made from a quarter of its bytes: below zero it is multiplied by 2^23.
    """
    bits = _bits_of_bytes()
    ranks = np.where(bits, np.cumsum(bits, axis=1), -128).astype(np.int8)
    wide = draft.node("Cast", [draft.constant(ranks)], to=int(ir.DataType.INT32))
    negative = draft.node("Min", [wide, draft.constant(np.array([0], np.int32))])
    far = draft.node("Mul", [negative, draft.constant(np.array([2**23], np.int32))])
    return draft.node("Add", [wide, far])


def _scattered(
    draft: Draft, content: Content, places: ir.Value, values: ir.Value, size: int
) -> ir.Value:
    """Zeros (size,), and the values at their places in them."""
    zero = draft.constant(np.zeros(1, content.dtype.numpy()))
    blank = draft.node("Expand", [zero, _shape(draft, [size])])
    return draft.node("ScatterElements", [blank, places, values], axis=0)


def _cut_to_size(
    draft: Draft, decoded: ir.Value, content: Content, size: int
) -> ir.Value:
    """The first elements of `size` decoded ones, in the constant's shape."""
    if size != content.size:
        decoded = draft.node("Reshape", [decoded, _shape(draft, [-1])])
        start, stop = (draft.constant(np.array([at])) for at in (0, content.size))
        decoded = draft.node("Slice", [decoded, start, stop])
    return draft.node("Reshape", [decoded, _shape(draft, content.dims)])


def _bits_of_bytes() -> NDArray[np.uint8]:
    """Bits of each byte, the lowest first: (256, 8)."""
    byte = np.arange(256, dtype=np.uint8)[:, None]
    return np.unpackbits(byte, axis=1, bitorder="little")


def _shape(draft: Draft, dims: list[int]) -> ir.Value:
    return draft.constant(np.array(dims, np.int64))


def _elements(bits: Bits, content: Content) -> NDArray[Any]:
    return as_type(bits, content.dtype)


def _lazy(
    compute: Callable[[], ir.TensorProtocol], dtype: ir.DataType, dims: list[int]
) -> ir.LazyTensor:
    return ir.LazyTensor(compute, dtype=dtype, shape=ir.Shape(dims))


def _mask_bytes(content: Content) -> NDArray[np.uint8]:
    """A bit for each element, 1 where it is not zero, the first in the lowest bit of a byte."""
    parts = [block != 0 for _, block in bit_blocks(content.tensor, granule=8)]
    return np.concatenate([np.packbits(part, bitorder="little") for part in parts])


def _index_planes(content: Content, values: Bits, bits: int) -> NDArray[np.uint8]:
    """Index of each element in `values`: plane b (axis 0) holds its bits of value 2^b."""
    parts = []
    for _, block in bit_blocks(content.tensor, granule=8):
        index = np.searchsorted(values, block)
        planes = index[None, :] >> np.arange(bits)[:, None] & 1
        parts.append(np.packbits(planes.astype(np.uint8), axis=1, bitorder="little"))
    return np.concatenate(parts, axis=1)[:, :, None]


def _index_digits(
    content: Content, values: Bits, bits: int, per_byte: int
) -> NDArray[np.uint8]:
    """Index of each element in `values`, the first of a byte in its lowest bits: (bytes, 1)."""
    parts = []
    for _, block in bit_blocks(content.tensor, granule=8):
        index = np.zeros(-(-block.size // per_byte) * per_byte, np.uint8)
        index[: block.size] = np.searchsorted(values, block)
        shifts = np.arange(0, 8, bits, dtype=np.uint8)
        parts.append(
            (index.reshape(-1, per_byte) << shifts).sum(axis=1, dtype=np.uint8)
        )
    return np.concatenate(parts)[:, None]


def _gaps(content: Content) -> tuple[NDArray[np.uint8], Bits]:
    """Distances from one entry to the next, and the entries: nonzeros, and zeros as fillers."""
    distances: list[NDArray[np.uint8]] = []
    entries: list[Bits] = []
    last = -1
    for start, block in bit_blocks(content.tensor):
        places = np.flatnonzero(block)
        gap = np.diff(places + start, prepend=last)
        if not places.size:
            continue
        last = int(places[-1]) + start
        fillers = (gap - 1) // LONGEST_GAP
        ends = np.cumsum(fillers + 1) - 1
        distance = np.full(int(ends[-1]) + 1, LONGEST_GAP, np.uint8)
        entry = np.zeros(distance.size, block.dtype)
        distance[ends] = gap - fillers * LONGEST_GAP
        entry[ends] = block[places]
        distances.append(distance)
        entries.append(entry)
    return np.concatenate(distances), np.concatenate(entries)
