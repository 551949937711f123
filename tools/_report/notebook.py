"""A page inside of a notebook: a frame of its own, so that neither's styles touch the other."""

from __future__ import annotations

import html
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .page import Kind, page_of
from .write import check_page, write_text

HEIGHT = 720
"""Pixels of the frame, which scrolls."""


class NotebookPage:
    """The page of an account; as the last value of a notebook's cell it is shown."""

    def __init__(self, account: Mapping[str, Any], kind: Kind) -> None:
        self.html = page_of(account, kind)

    def save(self, path: str | Path) -> Path:
        """Write it as a file. Errors: UsageError for the path."""
        target = Path(path)
        check_page(target, "report")
        write_text(target, self.html)
        return target

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.html):,} characters; .save(path) writes it)"

    def _repr_html_(self) -> str:
        # the frame may run the page's scripts, and reach nothing of the notebook
        source = html.escape(self.html, quote=True)
        return (
            f'<iframe sandbox="allow-scripts" title="onnx-opt" width="100%" height="{HEIGHT}" '
            f'style="border: 0" srcdoc="{source}"></iframe>'
        )
