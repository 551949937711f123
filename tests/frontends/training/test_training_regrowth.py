"""Zeros of a pruned graph change places where a recipe says so, and never their number."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt.frontends.training import loop as loop_module
from onnx_opt.frontends.training import regrowth
from onnx_opt.frontends.training.regrowth import exchanged_share
from test_training_quantized import quantized
from training_models import (
    MLP,
    agreement,
    batches,
    model_of,
    rows,
    serialized,
    trained,
    weights,
)

FRESH = rows(512, seed=9)


def pruned_by_lot(model: ir.Model, fraction: float) -> ir.Model:
    """A copy with elements of each matrix zeroed that nobody chose."""
    copy = model.clone()
    random = np.random.default_rng(3)
    for value in copy.graph.initializers.values():
        array = value.const_value.numpy().copy()
        if array.ndim > 1:
            array[random.random(array.shape) < fraction] = 0
            value.const_value = ir.Tensor(array, name=value.name)
    return copy


def zeros_of(model: ir.Model) -> dict[str, np.ndarray]:
    return {name: w == 0 for name, w in weights(model).items() if w.ndim > 1}


@pytest.fixture
def often(monkeypatch):
    monkeypatch.setattr(regrowth, "EVERY", 10)


def test_fewer_change_places_each_time():
    assert exchanged_share(0.3, 100, 0.0) == pytest.approx(0.3)
    assert exchanged_share(0.3, 200, 0.375) == pytest.approx(0.15)
    for regrow, steps, progress in [(0.0, 100, 0.1), (0.3, 0, 0.0), (0.3, 150, 0.1)]:
        assert exchanged_share(regrow, steps, progress) == 0.0
    assert exchanged_share(0.3, 800, 0.8) == 0.0


def test_zeros_at_the_wrong_places_move(often):
    teacher = model_of(MLP)
    scores = {}
    for regrow in (0.0, 0.3):
        student = pruned_by_lot(teacher, 0.7)
        before = zeros_of(student)
        result = trained(student, teacher, batches(rows()), steps=200, regrow=regrow)
        after = zeros_of(student)
        for name, zeros in before.items():
            assert after[name].sum() >= zeros.sum()
            assert np.array_equal(after[name], zeros) == (not regrow)
        assert ("regrown" in result.stats) == bool(regrow)
        scores[regrow] = agreement(student, teacher, FRESH)
    assert result.stats["regrown"] > 0
    assert scores[0.3] > scores[0.0]


def test_a_graph_without_zeros_is_told_that_none_moved(often):
    student = model_of(MLP, seed=1)
    result = trained(student, model_of(MLP), batches(rows()), regrow=0.3)
    assert any("no zeros changed places" in warning for warning in result.warnings)


def test_stored_integers_keep_their_number_of_zeros(often):
    teacher = model_of(MLP)
    sparse = pruned_by_lot(teacher, 0.7)
    student = quantized(sparse, 8)
    before = weights(student)["w1_quantized"] == 0
    options = {"steps": 100, "regrow": 0.3, "rate": 0.03}
    trained(student, teacher, batches(rows()), originals=weights(sparse), **options)
    after = weights(student)["w1_quantized"] == 0
    assert not np.array_equal(after, before)
    assert after.sum() >= before.sum()


def test_an_interrupted_training_goes_on_with_the_zeros_that_it_had(
    often, tmp_path, monkeypatch
):
    teacher = model_of(MLP)
    options = {"steps": 80, "regrow": 0.3, "precision": "float32"}
    whole = pruned_by_lot(teacher, 0.7)
    trained(whole, teacher, batches(rows()), **options)
    real = loop_module.Loop.step

    def stopping(self, progress):
        if self.account.steps == 47:
            raise RuntimeError
        real(self, progress)

    cut = pruned_by_lot(teacher, 0.7)
    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "step", stopping)
        with pytest.raises(RuntimeError):
            trained(cut, teacher, batches(rows()), folder=tmp_path, **options)
    trained(cut, teacher, batches(rows()), folder=tmp_path, **options)
    assert serialized(cut) == serialized(whole)
