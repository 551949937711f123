"""`tune`: the best mix of sparsity and bits for what the user can afford, on data it never saw."""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from .. import CheckError, UsageError
from ..passes._core.pipeline import Pipeline, PipelineStep, as_pipeline, parse
from ..passes._core.recipe_files import check_recipe_file, write_recipe
from ._jobs.engines import HereEngine
from ._report.write import check_page
from ._run.budgets import check_drop
from ._run.cache import Cache
from ._run.figures import input_infos, output_infos
from ._run.pass_memory import PassMemory
from ._run.settings import ProgressBar, RunSettings
from ._tune.account import search_facts
from ._tune.agreement import METRIC, AnsweredBy, add_answers
from ._tune.aims import AIMS, Aim, bearable
from ._tune.engines import TrialEngine, TrialJobs, engine_of
from ._tune.goal import Goal, goal_of
from ._tune.lab import Lab, open_lab
from ._tune.plans import (
    MenuSettings,
    SearchPlan,
    check_repair,
    plan_for,
    plan_of_aim,
    plan_to_repair,
)
from ._tune.precision import warnings_of_precision
from ._tune.recovery import recovered_recipe, require_training
from ._tune.remembered import (
    KeptErrors,
    KeptMenus,
    RememberingEngine,
    cache_in,
    key_of,
    key_of_errors,
)
from ._tune.search import RecipeSearch, Searched
from ._tune.sensitivity import Method, check_method, not_kept
from ._tune.trial import RecipeTrial, Task
from ._tune.verdict import JudgedRecipe, verdict
from .model_forms import as_file
from .result import Result

__all__ = ["TuneResult", "tune"]

MINUTES = 15.0
"""Time after which no further round of trials begins, unless another is given."""


@dataclasses.dataclass(frozen=True)
class Asked:
    """Wishes of the caller, beside the settings of its result.

    `goal`: None where an aim says what is borne. `recover`: minutes of training at the end.
    `started`, `deadline`: seconds of `time.monotonic`. `folder`: keeps findings.
    """

    goal: Goal | None
    aim: Aim | None
    pipeline: Pipeline | None
    recover: float
    sensitivity: Method
    started: float
    deadline: float
    jobs: int
    ray: str | None
    folder: Path | None
    tell: Callable[[RecipeTrial], None]


MENUS_SHARE = 0.4
"""Share of the time within which menus are made; the rest is for trials. Chosen by hand."""


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
    aim: Aim | None = None,
    repair: str | Pipeline | Iterable[PipelineStep] | None = None,
    recover: float = 0.0,
    target: str = "cpu",
    minutes: float = MINUTES,
    sensitivity: Method = "auto",
    seed: int = 0,
    threads: int = 0,
    jobs: int = 0,
    ray: str | None = None,
    resume: str | Path | None = None,
    save_recipe: str | Path | None = None,
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
    `objective`: size, latency or macs. `aim`: size, speed or accuracy: a handful of pipelines is
    tried; a budget may be left out. `repair`: a pipeline, of which as few layers as the budget asks
    for are put back. `recover`: minutes of a closing `finetune`. `sensitivity`: whether losses of
    weights are measured or estimated from gradients; auto estimates where measuring takes too long.
    `minutes`: after which no further round begins. `jobs`: trials at a time (0: chosen); `ray`:
    address of a cluster, or local. `resume`: a folder that keeps what is found out. `save_recipe`:
    a file for the recipe, TOML or text. `report`: a page to write. `tell`: is told of each trial.

    Errors: UsageError for goals that nothing can keep, RefusedError (model, data), CheckError
    where no recipe keeps the budget: the nearest one is named.
    """
    limits = (max_drop, min_sqnr, max_bytes, max_latency_ms)
    _check_choices(aim, objective, repair)
    goal = _asked_goal(aim, objective, limits)
    if metric is None and eval_data is not None:
        raise UsageError(
            "--eval-data", "nothing says what to measure on it", "give --metric"
        )
    check_method(sensitivity)
    # without a metric it is a share of rows, too
    check_drop(max_drop, METRIC if metric is None else metric)
    if recover:
        require_training()
    page = _checked(report, check_page)
    recipe_file = _checked(save_recipe, check_recipe_file)
    pipeline = None if repair is None else as_pipeline(repair)
    if pipeline is not None:
        check_repair(pipeline)
    started = time.monotonic()
    asked = Asked(
        goal=goal,
        aim=aim,
        pipeline=pipeline,
        recover=recover,
        sensitivity=sensitivity,
        started=started,
        deadline=started + 60 * minutes,
        jobs=jobs,
        ray=ray,
        folder=None if resume is None else Path(resume),
        tell=tell or (lambda trial: None),
    )
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
        result = _tuned(settings, asked)
    if recipe_file is not None:
        write_recipe(recipe_file, parse(result.search["recipe"]).passes)
    if page is not None:
        result.report(page)
    return result


def _asked_goal(
    aim: Aim | None, objective: str | None, limits: tuple[Any, ...]
) -> Goal | None:
    """The goal of these limits; None for an aim without any. Errors: those of `goal_of`."""
    if aim is None:
        return goal_of(objective, *limits)
    if all(limit is None for limit in limits):
        return None
    return goal_of(AIMS[aim].objective, *limits)


def _checked(given: str | Path | None, check: Callable[[Path], None]) -> Path | None:
    """A file that was asked for, if any. Errors: those of its check."""
    if given is None:
        return None
    path = Path(given)
    check(path)
    return path


def _check_choices(aim: str | None, objective: str | None, repair: Any) -> None:
    """Raise UsageError for choices that contradict each other, and for an unknown aim."""
    if aim is not None and aim not in AIMS:
        raise UsageError(
            "--aim", f"'{aim}' is no aim", f"choose among {', '.join(AIMS)}"
        )
    if aim is not None and objective is not None:
        raise UsageError(
            "--aim", "says itself what is to be small", "leave out --objective"
        )
    if aim is not None and repair is not None:
        raise UsageError(
            "--aim", "chooses the pipeline that --repair is to keep", "keep one of them"
        )


def _tuned(settings: RunSettings, asked: Asked) -> TuneResult:
    warnings: list[str] = []
    cache = None if asked.folder is None else cache_in(asked.folder)
    with open_lab(_for_lab(settings)) as lab:
        goal, task = _goal_and_task(settings, asked, lab)
        warnings += warnings_of_precision(task, goal)
        key = key_of(lab.original.sha256 or "", task)
        errors_key = key_of_errors(lab.original.sha256 or "", task)
        menu_settings = _menu_settings(asked, cache, errors_key)
        plan: SearchPlan
        if asked.aim is not None:
            plan = plan_of_aim(asked.aim, settings.target)
        elif asked.pipeline is not None:
            plan = plan_to_repair(asked.pipeline, lab, menu_settings)
        else:
            plan = plan_for(goal, lab, menu_settings)
        warnings += lab.run.reporter.warnings
        model_bytes = lab.original.figures.bytes or 0
    # trials beside each other would share the cores that they are timed on
    engine: TrialEngine = TrialJobs(HereEngine())
    if not task.is_timed:
        engine = engine_of(asked.jobs, asked.ray, model_bytes)
    if cache is not None:
        engine = RememberingEngine(engine, cache, key)
    found = Searched()
    search = RecipeSearch(
        goal,
        plan,
        task,
        engine,
        asked.deadline,
        asked.tell,
    )
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
    judged = _judged(
        settings,
        asked,
        goal,
        plan,
        task,
        found,
        warnings,
    )
    result = judged.result
    for message in warnings:
        if message not in result.warnings:
            result.warnings.append(message)
    tuned = TuneResult(**vars(result))
    seconds = time.monotonic() - asked.started
    tuned.search = search_facts(goal, task, found, judged, seconds)
    if plan.sensitivity is not None:
        tuned.search["sensitivity"] = dict(plan.sensitivity)
    if settings.out is not None and not settings.dry_run:
        # only now: a file of that name stays as it is where no recipe keeps the budget
        tuned.files = tuned.save(settings.out)
        tuned.output_path = str(settings.out)
    return tuned


def _menu_settings(asked: Asked, cache: Cache | None, key: str) -> MenuSettings:
    """The way in which losses of weights are found; they are kept where there is a cache."""
    menus_end = asked.started + MENUS_SHARE * (asked.deadline - asked.started)
    if cache is None:
        return MenuSettings(
            asked.sensitivity, not_kept, lambda name, make: make(), menus_end
        )
    return MenuSettings(
        asked.sensitivity,
        KeptErrors(cache, key),
        KeptMenus(cache, key),
        menus_end,
    )


def _judged(
    settings: RunSettings,
    asked: Asked,
    goal: Goal,
    plan: SearchPlan,
    task: Task,
    found: Searched,
    warnings: list[str],
) -> JudgedRecipe:
    """The verdict; of an aim whose own limit nothing keeps it is of the least loss instead."""
    recovered = None
    if asked.recover:
        recovered = recovered_recipe(
            goal,
            found,
            plan.family,
            asked.recover,
        )
    try:
        judged = verdict(settings, goal, task, found, recovered)
    except CheckError as error:
        if asked.goal is not None:
            raise
        warnings.append(f"tune: {error.problem}; the one that loses least is taken")
        judged = verdict(settings, Goal("accuracy"), task, found)
    for recipe, reason in found.missed.items():
        warnings.append(
            f"tune: '{recipe}' failed on data that the search did not see: {reason}"
        )
    return judged


def _goal_and_task(settings: RunSettings, asked: Asked, lab: Lab) -> tuple[Goal, Task]:
    """The goal as it was asked for, or that of the aim, and the facts that trials share."""
    if asked.goal is not None:
        return asked.goal, _task_of(settings, asked.goal, lab)
    assert asked.aim is not None
    has_metric = settings.metric is not None
    size = lab.original.figures.bytes or 0
    goal = bearable(asked.aim, has_metric, True, size)
    try:
        return goal, _task_of(settings, goal, lab)
    except UsageError:
        if has_metric:
            raise
    # its outputs choose no class
    goal = bearable(asked.aim, has_metric, False, size)
    return goal, _task_of(settings, goal, lab)


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
            add_answers(labelled, session, settings.metric_output, goal.max_drop)
        finally:
            session.close()
        metric = METRIC
    is_apart = settings.eval_data is not None
    return Task(
        model=settings.model,
        target=settings.target,
        data=settings.data,
        labelled=labelled,
        is_apart=is_apart,
        is_timed=goal.objective == "latency" or goal.max_latency_ms is not None,
        metric=metric,
        metric_output=settings.metric_output,
        seed=settings.seed,
        threads=settings.threads,
        inputs=inputs,
        outputs=outputs,
        # a part of the data calibrates otherwise
        memory=lab.memory if is_apart else PassMemory(),
    )
