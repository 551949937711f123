"""`inspect`: the facts of a model, wherever its weights live."""

import json

import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.tools._inspect import inspection
from onnx_opt.tools.cli import main
from sample_models import CNN, IF, MLP, TREES, model_from


@pytest.fixture
def facts(tmp_path):
    def of(text):
        path = tmp_path / "model.onnx"
        onnx.save(model_from(text), path)
        return inspection(path)

    return of


def test_interface_figures_and_ops(facts):
    found = facts(CNN)
    assert found["inputs"] == [
        {"name": "x", "type": "FLOAT", "shape": ["batch", 3, 8, 8], "default": False}
    ]
    assert found["figures"]["macs"] == 64 * 16 * 27 + 64 * 16 * 144 + 160
    assert found["ops"]["Conv"] == 2
    assert found["quantized"] == {}
    assert [layer["name"] for layer in found["layers"]] == ["k2", "k1", "w"]


def test_weights_are_found_in_every_place(facts):
    assert {place: item["bytes"] for place, item in facts(IF)["weights"].items()} == {
        "main_graph": 64,
        "main_constants": 0,
        "subgraphs": 64,
        "subgraph_constants": 64,
        "function_constants": 0,
        "operator_attributes": 0,
    }


def test_sparsity_is_the_fraction_of_zeros(facts):
    assert facts(IF)["sparsity"] == pytest.approx(16 / 48)


def test_every_lossy_pass_says_what_it_could_touch(facts):
    reach = {item["pass"]: item for item in facts(CNN)["passes"]}
    assert reach["prune"]["changed"] == 3
    declined = {item["where"]: item["reason"] for item in reach["quant"]["declined"]}
    assert any("give --data" in reason for reason in declined.values())
    refused = {name: item["error"] for name, item in reach.items() if item["error"]}
    assert set(refused) == {"correct-bias", "gptq", "round-weights"}
    assert all("no calibration data" in error for error in refused.values())


def test_provenance_and_quantized_parts_are_shown(tmp_path):
    path, out = tmp_path / "mlp.onnx", tmp_path / "out.onnx"
    onnx.save(model_from(MLP), path)
    optimize(path, "prune(sparsity=0.75)", out=out, bench=False)
    done = CliRunner().invoke(main, ["inspect", str(out)])
    assert done.exit_code == 0
    assert "passes=prune(sparsity=0.75)" in done.stdout.replace("\n", "")
    shown = json.loads(
        CliRunner().invoke(main, ["inspect", str(out), "--json", "--top", "1"]).stdout
    )
    assert shown["provenance"]["passes"] == "prune(sparsity=0.75)"
    assert len(shown["layers"]) == 1
    assert shown["sparsity"] == 0.75


def test_tables_and_trees_are_shown_in_their_bytes(facts):
    trees = facts(TREES)
    assert trees["layers"] == []
    (forest,) = trees["others"]
    assert forest["name"] == "forest"
    # three thresholds and two leaves; how often a branch was taken counts for nothing
    assert forest["shape"] == [5]
    assert trees["figures"]["params"] == 5
    assert trees["weights"]["operator_attributes"] == {"bytes": 20, "tensors": 2}
    table = facts("""<ir_version: 8, opset_import: ["" : 18]>
    g (int64[n] i) => (float[n, 4] y) <float[2, 4] t = {1, 2, 3, 4, 5, 6, 7, 8}>
    { y = Gather (t, i) }""")
    (words,) = table["others"]
    assert (words["name"], words["bytes"], words["shape"]) == ("t", 32, [2, 4])
    (user,) = words["ops"]
    assert user.startswith("Gather ")


def test_every_lossy_pass_that_looks_for_weights_names_the_trees(facts):
    trees = facts(TREES)
    size = trees["others"][0]["bytes"]
    reason = f"tree ensemble: {size:,} bytes, no pass shrinks it"
    for name in ("quant", "prune", "prune-channels", "compress-weights"):
        (found,) = [item for item in trees["passes"] if item["pass"] == name]
        assert found["changed"] == 0
        assert {"where": "TreeEnsembleRegressor forest", "reason": reason} in found[
            "declined"
        ]


def test_the_main_job_on_trees_says_so_and_succeeds(tmp_path):
    path = tmp_path / "trees.onnx"
    onnx.save(model_from(TREES), path)
    done = CliRunner().invoke(main, [str(path), "--no-bench"])
    assert done.exit_code == 0
    words = " ".join(done.stderr.split())
    assert "warning: nothing changed: tree ensemble: " in words
    assert "bytes, no pass shrinks it" in words
