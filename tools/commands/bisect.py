"""`onnx-opt bisect MODEL --passes TEXT`: the pass, and its rewrite, that breaks a property."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..command_options import TARGET, THREADS, data_option, seed_option
from ..console import Progress, emit_json, escaped, say, shared_options


@click.command("bisect")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "-p",
    "--passes",
    multiple=True,
    required=True,
    metavar="TEXT",
    help="The pipeline, or @FILE that holds it; may be repeated.",
)
@data_option("Feeds instead of synthetic ones")
@click.option(
    "--check",
    metavar="CMD",
    help="A command that is given a model's path, and exits with 0 if that is good.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Good is an SQNR to the original of at least this (dB).",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="Good is every |a - b| <= atol + rtol |a|, a of the original.",
)
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="The same; each is 0 where only the other is given.",
)
@TARGET
@seed_option("everything random")
@THREADS
@shared_options
def command(
    model: Path,
    passes: tuple[str, ...],
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Find the pass that breaks MODEL, and the rewrite or the layer by which it does.

    Good is, unless a check or a limit is given: valid, runs, the same interface, and after exact
    passes the same outputs. Writes no model.
    """
    from ..bisect import bisect

    found = bisect(
        model, list(passes), progress=Progress(verbosity - as_json), **options
    )
    if as_json:
        emit_json({"model": str(model), **found.as_dict()})
        return
    for line in found.lines():
        # names of layers come from the file
        click.echo(escaped(line))
    for warning in found.warnings:
        say(f"warning: {warning}")
