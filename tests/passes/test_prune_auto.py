"""prune takes what the outputs bear, and explicit amounts where they cost least."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.drift_budget import (
    PLACES,
    WITH_DATA,
    WITHOUT_DATA,
)
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._sparsity.bearable import default_budget
from onnx_opt.passes._sparsity.loss_curves import (
    SAMPLED,
    SHARES,
    LossCurve,
    counts_for,
    counts_within,
    energy_curve,
    predicted_loss,
)
from onnx_opt.passes._sparsity.search import Trial, most_zeros
from onnx_opt.passes.prune import Prune

RANDOM = np.random.default_rng(0)
WEIGHTS = {
    "a": RANDOM.normal(size=(12, 40)),
    "b": RANDOM.normal(size=(40, 40)),
    "c": RANDOM.normal(size=(40, 6)),
}
LOUD = """
    net (float[N, 12] x) => (float[N, 6] y)
    <float[12, 40] a = {0}, float[40, 40] b = {0}, float[40, 6] c = {0}, float quiet = {0.01}>
    {
        h = MatMul (x, a)
        r = Relu (h)
        k = MatMul (r, b)
        s = Mul (k, quiet)
        t = Add (r, s)
        y = MatMul (t, c)
    }
"""
"""A net whose middle layer hardly reaches the output."""

BRANCHED = """
    net (float[N, 12] x, bool[1] first) => (float[N, 40] y)
    <float[12, 40] a = {0}>
    {
        h = MatMul (x, a)
        y = If (first) <
            then_branch = left () => (float[N, 40] p)
                <float[40, 40] b = {0}> { p = MatMul (h, b) },
            else_branch = right () => (float[N, 40] q) { q = Identity (h) }
        >
    }
"""


def model_of(text):
    header = '<ir_version: 10, opset_import: ["" : 21]>'
    model = ir.from_proto(onnx.parser.parse_model(header + text))
    graphs = [model.graph]
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
        if node.op_type == "If":
            graphs.append(node.attributes["then_branch"].as_graph())
    for graph in graphs:
        for name, array in WEIGHTS.items():
            if name in graph.initializers:
                tensor = ir.Tensor(array.astype(np.float32), name=name)
                graph.initializers[name].const_value = tensor
    refresh_shapes(model)
    return model


def feeds_of(seed, **more):
    random = np.random.default_rng(seed)
    return {"x": random.normal(size=(100, 12)).astype(np.float32), **more}


def feeds(**more):
    return [feeds_of(seed, **more) for seed in (1, 2, 3, 4)]


class WithoutData(CalibratedContext):
    """Compares models on made-up inputs, as a run without data does."""

    def has_data(self):
        return False


def sparsities(model):
    found = {}
    for name in WEIGHTS:
        array = model.graph.initializers[name].const_value.numpy()
        found[name] = float((array == 0).mean())
    return found


def sqnr(before, after, inputs):
    difference = CalibratedContext(inputs).difference(before, after)
    return -20 * np.log10(difference.error)


@pytest.mark.parametrize("least", [12.0, 20.0, 30.0])
def test_the_outputs_keep_the_sqnr_asked_for(least):
    model = model_of(LOUD)
    outcome = Prune(min_sqnr=least).run(model, CalibratedContext(feeds()))
    assert outcome.stats["measured_sqnr"] >= least
    # on inputs that the pass has not seen, up to what two samples of data differ
    assert sqnr(model_of(LOUD), model, [feeds_of(7)]) > least - 3
    assert outcome.stats["sparsity"] > 0.05


def test_a_higher_sqnr_takes_fewer_weights():
    taken = []
    for least in (10.0, 20.0, 30.0, 40.0):
        model = model_of(LOUD)
        outcome = Prune(min_sqnr=least).run(model, CalibratedContext(feeds()))
        taken.append(outcome.stats["zeros"])
    assert taken == sorted(taken, reverse=True)
    assert taken[0] > 1.3 * taken[-1]


def test_the_layer_that_hardly_reaches_the_output_gives_most():
    for context in (CalibratedContext(feeds()),):
        model = model_of(LOUD)
        Prune().run(model, context)
        found = sparsities(model)
        assert found["b"] > found["a"] + 0.2
        assert found["b"] > found["c"] + 0.2


def test_every_choice_is_told():
    model = model_of(LOUD)
    outcome = Prune().run(model, CalibratedContext(feeds()))
    found = sparsities(model)
    assert [each.where for each in outcome.chosen] == ["a", "b", "c"]
    for each in outcome.chosen:
        size = WEIGHTS[each.where].size
        assert each.choice == f"{found[each.where]:.0%} of {size:,} weights"
        assert "dB of SQNR" in each.reason


def test_without_data_made_up_inputs_are_the_measure():
    model = model_of(LOUD)
    context = WithoutData(feeds())
    outcome = Prune().run(model, context)
    assert outcome.stats["measured_sqnr"] >= 12
    assert 0.05 < outcome.stats["sparsity"] < 0.6
    # nothing is fitted: what stays is as it was
    for name, array in WEIGHTS.items():
        got = model.graph.initializers[name].const_value.numpy()
        np.testing.assert_array_equal(got[got != 0], array.astype(np.float32)[got != 0])


def test_a_run_that_measures_nothing_takes_little():
    model = model_of(LOUD)
    outcome = Prune().run(model, NullContext())
    assert "measured_sqnr" not in outcome.stats
    assert outcome.stats["predicted_sqnr"] >= 20
    assert sqnr(model_of(LOUD), model, feeds()) > 12
    assert outcome.stats["zeros"] > 0


def test_the_same_pass_again_takes_nothing_more():
    for context in (NullContext(), CalibratedContext(feeds())):
        model = model_of(LOUD)
        Prune().run(model, context)
        before = sparsities(model)
        outcome = Prune().run(model, context)
        assert (outcome.changed, sparsities(model)) == (0, before)
        assert "pruned so already" in outcome.declined[0].reason
        # another budget is another pass
        assert Prune(min_sqnr=3.0).run(model, context).changed


def test_where_nothing_holds_the_model_stays_and_it_is_said():
    model = model_of(LOUD)
    before = ir.to_proto(model).SerializeToString(deterministic=True)

    class Hopeless(WithoutData):
        def difference(self, model, other):
            found = super().difference(model, other)
            return found._replace(error=1.0)

    context = Hopeless(feeds())
    outcome = Prune().run(model, context)
    assert outcome.changed == 0
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before
    assert any("nothing could go" in warning for warning in context.warnings)


@pytest.mark.parametrize("sparsity", [0.3, 0.5, 0.8])
def test_with_data_a_sparsity_is_that_of_all_weights_and_goes_where_it_costs_least(
    sparsity,
):
    model, even = model_of(LOUD), model_of(LOUD)
    context = CalibratedContext(feeds())
    outcome = Prune(sparsity=sparsity).run(model, context)
    Prune(sparsity=sparsity, allocation="uniform").run(even, context)
    size = sum(array.size for array in WEIGHTS.values())
    assert outcome.stats["zeros"] == int(sparsity * size)
    zeros = sum(sparsities(model)[n] * WEIGHTS[n].size for n in WEIGHTS)
    assert zeros == pytest.approx(int(sparsity * size))
    original = model_of(LOUD)
    unseen = [feeds_of(9)]
    assert sqnr(original, model, unseen) > sqnr(original, even, unseen)


def test_without_data_a_sparsity_is_that_of_every_weight():
    model = model_of(LOUD)
    Prune(sparsity=0.5).run(model, NullContext())
    assert set(sparsities(model).values()) == {0.5}


@pytest.mark.parametrize("context", [NullContext(), CalibratedContext(feeds())])
def test_a_size_is_that_of_masks_and_nonzeros(context):
    model = model_of(LOUD)
    outcome = Prune(size=0.4).run(model, context)
    size = sum(array.size for array in WEIGHTS.values())
    packed = size / 8 + 4 * (size - outcome.stats["zeros"])
    assert 0.39 * 4 * size < packed <= 0.4 * 4 * size


def test_a_size_that_no_sparsity_reaches_is_refused():
    with pytest.raises(UsageError, match=r"prune\.size: 0\.02 .*\n.*give at least"):
        Prune(size=0.02).run(model_of(LOUD), NullContext())


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"sparsity": 0.5, "min_sqnr": 20.0}, "sparsity"),
        ({"size": 0.5, "sparsity": 0.5}, "sparsity"),
        ({"size": 0.5, "pattern": "2:4"}, "size"),
        ({"min_sqnr": 20.0, "threshold": 0.1}, "min_sqnr"),
        ({"min_sqnr": 20.0, "allocation": "lamp"}, "min_sqnr"),
        ({"min_sqnr": 20.0, "scope": "row"}, "min_sqnr"),
        ({"size": 0.5, "select": "max"}, "size"),
        ({"size": 0.5, "allocation": "uniform"}, "size"),
    ],
)
def test_two_amounts_contradict_each_other(options, where):
    with pytest.raises(UsageError) as caught:
        Prune(**options)
    assert caught.value.where == f"prune.{where}"


def test_weights_of_branches_are_measured_too():
    model = model_of(BRANCHED)
    context = CalibratedContext(feeds(first=np.array([True])))
    outcome = Prune().run(model, context)
    assert {each.where for each in outcome.chosen} == {"a", "b"}
    inner = model.graph.node(1).attributes["then_branch"].as_graph()
    array = inner.initializers["b"].const_value.numpy()
    assert 0 < (array == 0).mean() < 0.9


def test_what_the_data_never_reaches_is_taken_to_be_as_sensitive_as_the_rest():
    model = model_of(BRANCHED)
    context = CalibratedContext(feeds(first=np.array([False])))
    Prune().run(model, context)
    inner = model.graph.node(1).attributes["then_branch"].as_graph()
    array = inner.initializers["b"].const_value.numpy()
    assert (array == 0).mean() < 0.9


# curves and the search


def curve(size, scale):
    return LossCurve(size, scale * SHARES**3)


def test_an_energy_curve_is_what_the_smallest_hold():
    array = np.array([3, -1, 0, 2, 4], np.float32)
    found = energy_curve(ir.Tensor(np.repeat(array, 20)))
    for count, energy in ((20, 0), (40, 1), (60, 5), (80, 14)):
        assert found.at(count) == pytest.approx(energy / 30, abs=1e-9)


def test_a_large_weight_is_known_by_a_sample():
    array = np.random.default_rng(0).normal(size=(2100, 2100)).astype(np.float32)
    assert array.size > SAMPLED
    found = energy_curve(ir.Tensor(array))
    ascending = np.sort(array.reshape(-1).astype(np.float64) ** 2)
    for share in (0.3, 0.5, 0.7):
        count = int(share * array.size)
        exact = ascending[:count].sum() / ascending.sum()
        assert found.at(count) == pytest.approx(exact, rel=0.05)


def test_counts_within_a_budget_cost_no_more_and_steps_cost_alike():
    curves = {"cheap": curve(1000, 0.01), "dear": curve(1000, 1.0)}
    counts = counts_within(curves, 0.02, 0.9)
    assert predicted_loss(curves, counts) <= 0.02
    assert counts["cheap"] == 900
    assert counts["dear"] < 300


def test_counts_for_a_total_lose_least():
    curves = {"a": curve(1000, 1.0), "b": curve(500, 1.0)}
    counts = counts_for(curves, 700)
    assert sum(counts.values()) == 700
    best = min(
        predicted_loss(curves, {"a": a, "b": 700 - a}) for a in range(200, 700, 5)
    )
    assert predicted_loss(curves, counts) <= 1.01 * best


def test_a_budget_that_is_not_spent_is_not_tried_again():
    """All weights give the most at once, and that is a little too much."""
    curves = {"a": curve(1000, 1e-4)}
    tried = []

    def attempt(counts):
        tried.append(counts["a"])
        lost = 0.011 if counts["a"] >= 950 else 0.005
        return Trial(None, counts, lost)

    found = most_zeros(curves, 0.01, 0.01, 1.0, 3, attempt)
    assert found.lost == 0.005
    assert len(set(tried)) == len(tried) == 2


def test_the_search_follows_what_was_measured():
    """Real losses four times those predicted, and growing faster."""
    curves = {"a": curve(1000, 1.0)}
    tried = []

    def attempt(counts):
        lost = 4 * predicted_loss(curves, counts) ** 1.3
        tried.append(lost)
        return Trial(None, counts, lost)

    found = most_zeros(curves, 0.05, 0.05, 1.0, 6, attempt)
    assert 0.02 <= found.lost <= 0.05
    assert len(tried) <= 3


ENDS = """
<ir_version: 10, opset_import: ["" : 21]>
places (float[N, 4, 8] x, float[8, 8] w) => ({shape} y)
<int64[1] one = {{1}}>
{{
    h = MatMul (x, w)
    p = {op} (h)
    {last}
}}
"""


@pytest.mark.parametrize(
    ("op", "last", "shape", "budget"),
    [
        (
            "Softmax <axis = -1>",
            "y = Identity (p)",
            "float[N, 4, 8]",
            PLACES,
        ),
        ("Relu", "y = Identity (p)", "float[N, 4, 8]", WITH_DATA),
        ("Softmax <axis = -1>", "y = Flatten (p)", "float[N, 32]", WITH_DATA),
        ("Relu", "y = Unsqueeze (p, one)", "float[N, 1, 4, 8]", PLACES),
    ],
)
def test_outputs_of_several_places_have_a_budget_of_their_own(op, last, shape, budget):
    text = ENDS.format(op=op, last=last, shape=shape)
    model = ir.from_proto(onnx.parser.parse_model(text))
    data = CalibratedContext([])
    assert default_budget(model, data) == budget
    unseen = PLACES if budget == PLACES else WITHOUT_DATA
    assert default_budget(model, NullContext()) == unseen
