"""`onnx-opt bench MODEL…`: latency side by side."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ..command_options import PROVIDER, REPORT, THREADS, data_option, seed_option
from ..console import emit_json, say, shared_options, show

if TYPE_CHECKING:
    from ...runtime.bench import Latency
    from ...runtime.hardware import Hardware
    from ...runtime.held_outputs import Arrays
    from ...runtime.session import Session


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
@REPORT
@shared_options
def command(
    models: tuple[Path, ...],
    report: Path | None,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Time models in turns in one process.

    Shows the median and 90th percentile of the latency, its ratio to the first model's with an
    interval, and the peak memory. Of models with a cache the prefill and a step of one token behind
    it are timed each by itself.
    """
    from .._report.write import check_page, write_page

    if report is not None:
        check_page(report)
    facts = bench_facts(models, **options)
    if report is not None:
        write_page(report, facts, "bench")
    if as_json:
        emit_json(facts)
        return
    for part in latency_parts(facts):
        show(part)


def bench_facts(models: tuple[Path, ...], **options: Any) -> dict[str, Any]:
    """The JSON form; `options`: as of `measure`."""
    found = measure(models, **options)
    return {
        "versions": found.versions,
        "command": bench_line(models, **options),
        "provider": options["provider"],
        "threads": options["threads"],
        "seed": options["seed"],
        "models": found.rows,
        "hardware": found.hardware.to_json(),
    }


def bench_line(models: Sequence[Path], data: Any, **options: Any) -> str | None:
    """The shell line that does the same; None where the data is an object of Python's."""
    words = ["onnx-opt", "bench", *map(str, models)]
    places = data if isinstance(data, list) else [data]
    for place in places if data is not None else ():
        if not isinstance(place, (str, Path)):
            return None
        words += ["--data", str(place)]
    for name, value in options.items():
        words += [f"--{name}", f"{value}"]
    return shlex.join(words)


def latency_parts(facts: dict[str, Any]) -> list[Any]:
    """The table, and the CPU."""
    from ..tables import measured_on

    label = facts["hardware"]["label"]
    return [latency_table(facts["models"]), measured_on(label)]


@dataclass(frozen=True)
class Measured:
    """One row a model, in the order given, the machine that measured them, and what took part."""

    rows: list[dict[str, Any]]
    hardware: Hardware
    versions: dict[str, str | None]


def measure(
    models: tuple[Path, ...],
    provider: str,
    threads: int,
    data: Any,
    seconds: float,
    seed: int,
) -> Measured:
    """Time models in turns. Errors: RefusedError, UsageError."""
    from ...runtime.bench import interleaved
    from ...runtime.hardware import hardware
    from ...runtime.session import open_session
    from ...runtime.worker import Worker
    from .._compare import checked, feeds_for
    from .._run.drift import first_batches
    from .._run.versions import versions

    paths = [checked(model) for model in models]
    with Worker() as worker:
        sessions = [
            open_session(worker, path, provider, threads=threads) for path in paths
        ]
        # one set a model: their inputs may have other names
        feeds = [first_batches(feeds_for(session, data, seed)) for session in sessions]
        steps = []
        for session, batches in zip(sessions, feeds, strict=True):
            steps.append(_step_of(session, batches))
        has_steps = all(steps)
        if has_steps:
            feeds = [_like_first(batches) for batches in feeds]
            # both take their share of the time
            seconds /= 2
        latencies = interleaved(sessions, feeds, seconds=seconds)
        in_steps: list[Latency | None] = [None] * len(sessions)
        if has_steps:
            timed = interleaved(
                sessions,
                steps,
                seconds=seconds,
            )
            in_steps = list(timed)
        machine = hardware(worker, provider)
        running = versions(worker)
    peaks = []
    for path, batches in zip(paths, feeds, strict=True):
        # a process of its own: the peak of one that has several models is no one's
        with Worker() as alone:
            session = open_session(
                alone, path, provider, threads=threads, as_deployed=True
            )
            session.run(batches[0])
            peaks.append(alone.call("peak_memory"))
    figures = zip(models, latencies, in_steps, peaks, strict=True)
    rows = [_row(*own) for own in figures]
    return Measured(rows, machine, running)


def _step_of(session: Session, batches: Sequence[Arrays]) -> list[Arrays]:
    """Feeds of one token behind the first batch; empty for a model that takes none."""
    from ... import OnnxOptError
    from ...runtime.cached_run import step_after

    try:
        step = step_after(session, batches[0])
    except OnnxOptError as error:
        say(f"warning: {session.path.name}: no step is timed: {error.problem}")
        return []
    return [] if step is None else [step]


def _like_first(batches: Sequence[Arrays]) -> list[Arrays]:
    """Batches of the first one's shapes: made-up feeds hold prefills and steps."""
    first = _shapes(batches[0])
    return [batch for batch in batches if _shapes(batch) == first]


def _shapes(batch: Arrays) -> dict[str, tuple[int, ...]]:
    return {name: array.shape for name, array in batch.items()}


def _row(
    model: Path, latency: Latency, step: Latency | None, peak: int
) -> dict[str, Any]:
    from .._run.provenance import sha256_of

    row = {
        "model": str(model),
        "sha256": sha256_of(model),
        **_times(latency),
        "peak_memory_bytes": peak,
    }
    if step is not None:
        row["step"] = _times(step)
    return row


def _times(latency: Latency) -> dict[str, Any]:
    return {
        "median_ms": latency.median_ms,
        "p90_ms": latency.p90_ms,
        "min_ms": latency.min_ms,
        "ratio_to_first": latency.ratio.median,
        "ratio_low": latency.ratio.low,
        "ratio_high": latency.ratio.high,
        "runs": latency.runs,
    }


def latency_table(rows: list[dict[str, Any]]) -> Any:
    """One row a model; `ratio` below 1 is faster than the first, with its interval of 95 %.

    Of models with a cache two rows: the prefill, and a step of one token.
    """
    from ..tables import bytes_text, plain_table

    figures = ("median", "p90", "min", "ratio", "95 %", "runs", "peak memory")
    table = plain_table(None, "model", *figures, right=figures)
    for row in rows:
        peak = bytes_text(row["peak_memory_bytes"])
        name = str(row["model"])
        if "step" not in row:
            table.add_row(*_cells(name, row), peak)
            continue
        table.add_row(*_cells(f"{name}: prefill", row), peak)
        table.add_row(*_cells(f"{name}: one token", row["step"]), "")
    return table


def _cells(name: str, times: dict[str, Any]) -> tuple[str, ...]:
    from ..console import markup_safe
    from ..tables import milliseconds

    return (
        markup_safe(name),
        milliseconds(times["median_ms"]),
        milliseconds(times["p90_ms"]),
        milliseconds(times["min_ms"]),
        f"{times['ratio_to_first']:.3f}",
        interval_text(times["ratio_low"], times["ratio_high"]),
        str(times["runs"]),
    )


def interval_text(low: float, high: float) -> str:
    """`0.463-0.532`; `?` where too little was timed for any."""
    return f"{low:.3f}-{high:.3f}" if math.isfinite(high) else "?"
