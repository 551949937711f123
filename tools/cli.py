"""The command line: one click group; `onnx-opt MODEL …` means `onnx-opt run MODEL …`.

Only click is imported here and at the top of every command's file, so that `--help` answers at
once; the heavy libraries are imported inside the commands, after the arguments are read.
"""

from __future__ import annotations

import difflib
import gc
import os
import signal
import sys
import threading
import traceback
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any, NoReturn

import click

from .. import OnnxOptError, __version__
from .console import escaped

COMMANDS = (
    "run",
    "passes",
    "inspect",
    "verify",
    "bench",
    "eval",
    "distill",
    "export",
    "demo",
)
SHARED_FLAGS = ("--json", "--quiet", "-q", "--verbose", "-v", "--debug")

HELP = """LLVM's opt, for ONNX: make a trained model smaller and faster, and check the result.

\b
  onnx-opt model.onnx                                simplify, then quantize
  onnx-opt model.onnx --data feeds.npz               the same, calibrated and measured on data
  onnx-opt model.onnx --passes prune,quant -o small.onnx
  onnx-opt model.onnx --passes 'prune(sparsity=0.6), quant(int8)' --data load.py:batches --metric top1

Without a command's name, MODEL is optimized (the `run` command; its options: onnx-opt run --help).
The output is checked against the input, or not written.
Exit codes: 0 done, 1 failed, 2 usage, 3 model or data refused, 4 a check or budget not met, 130 interrupted.
"""


class Commands(click.Group):
    """A group whose commands load on demand, whose default command is `run`, and whose errors are
    two lines.
    """

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = import_module(
            f".commands.{cmd_name}", __package__
        ).command
        return command

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        flags = 0
        while flags < len(args) and args[flags] in SHARED_FLAGS:
            flags += 1
        if flags and args[flags : flags + 1] and args[flags] in COMMANDS:
            args = [args[flags], *args[:flags], *args[flags + 1 :]]
        if (
            args
            and args[0] not in COMMANDS
            and args[0] not in ("--help", "-h", "--version")
        ):
            _refuse_mistyped_command(args[0])
            args = ["run", *args]
        return super().parse_args(ctx, args)

    def main(
        self, args: Sequence[str] | None = None, *rest: Any, **extra: Any
    ) -> NoReturn:
        """Run, and leave with the exit code; every error becomes two lines on stderr."""
        words = list(sys.argv[1:] if args is None else args)
        extra["standalone_mode"] = False
        # A graph is many long-lived objects: at the default thresholds half the time goes to
        # walking them for cycles.
        gc.set_threshold(100_000, 50, 100)
        if threading.current_thread() is threading.main_thread():
            signal.signal(
                signal.SIGTERM, signal.default_int_handler
            )  # half-written files go, as with Ctrl-C
        try:
            code = super().main(words, *rest, **extra)
        except BaseException as error:
            code = report_error(
                error,
                debug="--debug" in words or os.environ.get("ONNX_OPT_DEBUG") == "1",
            )
        sys.exit(code if isinstance(code, int) else 0)


@click.command(
    cls=Commands,
    help=HELP,
    no_args_is_help=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
@click.version_option(__version__, prog_name="onnx-opt")
def main() -> None:
    """The group itself does nothing."""


def report_error(error: BaseException, debug: bool = False) -> int:
    """Print an error as `error: where: problem` and `  fix: …` on stderr; returns the exit code it stands for."""
    if isinstance(error, SystemExit):
        return error.code if isinstance(error.code, int) else 1
    if debug and not isinstance(
        error, (click.ClickException, click.exceptions.Exit, click.Abort)
    ):
        traceback.print_exception(error)
    if isinstance(error, click.exceptions.NoArgsIsHelpError):
        error.show()
        return 2
    if isinstance(error, click.exceptions.Exit):
        return error.exit_code
    where, problem, fix, code = _in_words(error)
    click.echo(
        f"error: {escaped(where)}: {escaped(problem)}\n  fix: {escaped(fix)}", err=True
    )
    return code


def _in_words(error: BaseException) -> tuple[str, str, str, int]:
    if isinstance(error, OnnxOptError):
        return error.where, error.problem, error.fix, error.exit_code
    if isinstance(error, click.ClickException):
        return (*_click_words(error), error.exit_code)
    if isinstance(error, (KeyboardInterrupt, click.Abort)):
        return (
            "interrupted",
            "stopped by the user",
            "nothing was written; start it again to retry",
            130,
        )
    if isinstance(error, MemoryError):
        return (
            "memory",
            "not enough memory",
            "close other programs, or pass --verify never for a very large model",
            1,
        )
    place = f"{type(error).__name__}: {error}"
    return (
        "internal",
        f"{place} (onnx-opt {__version__})",
        "this is a bug: run again with --debug and report the traceback",
        1,
    )


def _click_words(error: click.ClickException) -> tuple[str, str, str]:
    context = getattr(error, "ctx", None)
    help_text = (
        f"see {context.command_path} --help" if context else "see onnx-opt --help"
    )
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities
        return (
            error.option_name,
            "no such option",
            f"did you mean '{near[0]}'?" if near else help_text,
        )
    if isinstance(error, click.MissingParameter) and error.param is not None:
        name = (
            "/".join(error.param.opts)
            if isinstance(error.param, click.Option)
            else str(error.param.name).upper()
        )
        return name, "is missing", help_text
    if isinstance(error, click.BadParameter) and error.param is not None:
        choices = getattr(error.param.type, "choices", None)
        fix = f"choose one of {', '.join(choices)}" if choices else help_text
        return "/".join(error.param.opts), error.message.rstrip("."), fix
    return "usage", error.format_message().rstrip("."), help_text


def _refuse_mistyped_command(word: str) -> None:
    near = difflib.get_close_matches(word, COMMANDS, 1)
    if near and not word.startswith("-") and not Path(word).exists():
        raise click.UsageError(
            f"'{word}' is neither a command nor a file; did you mean '{near[0]}'?"
        )
