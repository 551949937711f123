"""Files that are held open and read piece by piece, whatever takes their names meanwhile."""

from __future__ import annotations

import os
import stat
import weakref
from pathlib import Path

from ... import RefusedError

CAN_HOLD = hasattr(os, "preadv")
"""False on Windows, which puts nothing in the place of a file that is open."""

SMALLEST = 1 << 26
"""Bytes (64 MiB) of a model file from which its tensors are left in it.

Chosen by hand: a smaller one is read at once, and memory does not miss it.
"""

LARGEST = 1 << 31
"""Bytes at which protobuf ends."""

_WINDOW = 1 << 14
"""Bytes that are read at a time where a few are asked for. Chosen by hand: some nodes' worth."""


class HeldFile:
    """A file that is read piece by piece, and stays open until nobody needs it.

    Another file may take its name meanwhile: this one is read all the same. Threads may share it.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = str(path)
        self.descriptor = os.open(path, os.O_RDONLY)
        weakref.finalize(self, os.close, self.descriptor)
        self._state = self._current()

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return self._state[0]

    def read_into(self, view: memoryview, offset: int) -> None:
        """Fill `view` with the bytes from `offset` on.

        Errors: RefusedError if someone has written to the file since it was opened.
        """
        filled = 0
        while filled < len(view):
            got = os.preadv(self.descriptor, [view[filled:]], offset + filled)
            if not got:
                break
            filled += got
        # asked afterwards: it may be written to at this very moment
        if filled < len(view) or self._current() != self._state:
            raise RefusedError(
                self.path,
                "was written to while it was in use",
                "run again, and put a new file in its place where it must change",
            )

    def _current(self) -> tuple[int, int]:
        status = os.fstat(self.descriptor)
        return status.st_size, status.st_mtime_ns


class FileBytes:
    """The bytes of a held file, sliced like `bytes`: what lies close together is read at once.

    Not a map of the file: a page of it that is touched may bring megabytes with it, and one that
    another process cuts off ends this one. For one thread.
    """

    def __init__(self, file: HeldFile) -> None:
        self._file = file
        self._start = 0
        self._window = b""

    def __len__(self) -> int:
        return self._file.size

    def __getitem__(self, at: slice) -> bytes:
        start, stop, _ = at.indices(len(self))
        begin = start - self._start
        end = stop - self._start
        if begin < 0 or end > len(self._window):
            self._read(start, stop)
            begin = 0
            end = stop - start
        return self._window[begin:end]

    def _read(self, start: int, stop: int) -> None:
        length = max(stop - start, _WINDOW)
        content = bytearray(min(length, len(self) - start))
        self._file.read_into(memoryview(content), start)
        self._start = start
        self._window = bytes(content)


def large_file(path: str | Path) -> HeldFile | None:
    """Hold the model file at `path`; None for a small one, and where there is none to be read."""
    if not CAN_HOLD:
        return None
    try:
        status = os.stat(path)
        # opening a pipe would wait for its writer
        is_file = stat.S_ISREG(status.st_mode)
        if not is_file or not SMALLEST <= status.st_size < LARGEST:
            return None
        return HeldFile(path)
    except (OSError, ValueError):
        return None
