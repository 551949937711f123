"""`tune`: the best mix of sparsity and bits for what the user can afford, on data it never saw."""

from __future__ import annotations

import contextlib
import dataclasses
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from .. import CheckError, OnnxOptError, RefusedError, UsageError
from ..passes._core.pipeline import parse
from ..runtime.feeds import open_feeds
from ._report.write import check_page
from ._run.budgets import check_drop
from ._run.cache import Cache
from ._run.driver import optimize_model
from ._run.figures import input_infos, output_infos
from ._run.result import RunResult
from ._run.settings import ProgressBar, RunSettings
from ._tune.agreement import METRIC, AnsweredBy, answered
from ._tune.engines import HereEngine, TrialEngine, engine_of
from ._tune.families import (
    ChannelRecipes,
    MenuRecipes,
    RecipeFamily,
    templates_for,
)
from ._tune.front import cost_of, front_of, keeps_accuracy, keeps_cost
from ._tune.goal import Goal, goal_of
from ._tune.lab import Lab, open_lab
from ._tune.menu import menu_of
from ._tune.remembered import (
    RememberingEngine,
    cache_in,
    key_of,
    remember_menu,
    remembered_menu,
)
from ._tune.search import RecipeSearch, Searched
from ._tune.trial import SEEN, UNSEEN, RecipeTrial, Task, trial_of
from .functions import verify
from .model_forms import as_file
from .result import Result

__all__ = ["TuneResult", "tune"]

MINUTES = 15.0
"""Time after which no further round of trials begins, unless another is given."""

MOST_VERDICTS = 4
"""Recipes that are held against the other half of the data, the best first."""

CHANGED = 0.02
"""Share of rows that a good recipe decides otherwise than the original: by it the smallest drop is
told that so many rows can show, before anything was tried. ResNet-20 at a tenth of its size: 0.03.
"""

ONE_SIDED_95 = 1.645
"""Standard errors above which a drop lies by chance in one case of twenty."""


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
    """RecipeSearch the recipe that makes a model smallest within a budget, and write what it makes.

    `data`: to calibrate on. `eval_data`, `metric`: labelled data (by default `data`), half of which
    the search sees; the verdict is of the other half. Without a metric `max_drop` is the share of
    rows whose class changes. `min_sqnr` (dB), `max_bytes`, `max_latency_ms`: other budgets.
    `objective`: size, latency or macs. `minutes`: after which no further round begins. `jobs`:
    trials at a time (0: chosen); `ray`: address of a cluster, or local. `resume`: a folder that
    keeps what is found out. `report`: a page to write. `tell`: is told of each trial.

    Errors: UsageError for goals that nothing can keep, RefusedError (model, data), CheckError
    where no recipe keeps the budget: the nearest one is named.
    """
    goal = goal_of(objective, max_drop, min_sqnr, max_bytes, max_latency_ms)
    if metric is None and eval_data is not None:
        raise UsageError(
            "--eval-data", "nothing says what to measure on it", "give --metric"
        )
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
) -> TuneResult:
    jobs, ray = engines
    assert isinstance(settings.model, Path)
    warnings: list[str] = []
    cache = None if folder is None else cache_in(folder)
    with open_lab(_for_lab(settings)) as lab:
        task = _task_of(settings, goal, lab)
        warnings += _warnings_of_precision(task, goal)
        key = key_of(lab.original.sha256 or "", task)
        family = _family(goal, lab, cache, key)
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
    return _verdict(settings, goal, task, found, warnings, started)


def _family(goal: Goal, lab: Lab, cache: Cache | None, key: str) -> RecipeFamily:
    """Recipes that make the objective small. Errors: RefusedError where there is no choice."""
    if goal.objective in ("latency", "macs"):
        return ChannelRecipes()
    menu = None if cache is None else remembered_menu(cache, key)
    if menu is None:
        menu = menu_of(lab)
        if cache is not None:
            remember_menu(cache, key, menu)
    if not menu:
        raise RefusedError(
            str(lab.run.settings.model),
            "no weight of it has a choice of forms: there is nothing to search",
            "onnx-opt inspect shows why",
        )
    return MenuRecipes(menu)


def _for_lab(settings: RunSettings) -> RunSettings:
    """Settings to measure in: the metric is that of the trials."""
    return dataclasses.replace(
        settings,
        metric=None,
        metric_output=None,
        eval_data=None,
        out=None,
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
        feeds = open_feeds(settings.data, inputs, settings.folder, outputs)
        session = lab.inputs.open(settings.model)
        try:
            labelled = answered(session, feeds, settings.metric_output)
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


def _warnings_of_precision(task: Task, goal: Goal) -> list[str]:
    """Say before the search what drop the labels cannot show."""
    feeds = task.half(SEEN)
    if feeds is None or goal.max_drop is None or task.metric not in ("top1", "top5"):
        return []
    rows = sum(len(batch.labels) for batch in feeds if batch.labels is not None)
    if not rows:
        raise RefusedError(
            "data", "it has no labels", "give --eval-data with labels, or no --metric"
        )
    smallest = ONE_SIDED_95 * math.sqrt(CHANGED / rows)
    if smallest <= goal.max_drop:
        return []
    needed = math.ceil(2 * CHANGED * (ONE_SIDED_95 / max(goal.max_drop, 1e-9)) ** 2)
    return [
        f"--max-drop: {rows} rows for the search, and as many for the verdict, tell a drop from "
        f"none from about {smallest:.2g} on, not from {goal.max_drop:g}: chance has a part in what "
        f"is chosen (about {needed:,} labelled rows in all would do)"
    ]


def _verdict(
    settings: RunSettings,
    goal: Goal,
    task: Task,
    found: Searched,
    warnings: Sequence[str],
    started: float,
) -> TuneResult:
    """Run the best recipe again, judged on the half that the search never saw.

    Where it does not keep the budget there, the next one gets its turn. Errors: CheckError where
    none does.
    """
    fitting = [
        trial
        for trial in found.trials
        if keeps_accuracy(trial, goal, found.slack) and keeps_cost(trial, goal)
    ]
    fitting.sort(key=lambda trial: cost_of(trial, goal))
    missed: list[tuple[RecipeTrial, str]] = []
    for trial in fitting[:MOST_VERDICTS]:
        final = dataclasses.replace(
            task.settings(trial.recipe, UNSEEN),
            out=settings.out,
            force=settings.force,
            dry_run=settings.dry_run,
            report=settings.report,
            layers=settings.layers,
            explain_loss=settings.explain_loss,
            progress=settings.progress,
            max_drop=goal.max_drop,
            min_sqnr=goal.min_sqnr,
        )
        try:
            result = optimize_model(final)
        except CheckError as error:
            missed.append((trial, f"{error.where}: {error.problem}"))
            continue
        problem = _too_slow(result, goal) or _unlike(result, goal, task)
        if problem is not None:
            missed.append((trial, problem))
            _remove(result)
            continue
        return _told(result, trial, goal, task, found, warnings, missed, started)
    raise _impossible(goal, found, missed)


def _too_slow(result: RunResult, goal: Goal) -> str | None:
    limit = goal.max_latency_ms
    measured = result.output.latency_ms
    if limit is None or measured is None or measured <= limit:
        return None
    return f"--max-latency-ms: it takes {measured:.3g} ms, more than {limit:g}"


def _unlike(result: RunResult, goal: Goal, task: Task) -> str | None:
    """Problem of a result whose SQNR is too low on the half of the data that nothing has seen."""
    if goal.min_sqnr is None or task.labelled is not None:
        return None
    facts = verify(task.model, result.model, task.half_of_data(UNSEEN))
    sqnr_db = facts["overall"]["sqnr_db"]
    # none: there is no noise at all
    if sqnr_db is None or sqnr_db >= goal.min_sqnr:
        return None
    return f"--min-sqnr: it keeps {sqnr_db:.1f} dB there, less than {goal.min_sqnr:g}"


def _remove(result: RunResult) -> None:
    """Take away the files of a result that is not to be."""
    for file in result.files:
        file.unlink(missing_ok=True)


def _told(
    result: RunResult,
    trial: RecipeTrial,
    goal: Goal,
    task: Task,
    found: Searched,
    warnings: Sequence[str],
    missed: Sequence[tuple[RecipeTrial, str]],
    started: float,
) -> TuneResult:
    """The result with the account of the search."""
    unseen = trial_of(trial.recipe, result)
    for message in (*warnings, *(f"tune: {reason}" for _, reason in missed)):
        if message not in result.warnings:
            result.warnings.append(message)
    tuned = TuneResult(**vars(result))
    front = front_of(found.trials)
    on_front = {each.recipe for each in front}
    tuned.search = {
        "objective": goal.objective,
        "budget": goal.as_dict(),
        "recipe": trial.recipe,
        "measured_by": _measure_of(task, goal),
        "split": {
            "seed": task.seed,
            "seen": _half_facts(trial),
            "unseen": _half_facts(unseen),
        },
        "trials": len(found.trials),
        "seconds": round(time.monotonic() - started, 1),
        "front": [each.as_dict() for each in front],
        "rejected": [
            {**each.as_dict(), "reason": _reason(each, goal, found.slack, missed)}
            for each in found.trials
            if each.recipe not in on_front
        ],
    }
    return tuned


def _measure_of(task: Task, goal: Goal) -> str:
    """Measure that the budget for accuracy is held against, in words."""
    if task.metric is None:
        return "SQNR of the outputs to the original's"
    if isinstance(task.labelled, AnsweredBy):
        return "agreement with the original's own classes (no labels were given)"
    return str(task.metric)


def _half_facts(trial: RecipeTrial) -> dict[str, float | None]:
    """Figures of a recipe on one half of the data."""
    smallest = None if trial.error is None else ONE_SIDED_95 * trial.error
    return {
        "metric": trial.metric,
        "drop": trial.drop,
        "standard_error": trial.error,
        "smallest_difference": smallest,
        "sqnr_db": trial.sqnr_db,
    }


def _reason(
    trial: RecipeTrial,
    goal: Goal,
    slack: float,
    missed: Sequence[tuple[RecipeTrial, str]],
) -> str:
    """Reason for which a trial is not on the front."""
    for other, reason in missed:
        if other.recipe == trial.recipe:
            return f"on data that the search did not see: {reason}"
    if trial.failure:
        return trial.failure
    if not keeps_accuracy(trial, goal, slack):
        return "loses more than the budget allows"
    if not keeps_cost(trial, goal):
        return "costs more than the budget allows"
    return "another one is better in all figures"


def _impossible(
    goal: Goal, found: Searched, missed: Sequence[tuple[RecipeTrial, str]]
) -> OnnxOptError:
    """Error where no recipe keeps the budget, with the one that comes nearest."""
    sound = [trial for trial in found.trials if not trial.failure]
    limits = ", ".join(f"{key}={value:g}" for key, value in goal.as_dict().items())
    if not sound:
        reasons = "; ".join(dict.fromkeys(trial.failure for trial in found.trials))
        return CheckError("tune", f"no recipe could be run: {reasons}", "see above")
    if goal.limits_accuracy and missed:
        nearest, reason = missed[-1]
        words = f"on data that the search did not see: {reason}"
    else:
        nearest = min(sound, key=lambda trial: _distance(trial, goal))
        words = _in_words(nearest)
    return CheckError(
        "tune",
        f"no recipe of {len(sound)} keeps {limits}: the nearest is '{nearest.recipe}' ({words})",
        "give a wider budget; or take this recipe: --passes with the text above",
    )


def _distance(trial: RecipeTrial, goal: Goal) -> float:
    """Distance of a trial from the goal, as a share of its limits."""
    parts = []
    if goal.max_drop is not None and trial.drop is not None:
        parts.append((trial.drop - goal.max_drop) / max(goal.max_drop, 1e-3))
    if goal.min_sqnr is not None and trial.sqnr_db is not None:
        parts.append((goal.min_sqnr - trial.sqnr_db) / 10)
    if goal.max_bytes is not None and trial.bytes is not None:
        parts.append(trial.bytes / goal.max_bytes - 1)
    if goal.max_latency_ms is not None and trial.latency_ms is not None:
        parts.append(trial.latency_ms / goal.max_latency_ms - 1)
    return max(parts, default=0.0)


def _in_words(trial: RecipeTrial) -> str:
    words = [] if trial.bytes is None else [f"{trial.bytes:,} bytes"]
    if trial.drop is not None:
        words.append(f"drop {trial.drop:.4g}")
    if trial.sqnr_db is not None:
        words.append(f"{trial.sqnr_db:.1f} dB")
    return ", ".join(words)
