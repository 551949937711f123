from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnx_opt
import pytest
from calibrated_context import run_session
from importance_nets import mlp, solved
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.importance.criteria import CRITERIA, scores_of
from onnx_opt.passes._channels.importance.scores import ScoreOptions
from onnx_opt.passes._channels.importance.weights import l2
from onnx_opt.passes._channels.prepare import prepare
from onnx_opt.passes._dims.groups import kept_slots
from onnx_opt.passes._dims.reference import masked_reference

RANDOM = np.random.default_rng(0)
DEMO = Path(onnx_opt.__file__).parent / "tools" / "demo"
OPTIONS = ScoreOptions()


@pytest.fixture
def net():
    return mlp(RANDOM.normal(size=(3, 5)), RANDOM.normal(size=(5, 2)))


@pytest.mark.parametrize("name", sorted(set(CRITERIA) - {"taylor", "fisher"}))
def test_scores_are_one_finite_number_a_channel_and_never_negative(
    name, net, calibrated
):
    model, solution, groups = net
    context = calibrated([{"x": RANDOM.normal(size=(9, 3)).astype(np.float32)}])
    scores, declined = scores_of(name, groups, solution, model, context, OPTIONS)
    assert [each.shape for each in scores] == [(5,)]
    assert np.isfinite(scores[0]).all()
    assert (scores[0] >= 0).all()
    assert [d.reason for d in declined] == (
        [
            "importance=bn-scale is not possible here, l2 is used: it has no BatchNormalization"
        ]
        if name == "bn-scale"
        else []
    )


@pytest.mark.parametrize("name", ["activation", "variance", "drift", "stability"])
def test_without_data_norms_serve_and_it_is_said(name, net):
    model, solution, groups = net
    scores, declined = scores_of(name, groups, solution, model, NullContext(), OPTIONS)
    np.testing.assert_array_equal(
        scores, l2(groups, solution, model, NullContext(), OPTIONS)
    )
    assert [(d.where, d.reason) for d in declined] == [
        (
            groups[0].name,
            f"importance={name} is not possible here, l2 is used: it needs --data",
        )
    ]


@pytest.mark.parametrize("name", ["taylor", "fisher"])
def test_gradients_are_never_replaced_in_silence(name, net):
    model, solution, groups = net
    with pytest.raises(UsageError, match="cannot differentiate"):
        scores_of(name, groups, solution, model, NullContext(), OPTIONS)


def test_an_unknown_name():
    with pytest.raises(UsageError, match="'l3' is no criterion"):
        scores_of("l3", [], None, None, NullContext(), OPTIONS)


def test_every_criterion_names_its_source():
    assert all(criterion.source for criterion in CRITERIA.values())
    assert {name for name, c in CRITERIA.items() if c.needs_gradients} == {
        "taylor",
        "fisher",
    }


@pytest.mark.parametrize("name", ["activation", "variance", "drift", "stability"])
def test_a_channel_that_does_not_vary_goes_first(name, calibrated):
    w = RANDOM.normal(size=(3, 5))
    w[:, 2] = 0
    model, solution, groups = mlp(w, RANDOM.normal(size=(5, 2)))
    context = calibrated([{"x": RANDOM.normal(size=(20, 3)).astype(np.float32)}])
    (scores,), _ = scores_of(name, groups, solution, model, context, OPTIONS)
    assert scores.argmin() == 2
    if name != "stability":
        assert scores[2] == 0


@pytest.mark.slow
def test_criteria_beat_chance_on_a_trained_network(calibrated):
    """Digits, 30 % of one group at a time, nothing made up for: the error of the outputs, mean over
    groups.
    """
    model = ir.load(DEMO / "digits_cnn.onnx")
    images = {
        name: np.load(DEMO / f"digits_{name}.npz")["image"]
        for name in ("calib", "test")
    }
    context = calibrated([{"image": images["calib"][:64]}])
    prepare(model, context)
    model, solution, groups = solved(model)
    want = run_session(model).run(None, {"image": images["test"]})[0]

    def error(name, seed=0):
        context.seed = seed
        errors = []
        for group, scores in zip(
            groups,
            scores_of(name, groups, solution, model, context, OPTIONS)[0],
            strict=True,
        ):
            gone = group.channels[
                np.argsort(scores, kind="stable")[: int(0.3 * len(scores))]
            ]
            masked = masked_reference(model, solution, kept_slots(solution, gone))
            got = run_session(masked).run(None, {"image": images["test"]})[0]
            errors.append(
                np.sqrt(np.square(got - want).mean() / np.square(want).mean())
            )
        return np.mean(errors)

    control = np.mean([error("random", seed) for seed in range(4)])
    assert len(groups) == 5
    for name in (
        "l1",
        "l2",
        "geometric-median",
        "activation",
        "variance",
        "stability",
        "drift",
    ):
        assert error(name) < 0.9 * control, name
