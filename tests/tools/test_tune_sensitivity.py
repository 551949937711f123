"""Losses of forms of weights at the outputs: estimates beside measured figures, sums of shards."""

import json
import sys

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.passes._core.output_errors import OutputErrors
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune import sensitivity as sensitivity_module
from onnx_opt.tools._tune.estimate import errors_of_forms
from onnx_opt.tools._tune.lab import open_lab
from onnx_opt.tools._tune.menu import MADE_FORMS
from onnx_opt.tools._tune.remembered import KeptErrors, cache_in
from onnx_opt.tools._tune.sensitivity import check_method, sensitivities
from sample_models import model_from
from scipy.stats import spearmanr

LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
layers (float[batch, 3, 8, 8] x) => (float[batch, 10] y, float[batch, 64] z)
<float[8, 3, 3, 3] w1, float[8] b1, float[8, 1, 3, 3] w2, float[512, 64] w3, float[64, 32] w4,
 float[32, 10] w5, int64[2] flat = {0, -1}>
{
    h1 = Conv <pads = [1, 1, 1, 1]> (x, w1, b1)
    r1 = Relu (h1)
    h2 = Conv <pads = [1, 1, 1, 1], group = 8> (r1, w2)
    s2 = Add (h2, r1)
    f2 = Reshape (s2, flat)
    h3 = Gemm (f2, w3)
    r3 = Tanh (h3)
    h4 = MatMul (r3, w4)
    r4 = Relu (h4)
    h5 = MatMul (r4, w5)
    y = Softmax (h5)
    z = Neg (r3)
}
"""

BEHIND_SIGN = """
<ir_version: 10, opset_import: ["" : 21]>
behind_sign (float[batch, 64] x) => (float[batch, 16] y)
<float[64, 32] w1, float[64, 32] w2, float[32, 16] w3>
{
    h1 = MatMul (x, w1)
    s1 = Sign (h1)
    h2 = MatMul (x, w2)
    a2 = Add (s1, h2)
    y = MatMul (a2, w3)
}
"""


def lab_of(folder, text, rows=16, ids=0):
    """Settings of a lab on a model, and on random data for it: floats, or so many ids."""
    folder.mkdir(exist_ok=True)
    proto = model_from(text)
    for tensor in proto.graph.initializer:
        values = onnx.numpy_helper.to_array(tensor)
        if values.dtype == np.float32:
            # so that signals neither vanish nor saturate
            scale = np.float32(np.sqrt(max(values.shape) / values.size))
            values = values * scale
            tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    path = folder / "model.onnx"
    onnx.save(proto, path)
    dims = proto.graph.input[0].type.tensor_type.shape.dim
    shape = [rows, *(dim.dim_value for dim in dims[1:])]
    data = folder / "data.npz"
    random = np.random.default_rng(3)
    if ids:
        np.savez(data, ids=random.integers(0, ids, shape))
    else:
        np.savez(data, x=random.standard_normal(shape).astype(np.float32))
    pipeline = parse("simplify")
    return RunSettings(model=path, pipeline=pipeline, out=None, data=str(data), seed=0)


@pytest.fixture(scope="module")
def lab(tmp_path_factory):
    with open_lab(lab_of(tmp_path_factory.mktemp("layers") / "lab", LAYERS)) as lab:
        yield lab


@pytest.fixture(scope="module")
def forms(lab):
    return {kind.form: lab.made(kind.text) for kind in MADE_FORMS[::2]}


@pytest.fixture(scope="module")
def estimated(lab, forms):
    return errors_of_forms(lab, forms, 16)


def test_estimates_rank_as_measured_losses_do(lab, forms, estimated):
    pytest.importorskip("torch")
    measured = sensitivities(lab, forms, "measured")
    shares = estimated.shares()
    assert measured.losses.keys() == shares.keys()
    for form in forms:
        changes = [change for change in shares if change[1] == form]
        assert len(changes) == 5
        pairs = np.array([(measured.losses[each], shares[each]) for each in changes])
        assert spearmanr(*pairs.T).statistic >= 0.9
    ratios = [shares[change] / measured.losses[change] for change in shares]
    # of the same unit, too
    assert 0.8 < np.median(ratios) < 1.25


def test_runs_and_draws_are_counted(estimated):
    assert estimated.runs == 16
    assert estimated.outputs == ("y", "z")
    # four draws a run, and two outputs that take turns
    assert estimated.draws.tolist() == [32, 32]


def test_signs_depend_on_the_data_alone(lab, forms, estimated):
    again = errors_of_forms(lab, forms, 16)
    assert again.as_dict() == estimated.as_dict()


def test_shards_add_up_to_the_whole(lab, forms):
    from onnx_opt.frontends.output_errors import estimated_errors
    from onnx_opt.tools._tune import estimate

    ((reference, layers),) = estimate._by_reference({"int8:8": forms["int8:8"]})
    feeds = list(estimate._runs(lab, 16))
    whole = estimated_errors(reference, layers, feeds, seed=0)
    first = estimated_errors(reference, layers, feeds[:7], seed=0)
    second = estimated_errors(reference, layers, feeds[7:], seed=0)
    merged = first.merged(second)
    assert (merged.runs, merged.draws.tolist()) == (whole.runs, whole.draws.tolist())
    np.testing.assert_allclose(merged.squares, whole.squares, rtol=1e-9)
    np.testing.assert_allclose(merged.powers, whole.powers, rtol=1e-9)


def sums(squares, draws, powers, runs, changes=(("w", "int8:8"), ("v", "int8:8"))):
    return OutputErrors(
        outputs=("y", "z"),
        changes=changes,
        squares=np.array(squares, np.float64),
        draws=np.array(draws, np.float64),
        powers=np.array(powers, np.float64),
        runs=runs,
    )


FIRST = sums([[2.0, 4.0], [0.0, 1.0]], [2, 1], [20.0, 2.0], 2)
SECOND = sums([[1.0, 2.0], [3.0, 0.0]], [1, 2], [10.0, 4.0], 1)


def test_merged_sums_are_those_of_all_data():
    merged = FIRST.merged(SECOND)
    assert merged.squares.tolist() == [[3.0, 6.0], [3.0, 1.0]]
    # errors of y: 3/3 and 6/3 beside 30/3; of z: 3/3 and 1/3 beside 6/3
    shares = merged.shares()
    assert shares["w", "int8:8"] == pytest.approx((1 / 10 + 1 / 2) / 2)
    assert shares["v", "int8:8"] == pytest.approx((2 / 10 + 1 / 6) / 2)


def test_merging_goes_in_any_order():
    assert FIRST.merged(SECOND).as_dict() == SECOND.merged(FIRST).as_dict()


def test_sums_of_other_changes_do_not_merge():
    other = sums([[1.0], [1.0]], [1, 1], [1.0, 1.0], 1, changes=(("u", "int8:8"),))
    with pytest.raises(UsageError, match="do not add up"):
        FIRST.merged(other)
    assert FIRST.beside(other).changes[2] == ("u", "int8:8")
    assert FIRST.beside(other).squares.shape == (2, 3)


def test_outputs_that_are_zero_or_unseen_do_not_count():
    errors = sums([[2.0, 4.0], [1.0, 1.0]], [2, 1], [20.0, 0.0], 2)
    assert errors.shares()["w", "int8:8"] == pytest.approx(0.1)
    unseen = sums([[2.0, 4.0], [0.0, 0.0]], [2, 0], [20.0, 5.0], 2)
    assert unseen.shares()["v", "int8:8"] == pytest.approx(0.2)
    assert np.isnan(OutputErrors.none(["y"], [("w", "f")]).shares()["w", "f"])


def test_sums_survive_json():
    facts = json.loads(json.dumps(FIRST.as_dict()))
    again = OutputErrors.from_dict(facts)
    assert again.as_dict() == FIRST.as_dict()
    assert again.shares() == FIRST.shares()


def test_what_no_gradient_reaches_is_measured(tmp_path):
    with open_lab(lab_of(tmp_path / "sign", BEHIND_SIGN)) as lab:
        forms = {kind.form: lab.made(kind.text) for kind in MADE_FORMS[:2]}
        measured = sensitivities(lab, forms, "measured")
        found = sensitivities(lab, forms, "estimated")
    assert found.method == "estimated"
    assert {weight for weight, _ in found.measured} == {"w1"}
    for form in forms:
        assert found.losses["w1", form] == measured.losses["w1", form] > 0


@pytest.mark.parametrize(("least", "method"), [(1, "measured"), (257, "estimated")])
def test_auto_estimates_where_measuring_takes_too_few_samples(
    lab, forms, least, method, monkeypatch
):
    monkeypatch.setattr(sensitivity_module, "LEAST_SAMPLES", least)
    assert sensitivities(lab, forms, "auto").as_dict() == {
        "method": method,
        "samples": 256,
        "measured": [],
    }


def without_torch(monkeypatch):
    for name in list(sys.modules):
        if name.startswith("onnx_opt.frontends.trainable") or (
            name == "onnx_opt.frontends.output_errors"
        ):
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)


def test_without_torch_auto_measures_and_says_so(lab, forms, monkeypatch):
    monkeypatch.setattr(sensitivity_module, "LEAST_SAMPLES", 257)
    without_torch(monkeypatch)
    few = {"int8:8": forms["int8:8"]}
    found = sensitivities(lab, few, "auto")
    assert found.method == "measured"
    assert all(loss > 0 for loss in found.losses.values())
    assert any("torch: not installed" in words for words in lab.context.warnings)
    with pytest.raises(UsageError, match="not installed"):
        sensitivities(lab, few, "estimated")


def test_a_graph_that_gradients_do_not_leave_is_refused():
    from onnx_opt.frontends.output_errors import estimated_errors

    model = ir.from_proto(model_from(LAYERS.replace("Softmax (h5)", "Ceil (h5)")))
    with pytest.raises(RefusedError, match="Ceil y: gradients end there"):
        estimated_errors(model, [], [], seed=0)


def test_a_run_that_torch_cannot_make_is_refused():
    from onnx_opt.frontends.output_errors import estimated_errors

    model = ir.from_proto(model_from(BEHIND_SIGN))
    narrow = {"x": np.zeros((1, 63), np.float32)}
    with pytest.raises(RefusedError, match="torch cannot run it"):
        estimated_errors(model, [], [narrow], seed=0)


def test_errors_are_kept_and_found_again(tmp_path):
    keep = KeptErrors(cache_in(tmp_path), "content")
    made = []

    def make():
        made.append(1)
        return FIRST

    assert keep("estimated-8", make).as_dict() == FIRST.as_dict()
    assert keep("estimated-8", make).as_dict() == FIRST.as_dict()
    assert len(made) == 1
    keep("estimated-9", make)
    KeptErrors(cache_in(tmp_path), "other content")("estimated-8", make)
    assert len(made) == 3


def test_a_search_says_how_losses_were_found(tmp_path, monkeypatch):
    settings = lab_of(tmp_path / "search", BEHIND_SIGN, rows=64)
    asked = {"data": settings.data, "min_sqnr": 5.0, "minutes": 0.0}
    asked["resume"] = tmp_path / "state"
    first = onnx_opt.tune(settings.model, **asked, sensitivity="estimated")
    facts = first.as_dict()["tune"]["sensitivity"]
    assert (facts["method"], facts["samples"]) == ("estimated", 256)
    assert {name.partition("=")[0] for name in facts["measured"]} == {"w1"}
    kept = {file.name.partition("-")[0] for file in (tmp_path / "state").iterdir()}
    assert {"errors", "menu"} <= kept
    # another search for another goal need not find them again
    calls = []
    monkeypatch.setattr(sensitivity_module, "errors_of_forms", calls.append)
    again = {**asked, "min_sqnr": 6.0, "sensitivity": "estimated"}
    second = onnx_opt.tune(settings.model, **again)
    assert second.search["sensitivity"] == facts
    assert not calls


def test_another_word_is_no_method():
    with pytest.raises(UsageError, match="'fisher' is no method"):
        check_method("fisher")


WORDS = """
<ir_version: 10, opset_import: ["" : 21]>
words (int64[batch, 12] ids) => (float[batch, 32] y)
<float[200, 64] table, float[64, 64] w1, float[64, 32] w2, int64[1] axes = {1}>
{
    rows = Gather (table, ids)
    h1 = MatMul (rows, w1)
    r1 = Tanh (h1)
    mean = ReduceMean <keepdims = 0> (r1, axes)
    y = MatMul (mean, w2)
}
"""


def test_tables_are_estimated_too(tmp_path):
    settings = lab_of(tmp_path / "words", WORDS, rows=64, ids=200)
    text = "quant(palette, bits=3, ends=same, measure=false)"
    with open_lab(settings) as lab:
        forms = {"palette:3": lab.made(text)}
        measured = sensitivities(lab, forms, "measured").losses
        found = sensitivities(lab, forms, "estimated")
    assert found.measured == ()
    weights = [(weight, "palette:3") for weight in ("table", "w1", "w2")]
    assert sorted(measured) == sorted(found.losses) == weights
    for change in weights:
        assert found.losses[change] == pytest.approx(measured[change], rel=0.4)
