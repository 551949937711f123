"""Models of a folder, and where their results go."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ... import RefusedError, UsageError

RESULT = ".opt.onnx"
"""End of the names of results, which are no models to optimize."""


@dataclass(frozen=True)
class BatchModel:
    """A model file, its name below the folder, and the file of its result."""

    name: str
    path: Path
    out: Path


def models_in(folder: Path, out: Path | None) -> list[BatchModel]:
    """All models below a folder, by name.

    `out`: folder of the results, laid out as `folder`; None: each lies beside its model. Errors:
    RefusedError where there is no model, UsageError where two results would be one file.
    """
    if not folder.is_dir():
        raise RefusedError(str(folder), "is no folder", "give a folder of .onnx files")
    found = []
    for path in sorted(_files(folder)):
        relative = path.relative_to(folder)
        place = (out or folder) / relative.parent / f"{path.stem}{RESULT}"
        found.append(BatchModel(relative.as_posix(), path, place))
    if not found:
        raise RefusedError(
            str(folder), "holds no .onnx files", "give a folder that has some"
        )
    _refuse_shared_places(found)
    return found


def _files(folder: Path) -> Iterator[Path]:
    # links to folders are not followed: they may lead in circles
    for root, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            is_model = name.lower().endswith(".onnx") and not name.startswith(".")
            if is_model and not name.endswith(RESULT):
                yield Path(root, name)


def _refuse_shared_places(models: list[BatchModel]) -> None:
    owners: dict[str, str] = {}
    for model in models:
        # file systems may not tell capitals apart
        key = str(model.out).casefold()
        if key in owners:
            raise UsageError(
                model.name,
                f"its result would have the name of that of {owners[key]}",
                "rename one of the two",
            )
        owners[key] = model.name
