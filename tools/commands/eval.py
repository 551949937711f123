"""`onnx-opt eval MODEL`: a metric on labelled data."""

from __future__ import annotations

from pathlib import Path

import click

from ..console import Progress, emit_json, say, shared_options


@click.command("eval")
@click.argument("model", type=click.Path(path_type=Path))
@click.option(
    "--data",
    metavar="D",
    required=True,
    help="Labelled data: .npz with 'labels', or module:callable.",
)
@click.option(
    "--metric",
    metavar="M",
    required=True,
    help="top1, top5, spearman, perplexity, module:callable or file.py:callable.",
)
@click.option(
    "--provider", default="cpu", show_default=True, help="cpu, cuda or tensorrt."
)
@click.option(
    "--threads",
    type=click.IntRange(min=0),
    default=0,
    help="ONNX Runtime threads; 0: its default.",
)
@shared_options
def command(
    model: Path,
    data: str,
    metric: str,
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
    from .._run.measure import score

    chosen = metric_named(metric)
    with Worker() as worker:
        session = open_session(worker, checked(model), provider, threads=threads)
        feeds = open_feeds(data, session.inputs)
        # with --json as with -q: words would only be in the way
        value = score(session, feeds, chosen, Progress(verbosity - as_json))
        machine = hardware(worker, provider)
    if as_json:
        facts = {
            "model": str(model),
            "data": data,
            "metric": chosen.name,
            "value": value,
            "hardware": machine.to_json(),
        }
        emit_json(facts)
        return
    click.echo(f"{chosen.name} {value:.6g}")
    if verbosity >= 0:
        say(f"on {machine.label}")
