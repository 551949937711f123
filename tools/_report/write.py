"""A page on disk: the path is checked before any work, and the file is written at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ... import UsageError
from ...frontends.onnx_file import check_output, copy
from ...passes._core.scratch import scratch_folder
from .page import Kind, page_of

SUFFIXES = (".html", ".htm")


def check_page(path: Path, option: str = "--report") -> None:
    """Refuse a path to which no page can be written. Errors: UsageError."""
    if path.is_dir():
        raise UsageError(
            option,
            f"'{path}' is a folder",
            f"name a file in it: {option} {path / 'report.html'}",
        )
    # a mistyped option would else write over a model
    if path.suffix.lower() not in SUFFIXES:
        raise UsageError(
            option,
            f"'{path}' does not end in .html",
            f"write {option} {path.with_suffix('.html') if path.name else 'report.html'}",
        )
    check_output(path)


def write_page(
    path: Path,
    account: Mapping[str, Any],
    kind: Kind,
    graph: Mapping[str, Any] | None = None,
) -> None:
    """Write the page of an account, in place of a former one. Errors: UsageError."""
    write_text(path, page_of(account, kind, graph))


def write_text(path: Path, text: str) -> None:
    """Write a page that is made, in place of a former one. Errors: UsageError."""
    with scratch_folder() as folder:
        draft = folder / "page.html"
        draft.write_text(text, encoding="utf-8")
        copy(draft, path, durable=False)
