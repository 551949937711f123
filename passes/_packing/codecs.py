"""Codecs: ways to store one constant, each with the nodes that decode it bit for bit.

ONNX Runtime folds nodes whose inputs are all constants before it looks for kernels, so what these
nodes compute ends as an ordinary initializer: same kernels, same speed, same memory.

    one value   value (1,)                            -> Expand
    narrow      values of a smaller type              -> Cast
    palette     indices as digits, several a byte     -> Gather (a row of digits) -> Gather
                or several a word of 3 or 4 bytes     -> Div, Mod -> Gather
    channel palettes
                int8: indices, stored by any of these -> GatherElements in a row of each channel
    codebook    int8: a byte for each vector of some  -> Gather (rows of a table)
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
from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

from .._core.channel_layout import Layout
from .._core.channel_palettes import ChannelPalettes, channel_palettes_of
from .._core.vector_codebooks import Vectors, codebook_of
from .bit_packing import (
    Digits,
    bytes_for,
    gap_entries,
    has_table_of_digits,
    index_digits,
    index_planes,
    mask_bytes,
    nonzeros,
    smallest_digits,
)
from .content import LONGEST_GAPS, Array, Bits, Content, as_type, content_of, narrowed
from .draft import Draft
from .grid import grid_of

Codec = Callable[[Content, Draft], ir.Value | None]
"""Draft a decoder of the constant; None where the codec does not fit it."""

Compute = Callable[[], Array]
"""Make what is stored, once the file is written."""

OPSET = 13
"""Least opset of the decoders: ReduceSum takes its axes as an input from then on."""

FLOAT = ir.DataType.FLOAT
INT32 = ir.DataType.INT32
UINT8 = ir.DataType.UINT8

BITS = Digits(2, 1)
HALF_BYTES = Digits(16, 1)

BYTE_WEIGHTS = np.array([[1], [2**8], [2**16]], np.int32)
"""Weights of the bytes of a word of three, to multiply rows of bytes by."""

HALF_BYTE_GAP, BYTE_GAP = LONGEST_GAPS

PADDING_BYTES = 80
"""Bytes of a Pad and of the lengths that it reads."""

ZERO = np.array([0], np.int32)
ONE = np.array([1], np.int32)
FAR_ABOVE = np.array([2**30], np.int32)

FIRST_AXIS = np.array(0, np.int64)
SECOND_AXIS = np.array(1, np.int64)
FLAT = [-1]
"""Shape of one axis, whatever the size."""


def one_value(content: Content, draft: Draft) -> ir.Value | None:
    """Every element the same."""
    values = content.palette
    if values is None:
        return None
    if values.size != 1:
        return None
    value = _table(draft, content, values)
    dims = content.dims
    return draft.node("Expand", value, dims)


def narrow(content: Content, draft: Draft) -> ir.Value | None:
    """Elements that a smaller type holds exactly."""
    if not content.narrower:
        return None
    dims = content.dims
    dtype = content.dtype
    kind = content.narrower[0]

    def compute() -> Array:
        flat = narrowed(content.tensor, kind)
        return flat.reshape(dims)

    stored = _stored(draft, compute, kind, dims)
    return _cast(draft, stored, dtype)


def palette(content: Content, draft: Draft) -> ir.Value | None:
    """Few distinct elements: indices as digits to their number as a base, into a table of them."""
    size = content.size
    values = content.palette
    if values is None:
        return None
    base = values.size
    if base < 2:
        return None
    digits = smallest_digits(base, size)

    def compute() -> Array:
        return index_digits(content, values, digits)

    if has_table_of_digits(digits, size):
        # the elements of every byte first: fewer numbers on the way
        by_byte = _table_of_digits(draft, digits)
        elements = _looked_up(draft, content, values, by_byte)
        dims = [digits.words_for(size)]
        byte = _stored_int32(draft, compute, UINT8, dims)
        decoded = draft.node("Gather", elements, byte)
    else:
        index = _digits(draft, compute, digits, size)
        decoded = _looked_up(draft, content, values, index)
    words = digits.words_for(size)
    per_word = digits.per_word
    decoded_size = words * per_word
    return _cut_to_size(draft, decoded, content, decoded_size)


def _looked_up(
    draft: Draft, content: Content, values: Bits, index: ir.Value
) -> ir.Value:
    """The element of each index (int32)."""
    numbers = np.arange(values.size)
    # indices into themselves
    if content.dtype == INT32 and np.array_equal(values, numbers):
        return index
    table = _table(draft, content, values)
    return draft.node("Gather", table, index)


def bit_planes(content: Content, draft: Draft) -> ir.Value | None:
    """The same where digits waste much (8, 32 or 64 values): a plane for each bit of an index."""
    values = content.palette
    if values is None:
        return None
    if values.size < 2:
        return None
    table = _table(draft, content, values)
    index = _from_planes(content, draft, values)
    decoded = draft.node("Gather", table, index)
    size = content.size
    count = bytes_for(size, 8)
    decoded_size = 8 * count
    return _cut_to_size(draft, decoded, content, decoded_size)


def _digits(draft: Draft, compute: Compute, digits: Digits, count: int) -> ir.Value:
    """Store `count` digits, and take them apart: (words, digits in a word) int32."""
    rows = digits.words_for(count)
    if digits.word_bytes == 3:
        by_byte = _stored_int32(draft, compute, UINT8, [rows, 3])
        words = draft.node("MatMul", by_byte, BYTE_WEIGHTS)
        return _digits_of(draft, words, digits)

    def column() -> Array:
        words = compute()
        return words[:, None]

    kind = UINT8 if digits.word_bytes == 1 else INT32
    words = _stored_int32(draft, column, kind, [rows, 1])
    return _digits_of(draft, words, digits)


def _digits_of(draft: Draft, words: ir.Value, digits: Digits) -> ir.Value:
    """Digits of words (n, 1), the lowest first."""
    base = np.array([digits.base], np.int32)
    weights = digits.weights
    shifted = draft.node("Div", words, weights)
    return draft.node("Mod", shifted, base)


def _from_planes(content: Content, draft: Draft, values: Bits) -> ir.Value:
    """Indices whose bits lie in a plane each: (bytes, 8)."""
    largest = values.size - 1
    bits = largest.bit_length()

    def compute() -> Array:
        return index_planes(content, values, bits)

    size = content.size
    count = bytes_for(size, 8)
    dims = [bits, count, 1]
    stored = _stored_int32(draft, compute, UINT8, dims)
    planes = _digits_of(draft, stored, BITS)
    exponents = np.arange(bits, dtype=np.int32)
    weights = 2**exponents
    by_plane = weights.reshape(-1, 1, 1)
    weighed = draft.node("Mul", planes, by_plane)
    axes = [0]
    return draft.node("ReduceSum", weighed, axes, keepdims=0)


def mask(content: Content, draft: Draft) -> ir.Value | None:
    """Many zeros: a bit for each element, and the elements that are not zero."""
    size = content.size
    if content.nonzeros == 0:
        return None
    if content.nonzeros == size:
        return None

    def compute() -> Array:
        return mask_bytes(content)

    count = bytes_for(size, 8)
    dims = [count]
    byte = _stored_int32(draft, compute, UINT8, dims)
    counts = draft.shared("counts", _counts)
    ranks = draft.shared("ranks", _ranks)
    # nonzeros before a byte, and the ordinal of each of its ones among those of the byte
    ones = draft.node("Gather", counts, byte)
    before = draft.node("CumSum", ones, FIRST_AXIS, exclusive=1)
    within = draft.node("Gather", ranks, byte)
    ordinals = draft.node("Add", before, within)
    # zeros are far below: they read the zero that is put before the values
    index = draft.node("Max", ordinals, ZERO)
    dtype = content.dtype
    zero = np.zeros(1, dtype.numpy())
    values = _nonzeros(content, draft)
    with_zero = draft.node("Concat", zero, values, axis=0)
    decoded = draft.node("Gather", with_zero, index)
    decoded_size = 8 * count
    return _cut_to_size(draft, decoded, content, decoded_size)


def gaps(content: Content, draft: Draft) -> ir.Value | None:
    """Nearly all zeros: distances of a byte between the elements that are not, and these."""
    if content.nonzeros == 0:
        return None

    def compute() -> Array:
        distances, _ = gap_entries(content, BYTE_GAP)
        return distances

    count = content.gap_entries[BYTE_GAP]
    dims = [count]
    steps = _stored_int32(draft, compute, UINT8, dims)
    values = _entries(content, draft, BYTE_GAP, count)
    return _scattered(content, draft, steps, values)


def short_gaps(content: Content, draft: Draft) -> ir.Value | None:
    """Mostly zeros: the same with distances of half a byte."""
    if content.nonzeros == 0:
        return None

    def compute() -> Array:
        distances, _ = gap_entries(content, HALF_BYTE_GAP)
        return HALF_BYTES.packed(distances)

    count = content.gap_entries[HALF_BYTE_GAP]
    digits = _digits(draft, compute, HALF_BYTES, count)
    steps = draft.node("Reshape", digits, FLAT)
    # a distance of 0 fills the last byte: the last nonzero once more
    fillers = count % 2
    count += fillers
    values = _entries(content, draft, HALF_BYTE_GAP, count)
    return _scattered(content, draft, steps, values)


def _entries(content: Content, draft: Draft, longest: int, count: int) -> ir.Value:
    """Store what stands behind each distance, the last element again up to `count`."""
    dtype = content.dtype

    def compute() -> Array:
        _, found = gap_entries(content, longest)
        missing = count - found.size
        behind = (0, missing)
        filled = np.pad(found, behind, mode="edge")
        return as_type(filled, dtype)

    has_fillers = content.gap_entries[longest] > content.nonzeros
    return _cheapest_part(
        content,
        draft,
        compute,
        count,
        has_zeros=has_fillers,
    )


def _scattered(
    content: Content, draft: Draft, steps: ir.Value, values: ir.Value
) -> ir.Value:
    """Zeros, and values at distances from one another."""
    places = draft.node("CumSum", steps, FIRST_AXIS)
    dtype = content.dtype
    element = dtype.numpy()
    zero = np.zeros(1, element)
    shape = [content.size]
    blank = draft.node("Expand", zero, shape)
    filled = draft.node("ScatterElements", blank, places, values)
    dims = content.dims
    return draft.node("Reshape", filled, dims)


def channel_palettes(content: Content, draft: Draft) -> ir.Value | None:
    """Few distinct elements in a channel, or in some: indices into a table of each."""
    found = channel_palettes_of(content.tensor)
    if found is None:
        return None
    codec = index_codec(found, draft)
    content_of_index = content_of(found.index)
    index = _stored_by(codec, content_of_index, draft)
    table = stored_table(draft, found.table)
    by_group = by_palettes(draft, table, index)
    return in_shape(draft, found.layout, by_group, content.dims)


def index_codec(palettes: ChannelPalettes, trial: Draft) -> Codec | None:
    """The codec that takes fewest bytes for the indices; None to store them as they are.

    `trial`: a draft of the graph that costs are counted in.
    """
    content = content_of(palettes.index)
    return _cheapest(content, INDEX_CODECS, trial)


def stored_table(draft: Draft, table: Array) -> ir.Value:
    """Store palettes (groups, values); zeros that all of them begin with are filled in at load."""
    # a byte for each, where many are more than a node and what it reads
    has_zeros = len(table) > PADDING_BYTES and not table[:, 0].any()
    if not has_zeros:
        return draft.stored(ir.Tensor(table))
    others = np.ascontiguousarray(table[:, 1:])
    stored = draft.stored(ir.Tensor(others))
    return draft.node("Pad", stored, [0, 1, 0, 0])


def by_palettes(draft: Draft, table: ir.Value, index: ir.Value) -> ir.Value:
    """The elements (groups, n) of a table (groups, values) and an index (groups, n)."""
    return draft.node("GatherElements", table, index, axis=1)


def codebook(content: Content, draft: Draft) -> ir.Value | None:
    """Few different vectors of neighbouring elements: a byte for each into a table of them."""
    found = codebook_of(content.tensor)
    if found is None:
        return None
    vectors = by_codebook(draft, found.vectors, found.index)
    return in_shape(draft, found.layout, vectors, content.dims)


def by_codebook(draft: Draft, vectors: Vectors, index: ir.TensorProtocol) -> ir.Value:
    """The vectors (n, length) of a codebook that bytes (n,) name."""
    # equal codebooks of several weights are stored once
    table = draft.constant(vectors)
    stored = draft.stored(index)
    number = _cast(draft, stored, INT32)
    return draft.node("Gather", table, number)


def in_shape(
    draft: Draft, layout: Layout, by_channel: ir.Value, dims: list[int]
) -> ir.Value:
    """Elements in the order of channels in the order and the shape `dims` of their constant."""
    if layout.outer > 1:
        first = [layout.channels, layout.outer, layout.inner]
        channels_first = draft.node("Reshape", by_channel, first)
        by_channel = draft.node("Transpose", channels_first, perm=[1, 0, 2])
    return draft.node("Reshape", by_channel, dims)


def grid(content: Content, draft: Draft) -> ir.Value | None:
    """Whole numbers times a scale, of the tensor or of each channel: the numbers, packed again."""
    if content.dtype != FLOAT:
        return None
    if content.palette is not None:
        return None
    tensor = content.tensor
    found = grid_of(tensor)
    if found is None:
        return None
    numbers = found.codes
    codes = content_of(numbers)
    codec = _cheapest(codes, INTEGER_CODECS, draft)
    stored = _stored_by(codec, codes, draft)
    whole = _cast(draft, stored, FLOAT)
    factors = ir.Tensor(found.scales)
    scales = draft.stored(factors)
    return draft.node("Mul", whole, scales)


INTEGER_CODECS: tuple[Codec, ...] = (palette, bit_planes, mask, gaps, short_gaps)
"""Codecs that the whole numbers of a grid may be stored by."""

INDEX_CODECS: tuple[Codec, ...] = (palette, mask, gaps, short_gaps)
"""Codecs of indices into palettes of channels: planes of bits would take much memory at load."""

CODECS: dict[str, Codec] = {
    "one value": one_value,
    "narrow": narrow,
    "palette": palette,
    "bit planes": bit_planes,
    "channel palettes": channel_palettes,
    "codebook": codebook,
    "mask": mask,
    "gaps": gaps,
    "short gaps": short_gaps,
    "grid": grid,
}
"""All codecs by the name that the account gives them."""

NONZERO_CODECS: tuple[Codec, ...] = (one_value, narrow, palette)
"""Codecs that the nonzeros under a mask may be stored by."""


def _nonzeros(content: Content, draft: Draft) -> ir.Value:
    """Store the elements that are not zero: (nonzeros,)."""
    dtype = content.dtype

    def compute() -> Array:
        found = nonzeros(content)
        return as_type(found, dtype)

    count = content.nonzeros
    return _cheapest_part(
        content,
        draft,
        compute,
        count,
        has_zeros=False,
    )


def _cheapest_part(
    content: Content, draft: Draft, compute: Compute, size: int, has_zeros: bool
) -> ir.Value:
    """Store `size` elements of a constant in the cheapest way, zeros among them or not."""
    dims = [size]
    dtype = content.dtype
    tensor = _lazy(compute, dtype, dims)
    palette = content.palette
    if palette is not None and not has_zeros:
        # a digit fewer to tell apart: at three bits a tenth of the bytes
        palette = palette[palette != 0]
    part = dataclasses.replace(content, tensor=tensor, size=size, palette=palette)
    # counted as if it shared nothing with the graph
    alone = Draft({})
    codec = _cheapest(part, NONZERO_CODECS, alone)
    return _stored_by(codec, part, draft)


def _cheapest(content: Content, codecs: Sequence[Codec], trial: Draft) -> Codec | None:
    """The codec that takes fewest bytes for a tensor; None to store it as it is.

    `trial`: a draft of the graph that costs are counted in.
    """
    best = None
    cheapest = content.tensor.nbytes
    for codec in codecs:
        alone = trial.copy()
        if codec(content, alone) is None:
            continue
        nbytes = alone.nbytes()
        if nbytes < cheapest:
            best = codec
            cheapest = nbytes
    return best


def _stored_by(codec: Codec | None, content: Content, draft: Draft) -> ir.Value:
    """Store a tensor by a codec that fits it, or as it is."""
    if codec is None:
        return draft.stored(content.tensor)
    stored = codec(content, draft)
    assert stored is not None
    return stored


def _table_of_digits(draft: Draft, digits: Digits) -> ir.Value:
    """Digits of every byte, the lowest first: (256, digits) int32, by nodes that are smaller."""

    def make(draft: Draft) -> ir.Value:
        every_byte = draft.shared("bytes", _every_byte)
        return _digits_of(draft, every_byte, digits)

    return draft.shared(f"digits to {digits.base}", make)


def _every_byte(draft: Draft) -> ir.Value:
    """Numbers from 0 to 255: (256, 1) int32."""
    column = [256, 1]
    ones = draft.node("Expand", ONE, column)
    return draft.node("CumSum", ones, FIRST_AXIS, exclusive=1)


def _counts(draft: Draft) -> ir.Value:
    """Ones among the bits of each byte: (256, 1) int32."""
    bits = _table_of_digits(draft, BITS)
    axes = [1]
    return draft.node("ReduceSum", bits, axes, keepdims=1)


def _ranks(draft: Draft) -> ir.Value:
    """Ordinal of each one among the bits of a byte, from 1; far below zero for bits that are 0.

    Shape (256, 8) int32.
    """
    bits = _table_of_digits(draft, BITS)
    ordinals = draft.node("CumSum", bits, SECOND_AXIS)
    unset = draft.node("Sub", bits, ONE)
    far_below = draft.node("Mul", unset, FAR_ABOVE)
    return draft.node("Add", ordinals, far_below)


def _cut_to_size(
    draft: Draft, decoded: ir.Value, content: Content, size: int
) -> ir.Value:
    """The first elements of `size` decoded ones, in the constant's shape."""
    if size != content.size:
        flat = draft.node("Reshape", decoded, FLAT)
        start = [0]
        stop = [content.size]
        decoded = draft.node("Slice", flat, start, stop)
    dims = content.dims
    return draft.node("Reshape", decoded, dims)


def _cast(draft: Draft, value: ir.Value, dtype: ir.DataType) -> ir.Value:
    number = int(dtype)
    return draft.node("Cast", value, to=number)


def _table(draft: Draft, content: Content, bits: Bits) -> ir.Value:
    """Store some elements, given by their bits."""
    dtype = content.dtype
    elements = as_type(bits, dtype)
    tensor = ir.Tensor(elements)
    return draft.stored(tensor)


def _stored(
    draft: Draft, compute: Compute, dtype: ir.DataType, dims: list[int]
) -> ir.Value:
    """Store what `compute` gives once the file is written."""
    tensor = _lazy(compute, dtype, dims)
    return draft.stored(tensor)


def _stored_int32(
    draft: Draft, compute: Compute, dtype: ir.DataType, dims: list[int]
) -> ir.Value:
    """The same as int32: the type of indices, and the least one that runtimes compute with."""
    stored = _stored(draft, compute, dtype, dims)
    if dtype == INT32:
        return stored
    return _cast(draft, stored, INT32)


def _lazy(compute: Compute, dtype: ir.DataType, dims: list[int]) -> ir.LazyTensor:
    def tensor() -> ir.TensorProtocol:
        array = compute()
        return ir.Tensor(array, dtype=dtype)

    shape = ir.Shape(dims)
    return ir.LazyTensor(tensor, dtype=dtype, shape=shape)
