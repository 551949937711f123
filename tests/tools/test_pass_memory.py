"""Passes that a search applies again and again: made once of equal models, and the same after."""

import pickle

import numpy as np
import onnx
import onnx_ir as ir
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run import pass_memory
from onnx_opt.tools._run.pass_memory import PassMemory
from sample_models import CLASSIFIER, model_from


def applied(memory, text, model=None):
    """A model after a pass, in bytes, what the pass told, and the warnings."""
    model = model or ir.from_proto(model_from(CLASSIFIER))
    warnings = []
    (pass_,) = parse(text).passes
    outcome = memory.run(pass_, model, NullContext(), warnings)
    return ir.to_proto(model).SerializeToString(), outcome, warnings


def test_an_equal_model_is_not_pruned_again():
    memory = PassMemory()
    first = applied(memory, "prune(sparsity=0.5)")
    second = applied(memory, "prune(sparsity=0.5)")
    assert len(memory) == 1
    assert second == first
    assert first[1] is not second[1]


def test_what_was_made_is_given_away_as_a_copy():
    memory = PassMemory()
    (prune,) = parse("prune(sparsity=0.5)").passes
    model = ir.from_proto(model_from(CLASSIFIER))
    outcome = memory.run(prune, model, NullContext(), [])
    outcome.stats["weights"] = -1
    for value in model.graph.initializers.values():
        value.const_value = ir.Tensor(np.zeros(1, np.float32), name=value.name)
    _, again, _ = applied(memory, "prune(sparsity=0.5)")
    assert again.stats["weights"] != -1


def test_other_options_and_other_weights_are_told_apart():
    memory = PassMemory()
    applied(memory, "prune(sparsity=0.5)")
    applied(memory, "prune(sparsity=0.25)")
    other = ir.from_proto(model_from(CLASSIFIER))
    value = next(iter(other.graph.initializers.values()))
    value.const_value = ir.Tensor(value.const_value.numpy() + 1, name=value.name)
    applied(memory, "prune(sparsity=0.5)", other)
    assert len(memory) == 3


def test_passes_in_which_recipes_differ_are_not_kept():
    memory = PassMemory()
    applied(memory, "quant")
    assert len(memory) == 0


def test_large_models_are_not_kept(monkeypatch):
    monkeypatch.setattr(pass_memory, "MOST_BYTES", 10)
    memory = PassMemory()
    applied(memory, "prune(sparsity=0.5)")
    assert len(memory) == 0


def test_another_process_begins_with_nothing():
    memory = PassMemory()
    applied(memory, "prune(sparsity=0.5)")
    assert len(pickle.loads(pickle.dumps(memory))) == 0


def test_weights_beside_a_file_are_told_apart(tmp_path):
    memory = PassMemory()
    found = []
    for scale in (1.0, 2.0):
        proto = model_from(CLASSIFIER)
        folder = tmp_path / str(scale)
        folder.mkdir()
        for tensor in proto.graph.initializer:
            array = onnx.numpy_helper.to_array(tensor) * np.float32(scale)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array, tensor.name))
        onnx.save_model(
            proto,
            folder / "m.onnx",
            save_as_external_data=True,
            location="weights",
            size_threshold=0,
        )
        model = ir.load(folder / "m.onnx")
        found.append(applied(memory, "prune(sparsity=0.5)", model)[0])
    assert len(memory) == 2
    assert found[0] != found[1]


def test_so_many_models_are_remembered():
    memory = PassMemory()
    for tenths in range(1, 10):
        applied(memory, f"prune(sparsity=0.{tenths})")
    assert len(memory) == pass_memory.MOST_KEPT
