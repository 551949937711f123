"""The cut of prune-channels by its name alone: as much as the outputs bear, and no more."""

import math

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from importance_nets import mlp
from onnx_opt import UsageError
from onnx_opt.passes._base import HeldBack, NullContext
from onnx_opt.passes._channels import bearable, pruning
from onnx_opt.passes._channels.ladder import Rung
from onnx_opt.passes._core.drift_budget import BROKEN
from onnx_opt.passes.prune_channels import PruneChannels

WIDE = np.random.default_rng(1).normal(size=(4, 12))
OUT = np.random.default_rng(2).normal(size=(12, 3))
TWICE = (np.tile(WIDE[:, :6], 2), OUT)
"""Twelve hidden units, of which six are copies of the others."""


def feeds_of(width, count=4, seed=0):
    random = np.random.default_rng(seed)
    return [
        {"x": random.normal(size=(64, width)).astype(np.float32)} for _ in range(count)
    ]


class Sharing(CalibratedContext):
    """A context that holds back its last batch."""

    def held_back(self):
        if len(self.feeds) < 2:
            return None
        fitting = CalibratedContext(self.feeds[:-1])
        judging = CalibratedContext(self.feeds[-1:])
        return HeldBack(fitting, judging, 64)


class Running(CalibratedContext):
    """A run without data that compares models on feeds of its own."""

    def has_data(self):
        return False


def pruned(model, context, **options):
    model = model.clone()
    outcome = PruneChannels(**options).run(model, context)
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, outcome


def sqnr(whole, model, feeds):
    """SQNR in dB of what varies between samples."""
    wanted = [run_session(whole).run(None, each)[0] for each in feeds]
    got = [run_session(model).run(None, each)[0] for each in feeds]
    y = np.concatenate(wanted).astype(np.float64)
    noise = np.square(y - np.concatenate(got)).sum()
    signal = np.square(y - y.mean(axis=0)).sum()
    return 10 * math.log10(signal / noise) if noise else math.inf


def test_copies_go_and_the_outputs_stay():
    whole, _, _ = mlp(*TWICE)
    context = Sharing(feeds_of(4))
    model, outcome = pruned(whole, context)
    assert outcome.changed >= 6
    assert sqnr(whole, model, feeds_of(4, seed=9)) > 14
    (chosen,) = outcome.chosen
    assert chosen.choice == f"{outcome.changed} of 12 channels"
    assert outcome.stats["macs_after"] <= outcome.stats["macs_before"] / 2
    assert context.warnings == []


def test_nothing_goes_where_every_channel_is_an_output():
    whole, _, _ = mlp(np.eye(4), np.eye(4))
    model, outcome = pruned(whole, Sharing(feeds_of(4)))
    assert (outcome.changed, outcome.stats) == (0, {})
    assert [item.choice for item in outcome.chosen] == ["0 of 4 channels"]
    # half of a unit's values are zero: a fourth of the outputs is 6 dB
    assert outcome.chosen[0].reason.startswith("1 would leave ")
    reasons = {item.where: item.reason for item in outcome.declined}
    where = outcome.chosen[0].where
    assert reasons[where] == (
        "the outputs would keep less than 17.0 dB: give a lower min_sqnr, or a ratio"
    )
    assert ir.to_proto(model) == ir.to_proto(whole)


@pytest.mark.parametrize("recover", [True, False])
@pytest.mark.parametrize("importance", ["auto", "l1", "activation", "random"])
@pytest.mark.parametrize("least", [6.0, 10.0, 25.0])
def test_the_result_keeps_what_is_asked_on_data_that_no_fit_saw(
    least, importance, recover
):
    whole, _, _ = mlp(WIDE, OUT)
    feeds = feeds_of(4)
    model, outcome = pruned(
        whole,
        Sharing(feeds),
        min_sqnr=least,
        importance=importance,
        recover=recover,
    )
    measured = sqnr(whole, model, feeds[-1:])
    assert measured >= least - 1e-3
    if outcome.changed:
        assert outcome.stats["measured_sqnr"] == pytest.approx(measured, rel=1e-3)


def test_few_samples_must_keep_more_for_what_they_do_not_show():
    whole, _, _ = mlp(WIDE, OUT)

    class Few(Sharing):
        def held_back(self):
            return HeldBack(*super().held_back()[:2], 4)

    measured = {}
    for context in (Sharing, Few):
        _, outcome = pruned(whole, context(feeds_of(4)), min_sqnr=8.0)
        measured[context] = outcome.stats["measured_sqnr"]
    # twice the loss is 3 dB
    assert measured[Few] >= 11
    assert measured[Sharing] < 11


def test_a_laxer_budget_takes_more():
    whole, _, _ = mlp(WIDE, OUT)
    taken = [
        pruned(whole, Sharing(feeds_of(4)), min_sqnr=least)[1].changed
        for least in (40.0, 12.0, 6.0)
    ]
    assert taken == sorted(taken)
    assert taken[0] < taken[-1]


def test_without_data_the_outputs_are_compared_on_made_up_inputs():
    weight = WIDE.copy()
    weight[:, :5] *= 0.01
    whole, _, _ = mlp(weight, OUT)
    feeds = feeds_of(4)
    model, outcome = pruned(whole, Running(feeds))
    assert outcome.changed >= 4
    # the worst of the two batches that the context compares
    assert min(sqnr(whole, model, [each]) for each in feeds[:2]) >= 12
    assert outcome.stats["measured_sqnr"] >= 12
    assert "predicted_sqnr" not in outcome.stats
    assert outcome.chosen[0].reason.endswith("of its weights' energy")


def test_drift_that_saves_next_to_nothing_is_not_taken(monkeypatch):
    monkeypatch.setattr(bearable, "WORTH", 0.9)
    weight = WIDE.copy()
    weight[:, :5] *= 0.01
    whole, _, _ = mlp(weight, OUT)
    _, outcome = pruned(whole, Running(feeds_of(4)))
    assert outcome.changed == 0
    reason = outcome.declined[-1].reason
    assert reason.startswith("at 12.0 dB only ")
    assert "% of the multiply-accumulates would go" in reason


@pytest.mark.parametrize("dead", [0, 3])
def test_where_nothing_is_run_only_what_is_constant_goes(dead):
    weight = WIDE.copy()
    weight[:, :dead] = 0
    whole, _, _ = mlp(weight, OUT)
    context = NullContext()
    model, outcome = pruned(whole, context)
    assert outcome.changed == dead
    assert context.warnings == [
        "prune-channels: the model was not run, so how much the outputs bear is not known: "
        "give a ratio"
    ]
    for each in feeds_of(4):
        (wanted,) = run_session(whole).run(None, each)
        (got,) = run_session(model).run(None, each)
        np.testing.assert_allclose(got, wanted, rtol=1e-5, atol=1e-5)


def test_the_same_again_changes_nothing():
    whole, _, _ = mlp(*TWICE)
    model, _ = pruned(whole, Sharing(feeds_of(4)))
    assert PruneChannels().run(model, Sharing(feeds_of(4))).changed == 0


def test_what_was_asked_for_is_made_though_it_breaks_the_model():
    whole, _, _ = mlp(WIDE, OUT)
    context = Sharing(feeds_of(4))
    _, outcome = pruned(whole, context, ratio=0.9, recover=False)
    assert outcome.changed == 10
    # the run, which sees the result of all passes, warns
    assert outcome.stats["measured_sqnr"] < BROKEN


@pytest.mark.parametrize("context", [Sharing, Running])
def test_what_was_asked_for_is_made_in_silence_where_it_does_not(context):
    weight = WIDE.copy()
    weight[:, :6] *= 1e-4
    whole, _, _ = mlp(weight, OUT)
    given = context(feeds_of(4))
    assert pruned(whole, given, ratio=0.5)[1].changed == 6
    assert given.warnings == []


def test_only_surely_superfluous_channels_go_where_asked():
    whole, _, _ = mlp(*TWICE)
    options = {"importance": "stability", "min_sqnr": 3.0}
    _, free = pruned(whole, Sharing(feeds_of(4)), **options)
    _, sure = pruned(whole, Sharing(feeds_of(4)), frequency=1.0, **options)
    assert sure.changed <= 6 < free.changed


@pytest.mark.parametrize(
    ("options", "where", "fix"),
    [
        ({"scope": "global"}, "scope", "add ratio=0.5, or leave scope out"),
        ({"scope": "isomorphic", "min_sqnr": 20.0}, "scope", "add ratio=0.5"),
        ({"ratio": 0.5, "min_sqnr": 20.0}, "min_sqnr", "leave one of them"),
        ({"macs": 0.5, "min_sqnr": 20.0}, "min_sqnr", "leave one of them"),
    ],
)
def test_options_that_do_not_go_with_what_the_outputs_bear(options, where, fix):
    with pytest.raises(UsageError) as caught:
        PruneChannels(**options)
    assert caught.value.where == f"prune-channels.{where}"
    assert caught.value.fix.startswith(fix)


def making(losses):
    """A function that makes rungs, with losses by the count of their group, and what it made."""
    made = []

    def make(rung):
        made.append(rung.choice[0])
        return bearable.Attempt(
            rung.choice, None, None, rung.predicted, losses[rung.choice[0]]
        )

    return make, made


def test_a_result_that_loses_more_than_predicted_gives_way_to_one_as_much_more_cautious():
    rungs = [Rung([n], n / 100, n / 100) for n in (8, 6, 4, 3, 2, 1)]
    # 4 are predicted to lose 0.04 and lose half more: so will 3, and a fifth is for caution
    make, made = making({8: 1, 6: 1, 4: 0.06, 3: 0.045, 2: 0.03, 1: 0.0})
    found = bearable.first_that_holds(rungs, 0.04, make)
    assert found.choice == [2]
    assert made == [4, 2]


def test_predictions_of_few_samples_do_not_end_the_search():
    # what is more cautious was measured to lose more, by chance
    rungs = [Rung([4], 0.04, 0.03), Rung([3], 0.03, 0.05), Rung([1], 0.01, 0.06)]
    make, made = making({4: 0.041, 3: 0.02, 1: 0.0})
    assert bearable.first_that_holds(rungs, 0.04, make).choice == [3]
    assert made == [4, 3]


def test_results_that_never_hold_end_at_nothing():
    rungs = [Rung([n], n / 1000, n / 1000) for n in range(20, 0, -1)]
    make, made = making(dict.fromkeys(range(21), 0.0401))
    assert bearable.first_that_holds(rungs, 0.04, make) is None
    assert len(made) == bearable.ATTEMPTS


@pytest.mark.parametrize("most", range(-1, 8))
def test_bisection_finds_the_greediest_that_holds(most):
    rungs = [Rung([n], 0.0, 0.0) for n in range(7, -1, -1)]
    make, made = making({n: 0.0 if n <= most else math.inf for n in range(8)})
    found = bearable.greediest_that_holds(rungs, 0.1, make)
    assert (found.choice[0] if found else -1) == most
    assert len(made) <= 4


def test_a_fit_that_does_harm_is_left_out(monkeypatch):
    weight = WIDE.copy()
    weight[:, :5] *= 1e-3
    whole, _, _ = mlp(weight, OUT)

    def spoil(whole, pruned, kept, context, samples, damp):
        value = pruned.graph.initializers["v"]
        value.const_value = ir.tensor(-value.const_value.numpy())
        return 1, []

    monkeypatch.setattr(pruning, "reconstruct", spoil)
    feeds = feeds_of(4)
    model, outcome = pruned(whole, Sharing(feeds), min_sqnr=30.0)
    assert outcome.changed >= 5
    assert outcome.stats["layers"] == 0
    assert sqnr(whole, model, feeds[-1:]) >= 30
