"""Batches from arrays: .npz and .npy files read as streams, and arrays in memory."""

from __future__ import annotations

import contextlib
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
from ...passes._core.limits import limit
from ...passes._core.nearest import did_you_mean
from ..session import TensorInfo
from .conventional import left_out

LABELS = "labels"
"""Name of the array that holds labels, unless an input has that name."""

UNNAMED = "data"
"""Name of an array that came without one."""

NUMPYS_OWN = (UNNAMED, "arr_0")
"""Names that nobody gave: the one above, and that of `numpy.savez(file, array)`."""

BATCH = 64
"""Samples of a batch, at most, where the model takes any number. Chosen by hand; not measured."""

BATCH_BYTES = 4 << 20
"""Bytes of the inputs of a batch, at most, where the model takes any number of samples.

Activations are some ten times larger, and whole batches are run at once. Chosen by hand; samples of
megabytes then took several times less time and memory than batches of 64.
"""

OUTPUT_BYTES = 64 << 20
"""Bytes of the outputs of such a batch, at most, as far as they are known: logits over a vocabulary
take 50 MB for 256 tokens. Chosen by hand.
"""


Header = tuple[tuple[int, ...], bool, np.dtype[Any]]
"""Shape, column order and type of an array, as an .npy file begins."""


class RowReader(Protocol):
    """A function that reads an array from the front, so many rows at a time."""

    def __call__(self, count: int) -> NDArray[Any]: ...


@dataclass(frozen=True)
class Stored:
    """An array that is not loaded: its shape and type, and a function that opens it as rows."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    open: Callable[[ExitStack], RowReader]


@dataclass(frozen=True)
class BatchPlan:
    """A choice of batches: `sliced` and `whole` map input names to array names.

    `batch`: samples of a batch; `exact`: the model takes no other number.
    """

    sliced: dict[str, str]
    whole: dict[str, str]
    labels: str | None
    samples: int
    batch: int
    exact: bool = False

    @property
    def renamed(self) -> dict[str, str]:
        """Input of each array that has another name than it, and was given that by somebody."""
        matched = {**self.sliced, **self.whole}
        given = {key: name for name, key in matched.items() if key not in NUMPYS_OWN}
        return {key: name for key, name in given.items() if key != name}

    @property
    def dropped(self) -> int:
        """Number of samples at the end that make no whole batch."""
        return self.samples % self.batch if self.exact else 0


@dataclass(frozen=True)
class ArraySet:
    """Named arrays, loaded or stored."""

    arrays: dict[str, Stored]

    def batches(
        self, plan: BatchPlan
    ) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any] | None]]:
        """Yield (feeds, labels) in order; each batch is read when it is asked for."""
        with ExitStack() as stack:
            whole = {}
            for name, key in plan.whole.items():
                whole[name] = self._all(key, stack)
            readers = {}
            for name, key in plan.sliced.items():
                readers[name] = self._open(key, stack)
            read_labels = self._open(plan.labels, stack) if plan.labels else None
            left = plan.samples - plan.dropped
            while left > 0:
                count = min(plan.batch, left)
                left -= count
                feeds = {name: read(count) for name, read in readers.items()}
                labels = read_labels(count) if read_labels else None
                yield feeds | whole, labels

    def _open(self, key: str, stack: ExitStack) -> RowReader:
        return self.arrays[key].open(stack)

    def _all(self, key: str, stack: ExitStack) -> NDArray[Any]:
        read = self._open(key, stack)
        return read(_length(self.arrays[key]))


def in_memory(arrays: Mapping[str, Any]) -> ArraySet:
    """Make a set of arrays that the caller holds."""
    held = {}
    for name, array in arrays.items():
        held[str(name)] = _held(np.asarray(array))
    return ArraySet(held)


def _held(array: NDArray[Any]) -> Stored:
    def open_rows(stack: ExitStack) -> RowReader:
        position = 0

        def read(count: int) -> NDArray[Any]:
            nonlocal position
            if array.ndim == 0:
                return array
            start = position
            position += count
            return array[start:position]

        return read

    return Stored(array.shape, array.dtype, open_rows)


def open_file(path: Path) -> ArraySet:
    """Open the arrays of an .npz (by key) or .npy file (key `UNNAMED`); only headers are read.

    Errors: RefusedError for a missing or damaged file, or for pickled objects, which are never
    loaded.
    """
    if not path.is_file():
        raise RefusedError(
            f"data {path}",
            "no such file",
            "give the path of an existing .npz or .npy file",
        )
    with _reading(f"data {path.name}"):
        if path.suffix == ".npy":
            with open(path, "rb") as file:
                header = _header(file)
            stored = _stored(lambda: path.open("rb"), header, path.name)
            return ArraySet({UNNAMED: stored})
        return _open_archive(path)


@contextlib.contextmanager
def _reading(where: str) -> Iterator[None]:
    """Refuse what zipfile, zlib or numpy cannot read. Errors: RefusedError."""
    try:
        yield
    except RefusedError:
        raise
    # a damaged file makes them raise a dozen kinds; whatever it is, it is the file's
    except Exception as error:
        raise RefusedError(
            where,
            f"cannot be read: {str(error) or type(error).__name__}",
            "write it again with numpy.savez",
        ) from error


def _open_archive(path: Path) -> ArraySet:
    arrays = {}
    # opened once for all headers: its directory may list many thousands
    with zipfile.ZipFile(path) as archive:
        for member in archive.namelist():
            if not member.endswith(".npy"):
                continue
            key = member.removesuffix(".npy")
            with archive.open(member) as file:
                header = _header(file)
            where = f"{path.name}, array '{key}'"
            arrays[key] = _stored(_member(path, member), header, where)
    return ArraySet(arrays)


def _member(path: Path, name: str) -> Callable[[], IO[bytes]]:
    def open_member() -> IO[bytes]:
        archive = zipfile.ZipFile(path)
        try:
            return archive.open(name)
        finally:
            # the member keeps the file open until it is closed itself
            archive.close()

    return open_member


def _stored(opener: Callable[[], IO[bytes]], header: Header, where: str) -> Stored:
    shape, fortran, dtype = header
    # unpickling would run code of whoever wrote the file
    if dtype.hasobject:
        raise RefusedError(
            where,
            "holds pickled Python objects",
            "save plain arrays: array.astype('int64') or astype(str)",
        )

    def read_rows(file: IO[bytes], count: int) -> NDArray[Any]:
        with _reading(where):
            return _read_rows(
                file,
                shape,
                dtype,
                count,
                where,
            )

    def open_rows(stack: ExitStack) -> RowReader:
        file = stack.enter_context(opener())
        _header(file)
        if fortran and len(shape) > 1:
            _require_affordable(math.prod(shape) * dtype.itemsize, where)
            # rows lie scattered over a file in column order: it is read whole
            with _reading(where):
                data = file.read()
                columns = np.frombuffer(data, dtype).reshape(shape[::-1])
                array = np.ascontiguousarray(columns.T)
            return _held(array).open(stack)
        return lambda count: read_rows(file, count)

    return Stored(shape, dtype, open_rows)


def _read_rows(
    file: IO[bytes],
    shape: tuple[int, ...],
    dtype: np.dtype[Any],
    count: int,
    where: str,
) -> NDArray[Any]:
    rows = (count, *shape[1:]) if shape else ()
    size = math.prod(rows) * dtype.itemsize
    _require_affordable(size, where)
    data = bytearray()
    # a compressed member gives less than was asked for
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


def _require_affordable(nbytes: int, where: str) -> None:
    """Refuse to read more at once than allowed: a header may claim any size.

    Errors: RefusedError.
    """
    if nbytes > limit("ARRAY_BYTES"):
        raise RefusedError(
            where,
            f"would take {nbytes:,} bytes at once",
            "give smaller samples, in row order, or raise ONNX_OPT_ARRAY_BYTES",
        )


def _header(file: IO[bytes]) -> Header:
    version = npy.read_magic(file)
    readers = {
        (1, 0): npy.read_array_header_1_0,
        (2, 0): npy.read_array_header_2_0,
    }
    if version not in readers:
        raise ValueError(f".npy version {version} is not known")
    shape, fortran, dtype = readers[version](file)
    # to Python, True is a number
    if not all(type(length) is int and length >= 0 for length in shape):
        raise ValueError(f"the shape {shape} is none")
    return shape, fortran, dtype


def plan(
    arrays: ArraySet,
    inputs: Sequence[TensorInfo],
    where: str,
    outputs: Sequence[TensorInfo] = (),
) -> BatchPlan:
    """Match arrays to inputs and choose the batch: the model's where it is fixed.

    `outputs`: those of the model, whose size bounds an open batch. Errors:
    RefusedError for arrays that do not fit the inputs, or too few samples.
    """
    labels = _label_key(arrays, inputs)
    keys = [key for key in arrays.arrays if key != labels]
    # inputs of a conventional value are filled in batch by batch
    optional = left_out(inputs)
    inputs = [i for i in inputs if i.name in keys or i.name not in optional]
    matched = _matched(keys, inputs, where)
    lengths = {}
    for name, key in matched.items():
        lengths[name] = _length(arrays.arrays[key])
    samples = _samples_in(lengths, inputs)
    whole_names = _whole_inputs(lengths, inputs, samples)
    sliced: dict[str, str] = {}
    whole: dict[str, str] = {}
    for name, key in matched.items():
        part = whole if name in whole_names else sliced
        part[name] = key
    cut = list(sliced.values())
    step = _fixed_batch(inputs, sliced)
    exact = step is not None
    if step is None:
        rows = {name: arrays.arrays[key] for name, key in sliced.items()}
        step = _open_batch(rows, inputs, outputs)
    if labels:
        cut.append(labels)
    _same_lengths(arrays, cut, samples, where)
    if samples == 0:
        raise RefusedError(where, "holds no samples", "give at least one sample")
    result = BatchPlan(
        sliced,
        whole,
        labels,
        samples,
        batch=step,
        exact=exact,
    )
    if result.dropped == samples:
        raise RefusedError(
            where,
            f"holds {samples} samples; the model takes batches of {step}",
            f"give at least {step} samples",
        )
    return result


def _label_key(arrays: ArraySet, inputs: Sequence[TensorInfo]) -> str | None:
    """Name of the array of labels, None without one."""
    if LABELS not in arrays.arrays:
        return None
    if any(info.name == LABELS for info in inputs):
        return None
    return LABELS


def _fixed_batch(inputs: Sequence[TensorInfo], sliced: Mapping[str, str]) -> int | None:
    """Samples of a batch where the sliced inputs fix one number, None where they do not."""
    steps = set()
    for info in inputs:
        if info.name in sliced and isinstance(info.shape[0], int):
            steps.add(info.shape[0])
    # several fixed lengths: none suits them all, and the batches are refused one by one
    return steps.pop() if len(steps) == 1 else None


def _samples_in(lengths: Mapping[str, int], inputs: Sequence[TensorInfo]) -> int:
    """Count the samples: as the first input with an open batch has them, else the first that has
    axes.
    """
    with_axes = [i for i in inputs if i.shape]
    # a fixed axis may be a table's, which has another length than the data
    for info in with_axes:
        if not isinstance(info.shape[0], int):
            return lengths[info.name]
    return lengths[with_axes[0].name] if with_axes else 1


def _whole_inputs(
    lengths: Mapping[str, int], inputs: Sequence[TensorInfo], samples: int
) -> set[str]:
    """Names of the inputs whose array goes into every batch as it is.

    Scalars, and arrays that have exactly the fixed length that the model asks for: tables rather
    than samples.
    """
    whole = set()
    for info in inputs:
        length = lengths[info.name]
        is_scalar = not info.shape
        if is_scalar or (length == info.shape[0] and length != samples):
            whole.add(info.name)
    return whole


def _matched(
    keys: list[str], inputs: Sequence[TensorInfo], where: str
) -> dict[str, str]:
    """Name of the array of each input."""
    names = [i.name for i in inputs]
    # one array for one input needs no name: an .npy file has none
    if len(names) == 1 and len(keys) == 1:
        return {names[0]: keys[0]}
    unknown = [key for key in keys if key not in names]
    for name in names:
        if name not in keys:
            # far names too: a file's own names often share little with the model's
            near = difflib.get_close_matches(name, unknown, 1, 0.4)
            # with one input only the labels can be meant by another array
            if not near and len(names) == 1 and unknown:
                near = unknown[:1]
            fix = f"the inputs are {', '.join(names)}"
            if near:
                fix = f"rename '{near[0]}' to '{name}'"
            if near and len(names) == 1 and len(unknown) == 2:
                (other,) = [key for key in unknown if key != near[0]]
                fix += f", and '{other}' to '{LABELS}' if these are the labels"
            raise RefusedError(
                where,
                f"no array for input '{name}'; it holds {', '.join(keys) or 'nothing'}",
                fix,
            )
    if unknown:
        fix = did_you_mean(unknown[0], names, f"the inputs are {', '.join(names)}")
        raise RefusedError(where, f"the model has no input '{unknown[0]}'", fix)
    return {name: name for name in names}


def _open_batch(
    sliced: Mapping[str, Stored],
    inputs: Sequence[TensorInfo],
    outputs: Sequence[TensorInfo],
) -> int:
    """Choose the rows of a batch that may have any.

    At most BATCH, within BATCH_BYTES of inputs and OUTPUT_BYTES of outputs.
    """
    input_bytes = 0
    lengths: dict[str, int] = {}
    for info in inputs:
        stored = sliced.get(info.name)
        if stored is None:
            continue
        own = stored.shape[1:]
        values = math.prod(own)
        input_bytes += values * stored.dtype.itemsize
        for dim, length in zip(info.shape[1:], own, strict=False):
            lengths[str(dim)] = length
    output_bytes = _bytes_of_rows(outputs, lengths)
    given = BATCH_BYTES // max(input_bytes, 1)
    made = OUTPUT_BYTES // max(output_bytes, 1)
    affordable = min(BATCH, given, made)
    return max(affordable, 1)


def _bytes_of_rows(outputs: Sequence[TensorInfo], lengths: Mapping[str, int]) -> int:
    """Bytes of one row of all outputs of numbers, as far as their axes are known."""
    nbytes = 0
    for info in outputs:
        if not info.is_tensor or info.dtype == "object":
            continue
        values = 1
        for dim in info.shape[1:]:
            length = dim if isinstance(dim, int) else lengths.get(str(dim), 1)
            values *= length
        # of four bytes: a bound, not a count
        nbytes += 4 * values
    return nbytes


def _length(stored: Stored) -> int:
    return stored.shape[0] if stored.shape else 1


def _same_lengths(arrays: ArraySet, keys: list[str], samples: int, where: str) -> None:
    for key in keys:
        length = _length(arrays.arrays[key])
        if length != samples:
            raise RefusedError(
                where,
                f"'{key}' holds {length} samples, others {samples}",
                "axis 0 of every array is the sample: make them equally long",
            )
