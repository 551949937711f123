"""If, Loop, Scan, sequences, functions; where gradients end."""

import numpy as np
import pytest
import torch
from onnx_opt.frontends.trainable import _fold, to_torch
from sample_models import IF, MLP
from trainable_models import difference, gradient_error, ir_model, normal

LOOP = """
<ir_version: 10, opset_import: ["" : 21]>
repeated (float[2, 3] x, int64 turns) => (float[2, 3] last, float[n, 2, 3] all)
<float[3, 3] w = {0.5, 0, 0.1, 0, 0.5, 0, 0.2, 0, 0.5}, bool true = {1}>
{
    last, all = Loop (turns, true, x) <
        body = body (int64 i, bool going, float[2, 3] s) => (bool again, float[2, 3] t, float[2,
            3] scan) {
            again = Identity (going)
            m = MatMul (s, w)
            f = Cast <to = 1> (i)
            t = Add (m, f)
            scan = Identity (t)
        }
    >
}
"""

UNTIL = """
<ir_version: 10, opset_import: ["" : 21]>
until (float[1] x) => (float[1] last)
<bool true = {1}, float[1] two = {2}, float[1] hundred = {100}>
{
    last = Loop (, true, x) <
        body = body (int64 i, bool going, float[1] s) => (bool again, float[1] t) {
            t = Mul (s, two)
            less = Less (t, hundred)
            again = Squeeze (less)
        }
    >
}
"""

SCAN = """
<ir_version: 10, opset_import: ["" : 21]>
scanned (float[4, 2] x, float[2] start) => (float[2] end, float[4, 2] sums)
<float[2] w = {0.5, 2}>
{
    end, sums = Scan <num_scan_inputs = 1, scan_input_directions = [1],
        body = body (float[2] s, float[2] e) => (float[2] t, float[2] o) {
            p = Mul (e, w)
            t = Add (s, p)
            o = Identity (t)
        }
    > (start, x)
}
"""

FUNCTION = """
<ir_version: 10, opset_import: ["" : 21, "local" : 1]>
called (float[2, 4] x) => (float[2, 4] y)
<float[4, 4] w>
{
    a = local.half <alpha = 0.5> (x, w)
    y = local.half (a, w)
}
<domain: "local", opset_import: ["" : 21]>
half <alpha: float = 0.25> (v, m) => (o)
{
    p = MatMul (v, m)
    k = Constant <value_float: float = @alpha> ()
    o = Mul (p, k)
}
"""

TAIL = """
<ir_version: 10, opset_import: ["" : 21]>
tail (float[3, 8] x) => (float[3, 4] y, int64[3] best, float[3] rounded)
<float[8, 4] w>
{
    y = MatMul (x, w)
    best = ArgMax <axis = 1, keepdims = 0> (y)
    r = Round (y)
    axes = Constant <value_ints = [1]> ()
    rounded = ReduceSum <keepdims = 0> (r, axes)
}
"""


@pytest.mark.parametrize("turns", [0, 1, 4])
def test_a_loop_runs_as_often_as_it_is_told(turns):
    module = to_torch(ir_model(LOOP))
    feeds = {"x": normal(2, 3), "turns": np.array(turns)}
    assert difference(module, feeds) < 1e-6
    assert module.run(feeds)["all"].shape == (turns, 2, 3)


def test_a_loop_ends_when_its_condition_does():
    module = to_torch(ir_model(UNTIL))
    assert module(np.array([3], np.float32)).tolist() == [192.0]


def test_scan_may_run_backwards():
    module = to_torch(ir_model(SCAN))
    assert difference(module, {"x": normal(4, 2), "start": normal(2)}) < 1e-6


def test_functions_are_inlined_with_their_attributes():
    module = to_torch(ir_model(FUNCTION))
    assert difference(module, {"x": normal(2, 4)}) < 1e-6
    x = torch.from_numpy(normal(2, 4))
    assert torch.allclose(module(x), x @ module.w @ module.w * 0.125, atol=1e-6)


@pytest.mark.parametrize(
    ("text", "feeds"),
    [
        (LOOP, {"x": normal(2, 3), "turns": np.array(3)}),
        (SCAN, {"x": normal(4, 2), "start": normal(2)}),
        (FUNCTION, {"x": normal(2, 4)}),
        (IF, {"flag": np.array(True), "x": normal(3, 4)}),
    ],
)
def test_gradients_pass_through_control_flow(text, feeds):
    names = {"w"} if "flag" in feeds else None
    assert gradient_error(text, feeds, names) < 1e-6


def test_a_branch_not_taken_gives_no_gradient():
    module = to_torch(ir_model(IF))
    module.run({"flag": np.array(False), "x": normal(3, 4)})["y"].sum().backward()
    assert module.u.grad is None
    assert module.k.grad.abs().sum() > 0


REFUSED = """
<ir_version: 10, opset_import: ["" : 21]>
refused (bool flag, float[2] x) => (float[a] y)
<float[6] six = {1, 2, 3, 4, 5, 6}, int64[1] four = {4}>
{
    y = If (flag) <
        then_branch = good () => (float[a] t) { t = Neg (x) },
        else_branch = bad () => (float[b] e) { e = Reshape (six, four) }>
}
"""


def test_constants_that_a_kernel_refuses_fail_only_where_they_run():
    module = to_torch(ir_model(REFUSED), train=False)
    x = normal(2)
    taken = module.run({"flag": np.array(True), "x": x})
    np.testing.assert_array_equal(taken["y"], -x)
    with pytest.raises(RuntimeError, match="invalid for input of size 6"):
        module.run({"flag": np.array(False), "x": x})


def test_a_defect_of_a_kernel_is_no_refusal(monkeypatch):
    def broken(entry, *arguments):
        raise AttributeError("a defect")

    monkeypatch.setattr(_fold, "_run", broken)
    with pytest.raises(AttributeError, match="a defect"):
        to_torch(ir_model(REFUSED), train=False)


def test_differentiable_models_have_no_cuts():
    assert to_torch(ir_model(MLP)).provenance.cuts == []


def test_cuts_name_the_node_the_reason_and_the_outputs_behind():
    module = to_torch(ir_model(TAIL))
    cuts = {
        (cut.node.split()[0], cut.outputs): cut.reason for cut in module.provenance.cuts
    }
    assert cuts == {
        ("ArgMax", ("best",)): "it has no gradient",
        ("Round", ("rounded",)): "it has no gradient",
    }
    feeds = {"x": normal(3, 8)}
    assert difference(module, feeds) < 1e-6
    module.run(feeds)["y"].sum().backward()
    assert module.w.grad.shape == (8, 4)


def test_values_are_freed_after_their_last_use():
    source = to_torch(ir_model(MLP)).provenance.source
    assert source.splitlines()[2:-1] == [
        "    v1 = MatMul_1(x0, self.w1)  # MatMul",
        "    v2 = Relu_1(v1)  # Relu",
        "    del v1",
        "    v3 = MatMul_1(v2, self.w2)  # MatMul",
        "    del v2",
    ]


BOXES = """
<ir_version: 10, opset_import: ["" : 21]>
boxes (float[1, 3, 4] x, string[2] words) => (float[1, 3, 4] moved, int64[n, 3] kept,
    string[2] lower)
<float[4] shift = {0, 0, 1, 1}, float[1, 1, 3] scores = {0.9, 0.8, 0.7}, int64 most = {3},
    float overlap = {0.5}>
{
    moved = Add (x, shift)
    kept = NonMaxSuppression (moved, scores, most, overlap)
    lower = StringNormalizer <case_change_action = "LOWER"> (words)
}
"""


def test_tails_that_torch_cannot_run_are_run_detached():
    module = to_torch(ir_model(BOXES))
    (cut,) = module.provenance.cuts
    assert (cut.node, cut.outputs) == ("NonMaxSuppression kept", ("kept",))
    assert cut.reason == "it has no gradient"
    assert module.provenance.detached == ["StringNormalizer lower"]
    x = np.array([[[0, 0, 1, 1], [0, 0, 1.1, 1], [5, 5, 6, 6]]], np.float32)
    results = module.run({"x": x, "words": np.array(["Ab", "C"], dtype=object)})
    assert results["kept"].tolist() == [[0, 0, 0], [0, 0, 2]]
    assert list(results["lower"]) == ["ab", "c"]
    results["moved"].sum().backward()
    assert module.shift.grad.tolist() == [3.0] * 4


MICROSOFT = """
<ir_version: 10, opset_import: ["" : 21, "com.microsoft" : 1]>
fused (float[2, 4] x) => (float[2, 4] y)
<float[4, 4] w>
{
    g = com.microsoft.Gelu (x)
    h = Gelu (g)
    m = com.microsoft.FusedMatMul <alpha = 0.5, transB = 1> (h, w)
    y = com.microsoft.QuickGelu (m)
}
"""


def test_ops_of_onnx_runtime_that_share_a_name_with_standard_ones():
    assert difference(to_torch(ir_model(MICROSOFT)), {"x": normal(2, 4)}) < 1e-6
