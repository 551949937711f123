"""Accounts from JSON files: which kind each is, or why it is none."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import RefusedError
from .page import Kind
from .write import check_page, write_page

KEYS: dict[Kind, frozenset[str]] = {
    "run": frozenset({"schema", "model", "input", "output", "passes", "steps"}),
    "bench": frozenset({"models", "provider", "hardware"}),
    "inspect": frozenset({"model", "figures", "ops", "layers", "provenance"}),
    "diff": frozenset({"a", "b", "ops", "nodes", "weights"}),
    "explain": frozenset({"a", "b", "method", "agreement", "noise_floor", "shown"}),
}
"""Keys by which the `--json` of a command is known."""


def page_from_file(source: Path, out: Path | None = None) -> tuple[Path, Kind]:
    """Write the page of an account in a file; its path, and what it is of.

    `out`: where to; None: beside it. Errors: UsageError for the path, RefusedError for the file.
    """
    target = out or _beside(source)
    check_page(target, "--out")
    return page_from_account(read_account(source), target, str(source))


def page_from_account(account: Any, target: Path, where: str) -> tuple[Path, Kind]:
    """Write the page of an account; `where`: what errors call it. Errors: as `page_from_file`."""
    check_page(target, "--out")
    kind = kind_of(account, where)
    try:
        write_page(target, account, kind)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        # what was edited by hand may have any shape
        raise RefusedError(
            where,
            f"is not whole: {type(error).__name__}: {error}",
            "write it anew with `onnx-opt MODEL --json > run.json`",
        ) from None
    return target, kind


def _beside(source: Path) -> Path:
    if str(source) == "-":
        return Path("report.html")
    return source.with_suffix(".html")


def read_account(path: Path) -> Any:
    """The JSON of a file; `-` is standard input. Errors: RefusedError."""
    try:
        return json.loads(_text_of(path))
    except OSError as error:
        raise RefusedError(
            str(path),
            f"cannot be read: {error.strerror or error}",
            "name the file that `onnx-opt MODEL --json > run.json` wrote",
        ) from None
    except (ValueError, RecursionError) as error:
        raise RefusedError(
            str(path),
            f"is no JSON: {error}",
            "name the file that `onnx-opt MODEL --json > run.json` wrote",
        ) from None


def _text_of(path: Path) -> str:
    if str(path) != "-":
        return path.read_text(encoding="utf-8-sig")
    return sys.stdin.read()


def kind_of(account: Any, where: str) -> Kind:
    """Subject of an account. Errors: RefusedError for JSON of anything else."""
    if isinstance(account, Mapping):
        for kind, keys in KEYS.items():
            if keys <= set(account):
                return kind
    raise RefusedError(
        where,
        "is not the JSON of a run, of bench, inspect, diff or explain",
        "write one with `onnx-opt MODEL --json > run.json`",
    )
