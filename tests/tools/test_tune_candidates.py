"""Recipes that are held against the half of the data that the search did not see."""

from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.search import Searched
from onnx_opt.tools._tune.trial import RecipeTrial
from onnx_opt.tools._tune.verdict import MOST, candidates_of

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
