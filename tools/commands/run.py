"""`onnx-opt MODEL`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ... import OnnxOptError, UsageError
from .._run.clock import Clock
from ..command_options import (
    EVAL_DATA,
    FORCE,
    LAYERS,
    METRIC_OUTPUT,
    NO_CACHE,
    REPORT,
    RESUME,
    TARGET,
    THREADS,
    data_option,
    metric_option,
    seed_option,
)
from ..console import Progress, command_line, emit_json, say, shared_options

if TYPE_CHECKING:
    from .._run.result import RunAccount
    from ..result import Result

SHOWN_LOSSES = 20
"""Layers in the table of losses, unless -v asks for all."""


@click.command("run")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Where to write. Default: MODEL's stem + .opt.onnx.",
)
@click.option(
    "-p",
    "--passes",
    multiple=True,
    metavar="TEXT",
    help="The pipeline, or @FILE that holds it; may be repeated. Default: simplify,quant.",
)
@TARGET
@data_option("Feeds for calibration and checks")
@EVAL_DATA
@metric_option()
@METRIC_OUTPUT
@click.option(
    "--metric-each", is_flag=True, help="Measure the metric after each pass, too."
)
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Write nothing if the metric drops by more than this.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Write nothing if the outputs' signal-to-noise ratio to the original's is lower (dB).",
)
@click.option(
    "--floor",
    metavar="TEXT",
    help="Least that a lossy result keeps, unless --force: 3 (dB), 50% (of rows whose largest "
    "output stays), both with a comma, or none. Default: 50% of classes, 3 dB of all else.",
)
@seed_option("everything random")
@THREADS
@click.option(
    "--verify",
    type=click.Choice(["auto", "always", "never"]),
    default="auto",
    show_default=True,
    help="Run the models to compare them; auto: if the weights take at most 1 GiB.",
)
@click.option("--no-bench", is_flag=True, help="Do not measure latency.")
@NO_CACHE
@click.option(
    "--zipped",
    is_flag=True,
    help="Also show the sizes of both files in a zip archive (level 9).",
)
@click.option(
    "--no-pack",
    is_flag=True,
    help="Do not store constants in fewer bytes at the end of a lossy pipeline (pass pack).",
)
@click.option(
    "--explain-loss",
    is_flag=True,
    help="Show how much precision each layer loses, by its weights and by its activations.",
)
@LAYERS
@REPORT
@RESUME
@click.option(
    "--dry-run",
    is_flag=True,
    help="Run the passes and show the figures; write nothing.",
)
@click.option(
    "--strict",
    is_flag=True,
    help="Fail where an exact pass is not exact, or nothing can be compared.",
)
@FORCE
@shared_options
def command(
    model: Path,
    out: Path | None,
    passes: tuple[str, ...],
    as_json: bool,
    verbosity: int,
    no_bench: bool,
    no_cache: bool,
    no_pack: bool,
    **options: Any,
) -> None:
    """Optimize MODEL by a pipeline of passes, and write the result.

    Each pass is checked against the original; size, latency and metric are measured before and
    after.
    """
    clock = Clock()
    with clock.step("start"):
        # these imports are here, not above: onnx_ir takes a second to load, and --help needs none
        from ...runtime.worker_pool import pool

        # while the child loads ONNX Runtime, this process loads onnx_ir and reads the model
        if options["verify"] != "never" and model.is_file():
            pool().prestart()
        from ..optimize import DEFAULT_PASSES, default_output, optimize

    # with --json as with -q: bars would only be in the way
    try:
        result = optimize(
            model,
            list(passes) or DEFAULT_PASSES,
            out=out or default_output(model),
            bench=not no_bench,
            cache=not no_cache,
            pack=not no_pack,
            progress=Progress(verbosity - as_json),
            clock=clock,
            **options,
        )
    except OnnxOptError as error:
        # the account, with every layer, shows where a budget was missed or a pass refused
        if _tells(error) and not as_json and verbosity >= 0:
            show_account(error.account, verbosity=1)
            if options["explain_loss"]:
                show_losses(error.account.loss, passes, verbosity=1)
        raise
    show_result(result, as_json, verbosity)
    # with --report they are on its page
    if options["explain_loss"] and not as_json and verbosity >= 0:
        show_losses(result.loss, passes, verbosity)


def _tells(error: OnnxOptError) -> bool:
    """True where an account tells more than the error: not of options, nor before any pass."""
    if isinstance(error, UsageError) or error.account is None:
        return False
    return bool(error.account.passes)


def show_result(result: Result, as_json: bool, verbosity: int) -> None:
    """Tables, warnings and the path of what was written, or JSON.

    Nothing in a process that leaves the writing to another.
    """
    from .._run.context import is_main_process

    if not is_main_process():
        return
    if as_json:
        emit_json(result.as_dict())
        return
    show_account(result, verbosity)
    if result.output_path:
        # alone on stdout, so that a script can read it
        click.echo(result.output_path)
    else:
        say("dry run: nothing was written")


def show_account(result: RunAccount, verbosity: int) -> None:
    """Tables and warnings, on stderr."""
    if verbosity >= 0:
        from ..console import show
        from ..tables import result_tables

        for table in result_tables(result, verbosity):
            show(table, stderr=True)
    for warning in result.warnings:
        say(f"warning: {warning}")


def show_losses(
    losses: list[dict[str, Any]] | None, passes: tuple[str, ...], verbosity: int
) -> None:
    """The worst layers, if losses were asked for, and the command that spares the worst one."""
    if not losses:
        return
    from ...passes._core.pipeline import as_pipeline
    from .._run.explain_loss import next_pipeline
    from ..console import show
    from ..optimize import DEFAULT_PASSES
    from ..tables import loss_table

    most = None if verbosity > 0 else SHOWN_LOSSES
    show(loss_table(losses, most), stderr=True)
    pipeline = as_pipeline(list(passes) or DEFAULT_PASSES)
    following = next_pipeline(pipeline, losses)
    if following is not None:
        # all that was given holds for the next run, too
        again = command_line(click.get_current_context(), passes=str(following))
        say(f"next: {again}")
