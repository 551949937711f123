"""`inspect --groups`: the channels that go together, in words and as JSON."""

import json

import onnx
import pytest
from click.testing import CliRunner
from onnx_opt.tools.cli import main
from sample_models import CNN, IF, MLP, model_from

NOTHING = """
<ir_version: 10, opset_import: ["" : 21]>
nothing (float[batch, 4] x) => (float[batch, 4] y) { y = Softmax (x) }
"""

EVEN = """
<ir_version: 10, opset_import: ["" : 21]>
even (float[batch, 2] x) => (float[batch, 1] y)
<float[2, 3] w1 = {3, 0, 6, 4, 5, 8}, float[3, 1] w2 = {1, 1, 2}>
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""


@pytest.fixture
def inspect(tmp_path):
    def call(text, *flags):
        path = tmp_path / "model.onnx"
        onnx.save(model_from(text), path)
        before = path.read_bytes()
        done = CliRunner().invoke(main, ["inspect", str(path), "--groups", *flags])
        assert done.exit_code == 0, done.stderr
        assert path.read_bytes() == before
        return json.loads(done.stdout) if "--json" in flags else done.stdout

    return call


def test_a_model_without_channels_has_no_groups(inspect):
    assert inspect(NOTHING, "--json")["groups"] == []
    assert (
        "groups: 0, channels that can go: 0, axes of weights that stay: 0"
        in inspect(NOTHING)
    )


def test_a_group_says_where_it_is_and_what_its_channels_weigh(inspect):
    (group,) = inspect(EVEN, "--json")["groups"]
    assert (group["name"], group["channels"], group["channels_at_first"]) == (
        "w2:0",
        3,
        3,
    )
    assert group["where"] == [
        {"weight": "w1", "axis": 1, "slots": 1},
        {"weight": "w2", "axis": 0, "slots": 1},
    ]
    # norms 5, 5, 10 over their mean 20/3 and 1, 1, 2 over 4/3: the same shares twice
    assert group["importance"] == pytest.approx(
        {"min": 0.75, "median": 0.75, "max": 1.5}
    )


def test_weights_that_stay_have_their_reasons(inspect):
    assert inspect(MLP, "--json")["frozen"] == [
        {
            "where": "w1:0",
            "reason": "it reads the model's input 'x', whose shape stays",
        },
        {
            "where": "w2:1",
            "reason": "it gives the model's output 'y', whose shape stays",
        },
    ]
    frozen = {item["where"]: item["reason"] for item in inspect(IF, "--json")["frozen"]}
    assert "channels are not followed into If, Loop and Scan" in frozen["w:1"]


def test_the_table_names_groups_and_reasons(inspect):
    shown = inspect(CNN)
    assert "groups: 1, channels that can go: 16, axes of weights that stay: 2" in shown
    assert "k1_scaled:0" in shown
    assert "it gives the model's output 'y', whose shape stays" in shown
    assert "why it stays" not in shown
    assert "why it stays" in inspect(CNN, "-v")


def test_a_pruned_model_shows_the_width_that_it_had(inspect, tmp_path):
    path, out = tmp_path / "mlp.onnx", tmp_path / "out.onnx"
    onnx.save(model_from(MLP), path)
    done = CliRunner().invoke(
        main,
        [
            str(path),
            "--passes",
            "prune-channels(ratio=0.5)",
            "-o",
            str(out),
            "--no-bench",
        ],
    )
    assert done.exit_code == 0, done.stderr
    done = CliRunner().invoke(main, ["inspect", str(out), "--groups"])
    assert "8 of 16" in done.stdout


def test_a_file_that_is_none_is_refused(tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"not a model")
    done = CliRunner().invoke(main, ["inspect", str(path), "--groups"])
    assert done.exit_code == 3
    assert done.stderr.startswith("error: ")
    assert "no.onnx" in done.stderr.splitlines()[0]
    assert "fix:" in done.stderr
