"""The proof: whatever a rule, an update or the surgery gets wrong, the group stays, is named,
and the rest is pruned.
"""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext
from exactness import HEADER
from onnx_opt.passes._base import Difference, NullContext
from onnx_opt.passes._channels import verify
from onnx_opt.passes._channels.verify import failing_parts, verify_removal
from onnx_opt.passes._dims import remove, surgery
from onnx_opt.passes._dims.groups import channel_groups
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.table import RULES, UPDATES
from onnx_opt.passes._dims.trace import traced
from onnx_opt.passes.prune_channels import PruneChannels
from sample_models import model_from

TWO_WAYS = (
    HEADER
    + """
two_ways (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 8] a, float[8, 8] b, float[8, 6] c, float[6, 2] d>
{
    h = MatMul (x, a)
    r = Relu (h)
    g = MatMul (r, b)
    t = Tanh (g)
    f = MatMul (t, c)
    s = Sigmoid (f)
    y = MatMul (s, d)
}
"""
)

GROUPED = (
    HEADER
    + """
grouped (float[batch, 8, 6, 6] x) => (float[batch, 3, 6, 6] y)
<float[16, 8, 1, 1] first, float[16, 1, 3, 3] middle, float[12, 16, 1, 1] last, float[3, 12, 1,
    1] end>
{
    a = Conv (x, first)
    b = Conv <group = 16, pads = [1, 1, 1, 1]> (a, middle)
    c = Conv (b, last)
    r = Relu (c)
    y = Conv (r, end)
}
"""
)


def model_of(text):
    return ir.from_proto(model_from(text))


def context_of(text):
    random = np.random.default_rng(0)
    shape = [
        d if isinstance(d, int) else 3 for d in model_of(text).graph.inputs[0].shape
    ]
    return CalibratedContext(
        [{"x": random.standard_normal(shape).astype(np.float32)} for _ in range(2)]
    )


def pruned(text, context=None, **options):
    model = model_of(text)
    half = {"ratio": 0.5, "importance": "l2", "recover": False, "multiple": 1}
    given = {**half, **options}
    outcome = PruneChannels(**given).run(model, context or context_of(text))
    onnx.checker.check_model(ir.to_proto(model), full_check=True)
    return model, outcome


def shape(model, name):
    return tuple(model.graph.initializers[name].const_value.shape.numpy())


def proofs_failed(outcome):
    return {
        d.where: d.reason
        for d in outcome.declined
        if d.reason.startswith("it stays, since the check")
    }


def test_nothing_is_declined_where_all_is_right():
    for text in (TWO_WAYS, GROUPED):
        _, outcome = pruned(text)
        assert proofs_failed(outcome) == {}
        assert outcome.stats["error"] < 1e-5


@pytest.mark.parametrize("mix", [True, False])
def test_a_rule_that_ties_the_wrong_slots_is_caught(monkeypatch, mix):
    def backwards(node, relations):
        value, result = node.inputs[0], node.outputs[0]
        slots = np.arange(relations.shape(result)[-1])
        relations.link(
            value, 1, slots, result, 1, slots[::-1].copy() if mix else np.roll(slots, 1)
        )

    monkeypatch.setitem(RULES, ("", "Tanh"), backwards)
    model, outcome = pruned(TWO_WAYS)
    (where,) = proofs_failed(outcome)
    assert where in ("b:1", "c:0")
    assert shape(model, "b") == (4, 8)
    assert shape(model, "c") == (8, 3)
    assert outcome.stats["groups"] == 2
    assert outcome.stats["error"] < 1e-5


def test_a_rule_that_forgets_its_op_is_caught(monkeypatch):
    def silent(node, relations):
        for value in (node.inputs[0], node.outputs[0]):
            relations.find(value, 1)

    monkeypatch.setitem(RULES, ("", "Tanh"), silent)
    model, outcome = pruned(TWO_WAYS)
    assert len(proofs_failed(outcome)) == 2  # b's columns and c's rows, each by itself
    assert all(
        ": Tanh Tanh_t: makes" in reason for reason in proofs_failed(outcome).values()
    )
    assert shape(model, "a") == (3, 4)
    assert shape(model, "b") == (4, 8)
    assert shape(model, "d") == (3, 2)


def test_a_mend_that_does_nothing_is_caught(monkeypatch):
    monkeypatch.setitem(UPDATES, ("", "Conv"), lambda node, surgery: None)
    model, outcome = pruned(GROUPED)
    assert len(proofs_failed(outcome)) == 1
    assert shape(model, "middle") == (16, 1, 3, 3)
    assert shape(model, "last")[0] == 6
    assert outcome.stats["error"] < 1e-5


def test_a_mend_that_crashes_the_surgery_is_caught(monkeypatch):
    def refuses(node, found):
        raise surgery.SurgeryError(node, "made to fail")

    monkeypatch.setitem(UPDATES, ("", "Sigmoid"), refuses)
    model, outcome = pruned(TWO_WAYS)
    (reason,) = proofs_failed(outcome).values()
    assert "made to fail" in reason
    assert [shape(model, name) for name in "abcd"] == [(3, 4), (4, 4), (4, 6), (6, 2)]


def test_slices_of_the_wrong_channels_are_caught(monkeypatch):
    right = remove.SlicedTensor

    def shifted(source, kept):
        wrong = (
            {axis: np.arange(len(slots)) for axis, slots in kept.items()}
            if source.name == "c"
            else kept
        )
        return right(source, wrong)

    monkeypatch.setattr(remove, "SlicedTensor", shifted)
    model, outcome = pruned(TWO_WAYS, importance="random")
    assert 1 <= len(proofs_failed(outcome)) <= 2
    assert all(
        "of those with its channels switched off" in reason
        for reason in proofs_failed(outcome).values()
    )
    assert shape(model, "a") == (3, 4)
    assert outcome.stats["error"] < 1e-5


def test_a_model_that_does_not_survive_is_caught(monkeypatch):
    class Fragile(CalibratedContext):
        def difference(self, model, other):
            if shape(other, "c")[1] < 6:
                return Difference(np.inf, "the process died", "")
            return super().difference(model, other)

    model, outcome = pruned(TWO_WAYS, Fragile(context_of(TWO_WAYS).feeds))
    (reason,) = proofs_failed(outcome).values()
    assert "the process died" in reason
    assert [shape(model, name) for name in "abcd"] == [(3, 4), (4, 4), (4, 6), (6, 2)]


def test_everything_wrong_leaves_the_model_as_it_was(monkeypatch):
    monkeypatch.setattr(
        verify,
        "structural_problem",
        lambda model: (
            "bad"
            if shape(model, "a") != (3, 8)
            or shape(model, "d") != (6, 2)
            or shape(model, "b") != (8, 8)
            else ""
        ),
    )
    model = model_of(TWO_WAYS)
    before = ir.to_proto(model).SerializeToString(deterministic=True)
    outcome = PruneChannels(ratio=0.5).run(model, NullContext())
    assert (outcome.changed, outcome.stats) == (0, {})
    assert set(proofs_failed(outcome).values()) == {
        "it stays, since the check of the pruned model failed: bad"
    }
    assert len(proofs_failed(outcome)) == 3
    assert ir.to_proto(model).SerializeToString(deterministic=True) == before


def test_a_reference_that_cannot_run_proves_nothing():
    class Broken(NullContext):
        def difference(self, model, other):
            return Difference(np.inf, "", "no kernel for this op")

    model = model_of(TWO_WAYS)
    solution = solve(relate(model, traced(model)))
    channels = channel_groups(solution)[0].channels[:2]
    assert verify_removal(
        model, solution, channels, Broken(), "heads"
    ) == verify.Verdict(None)
    _, outcome = pruned(TWO_WAYS, Broken())
    assert outcome.stats["groups"] == 3
    assert "error" not in outcome.stats


def test_a_reference_that_alone_cannot_run_is_no_proof():
    class Unmasked(CalibratedContext):
        def difference(self, model, other):
            if any(node.op_type == "Mul" for node in model.graph):
                return Difference(np.inf, "", "no kernel for this op")
            return super().difference(model, other)

    model, outcome = pruned(TWO_WAYS, Unmasked(context_of(TWO_WAYS).feeds))
    assert set(proofs_failed(outcome).values()) == {
        "it stays, since the check of the pruned model failed: the model with its channels "
        "switched off does not run: no kernel for this op"
    }
    assert (outcome.changed, shape(model, "a")) == (0, (3, 8))


@pytest.mark.parametrize(
    ("bad", "parts", "found"),
    [
        ({3}, range(8), [3]),
        ({0}, range(5), [0]),
        ({7, 2}, range(8), [2]),
        ({4}, [4], [4]),
    ],
)
def test_the_one_that_is_wrong_is_found_by_halving(bad, parts, found):
    asked = []

    def problem(part):
        asked.append(list(part))
        return "wrong" if bad & set(part) else ""

    assert list(failing_parts(list(parts), problem)) == found
    assert len(asked) <= 2 * int(np.ceil(np.log2(max(len(parts), 2))))


def test_parts_that_are_wrong_only_together_lose_the_later_half():
    def problem(part):
        return "wrong" if {1, 6} <= set(part) else ""

    assert list(failing_parts(list(range(8)), problem)) == [4, 5, 6, 7]
