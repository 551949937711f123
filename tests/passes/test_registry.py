"""Passes of `onnx_ir` in a pipeline, and a pass of this project among those of `onnx_ir`."""

import onnx_ir as ir
import pytest
from exactness import model_of, ops_of
from onnx_opt import UsageError
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._core.normalize import normalize
from onnx_opt.passes._core.pipeline import as_pipeline, parse
from onnx_opt.passes._core.registry import AsIrPass, ForeignPass
from onnx_opt.passes.prune import Prune
from onnx_opt.passes.remove_identities import RemoveIdentities

TWO_IDENTITIES = (
    "g (float[2] x) => (float[2] y) { a = Identity (x)  b = Neg (a)  y = Exp (b) }"
)
IDENTITY = "onnx_ir.passes.common.IdentityEliminationPass"


class Renames(ir.passes.FunctionalPass):
    """A foreign pass that makes another model."""

    def call(self, model):
        return ir.passes.PassResult(model.clone(), modified=True)


def model_with_identity():
    model = model_of(TWO_IDENTITIES)
    normalize(model)
    return model


def test_a_pass_runs_among_those_of_onnx_ir():
    context = NullContext()
    model = model_with_identity()
    sequence = ir.passes.Sequential(
        AsIrPass(RemoveIdentities(), context), ir.passes.common.RemoveUnusedNodesPass()
    )
    result = sequence(model)
    assert result.model is model
    assert result.modified
    assert ops_of(model) == ["Neg", "Exp"]
    assert not AsIrPass(RemoveIdentities(), context)(model).modified


def test_a_pass_among_those_of_onnx_ir_has_the_context_that_it_is_given():
    context = NullContext()
    AsIrPass(Prune(select="max"), context)(model_with_identity())
    assert [warning.split(":")[0] for warning in context.warnings] == ["prune.select"]


def test_a_foreign_pass_runs_in_a_pipeline():
    (step,) = parse(IDENTITY).passes
    model = model_with_identity()
    assert step.run(model, NullContext()).changed == 1
    assert ops_of(model) == ["Neg", "Exp"]
    assert step.run(model, NullContext()).changed == 0


def test_a_foreign_pass_that_makes_another_model_is_refused():
    (step,) = as_pipeline([Renames()]).passes
    with pytest.raises(UsageError, match="returns another model"):
        step.run(model_with_identity(), NullContext())


def test_the_text_of_a_foreign_pass_round_trips():
    pipeline = parse(
        "onnx_ir.passes.common.LiftConstantsToInitializersPass:size_limit=5"
    )
    (step,) = pipeline.passes
    assert isinstance(step, ForeignPass)
    assert step.instance.size_limit == 5
    assert str(step).endswith("LiftConstantsToInitializersPass(size_limit=5)")
    assert parse(str(pipeline)) == pipeline


def test_what_is_no_pass_is_refused():
    with pytest.raises(UsageError, match="is not a pass"):
        as_pipeline([3])
