"""The commands as functions: models and data in every form, facts by key and as tables."""

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt import RefusedError, UsageError
from sample_models import CNN, model_from

FORMS = {
    "path": lambda path: path,
    "text": str,
    "bytes": lambda path: path.read_bytes(),
    "proto": onnx.load,
    "ir": lambda path: ir.from_proto(onnx.load(path)),
}


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_models_come_in_every_form(mlp, form):
    result = onnx_opt.optimize(form(mlp), "prune(sparsity=0.5)", bench=False)
    assert result.output.nonzero == result.input.nonzero / 2
    facts = onnx_opt.verify(form(mlp), result.model)
    assert facts.overall["sqnr_db"] == pytest.approx(
        result.passes[0].drift["sqnr_db"], abs=20
    )


def test_a_program_of_torch_is_a_model(mlp):
    class Program:
        """As torch.onnx.ONNXProgram, which holds an ir.Model."""

        model = ir.from_proto(onnx.load(mlp))

    assert onnx_opt.inspect(Program()).figures["params"] > 0


def test_a_model_in_memory_is_not_changed(mlp):
    proto = onnx.load(mlp)
    before = proto.SerializeToString()
    onnx_opt.optimize(proto, "prune(sparsity=0.5)", bench=False)
    assert proto.SerializeToString() == before


def test_something_else_is_no_model():
    with pytest.raises(UsageError, match="a list is no model"):
        onnx_opt.optimize([1], "simplify")
    with pytest.raises(RefusedError):
        onnx_opt.inspect(b"not a model")


def test_passes_come_as_pairs(mlp):
    pairs = [("prune", {"sparsity": 0.5}), "simplify"]
    result = onnx_opt.optimize(mlp, pairs, bench=False)
    assert [step.text for step in result.passes][:2] == [
        "prune(sparsity=0.5)",
        "simplify",
    ]
    with pytest.raises(UsageError, match=r"prune\.sparsty"):
        onnx_opt.optimize(mlp, [("prune", {"sparsty": 0.5})])
    with pytest.raises(UsageError, match="is no pass"):
        onnx_opt.optimize(mlp, [("prune", 0.5)])


def test_facts_are_a_mapping_with_attributes_and_tables(mlp):
    facts = onnx_opt.inspect(mlp)
    assert facts["figures"] == facts.figures
    assert set(facts) == set(facts.to_dict())
    assert "parameters" in str(facts)
    assert facts._repr_html_().startswith("<pre>")
    assert repr(facts).startswith("Facts(model, ")
    with pytest.raises(AttributeError, match="there is no 'figure'"):
        _ = facts.figure


def test_verify_says_that_feeds_are_made_up(mlp):
    facts = onnx_opt.verify(mlp, mlp)
    (warning,) = facts.warnings
    assert warning.startswith("data: none given: compared on synthetic feeds")
    assert f"warning: {warning}" in " ".join(str(facts).split())
    x = np.ones((4, 8), np.float32)
    assert onnx_opt.verify(mlp, mlp, {"x": x}).warnings == []


def test_verify_says_if_the_limits_are_met(mlp, tmp_path):
    pruned = onnx_opt.optimize(mlp, "prune(sparsity=0.5)", bench=False).model
    assert onnx_opt.verify(mlp, mlp, min_sqnr=100).within
    facts = onnx_opt.verify(mlp, pruned, min_sqnr=100)
    assert not facts.within
    assert "dB" in facts.problem
    cnn = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), cnn)
    with pytest.raises(RefusedError, match="its input 'x' is float32 of rank 4"):
        onnx_opt.verify(mlp, cnn)


def test_bench_times_models_in_turns(mlp):
    facts = onnx_opt.bench(mlp, mlp, seconds=0.1)
    assert [row["model"] for row in facts.models] == [str(mlp)] * 2
    assert facts.models[0]["ratio_to_first"] == 1.0
    assert "median" in str(facts)


def test_evaluate_takes_functions(mlp):
    data = {"x": np.eye(8, dtype=np.float32), "labels": np.arange(8) % 4}
    expected = onnx_opt.evaluate(mlp, data, "top1")

    def share(outputs, labels):
        hits = [
            (scores.argmax(1) == truth).mean()
            for (scores,), truth in zip(outputs, labels, strict=True)
        ]
        return np.mean(hits)

    assert onnx_opt.evaluate(mlp, data, share) == expected


def test_list_passes_names_every_pass_or_tells_of_one():
    passes = onnx_opt.list_passes()
    names = [entry["pass"] for entry in passes]
    assert {"prune", "quant", "simplify"} <= set(names)
    assert [entry["pass"] for entry in passes[:2]] == names[:2]
    assert str(passes[-1]) == str(onnx_opt.list_passes(names[-1]))
    assert passes.to_dict()["passes"][0] == passes[0].to_dict()
    assert repr(passes) == f"FactsList({len(names)} passes)"
    assert "Zero" in str(passes)
    assert onnx_opt.list_passes("prune").effect == "lossy"
    with pytest.raises(UsageError):
        onnx_opt.list_passes("")


def test_the_face_lists_what_it_has():
    assert dir(onnx_opt) == sorted(onnx_opt.__all__)
    for name in onnx_opt.__all__:
        assert getattr(onnx_opt, name) is not None


def test_a_result_prints_as_the_command_does(mlp):
    result = onnx_opt.optimize(mlp, "prune(sparsity=0.5)", bench=False)
    assert repr(result).startswith("Result('prune(sparsity=0.5)', bytes ")
    assert "SQNR dB" in str(result)
    assert result._repr_html_().startswith("<pre>")
    assert result.to_dict() == result.as_dict()
    assert dataclasses.is_dataclass(result)
