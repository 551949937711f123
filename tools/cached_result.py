"""The main job's `--cache FOLDER`: an earlier result in place of a run, and new ones kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from .console import emit_json, say
from .shown import say_warnings

if TYPE_CHECKING:
    from ._cache.results import ResultCache
    from .result import Result

NOT_KEPT = {
    "report": "a page is made of a run itself",
    "resume": "what training left in a folder is not looked at",
    "dry_run": "nothing is written",
    "max_bytes": "a search is not repeated by its options alone",
    "repair": "what is left as it is takes a search to find",
    "max_latency_ms": "a search is not repeated by its options alone",
}
"""Options with which no result is kept or taken, with the reason."""


@dataclass
class CachedResult:
    """The result of one model in a folder of results; `out` None: beside the model."""

    model: Path
    out: Path | None
    folder: Path | None
    most_mb: int
    _cache: ResultCache | None = field(default=None, init=False)
    _before: str | None = field(default=None, init=False)
    _force: bool = field(default=False, init=False)

    @property
    def is_asked(self) -> bool:
        """True if a folder was given."""
        return self.folder is not None

    def open(self, passes: tuple[str, ...], options: dict[str, Any]) -> None:
        """Open the folder for a run of these options; say why, where it is of no use to them."""
        from ._cache.recipe import Recipe
        from ._cache.results import ResultCache
        from ._cache.store import Store

        assert self.folder is not None
        reason = _why_not_kept(passes, options)
        if reason is None:
            recipe = Recipe.of_options(passes, options)
            reason = recipe.why_not_kept
        if reason is not None:
            say(f"warning: --cache: no result is kept or taken: {reason}")
            return
        store = Store(self.folder, self.most_mb * 10**6)
        self._cache = ResultCache(store, recipe)
        self._before = self._cache.digest(self.model)
        self._force = bool(options["force"])

    def show_known(self, as_json: bool, verbosity: int) -> bool:
        """Write and show the result of an earlier run; False where there is none.

        Errors: UsageError for a place that the main job refuses, too.
        """
        from ..frontends.onnx_file import check_output

        if self._cache is None:
            return False
        place = self._place()
        check_output(place, self.model, self._force)
        account = self._cache.take(self.model, place)
        if account is None:
            return False
        if as_json:
            emit_json({**account, "cached": True})
            return True
        if verbosity >= 0:
            say(
                f"{_figures(account)}: the result of an earlier run, from {self.folder}"
            )
        say_warnings(account["warnings"])
        click.echo(place)
        return True

    def keep(self, result: Result) -> None:
        """Keep a result that was written; nothing where no folder is open."""
        if self._cache is None or result.output_path is None:
            return
        account = result.as_dict()
        self._cache.keep(self.model, self._before, self._place(), account)

    def _place(self) -> Path:
        from .optimize import default_output

        return self.out or default_output(self.model)


def _why_not_kept(passes: tuple[str, ...], options: dict[str, Any]) -> str | None:
    from .short_search import AUTO

    if passes == (AUTO,):
        return "a search is not repeated by its options alone"
    for name, reason in NOT_KEPT.items():
        if options[name] not in (None, False):
            return f"--{name.replace('_', '-')}: {reason}"
    return None


def _figures(account: dict[str, Any]) -> str:
    from .tables import bytes_text, decibels

    before = account["input"]["bytes"]
    after = account["output"]["bytes"]
    words = f"{bytes_text(before)} became {bytes_text(after)}"
    drift = account["drift"]
    if drift is None or drift["sqnr_db"] is None:
        return words
    sqnr_db = decibels(drift["sqnr_db"])
    return f"{words}, SQNR {sqnr_db} dB"
