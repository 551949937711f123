"""`onnx-opt eval MODEL`: a metric on labelled data."""

from __future__ import annotations

from pathlib import Path

import click

from ..command_options import (
    METRIC_OUTPUT,
    NO_CACHE,
    PROVIDER,
    THREADS,
    data_option,
    metric_option,
)
from ..console import Progress, emit_json, say, shared_options


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@data_option("Labelled data", required=True)
@metric_option(required=True)
@METRIC_OUTPUT
@PROVIDER
@NO_CACHE
@THREADS
@shared_options
def command(
    model: Path,
    data: str | list[str],
    metric: str,
    metric_output: str | None,
    provider: str,
    threads: int,
    no_cache: bool,
    as_json: bool,
    verbosity: int,
) -> None:
    """Evaluate MODEL on labelled data."""
    from .._evaluate import evaluated

    evaluation = evaluated(
        model,
        data,
        metric,
        output=metric_output,
        provider=provider,
        threads=threads,
        use_cache=not no_cache,
        # with --json as with -q: words would only be in the way
        progress=Progress(verbosity - as_json),
    )
    found = evaluation.score
    machine = evaluation.hardware
    if as_json:
        facts = {
            "model": str(model),
            "data": data,
            "metric": evaluation.metric,
            "value": found.value,
            "cached": found.is_cached,
            "warnings": evaluation.warnings,
            "hardware": machine.to_json(),
        }
        emit_json(facts)
        return
    click.echo(f"{evaluation.metric} {found.value:.6g}")
    if found.is_cached and verbosity >= 0:
        say("from an earlier evaluation; --no-cache computes it again")
    for words in evaluation.warnings:
        say(f"warning: {words}")
    if verbosity >= 0:
        say(f"on {machine.label}")
