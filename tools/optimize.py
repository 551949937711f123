"""The driver: load, run the passes, check each, measure, write atomically, and report."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from .. import OnnxOptError, UsageError
from ..passes._core.input_shapes import as_shape_texts
from ..passes._core.pipeline import Pipeline, PipelineStep, as_pipeline
from ..runtime.drift_words import ON_DATA
from ..runtime.metrics import metric_named
from ._report.write import check_page
from ._run.budgets import check_drop
from ._run.clock import Clock
from ._run.context import is_main_process
from ._run.driver import optimize_model
from ._run.floor import floor_of
from ._run.result import RunResult
from ._run.settings import ProgressBar, RunSettings, Verify
from .model_forms import as_model
from .result import PartialResult, Result

__all__ = ["DEFAULT_PASSES", "Result", "default_output", "optimize"]

DEFAULT_PASSES = "simplify,quant"
Passes = str | Pipeline | Iterable[PipelineStep]


def optimize(
    model: Any,
    passes: Passes = DEFAULT_PASSES,
    *,
    out: str | Path | None = None,
    target: str = "cpu",
    shapes: Mapping[str, Sequence[int | None]] | Sequence[str] | None = None,
    data: Any = None,
    metric: str | Callable[..., Any] | None = None,
    metric_output: str | None = None,
    eval_data: Any = None,
    seed: int = 0,
    strict: bool = False,
    bench: bool = True,
    cache: bool = True,
    verify: Verify = "auto",
    force: bool = False,
    dry_run: bool = False,
    progress: ProgressBar | None = None,
    threads: int = 0,
    min_sqnr: float | None = None,
    max_drop: float | None = None,
    floor: str | float | None = None,
    explain_loss: bool = False,
    pack: bool = True,
    zipped: bool = False,
    resume: str | Path | None = None,
    teacher: Any = None,
    metric_each: bool = False,
    layers: bool = False,
    report: str | Path | None = None,
    clock: Clock | None = None,
) -> Result:
    """Run `passes` over a model, check and measure every step, and write the result to `out`.

    `model`: a path, bytes, a ModelProto, an `ir.Model` (never modified) or torch's ONNXProgram.
    `out` None: nothing is written. `shapes`: dims of inputs to fix, by name (None: as it is), or
    texts such as "x=1,3,224,224". `data`: feeds in any form that `runtime.feeds.open_feeds` takes.
    `metric`: a name, or a function of all outputs and labels; `metric_output`: the output that it
    scores. `cache`: take a built-in metric of files that were scored before from this machine's
    cache. `verify`: "auto" runs the model where its weights are at most 1 GiB. `min_sqnr` (dB) and
    `max_drop` (of the metric) are budgets: where one is not met, nothing is written. `floor`:
    "3" (dB), "50%" (of rows whose largest output stays), "3,50%" or "none": the least that a lossy
    result keeps unless `force`. `explain_loss`
    fills `Result.loss`: what each layer lost, and to its weights or its activations. `pack`: end a
    lossy pipeline with the pass `pack` where that saves more than 5 % of the file and the target's
    runtime unpacks at load (one that was packed is packed again). `zipped` fills `zipped_bytes` of
    both figures: the files deflated at level 9, as a download has them. `resume`: a folder where
    training keeps its state, and goes on from what an interrupted run left there. `teacher`: what
    `finetune` learns from, in place of the model as it came. `metric_each`: measure the metric
    after each pass, too. `layers` fills `Result.layers`: bytes, bits, zeros and a histogram of each
    layer, before and after. `report`: a page (.html) of all this; it asks for `layers`, and for
    `explain_loss` where the model is run. `clock`: one that was started before: what it timed is in
    the account.
    Under torchrun every process runs, and the first alone writes `out` and measures latency.

    Errors: UsageError (options), RefusedError (model, data), CheckError (a check or a budget). The
    `account` of an error is what was known of the run; of a budget that is missed, it is the Result
    that was not written.
    """
    settings = RunSettings(
        model=as_model(model),
        pipeline=as_pipeline(passes),
        out=None if out is None else Path(out),
        target=target,
        shapes=as_shape_texts(shapes),
        data=data,
        metric=metric,
        metric_output=metric_output,
        eval_data=eval_data,
        seed=seed,
        strict=strict,
        bench=bench,
        cache=cache,
        verify=verify,
        force=force,
        dry_run=dry_run,
        progress=progress,
        threads=threads,
        min_sqnr=min_sqnr,
        max_drop=max_drop,
        floor=floor,
        explain_loss=explain_loss or report is not None,
        pack=pack,
        zipped=zipped,
        resume=None if resume is None else Path(resume),
        teacher=None if teacher is None else as_model(teacher),
        metric_each=metric_each,
        layers=layers or report is not None,
        report=None if report is None else Path(report),
        clock=clock,
    )
    if not is_main_process():
        settings = dataclasses.replace(
            settings, out=None, bench=False, progress=None, report=None
        )
    _check_settings(settings)
    try:
        result = Result(**vars(optimize_model(settings)))
    except OnnxOptError as error:
        # for callers it is what they would have got
        kind = Result if isinstance(error.account, RunResult) else PartialResult
        error.account = kind(**vars(error.account))
        if settings.report is not None and error.account.passes:
            error.account.report(settings.report, error)
        raise
    if settings.report is not None:
        result.report(settings.report)
    return result


def default_output(model: Path) -> Path:
    """Path that the command line writes to without `-o`: MODEL's stem + .opt.onnx, beside it."""
    # with_name would refuse "." and "/", which load() can explain
    return model.parent / f"{model.stem}.opt.onnx"


def _check_settings(settings: RunSettings) -> None:
    if settings.report is not None:
        check_page(settings.report)
    if settings.metric is not None and settings.labelled_data is None:
        raise UsageError(
            "--metric",
            f"'{metric_named(settings.metric).name}' needs labelled data",
            "give --data or --eval-data",
        )
    if settings.metric_output is not None and settings.metric is None:
        raise UsageError(
            "--metric-output",
            "needs a metric",
            "give --metric, for example --metric top1",
        )
    if settings.metric_each and settings.metric is None:
        raise UsageError(
            "--metric-each",
            "needs a metric",
            "give --metric, for example --metric top1",
        )
    if settings.max_drop is not None and settings.metric is None:
        raise UsageError(
            "--max-drop", "needs a metric", "give --metric, for example --metric top1"
        )
    _check_budgets(settings)
    # Python callers are not held to the type
    if settings.verify not in ("auto", "always", "never"):
        raise UsageError(
            "--verify",
            f"'{settings.verify}' is not one of auto, always, never",
            "choose one of them",
        )


def _check_budgets(settings: RunSettings) -> None:
    floor_of(settings, ON_DATA)
    budgets = {"--max-drop": settings.max_drop, "--min-sqnr": settings.min_sqnr}
    for option, value in budgets.items():
        if value is not None and not isinstance(value, (int, float)):
            raise UsageError(option, f"{value!r} is no number", "give a number")
    check_drop(settings.max_drop, settings.metric)
