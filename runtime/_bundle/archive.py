"""Archives of a bundle, .zip and .tar.gz: written with the same bytes each time, read with care."""

from __future__ import annotations

import gzip
import os
import shutil
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from ... import RefusedError
from ...passes._core.limits import limit

SUFFIXES = (".zip", ".tar.gz", ".tgz")

_EPOCH = (1980, 1, 1, 0, 0, 0)
"""Time of every file in a .zip, the earliest that the format has."""

_MODE = 0o644
_LEVEL = 9
_BLOCK = 1 << 20
_MOST_FILES = 10_000
"""Files of an archive, at most: bundles have dozens. Chosen by hand."""

_AGAIN = "fetch the archive again, from whoever made it"


def is_archive(path: Path) -> bool:
    """True for a name that ends as an archive's."""
    return path.name.lower().endswith(SUFFIXES)


def pack(folder: Path, top: str, out: Path, suffix: str) -> None:
    """Write an archive of a folder, whose files lie below `top` in it.

    `suffix`: one of SUFFIXES. Same files, same bytes: neither times nor owners nor the order of the
    folder are in it.
    """
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    names = [f"{top}/{path.relative_to(folder).as_posix()}" for path in files]
    writer = _write_zip if suffix == ".zip" else _write_tar
    writer(out, list(zip(names, files, strict=True)))


def _write_zip(out: Path, entries: list[tuple[str, Path]]) -> None:
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED, compresslevel=_LEVEL) as file:
        for name, path in entries:
            entry = zipfile.ZipInfo(name, _EPOCH)
            entry.compress_type = zipfile.ZIP_DEFLATED
            # 3: Unix, whose permissions are kept in the upper half
            entry.create_system = 3
            entry.external_attr = (stat.S_IFREG | _MODE) << 16
            entry.file_size = path.stat().st_size
            with path.open("rb") as source, file.open(entry, "w") as target:
                shutil.copyfileobj(source, target, _BLOCK)


def _write_tar(out: Path, entries: list[tuple[str, Path]]) -> None:
    # gzip's own head would have a name and a time
    with (
        out.open("wb") as raw,
        gzip.GzipFile("", "wb", _LEVEL, raw, mtime=0) as squeezed,
        tarfile.open(fileobj=squeezed, mode="w", format=tarfile.PAX_FORMAT) as file,
    ):
        for name, path in entries:
            entry = tarfile.TarInfo(name)
            entry.size = path.stat().st_size
            entry.mode = _MODE
            with path.open("rb") as source:
                file.addfile(entry, source)


@dataclass(frozen=True)
class _Entry:
    """A file of an archive. `is_plain`: neither a link nor a device."""

    name: str
    is_plain: bool
    content: IO[bytes]


def unpack(archive: Path, folder: Path) -> Path:
    """Unpack an archive into a folder; returns the folder of the bundle inside.

    Only plain files inside of the folder are written, up to the limit BUNDLE_BYTES. Errors:
    RefusedError.
    """
    left = limit("BUNDLE_BYTES")
    count = 0
    try:
        for entry in _entries(archive):
            count += 1
            if count > _MOST_FILES:
                raise RefusedError(
                    str(archive), f"has more than {_MOST_FILES} files", _AGAIN
                )
            left -= _write_entry(archive, entry, folder, left)
    except OSError as error:
        # what reading an archive raises has no file name, what writing raises has
        if error.filename is not None and error.filename != str(archive):
            raise
        reason = error.strerror or str(error)
        raise RefusedError(str(archive), f"cannot be read: {reason}", _AGAIN) from error
    except (
        zipfile.BadZipFile,
        tarfile.TarError,
        zlib.error,
        EOFError,
        # a password, a compression or a version that zipfile does not know
        RuntimeError,
        NotImplementedError,
    ) as error:
        raise RefusedError(str(archive), f"is damaged: {error}", _AGAIN) from error
    return _bundle_in(archive, folder)


def _entries(archive: Path) -> Iterator[_Entry]:
    if archive.name.lower().endswith(".zip"):
        with zipfile.ZipFile(archive) as zipped:
            for info in zipped.infolist():
                kind = stat.S_IFMT(info.external_attr >> 16)
                if info.is_dir():
                    continue
                with zipped.open(info) as content:
                    yield _Entry(info.filename, kind in (0, stat.S_IFREG), content)
        return
    with tarfile.open(archive, "r:gz") as packed:
        for member in packed:
            if member.isdir():
                continue
            extracted = packed.extractfile(member) if member.isreg() else None
            if extracted is None:
                raise _escaping(archive, member.name, "is a link or a device")
            yield _Entry(member.name, True, extracted)


def _write_entry(archive: Path, entry: _Entry, folder: Path, left: int) -> int:
    """Write one file; returns its bytes, of which `left` are allowed."""
    parts = PurePosixPath(entry.name).parts
    name = entry.name
    if not parts or "/" in parts or ".." in parts or "\\" in name or ":" in name:
        raise _escaping(archive, name, "leads outside of the bundle's folder")
    if not entry.is_plain:
        raise _escaping(archive, name, "is a link or a device")
    target = folder.joinpath(*parts)
    if os.path.lexists(target):
        raise _escaping(archive, name, "is in it twice")
    written = 0
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        # x: never into a file that is there
        file = target.open("xb")
    except (FileExistsError, NotADirectoryError):
        raise _escaping(archive, name, "is in it as a file and as a folder") from None
    with file:
        # counted as it comes: what the archive says of its size may be a lie
        while block := entry.content.read(_BLOCK):
            written += len(block)
            if written > left:
                raise RefusedError(
                    str(archive),
                    f"unpacks to more than {limit('BUNDLE_BYTES')} bytes",
                    "raise ONNX_OPT_BUNDLE_BYTES if you trust whoever made it",
                )
            file.write(block)
    return written


def _escaping(archive: Path, name: str, problem: str) -> RefusedError:
    where = f"{archive}: '{name[:80]}'"
    return RefusedError(where, problem, f"do not unpack it; {_AGAIN}")


def _bundle_in(archive: Path, folder: Path) -> Path:
    """The folder with manifest.json: that of the archive, or the only one in it."""
    inside = [path for path in folder.iterdir() if path.is_dir()]
    for place in (folder, *inside[:1]):
        if (place / "manifest.json").is_file():
            return place
    raise RefusedError(
        str(archive), "is no bundle: it has no manifest.json", "give a bundle"
    )
