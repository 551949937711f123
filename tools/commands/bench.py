"""`onnx-opt bench MODEL…`: latency side by side."""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_options import PROVIDER, THREADS, data_option, seed_option
from ..console import emit_json, shared_options, show

if TYPE_CHECKING:
    from ...runtime.bench import Latency
    from ...runtime.hardware import Hardware


@click.command("bench")
@click.argument("models", nargs=-1, required=True, type=click.Path(path_type=Path))
@PROVIDER
@THREADS
@data_option("Inputs to time (the first batches), instead of made-up ones")
@click.option(
    "--seconds",
    type=click.FloatRange(min=0.1),
    default=5.0,
    show_default=True,
    help="Time to measure for.",
)
@seed_option("made-up inputs")
@shared_options
def command(
    models: tuple[Path, ...], as_json: bool, verbosity: int, **options: Any
) -> None:
    """Time models in turns in one process.

    Shows the median and 90th percentile of the latency, its ratio to the first model's with an
    interval, and the peak memory.
    """
    facts = bench_facts(models, **options)
    if as_json:
        emit_json(facts)
        return
    for part in latency_parts(facts):
        show(part)


def bench_facts(models: tuple[Path, ...], **options: Any) -> dict[str, Any]:
    """The JSON form; `options`: as of `measure`."""
    rows, machine = measure(models, **options)
    return {
        "provider": options["provider"],
        "threads": options["threads"],
        "models": rows,
        "hardware": machine.to_json(),
    }


def latency_parts(facts: dict[str, Any]) -> list[Any]:
    """The table, and the CPU."""
    from ..tables import measured_on

    label = facts["hardware"]["label"]
    return [latency_table(facts["models"]), measured_on(label)]


def measure(
    models: tuple[Path, ...],
    provider: str,
    threads: int,
    data: Any,
    seconds: float,
    seed: int,
) -> tuple[list[dict[str, Any]], Hardware]:
    """One row a model, in the order given, and the machine that measured them."""
    from ...runtime.bench import interleaved
    from ...runtime.hardware import hardware
    from ...runtime.session import open_session
    from ...runtime.worker import Worker
    from .._compare import checked, feeds_for
    from .._run.drift import first_batches

    paths = [checked(model) for model in models]
    with Worker() as worker:
        sessions = [
            open_session(worker, path, provider, threads=threads) for path in paths
        ]
        # one set a model: their inputs may have other names
        feeds = [first_batches(feeds_for(session, data, seed)) for session in sessions]
        latencies = interleaved(sessions, feeds, seconds=seconds)
        machine = hardware(worker, provider)
    peaks = []
    for path, batches in zip(paths, feeds, strict=True):
        # a process of its own: the peak of one that has several models is no one's
        with Worker() as alone:
            open_session(alone, path, provider, threads=threads).run(batches[0])
            peaks.append(alone.call("peak_memory"))
    figures = zip(models, latencies, peaks, strict=True)
    rows = [_row(model, latency, peak) for model, latency, peak in figures]
    return rows, machine


def _row(model: Path, latency: Latency, peak: int) -> dict[str, Any]:
    return {
        "model": str(model),
        "median_ms": latency.median_ms,
        "p90_ms": latency.p90_ms,
        "min_ms": latency.min_ms,
        "ratio_to_first": latency.ratio.median,
        "ratio_low": latency.ratio.low,
        "ratio_high": latency.ratio.high,
        "runs": latency.runs,
        "peak_memory_bytes": peak,
    }


def latency_table(rows: list[dict[str, Any]]) -> Any:
    """One row a model; `ratio` below 1 is faster than the first, with its interval of 95 %."""
    from ..console import markup_safe
    from ..tables import bytes_text, milliseconds, plain_table

    figures = ("median", "p90", "min", "ratio", "95 %", "runs", "peak memory")
    table = plain_table(None, "model", *figures, right=figures)
    for row in rows:
        table.add_row(
            markup_safe(row["model"]),
            milliseconds(row["median_ms"]),
            milliseconds(row["p90_ms"]),
            milliseconds(row["min_ms"]),
            f"{row['ratio_to_first']:.3f}",
            interval_text(row["ratio_low"], row["ratio_high"]),
            str(row["runs"]),
            bytes_text(row["peak_memory_bytes"]),
        )
    return table


def interval_text(low: float, high: float) -> str:
    """`0.463-0.532`; `?` where too little was timed for any."""
    return f"{low:.3f}-{high:.3f}" if math.isfinite(high) else "?"
