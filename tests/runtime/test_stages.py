"""Models cut into stages: where, and that they tell the same as the whole."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from onnx_opt.frontends.onnx_file import save
from onnx_opt.passes._core.context import MomentRequest
from onnx_opt.passes._core.graph import refresh_shapes
from onnx_opt.runtime import context as context_module
from onnx_opt.runtime import stages as stages_module
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import TensorInfo, open_session
from onnx_opt.runtime.stages import (
    BatchStore,
    StoredBatch,
    part_bytes,
    stage_bytes,
    stages_of,
)

RESIDUAL = """
<ir_version: 10, opset_import: ["" : 21]>
residual (float[N, 16] x, float[N, 16] other) => (float[N, 16] y)
{
    h1 = MatMul (x, w1)
    r1 = Relu (h1)
    s = Add (r1, x)
    h2 = MatMul (s, w2)
    r2 = Relu (h2)
    h3 = MatMul (r2, w1)
    t = Add (h3, s)
    h4 = MatMul (t, w3)
    y = Add (h4, other)
}
"""
WEIGHT = 16 * 16 * 4


BRANCH = """
<ir_version: 10, opset_import: ["" : 21]>
branch (float[N, 16] x, bool flag) => (float[N, 16] y)
{
    h1 = MatMul (x, w1)
    h2 = MatMul (h1, w2)
    z = If (flag) <
        then_branch = one () => (float[N, 16] p) { p = MatMul (h1, w3) },
        else_branch = two () => (float[N, 16] q) { q = Sub (h2, h1) }
    >
    y = Relu (z)
}
"""


def model_of(text):
    proto = onnx.parser.parse_model(text)
    random = np.random.default_rng(0)
    for name in ("w1", "w2", "w3"):
        values = random.standard_normal((16, 16)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    model = ir.from_proto(proto)
    assert refresh_shapes(model)
    return model


def data(*names, **scalars):
    random = np.random.default_rng(1)
    arrays = [random.standard_normal((20, 16)).astype(np.float32) for _ in names]
    feeds = dict(zip(names, arrays, strict=True)) | scalars
    inputs = [TensorInfo(name, "float32", ("N", 16)) for name in names]
    inputs += [TensorInfo(name, "bool", ()) for name in scalars]
    return open_feeds([feeds], inputs)


def context(worker, feeds):
    return RunContext(worker, feeds, "cpu", 0, save)


def both(monkeypatch, nbytes, ask):
    """Answers of the whole model, and of the model in stages."""
    whole = ask()
    monkeypatch.setenv("ONNX_OPT_STAGE_BYTES", str(nbytes))
    return whole, ask()


def assert_same(staged, whole):
    assert sorted(staged) == sorted(whole)
    for name, found in whole.items():
        assert staged[name] == pytest.approx(found, rel=1e-6), name


# no cut


def test_a_model_that_fits_is_one_stage():
    (stage,) = stages_of(model_of(RESIDUAL), [("h1",), ("t",)], None)
    assert stage.groups == (("h1",), ("t",))
    assert stage.carried == ()


def test_weights_below_the_limit_are_not_cut():
    assert len(stages_of(model_of(RESIDUAL), [("h4",)], 3 * WEIGHT)) == 1


def test_nothing_is_cut_where_a_type_is_not_known():
    model = model_of(RESIDUAL)
    for node in model.graph:
        for value in node.outputs:
            value.type = None
    assert len(stages_of(model, [("h4",)], WEIGHT)) == 1


# cuts


def test_cuts_where_fewest_tensors_cross():
    stages = stages_of(model_of(RESIDUAL), [("h4",)], WEIGHT)
    made = [[node.outputs[0].name for node in stage.model.graph] for stage in stages]
    # in front of h2 only s and the other input cross, and one more in front of t
    assert made == [["h1", "r1", "s"], ["h2", "r2"], ["h3", "t"], ["h4"]]
    assert [stage.carried for stage in stages] == [
        ("other", "s"),
        ("other", "s", "r2"),
        ("other", "t"),
        (),
    ]


def test_a_stage_has_its_own_weights_alone():
    stages = stages_of(model_of(RESIDUAL), [("h4",)], WEIGHT)
    held = [sorted(stage.model.graph.initializers) for stage in stages]
    assert held == [["w1"], ["w2"], ["w1"], ["w3"]]


def test_weights_are_shared_not_copied():
    model = model_of(RESIDUAL)
    first, *_ = stages_of(model, [("h4",)], WEIGHT)
    own = first.model.graph.initializers["w1"].const_value
    assert own is model.graph.initializers["w1"].const_value


def test_stages_end_with_the_last_tensor_that_is_looked_at():
    stages = stages_of(model_of(RESIDUAL), [("h2",)], WEIGHT)
    assert len(stages) == 2
    assert "h4" not in {node.outputs[0].name for node in stages[-1].model.graph}


def test_tensors_of_a_group_meet_in_one_stage():
    stages = stages_of(model_of(RESIDUAL), [("x", "h4")], WEIGHT)
    assert [stage.groups for stage in stages] == [(), (), (), (("x", "h4"),)]
    assert "x" in {value.name for value in stages[-1].model.graph.inputs}


# the same statistics


@pytest.mark.parametrize("nbytes", [1000, 2100])
@pytest.mark.parametrize("method", ["minmax", "entropy"])
def test_ranges_are_those_of_the_whole(worker, monkeypatch, nbytes, method):
    names = ["x", "h1", "r1", "s", "h2", "r2", "h3", "t", "h4", "absent"]

    def ask():
        run = context(worker, data("x", "other"))
        return run.activation_ranges(model_of(RESIDUAL), names, method, 99.9, 20)

    whole, staged = both(monkeypatch, nbytes, ask)
    assert sorted(whole) == sorted(set(names) - {"absent"})
    assert_same(staged, whole)


def test_a_relu_that_another_stage_computes_follows_from_its_source(
    worker, monkeypatch
):
    text = RESIDUAL.replace("r1 = Relu (h1)", "r0 = MatMul (h1, w3) r1 = Relu (h1)")

    def ask():
        run = context(worker, data("x", "other"))
        return run.activation_ranges(model_of(text), ["h1", "r1"], "minmax", 100, 20)

    whole, staged = both(monkeypatch, 1000, ask)
    assert_same(staged, whole)
    assert staged["r1"][0] == 0.0


@pytest.mark.parametrize("kind", ["absmax", "mean", "profile", "gram"])
def test_moments_are_those_of_the_whole(worker, monkeypatch, kind):
    def ask():
        requests = {name: MomentRequest(name, kind) for name in ("x", "s", "r2", "t")}
        run = context(worker, data("x", "other"))
        return run.collect(model_of(RESIDUAL), requests, 20)

    whole, staged = both(monkeypatch, 1000, ask)
    assert sorted(staged) == ["r2", "s", "t", "x"]
    for name, found in whole.items():
        np.testing.assert_allclose(staged[name], found, rtol=1e-6, atol=1e-6)


def test_a_regression_onto_a_tensor_of_a_later_stage(worker, monkeypatch):
    def ask():
        request = MomentRequest("x", "regression", target="h4")
        run = context(worker, data("x", "other"))
        return run.collect(model_of(RESIDUAL), {"fit": request}, 20)

    whole, staged = both(monkeypatch, 1000, ask)
    assert whole["fit"].any()
    np.testing.assert_allclose(staged["fit"], whole["fit"], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("flag", [False, True])
def test_what_branches_read_from_outside_is_carried(worker, monkeypatch, flag):
    def ask():
        run = context(worker, data("x", flag=np.array(flag)))
        return run.activation_ranges(
            model_of(BRANCH), ["h1", "h2", "z", "y"], "minmax", 100, 20
        )

    whole, staged = both(monkeypatch, 1000, ask)
    assert sorted(whole) == ["h1", "h2", "y", "z"]
    assert_same(staged, whole)


# in parts although memory holds the whole


@pytest.mark.parametrize(("most", "sessions"), [(1 << 30, 4), (100, 2)])
def test_a_large_model_runs_in_parts_unless_they_carry_too_much(
    worker, monkeypatch, most, sessions
):
    opened = []

    def recorded(*arguments, **options):
        opened.append(arguments)
        return open_session(*arguments, **options)

    names = ["h1", "s", "h2", "t", "h4"]

    def ask():
        run = context(worker, data("x", "other"))
        return run.activation_ranges(model_of(RESIDUAL), names, "minmax", 99.9, 20)

    whole = ask()
    monkeypatch.setattr(stages_module, "LARGE", 3 * WEIGHT)
    monkeypatch.setattr(stages_module, "PARTS", 3)
    monkeypatch.setattr(context_module, "CARRIED", most)
    monkeypatch.setattr(context_module, "open_session", recorded)
    assert_same(ask(), whole)
    # of the parts the first alone was run where it makes more than may wait
    assert len(opened) == sessions


def test_parts_are_of_large_models():
    model = model_of(RESIDUAL)
    assert part_bytes(model) is None


# part by part


@pytest.mark.parametrize(("most", "parts"), [(10**6, 1), (3 * WEIGHT, 4), (1, 6)])
def test_moments_of_parts_are_those_of_the_whole(worker, most, parts):
    """Each part is given when it is known, of the model as it was before the first."""
    model = model_of(RESIDUAL)
    requests = {name: MomentRequest(name, "gram") for name in ("x", "s", "r2", "t")}
    run = context(worker, data("x", "other"))
    whole = run.collect(model, requests, 20)
    sizes = dict.fromkeys(requests, 17 * 17 * 8)
    given = []
    for found in run.collect_in_parts(model, requests, sizes, most, 20):
        for value in model.graph.initializers.values():
            value.const_value = ir.Tensor(np.zeros((16, 16), np.float32))
        given.append(found)
    assert len(given) == parts
    together = {key: moment for found in given for key, moment in found.items()}
    assert len(together) == sum(map(len, given)) == len(whole)
    for name, found in whole.items():
        np.testing.assert_allclose(together[name], found, rtol=1e-6, atol=1e-6)


def test_what_is_kept_counts_as_weights_do():
    model = model_of(RESIDUAL)
    groups = [("s",), ("h4",)]
    kept = {("s",): WEIGHT, ("h4",): WEIGHT}
    assert len(stages_of(model, groups, 4 * WEIGHT)) == 1
    assert len(stages_of(model, groups, 4 * WEIGHT, kept)) == 2


# settings and storage


def test_it_is_for_weights_above_a_share_of_memory(monkeypatch):
    model = model_of(RESIDUAL)
    monkeypatch.setattr(stages_module, "available_memory", lambda: 3 * WEIGHT)
    assert stage_bytes(model) == int(0.2 * 3 * WEIGHT)
    monkeypatch.setattr(stages_module, "available_memory", lambda: 30 * WEIGHT)
    assert stage_bytes(model) is None
    monkeypatch.setenv("ONNX_OPT_STAGE_BYTES", "2500000")
    assert stage_bytes(model) == 2_500_000


def test_stored_batches_come_back_once(tmp_path):
    store = BatchStore(tmp_path / "store")
    arrays = [np.arange(3, dtype=np.float16), np.array(["text"], object)]
    for array in arrays:
        store.add(StoredBatch({"a": array}, 3))
    for batch, array in zip(store, arrays, strict=True):
        assert batch.samples == 3
        assert batch.tensors["a"].dtype == array.dtype
        assert (batch.tensors["a"] == array).all()
    assert list((tmp_path / "store").iterdir()) == []
