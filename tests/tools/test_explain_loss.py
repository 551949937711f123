"""Losses layer by layer: figures equal to those of plain numpy, the layer known to be worst on top,
nothing unasked.
"""

import json
import shlex

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.tools._run.explain_loss import Loss, next_pipeline
from onnx_opt.tools.cli import main
from sample_models import CNN, model_from

RNG = np.random.default_rng(11)
KEYS = {"pass", "layer", "op", "sqnr_db", "weight_sqnr_db", "activation_sqnr_db"}

THREE = """
<ir_version: 10, opset_import: ["" : 21]>
three (float[N, 64] x) => (float[N, 64] y)
{ [first] a = MatMul (x, w1)  [second] b = MatMul (a, w2)  [third] y = MatMul (b, w3) }
"""
ONE = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[N, 64] x) => (float[N, 96] y)
{ [only] y = MatMul (x, w) }
"""
GEMM = """
<ir_version: 10, opset_import: ["" : 21]>
one (float[N, 64] x) => (float[N, 96] y)
{ [only] y = Gemm <transB = 1> (x, w, b) }
"""
CONVS = """
<ir_version: 10, opset_import: ["" : 21]>
convs (float[N, 3, 8, 8] x) => (float[N, 4, 8, 8] y)
{ [one] c = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)  r = Relu (c)  [two] d = Conv <pads = [1, 1,
    1, 1]> (r, k2)
  [three] e = Conv <pads = [1, 1, 1, 1]> (d, k3)  y = Softmax (e) }
"""


def normal(*shape):
    return RNG.normal(size=shape).astype(np.float32)


@pytest.fixture
def write(tmp_path):
    def write_model(text, **weights):
        proto = onnx.parser.parse_model(text)
        proto.graph.initializer.extend(
            onnx.numpy_helper.from_array(a, n) for n, a in weights.items()
        )
        onnx.save(proto, tmp_path / "model.onnx")
        return tmp_path / "model.onnx"

    return write_model


def decibels(y, z):
    return 10 * np.log10(
        (y.astype(np.float64) ** 2).sum() / ((y.astype(np.float64) - z) ** 2).sum()
    )


def losses(model, passes, data=None, **options):
    return optimize(
        model, passes, data=data, bench=False, explain_loss=True, **options
    ).loss


def test_without_the_option_there_is_no_such_key(write):
    result = optimize(write(ONE, w=normal(64, 96)), "prune", bench=False)
    assert result.loss is None
    assert "loss" not in result.as_dict()


def test_exact_passes_lose_nothing(write):
    assert losses(write(ONE, w=normal(64, 96)), "simplify") == []


def test_pruning_loses_by_weights_only_as_numpy_says(write):
    w, x = normal(64, 96), normal(16, 64)
    kept = np.where(np.abs(w) > np.median(np.abs(w)), w, 0)
    [loss] = losses(write(ONE, w=w), "prune(sparsity=0.5, fit=false)", {"x": x})
    assert loss.keys() == KEYS
    assert (loss["pass"], loss["layer"], loss["op"], loss["activation_sqnr_db"]) == (
        "prune",
        "only",
        "MatMul",
        None,
    )
    assert loss["weight_sqnr_db"] == pytest.approx(decibels(x @ w, x @ kept), abs=1e-3)
    assert loss["sqnr_db"] == pytest.approx(loss["weight_sqnr_db"], abs=1e-3)


def test_quantization_loses_what_numpy_says(write):
    w, x = normal(64, 96), normal(16, 64)
    passes = "quant(bits=7, calibration=minmax, measure=false, rounding=nearest, smooth=false)"
    [loss] = losses(write(ONE, w=w), passes, {"x": x})
    scale = np.abs(w).max(0) / np.float32(63)
    step = np.float32((x.max() - x.min()) / 255)
    rounded_x = (
        np.rint(x / step) * step
    )  # the zero point is an integer: rounding before or after it is the same
    assert loss["weight_sqnr_db"] == pytest.approx(
        decibels(x @ w, x @ (np.rint(w / scale) * scale)), abs=0.05
    )
    assert loss["activation_sqnr_db"] == pytest.approx(
        decibels(x @ w, rounded_x @ w), abs=0.2
    )
    both = -10 * np.log10(
        10 ** (-loss["weight_sqnr_db"] / 10) + 10 ** (-loss["activation_sqnr_db"] / 10)
    )
    assert loss["sqnr_db"] == pytest.approx(both, abs=0.5)


@pytest.mark.parametrize(
    ("text", "weights"),
    [
        (ONE, {"w": normal(64, 96)}),
        (GEMM, {"w": normal(96, 64), "b": normal(96)}),
    ],
)
def test_layers_quantized_at_run_time_are_explained_too(write, text, weights):
    [loss] = losses(
        write(text, **weights), "quant(dynamic, measure=false)", {"x": normal(16, 64)}
    )
    assert (loss["layer"], loss["op"]) == ("only", "MatMul" if text is ONE else "Gemm")
    assert all(
        35 < loss[key] < 60
        for key in ("sqnr_db", "weight_sqnr_db", "activation_sqnr_db")
    )


@pytest.mark.parametrize(
    ("passes", "low", "high"),
    [
        ("quant(blocked, measure=false)", 38, 60),
        ("quant(ternary, ends=same, measure=false)", 5, 12),
        ("quant(bits=4, ends=same, rounding=nearest, measure=false)", 15, 25),
    ],
)
def test_weights_stored_in_any_form_are_unpacked(write, passes, low, high):
    [loss] = losses(write(ONE, w=normal(64, 96)), passes, {"x": normal(16, 64)})
    assert low < loss["weight_sqnr_db"] < high


def test_the_layer_with_outliers_in_its_weights_is_the_worst(write):
    spoiled = normal(64, 64)
    spoiled[0] = (
        300  # in every output channel: the scale of the other 63 weights is coarse
    )
    model = write(THREE, w1=normal(64, 64), w2=spoiled, w3=normal(64, 64))
    x = normal(64, 64)
    found = losses(
        model,
        "quant(measure=false, samples=16, rounding=nearest, smooth=false)",
        {"x": x},
    )
    assert {loss["layer"] for loss in found} == {"first", "second", "third"}
    by_weight = sorted(found, key=lambda loss: loss["weight_sqnr_db"])
    assert by_weight[0]["layer"] == "second"


def test_the_layer_with_outliers_in_its_input_is_the_worst(write):
    k1 = normal(8, 3, 3, 3)
    # one channel of what `two` reads is a thousand times larger, and its weights there are zero
    k1[0] *= 1000
    k2 = normal(4, 8, 3, 3)
    k2[:, 0] = 0
    model = write(CONVS, k1=k1, b1=normal(8), k2=k2, k3=normal(4, 4, 3, 3))
    found = losses(
        model,
        "quant(measure=false, samples=16, calibration=minmax, exclude=[three])",
        {"x": normal(16, 3, 8, 8)},
        floor="none",
    )  # so few that none is held out: nothing leaves the range
    assert found[0]["layer"] == "two"
    assert found[0]["activation_sqnr_db"] == pytest.approx(
        0, abs=0.1
    )  # all is rounded to zero
    assert found[0]["weight_sqnr_db"] > 35
    float_layer = next(
        loss for loss in found if loss["layer"] == "three"
    )  # it reads what `two` wrote in 8 bits
    assert (float_layer["weight_sqnr_db"], float_layer["activation_sqnr_db"] > 30) == (
        None,
        True,
    )


def test_each_lossy_pass_answers_for_its_own_loss(write):
    found = losses(
        write(ONE, w=normal(64, 96)),
        "prune(sparsity=0.3, fit=false), quant(measure=false)",
        {"x": normal(16, 64)},
    )
    assert [(loss["pass"], loss["layer"]) for loss in found] == [
        ("prune", "only"),
        ("quant", "only"),
    ]
    assert (
        found[0]["weight_sqnr_db"] < 25 < found[1]["weight_sqnr_db"]
    )  # quant's is against the pruned weights


def test_a_model_that_is_not_run_cannot_be_explained(write):
    result = optimize(
        write(ONE, w=normal(64, 96)), "prune", verify="never", explain_loss=True
    )
    assert result.loss == []
    assert any(text.startswith("--explain-loss: ") for text in result.warnings)


def test_the_command_prints_the_table_and_what_to_try_next(write, tmp_path):
    model = write(THREE, w1=normal(64, 64), w2=normal(64, 64), w3=normal(64, 64))
    arguments = [
        str(model),
        "-p",
        "prune(sparsity=0.9)",
        "--dry-run",
        "--no-bench",
        "--explain-loss",
        "--floor=none",
    ]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 0, done.output
    [line] = [text for text in done.stderr.splitlines() if text.startswith("next: ")]
    words = shlex.split(line.removeprefix("next: "))
    assert words[:3] == ["onnx-opt", str(model), "--passes"]
    assert {"--dry-run", "--no-bench", "--explain-loss"} <= set(words)
    assert "loss by layer" in done.stderr
    again = CliRunner().invoke(main, [*words[1:], "--dry-run", "--no-bench", "--json"])
    assert len(json.loads(again.stdout)["loss"]) == 2


LOST = [
    {"pass": "quant", "layer": "conv[1]", "op": "Conv"},
    {"pass": "quant", "layer": "b", "op": "Conv"},
]


def test_the_next_pipeline_leaves_the_worst_layer_out_and_keeps_the_rest():
    following = next_pipeline(parse("simplify, quant(samples=16, exclude=[a])"), LOST)
    assert str(following) == 'simplify, quant(samples=16, exclude=[a, "conv[[]1]"])'
    assert next_pipeline(parse("simplify"), LOST) is None
    assert next_pipeline(parse("quant"), []) is None


@pytest.mark.parametrize(
    ("weight", "activation", "own"),
    [
        (None, None, float("inf")),
        (30.0, None, 30.0),
        (30.0, 30.0, 26.9897),
        (float("inf"), 20.0, 20.0),
    ],
)
def test_noises_add_up(weight, activation, own):
    assert Loss("a", "Conv", 10.0, weight, activation).own_db == pytest.approx(
        own, abs=1e-4
    )


def test_layers_that_lost_channels_are_left_out(tmp_path):
    """A part of a layer cannot stand in for the whole; layers of the same shape are told."""
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    data = {"x": RNG.normal(size=(32, 3, 8, 8)).astype(np.float32)}
    options = {"verify": "always", "dry_run": True, "force": True}
    pruned = losses(path, "prune-channels(ratio=0.5)", data, **options)
    assert pruned == []
    both = "prune-channels(ratio=0.5), prune(sparsity=0.5)"
    found = losses(path, both, data, **options)
    assert {row["pass"] for row in found} == {"prune"}
    assert len(found) == 3
