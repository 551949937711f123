"""`onnx-opt eval MODEL`: a metric on labelled data."""

from __future__ import annotations

from pathlib import Path

import click

from ..command_options import (
    METRIC_OUTPUT,
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
@THREADS
@shared_options
def command(
    model: Path,
    data: str | list[str],
    metric: str,
    metric_output: str | None,
    provider: str,
    threads: int,
    as_json: bool,
    verbosity: int,
) -> None:
    """Evaluate MODEL on labelled data."""
    from ...runtime.feeds import open_feeds
    from ...runtime.hardware import hardware
    from ...runtime.metrics import metric_named
    from ...runtime.session import open_session
    from ...runtime.worker import Worker
    from .._compare import checked
    from .._run.scoring import is_chance, score

    chosen = metric_named(metric)
    with Worker() as worker:
        session = open_session(worker, checked(model), provider, threads=threads)
        feeds = open_feeds(data, session.inputs, model.parent)
        # with --json as with -q: words would only be in the way
        progress = Progress(verbosity - as_json)
        found = score(session, feeds, chosen, progress, metric_output)
        machine = hardware(worker, provider)
    if as_json:
        facts = {
            "model": str(model),
            "data": data,
            "metric": chosen.name,
            "value": found.value,
            "hardware": machine.to_json(),
        }
        emit_json(facts)
        return
    click.echo(f"{chosen.name} {found.value:.6g}")
    if found.strangers:
        say(f"warning: no label is one that the model predicts: {found.strangers}")
    if is_chance(found):
        say(
            f"warning: as a guess among {found.classes} classes would be: are labels numbered as "
            "the outputs are, and is the data preprocessed as for training?"
        )
    if verbosity >= 0:
        say(f"on {machine.label}")
