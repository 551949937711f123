"""`tune`: the best mix of sparsity and bits for what the user can afford, on data it never saw."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from .. import RefusedError, UsageError
from ..passes._core.pipeline import parse
from ._report.write import check_page
from ._run.budgets import check_drop
from ._run.cache import Cache
from ._run.figures import input_infos, output_infos
from ._run.settings import ProgressBar, RunSettings
from ._tune.account import search_facts
from ._tune.agreement import METRIC, AnsweredBy, add_answers
from ._tune.engines import HereEngine, TrialEngine, engine_of
from ._tune.families import (
    ChannelRecipes,
    MenuRecipes,
    RecipeFamily,
    templates_for,
)
from ._tune.goal import Goal, goal_of
from ._tune.lab import Lab, open_lab
from ._tune.menu import menu_of
from ._tune.precision import warnings_of_precision
from ._tune.remembered import (
    KeptErrors,
    RememberingEngine,
    cache_in,
    key_of,
    key_of_errors,
    remember_menu,
    remembered_menu,
)
from ._tune.search import RecipeSearch, Searched
from ._tune.sensitivity import Keep, Method, check_method, not_kept
from ._tune.trial import RecipeTrial, Task
from ._tune.verdict import verdict
from .model_forms import as_file
from .result import Result

__all__ = ["TuneResult", "tune"]

MINUTES = 15.0
"""Time after which no further round of trials begins, unless another is given."""


class TuneResult(Result):
    """The best model found, the account of its run, and of the search (`search`)."""

    search: dict[str, Any]

    def as_dict(self) -> dict[str, Any]:
        """The JSON object of the main job, with `tune` beside it."""
        return {**super().as_dict(), "tune": self.search}


def tune(
    model: Any,
    *,
    data: Any,
    out: str | Path | None = None,
    eval_data: Any = None,
    metric: str | Callable[..., Any] | None = None,
    metric_output: str | None = None,
    max_drop: float | None = None,
    min_sqnr: float | None = None,
    max_bytes: int | None = None,
    max_latency_ms: float | None = None,
    objective: str | None = None,
    target: str = "cpu",
    minutes: float = MINUTES,
    sensitivity: Method = "auto",
    seed: int = 0,
    threads: int = 0,
    jobs: int = 0,
    ray: str | None = None,
    resume: str | Path | None = None,
    force: bool = False,
    dry_run: bool = False,
    report: str | Path | None = None,
    progress: ProgressBar | None = None,
    tell: Callable[[RecipeTrial], None] | None = None,
) -> TuneResult:
    """Find the recipe that makes a model smallest within a budget, and write what it makes.

    `data`: to calibrate on. `eval_data`, `metric`: labelled data (by default `data`), half of which
    the search sees; the verdict is of the other half. Without a metric `max_drop` is the share of
    rows whose class changes. `min_sqnr` (dB), `max_bytes`, `max_latency_ms`: other budgets.
    `objective`: size, latency or macs. `sensitivity`: whether losses of weights are measured or
    estimated from gradients; auto estimates where measuring takes too long. `minutes`: after which
    no further round begins. `jobs`: trials at a time (0: chosen); `ray`: address of a cluster, or
    local. `resume`: a folder that keeps what is found out. `report`: a page to write. `tell`: is
    told of each trial.

    Errors: UsageError for goals that nothing can keep, RefusedError (model, data), CheckError
    where no recipe keeps the budget: the nearest one is named.
    """
    goal = goal_of(objective, max_drop, min_sqnr, max_bytes, max_latency_ms)
    if metric is None and eval_data is not None:
        raise UsageError(
            "--eval-data", "nothing says what to measure on it", "give --metric"
        )
    check_method(sensitivity)
    # without a metric it is a share of rows, too
    check_drop(max_drop, METRIC if metric is None else metric)
    page = None if report is None else Path(report)
    if page is not None:
        check_page(page)
    started = time.monotonic()
    deadline = started + 60 * minutes
    with as_file(model) as path:
        settings = RunSettings(
            model=path,
            pipeline=parse("simplify"),
            out=None if out is None else Path(out),
            target=target,
            data=data,
            eval_data=eval_data,
            metric=metric,
            metric_output=metric_output,
            seed=seed,
            threads=threads,
            force=force,
            dry_run=dry_run,
            report=page,
            # the page shows both
            layers=page is not None,
            explain_loss=page is not None,
            progress=progress,
        )
        result = _tuned(
            settings,
            goal,
            deadline,
            (jobs, ray),
            None if resume is None else Path(resume),
            tell or (lambda trial: None),
            started,
            sensitivity,
        )
    if page is not None:
        result.report(page)
    return result


def _tuned(
    settings: RunSettings,
    goal: Goal,
    deadline: float,
    engines: tuple[int, str | None],
    folder: Path | None,
    tell: Callable[[RecipeTrial], None],
    started: float,
    sensitivity: Method,
) -> TuneResult:
    jobs, ray = engines
    assert isinstance(settings.model, Path)
    warnings: list[str] = []
    cache = None if folder is None else cache_in(folder)
    with open_lab(_for_lab(settings)) as lab:
        task = _task_of(settings, goal, lab)
        warnings += warnings_of_precision(task, goal)
        key = key_of(lab.original.sha256 or "", task)
        keep = not_kept
        if cache is not None:
            keep = KeptErrors(cache, key_of_errors(lab.original.sha256 or "", task))
        family, how = _family(goal, lab, cache, key, sensitivity, keep)
        warnings += lab.run.reporter.warnings
        model_bytes = lab.original.figures.bytes or 0
    # trials beside each other would share the cores that they are timed on
    engine: TrialEngine = HereEngine()
    if not task.is_timed:
        engine = engine_of(jobs, ray, model_bytes)
    if cache is not None:
        engine = RememberingEngine(engine, cache, key)
    found = Searched()
    templates = templates_for(goal.objective)
    search = RecipeSearch(goal, family, task, engine, deadline, templates, tell)
    with contextlib.closing(engine):
        try:
            search.run(found)
        except KeyboardInterrupt:
            if not any(not trial.failure for trial in found.trials):
                raise
            warnings.append(
                "tune: interrupted: the best of what was tried so far is taken"
            )
    if found.is_cut_short:
        warnings.append(
            "tune: the time was up before the search had narrowed the limit down; more "
            "--time-budget may find a better recipe"
        )
    judged = verdict(settings, goal, task, found)
    warnings += [f"tune: {reason}" for _, reason in judged.missed]
    result = judged.result
    for message in warnings:
        if message not in result.warnings:
            result.warnings.append(message)
    tuned = TuneResult(**vars(result))
    seconds = time.monotonic() - started
    tuned.search = search_facts(goal, task, found, judged, seconds)
    if how is not None:
        tuned.search["sensitivity"] = dict(how)
    if settings.out is not None and not settings.dry_run:
        # only now: a file of that name stays as it is where no recipe keeps the budget
        tuned.files = tuned.save(settings.out)
        tuned.output_path = str(settings.out)
    return tuned


def _family(
    goal: Goal,
    lab: Lab,
    cache: Cache | None,
    key: str,
    sensitivity: Method,
    keep: Keep,
) -> tuple[RecipeFamily, Mapping[str, Any] | None]:
    """Recipes that make the objective small, and how losses of weights were found, if they were.

    Errors: RefusedError where there is no choice.
    """
    if goal.objective in ("latency", "macs"):
        return ChannelRecipes(), None
    menu_key = f"{key}-{sensitivity}"
    found = None if cache is None else remembered_menu(cache, menu_key)
    if found is None:
        found = menu_of(lab, sensitivity, keep)
        if cache is not None:
            remember_menu(cache, menu_key, found)
    if not found.menu:
        raise RefusedError(
            str(lab.run.settings.model),
            "no weight of it has a choice of forms: there is nothing to search",
            "onnx-opt inspect shows why",
        )
    return MenuRecipes(found.menu), found.sensitivity


def _for_lab(settings: RunSettings) -> RunSettings:
    """Settings to measure in: the metric is that of the trials.

    The path of the result is kept: one that may not be written ends the search at its beginning.
    """
    return dataclasses.replace(
        settings,
        metric=None,
        metric_output=None,
        eval_data=None,
        report=None,
        layers=False,
        explain_loss=False,
    )


def _task_of(settings: RunSettings, goal: Goal, lab: Lab) -> Task:
    """Facts that trials share. Without labels the original's own answers are taken for them."""
    assert isinstance(settings.model, Path)
    inputs = tuple(input_infos(lab.model))
    outputs = tuple(output_infos(lab.model))
    metric = settings.metric
    labelled = settings.labelled_data if metric is not None else None
    if metric is None and goal.max_drop is not None:
        labelled = AnsweredBy(settings.data, inputs, outputs, settings.folder)
        session = lab.inputs.open(settings.model)
        try:
            add_answers(labelled, session, settings.metric_output)
        finally:
            session.close()
        metric = METRIC
    return Task(
        model=settings.model,
        target=settings.target,
        data=settings.data,
        labelled=labelled,
        is_apart=settings.eval_data is not None,
        is_timed=goal.objective == "latency" or goal.max_latency_ms is not None,
        metric=metric,
        metric_output=settings.metric_output,
        seed=settings.seed,
        threads=settings.threads,
        inputs=inputs,
        outputs=outputs,
    )
