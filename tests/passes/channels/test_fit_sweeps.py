"""The cost of pruning grows with the layers of a model, not with their square."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from calibrated_context import CalibratedContext, run_session
from importance_nets import literal
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.passes._reconstruct.joint_graph import JointGraph
from onnx_opt.passes._reconstruct.layers import _to_fit
from onnx_opt.passes.prune_channels import PruneChannels
from onnx_opt.runtime.taps import with_taps

IDS, WIDTH, UNITS = 40, 6, 8


class Counting(CalibratedContext):
    """A context that goes on from stored tensors.

    `ran`: nodes of each run over the data, by its kind; `kept`: names of the stored tensors.
    """

    def __init__(self, feeds, ran=None, kept=None):
        super().__init__(feeds)
        self.ran = {"collect": [], "after": []} if ran is None else ran
        self.kept = [] if kept is None else kept

    def held_back(self):
        return None

    def collect(self, model, requests, samples):
        self.ran["collect"].append(len(model.graph))
        return super().collect(model, requests, samples)

    def after(self, model, tensors, samples):
        self.ran["after"].append(len(model.graph))
        self.kept.append(tensors)
        session = run_session(with_taps(model, tensors))
        names = [o.name for o in session.get_outputs()]
        stored = []
        for feeds in self.feeds:
            values = feeds | dict(zip(names, session.run(None, feeds), strict=True))
            stored.append({name: values[name] for name in tensors})
        return Counting(stored, self.ran, self.kept)


def decoder(layers):
    """Ids -> table -> [h + v Relu(u h)] of each layer -> the table, transposed."""
    random = np.random.default_rng(layers)
    table = random.normal(size=(IDS, WIDTH))
    weights = [f"float[{IDS}, {WIDTH}] table = {literal(table)}"]
    nodes = ["h0 = Gather (table, ids)"]
    for number in range(layers):
        u = random.normal(size=(WIDTH, UNITS))
        v = random.normal(size=(UNITS, WIDTH))
        weights.append(f"float[{WIDTH}, {UNITS}] u{number} = {literal(u)}")
        weights.append(f"float[{UNITS}, {WIDTH}] v{number} = {literal(v)}")
        nodes += [
            f"a{number} = MatMul (h{number}, u{number})",
            f"r{number} = Relu (a{number})",
            f"b{number} = MatMul (r{number}, v{number})",
            f"h{number + 1} = Add (h{number}, b{number})",
        ]
    nodes.append("head = Transpose <perm = [1, 0]> (table)")
    nodes.append(f"y = MatMul (h{layers}, head)")
    text = f"""
        <ir_version: 10, opset_import: ["" : 21]>
        decoder (int64[N] ids) => (float[N, {IDS}] y)
        <{", ".join(weights)}>
        {{ {chr(10).join(nodes)} }}"""
    model = ir.from_proto(onnx.parser.parse_model(text))
    for node in model.graph:
        node.name = f"make_{node.outputs[0].name}"
    refresh_shapes(model)
    return model


def counted(layers, **options):
    """Context of a run that pruned the units of every layer of a decoder."""
    random = np.random.default_rng(0)
    context = Counting([{"ids": random.integers(0, IDS, 64)} for _ in range(4)])
    pruning = PruneChannels(ratio=0.25, exclude=("table",), **options)
    outcome = pruning.run(decoder(layers), context)
    assert outcome.stats["groups"] == layers
    return context


@pytest.mark.parametrize("kind", ["collect", "after"])
def test_each_layer_adds_as_many_runs_over_as_many_nodes(kind):
    few, some, many = (counted(layers).ran[kind] for layers in (2, 4, 6))
    assert len(many) - len(some) == len(some) - len(few) == 4
    # what the whole model is run for, scores and the judgement, is a constant number of runs
    assert sum(many) - sum(some) == sum(some) - sum(few)


def test_scores_take_one_run():
    assert len(counted(6, recover=False).ran["collect"]) == 2


def test_no_constant_is_kept_with_every_batch():
    kept = counted(3).kept
    assert all("head" not in name for names in kept for name in names)
    assert {"pruned/h1", "whole/h1"} <= set(kept[1])


def test_a_transposed_table_follows_from_constants():
    model = decoder(2)
    layers = _to_fit(model, lambda layer: True)
    joint = JointGraph(model, model.clone(), {})
    assert joint.frontier(layers[2:]) == ["pruned/h1", "whole/h1"]
