"""`onnx-opt tune MODEL`: the best mix of sparsity and bits within a budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ..command_options import (
    EVAL_DATA,
    FORCE,
    MAX_BYTES,
    MAX_LATENCY,
    METRIC_OUTPUT,
    REPORT,
    TARGET,
    THREADS,
    data_option,
    metric_option,
    seed_option,
)
from ..console import Progress, shared_options
from ..shown import show_result, show_search, tell_trial


@click.command("tune")
@click.argument("model", type=click.Path(path_type=Path))
@data_option("Data to calibrate on, with labels or without", required=True)
@EVAL_DATA
@metric_option()
@METRIC_OUTPUT
@click.option(
    "--max-drop",
    type=click.FloatRange(min=0),
    help="Budget: most that the metric may drop; without a metric, the share of rows whose class "
    "may change.",
)
@click.option(
    "--min-sqnr",
    type=float,
    metavar="DB",
    help="Budget: least signal-to-noise ratio of the outputs to the original's (dB).",
)
@MAX_BYTES
@MAX_LATENCY
@click.option(
    "--objective",
    type=click.Choice(["size", "latency", "macs"]),
    help="What is to be small within the budget. Default: size; with a budget of cost alone it is "
    "the loss.",
)
@click.option(
    "--aim",
    type=click.Choice(["size", "speed", "accuracy"]),
    help="Without a budget in mind: try a handful of pipelines that suit the target, and take the "
    "best that loses little.",
)
@click.option(
    "--recover",
    type=click.FloatRange(min=0),
    default=0.0,
    metavar="MINUTES",
    help="Train a recipe that loses more than the budget allows for so long at the end; needs "
    "PyTorch.",
)
@click.option(
    "--sensitivity",
    type=click.Choice(["auto", "measured", "estimated"]),
    default="auto",
    show_default=True,
    help="Whether losses of weights are measured, or estimated from gradients (needs torch). auto: "
    "estimated where measuring takes too long.",
)
@click.option(
    "--time-budget",
    "minutes",
    type=click.FloatRange(min=0),
    default=15.0,
    show_default=True,
    metavar="MINUTES",
    help="Begin no further round of trials after this time.",
)
@click.option(
    "--jobs",
    type=click.IntRange(min=0),
    default=0,
    help="Trials at a time, in processes of this machine; 0: by its cores and memory.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run trials on this Ray cluster instead; auto: the one this machine belongs to, local: "
    "one that lasts as long as the search.",
)
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Where to write. Default: MODEL's stem + .opt.onnx.",
)
@click.option(
    "--save-recipe",
    type=click.Path(path_type=Path, dir_okay=False),
    metavar="FILE",
    help="Write the recipe here for --passes @FILE: as TOML if it ends in .toml, else as text.",
)
@click.option(
    "--resume",
    type=click.Path(path_type=Path, file_okay=False),
    metavar="FOLDER",
    help="Keep what is found out here, and go on from what an interrupted search left.",
)
@click.option(
    "--dry-run", is_flag=True, help="Search and show the figures; write nothing."
)
@REPORT
@TARGET
@seed_option("the split of the data and everything else random")
@THREADS
@FORCE
@shared_options
def command(
    model: Path,
    out: Path | None,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Find the smallest form of MODEL within a budget.

    The search sees half of the labelled data, the verdict is of the other half. The recipe is
    pipeline text: the main command makes the same file of it without a search.
    """
    # these imports are here, not above: --help needs none of them
    from ...runtime.worker_pool import pool
    from ..optimize import default_output
    from ..tune import tune

    if model.is_file():
        pool().prestart()
    is_quiet = as_json or verbosity < 0
    tell = None if is_quiet else tell_trial
    result = tune(
        model,
        out=out or default_output(model),
        progress=Progress(verbosity - as_json),
        tell=tell,
        **options,
    )
    if not is_quiet:
        show_search(result.search)
    show_result(result, as_json, verbosity)
