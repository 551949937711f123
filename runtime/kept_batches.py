"""Batches that a later run goes on from: in memory while they fit there, the others in files."""

from __future__ import annotations

import contextlib
import shutil
import weakref
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from numpy.typing import NDArray

from ..passes._core.scratch import scratch_folder
from ._worker import ipc
from .feeds import Batch

IN_MEMORY = 1 << 30
"""Bytes (1 GiB) that are kept in memory, at most. Chosen by hand; not measured."""

IN_FILES = 8 << 30
"""Bytes (8 GiB) that are kept in files, at most. Chosen by hand; not measured."""

FREE = 0.25
"""Share of what the disk has free that those files take, at most. Chosen by hand; not measured."""


class TooLarge(Exception):
    """Raised where batches take more memory and disk than they may."""


class KeptBatches:
    """Batches in the order in which they were added, to be iterated as often as wanted.

    Their files go with this object. `nbytes`: of all of them.
    """

    def __init__(self) -> None:
        self.nbytes = 0
        self._held: list[Batch] = []
        self._paths: list[Path] = []
        self._folder: Path | None = None
        self._most = IN_MEMORY
        self._stack = contextlib.ExitStack()
        weakref.finalize(self, self._stack.close)

    def add(self, tensors: dict[str, NDArray[Any]]) -> int:
        """Keep the tensors of one batch; return their bytes. Errors: TooLarge."""
        size = sum(array.nbytes for array in tensors.values())
        self.nbytes += size
        batch = Batch(tensors)
        if self.nbytes <= IN_MEMORY:
            self._held.append(batch)
        else:
            self._write(batch)
        return size

    def _write(self, batch: Batch) -> None:
        if self._folder is None:
            self._folder = self._stack.enter_context(scratch_folder())
            free = shutil.disk_usage(self._folder).free
            self._most += min(IN_FILES, int(FREE * free))
        if self.nbytes > self._most:
            raise TooLarge
        path = self._folder / f"{len(self._paths)}.batch"
        with path.open("wb") as file:
            ipc.send(file, batch)
        self._paths.append(path)

    def __iter__(self) -> Iterator[Batch]:
        yield from self._held
        for path in self._paths:
            with path.open("rb") as file:
                batch: Batch = ipc.receive(file)
            yield batch
