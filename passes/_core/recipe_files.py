"""Pipelines in files: pipeline text, or TOML with one table for each pass.

[[passes]]
pass = "prune"
sparsity = 0.5

[[passes]]
pass = "quant"
layers = ["conv1=palette:4"]
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ... import RefusedError, UsageError
from . import toml
from .contract import Pass
from .options import options_of

TABLE = "passes"
"""Array of tables of a TOML file."""

NAME = "pass"
"""Key of a table that names the pass; all others are its options."""


def read_text(path: Path) -> str:
    """Pipeline text of a file; lines that begin with # are comments. Errors: UsageError."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(
            f"--passes @{path}", f"cannot be read ({error})", "give a UTF-8 text file"
        ) from None
    # line breaks are spaces of the grammar
    return " ".join(line for line in lines if not line.lstrip().startswith("#"))


def read_tables(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """Names and options of the passes of a TOML file. Errors: UsageError."""
    where = f"--passes @{path}"
    example = f'give tables [[{TABLE}]] with a line {NAME} = "quant" and its options'
    try:
        content = toml.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, toml.TOMLDecodeError) as error:
        raise UsageError(where, f"cannot be read ({error})", example) from None
    tables = content.get(TABLE)
    if not isinstance(tables, list) or not tables:
        raise UsageError(where, f"has no tables [[{TABLE}]]", example)
    steps = []
    for table in tables:
        options = dict(table) if isinstance(table, dict) else {}
        name = options.pop(NAME, None)
        if not isinstance(name, str):
            raise UsageError(where, f"a table [[{TABLE}]] names no pass", example)
        steps.append((name, _as_values(options)))
    return steps


def _as_values(options: Mapping[str, Any]) -> dict[str, Any]:
    """Options as fields of passes hold them: lists are tuples there."""
    values = {}
    for key, value in options.items():
        values[key] = tuple(value) if isinstance(value, list) else value
    return values


def check_recipe_file(path: Path) -> None:
    """Raise RefusedError where no file can be written."""
    if path.is_dir() or not path.parent.is_dir():
        raise RefusedError(
            str(path), "no file can be written there", "name a file in a folder that is"
        )


def write_recipe(path: Path, passes: Sequence[Pass]) -> None:
    """Write the passes of a pipeline, as TOML where the name ends so, else as text."""
    text = ", ".join(map(str, passes)) + "\n"
    if path.suffix == ".toml":
        text = as_toml(passes)
    path.write_text(text, encoding="utf-8")


def as_toml(passes: Sequence[Pass]) -> str:
    """Passes as a TOML file: the options of each pass that differ from their defaults."""
    tables = []
    for pass_ in passes:
        lines = [f"[[{TABLE}]]", f"{NAME} = {_literal(pass_.name)}"]
        for option in options_of(type(pass_)):
            value = getattr(pass_, option.name)
            if value != option.default:
                lines.append(f"{option.name} = {_literal(value)}")
        tables.append("\n".join(lines))
    return "\n\n".join(tables) + "\n"


def _literal(value: Any) -> str:
    """A value in TOML's spelling."""
    if isinstance(value, (tuple, list)):
        every = "".join(f"    {_literal(each)},\n" for each in value)
        return f"[\n{every}]"
    # texts, numbers and booleans are spelled as in JSON
    return json.dumps(value)
