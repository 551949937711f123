"""Recipes that are held against the half of the data that the search did not see."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from onnx_opt import CheckError
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune import verdict as verdict_module
from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.search import Searched
from onnx_opt.tools._tune.trial import RecipeTrial
from onnx_opt.tools._tune.verdict import MOST, candidates_of
from onnx_opt.tools.tune import _judged

GOAL = Goal("size", max_drop=0.01)


def trial(size: int, sqnr_db: float | None, drop: float = 0.0) -> RecipeTrial:
    return RecipeTrial(
        f"recipe {size}", bytes=size, sqnr_db=sqnr_db, drop=drop, error=0.0
    )


def candidates(*trials: RecipeTrial) -> list[int | None]:
    found = Searched(trials=list(trials))
    return [each.bytes for each in candidates_of(found, GOAL)]


def test_the_cheapest_come_first_and_the_gentlest_last() -> None:
    trials = [trial(100 + step, 20.0 + step) for step in range(6)]

    assert candidates(*reversed(trials)) == [100, 101, 102, 105]


def test_few_are_judged_all() -> None:
    trials = [trial(100 + step, 20.0 + step) for step in range(MOST)]

    assert candidates(*trials) == [100, 101, 102, 103]


def test_what_misses_the_budget_is_no_candidate() -> None:
    assert candidates(trial(100, 10.0, drop=0.02), trial(200, 30.0)) == [200]


def test_without_sqnr_the_gentlest_is_the_one_that_loses_least() -> None:
    losses = [0.009, 0.008, 0.007, 0.001, 0.005]
    trials = [trial(100 + step, None, drop) for step, drop in enumerate(losses)]

    assert candidates(*trials)[-1] == 103


def test_nothing_fits_nothing_is_judged() -> None:
    assert candidates(trial(100, 10.0, drop=0.5)) == []


def test_recipes_that_failed_there_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    settings = RunSettings(model=Path("m.onnx"), pipeline=parse("simplify"))
    task = SimpleNamespace(settings=lambda recipe, half: settings, labelled=[])
    asked = SimpleNamespace(recover=0.0, goal=GOAL)
    failures = iter([CheckError("--max-drop", "worse by 0.02", "choose another")])

    def run(settings: RunSettings) -> None:
        for failure in failures:
            raise failure

    monkeypatch.setattr(verdict_module, "optimize_model", run)
    monkeypatch.setattr(
        verdict_module, "trial_of", lambda recipe, result: RecipeTrial(recipe)
    )
    found = Searched([trial(100, 20.0), trial(101, 21.0)])
    warnings: list[str] = []

    judged = _judged(settings, asked, GOAL, None, task, found, warnings)

    assert judged.seen.bytes == 101
    assert warnings == [
        "tune: 'recipe 100' failed on data that the search did not see: --max-drop: worse by 0.02"
    ]
