"""Python objects as batches: loaders, datasets, calibration readers and iterators of all kinds."""

from __future__ import annotations

import contextlib
import pickle
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...passes._core.scratch import scratch_folder
from .arrays import BATCH

Source = Callable[[], Iterable[Any]]


def source_of(data: Any) -> Source | None:
    """A function that yields an object's batches, as often as it is called; None if it has none.

    Knows Hugging Face datasets (`iter(batch_size)`), onnxruntime's CalibrationDataReader
    (`get_next()`), and everything that can be iterated: torch's DataLoader, lists, generators.
    What can be iterated only once is kept on the disk as it is read.
    """
    if hasattr(data, "column_names") and hasattr(data, "iter"):
        return lambda: data.iter(batch_size=BATCH)
    if hasattr(data, "get_next"):
        return Spool(_from_reader(data))
    if not isinstance(data, Iterable):
        return None
    iterator = iter(data)
    # an iterator returns itself, and is spent after the first pass
    if iterator is data:
        return Spool(iterator)
    return lambda: data


def _from_reader(reader: Any) -> Iterator[Any]:
    while (feeds := reader.get_next()) is not None:
        yield feeds


class Spool:
    """Items of an iterator, written to a temporary folder as they are first read.

    Calling it iterates from the beginning, and goes on where nobody has read yet.
    """

    def __init__(self, items: Iterator[Any]) -> None:
        self._items = items
        self._count = 0
        stack = contextlib.ExitStack()
        self._folder = stack.enter_context(scratch_folder())
        # nobody closes it
        weakref.finalize(self, stack.close)

    def __call__(self) -> Iterator[Any]:
        position = 0
        while True:
            if position == self._count and not self._read_one():
                return
            yield self._stored(position)
            position += 1

    def _read_one(self) -> bool:
        """Store the next item; False where there is none."""
        try:
            item = next(self._items)
        except StopIteration:
            return False
        with self._path(self._count).open("wb") as file:
            # our own file in a folder of our own: nobody else writes there
            pickle.dump(_plain(item), file)
        self._count += 1
        return True

    def _stored(self, position: int) -> Any:
        with self._path(position).open("rb") as file:
            return pickle.load(file)

    def _path(self, position: int) -> Path:
        return self._folder / f"{position}.pickle"


def _plain(item: Any) -> Any:
    """An item with tensors of other libraries as arrays."""
    if isinstance(item, Mapping):
        return {key: as_array(value) for key, value in item.items()}
    if isinstance(item, (tuple, list)):
        return tuple(_plain(part) for part in item)
    return as_array(item)


def as_array(value: Any) -> NDArray[Any]:
    """An array of a value: of numbers, lists of them, or a torch tensor on any device."""
    if hasattr(value, "detach"):
        value = value.detach().cpu()
        # numpy has no bfloat16 of its own
        if str(value.dtype) == "torch.bfloat16":
            value = value.float()
        return np.asarray(value.numpy())
    return np.asarray(value)
