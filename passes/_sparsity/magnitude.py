"""The exact k-th smallest magnitude of tensors that are streamed, in constant memory.

Magnitudes are compared as unsigned integers: the bits of a float without its sign grow with its
absolute value. A sample brackets the k-th; one pass counts what lies below the bracket and keeps
what lies inside; the bracket is partitioned. Where the sample misled or ties overflow the bracket,
radix selection on 16 bits at a time takes over.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .._core.lazy import blocks

Keys = NDArray[np.unsignedinteger[Any]]
KeyKind = type[np.uint32] | type[np.uint64]

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

_WHOLE = 1 << 18  # pools up to this many elements are their own sample
_SAMPLE = (1 << 16, 1 << 20)  # elements sampled: least, most
_CHUNK = 64  # neighbouring elements read together when sampling a file
_BRACKET = 1 << 23  # elements kept at most; more means ties or a bad sample

_held = threading.local()


class NonFiniteError(Exception):
    """A tensor of the pool holds NaN or infinity and has no order; `index` says which."""

    def __init__(self, index: int) -> None:
        super().__init__(index)
        self.index = index


@dataclass(frozen=True)
class Ranked:
    """The k-th smallest magnitude as a key, and how many elements are smaller than it and equal to
    it.
    """

    key: int
    below: int
    equal: int


def key_kind(tensors: Sequence[ir.TensorProtocol]) -> KeyKind:
    """The key type in which all of these tensors compare exactly: 64 bits if any is double, else
    32.
    """
    return (
        np.uint64 if any(t.dtype == ir.DataType.DOUBLE for t in tensors) else np.uint32
    )


def magnitudes(block: NDArray[Any], kind: KeyKind, scratch: bool = False) -> Keys:
    """|block| as keys, of the same shape; conversions are exact (float16 and bfloat16 widen).

    A fresh array, or with `scratch` one that the next such call on this thread overwrites:
    allocating a megabyte for every block costs more than the arithmetic.
    """
    wide = np.ascontiguousarray(block, FLOAT_OF[kind]).view(kind)
    out = _scratch("keys", wide.size, kind).reshape(wide.shape) if scratch else None
    keys: Keys = np.bitwise_and(wide, kind(_UNSIGNED[kind]), out=out)
    return keys


def compared(
    compare: np.ufunc, keys: Keys, key: int, kind: KeyKind
) -> NDArray[np.bool_]:
    """compare(keys, key) in scratch memory that the next call on this thread overwrites."""
    mask = _scratch("mask", keys.size, np.bool_).reshape(keys.shape)
    return cast("NDArray[np.bool_]", compare(keys, kind(key), out=mask))


def _scratch(name: str, size: int, kind: type[Any]) -> NDArray[Any]:
    held = _held.__dict__.setdefault(name, {})
    if kind not in held or held[kind].size < size:
        held[kind] = np.empty(size, kind)
    array: NDArray[Any] = held[kind][:size]
    return array


def is_finite(keys: Keys) -> bool:
    """Whether none of the keys is that of NaN or infinity."""
    return not keys.size or int(keys.max()) < _INFINITY[keys.dtype.type]


def key_of(value: float, kind: KeyKind) -> int:
    """The key of one magnitude, rounded to the kind's float."""
    return int(magnitudes(np.array([value]), kind)[0])


def value_of(key: int | Keys, kind: KeyKind) -> NDArray[Any]:
    """The magnitude behind a key."""
    return np.asarray(key, kind).view(FLOAT_OF[kind])


def kth_smallest(tensors: Sequence[ir.TensorProtocol], k: int) -> Ranked:
    """The k-th smallest magnitude (k from 1) over all elements of `tensors` together, exactly.

    Errors: NonFiniteError where an element is NaN or infinite.
    """
    kind, size = key_kind(tensors), sum(t.size for t in tensors)
    assert 1 <= k <= size, f"rank {k} of {size}"
    low, high = (
        (0, _INFINITY[kind])
        if size <= _WHOLE
        else _bracket(_sample(tensors, size, kind), k / size)
    )
    return _within(tensors, k, low, high, kind) or _radix(tensors, k, kind)


def count_zeros(tensors: Sequence[ir.TensorProtocol]) -> int:
    """Elements equal to zero. Errors: NonFiniteError."""
    kind = key_kind(tensors)
    return sum(
        keys.size - int(np.count_nonzero(keys)) for keys in _stream(tensors, kind)
    )


def cut_ties(tensors: Sequence[ir.TensorProtocol], key: int, ties: int) -> list[int]:
    """For each tensor the flat index before which elements equal to `key` are among the first
    `ties` of the pool.
    """
    kind, cuts = key_kind(tensors), []
    for tensor in tensors:
        cut = tensor.size if ties else 0
        for start, block in blocks(tensor) if ties else ():
            at = np.flatnonzero(magnitudes(block, kind) == kind(key))
            if at.size >= ties:
                cut, ties = start + int(at[ties - 1]) + 1, 0
                break
            ties -= at.size
        cuts.append(cut)
    assert ties == 0, f"{ties} ties not found"
    return cuts


def _stream(tensors: Sequence[ir.TensorProtocol], kind: KeyKind) -> Iterator[Keys]:
    for index, tensor in enumerate(tensors):
        for _, block in blocks(tensor):
            keys = magnitudes(block, kind, scratch=True)
            if not is_finite(keys):
                raise NonFiniteError(index)
            yield keys


def _within(
    tensors: Sequence[ir.TensorProtocol], k: int, low: int, high: int, kind: KeyKind
) -> Ranked | None:
    """Rank k if it lies in [low, high] and the bracket fits, else None. A bracket of one key is
    only counted.
    """
    below, inside, kept = 0, 0, []
    for keys in _stream(tensors, kind):
        below += int(np.count_nonzero(compared(np.less, keys, low, kind)))
        np.subtract(keys, kind(low), out=keys)  # wraps around below `low`
        hit = compared(np.less_equal, keys, high - low, kind)
        if low == high:
            inside += int(np.count_nonzero(hit))
            continue
        kept.append(keys[np.flatnonzero(hit)])
        inside += kept[-1].size
        if inside > _BRACKET:
            return None
    if not below < k <= below + inside:
        return None
    if low == high:
        return Ranked(low, below, inside)
    pool = np.concatenate(kept)
    pool.partition(k - below - 1)
    key = pool[k - below - 1]
    return Ranked(
        low + int(key),
        below + int(np.count_nonzero(pool < key)),
        int(np.count_nonzero(pool == key)),
    )


def _bracket(sample: Keys, fraction: float) -> tuple[int, int]:
    """Keys that hold the quantile `fraction` of the pool between them, four standard errors either
    side.
    """
    sample = np.sort(sample)
    centre = fraction * sample.size
    reach = 4 * float(np.sqrt(sample.size * fraction * (1 - fraction))) + 8
    low, high = int(centre - reach), int(centre + reach) + 1
    kind: KeyKind = sample.dtype.type
    return (
        int(sample[low]) if low >= 0 else 0,
        int(sample[high]) if high < sample.size else _INFINITY[kind],
    )


def _sample(tensors: Sequence[ir.TensorProtocol], size: int, kind: KeyKind) -> Keys:
    """About 64 K elements, more from large pools so that the bracket stays small; each tensor by
    its share.
    """
    wanted = int(np.clip((size / 500_000) ** 2, *_SAMPLE))
    random = np.random.default_rng(
        0
    )  # a fixed seed: which elements are looked at must not change between runs
    found = []
    for tensor in tensors:
        share = max(wanted * tensor.size // size, 1)
        if isinstance(tensor, ir.ExternalTensor):
            found.append(magnitudes(_sample_file(tensor, share, random), kind))
        elif tensor.size:
            stride = max(tensor.size // share, 1)
            found.extend(
                magnitudes(block[-start % stride :: stride], kind)
                for start, block in blocks(tensor)
            )
    return np.concatenate(found)


def _sample_file(
    tensor: ir.ExternalTensor, count: int, random: np.random.Generator
) -> NDArray[Any]:
    """`count` elements at least, in short runs spread over the file, one run in each equal
    stretch.
    """
    dtype = np.dtype(tensor.dtype.numpy())
    chunk = min(_CHUNK, tensor.size)
    runs = -(-count // chunk)
    spread = (np.arange(runs) + random.random(runs)) / runs * (tensor.size - chunk)
    out = np.empty(runs * chunk, dtype)
    view = out.view(np.uint8).data
    length = chunk * dtype.itemsize
    with open(tensor.path, "rb", buffering=0) as file:
        for run, start in enumerate(spread.astype(np.int64)):
            file.seek((tensor.offset or 0) + int(start) * dtype.itemsize)
            got = file.readinto(view[run * length : (run + 1) * length])
            if got != length:
                raise OSError(f"{tensor.path}: ends inside tensor '{tensor.name}'")
    return out if np.little_endian else out.byteswap()


def _radix(tensors: Sequence[ir.TensorProtocol], k: int, kind: KeyKind) -> Ranked:
    """Rank k by counting 16 bits at a time from the top: one pass over the pool for each."""
    bits = np.dtype(kind).itemsize * 8
    prefix, below, equal = 0, 0, 0
    for shift in range(bits - 16, -1, -16):
        counts = np.zeros(1 << 16, np.int64)
        for keys in _stream(tensors, kind):
            if shift < bits - 16:
                keys = keys[keys >> kind(shift + 16) == kind(prefix)]
            digits = (keys >> kind(shift)) & kind(0xFFFF)
            counts += np.bincount(digits.astype(np.intp), minlength=1 << 16)
        upto = np.cumsum(counts)
        digit = int(np.searchsorted(upto, k - below))
        prefix, equal = prefix << 16 | digit, int(counts[digit])
        below += int(upto[digit]) - equal
    return Ranked(prefix, below, equal)
