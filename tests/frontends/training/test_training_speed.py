"""Fast steps change nothing else: resumed ones, orders of epochs, and what is told meanwhile."""

import re

import numpy as np
import pytest
import torch
from onnx_opt.frontends.training import Environment, train
from onnx_opt.frontends.training import loop as loop_module
from onnx_opt.frontends.training.data import Order
from onnx_opt.frontends.training.device import Device
from onnx_opt.passes._core.training_recipe import TrainingRecipe
from training_models import MLP, Local, batches, model_of, pruned, rows, serialized

IMAGES = """
<ir_version: 10, opset_import: ["" : 21]>
images (float[n, 2, 6, 6] x) => (float[n, 4] y)
<float[8, 2, 3, 3] k, float[8] kb, float[8, 4] w, float[4] b>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, kb)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = Gemm (f, w, b)
}
"""


def learned(folder=None, told=None, **options):
    """A student of images, or of what `options` say, after 30 steps."""
    teacher = model_of(options.pop("text", IMAGES))
    data = options.pop("data", rows(160, (2, 6, 6)))
    student = pruned(teacher, 0.5)
    recipe = TrainingRecipe(steps=30, holdout=0.25, batch=32, **options)
    reports = [] if told is None else told

    def report(part, words):
        reports.append((part, words))

    environment = Environment(Local(), checkpoints=folder, progress=report)
    train(student, teacher, batches(data), recipe, environment)
    return student


@pytest.mark.parametrize("optimizer", ["adamw", "sgd"])
def test_kernels_resume_in_their_layout(tmp_path, monkeypatch, optimizer):
    options = {"optimizer": optimizer, "precision": "float32"}
    if optimizer == "sgd":
        options["rate"] = 0.01
    whole = learned(**options)
    real = loop_module.Loop.step

    def stopping(self, progress):
        if self.account.steps == 19:
            raise KeyboardInterrupt
        real(self, progress)

    with monkeypatch.context() as patch:
        patch.setattr(loop_module.Loop, "step", stopping)
        with pytest.raises(KeyboardInterrupt):
            learned(tmp_path, **options)
    assert serialized(learned(tmp_path, **options)) == serialized(whole)


def test_one_kernel_a_tensor_does_what_many_do(monkeypatch):
    fused = learned(precision="float32")
    real = torch.optim.AdamW

    def plain(groups, **options):
        assert options.pop("fused")
        return real(groups, **options)

    monkeypatch.setattr(torch.optim, "AdamW", plain)
    other = learned(precision="float32")
    before = pruned(model_of(IMAGES), 0.5)
    for name, value in fused.graph.initializers.items():
        found = value.const_value.numpy()
        expected = other.graph.initializers[name].const_value.numpy()
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)
        start = before.graph.initializers[name].const_value.numpy()
        assert not np.array_equal(found, start)


def test_gradients_are_cut_at_the_limit(monkeypatch):
    norms = []
    real = torch.optim.AdamW.step

    def noting(self):
        gradients = [g for group in self.param_groups for g in group["params"]]
        norms.append(float(torch.nn.utils.get_total_norm([p.grad for p in gradients])))
        return real(self)

    monkeypatch.setattr(torch.optim.AdamW, "step", noting)
    learned(precision="float32", clip=0.01)
    assert norms == pytest.approx([0.01] * 30, rel=1e-4)
    norms.clear()
    learned(precision="float32", clip=0.0)
    assert max(norms) > 0.1


def test_an_order_does_not_depend_on_what_was_asked_before():
    steps = [0, 9, 3, 3, 17, 1]
    one = Order(np.arange(50), 8, seed=3)
    found = [one.units(step).tolist() for step in steps]
    alone = [Order(np.arange(50), 8, seed=3).units(step).tolist() for step in steps]
    assert found == alone


def test_steps_loss_and_score_are_told_while_it_runs(monkeypatch):
    monkeypatch.setattr(loop_module, "SECONDS_BETWEEN_WORDS", 0.0)
    told = []
    learned(text=MLP, data=rows(160), told=told, checks=3)
    parts = [part for part, _ in told]
    assert parts == sorted(parts)
    assert len(told) >= 30
    assert told[-1][0] == 1.0
    pattern = r"step (\d+) of 30, loss \S+, held out -?\d\.\d{4}"
    steps = [int(re.fullmatch(pattern, words).group(1)) for _, words in told]
    assert set(steps) == set(range(1, 31))


def test_words_are_not_told_more_often_than_people_read(monkeypatch):
    monkeypatch.setattr(loop_module, "SECONDS_BETWEEN_WORDS", 1e6)
    told = []
    learned(text=MLP, data=rows(160), told=told, checks=3)
    # the first step, and the checks
    assert len(told) == 4


@pytest.mark.parametrize(
    ("capabilities", "half"),
    [
        ({"avx512_f": True, "avx512_bf16": False, "amx_bf16": False}, False),
        ({"avx512_f": True, "avx512_bf16": True}, True),
        ({"amx_bf16": True}, True),
        ({"neon": True, "bf16": True}, True),
        ({"neon": True}, False),
    ],
)
def test_bfloat16_is_chosen_only_where_the_cpu_multiplies_it(
    monkeypatch, capabilities, half
):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert Device.of(TrainingRecipe()).half == half
    assert Device.of(TrainingRecipe(precision="bfloat16")).half
    # an old one has neither the instructions nor kernels that emulate them
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    assert not Device.of(TrainingRecipe()).half
