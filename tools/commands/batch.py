"""`onnx-opt batch FOLDER`: many models, each in a process of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from .._config.command import ConfiguredCommand, config_options
from ..command_options import (
    CACHE_IN,
    CACHE_SIZE,
    EVAL_DATA,
    FLOOR,
    MAX_DROP,
    METRIC_OUTPUT,
    MIN_SQNR,
    NO_PACK,
    SHAPE,
    TARGET,
    THREADS,
    VERIFY,
    data_option,
    metric_option,
    seed_option,
)
from ..console import Progress, emit_json, say, shared_options, show

_FOLDER = click.Path(path_type=Path)


@click.command("batch", cls=ConfiguredCommand)
@click.argument("folder", type=_FOLDER)
@click.option(
    "-o",
    "--out",
    type=_FOLDER,
    help="Folder of the results, laid out as FOLDER. Default: each beside its model.",
)
@click.option(
    "-j",
    "--jobs",
    type=click.IntRange(min=1),
    default=1,
    show_default=True,
    help="Models at a time. With several, measured times are those of a busy machine.",
)
@click.option(
    "--ray",
    metavar="ADDRESS",
    help="Run them on this Ray cluster instead, whose machines see the same files; auto: the one "
    "this machine belongs to, local: one that lasts as long as the batch.",
)
@click.option(
    "-p",
    "--passes",
    multiple=True,
    metavar="TEXT",
    help="The pipeline, or @FILE that holds it; may be repeated. Default: simplify,quant.",
)
@TARGET
@SHAPE
@data_option("Feeds for calibration and checks of every model")
@EVAL_DATA
@metric_option()
@METRIC_OUTPUT
@MAX_DROP
@MIN_SQNR
@FLOOR
@click.option("--strict", is_flag=True, help="As of the main job.")
@VERIFY
@click.option("--no-bench", is_flag=True, help="Measure no latency.")
@NO_PACK
@click.option(
    "--timeout",
    type=click.FloatRange(min=1),
    metavar="SECONDS",
    help="A model that takes longer fails. Default: no limit.",
)
@click.option("--no-cache", is_flag=True, help="Optimize anew, and keep nothing.")
@CACHE_IN
@CACHE_SIZE
@click.option(
    "--force",
    is_flag=True,
    help="Write results that are below the main job's --floor, too.",
)
@seed_option("everything random")
@THREADS
@config_options
@shared_options
def command(
    folder: Path,
    no_cache: bool,
    cache_in: Path | None,
    cache_mb: int,
    as_json: bool,
    verbosity: int,
    **options: Any,
) -> None:
    """Optimize all models below FOLDER, each in a process of its own.

    A model that fails, or whose process dies, does not hinder the others; the exit code is then 1,
    and the summary names it. Results are kept on this machine: a model that was optimized before,
    by the same recipe, is not optimized again.
    """
    from ... import OnnxOptError

    facts = batch_facts(
        folder,
        cache_in=cache_in,
        cache_mb=0 if no_cache else cache_mb,
        progress=Progress(verbosity - as_json),
        **options,
    )
    failed = facts["failed"]
    if as_json and not failed:
        emit_json(facts)
    elif not as_json and verbosity >= 0:
        for part in batch_parts(facts):
            show(part)
    if not as_json:
        for warning in facts["warnings"]:
            say(f"warning: {warning}")
    if failed:
        failure = OnnxOptError(
            str(folder),
            f"{len(failed)} of {len(facts['models'])} models failed: {', '.join(failed)}",
            "onnx-opt MODEL shows one alone; the others are done",
        )
        failure.account = facts
        raise failure


def batch_facts(
    folder: Path,
    *,
    out: Path | None,
    jobs: int,
    ray: str | None,
    timeout: float | None,
    cache_in: Path | None,
    cache_mb: int,
    progress: Any,
    no_bench: bool,
    no_pack: bool,
    **options: Any,
) -> dict[str, Any]:
    """The JSON form; `options`: as of `Recipe`."""
    from .._batch.batch import BatchRequest, as_facts, run_batch
    from .._cache.recipe import Recipe

    recipe = Recipe(bench=not no_bench, pack=not no_pack, **options)
    request = BatchRequest(
        folder=folder,
        recipe=recipe,
        out=out,
        jobs=jobs,
        ray=ray,
        timeout=timeout,
        cache_mb=cache_mb,
        cache_in=cache_in,
        progress=progress,
    )
    return as_facts(run_batch(request), folder)


def batch_parts(facts: dict[str, Any]) -> list[Any]:
    """One row a model, and a line on all."""
    from ..console import markup_safe
    from ..tables import bytes_text, decibels, plain_table

    figures = ("seconds", "bytes", "after", "latency", "SQNR dB")
    table = plain_table(None, "model", "status", *figures, "problem", right=figures)
    for row in facts["models"]:
        sizes = [(row[side] or {}).get("bytes") for side in ("input", "output")]
        latency = (row["latency"] or {}).get("ratio")
        sqnr_db = (row["drift"] or {}).get("sqnr_db")
        problem = (row["error"] or {}).get("problem", "")
        table.add_row(
            markup_safe(row["model"]),
            row["status"],
            f"{row['seconds']:.1f}",
            *("" if size is None else bytes_text(size) for size in sizes),
            "" if latency is None else f"{latency:.2f}",
            "" if sqnr_db is None else decibels(sqnr_db),
            markup_safe(problem),
        )
    told = (
        f"{facts['done']} done, {facts['cached']} from the cache, {len(facts['failed'])} failed, "
        f"in {facts['seconds']:.1f} s"
    )
    return [table, told]
