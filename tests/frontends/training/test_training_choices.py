"""Choices of a training by itself: by rules alone, and by asking a teacher about images."""

import math
import signal

import numpy as np
import pytest
from onnx_opt.frontends.training import loop as loop_module
from onnx_opt.frontends.training import prepare
from onnx_opt.frontends.training.choices import EPOCHS, MINUTES, TrainingFacts, choices
from onnx_opt.frontends.training.data import Example
from onnx_opt.frontends.training.heads import Head
from onnx_opt.frontends.training.interrupt import Interruption
from onnx_opt.frontends.training.photographs import Photographs, photographs
from onnx_opt.frontends.training.score import Score
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from training_models import (
    MLP,
    batches,
    model_of,
    outputs,
    pruned,
    rows,
    serialized,
    trained,
)

SHOWN = Photographs(flip=True, shift=4, reason="the teacher sees the same")
OTHER = Photographs(reason="the images are grey")


def facts(**changes) -> TrainingFacts:
    values = {
        "preset": "recover",
        "rows": 9000,
        "photographs": SHOWN,
        "has_features": True,
    }
    return TrainingFacts(**{**values, **changes})


def told(recipe, found):
    return {
        one.where: (one.choice, one.reason) for one in choices(recipe, found).chosen
    }


# rules


@pytest.mark.parametrize("preset", ["recover", "qad", "student", "block"])
def test_other_data_are_trained_on_as_they_are(preset):
    found = facts(preset=preset, photographs=OTHER)
    recipe = choices(TrainingRecipe(), found).recipe
    assert (recipe.flip, recipe.shift) == (False, 0)
    assert (recipe.mixup, recipe.cutmix) == (0.0, 0.0)
    assert recipe.features == ()
    assert (recipe.batch, recipe.rate, recipe.minutes) == (128, 0.0, 0.0)
    assert told(TrainingRecipe(), found)["flip"] == ("false", "the images are grey")


def test_photographs_are_changed_and_compared_inside():
    recipe = choices(TrainingRecipe(), facts(sparsity=0.8)).recipe
    assert (recipe.flip, recipe.shift, recipe.cutmix) == (True, 4, 0.0)
    assert (recipe.features, recipe.batch, recipe.rate) == (("auto",), 64, 0.02)
    assert recipe.steps == math.ceil(EPOCHS * 9000 / 64)
    assert (recipe.minutes, recipe.patience) == (MINUTES, "auto")
    chosen = told(TrainingRecipe(), facts(sparsity=0.8))
    assert chosen["shift"] == ("4", "the teacher sees the same")
    assert chosen["steps"][1].endswith(
        "epochs of 9000 images of a graph with 80% zeros"
    )
    # what is usual is not told
    assert "cutmix" not in chosen


@pytest.mark.parametrize(("agreement", "rate"), [(0.88, 0.02), (0.97, 0.004)])
def test_a_graph_near_its_teacher_takes_small_steps(agreement, rate):
    assert choices(TrainingRecipe(), facts(agreement=agreement)).recipe.rate == rate


def test_values_inside_are_not_compared_where_graphs_share_none():
    assert choices(TrainingRecipe(), facts(has_features=False)).recipe.features == ()


def test_little_data_gets_the_steps_of_its_preset():
    recipe = choices(TrainingRecipe(), facts(rows=100)).recipe
    assert (recipe.batch, recipe.steps) == (16, 1000)


@pytest.mark.parametrize(
    ("changes", "cutmix"),
    [
        ({"preset": "student"}, 1.0),
        ({"preset": "qad", "levels": 1.0}, 1.0),
        ({"preset": "qad", "levels": 2.0, "agreement": 0.9}, 0.0),
        ({"preset": "qad", "levels": 15.0}, 0.0),
        ({"preset": "student", "photographs": OTHER}, 0.0),
    ],
)
def test_mixtures_are_for_what_learns_anew(changes, cutmix):
    assert choices(TrainingRecipe(), facts(**changes)).recipe.cutmix == cutmix


@pytest.mark.parametrize(
    ("budget", "cutmix"),
    [
        ({}, 1.0),
        ({"minutes": 24.0}, 1.0),
        ({"minutes": 5.0}, 0.0),
        ({"epochs": 20.0}, 1.0),
        # 703 steps of 128 images are ten times all 9000
        ({"steps": 704}, 1.0),
        ({"steps": 700}, 0.0),
    ],
)
def test_weights_of_less_than_a_bit_learn_from_mixtures_in_the_long_run(budget, cutmix):
    found = facts(preset="qad", levels=0.85, agreement=0.92)
    assert choices(TrainingRecipe(**budget), found).recipe.cutmix == cutmix
    # a bit and more do not
    found = facts(preset="qad", levels=1.0, agreement=0.92)
    assert choices(TrainingRecipe(**budget), found).recipe.cutmix == 0.0


@pytest.mark.parametrize(
    ("preset", "minutes"),
    [("recover", MINUTES), ("qad", MINUTES), ("student", 0.0), ("block", 0.0)],
)
def test_the_clock_ends_what_starts_near_its_teacher(preset, minutes):
    assert choices(TrainingRecipe(), facts(preset=preset)).recipe.minutes == minutes


@pytest.mark.parametrize(
    "given",
    [
        {"flip": False},
        {"shift": 0},
        {"cutmix": 0.5},
        {"mixup": 0.5},
        {"features": ()},
        {"features": ("h",)},
        {"batch": 32},
        {"rate": 0.005},
        {"patience": 4},
    ],
)
def test_what_was_given_is_not_chosen(given):
    asked = TrainingRecipe(**given)
    found = facts(preset="recover")
    recipe = choices(asked, found).recipe
    ((name, value),) = given.items()
    assert getattr(recipe, name) == value
    assert name not in told(asked, found)


@pytest.mark.parametrize("given", [{"steps": 7}, {"epochs": 0.5}, {"minutes": 1.0}])
def test_who_names_a_budget_gets_all_of_it(given):
    recipe = choices(TrainingRecipe(**given), facts()).recipe
    budget = {"steps": 0, "epochs": 0.0, "minutes": 0.0, **given}
    assert {name: getattr(recipe, name) for name in budget} == budget
    assert recipe.patience == 0


# photographs

HEADS = [Head("y", "own", "y", "classes")]
SIDE = 16


def images(count: int = 64, channels: int = 3, side: int = SIDE) -> np.ndarray:
    random = np.random.default_rng(0)
    return random.normal(size=(count, channels, side, side)).astype(np.float32)


def answers_by(score):
    """A teacher of two classes that goes by one number an image."""

    def ask(feeds):
        logit = score(feeds["x"])
        return {"y": np.stack([logit, -logit], axis=1)}

    return ask


def whole(x):
    return 1000 * x.mean((1, 2, 3))


def left_half(x):
    return 1000 * x[..., : x.shape[-1] // 2].mean((1, 2, 3))


def found_in(array, ask, heads=HEADS):
    example = Example({"x": array}, None, ask({"x": array}))
    return photographs([example], heads, ask, seed=0)


def test_a_teacher_that_minds_no_mirror_has_photographs():
    # offsets of one pixel repeat an edge: the mean hardly moves
    found = found_in(
        images() + np.linspace(-1, 1, 64).reshape(-1, 1, 1, 1), answers_by(whole)
    )
    assert (found.flip, found.shift) == (True, 2)
    assert found.reason.startswith(
        "the teacher sees the same in 100% of mirrored images"
    )


def test_a_teacher_of_what_has_a_left_and_a_right_has_none():
    found = found_in(images(), answers_by(left_half))
    assert (found.flip, found.shift) == (False, 0)
    assert "of mirrored images" in found.reason


def test_a_teacher_that_doubts_mirrored_images_has_none():
    def unsure(x):
        # as sure of what it saw as can be, and hardly of anything else
        known = np.isclose(x, seen).all((1, 2, 3))
        return np.where(known, 10.0, 0.1)

    seen = images()
    found = found_in(seen, answers_by(unsure))
    assert (found.flip, found.shift) == (False, 0)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (images(channels=1), "no coloured images"),
        (images(side=15), "15 x 15 pixels"),
        (images(count=63), "fewer than 64"),
        (images(channels=1).repeat(3, axis=1), "grey"),
        (images()[:, :, 0], "no coloured images"),
        (images()[:, 0, 0].astype(np.int64), "no coloured images"),
    ],
)
def test_what_is_no_photograph_by_its_looks(array, reason):
    def ask(feeds):
        return {"y": np.ones((len(feeds["x"]), 2))}

    found = found_in(array, ask)
    assert (found.flip, found.shift) == (False, 0)
    assert reason in found.reason


def test_grey_images_may_have_a_scale_of_their_own_in_each_channel():
    grey = images(channels=1) * np.array([1, 2, 0.5], np.float32).reshape(1, 3, 1, 1)
    assert found_in(grey + 1, answers_by(whole)).reason == "the images are grey"


def test_answers_of_several_places_are_no_answer_to_an_image():
    def ask(feeds):
        return {"y": np.ones((len(feeds["x"]), 5, 2))}

    assert (
        found_in(images(), ask).reason == "the model does not give one answer an image"
    )


# trainings


COLOURED = """
<ir_version: 10, opset_import: ["" : 21]>
coloured (float[n, 3, 16, 16] x) => (float[n, 4] y)
<float[8, 3, 3, 3] k, float[8] b, float[8, 4] w, float[4] c>
{
    a = Conv <pads = [1, 1, 1, 1]> (x, k, b)
    r = Relu (a)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm (f, w, c)
}
"""


def test_what_a_training_chose_is_in_its_account(monkeypatch):
    asked_about = []

    def borne(examples, heads, ask, seed):
        asked_about.append(sum(example.rows for example in examples))
        return SHOWN

    monkeypatch.setattr(prepare, "photographs", borne)
    teacher = model_of(COLOURED)
    result = trained(pruned(teacher, 0.6), teacher, batches(images(128)), steps=3)
    chosen = {one.where: one.choice for one in result.chosen}
    # a quarter is held out
    assert asked_about == [96]
    assert chosen == {
        "flip": "true",
        "shift": "4",
        "features": "[auto]",
        "rate": chosen["rate"],
    }
    assert float(chosen["rate"]) == result.stats["rate"]
    given = {"flip": False, "shift": 0, "cutmix": 0.0}
    plain = trained(
        pruned(teacher, 0.6), teacher, batches(images(128)), steps=3, **given
    )
    assert (len(asked_about), plain.chosen) == (1, [])


def test_few_samples_leave_the_student_as_it_is_unless_a_budget_is_named():
    teacher = model_of(MLP)
    student = pruned(teacher, 0.6)
    before = serialized(student)
    result = trained(student, teacher, batches(rows(20)), steps=0)
    assert (result.weights, serialized(student)) == (0, before)
    assert "holds 20 samples" in result.reason
    (warning,) = result.warnings
    assert "the weights stay as they are: give at least 64 samples" in warning
    assert trained(student, teacher, batches(rows(20)), steps=20).stats["steps"] == 20


@pytest.mark.parametrize(("turned", "warned"), [(0.1, False), (0.5, True)])
def test_labels_that_contradict_the_teacher_are_warned_of(turned, warned):
    teacher = model_of(MLP)
    x = rows()
    labels = outputs(teacher, x).argmax(1)
    count = round(turned * len(labels))
    labels[:count] = (labels[:count] + 1) % 4
    result = trained(pruned(teacher, 0.6), teacher, batches(x, labels=labels), steps=2)
    share = f"{count / len(labels):.0%}"
    words = f"labels contradict the teacher on {share} of the samples"
    assert [words in warning for warning in result.warnings] == [True] * warned


def test_checks_without_progress_shorten_a_chosen_budget(monkeypatch):
    teacher = model_of(MLP)
    monkeypatch.setattr(loop_module.Loop, "_own_score", lambda self: Score(0.5, 0.0))
    result = trained(pruned(teacher, 0.6), teacher, batches(rows()), steps=0)
    # checks 2, 4, 6, 8 and 10 of ten each leave out as much again
    assert result.stats["steps"] == 600
    assert result.stats["stopped"].endswith("took 40% off the budget")
    named = trained(pruned(teacher, 0.6), teacher, batches(rows()), steps=100)
    assert named.stats["steps"] == 100


def test_an_interrupt_keeps_the_state_of_the_very_step(tmp_path, monkeypatch):
    teacher = model_of(MLP)
    expected, student = pruned(teacher, 0.6), pruned(teacher, 0.6)
    trained(expected, teacher, batches(rows()), steps=40)
    real = loop_module.Loop.step
    seen = []

    def pressed(self, progress):
        step = self.account.steps
        seen.append(step)
        # while the step runs, which is not at the end of a check's part
        if step == 17:
            signal.raise_signal(signal.SIGINT)
        real(self, progress)

    monkeypatch.setattr(loop_module.Loop, "step", pressed)
    handler = signal.getsignal(signal.SIGINT)
    with pytest.raises(KeyboardInterrupt, match="goes on from step 18"):
        trained(student, teacher, batches(rows()), steps=40, folder=tmp_path)
    assert signal.getsignal(signal.SIGINT) is handler
    trained(student, teacher, batches(rows()), steps=40, folder=tmp_path)
    # no step was lost, and none was done twice
    assert seen == list(range(40))
    assert serialized(student) == serialized(expected)


def test_a_second_interrupt_ends_a_step_at_once():
    noted = Interruption()
    noted(signal.SIGINT, None)
    assert noted.asked
    with pytest.raises(KeyboardInterrupt):
        noted(signal.SIGINT, None)
