"""The search within a budget: the front, goals that cannot be, and whole searches."""

import dataclasses
import json
import math
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt import CheckError, OnnxOptError, UsageError
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._jobs.engines import HereEngine, ProcessEngine
from onnx_opt.tools._tune import plans as plans_module
from onnx_opt.tools._tune import search as search_module
from onnx_opt.tools._tune import trial as trial_module
from onnx_opt.tools._tune import verdict as verdict_module
from onnx_opt.tools._tune.choices import (
    total_cost,
    total_loss,
)
from onnx_opt.tools._tune.engines import TrialJobs
from onnx_opt.tools._tune.families import MenuRecipes
from onnx_opt.tools._tune.front import front_of, keeps_accuracy
from onnx_opt.tools._tune.goal import Goal, goal_of
from onnx_opt.tools._tune.menu import INTEGER_FORMS, FoundMenu, MenuRange
from onnx_opt.tools._tune.plans import SearchPlan
from onnx_opt.tools._tune.remembered import key_of
from onnx_opt.tools._tune.search import RecipeSearch, Searched
from onnx_opt.tools._tune.trial import RecipeTrial
from sample_models import CLASSIFIER, model_from
from test_tune_choices import MENU, choice

SCHEMAS = Path(onnx_opt.__file__).parent / "tools" / "schema"


def trial(size, drop, recipe="", error=0.0, **figures):
    name = recipe or f"{size} {drop}"
    return RecipeTrial(name, bytes=size, drop=drop, error=error, **figures)


def test_the_front_has_what_nothing_beats():
    kept = [trial(10, 0.5), trial(20, 0.1), trial(30, 0.0)]
    beaten = [trial(20, 0.3), trial(35, 0.0), RecipeTrial("failed", failure="no")]
    assert front_of([*beaten, *kept]) == kept


@pytest.mark.parametrize(
    ("drop", "error", "slack", "kept"),
    [
        (0.01, 0.0, 0.0, True),
        (0.011, 0.0, 0.0, False),
        # chance may hide more than the budget
        (0.005, 0.006, 0.0, False),
        # but not more than it does with the gentlest recipe
        (0.005, 0.006, 0.006, True),
        (math.nan, 0.0, 0.0, False),
    ],
)
def test_a_drop_is_judged_with_what_chance_may_hide(drop, error, slack, kept):
    goal = Goal("size", max_drop=0.01)
    assert keeps_accuracy(trial(1, drop, error=error), goal, slack=slack) == kept


@pytest.mark.parametrize(
    ("limits", "where"),
    [
        ({}, "tune"),
        ({"max_drop": 0.1, "min_sqnr": 20.0}, "--max-drop"),
        ({"max_drop": -0.1}, "--max-drop"),
        ({"max_drop": math.nan}, "--max-drop"),
        ({"max_bytes": 0}, "--max-bytes"),
        ({"max_latency_ms": -1.0}, "--max-latency-ms"),
    ],
)
def test_goals_that_nothing_can_keep_are_refused(limits, where):
    every = dict.fromkeys(("max_drop", "min_sqnr", "max_bytes", "max_latency_ms"))
    with pytest.raises(UsageError) as caught:
        goal_of(None, **{**every, **limits})
    assert caught.value.where == where


class MadeUp:
    """An engine that knows what each recipe comes to: bytes and loss of its palettes."""

    def __init__(self):
        self.rounds = []

    def run(self, task, recipes):
        self.rounds.append(len(recipes))
        return map(self._trial, recipes)

    def _trial(self, recipe):
        *_, quant, _ = parse(recipe).passes
        few = {entry.partition("=")[0] for entry in quant.layers}
        forms = {name: MENU[name][name in few] for name in MENU}
        return trial(total_cost(forms), total_loss(forms), recipe)

    def close(self):
        pass


@pytest.mark.parametrize(
    ("goal", "expected"),
    [
        (Goal("size", max_drop=0.25), "ab"),
        (Goal("accuracy", max_bytes=60), "b"),
    ],
)
def test_the_search_ends_at_the_limit(goal, expected, monkeypatch):
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 4)
    found = Searched()
    engine = MadeUp()
    family = MenuRecipes([FoundMenu("", 0.0, MENU, {})])
    RecipeSearch(goal, SearchPlan(family), None, engine, deadline=math.inf).run(found)
    forms = {name: MENU[name][name in expected] for name in MENU}
    assert trial(total_cost(forms), total_loss(forms)).bytes in {
        each.bytes for each in found.trials
    }
    recipes = [each.recipe for each in found.trials]
    assert len(set(recipes)) == len(recipes)
    assert not found.is_cut_short


class Misjudged(MadeUp):
    """An engine of which recipes that prune lose a third of what is predicted."""

    def _trial(self, recipe):
        made = super()._trial(recipe)
        if "prune" not in recipe:
            return made
        return dataclasses.replace(made, drop=made.drop / 3)


def test_kinds_of_recipes_that_lose_less_than_predicted_win_in_the_end(monkeypatch):
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 4)
    dearer = {
        name: [choice(each.form, 1.2 * each.loss + 0.01, each.cost) for each in choices]
        for name, choices in MENU.items()
    }
    menus = [FoundMenu("", 0.0, MENU, {}), FoundMenu("prune", 0.01, dearer, {})]
    found = Searched()
    goal = Goal("size", max_drop=0.25)
    plan = SearchPlan(MenuRecipes(menus))
    RecipeSearch(goal, plan, None, MadeUp(), deadline=math.inf).run(found)
    smallest = min(each.bytes for each in found.fitting(goal))
    found = Searched()
    RecipeSearch(goal, plan, None, Misjudged(), deadline=math.inf).run(found)
    best = min(found.fitting(goal), key=lambda each: each.bytes)
    assert best.bytes < smallest
    assert "prune" in best.recipe


def test_of_a_size_each_kind_of_recipe_is_tried(monkeypatch):
    """Though what pruning loses was overestimated so much that no other recipe would be of it."""
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 4)
    menus = [FoundMenu("", 0.0, MENU, {}), FoundMenu("prune", 0.9, MENU, {})]
    goal = Goal("accuracy", max_bytes=60)
    found = Searched()
    plan = SearchPlan(MenuRecipes(menus))
    RecipeSearch(goal, plan, None, Misjudged(), deadline=math.inf).run(found)
    best = min(found.fitting(goal), key=lambda each: each.drop)
    assert "prune" in best.recipe
    unpruned = [each.drop for each in found.fitting(goal) if "prune" not in each.recipe]
    assert best.drop < min(unpruned)


def test_a_search_without_time_has_tried_the_gentlest_of_each_sort(monkeypatch):
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 4)
    found = Searched()
    goal = Goal("size", max_drop=0.25)
    family = MenuRecipes([FoundMenu("", 0.0, MENU, {})])
    templates = (
        "simplify, quant(layers=[a=palette:5]), strip",
        "simplify, quant(layers=[a=palette:4]), strip",
    )
    search = RecipeSearch(
        goal, SearchPlan(family, templates), None, MadeUp(), -math.inf
    )
    search.run(found)
    # of the family, and of the templates
    assert len(found.trials) == 2
    assert found.trials[1].recipe == templates[0]
    assert found.is_cut_short


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A model, and data whose labels are what it says itself; searches end with the templates."""
    folder = tmp_path_factory.mktemp("classifier")
    path = folder / "classifier.onnx"
    onnx.save(model_from(CLASSIFIER), path)
    rng = np.random.default_rng(5)
    x = rng.standard_normal((512, 64)).astype(np.float32)
    model = ir.load(path)
    w1, w2, w3 = (
        model.graph.initializers[name].const_value.numpy()
        for name in ("w1", "w2", "w3")
    )
    scores = np.maximum(np.maximum(x @ w1, 0) @ w2, 0) @ w3
    data = folder / "data.npz"
    np.savez(data, x=x, labels=scores.argmax(axis=1))
    unlabelled = folder / "unlabelled.npz"
    np.savez(unlabelled, x=x)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(search_module, "MOST_ROUNDS", 0)
        one_menu = MenuRange(("",), INTEGER_FORMS)
        patch.setattr(plans_module, "range_for", lambda goal: one_menu)
        yield path, data, unlabelled


@pytest.fixture(scope="module")
def tuned(classifier, tmp_path_factory):
    path, data, unlabelled = classifier
    out = tmp_path_factory.mktemp("tuned") / "small.onnx"
    asked = {"metric": "top1", "max_drop": 0.2, "seed": 0}
    result = onnx_opt.tune(path, data=unlabelled, eval_data=data, **asked, out=out)
    return result, out


def test_the_result_keeps_the_budget_on_rows_that_the_search_never_saw(tuned):
    result, out = tuned
    search = result.as_dict()["tune"]
    assert out.is_file()
    assert result.metric["samples"] == 256
    assert search["split"]["unseen"]["drop"] == result.metric["drop"] <= 0.2
    assert search["budget"] == {"max_drop": 0.2}
    assert search["recipe"] in {point["recipe"] for point in search["front"]}
    assert search["trials"] == len(search["front"]) + len(search["rejected"])
    assert all(each["reason"] for each in search["rejected"])
    assert result.output.bytes < 0.3 * result.input.bytes
    json.dumps(search, allow_nan=False)


def test_the_recipe_makes_the_same_file_without_a_search(tuned, classifier, tmp_path):
    result, out = tuned
    path, data, unlabelled = classifier
    again = tmp_path / "again.onnx"
    onnx_opt.optimize(
        path,
        result.search["recipe"],
        data=unlabelled,
        eval_data=data,
        metric="top1",
        out=again,
        bench=False,
    )
    first, second = onnx.load(out), onnx.load(again)
    assert first.graph == second.graph


def test_without_labels_classes_must_stay(classifier):
    path, _, unlabelled = classifier
    result = onnx_opt.tune(path, data=unlabelled, max_drop=0.015)
    assert "agreement" in result.search["measured_by"]
    assert result.metric["before"] == 1.0
    assert result.metric["drop"] <= 0.015


def test_what_judges_is_not_calibrated_on(classifier, monkeypatch):
    path, data, _ = classifier
    seen = []
    plain = trial_module.optimize_model

    def noted(settings):
        rows = {row.tobytes() for batch in settings.data for row in batch.feeds["x"]}
        judges = {
            row.tobytes() for batch in settings.eval_data for row in batch.feeds["x"]
        }
        seen.append((rows, judges))
        return plain(settings)

    monkeypatch.setattr(verdict_module, "optimize_model", noted)
    onnx_opt.tune(path, data=data, metric="top1", max_drop=0.3)
    ((rows, judges),) = seen
    assert len(rows) == len(judges) == 256
    assert not rows & judges


def test_an_impossible_budget_names_the_nearest_recipe(classifier, tmp_path):
    path, data, _ = classifier
    out = tmp_path / "none.onnx"
    with pytest.raises(CheckError, match="the nearest is 'simplify") as caught:
        onnx_opt.tune(path, data=data, min_sqnr=100.0, out=out)
    assert caught.value.exit_code == 4
    assert not out.exists()


def test_an_interrupted_search_goes_on(classifier, tmp_path, monkeypatch):
    path, data, _ = classifier
    runs = []
    plain = trial_module.run_trial

    def counted(task, recipe):
        runs.append(recipe)
        if len(runs) == 3:
            raise KeyboardInterrupt
        return plain(task, recipe)

    monkeypatch.setattr("onnx_opt.tools._tune.engines.run_trial", counted)
    folder = tmp_path / "state"
    asked = {"data": data, "metric": "top1", "max_drop": 0.3, "seed": 0}
    first = onnx_opt.tune(path, **asked, resume=folder)
    assert first.search["trials"] == 2
    assert any("interrupted" in warning for warning in first.warnings)
    second = onnx_opt.tune(path, **asked, resume=folder)
    assert second.search["trials"] > 2
    # only the one that was interrupted is run again
    assert len(runs) - len(set(runs)) == 1


@pytest.mark.slow
def test_processes_come_to_the_same_trials(classifier):
    path, data, _ = classifier
    task = task_of(path, data)
    recipes = ["simplify, quant(measure=false)", "quant(palette, bits=4)"]
    here = list(TrialJobs(HereEngine()).run(task, recipes))
    processes = TrialJobs(ProcessEngine(2))
    there = list(processes.run(task, recipes))
    processes.close()
    for first, second in zip(here, there, strict=True):
        assert not first.failure
        assert (first.recipe, first.bytes, first.drop) == (
            second.recipe,
            second.bytes,
            second.drop,
        )


def task_of(path, data):
    return trial_module.Task(
        model=path,
        target="cpu",
        data=str(data),
        labelled=str(data),
        is_apart=False,
        is_timed=False,
        metric="top1",
        metric_output=None,
        seed=0,
        threads=1,
        inputs=tuple(_infos(path)),
        outputs=(),
    )


def _infos(path):
    from onnx_opt.tools._run.figures import input_infos

    return input_infos(ir.load(path))


def test_a_budget_of_bytes_is_a_search_of_the_main_command(
    classifier, tmp_path, monkeypatch
):
    path, data, _ = classifier
    out = tmp_path / "small.onnx"
    done = invoke(path, "--data", data, "--max-bytes", 18_000, "-o", out, "--json")
    assert done.exit_code == 0, done.output
    facts = json.loads(done.stdout)
    assert facts["output"]["bytes"] == out.stat().st_size <= 18_000
    assert facts["tune"]["objective"] == "accuracy"
    schema = json.loads((SCHEMAS / "run-1.json").read_text())
    jsonschema.validate(facts, schema)


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--passes", "auto", "--max-drop", "0.1"), "--passes auto"),
        (("--passes", "quant", "--max-bytes", "9"), "--max-bytes"),
        (
            ("--passes", "auto", "--max-drop", "1", "--data", "d.npz", "--strict"),
            "--strict",
        ),
    ],
)
def test_a_search_says_what_it_lacks(classifier, words, where):
    path, _, _ = classifier
    done = invoke(path, *words)
    assert done.exit_code == 2
    assert where in done.stderr
    assert "fix:" in done.stderr


def test_the_usual_pipeline_that_misses_a_budget_starts_a_search(
    classifier, tmp_path, monkeypatch
):
    path, data, _ = classifier
    out = tmp_path / "none.onnx"
    done = invoke(path, "--data", data, "--min-sqnr", 100, "-o", out)
    assert done.exit_code == 4
    assert "searching for a recipe" in done.stderr
    assert "the nearest is" in done.stderr
    assert not out.exists()


def test_a_file_of_that_name_stays_where_no_recipe_keeps_the_budget(
    classifier, tmp_path
):
    path, _, unlabelled = classifier
    out = tmp_path / "kept.onnx"
    out.write_bytes(b"mine")
    with pytest.raises(CheckError):
        onnx_opt.tune(path, data=unlabelled, min_sqnr=100.0, out=out)
    assert out.read_bytes() == b"mine"


def test_the_input_is_not_written_over_and_that_is_said_at_once(classifier):
    path, _, unlabelled = classifier
    with pytest.raises(OnnxOptError, match="--force"):
        onnx_opt.tune(
            path, data=unlabelled, min_sqnr=1.0, out=path, tell=lambda trial: 1 / 0
        )


def test_without_labels_the_verdict_is_of_samples_that_no_trial_had(
    classifier, monkeypatch
):
    path, _, unlabelled = classifier
    judged = []
    plain = verdict_module.verify

    def noted(first, second, data):
        judged.extend(row.tobytes() for batch in data for row in batch.feeds["x"])
        return plain(first, second, data)

    monkeypatch.setattr(verdict_module, "verify", noted)
    result = onnx_opt.tune(path, data=unlabelled, min_sqnr=15.0)
    unseen = result.search["split"]["unseen"]
    assert len(set(judged)) == 256
    assert unseen["sqnr_db"] >= 15.0
    assert unseen["sqnr_db"] != result.search["split"]["seen"]["sqnr_db"]


def test_what_no_process_can_be_given_is_said(classifier):
    path, _, unlabelled = classifier
    rows = np.load(unlabelled)["x"]
    with pytest.raises(UsageError, match="cannot be sent"):
        onnx_opt.tune(path, data=lambda: iter([{"x": rows}]), min_sqnr=9.0, jobs=2)


def test_findings_are_those_of_the_same_data(classifier, tmp_path):
    path, data, _ = classifier
    copy = tmp_path / "data.npz"
    copy.write_bytes(data.read_bytes())
    task = task_of(path, copy)
    before = key_of("model", task)
    assert key_of("model", task_of(path, copy)) == before
    arrays = dict(np.load(copy))
    arrays["labels"] = (arrays["labels"] + 1) % 10
    np.savez(copy, **arrays)
    assert key_of("model", task) != before


def test_a_miss_is_an_exit_status_where_a_search_lacks_what_was_asked(
    classifier, tmp_path
):
    path, data, _ = classifier
    out = tmp_path / "none.onnx"
    words = ("--data", data, "--min-sqnr", 100, "-o", out, "--no-bench")
    done = invoke(path, *words)
    assert done.exit_code == 4
    assert "searching" not in done.stderr


@pytest.mark.slow
def test_latency_is_searched_by_channels(classifier):
    path, data, unlabelled = classifier
    result = onnx_opt.tune(
        path,
        data=unlabelled,
        eval_data=data,
        metric="top1",
        max_drop=0.3,
        objective="latency",
    )
    recipes = [point["recipe"] for point in result.search["front"]]
    recipes += [point["recipe"] for point in result.search["rejected"]]
    assert any("prune-channels" in recipe for recipe in recipes)
    assert all(point["latency_ms"] > 0 for point in result.search["front"])


def invoke(*words):
    from click.testing import CliRunner
    from onnx_opt.tools.cli import main

    return CliRunner().invoke(main, [str(word) for word in words])
