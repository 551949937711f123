"""Result of a run as Python callers see it: the account, printed as the command's tables."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ._run.result import RunResult
from .console import markup_safe
from .facts import as_html, as_text
from .tables import result_tables

if TYPE_CHECKING:
    from rich.console import RenderableType


class Result(RunResult):
    """The optimized model and the account of the run; prints as the command's tables."""

    def __repr__(self) -> str:
        before, after = self.input.bytes, self.output.bytes
        return f"Result({self.about['passes']!r}, bytes {before} -> {after})"

    def __str__(self) -> str:
        return as_text(self._account())

    def _repr_html_(self) -> str:
        return as_html(self._account())

    def _account(self) -> list[RenderableType]:
        warnings = [f"warning: {markup_safe(text)}" for text in self.warnings]
        return [*result_tables(self), *warnings]
