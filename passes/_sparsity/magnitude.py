"""The exact k-th smallest magnitude of tensors that are streamed, in constant memory.

Magnitudes are compared as unsigned integers: the bits of a float without its sign grow with its
absolute value. A sample brackets the k-th; one pass counts what lies below the bracket and keeps
what lies inside; the bracket is partitioned. Where the sample misled or ties overflow the bracket,
radix selection on 16 bits at a time takes over.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import blocks, map_blocks

Keys = NDArray[np.unsignedinteger[Any]]
KeyKind = type[np.uint32] | type[np.uint64]
T = TypeVar("T")

FLOAT_OF: dict[KeyKind, type[np.floating[Any]]] = {
    np.uint32: np.float32,
    np.uint64: np.float64,
}
_INFINITY: dict[KeyKind, int] = {
    np.uint32: 0x7F80_0000,
    np.uint64: 0x7FF0_0000_0000_0000,
}
_UNSIGNED: dict[KeyKind, int] = {
    np.uint32: 0x7FFF_FFFF,
    np.uint64: 0x7FFF_FFFF_FFFF_FFFF,
}

_WHOLE = 1 << 18
"""Elements of the largest pool that needs no sample: a bracket holds all of it."""

_SAMPLE = (1 << 16, 1 << 20)
"""Elements sampled, at least and at most; chosen by hand, not measured."""

_CHUNK = 64
"""Neighbouring elements read together when a file is sampled; chosen by hand, not measured."""

_BRACKET = 1 << 23
"""Elements of a bracket kept at most: 32 MiB of float32. More means ties or a bad sample."""

_held = threading.local()


class NonFiniteError(Exception):
    """A tensor of the pool holds NaN or infinity and has no order; `index` says which."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Ranked:
    """The k-th smallest magnitude, and its place among the elements of the pool.

    `key`: its key. `below`: how many elements are smaller. `equal`: how many are equal.
    """

    key: int
    below: int
    equal: int


def key_kind(tensors: Sequence[ir.TensorProtocol]) -> KeyKind:
    """The key type in which all of these tensors compare exactly.

    64 bits if any is double, else 32.
    """
    for tensor in tensors:
        if tensor.dtype == ir.DataType.DOUBLE:
            return np.uint64
    return np.uint32


def magnitudes(block: NDArray[Any], kind: KeyKind, scratch: bool = False) -> Keys:
    """|block| as keys, of the same shape; conversions are exact (float16 and bfloat16 widen).

    A fresh array, or with `scratch` one that the next such call on this thread overwrites:
    allocating a megabyte for every block costs more than the arithmetic.
    """
    floats = np.ascontiguousarray(block, FLOAT_OF[kind])
    wide = floats.view(kind)
    out = None
    if scratch:
        flat = _scratch("keys", wide.size, kind)
        out = flat.reshape(wide.shape)
    without_sign = kind(_UNSIGNED[kind])
    keys: Keys = np.bitwise_and(wide, without_sign, out=out)
    return keys


def compared(
    compare: np.ufunc, keys: Keys, key: int, kind: KeyKind
) -> NDArray[np.bool_]:
    """compare(keys, key) in scratch memory that the next call on this thread overwrites."""
    flat = _scratch("mask", keys.size, np.bool_)
    mask = flat.reshape(keys.shape)
    compare(keys, kind(key), out=mask)
    return cast("NDArray[np.bool_]", mask)


def _scratch(name: str, size: int, kind: type[Any]) -> NDArray[Any]:
    # thread-local, since pools are pruned on several threads at once
    held = _held.__dict__.setdefault(name, {})
    array: NDArray[Any] | None = held.get(kind)
    if array is None or array.size < size:
        array = np.empty(size, kind)
        held[kind] = array
    return array[:size]


def is_finite(keys: Keys) -> bool:
    """True if none of the keys is that of NaN or infinity."""
    if not keys.size:
        return True
    # the exponent of both is all ones, above that of every number
    infinity = _INFINITY[keys.dtype.type]
    return int(keys.max()) < infinity


def key_of(value: float, kind: KeyKind) -> int:
    """The key of one magnitude, rounded to the kind's float."""
    keys = magnitudes(np.array([value]), kind)
    return int(keys[0])


def value_of(key: int | Keys, kind: KeyKind) -> NDArray[Any]:
    """The magnitude behind a key."""
    bits = np.asarray(key, kind)
    return bits.view(FLOAT_OF[kind])


def kth_smallest(tensors: Sequence[ir.TensorProtocol], k: int) -> Ranked:
    """The k-th smallest magnitude (k from 1) over all elements of `tensors` together, exactly.

    Errors: NonFiniteError where an element is NaN or infinite.
    """
    kind = key_kind(tensors)
    size = sum(tensor.size for tensor in tensors)
    assert 1 <= k <= size, f"rank {k} of {size}"
    low = 0
    high = _INFINITY[kind]
    if size > _WHOLE:
        sample = sample_of(tensors, size, kind)
        low, high = _bracket(sample, k / size)
    found = _within(
        tensors,
        k,
        low,
        high,
        kind,
    )
    return found or _radix(tensors, k, kind)


def count_zeros(tensors: Sequence[ir.TensorProtocol]) -> int:
    """Elements equal to zero. Errors: NonFiniteError."""
    zeros = 0
    kind = key_kind(tensors)
    for size, nonzero in _map_keys(
        lambda keys: (keys.size, int(np.count_nonzero(keys))), tensors, kind
    ):
        zeros += size - nonzero
    return zeros


def cut_ties(tensors: Sequence[ir.TensorProtocol], key: int, ties: int) -> list[int]:
    """The end, in each tensor, of the pool's first `ties` elements equal to `key`.

    Elements equal to `key` at flat indices below a tensor's cut are among them.
    """
    kind = key_kind(tensors)
    cuts = []
    for tensor in tensors:
        if ties == 0:
            cuts.append(0)
            continue
        cut, ties = _cut(tensor, key, ties, kind)
        cuts.append(cut)
    assert ties == 0, f"{ties} ties not found"
    return cuts


def _cut(
    tensor: ir.TensorProtocol, key: int, ties: int, kind: KeyKind
) -> tuple[int, int]:
    """(cut of one tensor, ties left for the tensors after it)."""
    for start, block in blocks(tensor):
        keys = magnitudes(block, kind)
        at = np.flatnonzero(keys == kind(key))
        if at.size >= ties:
            last = int(at[ties - 1])
            return start + last + 1, 0
        ties -= at.size
    return tensor.size, ties


def _stream(tensors: Sequence[ir.TensorProtocol], kind: KeyKind) -> Iterator[Keys]:
    for index, tensor in enumerate(tensors):
        for _, block in blocks(tensor):
            yield _finite(block, kind, index)


def _map_keys(
    function: Callable[[Keys], T], tensors: Sequence[ir.TensorProtocol], kind: KeyKind
) -> Iterator[T]:
    """Yield function(keys) of each of `_stream`, in order, several computed at once."""
    for index, tensor in enumerate(tensors):

        def computed(block: NDArray[Any], start: int, index: int = index) -> T:
            return function(_finite(block, kind, index))

        yield from map_blocks(computed, tensor)


def _finite(block: NDArray[Any], kind: KeyKind, index: int) -> Keys:
    """Magnitudes of a block of tensor number `index`, in scratch memory."""
    keys = magnitudes(block, kind, scratch=True)
    if not is_finite(keys):
        raise NonFiniteError(index)
    return keys


def _within(
    tensors: Sequence[ir.TensorProtocol], k: int, low: int, high: int, kind: KeyKind
) -> Ranked | None:
    """Rank k if it lies in [low, high] and the bracket fits into memory, else None.

    A bracket of one key, whose elements are all alike, is only counted.
    """

    def counted(keys: Keys) -> tuple[int, int, Keys]:
        is_below = compared(
            np.less,
            keys,
            low,
            kind,
        )
        below = int(np.count_nonzero(is_below))
        # unsigned: keys below `low` wrap around, beyond every key of the bracket
        np.subtract(keys, kind(low), out=keys)
        hit = compared(
            np.less_equal,
            keys,
            high - low,
            kind,
        )
        if low == high:
            return below, int(np.count_nonzero(hit)), keys[:0]
        hits = keys[np.flatnonzero(hit)]
        return below, hits.size, hits

    below = inside = 0
    kept: list[Keys] = []
    for smaller, within, hits in _map_keys(counted, tensors, kind):
        below += smaller
        inside += within
        kept.append(hits)
        if inside > _BRACKET and low < high:
            return None
    if k <= below or k > below + inside:
        return None
    if low == high:
        return Ranked(low, below, inside)
    pool = np.concatenate(kept)
    place = k - below - 1
    pool.partition(place)
    key = pool[place]
    smaller = int(np.count_nonzero(pool < key))
    equal = int(np.count_nonzero(pool == key))
    return Ranked(
        low + int(key),
        below + smaller,
        equal,
    )


def _bracket(sample: Keys, fraction: float) -> tuple[int, int]:
    """Keys that hold the quantile `fraction` of the pool between them.

    Four standard errors of the sample's quantile on either side, and eight elements more where the
    normal approximation is poor.
    """
    sample = np.sort(sample)
    size = sample.size
    kind: KeyKind = sample.dtype.type
    centre = fraction * size
    variance = size * fraction * (1 - fraction)
    deviation = float(np.sqrt(variance))
    reach = 4 * deviation + 8
    first = int(centre - reach)
    last = int(centre + reach) + 1
    low = 0
    if first >= 0:
        low = int(sample[first])
    high = _INFINITY[kind]
    if last < size:
        high = int(sample[last])
    return low, high


def sample_of(tensors: Sequence[ir.TensorProtocol], size: int, kind: KeyKind) -> Keys:
    """About 64 K elements of a pool, each tensor by its share.

    More of a large pool: the bracket holds about 8 sqrt(f (1 - f) / sample) of it, and must fit
    into memory.
    """
    growing = (size / 500_000) ** 2
    wanted = int(np.clip(growing, *_SAMPLE))
    # a fixed seed: which elements are looked at must not change between runs
    random = np.random.default_rng(0)
    found = []
    for tensor in tensors:
        count = max(wanted * tensor.size // size, 1)
        if isinstance(tensor, ir.ExternalTensor):
            values = _sample_file(tensor, count, random)
            found.append(magnitudes(values, kind))
            continue
        if not tensor.size:
            continue
        stride = max(tensor.size // count, 1)
        for start, block in blocks(tensor):
            # blocks need not start at a multiple of the stride
            first = -start % stride
            values = block[first::stride]
            found.append(magnitudes(values, kind))
    return np.concatenate(found)


def _sample_file(
    tensor: ir.ExternalTensor, count: int, random: np.random.Generator
) -> NDArray[Any]:
    """At least `count` elements of a file, in short runs, one in each equal stretch of it."""
    dtype = np.dtype(tensor.dtype.numpy())
    chunk = min(_CHUNK, tensor.size)
    runs = -(-count // chunk)
    jitter = random.random(runs)
    positions = (np.arange(runs) + jitter) / runs
    last_start = tensor.size - chunk
    starts = (positions * last_start).astype(np.int64)
    out = np.empty(runs * chunk, dtype)
    view = out.view(np.uint8).data
    length = chunk * dtype.itemsize
    base = tensor.offset or 0
    with open(tensor.path, "rb", buffering=0) as file:
        for run, start in enumerate(starts):
            offset = int(start) * dtype.itemsize
            file.seek(base + offset)
            first = run * length
            end = first + length
            got = file.readinto(view[first:end])
            if got != length:
                raise OSError(f"{tensor.path}: ends inside tensor '{tensor.name}'")
    if not np.little_endian:
        return out.byteswap()
    return out


def _radix(tensors: Sequence[ir.TensorProtocol], k: int, kind: KeyKind) -> Ranked:
    """Rank k by counting 16 bits at a time from the top: one pass over the pool for each."""
    bits = np.dtype(kind).itemsize * 8
    top = bits - 16
    values = 1 << 16
    prefix = below = equal = 0
    for shift in range(top, -1, -16):
        counts = np.zeros(values, np.int64)
        for keys in _stream(tensors, kind):
            # from the second digit on, only keys that begin with the digits found so far count
            if shift < top:
                begins = keys >> kind(shift + 16)
                keys = keys[begins == kind(prefix)]
            shifted = keys >> kind(shift)
            digits = shifted & kind(0xFFFF)
            found = digits.astype(np.intp)
            counts += np.bincount(found, minlength=values)
        up_to = np.cumsum(counts)
        rank = k - below
        digit = int(np.searchsorted(up_to, rank))
        prefix = prefix << 16 | digit
        equal = int(counts[digit])
        below += int(up_to[digit]) - equal
    return Ranked(prefix, below, equal)
