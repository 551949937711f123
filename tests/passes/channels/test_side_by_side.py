"""Two models in one graph: both compute what they compute alone, and targets are what the whole model makes."""

import numpy as np
import onnx_ir as ir
import pytest
from calibrated_context import run_session
from exactness import HEADER
from onnx_opt.passes._base import NullContext
from onnx_opt.passes._channels.gate import take_out
from onnx_opt.passes._channels.prepare import prepare
from onnx_opt.passes._channels.side_by_side import PRUNED, WHOLE, SideBySide
from onnx_opt.passes._dims.groups import channel_groups, kept_slots
from onnx_opt.passes._dims.rules import relate
from onnx_opt.passes._dims.solve import solve
from onnx_opt.passes._dims.trace import traced
from sample_models import model_from

SHORTCUT = HEADER + """
shortcut (float[batch, 3] x) => (float[batch, 2] y)
<float[3, 8] a, float[8, 6] b, float[6, 8] c, float[8, 2] d>
{
    h = MatMul (x, a)
    r = MatMul (h, b)
    s = Relu (r)
    t = MatMul (s, c)
    u = Add (t, h)
    y = MatMul (u, d)
}
"""


class Pair:
    """The whole model, the pruned one, and what stayed; half of the channels of every group went."""

    def __init__(self, text):
        self.whole = ir.from_proto(model_from(text))
        prepare(self.whole, NullContext())
        solution = solve(relate(self.whole, traced(self.whole)))
        gone = np.concatenate([g.channels[::2] for g in channel_groups(solution)])
        self.kept = kept_slots(solution, gone)
        self.pruned = self.whole.clone()
        take_out(self.pruned, solution, gone, "heads")
        self.joint = SideBySide(self.whole, self.pruned, self.kept)
        self.x = np.random.default_rng(0).standard_normal((5, 3)).astype(np.float32)

    def tensor(self, name):
        (array,) = run_session(self.joint.part(["x"], [name])).run(None, {"x": self.x})
        return array

    def alone(self, model, name):
        copy = model.clone()
        value = next(v for node in copy.graph for v in node.outputs if v.name == name)
        copy.graph.outputs[:] = [value]
        (array,) = run_session(copy).run(None, {"x": self.x})
        return array

    def value(self, name):
        return next(v for node in self.pruned.graph for v in node.outputs if v.name == name)


@pytest.fixture(scope="module")
def pair():
    return Pair(SHORTCUT)


@pytest.mark.parametrize("name", ["h", "s", "t", "y"])
def test_each_side_computes_what_it_does_alone(pair, name):
    np.testing.assert_allclose(pair.tensor(WHOLE + name), pair.alone(pair.whole, name), rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(pair.tensor(PRUNED + name), pair.alone(pair.pruned, name), rtol=1e-5, atol=1e-6)
    assert pair.joint.name_of(pair.value(name)) == PRUNED + name


def test_inputs_are_read_once_and_nothing_else_is_shared_by_name(pair):
    graph = pair.joint.model.graph
    assert [v.name for v in graph.inputs] == ["x"]
    assert pair.joint.name_of(graph.inputs[0]) == "x"
    assert len(graph.initializers) == 8 + sum("kept" in name for name in graph.initializers)
    names = [v.name for node in graph for v in node.outputs]
    assert len(names) == len(set(names))


def test_a_target_is_the_whole_models_tensor_without_what_went(pair):
    wanted = pair.tensor(pair.joint.target_of(pair.value("r")))
    np.testing.assert_allclose(wanted, pair.alone(pair.whole, "r")[:, 1::2], rtol=1e-5, atol=1e-6)
    wanted = pair.tensor(pair.joint.target_of(pair.value("y")))
    np.testing.assert_allclose(wanted, pair.alone(pair.whole, "y"), rtol=1e-5, atol=1e-6)


def test_in_front_of_a_shortcut_the_target_makes_up_for_what_the_shortcut_lost(pair):
    wanted = pair.tensor(pair.joint.target_of(pair.value("t")))
    total = pair.alone(pair.whole, "u")[:, 1::2]
    np.testing.assert_allclose(wanted + pair.alone(pair.pruned, "h"), total, rtol=1e-4, atol=1e-5)


def test_neither_model_is_changed(pair):
    for model in (pair.whole, pair.pruned):
        assert [v.name for v in model.graph.outputs] == ["y"]
        assert not any((v.name or "").startswith((WHOLE, PRUNED)) for v in model.graph.initializers.values())
        assert not any((n.name or "").startswith((WHOLE, PRUNED)) for n in model.graph)
