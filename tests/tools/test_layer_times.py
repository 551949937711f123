"""Time of layers: whose kernels they are, what mixtures take, and choices that count borders."""

import itertools
import math

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt.passes._core.context import KernelNode
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune import search as search_module
from onnx_opt.tools._tune.choices import FLOAT, FormChoice
from onnx_opt.tools._tune.families import TimedRecipes, share_of
from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.kernel_owners import kernel_owners, owners_of
from onnx_opt.tools._tune.knapsack import cheapest
from onnx_opt.tools._tune.lab import open_lab
from onnx_opt.tools._tune.layer_times import (
    InCommon,
    LayerTimes,
    _border_times,
    _borders,
    layer_times,
)
from onnx_opt.tools._tune.plans import SearchPlan
from onnx_opt.tools._tune.recipe import DEFAULT_FORM, quant_text
from onnx_opt.tools._tune.search import RecipeSearch, Searched
from onnx_opt.tools._tune.trial import RecipeTrial
from onnx_opt.tools.tables import front_table
from sample_models import model_from

RESIDUAL = """
<ir_version: 8, opset_import: ["" : 17]>
g (float[N, 8, 32, 32] x) => (float[N, 8, 32, 32] y)
<float[8, 8, 3, 3] w1, float[8, 8, 3, 3] w2, float[8, 8, 3, 3] w3>
{
    a = Conv <pads=[1, 1, 1, 1]> (x, w1)
    b = Relu (a)
    c = Conv <pads=[1, 1, 1, 1]> (b, w2)
    d = Add (c, x)
    e = Relu (d)
    f = Conv <pads=[1, 1, 1, 1]> (e, w3)
    y = Add (f, e)
}
"""


@pytest.fixture
def residual(tmp_path):
    """A model of three convolutions and two sums, its file and unlabelled data."""
    path = tmp_path / "residual.onnx"
    model = onnx.shape_inference.infer_shapes(model_from(RESIDUAL))
    onnx.save(model, path)
    samples = np.random.default_rng(0).normal(0, 1, (32, 8, 32, 32)).astype(np.float32)
    np.savez(tmp_path / "data.npz", x=samples)
    return path, tmp_path / "data.npz"


def kernel(op, inputs, outputs, name=""):
    return KernelNode(op, name, tuple(inputs), tuple(outputs))


def test_values_belong_to_the_layer_before_them(residual):
    path, _ = residual
    model = ir.load(path)
    owners = owners_of(model, model)
    values = {name: owners[name] for name in "abcdef"}
    layers = {"a": "w1", "b": "w1", "c": "w2", "d": "w2", "e": "w2"}
    assert values == layers | {"f": "w3"}


def test_kernels_are_known_by_what_they_give_or_are_called():
    owners = {"relu_1": "w1", "out": "w2", "node_7": "w2"}
    kernels = [
        # into blocks, for the first layer
        kernel("ReorderInput", ["x"], ["r0"], "ReorderInput"),
        kernel("Conv", ["r0", "p"], ["r1"], "relu_1_nchwc"),
        kernel("ReorderOutput", ["r1"], ["r2"], "ReorderOutput"),
        kernel("QLinearConv", ["r2", "q"], ["r3"], "node_7_quant_token_12"),
        kernel("DequantizeLinear", ["r3"], ["out"], "anything"),
        kernel("Shape", ["other"], ["s"], "alone"),
    ]
    assert kernel_owners(kernels, owners) == ["w1", "w1", "w1", "w2", "w2", None]


def test_a_mixture_takes_its_layers_and_its_borders():
    times = LayerTimes(
        {
            FLOAT: {"a": 3.0, "b": 5.0, "c": 7.0},
            DEFAULT_FORM: {"a": 1.0, "b": 2.0, "c": 3.0},
        },
        0.5,
        {("a", "b"): 0.25, ("a", "b", "c"): 0.125},
    )
    assert times.of({}) == 6.5
    assert times.of(dict.fromkeys("abc", FLOAT)) == 15.5
    # once, whether one of three differs or two
    assert times.of({"b": FLOAT}) == 6.5 + 3.0 + 0.25 + 0.125
    assert times.of({"c": FLOAT}) == 6.5 + 4.0 + 0.125
    assert times.of({"a": FLOAT, "b": FLOAT}) == 6.5 + 2.0 + 3.0 + 0.125


def test_border_times_explain_what_layers_do_not():
    borders = {
        ("a", "b"): InCommon(100, 0),
        ("b", "c"): InCommon(300, 40),
        ("a", "c", "d"): InCommon(50, 90),
    }
    mixtures = [["a", "c"], ["a"]]
    by_passed, by_joined = 0.5, 0.01
    beyond = [450 * by_passed + 130 * by_joined, 150 * by_passed + 90 * by_joined]
    found = _border_times(borders, mixtures, beyond)
    told = {
        border: by_passed * shared.passed + by_joined * shared.joined
        for border, shared in borders.items()
    }
    assert found == pytest.approx(told)


def test_border_times_are_never_negative():
    borders = {("a", "b"): InCommon(100, 0)}
    found = _border_times(borders, [["a"], ["b"]], [-1.0, -0.5])
    assert found == {("a", "b"): 0.0}


def test_borders_tell_what_layers_have_in_common(residual):
    path, _ = residual
    elements = 8 * 32 * 32
    # the last sum joins what the second and the third convolution give, and is the second's
    assert _borders(ir.load(path)) == {
        ("w1", "w2"): InCommon(elements, 0),
        ("w2", "w3"): InCommon(2 * elements, elements),
    }


@pytest.mark.parametrize("limit", [0.0, 0.1, 0.2, 0.3, 0.45, 0.6])
def test_choices_with_borders_are_the_best_of_all(limit):
    losses = {"a": 0.1, "b": 0.2, "c": 0.3}
    saved = {"a": 1.0, "b": 1.1, "c": 0.4}
    borders = {("a", "b"): 0.7, ("b", "c"): 0.3, ("a", "c"): 0.2, ("a", "b", "c"): 0.1}
    menu = {
        name: [
            FormChoice(FLOAT, 0.0, 2.0),
            FormChoice(DEFAULT_FORM, losses[name], 2.0 - saved[name]),
        ]
        for name in losses
    }

    def cost(picks):
        total = sum(each.cost for each in picks.values())
        for border, time in borders.items():
            if len({picks[name].form for name in border}) > 1:
                total += time
        return total

    every = []
    for chosen in itertools.product(*menu.values()):
        picks = dict(zip(menu, chosen, strict=True))
        if sum(each.loss for each in chosen) <= limit + 1e-9:
            every.append(cost(picks))
    found = cheapest(menu, limit, borders)
    assert cost(found) == pytest.approx(min(every))


def family_of_two():
    menu = {
        "a": [FormChoice(FLOAT, 0.0, 3.0), FormChoice(DEFAULT_FORM, 1e-3, 1.0)],
        "b": [FormChoice(FLOAT, 0.0, 2.0), FormChoice(DEFAULT_FORM, 1e-4, 1.0)],
    }
    forms = {FLOAT: {"a": 3.0, "b": 2.0}, DEFAULT_FORM: {"a": 1.0, "b": 1.0}}
    return TimedRecipes(menu, LayerTimes(forms, 0.0, {}))


def test_what_the_bits_leave_over_is_lost_by_channels():
    family = family_of_two()
    tight = family.proposal(39.9)
    assert "prune-channels" not in tight.recipe
    assert tight.recipe.count("a=float") == 1
    assert tight.latency_ms == 4.0
    harsh = family.proposal(20.0)
    left = share_of(20.0) - 1.1e-3
    channels = parse(harsh.recipe).passes[1]
    assert channels.min_sqnr == pytest.approx(-10 * np.log10(left), abs=0.06)
    assert "float" not in harsh.recipe
    assert harsh.latency_ms is None


def test_the_table_of_a_search_for_speed_has_its_times():
    timed = {
        "recipe": "simplify, quant, strip",
        "bytes": 1000,
        "latency_ratio": 0.5,
        "latency_ms": 2.0,
        "predicted_ms": None,
        "drop": 0.0,
        "sqnr_db": 30.0,
    }
    untimed = {**timed, "latency_ratio": None, "latency_ms": None}
    search = {"trials": 3, "recipe": timed["recipe"], "front": [timed]}
    headers = [column.header for column in front_table(search).columns]
    figures = ["latency/before", "ms", "drop", "SQNR dB"]
    assert headers == ["", "bytes", *figures, "recipe"]
    table = front_table({**search, "front": [untimed]})
    headers = [column.header for column in table.columns]
    assert headers == ["", "bytes", "drop", "SQNR dB", "recipe"]


def test_layers_of_a_model_are_timed(residual):
    path, data = residual
    settings = RunSettings(
        model=path,
        pipeline=parse("simplify"),
        out=None,
        target="cpu",
        data=data,
        seed=0,
    )
    with open_lab(settings) as lab:
        eight_bits = lab.made(quant_text({}))
        times = layer_times(lab, eight_bits)
    assert set(times.forms[FLOAT]) == {"w1", "w2", "w3"}
    assert set(times.forms[DEFAULT_FORM]) == {"w1", "w2", "w3"}
    assert all(time > 0 for form in times.forms.values() for time in form.values())
    # the kernels of a run add up to it
    assert times.of({}) == pytest.approx(
        sum(times.forms[DEFAULT_FORM].values()) + times.rest_ms
    )


@pytest.mark.slow
def test_a_search_for_speed_keeps_its_budget(residual, monkeypatch):
    path, data = residual
    monkeypatch.setattr(search_module, "MOST_ROUNDS", 1)
    result = onnx_opt.tune(path, data=data, min_sqnr=37.0, objective="latency")
    points = [*result.search["front"], *result.search["rejected"]]
    assert all(point["latency_ratio"] > 0 for point in points)
    assert "sensitivity" in result.search
    drift = result.drift["sqnr_db"]
    assert drift is None or drift >= 37.0


class Unmeasured:
    """An engine whose trials lose nothing."""

    def run(self, task, recipes):
        for recipe in recipes:
            yield RecipeTrial(recipe, bytes=1, drop=0.0, error=0.0)

    def close(self):
        return None


def test_a_trial_has_the_time_that_was_predicted_of_it():
    found = Searched()
    plan = SearchPlan(family_of_two())
    goal = Goal("latency", max_drop=0.1)
    RecipeSearch(goal, plan, None, Unmeasured(), math.inf).run(found)
    told = {trial.recipe: trial.predicted_ms for trial in found.trials[1:]}
    assert told["simplify, quant(measure=false), strip"] == 2.0
    assert all(time is None for text, time in told.items() if "channels" in text)
