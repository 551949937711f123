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
@data_option("Inputs to run on, instead of made-up ones")
@click.option(
    "--check",
    metavar="CMD",
    help="Command that takes the path of a model and exits with 0 if the model is good.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="A model is good if its signal-to-noise ratio to the original is at least this (dB).",
)
@click.option(
    "--atol",
    type=click.FloatRange(min=0),
    help="A model is good if |a - b| <= atol + rtol |a| everywhere (a: the original's output).",
)
@click.option(
    "--rtol",
    type=click.FloatRange(min=0),
    help="Relative part of that limit; 0 if only --atol is given.",
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
    """Find the pass, and its rewrite or layer, that breaks MODEL.

    Without a check or a limit, a model is good if it is valid, runs, has the same inputs and
    outputs and, after exact passes, gives the same values. Writes no model.
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
