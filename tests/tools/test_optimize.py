"""The driver: checks, rollback, budgets, provenance, atomic writing."""

import gc
import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
import onnx.parser
import onnx.reference
import onnx_ir as ir
import pytest
from onnx_opt import CheckError, OnnxOptError, RefusedError, UsageError, optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._base import LatencyRatio, Pass, PassOutcome
from onnx_opt.passes._core.pipeline import as_pipeline, parse
from onnx_opt.passes.unpack import without_packing
from onnx_opt.runtime.bench import PairedLatency
from onnx_opt.tools._run import measure
from onnx_opt.tools._run.drift import Reference
from onnx_opt.tools._run.provenance import provenance, sha256_of
from onnx_opt.tools.tables import result_tables
from sample_models import CNN, model_from

RANDOM = """
<ir_version: 10, opset_import: ["" : 21]>
random (float[2, 4] x) => (float[2, 4] y)
{
    noise = RandomNormalLike (x)
    y = Add (x, noise)
}
"""

CUSTOM = """
<ir_version: 10, opset_import: ["" : 21, "my.ops" : 1]>
custom (float[2, 4] x) => (float[2, 4] y)
{
    y = my.ops.Mystery (x)
}
"""


def file_of(tmp_path, text):
    path = tmp_path / "model.onnx"
    onnx.save(onnx.parser.parse_model(text), path)
    return path


class ScaleWeights(ir.passes.InPlacePass):
    """Claims nothing, and multiplies every initializer: as a foreign pass it is believed exact,
    wrongly.
    """

    def __init__(self, factor: float = 1.5) -> None:
        super().__init__()
        self.factor = factor

    def call(self, model):
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(
                value.const_value.numpy() * np.float32(self.factor), name=value.name
            )
        return ir.passes.PassResult(model, True)


class RenameInput(ir.passes.InPlacePass):
    """Changes the interface."""

    def call(self, model):
        model.graph.inputs[0].name = "renamed"
        return ir.passes.PassResult(model, True)


class Fail(ir.passes.InPlacePass):
    """Fails like a bug."""

    def call(self, model):
        raise KeyError("surprise")


class Interrupted(ir.passes.InPlacePass):
    """The user presses Ctrl-C."""

    def call(self, model):
        raise KeyboardInterrupt


@dataclass(frozen=True)
class Poison(Pass):
    """A lossy pass that writes infinities."""

    name: ClassVar[str] = "poison"
    effect: ClassVar[str] = "lossy"

    def run(self, model, context):
        ScaleWeights(float("inf"))(model)
        return PassOutcome(1)


@dataclass(frozen=True)
class Collapse(Pass):
    """A lossy pass with a bug."""

    name: ClassVar[str] = "collapse"
    effect: ClassVar[str] = "lossy"

    def run(self, model, context):
        raise ZeroDivisionError("division by zero")


def folder(path):
    return {p.name: p.read_bytes() for p in path.iterdir()}


def test_a_run_that_changes_nothing_says_so(mlp):
    result = optimize(mlp, "deduplicate-initializers", bench=False)
    assert [step.changed for step in result.passes] == [0]
    assert any(w.startswith("nothing changed: ") for w in result.warnings)
    assert result.output.params == result.input.params == 192


def test_an_ir_model_is_never_modified(mlp):
    model = ir.load(mlp)
    before = ir.to_proto(model).SerializeToString()
    result = optimize(model, "prune(sparsity=0.5)", bench=False)
    assert ir.to_proto(model).SerializeToString() == before
    assert result.output_path is None
    assert result.output.nonzero == 96
    assert result.model is not model


def test_the_result_is_written_with_its_provenance(mlp, tmp_path):
    out = tmp_path / "small.onnx"
    text = "prune(sparsity=0.25), prune(sparsity=0.5, scope=model)"
    result = optimize(mlp, text, out=out, seed=7, bench=False)
    record = provenance(load(out))
    assert parse(record["passes"]) == parse(text)
    assert record["input_sha256"] == sha256_of(mlp) == result.about["sha256"]
    assert (record["seed"], record["target"]) == ("7", "cpu")
    assert result.files == [out]
    assert result.output.bytes == out.stat().st_size
    assert onnx.load(out).producer_name == "by hand"


def test_a_second_run_replaces_the_record(mlp, tmp_path):
    first, second = tmp_path / "1.onnx", tmp_path / "2.onnx"
    optimize(mlp, "prune", out=first, bench=False)
    optimize(first, "prune(sparsity=0.75)", out=second, bench=False)
    assert provenance(load(second))["passes"] == "prune(sparsity=0.75)"
    assert provenance(load(second))["input_sha256"] == sha256_of(first)


def test_the_json_form_has_exactly_the_designs_keys(mlp):
    plain = json.loads(optimize(mlp, "prune", bench=False).to_json())
    figures = {"bytes", "params", "nonzero", "nodes", "macs", "latency_ms", "bits"}
    assert set(plain) == {
        "schema",
        "versions",
        "command",
        "seconds",
        "cpu_seconds",
        "steps",
        "budgets",
        "largest",
        "model",
        "input",
        "output",
        "passes",
        "metric",
        "latency",
        "drift",
        "drift_on",
        "requires",
        "hardware",
        "warnings",
        "output_path",
    }
    assert set(plain["hardware"]) == {"cpu", "integer", "saturates", "label"}
    assert set(plain["input"]) == set(plain["output"]) == figures
    assert [set(p) for p in plain["passes"]] == [
        {"pass", "text", "seconds", "changed", "stats", "declined", "drift"}
    ]
    assert set(plain["passes"][0]["drift"]) == {"sqnr_db", "cosine", "max_abs"}
    assert plain["input"]["latency_ms"] is None
    assert plain["latency"] is None
    assert plain["metric"] is None


def test_infinite_sqnr_is_null_in_json(mlp):
    result = optimize(mlp, "deduplicate-initializers", bench=False)
    assert result.passes[0].drift["sqnr_db"] == float("inf")
    (step,) = result.as_dict()["passes"]
    assert step["drift"] == {"sqnr_db": None, "cosine": 1.0, "max_abs": 0.0}
    # not the same as unknown
    assert step["stats"]["drift"] == "exact"


def test_an_exact_pass_that_is_not_exact_is_rolled_back(mlp, tmp_path):
    out = tmp_path / "out.onnx"
    result = optimize(mlp, [ScaleWeights(), "prune"], out=out, bench=False)
    wrong, prune = result.passes
    assert (wrong.changed, wrong.drift) == (0, None)
    assert [
        w
        for w in result.warnings
        if "rolled back: output 'y' is off by" in w and "ScaleWeights" in w
    ]
    assert prune.changed == 2
    assert provenance(load(out))["passes"] == "prune"
    kept = load(out).graph.initializers["w1"].const_value.numpy()
    original = load(mlp).graph.initializers["w1"].const_value.numpy()
    np.testing.assert_array_equal(kept[kept != 0], original[kept != 0])


def test_strict_makes_it_an_error_and_writes_nothing(mlp, tmp_path):
    before = folder(tmp_path)
    with pytest.raises(CheckError, match="ScaleWeights: output 'y' is off by"):
        optimize(
            mlp, [ScaleWeights()], out=tmp_path / "out.onnx", strict=True, bench=False
        )
    assert folder(tmp_path) == before


def test_a_change_of_the_interface_is_caught(mlp):
    result = optimize(mlp, [RenameInput()], bench=False, verify="never")
    assert [
        w
        for w in result.warnings
        if "input 'x: FLOAT [batch, 8]' became 'renamed: FLOAT [batch, 8]'" in w
    ]
    assert result.model.graph.inputs[0].name == "x"


def test_a_failing_exact_pass_is_rolled_back_and_named(mlp):
    result = optimize(mlp, [Fail(), "prune"], bench=False)
    assert [w for w in result.warnings if "Fail: rolled back" in w and "surprise" in w]
    assert result.passes[1].changed == 2


def test_a_failing_lossy_pass_is_one_error(mlp):
    with pytest.raises(
        OnnxOptError, match="collapse: failed: ZeroDivisionError: division by zero"
    ) as caught:
        optimize(mlp, [Collapse()], bench=False)
    assert caught.value.exit_code == 1


def test_values_that_stop_being_finite_are_an_error(mlp, tmp_path):
    before = folder(tmp_path)
    with pytest.raises(
        CheckError, match=r"poison: .* output values are no longer finite"
    ):
        optimize(mlp, [Poison()], out=tmp_path / "out.onnx", bench=False)
    assert folder(tmp_path) == before


def test_an_interrupt_leaves_nothing_behind(mlp, tmp_path):
    before = folder(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        optimize(mlp, [Interrupted()], out=tmp_path / "out.onnx", bench=False)
    assert folder(tmp_path) == before


def test_a_budget_that_is_not_met_keeps_the_former_file(mlp, tmp_path):
    out = tmp_path / "out.onnx"
    optimize(mlp, "prune(sparsity=0.1)", out=out, bench=False)
    before = folder(tmp_path)
    with pytest.raises(
        CheckError, match=r"--min-sqnr: the result has .* dB, below the 60 dB asked for"
    ):
        optimize(mlp, "prune(sparsity=0.9)", out=out, min_sqnr=60, bench=False)
    assert folder(tmp_path) == before


def test_the_metric_is_measured_and_its_drop_budgeted(mlp, tmp_path):
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    labels = (
        onnx.reference.ReferenceEvaluator(onnx.load(mlp))
        .run(None, {"x": x})[0]
        .argmax(1)
    )
    data = {"x": x, "labels": labels}
    result = optimize(mlp, "prune(sparsity=0.9)", data=data, metric="top1", bench=False)
    assert result.metric["name"] == "top1"
    assert result.metric["before"] == 1.0
    assert result.metric["after"] < 0.9
    with pytest.raises(CheckError, match="--max-drop: top1 went from 1 to"):
        optimize(
            mlp,
            "prune(sparsity=0.9)",
            data=data,
            metric="top1",
            max_drop=0.01,
            bench=False,
        )


def test_latency_is_measured_unless_told_not_to(mlp):
    result = optimize(mlp, "prune")
    assert result.input.latency_ms > 0
    assert result.output.latency_ms > 0
    assert result.latency.low <= result.latency.median <= result.latency.high


def test_the_account_says_how_many_samples_a_timed_run_holds(mlp):
    data = [{"x": np.ones((count, 8), np.float32)} for count in (12, 3)]
    result = optimize(mlp, "prune", data=data)
    plain = json.loads(result.to_json())
    assert plain["latency_samples"] == 12
    label = result.hardware.label
    assert f"on {label}; latency: 12 samples a run" in result_tables(result)


@pytest.mark.parametrize(
    ("batch", "warned"),
    [
        # the model takes no other number of samples
        (8, False),
        ("n", True),
    ],
)
def test_a_result_that_is_slower_at_one_sample_is_told(
    tmp_path, monkeypatch, batch, warned
):
    model = onnx.parser.parse_model(
        f"""
        <ir_version: 10, opset_import: ["" : 21]>
        small (float[{batch}, 2] x) => (float[{batch}, 2] y)
        <float[2, 2] w = {{1, 2, 3, 4}}> {{ y = MatMul (x, w) }}
        """
    )
    path = tmp_path / "small.onnx"
    onnx.save(model, path)
    timed = []

    def timing(one, other, feeds, *rule):
        count = len(feeds[0]["x"])
        timed.append(count)
        slow = LatencyRatio(1.2, 1.25, 1.3)
        fast = LatencyRatio(0.5, 0.5, 0.5)
        return PairedLatency(4.0, 5.0, slow if count == 1 else fast)

    monkeypatch.setattr(measure, "paired_latency", timing)
    data = {"x": np.ones((8, 2), np.float32)}
    result = optimize(path, "prune(sparsity=0.5)", data=data)
    told = (
        "latency: at one sample a run, the result is slower: 5 ms, 4 ms before "
        "(ratio 1.25 (1.20 to 1.30))"
    )
    assert [w for w in result.warnings if w.startswith("latency")] == [told] * warned
    assert timed == [8, 1][: 1 + warned]
    # the figures are those of the batch
    assert result.latency.median == 0.5


@pytest.mark.parametrize(
    ("ratio", "warning"),
    [
        ((0.9, 0.95, 1.03), None),
        (
            (1.2, 1.25, 1.3),
            "latency: the result is slower: 5 ms, 4 ms before (ratio 1.25 (1.20 to 1.30))",
        ),
        (
            (0.8, 1.25, 9.0),
            "latency: undecided whether the result is slower: 5 ms, 4 ms before (ratio 1.25 "
            "(0.80 to 9.00)); this machine is too busy, `onnx-opt bench` with more --seconds "
            "may decide",
        ),
    ],
)
def test_slower_or_undecided_is_said(mlp, monkeypatch, ratio, warning):
    found = PairedLatency(4.0, 5.0, LatencyRatio(*ratio))
    monkeypatch.setattr(measure, "paired_latency", lambda *_: found)
    result = optimize(mlp, "prune")
    assert [w for w in result.warnings if w.startswith("latency")] == (
        [warning] if warning else []
    )
    plain = result.as_dict()
    assert (plain["input"]["latency_ms"], plain["output"]["latency_ms"]) == (4.0, 5.0)
    low, median, high = ratio
    verdict = found.ratio.verdict()
    expected = {"ratio": median, "low": low, "high": high, "verdict": verdict}
    assert plain["latency"] == expected


def test_dry_run_writes_nothing_and_tells_the_size(mlp, tmp_path):
    before = folder(tmp_path)
    result = optimize(
        mlp, "prune", out=tmp_path / "out.onnx", dry_run=True, bench=False
    )
    assert folder(tmp_path) == before
    assert result.output_path is None
    unseen = optimize(
        mlp,
        "prune",
        out=tmp_path / "out.onnx",
        dry_run=True,
        bench=False,
        verify="never",
    )
    assert unseen.output.bytes == pytest.approx(result.output.bytes, rel=0.1)


def test_a_random_model_is_checked_in_structure_only(tmp_path):
    path = file_of(tmp_path, RANDOM)
    result = optimize(path, "remove-unused", bench=False)
    assert [
        w
        for w in result.warnings
        if "checked in structure only: two runs of the original differ" in w
    ]
    assert result.passes[0].drift is None
    with pytest.raises(RefusedError, match="cannot be compared with the original"):
        optimize(path, "remove-unused", strict=True)


def test_a_model_that_onnxruntime_cannot_load_is_checked_in_structure_only(tmp_path):
    path = file_of(tmp_path, CUSTOM)
    out = tmp_path / "out.onnx"
    result = optimize(path, "remove-unused", out=out)
    assert [
        w
        for w in result.warnings
        if w.startswith("verify: checked in structure only: ")
    ]
    assert out.is_file()
    with pytest.raises(RefusedError, match="ONNX Runtime cannot load it"):
        optimize(path, "remove-unused", strict=True)
    with pytest.raises(CheckError, match="--min-sqnr: cannot be checked"):
        optimize(path, "remove-unused", min_sqnr=30)


def test_never_verifying_is_said_and_refused_with_budgets(mlp):
    assert [
        w
        for w in optimize(mlp, "prune", verify="never").warnings
        if w.startswith("verify: ")
    ]
    with pytest.raises(
        RefusedError, match="--min-sqnr: cannot be checked: the model is not run"
    ):
        optimize(mlp, "prune", verify="never", min_sqnr=30)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"metric": "top1"}, "--metric: 'top1' needs labelled data"),
        (
            {"max_drop": 0.1, "data": {"x": np.zeros((1, 8), np.float32)}},
            "--max-drop: needs a metric",
        ),
        ({"verify": "sometimes"}, "--verify: 'sometimes' is not one of"),
        ({"target": "gpu"}, "target: 'gpu' is not one of"),
        ({"passes": "prun"}, "did you mean 'prune'"),
    ],
)
def test_wrong_calls_are_usage_errors(mlp, arguments, message):
    with pytest.raises(UsageError, match=message):
        optimize(mlp, **{"passes": "prune", **arguments})


def test_a_pipeline_may_be_text_list_or_pipeline(mlp):
    steps = ["prune(sparsity=0.25)", parse("remove-unused").passes[0]]
    texts = {
        tuple(s.text for s in optimize(mlp, p, bench=False).passes)
        for p in (steps, as_pipeline(steps), "prune:sparsity=0.25,remove-unused")
    }
    assert texts == {("prune(sparsity=0.25)", "remove-unused")}


def test_external_weights_are_checked_in_the_written_pair(tmp_path):
    source, out = tmp_path / "m.onnx", tmp_path / "o.onnx"
    onnx.save(
        model_from(CNN),
        source,
        save_as_external_data=True,
        location="m.data",
        size_threshold=0,
    )
    result = optimize(source, "prune(sparsity=0.5)", out=out, bench=False)
    assert [path.name for path in result.files] == ["o.onnx.data", "o.onnx"]
    assert result.output.bytes == sum(path.stat().st_size for path in result.files)
    written = without_packing(load(out))
    assert (
        np.count_nonzero(written.graph.initializers["k2"].const_value.numpy()) == 1152
    )
    before = folder(tmp_path)
    with pytest.raises(CheckError, match="--min-sqnr"):
        optimize(source, "prune(sparsity=0.9)", out=out, min_sqnr=60, bench=False)
    assert folder(tmp_path) == before


def test_the_input_is_replaced_only_with_force(mlp):
    before = mlp.read_bytes()
    with pytest.raises(UsageError, match="is the input model itself"):
        optimize(mlp, "prune", out=mlp, bench=False)
    assert mlp.read_bytes() == before
    result = optimize(mlp, "prune(sparsity=0.5)", out=mlp, force=True, bench=False)
    assert mlp.read_bytes() != before
    assert (
        np.count_nonzero(result.model.graph.initializers["w1"].const_value.numpy())
        == 64
    )


@pytest.mark.parametrize("declared", [False, True])
def test_inferred_shapes_are_written_only_where_the_input_had_some(
    mlp, tmp_path, declared
):
    if declared:
        onnx.save(onnx.shape_inference.infer_shapes(onnx.load(mlp)), mlp)
    out = tmp_path / "out.onnx"
    optimize(mlp, "prune", out=out, bench=False)
    assert (
        "h" in [value.name for value in onnx.load(out).graph.value_info]
    ) == declared


def test_a_larger_result_is_said(tmp_path):
    text = CUSTOM.replace(', "my.ops" : 1', "")
    two = "h = Identity (x)\n    y = Relu (h)"
    path = file_of(tmp_path, text.replace("y = my.ops.Mystery (x)", two))
    result = optimize(path, "simplify", bench=False)
    # of a few bytes: the record of the run is longer than what went
    assert result.passes[0].changed
    assert [w for w in result.warnings if w.startswith("size: the result is larger: ")]


def test_a_pass_that_changes_nothing_runs_no_model(mlp, monkeypatch):
    opened = []
    real = Reference.opened

    def counted(self, path, *rest, **options):
        opened.append(path.name)
        return real(self, path, *rest, **options)

    monkeypatch.setattr(Reference, "opened", counted)
    once = optimize(mlp, "simplify", bench=False)
    of_one = len(opened)
    opened.clear()
    twice = optimize(mlp, "simplify, simplify", bench=False)
    assert len(opened) == of_one
    assert twice.passes[1].changed == 0
    assert twice.passes[1].drift is not None
    assert once.passes[0].drift == twice.passes[1].drift


@dataclass(frozen=True)
class Thresholds(Pass):
    """Tell how often garbage is searched for while a pass runs."""

    name: ClassVar[str] = "thresholds"
    effect: ClassVar[str] = "analysis"

    def run(self, model, context):
        return PassOutcome(stats={"first": gc.get_threshold()[0]})


@pytest.mark.parametrize("own", [(700, 10, 10), (0, 10, 10), (900_000, 10, 10)])
def test_the_search_for_garbage_is_the_callers_again(own, mlp):
    before = gc.get_threshold()
    gc.set_threshold(*own)
    try:
        result = optimize(mlp, [Thresholds()], verify="never", bench=False)
        assert gc.get_threshold() == own
    finally:
        gc.set_threshold(*before)
    # never, or more rarely still, is left alone
    meanwhile = 100_000 if own[0] == 700 else own[0]
    assert result.passes[0].stats["first"] == meanwhile
