"""The account of a search: why a recipe that seems better than the chosen one was not taken."""

from pathlib import Path

import pytest
from onnx_opt.tools._tune.account import search_facts
from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.search import Searched
from onnx_opt.tools._tune.trial import RecipeTrial, Task
from onnx_opt.tools._tune.verdict import JudgedRecipe
from onnx_opt.tools.facts import as_text
from onnx_opt.tools.tables import passed_over_table

GOAL = Goal("size", max_drop=0.01)
TASK = Task(
    model=Path("m.onnx"),
    target="cpu",
    data=None,
    labelled=None,
    is_apart=False,
    is_timed=False,
    metric="top1",
    metric_output=None,
    seed=0,
    threads=0,
    inputs=(),
    outputs=(),
)
LOST = RecipeTrial("lost", bytes=100, drop=0.05, error=0.004)
CLOSE = RecipeTrial("close", bytes=150, drop=0.008, error=0.004)
FAILED = RecipeTrial("failed", bytes=160, drop=0.002, error=0.004)
SKIPPED = RecipeTrial("skipped", bytes=170, drop=0.0015, error=0.004)
CHOSEN = RecipeTrial("chosen", bytes=200, drop=0.001, error=0.004)
LARGE = RecipeTrial("large", bytes=300, drop=0.0, error=0.004)
WORSE = RecipeTrial("worse", bytes=210, drop=0.009, error=0.004)
MISS = "--max-drop: top1 went from 0.9 to 0.8"
REASONS = {
    "lost": None,
    "close": "too close to the budget to be sure of: with one standard error more, the drop is "
    "0.0120",
    "failed": f"on data that the search did not see: {MISS}",
    "skipped": "not judged on data that the search did not see: others failed there, and the "
    "gentlest came before this one",
    "chosen": None,
    "large": None,
}


@pytest.fixture
def facts():
    found = Searched([LOST, CLOSE, FAILED, SKIPPED, CHOSEN, LARGE, WORSE])
    found.missed["failed"] = MISS
    return search_facts(GOAL, TASK, found, JudgedRecipe(None, CHOSEN, CHOSEN), 1.0)


def test_what_seems_better_than_the_chosen_one_has_a_reason(facts):
    assert {point["recipe"]: point["reason"] for point in facts["front"]} == REASONS


def test_so_has_what_is_beaten(facts):
    (rejected,) = facts["rejected"]
    assert rejected["recipe"] == "worse"
    assert rejected["reason"].startswith("too close to the budget")


def test_reasons_stand_below_the_front(facts):
    text = " ".join(as_text([passed_over_table(facts)]).split())
    for recipe, size in (("close", 150), ("failed", 160), ("skipped", 170)):
        assert f"{size} {REASONS[recipe]}" in text
    assert "100 " not in text
    assert text.startswith("smaller ones within the budget")


def test_the_chosen_one_is_shown_though_what_failed_beats_it():
    beaten = RecipeTrial("beaten", bytes=165, drop=0.003, error=0.004)
    found = Searched([FAILED, beaten], missed={"failed": MISS})
    facts = search_facts(GOAL, TASK, found, JudgedRecipe(None, beaten, beaten), 1.0)
    assert [point["recipe"] for point in facts["front"]] == ["failed", "beaten"]
    assert facts["rejected"] == []


def test_there_is_nothing_to_say_of_the_smallest_that_fits():
    found = Searched([LOST, CHOSEN, LARGE])
    facts = search_facts(GOAL, TASK, found, JudgedRecipe(None, CHOSEN, CHOSEN), 1.0)
    assert passed_over_table(facts) is None
