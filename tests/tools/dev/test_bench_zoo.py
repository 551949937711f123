"""The zoo names its graphs without building them, builds valid ones, and its benchmark judges files
by themselves.
"""

import sys
from pathlib import Path

import onnx
import pytest
from onnx_opt.runtime.worker import Worker

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import bench_zoo
import zoo

SOUND = """
<ir_version: 10, opset_import: ["" : 21]>
sound (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}>
{
    h = Relu (x)
    y = MatMul (h, w)
}
"""


@pytest.fixture
def worker():
    with Worker(timeout=60) as worker:
        yield worker


def saved(text, path):
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.mark.parametrize(
    "name",
    ["text.gather_permuted", "text.rms_norm_23", "text.split_unequal_in_constants"],
)
def test_a_built_graph_is_valid_and_stays(tmp_path, name):
    ((found, build),) = zoo.graphs(name)
    assert found == name
    path = build(tmp_path)
    onnx.checker.check_model(str(path), full_check=True)
    before = path.stat()
    assert build(tmp_path).stat().st_mtime_ns == before.st_mtime_ns
    assert [p.name for p in tmp_path.iterdir()] == [f"{name}.onnx"]


def test_weights_are_the_same_every_time(tmp_path):
    ((_, build),) = zoo.graphs("text.shared_bias")
    first, second = tmp_path / "first", tmp_path / "second"
    for folder in (first, second):
        folder.mkdir()
    assert build(first).read_bytes() == build(second).read_bytes()


@pytest.mark.slow
def test_names_are_unique_and_many():
    pytest.importorskip("torch")
    names = [name for name, _ in zoo.graphs()]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.slow
def test_an_exported_graph_keeps_its_norms_and_tells_no_folders(tmp_path):
    pytest.importorskip("torch")
    ((_, build),) = zoo.graphs("vgg.legacy13-bn")
    model = onnx.load(build(tmp_path))
    kinds = [node.op_type for node in model.graph.node]
    assert kinds.count("BatchNormalization") == kinds.count("Conv") == 3
    assert model.opset_import[0].version == 13
    assert b"site-packages" not in model.SerializeToString()


def test_a_file_that_computes_the_same_shapes_is_sound(tmp_path, worker):
    original = saved(SOUND, tmp_path / "original.onnx")
    assert bench_zoo.problem_of(original, original, worker) == ""


@pytest.mark.parametrize(
    ("old", "new", "problem"),
    [
        (
            "float[4, 2] w = {1, 2, 3, 4, 5, 6, 7, 8}",
            "float[3, 2] w = {1, 2, 3, 4, 5, 6}",
            "Incompatible dimensions",
        ),
        (
            "h = Relu (x)",
            "h = Relu (missing)",
            "Nodes in a graph must be topologically sorted",
        ),
        (
            "y = MatMul (h, w)",
            "z = MatMul (h, w)  y = Transpose <perm = [1, 0]> (z)",
            "y is (2, 1) instead of (1, 2)",
        ),
    ],
)
def test_a_file_that_does_not_run_is_named(tmp_path, worker, old, new, problem):
    original = saved(SOUND, tmp_path / "original.onnx")
    pruned = saved(SOUND.replace(old, new), tmp_path / "pruned.onnx")
    assert problem in bench_zoo.problem_of(original, pruned, worker)


def test_the_summary_counts_what_is_pruned_invalid_and_exact():
    rows = [
        bench_zoo.Row("pruned", 5, 1000, 250, 100, 50, error=1e-6),
        bench_zoo.Row("too_little", 5, 1000, 980, 100, 98, error=2e-3),
        bench_zoo.Row("invalid", 5, 1000, 500, problem="Gemm: wrong"),
        bench_zoo.Row("pruned_more", 5, 1000, 200),
    ]
    assert [row.ok for row in rows] == [True, False, False, True]
    assert bench_zoo.summary(rows) == (
        "4 graphs: 2 pruned (50.0%), median cut 75.0% of the parameters, 1 invalid or failed, "
        "1 of 2 exact (largest error 2.0e-03), 0 s"
    )
