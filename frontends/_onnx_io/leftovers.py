"""Files that a writer must remove, noted on disk before they are made.

One rule serves success, failure and death: at the end every noted file goes, unless a model names
it. A writer that was killed leaves its note, and the next writer of the same model follows it.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import gc
import os
import re
import secrets
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import TracebackType

from ...passes._core.scratch import create_locked, exclusive, lock_of_dead

_NAME_BYTES = 200
"""Bytes of the target's name in names of temporary files: file systems end names at 255.

Chosen by hand.
"""

_NOTE_BYTES = 1 << 20
"""Bytes of a note that are read. Chosen by hand: far more than any writer notes."""

_BLOCK = 1 << 24
"""Bytes of a model that are searched at once. Chosen by hand; not measured."""


class OwnFiles:
    """Files that one writer of `target` makes beside it, or is to remove there.

    A context: entering it removes what dead writers left, leaving it what this one noted. The note
    is a file `.<target>.<token>.run`, locked while the writer lives: names, each ended by a NUL,
    that of the target first. `durable`: the disk is waited for.
    """

    def __init__(self, target: Path, durable: bool = True) -> None:
        self.target = target
        self.durable = durable
        # a name cut inside a character is no text, but a name all the same
        short = os.fsdecode(os.fsencode(target.name)[:_NAME_BYTES])
        self._prefix = f".{short}."
        self._names: list[str] = []
        self._is_open = False
        self._is_done = False

    def __enter__(self) -> OwnFiles:
        try:
            with self._exclusive():
                self._token = secrets.token_hex(4)
                self._note = self._beside(f"{self._token}.run")
                self._lock = create_locked(self._note)
                self._is_open = True
            self._write(self.target.name)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        """Remove what was noted, except files that a model names."""
        if not self._is_open:
            return
        self._is_open = False
        try:
            # a folder that is gone has nothing left in it
            with contextlib.suppress(OSError), self._exclusive():
                self._end()
        finally:
            os.close(self._lock)
            if self._is_done:
                _unlink_closed(self._note)

    def note(self, path: Path) -> None:
        """Have `path`, a file beside the target, removed at the end unless a model names it."""
        self._write(path.name)
        self._names.append(path.name)

    def temporary(self) -> Path:
        """A new file, empty, for the model before it takes the target's name."""
        path = self._beside(f"{self._token}.tmp")
        self._create(path)
        return path

    def data_file(self) -> Path:
        """A new data file, empty, under a name that no model can be using yet."""
        with self._exclusive():
            number = 0
            while True:
                middle = f".{number}" if number else ""
                name = f"{self.target.name}{middle}.data"
                candidate = self.target.with_name(name)
                # a broken link is there, too
                if not os.path.lexists(candidate):
                    self._create(candidate)
                    return candidate
                number += 1

    def switch(self, temporary: Path, still_read: Iterable[Path]) -> None:
        """Put the new model in the place of the former, whose own data files go.

        The rename is the one step that counts: before it the former files are whole, after it the
        new ones. Files that are `still_read` go when this process ends.
        """
        with self._exclusive():
            former = self._data_of_former()
            read = [path for path in former if _is_one_of(path, still_read)]
            # Windows removes no file that is mapped, and former models may still map theirs
            if sys.platform == "win32":
                read = former
            names = [path.name for path in former if path not in read]
            for name in names:
                self._write(name)
            try:
                os.replace(temporary, self.target)
                if self.durable:
                    sync_folder(self.target.parent)
            # an interrupt may come just behind the rename
            finally:
                self._names += names
                # now, not later: another writer may soon take such a name
                self._end()
        for path in read:
            later = OwnFiles(self.target).__enter__()
            later.note(path)
            atexit.register(_close_at_exit, later)

    def _create(self, path: Path) -> None:
        """Note and create a file, with the permissions of the file at the target if there is one.

        Its name is noted first: a file that is not noted would stay.
        """
        self.note(path)
        # O_EXCL: a link that someone put there in advance is not followed
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
        if self.target.is_file():
            os.chmod(path, self.target.stat().st_mode & 0o777)

    def _data_of_former(self) -> list[Path]:
        """Data files that bear the target's name and that the model now there names."""
        own = [path for path in _siblings(self.target) if self._is_data(path.name)]
        return [path for path in own if _names(self.target, path.name)]

    @contextlib.contextmanager
    def _exclusive(self) -> Iterator[None]:
        """Keep other writers of the target out for a short while; what dead ones left goes."""
        with exclusive(self._beside("lock")):
            for path in _siblings(self.target):
                if path.name.startswith(self._prefix) and path.suffix == ".run":
                    self._follow_dead(path)
            yield

    def _follow_dead(self, note: Path) -> None:
        lock = lock_of_dead(note)
        if lock is None:
            return
        is_done = False
        # what cannot be read or removed now stays noted
        with contextlib.suppress(OSError):
            *entries, _ = os.read(lock, _NOTE_BYTES).split(b"\0")
            names = [os.fsdecode(entry) for entry in entries]
            # a writer that died before it had written its target has made no file
            is_others = names and names[0] != self.target.name
            is_done = not is_others and self._remove(names[1:])
            if is_done:
                note.unlink(missing_ok=True)
        os.close(lock)
        if is_done:
            _unlink_closed(note)

    def _end(self) -> None:
        # a file that resists stays noted, and the next writer tries again
        self._is_done = self._remove(self._names)
        if self._is_done:
            with contextlib.suppress(OSError):
                self._note.unlink(missing_ok=True)
            self._names.clear()

    def _remove(self, names: list[str]) -> bool:
        """Remove those of the files that no model names; True unless one resists."""
        all_gone = True
        for name in names:
            is_temporary = name.startswith(self._prefix) and name.endswith(".tmp")
            # a note may be anybody's: it is followed for such names only
            if not is_temporary and not self._is_data(name):
                continue
            path = self.target.with_name(name)
            try:
                if is_temporary or not self._is_needed(path):
                    path.unlink(missing_ok=True)
            except OSError:
                all_gone = False
        return all_gone

    def _is_needed(self, data: Path) -> bool:
        """True if a model names a data file: the target, or a copy of it beside it."""
        if not os.path.lexists(data):
            return False
        if _names(self.target, data.name):
            return True
        models = [path for path in _siblings(self.target) if path.suffix == ".onnx"]
        return any(_names(model, data.name) for model in models)

    def _is_data(self, name: str) -> bool:
        """True for a name that `data_file` may have given."""
        pattern = re.escape(self.target.name) + r"(\.\d+)?\.data"
        return re.fullmatch(pattern, name) is not None

    def _beside(self, suffix: str) -> Path:
        return self.target.with_name(self._prefix + suffix)

    def _write(self, name: str) -> None:
        entry = os.fsencode(name) + b"\0"
        if os.write(self._lock, entry) < len(entry):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def _unlink_closed(note: Path) -> None:
    """Remove a note that could not be removed while it was open: on Windows.

    Elsewhere it is gone already, or was not to go.
    """
    if sys.platform == "win32":
        with contextlib.suppress(OSError):
            note.unlink(missing_ok=True)


def _close_at_exit(files: OwnFiles) -> None:
    # Windows removes no file that is mapped: models that nobody uses any more let go of theirs
    if sys.platform == "win32":
        gc.collect()
    files.close()


def sync_folder(folder: Path) -> None:
    """Make the names in a folder durable, where the system can."""
    if not hasattr(os, "O_DIRECTORY"):
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        # some network file systems cannot; the names stand all the same
        with contextlib.suppress(OSError):
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def same_file(first: Path, second: Path) -> bool:
    """True if both are there and are one file."""
    try:
        return os.path.samefile(first, second)
    except (OSError, ValueError):
        return False


def _is_one_of(path: Path, others: Iterable[Path]) -> bool:
    return any(same_file(path, other) for other in others)


def _siblings(target: Path) -> list[Path]:
    """Everything in the target's folder."""
    with os.scandir(target.parent) as entries:
        return [target.with_name(entry.name) for entry in entries]


def _names(model: Path, name: str) -> bool:
    """True if the bytes of a file contain a name.

    Not parsed: a model may be damaged, or larger than memory. A name that is only part of another
    keeps a file too many.
    """
    wanted = os.fsencode(name)
    if not model.is_file():
        return False
    tail = b""
    with open(model, "rb") as file:
        while block := file.read(_BLOCK):
            if wanted in tail + block:
                return True
            tail = block[-len(wanted) :]
    return False
