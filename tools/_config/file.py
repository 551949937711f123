"""The file of options: where it lies, and its tables as they are written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ... import RefusedError, UsageError
from ...passes._core.nearest import did_you_mean
from ...passes._core.toml import TOMLDecodeError, loads

NAME = "onnx-opt.toml"
PROJECT = "pyproject.toml"
NONE = "none"
"""Value of --config that reads no file."""

TABLES = ("recipes", "targets")
"""Tables of named options; every other key is an option of its own."""

Options = Mapping[str, Any]
"""Options by name, as TOML has them."""


@dataclass(frozen=True)
class Config:
    """Options of a file.

    `where`: the file, and in pyproject.toml the table, as errors name it. `folder`: what its paths
    are relative to. `shared`: options of every run. `recipes`, `targets`: named sets of options.
    """

    where: str
    folder: Path
    shared: Options
    recipes: Mapping[str, Options]
    targets: Mapping[str, Options]

    def recipe(self, name: str) -> Options:
        """The options of a recipe. Errors: UsageError with the nearest name."""
        if name not in self.recipes:
            raise UsageError(
                "--recipe",
                f"'{name}' is no recipe of {self.where}",
                did_you_mean(name, self.recipes, f"write a table [recipes.{name}]"),
            )
        return self.recipes[name]


def read_config(asked: str | None) -> Config | None:
    """The file that is asked for; by default that of the current folder, None where it has none.

    The default is onnx-opt.toml, else [tool.onnx-opt] of pyproject.toml. Errors: RefusedError for a
    file that is no TOML, UsageError for one without options.
    """
    if asked == NONE:
        return None
    if asked is not None:
        return _read(Path(asked), must_have=True)
    for name in (NAME, PROJECT):
        if os.path.isfile(name):
            found = _read(Path(name), must_have=False)
            if found is not None:
                return found
    return None


def _read(path: Path, must_have: bool) -> Config | None:
    table = _table(path)
    where = str(path)
    if path.name == PROJECT:
        tools = table.get("tool")
        table = tools.get("onnx-opt") if isinstance(tools, dict) else None
        where = f"{path} [tool.onnx-opt]"
    if table is None and not must_have:
        return None
    if not isinstance(table, dict):
        raise UsageError(
            str(path),
            "it has no table [tool.onnx-opt]",
            f"write one, or put the options into {NAME}",
        )
    named = {}
    for key in TABLES:
        tables = table.get(key, {})
        named[key] = _named(where, key, tables)
    shared = dict(table)
    for key in TABLES:
        shared.pop(key, None)
    return Config(
        where,
        path.parent,
        shared,
        **named,
    )


def _table(path: Path) -> Any:
    try:
        return loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RefusedError(
            str(path), f"cannot be read: {error.strerror}", "give the path of a file"
        ) from None
    except (TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise RefusedError(
            str(path), f"is no TOML: {error}", "mend that line: see https://toml.io"
        ) from None


def _named(where: str, kind: str, tables: Any) -> dict[str, Options]:
    """Tables of options by name. Errors: UsageError where one is something else."""
    example = f"write [{kind}.NAME], and options below it"
    if not isinstance(tables, dict):
        raise UsageError(f"{where}: {kind}", "is no table", example)
    for name, table in tables.items():
        if not isinstance(table, dict):
            raise UsageError(f"{where}: {kind}.{name}", "is no table", example)
    return tables
