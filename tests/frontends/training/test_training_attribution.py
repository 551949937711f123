"""Attribution maps: by hand, and a training that brings them near the teacher's."""

import numpy as np
import pytest
import torch
from onnx_opt import RefusedError, UsageError
from onnx_opt.frontends.trainable import to_torch
from onnx_opt.frontends.training.attribution import (
    attribution_maps,
    chosen_scores,
    with_places,
)
from onnx_opt.frontends.training.features import Tap
from training_models import MLP, batches, model_of, pruned, rows, trained

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 1, 8, 8] x) => (float[n, 4] y)
<float[6, 1, 3, 3] k, float[6] kb, float[6, 6, 3, 3] m, float[6] mb, float[6, 4] w, float[4] b>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, kb)
    r = Relu (c)
    d = Conv <pads = [1, 1, 1, 1]> (r, m, mb)
    t = Relu (d)
    p = GlobalAveragePool (t)
    f = Flatten (p)
    y = Gemm (f, w, b)
}
"""


def test_a_map_by_hand():
    """Two channels of 2 x 2; the score is of the means, 3 times the first less the second."""
    features = torch.tensor([[[[1.0, 2], [0, 4]], [[3, 0], [1, 0]]]])
    features.requires_grad_()
    means = features.mean((2, 3))
    score = (3 * means[:, 0] - means[:, 1]).sum()
    (found,) = attribution_maps(score, [features], trains=False)
    # weights 3/4 and -1/4: 0, 6/4, -1/4 -> 0, 12/4
    wanted = np.array([0, 6, 0, 12]) / np.hypot(6, 12)
    assert found[0].detach().numpy() == pytest.approx(wanted)


def test_scores_are_of_the_teachers_choice():
    own = torch.tensor([[1.0, 2.0], [3.0, 5.0]])
    teacher = torch.tensor([[9.0, 0.0], [0.0, 9.0]])
    assert chosen_scores(own, teacher, -1).item() == 1 + 5


def test_a_feature_without_a_say_has_a_map_of_zeros():
    features = torch.ones(1, 2, 2, 2, requires_grad=True)
    other = torch.ones(1, requires_grad=True)
    (found,) = attribution_maps(other.sum(), [features], trains=False)
    assert found.tolist() == [[0, 0, 0, 0]]


def test_single_places_are_left_out():
    values = {"t": torch.zeros(2, 6, 8, 8), "p": torch.zeros(2, 6, 1, 1)}
    taps = [Tap("t", "t"), Tap("p", "p")]
    assert with_places(taps, values) == [Tap("t", "t")]


def distance(student, teacher, x):
    """Mean squared distance of the maps of `t`, for the teacher's choices."""
    maps = []
    choices = None
    for model in (teacher, student):
        module = to_torch(model, train=True, taps=["t"], qat="off")
        values = module.run({"x": x})
        choices = values["y"] if choices is None else choices
        score = chosen_scores(values["y"], choices, -1)
        maps += attribution_maps(score, [values["t"]], trains=False)
    difference = (maps[0] - maps[1]).detach()
    return float(difference.square().sum(1).mean())


def test_training_by_maps_brings_them_near_the_teachers():
    teacher, fresh = model_of(NET), rows(256, (1, 8, 8), seed=9)
    found = {}
    for weight in (0, 20):
        student = pruned(model_of(NET), 0.6)
        before = distance(student, teacher, fresh)
        data = batches(rows(256, (1, 8, 8)))
        options = {"steps": 60, "attribution": float(weight), "features": ()}
        assert trained(student, teacher, data, **options).weights
        found[weight] = distance(student, teacher, fresh)
    assert found[20] < 0.7 * found[0]
    assert found[20] < before


def test_models_without_maps_are_refused():
    with pytest.raises(RefusedError, match=r"finetune\.(attribution|features)"):
        trained(
            model_of(MLP),
            model_of(MLP, seed=1),
            batches(rows(128)),
            steps=2,
            attribution=1.0,
        )


def test_a_weight_is_not_negative():
    with pytest.raises(UsageError, match=r"finetune\.attribution: -1\.0 is outside"):
        trained(model_of(NET), model_of(NET), batches(rows(8)), attribution=-1.0)
