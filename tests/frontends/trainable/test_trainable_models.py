"""Real models: the module computes what ONNX Runtime computes, trains, goes back, and compiles
without a break.
"""

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from onnx_opt.frontends.onnx_file import load
from onnx_opt.frontends.trainable import to_torch, write_back
from trainable_models import difference, normal, ort_run

DATA = Path(
    os.environ.get(
        "ONNX_OPT_DATA", Path(__file__).resolve().parents[4] / "shared" / "data"
    )
)

TOKENS = np.random.default_rng(0).integers(1, 1000, (2, 16))
FEEDS = {
    "cifar10_resnet20": {"input": normal(2, 3, 32, 32)},
    "cifar10_resnet20_bn": {"input": normal(2, 3, 32, 32)},
    "cifar10_resnet56": {"input": normal(2, 3, 32, 32)},
    "efficientnet_lite0": {"input": normal(1, 3, 224, 224)},
    "minilm_l6_v2": {
        "input_ids": TOKENS,
        "attention_mask": np.ones_like(TOKENS),
        "token_type_ids": TOKENS * 0,
    },
    "ch_PP-OCRv4_det_infer": {"x": normal(1, 3, 96, 160)},
    "ch_PP-OCRv4_rec_infer": {"x": normal(2, 3, 48, 120)},
    "magika_v3_3": {"bytes": (TOKENS.repeat(128, 1) % 256).astype(np.int32)},
    "silero_vad": {
        "input": normal(2, 576),
        "state": normal(2, 2, 128),
        "sr": np.array(16000),
    },
    "silero_vad_16k_op15": {
        "input": normal(2, 576),
        "state": normal(2, 2, 128),
        "sr": np.array(16000),
    },
}

UNUSED = {"silero_vad": 15}
"""Weights of the branch for the other sampling rate."""


def model_of(name):
    path = DATA / "models" / f"{name}.onnx"
    if not path.exists():
        pytest.skip("no real models here")
    return load(path)


def feeds_of(name, model):
    given = {v.name for v in model.graph.inputs}
    return {key: value for key, value in FEEDS[name].items() if key in given}


@pytest.mark.slow
@pytest.mark.parametrize("name", FEEDS)
def test_real_models_compute_train_and_go_back(name):
    model = model_of(name)
    feeds = feeds_of(name, model)
    module = to_torch(model)
    assert module.provenance.detached == []
    assert difference(module, feeds) <= 1e-4
    sum(
        v.square().mean() for v in module.run(feeds).values() if v.requires_grad
    ).backward()
    assert sum(p.grad is None for p in module.parameters()) == UNUSED.get(name, 0)
    before = ort_run(model, feeds)
    write_back(module)
    for old, new in zip(before, ort_run(model, feeds), strict=True):
        np.testing.assert_array_equal(old, new)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(
                torch.randn(parameter.shape, generator=generator)
                * parameter.std(correction=0)
                * 0.01
            )
    write_back(module)
    assert difference(module, feeds) <= 1e-4
    assert difference(to_torch(model), feeds) <= 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("name", ["cifar10_resnet56", "minilm_l6_v2"])
def test_torch_compile_sees_one_graph(name):
    model = model_of(name)
    module = to_torch(model)
    inputs = [
        torch.from_numpy(feeds_of(name, model)[key]) for key in module.provenance.inputs
    ]
    explained = torch._dynamo.explain(module)(*inputs)
    assert (explained.graph_count, explained.graph_break_count) == (1, 0)
    compiled = torch.compile(module, backend="eager", fullgraph=True, dynamic=True)
    got, expected = compiled(*inputs), module(*inputs)
    for one, other in zip(
        got if isinstance(got, tuple) else (got,),
        expected if isinstance(expected, tuple) else (expected,),
        strict=True,
    ):
        assert torch.equal(one, other)
