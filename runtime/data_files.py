"""Files that data is read from: where their content is the same, so are the batches."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from ._data.classes import CLASSES
from ._data.texts import SUFFIXES as TEXTS
from ._data.texts import TOKENIZER
from .presets import SPEC


class DataFile(NamedTuple):
    """A file, and its name within the data: in a folder, names may be labels."""

    name: str
    path: Path


def data_files(data: Any, beside: Path | None = None) -> list[DataFile] | None:
    """Files that data of a form of `open_feeds` is read from, in a fixed order.

    None where there are none to compare: arrays in memory, and what only code can tell. `beside`:
    the model's folder, which may hold its tokenizer.
    """
    parts = data if isinstance(data, (list, tuple)) else [data]
    files: list[DataFile] = []
    for part in parts:
        if not isinstance(part, (str, Path)):
            return None
        path = Path(part)
        if path.is_dir():
            inside = _files_below(path)
            if inside is None:
                return None
            files += inside
        elif path.is_file():
            files += _with_tokenizer(path, beside)
        else:
            return None
    return files or None


def _files_below(folder: Path) -> list[DataFile] | None:
    """All files of a folder; None where a link leads to another folder, or to a folder above."""
    found = []
    for root, folders, names in os.walk(folder):
        if any(os.path.islink(os.path.join(root, name)) for name in folders):
            return None
        for name in names:
            path = Path(root, name)
            found.append(DataFile(path.relative_to(folder).as_posix(), path))
    return sorted(found)


def _with_tokenizer(path: Path, beside: Path | None) -> Iterator[DataFile]:
    """A file, and what turns its texts into numbers."""
    yield DataFile(path.name, path)
    if path.suffix not in TEXTS:
        return
    for folder in (path.parent, beside):
        if folder is not None and (folder / TOKENIZER).is_file():
            yield DataFile(TOKENIZER, folder / TOKENIZER)


@dataclass(frozen=True)
class Companions:
    """Files that say how inputs are made, and what outputs mean; None: there is none.

    `preprocess`: preprocess.toml of images. `classes`: names of the classes, one a line.
    `tokenizer`: tokenizer.json of texts.
    """

    preprocess: Path | None = None
    classes: Path | None = None
    tokenizer: Path | None = None


def companions(data: Any, beside: Path) -> Companions:
    """Files that lie with data of a form of `open_feeds`; `beside`: the model's folder."""
    found = Companions()
    parts = data if isinstance(data, (list, tuple)) else [data]
    for part in parts:
        if not isinstance(part, (str, Path)):
            continue
        path = Path(part)
        if path.is_dir():
            found = replace(
                found,
                preprocess=_existing(path / SPEC),
                classes=_existing(path / CLASSES),
            )
        elif path.suffix in TEXTS:
            own = _existing(path.parent / TOKENIZER)
            found = replace(found, tokenizer=own or _existing(beside / TOKENIZER))
    return found


def _existing(path: Path) -> Path | None:
    return path if path.is_file() else None
