"""Results by key on this machine's disk, which several batches may use at once."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .._run.provenance import sha256_of

ACCOUNT = "account.json"
"""File of an entry: the account of the run, digests of its files, and of the model's weights."""

_TEMPORARY = "tmp-"
_OLD_SECONDS = 86_400
"""Age (a day) from which a temporary folder is a dead batch's. Chosen by hand; not measured."""


@dataclass(frozen=True)
class KeptResult:
    """A result that was kept.

    `files`: digests of its files by name, the model file last. `weights`: digests of the files of
    weights that the original names, relative to it. `account`: the JSON object of its run.
    """

    folder: Path
    files: dict[str, str]
    weights: dict[str, str]
    account: dict[str, Any]

    def is_sound(self) -> bool:
        """True if the files are those that were kept."""
        for name, digest in self.files.items():
            path = self.folder / name
            if not path.is_file() or sha256_of(path) != digest:
                return False
        return True

    def is_of(self, model: Path) -> bool:
        """True if the files of weights beside a model are those of the original."""
        for name, digest in self.weights.items():
            path = model.parent / name
            if not path.is_file() or sha256_of(path) != digest:
                return False
        return True


@dataclass(frozen=True)
class Store:
    """Entries in a folder, up to `most` bytes: those used last are kept.

    An entry takes its name when it is whole, and loses it before it is removed. It never fails a
    batch: what cannot be read is not there, and what cannot be written is not kept.
    """

    folder: Path
    most: int

    def find(self, key: str, model: Path) -> KeptResult | None:
        """The entry of a key, for that model; None where there is none that is sound."""
        folder = self.folder / key
        try:
            facts = json.loads((folder / ACCOUNT).read_bytes())
            entry = KeptResult(
                folder, facts["files"], facts["weights"], facts["account"]
            )
            if not entry.is_of(model):
                return None
            if not entry.is_sound():
                self._remove(folder)
                return None
            os.utime(folder)
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return None
        return entry

    def keep(
        self,
        key: str,
        files: list[Path],
        weights: dict[str, str],
        account: dict[str, Any],
    ) -> None:
        """Keep a result, unless it is larger than the store; `files`: the model file last."""
        if sum(file.stat().st_size for file in files) > self.most:
            return
        with contextlib.suppress(OSError), self._temporary() as folder:
            digests = {}
            for file in files:
                copied = folder / file.name
                shutil.copyfile(file, copied)
                digests[file.name] = sha256_of(copied)
            facts = {
                "files": digests,
                "weights": weights,
                "account": account,
            }
            text = json.dumps(facts)
            (folder / ACCOUNT).write_text(text, encoding="utf-8")
            # another batch may have been faster, and its entry is as good
            if not (self.folder / key).exists():
                os.rename(folder, self.folder / key)
            self._trim()

    @contextlib.contextmanager
    def _temporary(self) -> Iterator[Path]:
        self.folder.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=_TEMPORARY, dir=self.folder))
        try:
            yield folder
        finally:
            # it is gone where it became an entry
            shutil.rmtree(folder, ignore_errors=True)

    def _remove(self, entry: Path) -> None:
        """Take an entry's name away, then its files: no reader finds half of it."""
        with contextlib.suppress(OSError), self._temporary() as folder:
            os.rename(entry, folder / "entry")

    def _trim(self) -> None:
        """Remove what was not used for longest, until the rest fits; and what dead batches left."""
        entries = []
        for path in self.folder.iterdir():
            # another batch may remove it meanwhile
            with contextlib.suppress(FileNotFoundError):
                entries.append((path.stat().st_mtime, _bytes_of(path), path))
        entries.sort(reverse=True)
        newest = entries[0][0] if entries else 0.0
        total = 0
        for used, size, path in entries:
            if path.name.startswith(_TEMPORARY):
                if newest - used > _OLD_SECONDS:
                    shutil.rmtree(path, ignore_errors=True)
                continue
            total += size
            if total > self.most:
                self._remove(path)


def _bytes_of(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.iterdir())
