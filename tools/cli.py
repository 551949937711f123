"""The command line: one click group; `onnx-opt MODEL …` means `onnx-opt run MODEL …`.

Only click is imported here and at the top of every command's file, so that `--help` answers at
once; the heavy libraries are imported inside the commands, after the arguments are read.
"""

from __future__ import annotations

import difflib
import errno
import os
import re
import shlex
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import OnnxOptError, UsageError, __version__
from ._run.garbage import collect_rarely
from .console import emit_json, escaped
from .deferred_imports import defer_imports

COMMANDS = (
    "run",
    "passes",
    "docs",
    "inspect",
    "diff",
    "explain",
    "verify",
    "bench",
    "report",
    "bisect",
    "eval",
    "tune",
    "distill",
    "export",
    "data",
    "reduce",
    "package",
    "selftest",
    "batch",
    "demo",
)
SHARED_FLAGS = ("--json", "--quiet", "-q", "--verbose", "-v", "--debug")
"""Options of every command, which may also stand in front of its name."""

OWN_FLAGS = ("--help", "-h", "--version")
"""Options of `onnx-opt` itself."""

LONGEST = 600
"""Characters of each part of an error; a longer one is shown by its ends. Chosen by hand."""

HELP = """LLVM's opt, for ONNX: make a trained model smaller and faster, and check the result.

\b
  onnx-opt model.onnx                                simplify, then quantize
  onnx-opt model.onnx --data feeds.npz               the same, calibrated and measured on data
  onnx-opt model.onnx --passes prune,quant -o small.onnx
  onnx-opt model.onnx -p 'prune(sparsity=0.6), quant(int8)' --data load.py:batches --metric top1

Without a command's name, MODEL is optimized (the `run` command; its options: onnx-opt run --help).
The output is checked against the input, or not written.

One command for each aim (smallest file, fastest, GPU, …): onnx-opt docs recipes

Exit codes: 0 done, 1 failed, 2 usage, 3 model or data refused, 4 a check or budget not met,
130 interrupted.
"""


class Commands(click.Group):
    """A group whose commands load on demand, `run` by default, and whose errors are two lines."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = import_module(f".commands.{cmd_name}", __package__)
        command: click.Command = module.command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        args = _with_command_first(args)
        own = (*COMMANDS, *OWN_FLAGS)
        if args and args[0] not in own:
            _refuse_mistyped_command(args)
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def main(
        self, args: Sequence[str] | None = None, *rest: Any, **extra: Any
    ) -> NoReturn:
        """Run, and leave with the exit code; every error becomes two lines on stderr."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        collect_rarely()
        defer_imports()
        if threading.current_thread() is threading.main_thread():
            # half-written files go, as with Ctrl-C
            signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            code = super().main(words, *rest, **extra)
        except BaseException as error:
            # not the parsed option: parsing itself may have failed
            debug = "--debug" in words or os.environ.get("ONNX_OPT_DEBUG") == "1"
            if isinstance(error, click.MissingParameter):
                error = _with_line_to_type(error, words)
            code = report_error(error, debug, as_json="--json" in words)
        sys.exit(code if isinstance(code, int) else 0)


def _with_command_first(args: list[str]) -> list[str]:
    """`--json run MODEL` as `run --json MODEL`: shared flags belong to the command."""
    flags: list[str] = []
    for word in args:
        if word in SHARED_FLAGS:
            flags.append(word)
            continue
        if word not in COMMANDS:
            break
        rest = args[len(flags) + 1 :]
        return [word, *flags, *rest]
    return args


@click.command(
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="onnx-opt")
def main() -> None:
    """The group itself does nothing."""


def report_error(
    error: BaseException, debug: bool = False, as_json: bool = False
) -> int:
    """Print an error as `error: where: problem` and `  fix: …` on stderr; returns its exit code.

    `as_json`: also as one object on stdout, beside what was known when it failed.
    """
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    # click's own say all there is to say
    from_click = (click.ClickException, click.exceptions.Exit, click.Abort)
    if debug and not isinstance(error, from_click):
        traceback.print_exception(error)
    if isinstance(error, click.UsageError) and _wants_help(error):
        # shows the help text, which needs no fix
        error.show()
        return 2
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    where, problem, fix, code = _in_words(error)
    # names in a file may hold control characters, and be of any length
    click.echo(f"error: {_cut(where)}: {_cut(problem)}", err=True)
    click.echo(f"  fix: {_cut(fix)}", err=True)
    if as_json:
        facts = {"where": where, "problem": problem, "fix": fix, "exit_code": code}
        emit_json({**_known(error), "error": facts})
    return code


def _with_line_to_type(
    error: click.MissingParameter, words: list[str]
) -> BaseException:
    """The error of something that is missing, with a fix that completes the words given."""
    context = error.ctx
    if context is None or error.param is None:
        return error
    line = ["onnx-opt", *words]
    for parameter in context.command.params:
        # all that is given is parsed before click misses anything
        is_given = bool(context.params.get(parameter.name or ""))
        if is_given or not parameter.required:
            continue
        if isinstance(parameter, click.Option):
            line.append(parameter.opts[-1])
        line.append(_metavar(parameter, context))
    where = _parameter_name(error.param)
    return UsageError(where, "is missing", " ".join(map(shlex.quote, line)))


def _metavar(parameter: click.Parameter, context: click.Context) -> str:
    try:
        return parameter.make_metavar(context)
    except TypeError:
        # click 8.1 asks for no context
        return parameter.make_metavar()  # type: ignore[call-arg]


def _wants_help(error: click.UsageError) -> bool:
    # by its name: click 8.1 has no such class
    return type(error).__name__ == "NoArgsIsHelpError"


def _known(error: BaseException) -> dict[str, Any]:
    """The JSON object of what was known when an error was raised; empty where nothing was."""
    account = getattr(error, "account", None)
    if account is None:
        return {}
    if isinstance(account, dict):
        return account
    known: dict[str, Any] = account.as_dict()
    return known


def _cut(text: str) -> str:
    """Text safe for a terminal, and of a length that one reads."""
    if len(text) > LONGEST:
        text = f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}"
    return escaped(text)


def _in_words(error: BaseException) -> tuple[str, str, str, int]:
    """Place, problem, fix and exit code of any error."""
    if isinstance(error, OnnxOptError):
        return error.where, error.problem, error.fix, error.exit_code
    if isinstance(error, click.ClickException):
        return (*_click_words(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return (
            "interrupted",
            "stopped by the user",
            # a training that has kept its state says so; click puts its own error around that
            str(error.__cause__ or error)
            or "nothing was written; start it again to retry, with --resume FOLDER if it trains",
            130,
        )
    if isinstance(error, MemoryError):
        return (
            "memory",
            "not enough memory",
            "close other programs, or pass --verify never for a very large model",
            1,
        )
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return (
            error.filename or "output",
            "no space left where it is written",
            "make room there, or write to another place",
            1,
        )
    return (
        "internal",
        f"{type(error).__name__}: {error} (onnx-opt {__version__})",
        "this is a bug: run again with --debug and report the traceback",
        1,
    )


def _click_words(error: click.ClickException) -> tuple[str, str, str]:
    """Place, problem and fix of a usage error that click found."""
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "onnx-opt"
    help_text = f"see {command} --help"
    if isinstance(error, click.NoSuchOption):
        # click has looked for the nearest names
        near = error.possibilities
        fix = f"did you mean '{near[0]}'?" if near else help_text
        return error.option_name, "no such option", fix
    parameter = getattr(error, "param", None)
    if parameter is None:
        message = error.format_message().rstrip(".")
        extra = re.search(r"unexpected extra argument \((\S+)\)", message)
        if extra is not None and _is_pass(extra[1]):
            help_text = f"write --passes {extra[1]}"
        elif extra is not None and Path(extra[1]).exists():
            help_text = (
                "compare models by onnx-opt verify A B, or time them by bench A B"
            )
        return "usage", message, help_text
    if isinstance(error, click.BadParameter):
        names = "/".join(parameter.opts)
        choices = getattr(parameter.type, "choices", None)
        fix = f"choose one of {', '.join(choices)}" if choices else help_text
        percent = re.search(r"'([0-9.]+)%'", error.message)
        if percent is not None:
            fix = f"write {names} {float(percent[1]) / 100:g}"
        return names, error.message.rstrip("."), fix
    return "usage", error.format_message().rstrip("."), help_text


def _parameter_name(parameter: click.Parameter) -> str:
    """Name of an option or argument as the help text shows it."""
    if isinstance(parameter, click.Option):
        return "/".join(parameter.opts)
    return str(parameter.name).upper()


def _refuse_mistyped_command(words: list[str]) -> None:
    """Errors: UsageError for a first word that is no file and looks like a command or a pass."""
    word, *rest = words
    if word.startswith("-") or Path(word).exists():
        return
    # here, not above: naming the passes takes no time, but a pass's name is rare
    if not Path(word).suffix and _is_pass(word):
        model = next((other for other in rest if not other.startswith("-")), "MODEL")
        raise UsageError(
            "usage",
            f"'{word}' is a pass, not a command",
            f"onnx-opt {model} --passes {word}",
        )
    # a mistyped command would else be told as a model that is missing
    near = difflib.get_close_matches(word, COMMANDS, 1)
    if near:
        raise click.UsageError(
            f"'{word}' is neither a command nor a file; did you mean '{near[0]}'?"
        )
    # the file behind it would else be told as one too many
    if rest and not Path(word).suffix and Path(rest[0]).is_file():
        raise UsageError(
            "usage",
            f"'{word}' is neither a command nor a file",
            f"onnx-opt {rest[0]} optimizes it; onnx-opt --help lists the commands",
        )


def _is_pass(word: str) -> bool:
    from ..passes._core.registry import pass_names

    return word in pass_names()
