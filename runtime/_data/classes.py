"""Class numbers of image folders: by index, by a list of names, or by their order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ... import RefusedError

CLASSES = "classes.txt"
"""File beside the class folders: a name a line, in the order of the model's outputs."""


@dataclass(frozen=True)
class ClassNumbers:
    """Number of each class folder.

    `is_by_order`: nothing says which class a folder is, and they were numbered as they are sorted;
    right only if the model has exactly these classes.
    """

    by_folder: dict[str, int]
    is_by_order: bool


def class_numbers(
    path: Path, folders: Sequence[str], listed: Sequence[str] | None
) -> ClassNumbers:
    """Number the class folders of `path`.

    `listed`: names of all classes in the model's order, where the preprocessing file has them; they
    come first, then `classes.txt`, then folders that are named by their index (`0016`), then the
    sorted order. Errors: RefusedError for a folder that a list does not have, and for two of one
    index.
    """
    if listed is not None:
        return _by_list(folders, listed, "preprocess.toml.classes")
    if (path / CLASSES).is_file():
        return _by_list(folders, _read_names(path / CLASSES), CLASSES)
    if folders and all(name.isdecimal() for name in folders):
        return _by_index(path, folders)
    numbers = {name: number for number, name in enumerate(sorted(folders))}
    return ClassNumbers(numbers, is_by_order=True)


def _read_names(path: Path) -> list[str]:
    lines = path.read_text(encoding="utf-8").splitlines()
    names = [line.strip() for line in lines]
    return [name for name in names if name]


def _by_list(folders: Sequence[str], names: Sequence[str], where: str) -> ClassNumbers:
    numbers: dict[str, int] = {}
    for number, name in enumerate(names):
        if name in numbers:
            raise RefusedError(
                where, f"'{name}' is there twice", "name each class once"
            )
        numbers[name] = number
    missing = [name for name in folders if name not in numbers]
    if missing:
        raise RefusedError(
            where,
            f"does not have the folder '{missing[0]}'",
            "list every class, a name each, in the order of the model's outputs",
        )
    return ClassNumbers({name: numbers[name] for name in folders}, is_by_order=False)


def _by_index(path: Path, folders: Sequence[str]) -> ClassNumbers:
    numbers: dict[str, int] = {}
    folder_of: dict[int, str] = {}
    for name in folders:
        number = int(name)
        if number in folder_of:
            raise RefusedError(
                f"data {path}",
                f"'{folder_of[number]}' and '{name}' are both class {number}",
                "put their images into one folder",
            )
        folder_of[number] = name
        numbers[name] = number
    return ClassNumbers(numbers, is_by_order=False)
