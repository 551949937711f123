"""Plans of a search: repair of a pipeline, aims without a budget, recovery by training."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, UsageError
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.passes._core.recipe_files import as_toml, write_recipe
from onnx_opt.tools._run.loss_probes import Twins
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune import plans as plans_module
from onnx_opt.tools._tune import search as search_module
from onnx_opt.tools._tune.aims import ACCURATE_SHARE, AIMS, pipelines_of
from onnx_opt.tools._tune.choices import FLOAT, FormChoice
from onnx_opt.tools._tune.families import Proposal, RepairRecipes
from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.lab import open_lab
from onnx_opt.tools._tune.menu import (
    AS_GIVEN,
    INTEGER_FORMS,
    MILDER,
    MenuRange,
    bits_of,
    menu_of,
    range_for,
)
from onnx_opt.tools._tune.recovery import RECOVERED_DB, recovered_recipe
from onnx_opt.tools._tune.search import Searched
from onnx_opt.tools._tune.swaps import comparable, swapped, swaps
from onnx_opt.tools._tune.trial import RecipeTrial
from onnx_opt.tools.cli import main
from sample_models import CLASSIFIER, model_from

WORDS = """
<ir_version: 10, opset_import: ["" : 21]>
words (int64[batch, 12] ids) => (float[batch, 12, 48] y)
<float[200, 64] table, float[64, 64] w1, float[64, 48] w2>
{
    rows = Gather (table, ids)
    h1 = MatMul (rows, w1)
    r1 = Relu (h1)
    y = MatMul (r1, w2)
}
"""


@pytest.fixture(autouse=True)
def short_searches(monkeypatch):
    """Searches of one menu and one round: what they find is the matter of other tests."""
    one_menu = MenuRange(("",), INTEGER_FORMS)
    monkeypatch.setattr(plans_module, "range_for", lambda goal: one_menu)
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 1)


@pytest.fixture(scope="module")
def classifier(tmp_path_factory):
    """A classifier, and rows without labels."""
    folder = tmp_path_factory.mktemp("plans")
    path = folder / "classifier.onnx"
    onnx.save(model_from(CLASSIFIER), path)
    rng = np.random.default_rng(7)
    data = folder / "data.npz"
    np.savez(data, x=rng.standard_normal((512, 64)).astype(np.float32))
    return path, data


@pytest.fixture
def words(tmp_path):
    """A model that looks words up in a table, and sentences."""
    path = tmp_path / "words.onnx"
    onnx.save(model_from(WORDS), path)
    rng = np.random.default_rng(3)
    data = tmp_path / "ids.npz"
    np.savez(data, ids=rng.integers(0, 200, (64, 12)))
    return path, data


def lab_of(path, data):
    return open_lab(RunSettings(model=path, pipeline=parse("simplify"), data=data))


def outputs(model, feeds):
    proto = ir.to_proto(model)
    session = ort.InferenceSession(proto.SerializeToString())
    return session.run(None, feeds)[0]


def test_a_table_is_swapped_as_the_result_reads_it(words):
    path, data = words
    with lab_of(path, data) as lab:
        text = "quant(palette, bits=3, ends=same, measure=false, include=t*)"
        (made,) = lab.steps(text)
        whole = comparable(made.reference, made.result)
        twins = Twins(made.result)
        (swap,) = swaps(whole, twins)
        assert swap.weight == "table"
        variant = swapped(whole, twins, swap)
        feeds = {"ids": np.load(data)["ids"]}
        expected = outputs(made.result, feeds)
        np.testing.assert_array_equal(outputs(variant.model, feeds), expected)
        assert not np.array_equal(outputs(whole, feeds), expected)


def test_tables_are_on_the_menu(words):
    path, data = words
    with lab_of(path, data) as lab:
        menu = menu_of(lab).menu
    choices = {choice.form: choice for choice in menu["table"]}
    # 200 rows of 64 bytes, and a scale for each row
    assert choices["int8:8"].cost == 200 * 64 + 200 * 4
    assert 0 < choices["int8:8"].loss < choices["palette:4"].loss < 0.1
    assert choices["palette:4"].cost < choices["int8:8"].cost
    assert FLOAT in choices


def test_gradients_tell_what_tables_lose(words):
    path, data = words
    with lab_of(path, data) as lab:
        measured = menu_of(lab, method="measured").menu
        estimated = menu_of(lab, method="estimated").menu
    losses = {each.form: each.loss for each in measured["table"]}
    assert {"int8:8", "palette:3"} <= set(losses)
    for each in estimated["table"]:
        assert each.loss == pytest.approx(losses[each.form], rel=0.5)


def test_a_menu_behind_pruning_starts_from_what_that_loses(classifier):
    path, data = classifier
    with lab_of(path, data) as lab:
        plain = menu_of(lab)
        pruned = menu_of(lab, "prune(sparsity=0.5)")
        nothing = menu_of(lab, "prune(sparsity=0.0)")
    assert plain.loss == 0
    assert 0 < pruned.loss < 0.5
    assert not nothing.menu
    for name, choices in plain.menu.items():
        eight = next(each for each in choices if each.form == "int8:8")
        sparse = [each for each in pruned.menu[name] if each.form == "int8:8"]
        assert not sparse or sparse[0].cost <= eight.cost


def repair_menu():
    def of(loss, size):
        return [
            FormChoice(FLOAT, 0.0, 32 * size),
            FormChoice(MILDER, loss / 64, 8 * size),
            FormChoice(AS_GIVEN, loss, 3 * size),
        ]

    return {"a": of(0.04, 10), "b": of(0.01, 100)}


def test_a_repair_spares_what_loses_most_for_its_bytes():
    pipeline = parse("quant(palette, bits=3), strip")
    family = RepairRecipes(repair_menu(), pipeline)
    assert family.harshest_db == pytest.approx(-10 * math.log10(0.05))
    unchanged = family.proposal(family.harshest_db).recipe
    assert unchanged == str(parse("simplify, quant(palette, bits=3), strip"))
    _, quant, _ = parse(family.proposal(19.0).recipe).passes
    assert quant.layers == ("a=int8:8",)
    assert not quant.exclude
    _, quant, _ = parse(family.proposal(55.0).recipe).passes
    assert set(quant.exclude) == {"a", "b"}


def test_a_pipeline_is_repaired_until_the_budget_holds(classifier, monkeypatch):
    # the first round finds only how much is too little
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 2)
    path, data = classifier
    asked = {"data": data, "min_sqnr": 9.0}
    with pytest.raises(CheckError, match="dB"):
        onnx_opt.optimize(path, "quant(palette, bits=2)", **asked)
    result = onnx_opt.tune(path, repair="quant(palette, bits=2)", **asked)
    assert result.search["split"]["unseen"]["sqnr_db"] >= 9.0
    _, quant = parse(result.search["recipe"]).passes
    assert quant.form == "palette"
    assert quant.layers or quant.exclude
    # some layer keeps the bits that were asked for
    float_share = result.output.bytes / result.input.bytes
    eight_bits = onnx_opt.optimize(path, "quant", data=data)
    assert float_share < eight_bits.output.bytes / eight_bits.input.bytes


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (("--min-sqnr", "20"), "no pipeline to repair"),
        (
            ("--min-sqnr", "20", "--passes", "prune, finetune"),
            "'finetune' cannot leave single layers as they are",
        ),
        (("--passes", "quant"), "no budget"),
        (("--passes", "quant", "--min-sqnr", "20", "--strict"), "--strict"),
    ],
)
def test_a_repair_says_what_it_lacks(classifier, words, where):
    path, data = classifier
    every = ["run", path, "--data", data, "--repair", *words]
    done = CliRunner().invoke(main, [str(word) for word in every])
    assert done.exit_code == 2
    assert where in done.stderr
    assert "fix:" in done.stderr


def test_channels_are_not_put_back(classifier):
    path, data = classifier
    with pytest.raises(UsageError, match="prune-channels"):
        onnx_opt.tune(path, data=data, repair="prune-channels, quant", min_sqnr=20.0)


def test_the_command_repairs(classifier, tmp_path):
    path, data = classifier
    out = tmp_path / "repaired.onnx"
    every = [path, "--data", data, "--passes", "quant(palette, bits=2)"]
    every += ["--min-sqnr", "9", "--repair", "-o", out]
    done = CliRunner().invoke(main, [str(word) for word in every])
    assert done.exit_code == 0, done.output
    assert "searching for the layers" in done.stderr
    assert out.is_file()


@pytest.mark.parametrize("aim", AIMS)
@pytest.mark.parametrize("target", ["cpu", "cuda", "tensorrt", "generic"])
def test_pipelines_of_aims_are_canonical(aim, target):
    texts = pipelines_of(aim, target)
    assert texts
    assert [str(parse(text)) for text in texts] == list(texts)


def test_an_aim_needs_no_budget(classifier):
    path, data = classifier
    result = onnx_opt.tune(path, data=data, aim="size")
    search = result.search
    assert search["budget"] == {"max_drop": 0.02}
    assert search["trials"] == len(pipelines_of("size", "cpu"))
    assert search["split"]["unseen"]["drop"] <= 0.02
    better = [
        point
        for point in search["front"]
        if point["bytes"] < result.output.bytes and point["drop"] <= 0
    ]
    assert not better


def test_an_aim_takes_what_loses_least_where_nothing_is_bearable(words):
    path, data = words
    # its outputs choose no class, and 8 bits keep less than 20 dB of sentences of one word
    rng = np.random.default_rng(0)
    np.savez(data, ids=np.repeat(rng.integers(0, 200, (64, 1)), 12, axis=1))
    result = onnx_opt.tune(path, data=data, aim="accuracy")
    assert result.search["objective"] == "accuracy"
    assert result.output.bytes <= ACCURATE_SHARE * result.input.bytes
    least = max(point["sqnr_db"] for point in result.search["front"])
    assert result.search["split"]["seen"]["sqnr_db"] == least


@pytest.mark.parametrize(
    ("given", "where"),
    [
        ({"aim": "beauty"}, "--aim"),
        ({"aim": "size", "objective": "latency"}, "--aim"),
        ({"aim": "size", "repair": "quant"}, "--aim"),
        ({}, "tune"),
    ],
)
def test_choices_that_contradict_each_other(classifier, given, where):
    path, data = classifier
    with pytest.raises(UsageError) as caught:
        onnx_opt.tune(path, data=data, **given)
    assert caught.value.where == where


def trial(name, size, drop, sqnr_db):
    text = f"simplify, prune(sparsity={name}), quant(palette, bits=4), strip"
    return RecipeTrial(text, bytes=size, drop=drop, error=0.0, sqnr_db=sqnr_db)


def test_the_recipe_to_train_is_smaller_and_within_reach():
    found = Searched()
    found.trials += [
        trial(0.1, 100, 0.0, 30.0),
        trial(0.2, 80, 0.01, 25.0),
        trial(0.3, 60, 0.05, 25.0 - RECOVERED_DB),
        trial(0.4, 40, 0.2, 25.0 - RECOVERED_DB - 0.1),
    ]
    goal = Goal("size", max_drop=0.02)
    text = recovered_recipe(goal, found, None, 5.0)
    _, prune, quant, finetune, strip = parse(text).passes
    assert prune.sparsity == 0.3
    assert (quant.name, strip.name) == ("quant", "strip")
    assert finetune.minutes == 5.0


def test_a_harsher_recipe_is_trained_where_none_was_tried():
    found = Searched(trials=[trial(0.1, 100, 0.0, 30.0)])
    goal = Goal("size", max_drop=0.02)
    asked = []

    class Family:
        def proposal(self, target_db):
            asked.append(target_db)
            return Proposal("simplify, quant(palette, bits=3), strip", target_db)

    text = recovered_recipe(goal, found, Family(), 5.0)
    assert asked == [30.0 - RECOVERED_DB]
    quant, finetune = parse(text).passes[1:3]
    assert (quant.bits, finetune.minutes) == (3, 5.0)


def test_budgets_of_bytes_alone_bear_harsher_pruning_and_fewer_bits():
    gentle = range_for(Goal("size", max_drop=0.01, max_bytes=50))
    harsh = range_for(Goal("accuracy", max_bytes=50))
    # what reaches the fewest bytes is always looked at
    assert gentle.before[0] == harsh.before[0] == ""

    def lowest(befores):
        passes = [parse(text).passes[0] for text in befores if "min_sqnr" in text]
        return min(each.min_sqnr for each in passes)

    assert lowest(harsh.before) < lowest(gentle.before)
    assert bits_of(harsh.forms[-1].form) < bits_of(gentle.forms[-1].form)


def test_of_a_size_the_best_recipe_is_trained_with_room_to_grow():
    found = Searched()
    found.trials += [
        trial(0.1, 150, 0.0, 30.0),
        trial(0.2, 100, 0.01, 25.0),
        trial(0.3, 99, 0.05, 24.0),
        trial(0.4, 60, 0.2, 20.0),
    ]

    class Family:
        def proposal(self, target_db):
            raise AssertionError(
                "accuracy has no budget that a harsher one would use up"
            )

    goal = Goal("accuracy", max_bytes=100)
    text = recovered_recipe(goal, found, Family(), 5.0)
    assert parse(text).passes[1].sparsity == 0.3
    # rather without room than not at all
    tight = recovered_recipe(Goal("accuracy", max_bytes=60), found, Family(), 5.0)
    assert parse(tight).passes[1].sparsity == 0.4
    too_small = Goal("accuracy", max_bytes=50)
    assert recovered_recipe(too_small, found, Family(), 5.0) is None


def test_nothing_is_trained_where_nothing_ran():
    failed = RecipeTrial("simplify", failure="data: none")
    found = Searched(trials=[failed])
    assert recovered_recipe(Goal("size", max_drop=0.1), found, None, 5.0) is None


@pytest.mark.slow
def test_a_search_ends_with_training(classifier, tmp_path):
    path, data = classifier
    recipe = tmp_path / "recipe.toml"
    result = onnx_opt.tune(
        path, data=data, min_sqnr=12.0, recover=0.2, minutes=0.0, save_recipe=recipe
    )
    plain = onnx_opt.tune(path, data=data, min_sqnr=12.0, minutes=0.0)
    assert "finetune(minutes=0.2)" in result.search["recipe"]
    assert result.search["split"]["unseen"]["sqnr_db"] >= 12.0
    # a recipe that is trained as it is may take some bytes more
    assert result.output.bytes <= 1.02 * plain.output.bytes
    assert str(parse(f"@{recipe}")) == result.search["recipe"]


@pytest.mark.parametrize(
    "text",
    [
        "simplify, quant, strip",
        'prune(sparsity=0.5, layers=["odd,[[]name]=0.25"]), quant(palette, bits=3)',
        "finetune(minutes=2.5, flip=true), pack",
    ],
)
@pytest.mark.parametrize("suffix", ["toml", "txt"])
def test_a_recipe_comes_back_from_its_file(text, suffix, tmp_path):
    path = tmp_path / f"recipe.{suffix}"
    pipeline = parse(text)
    write_recipe(path, pipeline.passes)
    assert parse(f"@{path}") == pipeline


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        ("size = [", "cannot be read"),
        ("size = 1", "has no tables"),
        ("[[passes]]\nbits = 4", "names no pass"),
        ('[[passes]]\npass = "quant"\nbitz = 4', "no such option"),
        ('[[passes]]\npass = "quant"\nbits = "many"', "many"),
    ],
)
def test_what_is_wrong_with_a_recipe_of_toml(content, problem, tmp_path):
    path = tmp_path / "recipe.toml"
    path.write_text(content)
    with pytest.raises(UsageError, match=problem):
        parse(f"@{path}")


def test_toml_names_what_differs_from_the_defaults():
    text = as_toml(parse('quant(palette, layers=["a=float"], bits=4), strip').passes)
    assert text == (
        '[[passes]]\npass = "quant"\nform = "palette"\nlayers = [\n    "a=float",\n]\nbits = 4\n'
        '\n[[passes]]\npass = "strip"\n'
    )


def test_forms_that_keep_no_zeros_are_not_behind_pruning():
    menu_range = range_for(Goal("accuracy", max_bytes=50))
    forms = {each.form for each in menu_range.forms_behind("")}
    assert {"codebook:1", "codebook:2", "palette:1"} <= forms
    assert menu_range.forms_behind("prune-channels") == menu_range.forms
    behind = [each.form for each in menu_range.forms_behind("prune(min_sqnr=14)")]
    assert "palette:1" in behind
    assert not any(form.startswith("codebook") for form in behind)


def test_every_form_is_pipeline_text():
    for kind in range_for(Goal("accuracy", max_bytes=50)).forms:
        (quant,) = parse(kind.text).passes
        assert quant.bits == kind.bits
