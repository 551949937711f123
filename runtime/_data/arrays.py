"""Batches from arrays: .npz and .npy files read as streams (compressed too), and arrays in
memory.
"""

from __future__ import annotations

import difflib
import math
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np
from numpy.lib import format as npy
from numpy.typing import NDArray

from ... import RefusedError
from ..session import TensorInfo

LABELS = "labels"
BATCH = 64
BATCH_BYTES = (
    4 << 20
)  # of inputs: activations are some ten times larger, and whole batches are run at once


class Rows(Protocol):
    """An array read from the front, so many rows at a time."""

    def __call__(self, count: int) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Stored:
    """An array that is not loaded: its shape and type, and how to open it as rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[ExitStack], Rows]


@dataclass(frozen=True)
class Plan:
    """How arrays become batches: `sliced` and `whole` map input names to array names."""

    sliced: dict[str, str]
    whole: dict[str, str]
    labels: str | None
    samples: int
    batch: int

    @property
    def dropped(self) -> int:
        return self.samples % self.batch if self.exact else 0

    exact: bool = False


@dataclass(frozen=True)
class ArraySet:
    """Named arrays, loaded or stored."""

    arrays: dict[str, Stored]

    def batches(
        self, plan: Plan
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any] | None]]:
        """(feeds, labels) in order; each batch is read when it is asked for."""
        with ExitStack() as stack:
            whole = {i: self._all(key, stack) for i, key in plan.whole.items()}
            rows = {i: self.arrays[key].open(stack) for i, key in plan.sliced.items()}
            labels = self.arrays[plan.labels].open(stack) if plan.labels else None
            for start in range(0, plan.samples - plan.dropped, plan.batch):
                count = min(plan.batch, plan.samples - start)
                feeds = {name: read(count) for name, read in rows.items()} | whole
                yield feeds, labels(count) if labels else None

    def _all(self, key: str, stack: ExitStack) -> NDArray[Any]:
        stored = self.arrays[key]
        return stored.open(stack)(stored.shape[0] if stored.shape else 1)


def in_memory(arrays: Mapping[str, Any]) -> ArraySet:
    """Arrays that the caller holds."""
    return ArraySet(
        {str(name): _held(np.asarray(array)) for name, array in arrays.items()}
    )


def _held(array: NDArray[Any]) -> Stored:
    def open_rows(stack: ExitStack) -> Rows:
        position = 0

        def read(count: int) -> NDArray[Any]:
            nonlocal position
            position += count
            return array[position - count : position] if array.ndim else array

        return read

    return Stored(array.shape, array.dtype, open_rows)


def open_file(path: Path) -> ArraySet:
    """The arrays of an .npz (by key) or .npy file (key `data`); only their headers are read.

    Errors: RefusedError for a missing or damaged file, or for pickled objects, which are never
    loaded.
    """
    if not path.is_file():
        raise RefusedError(
            f"data {path}",
            "no such file",
            "give the path of an existing .npz or .npy file",
        )
    try:
        if path.suffix == ".npy":
            return ArraySet({"data": _stored(lambda: open(path, "rb"), f"{path.name}")})
        with zipfile.ZipFile(path) as archive:
            names = [name for name in archive.namelist() if name.endswith(".npy")]
        return ArraySet(
            {
                name.removesuffix(".npy"): _stored(
                    _member(path, name),
                    f"{path.name}, array '{name.removesuffix('.npy')}'",
                )
                for name in names
            }
        )
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise RefusedError(
            f"data {path.name}",
            f"cannot be read: {error}",
            "write it again with numpy.savez",
        ) from error


def _member(path: Path, name: str) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        archive = zipfile.ZipFile(path)
        try:
            return archive.open(name)
        finally:
            archive.close()  # the member keeps the file open until it is closed itself

    return open_member


def _stored(opener: Callable[[], IO[bytes]], where: str) -> Stored:
    with opener() as file:
        shape, fortran, dtype = _header(file)
    if dtype.hasobject:
        raise RefusedError(
            where,
            "holds pickled Python objects",
            "save plain arrays: array.astype('int64') or astype(str)",
        )

    def open_rows(stack: ExitStack) -> Rows:
        file = stack.enter_context(opener())
        _header(file)
        if fortran and len(shape) > 1:
            data = file.read()
            array = np.frombuffer(data, dtype).reshape(shape[::-1]).T
            return _held(np.ascontiguousarray(array)).open(stack)
        return lambda count: _read_rows(file, shape, dtype, count, where)

    return Stored(shape, dtype, open_rows)


def _read_rows(
    file: IO[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    count: int,
    where: str,
) -> NDArray[Any]:
    rows = (count, *shape[1:]) if shape else ()
    size = int(np.prod(rows, dtype=np.int64)) * dtype.itemsize
    data = bytearray()
    while len(data) < size:
        part = file.read(size - len(data))
        if not part:
            raise RefusedError(
                where,
                "ends early: the file is damaged",
                "write it again with numpy.savez",
            )
        data += part
    return np.frombuffer(data, dtype).reshape(rows)


def _header(file: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = npy.read_magic(file)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f".npy version {version} is not known")
    shape, fortran, dtype = readers[version](file)
    return shape, fortran, dtype


def plan(arrays: ArraySet, inputs: Sequence[TensorInfo], where: str) -> Plan:
    """Match arrays to inputs and choose the batch: the model's where it is fixed."""
    names = [i.name for i in inputs]
    keys = {
        key: stored
        for key, stored in arrays.arrays.items()
        if key != LABELS or LABELS in names
    }
    matched = _matched(list(keys), inputs, where)
    fixed = {i.name for i in inputs if not i.shape}
    batch_dims = {i.name: i.shape[0] for i in inputs if i.shape}
    sliced = [i for i in inputs if i.name not in fixed]
    open_ended = [i for i in sliced if not isinstance(batch_dims[i.name], int)]
    lead = (open_ended or sliced)[:1]
    samples = _length(keys[matched[lead[0].name]]) if lead else 1
    whole = fixed | {
        i.name
        for i in sliced
        if isinstance(batch_dims[i.name], int)
        and _length(keys[matched[i.name]]) == batch_dims[i.name] != samples
    }
    steps = {d for n, d in batch_dims.items() if isinstance(d, int) and n not in whole}
    cut = {name: key for name, key in matched.items() if name not in whole}
    step = (
        next(iter(steps))
        if len(steps) == 1
        else _open_batch([keys[key] for key in cut.values()])
    )
    labels = LABELS if LABELS in arrays.arrays and LABELS not in keys else None
    _same_lengths(
        arrays, [*cut.values(), *([labels] if labels else [])], samples, where
    )
    if samples == 0:
        raise RefusedError(where, "holds no samples", "give at least one sample")
    result = Plan(
        cut,
        {n: matched[n] for n in whole},
        labels,
        samples,
        int(step),
        exact=len(steps) == 1,
    )
    if result.dropped == samples:
        raise RefusedError(
            where,
            f"holds {samples} samples; the model takes batches of {step}",
            f"give at least {step} samples",
        )
    return result


def _matched(
    keys: list[str], inputs: Sequence[TensorInfo], where: str
) -> dict[str, str]:
    names = [i.name for i in inputs]
    if len(names) == 1 and len(keys) == 1:
        return {names[0]: keys[0]}
    for name in names:
        if name not in keys:
            near = difflib.get_close_matches(
                name, [key for key in keys if key not in names], 1, 0.4
            )
            raise RefusedError(
                where,
                f"no array for input '{name}'; it holds {', '.join(keys) or 'nothing'}",
                f"rename '{near[0]}' to '{name}'"
                if near
                else f"the inputs are {', '.join(names)}",
            )
    unknown = [key for key in keys if key not in names]
    if unknown:
        near = difflib.get_close_matches(unknown[0], names, 1)
        raise RefusedError(
            where,
            f"the model has no input '{unknown[0]}'",
            f"did you mean '{near[0]}'?"
            if near
            else f"the inputs are {', '.join(names)}",
        )
    return {name: name for name in names}


def _open_batch(sliced: list[Stored]) -> int:
    """Rows of a batch that may have any: at most BATCH, and no more than fit BATCH_BYTES."""
    row = sum(math.prod(stored.shape[1:]) * stored.dtype.itemsize for stored in sliced)
    return max(min(BATCH, BATCH_BYTES // max(row, 1)), 1)


def _length(stored: Stored) -> int:
    return stored.shape[0] if stored.shape else 1


def _same_lengths(arrays: ArraySet, keys: list[str], samples: int, where: str) -> None:
    for key in keys:
        if _length(arrays.arrays[key]) != samples:
            raise RefusedError(
                where,
                f"'{key}' holds {_length(arrays.arrays[key])} samples, others {samples}",
                "axis 0 of every array is the sample: make them equally long",
            )
