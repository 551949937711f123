"""Files that go with the run that made them, however it ends.

A live run holds a lock, which the system drops when the process is gone, killed or not. What is
not locked any more is a dead run's, and the next run removes it.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if sys.platform != "win32":
    import fcntl

PREFIX = "onnx-opt-"
"""Beginning of the names of scratch folders."""

MARK = "onnx-opt.lock"
"""Locked file in a scratch folder; a folder without it is someone else's."""

DEAD_SECONDS = 86_400
"""Age (a day) from which a file is a dead run's where the file system has no locks.

Chosen by hand; not measured.
"""


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """Provide a folder for files of a run, gone with it."""
    parent = Path(tempfile.gettempdir())
    while True:
        folder = Path(tempfile.mkdtemp(prefix=PREFIX, dir=parent))
        try:
            lock = create_locked(folder / MARK)
            break
        # another run took it for a dead one's before it was locked
        except FileNotFoundError:
            continue
    try:
        yield folder
    finally:
        # Windows does not remove a file that is open
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def create_locked(path: Path) -> int:
    """Create a file and lock it; return its descriptor, whose closing ends the lock.

    Errors: FileExistsError; FileNotFoundError where another run removed it before it was locked.
    """
    # O_EXCL: a link that someone put there in advance is not followed
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o600)
    try:
        _lock(descriptor, wait=True)
        if not _is_at(path, descriptor):
            raise FileNotFoundError(path)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def lock_of_dead(path: Path) -> int | None:
    """Lock a file whose run is dead; return its descriptor, None where the run is alive.

    None, too, where the file is gone, or is not a regular file of this user.
    """
    flags = os.O_RDWR | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
    try:
        descriptor = os.open(path, flags)
    except OSError:
        return None
    try:
        is_dead = _lock(descriptor, wait=False) and _is_own(path, descriptor)
    except OSError:
        is_dead = False
    if is_dead:
        return descriptor
    os.close(descriptor)
    return None


@contextlib.contextmanager
def exclusive(path: Path) -> Iterator[None]:
    """Let one process at a time run the block; the file at `path` is there only meanwhile.

    Not on Windows, nor where the file system has no locks.
    """
    if sys.platform == "win32":
        yield
        return
    descriptor = _create_and_lock(path)
    try:
        yield
    finally:
        try:
            # while it is locked: afterwards it could be another's
            path.unlink(missing_ok=True)
        finally:
            os.close(descriptor)


def _create_and_lock(path: Path) -> int:
    while True:
        descriptor = os.open(path, os.O_CREAT | os.O_NOFOLLOW | os.O_RDWR, 0o666)
        try:
            _lock(descriptor, wait=True)
            # the one that had it before has removed it
            if _is_at(path, descriptor):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _lock(descriptor: int, wait: bool) -> bool:
    """Lock an open file; False where another process holds it, or may hold it."""
    try:
        if sys.platform != "win32":
            fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
            return True
    except BlockingIOError:
        return False
    # some network file systems have no locks
    except OSError:
        pass
    return time.time() - os.fstat(descriptor).st_mtime > DEAD_SECONDS


def _is_own(path: Path, descriptor: int) -> bool:
    """True if a descriptor is that of the regular file at `path`, and of this user."""
    status = os.fstat(descriptor)
    if hasattr(os, "geteuid") and status.st_uid != os.geteuid():
        return False
    return stat.S_ISREG(status.st_mode) and _is_at(path, descriptor)


def _is_at(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def remove_dead_folders() -> None:
    """Remove the scratch folders that killed runs left."""
    parent = Path(tempfile.gettempdir())
    for mark in parent.glob(f"{PREFIX}*/{MARK}"):
        # in /tmp anyone may put a link of such a name
        if mark.parent.is_symlink():
            continue
        lock = lock_of_dead(mark)
        if lock is None:
            continue
        try:
            shutil.rmtree(mark.parent, ignore_errors=True)
        finally:
            os.close(lock)
        # Windows has left the file that was open
        if sys.platform == "win32":
            shutil.rmtree(mark.parent, ignore_errors=True)
