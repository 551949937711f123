"""Writing of a bundle: its files, digests and manifest, whole or not at all."""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import OnnxOptError, UsageError
from ...passes._core.scratch import MARK, create_locked, lock_of_dead
from . import archive
from .run import sha256_of
from .schema import first_fault

MANIFEST = "manifest.json"
SUMS = "SHA256SUMS"

Content = Path | bytes
"""A file to copy, or what is written."""


@dataclass(frozen=True)
class Place:
    """Place of a bundle: a folder, or an archive where `suffix` is one's."""

    path: Path
    suffix: str = ""

    @staticmethod
    def of(path: str | Path, force: bool) -> Place:
        """Check a place before any work.

        What is there already is replaced with `force` alone, and of folders only a bundle. Errors:
        UsageError.
        """
        target = Path(path)
        if target.name in ("", ".."):
            raise UsageError(
                str(path) or "output", "is no name of a bundle", "-o NAME, NAME.zip"
            )
        if not target.parent.is_dir():
            raise UsageError(
                str(path),
                f"folder '{target.parent}' does not exist",
                f"mkdir -p '{target.parent}'",
            )
        if os.path.lexists(target):
            _check_replaceable(target, force)
        name = target.name.lower()
        suffixes = [each for each in archive.SUFFIXES if name.endswith(each)]
        return Place(target, suffixes[0] if suffixes else "")


def _check_replaceable(target: Path, force: bool) -> None:
    if not force:
        raise UsageError(
            str(target),
            "exists already",
            "choose another path, or pass --force to replace it",
        )
    is_bundle = target.is_dir() and (target / MANIFEST).is_file()
    if target.is_symlink() or not (is_bundle or target.is_file()):
        raise UsageError(str(target), "is there, and no bundle", "choose another path")


def write(
    target: Place, files: Mapping[str, Content], manifest: Mapping[str, Any]
) -> dict[str, Any]:
    """Write a bundle; returns its manifest, with the digests of all files.

    `files`: by their names below the bundle's folder. Nothing is left behind by a failure. Errors:
    OnnxOptError where writing fails.
    """
    with _as_own_errors(target.path), _staged(target.path) as scratch:
        folder = scratch / "bundle"
        folder.mkdir()
        facts = {}
        for name in sorted(files):
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            _put(path, files[name])
            facts[name] = _facts_of(path)
        full = {**manifest, "files": facts}
        fault = first_fault(full)
        assert fault is None, fault
        _put_last(folder, full)
        made = folder
        if target.suffix:
            made = scratch / f"bundle{target.suffix}"
            archive.pack(folder, str(full["name"]), made, target.suffix)
            _sync(made)
        _take_place(made, target.path, scratch)
    return full


def _facts_of(path: Path) -> dict[str, Any]:
    size = path.stat().st_size
    return {"bytes": size, "sha256": sha256_of(path)}


def _put_last(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write the manifest, and the digests of all files: it cannot hold its own."""
    text = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False)
    path = folder / MANIFEST
    _put(path, f"{text}\n".encode())
    digests = {name: own["sha256"] for name, own in manifest["files"].items()}
    digests[MANIFEST] = sha256_of(path)
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    _put(folder / SUMS, "".join(lines).encode())


def _put(path: Path, content: Content) -> None:
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        shutil.copyfile(content, path)
    _sync(path)


def _sync(path: Path) -> None:
    # Windows syncs no file that is open for reading alone
    with path.open("r+b") as file:
        os.fsync(file.fileno())


def _take_place(made: Path, target: Path, scratch: Path) -> None:
    """Give what was made the target's name; what was there goes."""
    if target.is_dir():
        # a folder that has files cannot be replaced in one step
        former = scratch / "former"
        os.rename(target, former)
        try:
            os.rename(made, target)
        except OSError:
            os.rename(former, target)
            raise
    else:
        os.replace(made, target)


@contextlib.contextmanager
def _staged(target: Path) -> Iterator[Path]:
    """Provide a folder beside the target, gone afterwards; those of dead runs go first."""
    prefix = f".{target.name[:80]}."
    for mark in target.parent.glob(f"{_literal(prefix)}*.tmp/{MARK}"):
        lock = lock_of_dead(mark)
        if lock is not None:
            shutil.rmtree(mark.parent, ignore_errors=True)
            os.close(lock)
    folder = target.with_name(f"{prefix}{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    lock = create_locked(folder / MARK)
    try:
        yield folder
    finally:
        os.close(lock)
        shutil.rmtree(folder, ignore_errors=True)


def _literal(name: str) -> str:
    """A name as glob's pattern of itself."""
    return "".join(f"[{c}]" if c in "*?[" else c for c in name)


@contextlib.contextmanager
def _as_own_errors(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        reason = error.strerror or str(error)
        raise OnnxOptError(
            str(path),
            f"cannot be written: {reason}",
            "free space, or use another folder",
        ) from error
