"""Channel pruning as a user meets it: files, data, the next pass, and what is said where it goes
wrong.
"""

import json
import sys
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.tools.cli import main
from sample_models import MLP, model_from

ROOT = Path(__file__).resolve().parents[2]
DEMO = ROOT / "tools" / "demo"
sys.path.insert(0, str(ROOT / "tools" / "dev"))
import bench_channels_scale  # noqa: E402 - lives beside the other development tools

NOTHING = """
<ir_version: 10, opset_import: ["" : 21]>
nothing (float[batch, 4] x) => (float[batch, 2] y) <float[4, 2] w> { y = MatMul (x, w) }
"""


@pytest.fixture
def call(tmp_path):
    """Run the command line on a model given as text; (exit code, stdout, stderr, the file written
    or None).
    """

    def run(text, passes, *flags):
        path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
        onnx.save(model_from(text), path)
        done = CliRunner().invoke(
            main, [str(path), "--passes", passes, "--no-bench", "-o", str(out), *flags]
        )
        return done.exit_code, done.stdout, done.stderr, out if out.exists() else None

    return run


def without_metadata(path):
    proto = onnx.load(path)
    del proto.metadata_props[:]
    return proto.SerializeToString(deterministic=True)


def logits(path, images):
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {session.get_inputs()[0].name: images})[0]


def error(path, images):
    """Relative, root mean square, of the logits."""
    want, got = logits(DEMO / "digits_cnn.onnx", images), logits(path, images)
    return float(np.linalg.norm(want - got) / np.linalg.norm(want))


def test_a_model_with_nothing_to_prune_is_written_as_it_is(call, tmp_path):
    code, _, words, out = call(NOTHING, "prune-channels")
    assert code == 0
    assert (
        "nothing changed: it reads the model's input 'x', whose shape stays (1); "
        "it gives the model's output 'y', whose shape stays (1)" in words
    )
    before, after = (onnx.load(path).graph for path in (tmp_path / "model.onnx", out))
    assert list(after.input) == list(before.input)
    assert list(after.output) == list(before.output)
    assert [(node.op_type, node.input, node.output) for node in after.node] == [
        ("MatMul", ["x", "w"], ["y"])
    ]
    np.testing.assert_array_equal(
        onnx.numpy_helper.to_array(after.initializer[0]),
        onnx.numpy_helper.to_array(before.initializer[0]),
    )


def test_a_file_is_pruned_and_accounted_for(call):
    code, shown, _, out = call(MLP, "prune-channels(ratio=0.75)", "--json")
    assert code == 0
    (step,) = json.loads(shown)["passes"]
    assert step["stats"]["channels"] == 12
    assert step["stats"]["error"] < 1e-5
    assert (step["stats"]["params_before"], step["stats"]["params_after"]) == (192, 48)
    proto = onnx.load(out)
    onnx.checker.check_model(proto, full_check=True)
    assert {t.name: list(t.dims) for t in proto.graph.initializer} == {
        "w1": [8, 4],
        "w2": [4, 4],
    }


def test_a_pruned_file_pruned_again_stays(call, tmp_path):
    call(MLP, "prune-channels")
    again = CliRunner().invoke(
        main,
        [
            str(tmp_path / "out.onnx"),
            "-p",
            "prune-channels",
            "--no-bench",
            "-o",
            str(tmp_path / "again.onnx"),
        ],
    )
    assert again.exit_code == 0
    assert without_metadata(tmp_path / "again.onnx") == without_metadata(
        tmp_path / "out.onnx"
    )
    more = CliRunner().invoke(
        main,
        [
            str(tmp_path / "out.onnx"),
            "-p",
            "prune-channels(ratio=0.75)",
            "--no-bench",
            "-o",
            str(tmp_path / "more.onnx"),
        ],
    )
    assert more.exit_code == 0
    assert list(onnx.load(tmp_path / "more.onnx").graph.initializer[0].dims) == [8, 4]


@pytest.mark.parametrize(
    ("passes", "problem", "fix"),
    [
        (
            "prune-channels(ratio=1)",
            "prune-channels.ratio: 1.0 is outside [0.0, 0.99]",
            "choose a value in [0.0, 0.99]",
        ),
        (
            "prune-channels(ratoi=0.5)",
            "prune-channels.ratoi: no such option",
            "did you mean 'ratio'?",
        ),
        (
            "prune-channels(importance=l3)",
            "prune-channels.importance: 'l3' is not one of",
            "did you mean|choose one of",
        ),
        (
            "prune-channels(macs=0.5, size=0.5)",
            "prune-channels.size: macs and size are set",
            "leave one of them",
        ),
        (
            "prune-channels(drift=0.1)",
            "prune-channels.drift: importance is auto",
            "add importance=drift",
        ),
        (
            "prune-channels(include=conv9)",
            "prune-channels.include: 'conv9' matches no layer",
            "onnx-opt inspect MODEL --groups",
        ),
        (
            "prune-channels(importance=drift)",
            "prune-channels.importance: drift ranks by calibration data",
            "--data",
        ),
        (
            "prune-channel",
            "passes: prune-channel: no such pass",
            "did you mean 'prune-channels'?",
        ),
    ],
)
def test_a_wrong_call_says_what_and_how_to_mend_it(call, passes, problem, fix):
    code, _, words, out = call(MLP, passes)
    assert code == 2
    assert out is None
    first, second = words.strip().splitlines()
    assert first.startswith(f"error: {problem}")
    assert any(part in second for part in fix.split("|"))


def test_pruned_then_quantized_on_data(tmp_path):
    out = tmp_path / "small.onnx"
    result = optimize(
        DEMO / "digits_cnn.onnx",
        "prune-channels(samples=128), quant(samples=64)",
        out=out,
        bench=False,
        data=DEMO / "digits_calib.npz",
        eval_data=DEMO / "digits_test.npz",
        metric="top1",
    )
    onnx.checker.check_model(onnx.load(out), full_check=True)
    first, second = result.passes
    assert first.stats["groups"] == first.stats["layers"] - 3 == 5
    assert first.stats["error"] < 1e-5
    assert first.stats["measured_sqnr"] >= 15
    assert len(first.chosen) == 5
    assert first.stats["params_after"] < 0.5 * first.stats["params_before"]
    assert second.changed > 0
    assert result.metric["before"] > 0.99
    assert result.metric["after"] > 0.97
    assert out.stat().st_size < 0.2 * (DEMO / "digits_cnn.onnx").stat().st_size


def test_recovery_mends_outputs_on_images_it_has_not_seen(tmp_path):
    images = np.load(DEMO / "digits_test.npz")["image"]
    errors = {}
    for recover in ("true", "false"):
        out = tmp_path / f"{recover}.onnx"
        optimize(
            DEMO / "digits_cnn.onnx",
            f"prune-channels(ratio=0.5, importance=l2, recover={recover}, samples=128)",
            out=out,
            data=DEMO / "digits_calib.npz",
            bench=False,
            floor="none",
        )
        errors[recover] = error(out, images)
    assert errors["true"] < 0.5 * errors["false"]
    assert errors["true"] < 0.35


def test_the_benchmark_of_scale_measures_a_transformer(capsys):
    figures = bench_channels_scale.main(
        [
            "--layers",
            "2",
            "--width",
            "32",
            "--hidden",
            "64",
            "--heads",
            "4",
            "--vocab",
            "100",
            "--json",
        ]
    )
    assert json.loads(capsys.readouterr().out)["groups"] == figures.groups == 5
    assert figures.params_after < 0.4 * figures.params


@pytest.mark.slow
def test_a_transformer_of_28_million_parameters_takes_seconds(capsys):
    figures = bench_channels_scale.main(
        [
            "--layers",
            "6",
            "--width",
            "512",
            "--hidden",
            "2048",
            "--heads",
            "8",
            "--vocab",
            "16000",
        ]
    )
    assert "the whole pass" in capsys.readouterr().out
    assert figures.params > 27e6
    assert figures.params_after < 0.35 * figures.params
    assert figures.run_s < 10
