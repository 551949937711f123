"""`onnx-opt MODEL`: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ... import OnnxOptError, UsageError
from .._config.command import ConfiguredCommand, config_options
from .._run.clock import Clock
from ..cached_result import CachedResult
from ..command_options import (
    CACHE_IN,
    CACHE_SIZE,
    EVAL_DATA,
    FLOOR,
    FORCE,
    LAYERS,
    MAX_BYTES,
    MAX_DROP,
    MAX_LATENCY,
    METRIC_OUTPUT,
    MIN_SQNR,
    NO_CACHE,
    NO_PACK,
    REPORT,
    RESUME,
    SHAPE,
    TARGET,
    THREADS,
    VERIFY,
    data_option,
    metric_option,
    seed_option,
)
from ..console import Progress, shared_options
from ..short_search import ShortSearch
from ..shown import show_account, show_losses, show_result


@click.command("run", cls=ConfiguredCommand)
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
    help="The pipeline, or @FILE that holds it; may be repeated. Default: simplify,quant. auto: "
    "search one that keeps the budgets, as a default that misses them does.",
)
@TARGET
@SHAPE
@data_option("Feeds for calibration and checks")
@EVAL_DATA
@metric_option()
@METRIC_OUTPUT
@click.option(
    "--metric-each", is_flag=True, help="Measure the metric after each pass, too."
)
@MAX_DROP
@MIN_SQNR
@MAX_BYTES
@MAX_LATENCY
@click.option(
    "--repair",
    is_flag=True,
    help="Where --passes miss --max-drop or --min-sqnr: leave as few layers as needed as they are.",
)
@FLOOR
@seed_option("everything random")
@THREADS
@VERIFY
@click.option("--no-bench", is_flag=True, help="Do not measure latency.")
@NO_CACHE
@CACHE_IN
@CACHE_SIZE
@click.option(
    "--zipped",
    is_flag=True,
    help="Also show the sizes of both files in a zip archive (level 9).",
)
@NO_PACK
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
@config_options
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
    cache_in: Path | None,
    cache_mb: int,
    **options: Any,
) -> None:
    """Optimize MODEL by a pipeline of passes, and write the result.

    Each pass is checked against the original; size, latency and metric are measured before and
    after.
    """
    flags = {"no_bench": no_bench, "no_cache": no_cache, "no_pack": no_pack}
    kept = CachedResult(model, out, cache_in, cache_mb)
    if kept.is_asked and not no_cache:
        kept.open(passes, {**options, **flags})
        if kept.show_known(as_json, verbosity):
            return
    clock = Clock()
    with clock.step("start"):
        # these imports are here, not above: onnx_ir takes a second to load, and --help needs none
        from ...runtime.worker_pool import pool

        # while the child loads ONNX Runtime, this process loads onnx_ir and reads the model
        if options["verify"] != "never" and model.is_file():
            pool().prestart()
        from ..optimize import DEFAULT_PASSES, default_output, optimize

    repair = options.pop("repair")
    costs = {key: options.pop(key) for key in ("max_bytes", "max_latency_ms")}
    given = {**options, **costs, **flags}
    search = ShortSearch(
        model,
        passes,
        given,
        as_json,
        verbosity,
        repair,
    )
    target = out or default_output(model)
    if search.is_asked:
        search.run(target)
        return
    # with --json as with -q: bars would only be in the way
    try:
        result = optimize(
            model,
            list(passes) or DEFAULT_PASSES,
            out=target,
            bench=not no_bench,
            cache=not no_cache,
            pack=not no_pack,
            progress=Progress(verbosity - as_json),
            clock=clock,
            **options,
        )
    except OnnxOptError as error:
        if search.mends(error):
            search.run(target)
            return
        # the account, with every layer, shows where a budget was missed or a pass refused
        if _tells(error) and not as_json and verbosity >= 0:
            show_account(error.account, verbosity=1)
            if options["explain_loss"]:
                show_losses(error.account.loss, passes, verbosity=1)
        raise
    kept.keep(result)
    show_result(result, as_json, verbosity)
    # with --report they are on its page
    if options["explain_loss"] and not as_json and verbosity >= 0:
        show_losses(result.loss, passes, verbosity)


def _tells(error: OnnxOptError) -> bool:
    """True where an account tells more than the error: not of options, nor before any pass."""
    if isinstance(error, UsageError) or error.account is None:
        return False
    return bool(error.account.passes)
