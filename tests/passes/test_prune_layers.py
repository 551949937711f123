"""Sparsity of single layers by name."""

import numpy as np
import onnx_ir as ir
import pytest
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.pipeline import parse
from sample_models import MLP, model_from


def zeros_after(text):
    model = ir.from_proto(model_from(MLP))
    (prune,) = parse(text).passes
    prune.run(model, NullContext())
    found = {}
    for name in ("w1", "w2"):
        array = model.graph.initializers[name].const_value.numpy()
        found[name] = int(np.sum(array == 0))
    return found


@pytest.mark.parametrize(
    ("text", "zeros"),
    [
        # (8, 16) and (16, 4) weights
        ("prune(layers=[w1=0.25])", {"w1": 32, "w2": 0}),
        ("prune(layers=[w1=0.25], sparsity=0.5)", {"w1": 32, "w2": 32}),
        ("prune(layers=[w1=0.25, w*=0.75])", {"w1": 32, "w2": 48}),
        ("prune(layers=[w1=0], sparsity=0.5)", {"w1": 0, "w2": 32}),
    ],
)
def test_layers_have_the_sparsity_that_they_are_named_with(text, zeros):
    assert zeros_after(text) == zeros


def test_a_table_of_a_file_names_layers(tmp_path):
    path = tmp_path / "layers.toml"
    path.write_text('[layers]\nw1 = "0.25"\n"w*" = "0.5"\n')
    assert zeros_after(f'prune(layers=["@{path}"])') == {"w1": 32, "w2": 32}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("prune(layers=[w1])", "not PATTERN=SPARSITY"),
        ("prune(layers=[w1=much])", "no sparsity"),
        ("prune(layers=[w1=nan])", "no sparsity"),
        ("prune(layers=[w1=1])", "no sparsity"),
        ("prune(layers=[w1=0.5], size=0.5)", "contradicts size"),
        ("prune(layers=[w1=0.5], scope=model)", "contradicts scope"),
        ("prune(layers=[v1=0.5])", "matches no layer"),
    ],
)
def test_a_bad_entry_is_refused(text, words):
    with pytest.raises(UsageError, match=words):
        zeros_after(text)
