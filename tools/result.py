"""Results of a run as Python callers see them: the account, printed as the command's tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, overload

from .. import OnnxOptError
from ._run.result import RunAccount, RunResult
from .console import markup_safe
from .facts import as_html, as_text
from .tables import result_tables

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ._report.notebook import NotebookPage


class PartialResult(RunAccount):
    """Everything that was known of a run that failed; prints as the command's tables."""

    def __repr__(self) -> str:
        passes = self.about["passes"]
        before = self.input.bytes
        after = self.output.bytes
        return f"{type(self).__name__}({passes!r}, bytes {before} -> {after})"

    def __str__(self) -> str:
        account = self._account()
        return as_text(account)

    def _repr_html_(self) -> str:
        account = self._account()
        return as_html(account)

    @overload
    def report(
        self, path: None = None, error: OnnxOptError | None = None
    ) -> NotebookPage: ...

    @overload
    def report(self, path: str | Path, error: OnnxOptError | None = None) -> Path: ...

    def report(
        self, path: str | Path | None = None, error: OnnxOptError | None = None
    ) -> Path | NotebookPage:
        """The account as a page that needs no network: shown in a notebook, or written (.html).

        `path`: None for a notebook, whose cell shows what this returns. `error`: why the run ended.
        Errors: UsageError for the path.
        """
        from ._report.notebook import NotebookPage
        from ._report.write import check_page, write_page

        account = self.as_dict()
        if error is not None:
            account["error"] = error.facts()
        if path is None:
            return NotebookPage(account, "run")
        target = Path(path)
        check_page(target)
        write_page(target, account, "run")
        return target

    def _account(self) -> list[RenderableType]:
        account = result_tables(self)
        for text in self.warnings:
            # a name of the model in brackets would be taken for a style
            safe = markup_safe(text)
            account.append(f"warning: {safe}")
        return account


class Result(PartialResult, RunResult):
    """The optimized model and the account of the run; prints as the command's tables."""
