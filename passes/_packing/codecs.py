"""Codecs: ways to store one constant, each with the nodes that decode it bit for bit.

ONNX Runtime folds nodes whose inputs are all constants before it looks for kernels, so what these
nodes compute ends as an ordinary initializer: same kernels, same speed, same memory.

    one value   value (1,)                            -> Expand
    narrow      values of a smaller type              -> Cast
    palette     indices as digits, several a word     -> Div, Mod -> Gather
    bit planes  a plane for each bit of an index      -> Div, Mod, ReduceSum -> Gather
    mask        a bit an element, the nonzeros        -> CumSum of the bits -> Gather
    gaps        distances between nonzeros, nonzeros  -> CumSum -> ScatterElements
    short gaps  distances of half a byte              -> Div, Mod, then as gaps
    grid        int8 numbers and their scales         -> Cast -> Mul

The nonzeros of a mask and of gaps may be stored by narrow or palette again, the numbers of a grid
by any other.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .bit_packing import (
    Digits,
    bytes_for,
    gap_entries,
    index_digits,
    index_planes,
    mask_bytes,
    nonzeros,
    smallest_digits,
)
from .content import Bits, Content, as_type, content_of, narrowed
from .draft import Draft
from .grid import grid_of

Codec = Callable[[Content, Draft], ir.Value | None]
"""Draft a decoder of the constant; None where the codec does not fit it."""

OPSET = 13
"""Least opset of the decoders: ReduceSum takes its axes as an input from then on."""

UINT8 = ir.DataType.UINT8

BITS = Digits(2, np.dtype(np.uint8))
HALF_BYTES = Digits(16, np.dtype(np.uint8))


def one_value(content: Content, draft: Draft) -> ir.Value | None:
    """Every element the same."""
    if content.palette is None or content.palette.size != 1:
        return None
    value = _table(draft, content, content.palette)
    shape = _shape(draft, content.dims)
    return draft.node("Expand", [value, shape])


def narrow(content: Content, draft: Draft) -> ir.Value | None:
    """Elements that a smaller type holds exactly."""
    if not content.narrower:
        return None
    kind = content.narrower[0]

    def compute() -> NDArray[Any]:
        flat = narrowed(content.tensor, kind)
        return flat.reshape(content.dims)

    stored = _stored(draft, compute, kind, content.dims)
    return draft.node("Cast", [stored], to=int(content.dtype))


def palette(content: Content, draft: Draft) -> ir.Value | None:
    """Few distinct elements: indices as digits to their number as a base, into a table of them."""
    values = content.palette
    if values is None or values.size < 2:
        return None
    table = _table(draft, content, values)
    digits = smallest_digits(values.size, content.size)

    def compute() -> NDArray[Any]:
        return index_digits(content, values, digits)

    index = _digits(draft, compute, digits, content.size)
    decoded = _looked_up(draft, table, index)
    size = digits.per_word * digits.words_for(content.size)
    return _cut_to_size(draft, decoded, content, size)


def bit_planes(content: Content, draft: Draft) -> ir.Value | None:
    """The same where digits waste much (8, 32 or 64 values): a plane for each bit of an index."""
    values = content.palette
    if values is None or values.size < 2:
        return None
    table = _table(draft, content, values)
    index = _from_planes(content, draft, values)
    decoded = _looked_up(draft, table, index)
    return _cut_to_size(draft, decoded, content, 8 * bytes_for(content.size, 8))


def _digits(
    draft: Draft, compute: Callable[[], NDArray[Any]], digits: Digits, count: int
) -> ir.Value:
    """Store `count` digits, and take them apart: (words, digits in a word) int32."""

    def column() -> NDArray[Any]:
        return compute()[:, None]

    kind = ir.DataType.from_numpy(digits.word)
    words = _stored(draft, column, kind, [digits.words_for(count), 1])
    if kind != ir.DataType.INT32:
        words = _as_int32(draft, words)
    return _digits_of(draft, words, digits)


def _digits_of(draft: Draft, words: ir.Value, digits: Digits) -> ir.Value:
    """Digits of words (n, 1), the lowest first."""
    shifted = draft.node("Div", [words, draft.constant(digits.weights)])
    return draft.node("Mod", [shifted, _number(draft, digits.base)])


def _from_planes(content: Content, draft: Draft, values: Bits) -> ir.Value:
    """Indices whose bits lie in a plane each: (bytes, 8)."""
    bits = int(values.size - 1).bit_length()
    count = bytes_for(content.size, 8)

    def compute() -> NDArray[Any]:
        return index_planes(content, values, bits)

    stored = _stored(draft, compute, UINT8, [bits, count, 1])
    powers = 2 ** np.arange(8, dtype=np.int32)
    wide = _as_int32(draft, stored)
    shifted = draft.node("Div", [wide, draft.constant(powers)])
    planes = draft.node("Mod", [shifted, _number(draft, 2)])
    weights = 2 ** np.arange(bits, dtype=np.int32)
    by_plane = draft.constant(weights.reshape(-1, 1, 1))
    weighed = draft.node("Mul", [planes, by_plane])
    axis = draft.constant(np.array([0], np.int64))
    return draft.node("ReduceSum", [weighed, axis], keepdims=0)


def mask(content: Content, draft: Draft) -> ir.Value | None:
    """Many zeros: a bit for each element, and the elements that are not zero."""
    if not 0 < content.nonzeros < content.size:
        return None
    count = bytes_for(content.size, 8)

    def compute() -> NDArray[Any]:
        return mask_bytes(content)

    stored = _stored(draft, compute, UINT8, [count])
    byte = _as_int32(draft, stored)
    counts = draft.shared("counts", lambda: _counts(draft))
    ranks = draft.shared("ranks", lambda: _ranks(draft))
    # nonzeros before a byte, and the ordinal of each of its ones among those of the byte
    before = _running_sum(draft, _looked_up(draft, counts, byte), exclusive=1)
    within = _looked_up(draft, ranks, byte)
    ordinals = draft.node("Add", [before, within])
    # zeros are far below: they read the zero that stands before the values
    index = draft.node("Max", [ordinals, _number(draft, 0)])
    decoded = _looked_up(draft, _nonzeros(content, draft), index)
    return _cut_to_size(draft, decoded, content, 8 * count)


def gaps(content: Content, draft: Draft) -> ir.Value | None:
    """Nearly all zeros: distances of a byte between the elements that are not, and these."""
    return _gaps(content, draft, 255)


def short_gaps(content: Content, draft: Draft) -> ir.Value | None:
    """Mostly zeros: the same with distances of half a byte."""
    return _gaps(content, draft, 15)


def _gaps(content: Content, draft: Draft, longest: int) -> ir.Value | None:
    if content.nonzeros == 0:
        return None
    count = content.gap_entries[longest]
    is_short = longest < 16

    def distances() -> NDArray[Any]:
        gaps = gap_entries(content, longest)[0]
        return HALF_BYTES.packed(gaps) if is_short else gaps

    if is_short:
        digits = _digits(draft, distances, HALF_BYTES, count)
        # a distance of 0 fills the last byte: the last nonzero once more
        count += count % 2
        steps = draft.node("Reshape", [digits, _shape(draft, [-1])])
    else:
        steps = _as_int32(draft, _stored(draft, distances, UINT8, [count]))

    def entries() -> NDArray[Any]:
        found = gap_entries(content, longest)[1]
        found = np.pad(found, (0, count - found.size), mode="edge")
        return as_type(found, content.dtype)

    values = _cheapest(content, draft, entries, count)
    places = _running_sum(draft, steps)
    zero = draft.constant(np.zeros(1, content.dtype.numpy()))
    blank = draft.node("Expand", [zero, _shape(draft, [content.size])])
    filled = draft.node("ScatterElements", [blank, places, values])
    return draft.node("Reshape", [filled, _shape(draft, content.dims)])


def grid(content: Content, draft: Draft) -> ir.Value | None:
    """Whole numbers times a scale, of the tensor or of each channel: the numbers, packed again."""
    if content.dtype != ir.DataType.FLOAT or content.palette is not None:
        return None
    found = grid_of(content.tensor)
    if found is None:
        return None
    codes = content_of(found.codes)
    best: Codec | None = None
    cheapest = found.codes.nbytes
    for codec in INTEGER_CODECS:
        alone = draft.copy()
        fits = codec(codes, alone) is not None
        if fits and alone.nbytes() < cheapest:
            best = codec
            cheapest = alone.nbytes()
    stored = draft.stored(found.codes) if best is None else best(codes, draft)
    assert stored is not None
    whole = draft.node("Cast", [stored], to=int(ir.DataType.FLOAT))
    scales = draft.stored(ir.Tensor(found.scales))
    return draft.node("Mul", [whole, scales])


INTEGER_CODECS: tuple[Codec, ...] = (palette, bit_planes, mask, gaps, short_gaps)
"""Codecs that the whole numbers of a grid may be stored by."""

CODECS: dict[str, Codec] = {
    "one value": one_value,
    "narrow": narrow,
    "palette": palette,
    "bit planes": bit_planes,
    "mask": mask,
    "gaps": gaps,
    "short gaps": short_gaps,
    "grid": grid,
}
"""All codecs by the name that the account gives them."""

NONZERO_CODECS = (narrow, palette)
"""Codecs that the nonzeros under a mask may be stored by."""


def _nonzeros(content: Content, draft: Draft) -> ir.Value:
    """Store a zero and the elements that are none: (nonzeros + 1,)."""

    def compute() -> NDArray[Any]:
        return as_type(nonzeros(content), content.dtype)

    return _cheapest(content, draft, compute, content.nonzeros + 1)


def _cheapest(
    content: Content, draft: Draft, compute: Callable[[], NDArray[Any]], size: int
) -> ir.Value:
    """Store `size` elements of a constant, some zeros among them, in the cheapest way."""
    tensor = _lazy(compute, content.dtype, [size])
    inner = dataclasses.replace(content, tensor=tensor, size=size)
    best = None
    cheapest = tensor.nbytes
    for codec in NONZERO_CODECS:
        alone = Draft({})
        fits = codec(inner, alone) is not None
        if fits and alone.nbytes() < cheapest:
            best = codec
            cheapest = alone.nbytes()
    stored = draft.stored(tensor) if best is None else best(inner, draft)
    assert stored is not None
    return stored


def _bits_of_bytes(draft: Draft) -> ir.Value:
    """Bits of every byte, the lowest first: (256, 8) int32; nodes are smaller than the table."""
    ones = draft.node("Expand", [_number(draft, 1), _shape(draft, [256, 1])])
    every_byte = _running_sum(draft, ones, exclusive=1)
    return _digits_of(draft, every_byte, BITS)


def _counts(draft: Draft) -> ir.Value:
    """Ones among the bits of each byte: (256, 1) int32."""
    bits = draft.shared("bits", lambda: _bits_of_bytes(draft))
    axis = draft.constant(np.array([1], np.int64))
    return draft.node("ReduceSum", [bits, axis], keepdims=1)


def _ranks(draft: Draft) -> ir.Value:
    """Ordinal of each one among the bits of a byte, from 1; far below zero for bits that are 0.

    Shape (256, 8) int32.
    """
    bits = draft.shared("bits", lambda: _bits_of_bytes(draft))
    axis = draft.constant(np.array(1, np.int64))
    ordinals = draft.node("CumSum", [bits, axis])
    unset = draft.node("Sub", [bits, _number(draft, 1)])
    far_below = draft.node("Mul", [unset, _number(draft, 2**30)])
    return draft.node("Add", [ordinals, far_below])


def _cut_to_size(
    draft: Draft, decoded: ir.Value, content: Content, size: int
) -> ir.Value:
    """The first elements of `size` decoded ones, in the constant's shape."""
    if size != content.size:
        flat = draft.node("Reshape", [decoded, _shape(draft, [-1])])
        start = _shape(draft, [0])
        stop = _shape(draft, [content.size])
        decoded = draft.node("Slice", [flat, start, stop])
    return draft.node("Reshape", [decoded, _shape(draft, content.dims)])


def _looked_up(draft: Draft, table: ir.Value, index: ir.Value) -> ir.Value:
    """Rows of a table."""
    return draft.node("Gather", [table, index])


def _running_sum(draft: Draft, value: ir.Value, **attributes: int) -> ir.Value:
    """Sums along the first axis."""
    axis = draft.constant(np.array(0, np.int64))
    return draft.node("CumSum", [value, axis], **attributes)


def _as_int32(draft: Draft, value: ir.Value) -> ir.Value:
    """The type of indices, and the least one that runtimes compute with."""
    return draft.node("Cast", [value], to=int(ir.DataType.INT32))


def _number(draft: Draft, number: int) -> ir.Value:
    return draft.constant(np.array([number], np.int32))


def _shape(draft: Draft, dims: list[int]) -> ir.Value:
    return draft.constant(np.array(dims, np.int64))


def _table(draft: Draft, content: Content, bits: Bits) -> ir.Value:
    """Store some elements, given by their bits."""
    elements = as_type(bits, content.dtype)
    return draft.stored(ir.Tensor(elements))


def _stored(
    draft: Draft,
    compute: Callable[[], NDArray[Any]],
    dtype: ir.DataType,
    dims: list[int],
) -> ir.Value:
    """Store what `compute` gives once the file is written."""
    return draft.stored(_lazy(compute, dtype, dims))


def _lazy(
    compute: Callable[[], NDArray[Any]], dtype: ir.DataType, dims: list[int]
) -> ir.LazyTensor:
    def tensor() -> ir.TensorProtocol:
        return ir.Tensor(compute(), dtype=dtype)

    return ir.LazyTensor(
        tensor,
        dtype=dtype,
        shape=ir.Shape(dims),
    )
