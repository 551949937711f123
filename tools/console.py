"""Parts that every command shares: `--json`, `-q`, `-v`, `--debug`, progress bars, safe text.

Words for people go to stderr, results to stdout.
"""

from __future__ import annotations

import contextlib
import json
import math
import shlex
import threading
import time
import unicodedata
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

# the value is read from the words of the command line, before they are parsed
DEBUG = click.option(
    "--debug",
    is_flag=True,
    expose_value=False,
    help="Print the traceback of an error (also: ONNX_OPT_DEBUG=1).",
)
VERBOSE = click.option("-v", "--verbose", is_flag=True, help="Print more details.")
QUIET = click.option(
    "-q", "--quiet", is_flag=True, help="Print no tables and no progress bars."
)
JSON = click.option(
    "--json",
    "as_json",
    is_flag=True,
    help="Print one JSON object on stdout and nothing else.",
)


WIDTH = 120
"""Columns of tables in files and pipes. Chosen by hand."""


def shared_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Give a command `--json`, `--quiet`, `--verbose` and `--debug`.

    It receives `as_json`, and `verbosity`: -1, 0 or 1.
    """

    def entry(quiet: bool, verbose: bool, **arguments: Any) -> Any:
        return function(verbosity=int(verbose) - int(quiet), **arguments)

    # click prints it as the command's help
    entry.__doc__ = function.__doc__
    # the last decorator comes first in --help
    for option in (DEBUG, VERBOSE, QUIET, JSON):
        entry = option(entry)
    return entry


def command_line(context: click.Context, **changed: Any) -> str:
    """The shell command of a click context, with every option that is not at its default.

    `changed`: values of some parameters instead of those given.
    """
    words = ["onnx-opt"]
    # `run` goes without its name
    if context.info_name not in (None, "run"):
        words.append(str(context.info_name))
    values = {**context.params, **changed}
    arguments = [p for p in context.command.params if isinstance(p, click.Argument)]
    options = [p for p in context.command.params if isinstance(p, click.Option)]
    for argument in arguments:
        words += _as_words(values.get(argument.name or ""))
    for option in options:
        value = values.get(option.name or "")
        # not `in`: 0, which may be given, is equal to False
        is_unset = value is None or value is False or value == ()
        if is_unset or value == option.get_default(context):
            continue
        if option.is_flag:
            words.append(option.opts[-1])
            continue
        for word in _as_words(value):
            words += [option.opts[-1], word]
    return shlex.join(words)


def _as_words(value: Any) -> list[str]:
    if isinstance(value, (list, tuple)):
        return [str(part) for part in value]
    return [] if value is None else [str(value)]


def emit_json(value: Any) -> None:
    """One JSON object on stdout; infinities and NaN, which JSON lacks, become null."""
    text = json.dumps(finite(value), indent=2, ensure_ascii=False, allow_nan=False)
    # JSON is shown in terminals, too: names are escaped in its own way
    click.echo("".join(map(_json_character, text)))


def finite(value: Any) -> Any:
    """`value` with None for non-finite numbers, at any depth; numpy scalars become Python's."""
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    # numpy's texts have an item() too
    if isinstance(value, (str, bytes)):
        return value
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _json_character(character: str) -> str:
    if character != "\n" and unicodedata.category(character).startswith("C"):
        return json.dumps(character)[1:-1]
    return character


def escaped(text: str) -> str:
    """Text from a file, safe for a terminal.

    Control and direction-changing characters become backslash escapes.
    """
    return "".join(_escaped_character(character) for character in str(text))


def _escaped_character(character: str) -> str:
    # C*: controls, formats such as right-to-left marks, surrogates, unassigned
    if unicodedata.category(character).startswith("C"):
        return repr(character)[1:-1]
    return character


def markup_safe(text: str) -> str:
    """`escaped` text that rich prints as it stands."""
    # rich is loaded where it is needed: --help must answer at once
    from rich.markup import escape

    return escape(escaped(text))


def console(stderr: bool) -> Console:
    """A rich console; colours and width as the terminal says, NO_COLOR honoured.

    Plain, and at least 120 columns wide, when it is no terminal.
    """
    from rich.console import Console

    # no emoji: rich would make one of N:M: in a text
    found = Console(stderr=stderr, highlight=False, soft_wrap=False, emoji=False)
    if found.is_terminal:
        return found
    # rich takes 80 columns for a pipe, and would fold every table in a log
    width = max(found.width, WIDTH)
    return Console(stderr=stderr, highlight=False, emoji=False, width=width)


def show(what: RenderableType, stderr: bool = False) -> None:
    """Print a table or text for people."""
    console(stderr).print(what)


def say(text: str) -> None:
    """A line for people, on stderr."""
    click.echo(escaped(text), err=True)


TELL_SECONDS = 10.0
"""Seconds between two lines that name the step at hand, where no bar can show it."""

SECONDS_TOLD_BELOW = 120
"""Seconds from which the time that is left is told in minutes."""


class Progress:
    """The step at hand, on stderr: as bars on a terminal, elsewhere as a line each ten seconds.

    Lines begin after ten seconds; `verbosity` below 0: nothing at all.
    """

    def __init__(self, verbosity: int = 0) -> None:
        is_shown = verbosity >= 0
        self.enabled = is_shown and console(stderr=True).is_terminal
        self._teller = StepTeller() if is_shown and not self.enabled else None
        self._bars: Any = None
        self._latest: tuple[Any, str] | None = None

    @contextlib.contextmanager
    def __call__(self, label: str, total: int) -> Iterator[Callable[[int], None]]:
        """A bar over `total` steps; the yielded function advances it."""
        if self._teller is not None:
            with self._teller.telling(label, total) as step:
                yield step.advance
            return
        if not self.enabled:
            yield lambda steps: None
            return
        with self._display() as bars:
            # no total: rich shows a bar that only moves
            task = bars.add_task(markup_safe(label), total=total or None)
            before = self._latest
            self._latest = (task, label)
            try:
                yield lambda steps: bars.advance(task, steps)
            finally:
                self._latest = before
                bars.remove_task(task)

    def note(self, words: str) -> None:
        """Add words on the state to the label of the bar that was opened last."""
        if self._teller is not None:
            self._teller.note(words)
        if self._bars is not None and self._latest is not None:
            task, label = self._latest
            self._bars.update(task, description=markup_safe(f"{label}: {words}"))

    @contextlib.contextmanager
    def _display(self) -> Iterator[Any]:
        """The live display, which bars inside bars share: rich allows only one."""
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


@dataclass
class OpenStep:
    """A step that is under way: `done` of `total` parts (0: unknown), since `began`, and words on
    its state.
    """

    label: str
    total: int
    began: float
    done: int = 0
    words: str = ""

    def advance(self, parts: int) -> None:
        """Count parts that are done."""
        self.done += parts

    def text(self, now: float) -> str:
        """The label, the words, and the time that is left at the speed so far."""
        found = self.label
        if self.words:
            found += f": {self.words}"
        if 0 < self.done <= self.total:
            seconds = (now - self.began) * (self.total - self.done) / self.done
            found += f", {_time_left(seconds)} left"
        return found


def _time_left(seconds: float) -> str:
    if seconds < SECONDS_TOLD_BELOW:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min"


class StepTeller:
    """Lines on stderr that name the open steps, one each ten seconds, from a thread of its own."""

    def __init__(self, seconds: float | None = None) -> None:
        self._seconds = TELL_SECONDS if seconds is None else seconds
        self._began = time.monotonic()
        self._next = self._began + self._seconds
        self._open: list[OpenStep] = []
        self._is_over = threading.Event()
        # held while a line is written, and while the last step ends
        self._lock = threading.Lock()

    @contextlib.contextmanager
    def telling(self, label: str, total: int = 0) -> Iterator[OpenStep]:
        """Have a step among those that are named while the block runs."""
        step = OpenStep(label, total, began=time.monotonic())
        self._open.append(step)
        is_outermost = len(self._open) == 1
        if is_outermost:
            self._is_over = threading.Event()
            # a daemon: a run that is killed does not wait for it
            threading.Thread(
                target=self._tell, args=[self._is_over], daemon=True
            ).start()
        try:
            yield step
        finally:
            with self._lock:
                # nothing is told of no step
                if is_outermost:
                    self._is_over.set()
                self._open.pop()

    def note(self, words: str) -> None:
        """Add words on the state to the step that was opened last."""
        if self._open:
            self._open[-1].words = words

    def _tell(self, is_over: threading.Event) -> None:
        while not is_over.wait(max(self._next - time.monotonic(), 0)):
            with self._lock:
                # the last step may have ended since
                if is_over.is_set():
                    return
                now = time.monotonic()
                self._next = now + self._seconds
                texts = [step.text(now) for step in self._open]
                say(f"{now - self._began:.0f} s: {': '.join(texts)}")
