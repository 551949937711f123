"""What every command shares: `--json`, `-q`, `-v`, `--debug`; words on stderr, results on stdout;
safe names.
"""

from __future__ import annotations

import contextlib
import json
import math
import unicodedata
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

DEBUG_HELP = "Print the traceback of an error (also: ONNX_OPT_DEBUG=1)."


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`, `--quiet`, `--verbose` and `--debug`; it receives `as_json` and
    `verbosity`.
    """

    def entry(quiet: bool, verbose: bool, **arguments: Any) -> Any:
        return function(verbosity=int(verbose) - int(quiet), **arguments)

    entry.__doc__ = function.__doc__
    for option in (
        click.option("--debug", is_flag=True, expose_value=False, help=DEBUG_HELP),
        click.option("-v", "--verbose", is_flag=True, help="Say more."),
        click.option(
            "-q", "--quiet", is_flag=True, help="Say less: no tables, no progress bars."
        ),
        click.option(
            "--json",
            "as_json",
            is_flag=True,
            help="Print one JSON object on stdout and nothing else.",
        ),
    ):
        entry = option(entry)
    return entry


def emit_json(value: Any) -> None:
    """One JSON object on stdout; infinities and NaN, which JSON lacks, become null."""
    click.echo(json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False))


def finite(value: Any) -> Any:
    """`value` with every non-finite number replaced by None, at any depth; numpy scalars become
    Python's.
    """
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    if not isinstance(value, (str, bytes)) and hasattr(value, "item"):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value


def escaped(text: str) -> str:
    """Text from a file, safe for a terminal: control and direction-changing characters as backslash
    escapes.
    """
    return "".join(
        c if c == " " or unicodedata.category(c)[0] != "C" else repr(c)[1:-1]
        for c in str(text)
    )


def markup_safe(text: str) -> str:
    """`escaped` text that rich prints as it stands."""
    from rich.markup import escape

    return escape(escaped(text))


def console(stderr: bool) -> Console:
    """A rich console; colours and width as the terminal says, NO_COLOR honoured, plain when it is
    not one.
    """
    from rich.console import Console

    plain = Console(stderr=stderr, highlight=False, soft_wrap=False)
    return (
        plain
        if plain.is_terminal
        else Console(stderr=stderr, highlight=False, width=max(plain.width, 120))
    )


def show(what: RenderableType, stderr: bool = False) -> None:
    """Print a table or text for people."""
    console(stderr).print(what)


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(escaped(text), err=True)


class Progress:
    """Progress bars on stderr when it is a terminal; silent otherwise."""

    def __init__(self, verbosity: int = 0) -> None:
        self.enabled = verbosity >= 0 and console(stderr=True).is_terminal
        self._bars: Any = None
        self._latest: tuple[Any, str] | None = None

    @contextlib.contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` steps; the yielded function advances it."""
        if not self.enabled:
            yield lambda steps: None
            return
        with self._display() as bars:
            task = bars.add_task(markup_safe(label), total=total or None)
            before, self._latest = self._latest, (task, label)
            try:
                yield lambda steps: bars.advance(task, steps)
            finally:
                self._latest = before
                bars.remove_task(task)

    def note(self, words: str) -> None:
        """Add how it goes to the label of the bar that was opened last."""
        if self._bars is not None and self._latest is not None:
            task, label = self._latest
            self._bars.update(task, description=markup_safe(f"{label}: {words}"))

    @contextlib.contextmanager
    def _display(self) -> Iterator[Any]:
        """The one live display; bars inside bars share it."""
        if self._bars is not None:
            yield self._bars
            return
        from rich.progress import (
            BarColumn,
            MofNCompleteColumn,
            TextColumn,
            TimeRemainingColumn,
        )
        from rich.progress import Progress as Bars

        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
        )
        with Bars(*columns, console=console(stderr=True), transient=True) as bars:
            self._bars = bars
            try:
                yield bars
            finally:
                self._bars = None
