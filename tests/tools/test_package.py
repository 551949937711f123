"""`package`: what a bundle says of its model, the same bytes each time, and what is refused."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_opt
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, RefusedError, UsageError
from onnx_opt.tools._package import timing
from onnx_opt.tools._package.timing import Times
from onnx_opt.tools._run.provenance import sha256_of
from onnx_opt.tools.cli import main
from onnx_opt.tools.commands.selftest import selftest_parts
from onnx_opt.tools.facts import as_text
from sample_models import CNN, MLP, model_from

RANDOM = """
<ir_version: 10, opset_import: ["" : 21]>
dice (float[1000] x) => (float[1000] y)
{
    r = RandomNormalLike <scale = 10.0> (x)
    y = Add (x, r)
}
"""

TEXTS = """
<ir_version: 10, opset_import: ["" : 21]>
texts (string[n] s, int64[n] i) => (string[n] t, int64[n] j)
{
    t = Identity (s)
    j = Add (i, i)
}
"""

SEQUENCE = """
<ir_version: 10, opset_import: ["" : 21]>
sequence (float[4] x) => (seq(float[4]) y)
{
    y = SequenceConstruct (x, x)
}
"""


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def saved(text, path):
    onnx.save(model_from(text), path)
    return path


@pytest.fixture(autouse=True)
def _times_of_a_moment(monkeypatch):
    monkeypatch.setattr(timing, "SECONDS", 0.05)
    monkeypatch.setattr(timing, "STARTS", 2)


@pytest.fixture
def mlp(tmp_path):
    return saved(MLP, tmp_path / "mlp.onnx")


def rows(count):
    return {"x": np.linspace(-1, 1, 8 * count, dtype=np.float32).reshape(count, 8)}


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


# what a bundle says


def test_the_manifest_tells_of_the_model_and_its_run(tmp_path):
    path = saved(CNN, tmp_path / "net.onnx")
    small = tmp_path / "net.opt.onnx"
    data = {"x": np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype("f")}
    passes = "quant(measure=false)"
    onnx_opt.optimize(path, passes, data=data, out=small, bench=False)
    facts = onnx_opt.package(small, tmp_path / "b", data=data)
    manifest = facts.manifest
    assert manifest == json.loads((tmp_path / "b" / "manifest.json").read_text())
    assert manifest["name"] == "net"
    assert manifest["target"] == "cpu"
    assert manifest["inputs"] == [
        {"name": "x", "dtype": "float32", "shape": ["batch", 3, 8, 8]}
    ]
    assert manifest["provenance"]["passes"] == passes
    assert len(manifest["provenance"]["input_sha256"]) == 64
    assert manifest["runtime"]["tried"] == onnxruntime.__version__
    assert manifest["runtime"]["minimum"] == "1.15"
    # two rows each of the data
    assert len(manifest["samples"]) == 3
    sample = np.load(tmp_path / "b" / "samples" / "1" / "input_0.npy")
    assert np.array_equal(sample, data["x"][2:4])
    (limits,) = manifest["tolerance"]["outputs"]
    # a quantized graph rounds between layers
    assert limits["min_sqnr_db"] <= 40
    figures = manifest["figures"]
    assert figures["bytes"] == small.stat().st_size
    assert figures["offending_pairs"] == 0
    assert figures["latency_ms"] > 0
    assert figures["cold_start_ms"] > figures["load_ms"] > 0
    assert figures["measured_on"]
    model = contents(tmp_path / "b")["model/model.onnx"]
    assert model == small.read_bytes()
    assert "model/model.onnx" in str(facts)
    assert onnx_opt.selftest(tmp_path / "b", seconds=0).bundle == "net"


def test_a_float_model_is_held_to_float_noise(mlp, tmp_path):
    facts = onnx_opt.package(mlp, tmp_path / "b", bench=False)
    (limits,) = facts.manifest["tolerance"]["outputs"]
    assert limits["min_sqnr_db"] == 80.0
    assert facts.manifest["tolerance"]["measured"] == [
        "once more",
        "one thread",
        "as written",
    ]
    assert facts.manifest["provenance"]["passes"] is None
    assert facts.manifest["figures"]["latency_ms"] is None
    assert facts.manifest["figures"]["measured_on"] is None
    assert facts.warnings == [
        "the samples are made up: with --data they are real inputs"
    ]


def test_files_that_belong_to_the_model_come_along(tmp_path):
    image = pytest.importorskip("PIL.Image")
    path = saved(CNN, tmp_path / "net.onnx")
    for name in ("cat", "dog"):
        (tmp_path / "zoo" / name).mkdir(parents=True)
        image.new("RGB", (8, 8), "red").save(tmp_path / "zoo" / name / "1.png")
    (tmp_path / "zoo" / "preprocess.toml").write_text("size = [8, 8]\nmean = 0.5\n")
    (tmp_path / "zoo" / "classes.txt").write_text("cat\ndog\n")
    (tmp_path / "licence").write_text("free")
    facts = onnx_opt.package(
        path,
        tmp_path / "b",
        data=tmp_path / "zoo",
        licence=tmp_path / "licence",
        bench=False,
    )
    found = contents(tmp_path / "b")
    assert found["labels.txt"] == b"cat\ndog\n"
    assert found["LICENSE.model"] == b"free"
    assert facts.manifest["labels"] == "labels.txt"
    assert facts.manifest["preprocessing"] == {
        "file": "preprocess.toml",
        "settings": {"size": [8, 8], "mean": 0.5},
    }
    assert b"see `LICENSE.model`" in found["NOTICES.md"]
    with pytest.raises(RefusedError, match="no such file"):
        onnx_opt.package(path, tmp_path / "c", labels=tmp_path / "none")


def test_weights_beside_the_model_come_along(tmp_path):
    path = tmp_path / "mlp.onnx"
    (tmp_path / "sub").mkdir()
    onnx.save(
        model_from(MLP),
        path,
        save_as_external_data=True,
        location="sub/weights.bin",
        size_threshold=0,
    )
    onnx_opt.package(path, tmp_path / "b", bench=False)
    weights = (tmp_path / "sub" / "weights.bin").read_bytes()
    assert contents(tmp_path / "b")["model/sub/weights.bin"] == weights
    assert onnx_opt.selftest(tmp_path / "b", seconds=0).loads == "model/model.onnx"


def test_a_bundle_for_a_gpu_says_what_was_not_tried(mlp, tmp_path):
    facts = onnx_opt.package(mlp, tmp_path / "b", target="tensorrt", data=rows(6))
    if "TensorrtExecutionProvider" in onnxruntime.get_available_providers():
        pytest.skip("TensorRT is here: nothing is left out")
    assert len(facts.warnings) == 1
    assert "nothing was tried on tensorrt" in facts.warnings[0]
    manifest = facts.manifest
    assert [each["name"] for each in manifest["providers"]] == [
        "tensorrt",
        "cuda",
        "cpu",
    ]
    assert manifest["providers"][0]["options"]["trt_fp16_enable"] == "1"
    assert manifest["tolerance"]["provider"] == "cpu"
    # float16 inside: held to less than float noise
    assert manifest["tolerance"]["outputs"][0]["min_sqnr_db"] == 40.0
    assert manifest["figures"]["latency_ms"] is None
    assert manifest["model"]["operators"] is None
    found = contents(tmp_path / "b")
    assert b"onnxruntime-gpu>=" in found["requirements.txt"]
    assert b"RUN python run.py" not in found["Dockerfile"]
    # `auto` takes what is there, and says so; by name it is that provider or none
    assert (
        onnx_opt.selftest(tmp_path / "b", seconds=0).provider == "CPUExecutionProvider"
    )
    with pytest.raises(CheckError, match="provider tensorrt: this onnxruntime"):
        onnx_opt.selftest(tmp_path / "b", provider="tensorrt")


def test_texts_are_samples_too_but_not_of_the_c_api(tmp_path):
    path = saved(TEXTS, tmp_path / "texts.onnx")
    data = {"s": np.array(["a", "é", "c"], object), "i": np.arange(3)}
    facts = onnx_opt.package(path, tmp_path / "b", data=data, bench=False)
    assert "no C++ example: it has arrays of numbers alone" in facts.warnings
    assert "cpp/main.cpp" not in contents(tmp_path / "b")
    assert [info["dtype"] for info in facts.manifest["inputs"]] == ["string", "int64"]
    assert np.load(tmp_path / "b" / "samples" / "0" / "output_0.npy").tolist() == [
        "a",
        "é",
    ]
    assert (
        onnx_opt.selftest(tmp_path / "b", seconds=0).provider == "CPUExecutionProvider"
    )


# same input, same bytes


def test_two_bundles_are_the_same_bytes(mlp, tmp_path):
    """Times are measured once; the rest follows from the model, the data and the machine."""
    data = rows(6)
    for name in ("a", "b", "a.zip", "b.zip", "a.tar.gz", "b.tar.gz"):
        onnx_opt.package(mlp, tmp_path / name, data=data, ort="yes")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert "model/model.ort" in contents(tmp_path / "a")
    for suffix in (".zip", ".tar.gz"):
        first, second = [tmp_path / f"{name}{suffix}" for name in "ab"]
        assert first.read_bytes() == second.read_bytes()


def test_times_are_measured_once_unless_asked(mlp, tmp_path, monkeypatch):
    calls = []

    def measured(*_):
        calls.append(1)
        return Times(1.0, 2.0, float(len(calls)), ort_pays=len(calls) > 1)

    monkeypatch.setattr(timing, "_measured", measured)
    data = rows(2)
    latencies = []
    for number, options in enumerate(({}, {}, {"cache": False}, {"data": rows(4)})):
        facts = onnx_opt.package(
            mlp, tmp_path / str(number), **{"data": data, **options}
        )
        latencies.append(facts.manifest["figures"]["latency_ms"])
        ort = facts.manifest["model"]["ort"]
        assert (ort is not None) == (latencies[-1] > 1)
    assert latencies == [1.0, 1.0, 2.0, 3.0]


def test_ort_format_that_is_only_too_large_is_told(mlp, tmp_path, monkeypatch):
    times = Times(1.0, 2.0, 1.0, ort_pays=False, ort_start=0.4)
    monkeypatch.setattr(timing, "_measured", lambda *_: times)
    options = {"data": rows(2), "cache": False}
    facts = onnx_opt.package(mlp, tmp_path / "a", **options)
    (warning,) = facts.warnings
    kept = onnx_opt.package(mlp, tmp_path / "b", ort="yes", **options)
    assert kept.warnings == []
    size = kept.manifest["files"]["model/model.ort"]["bytes"]
    assert warning == (
        "a cold start from ORT format takes 0.40 of the time, but that file has "
        f"{size:,} bytes: --ort yes adds it"
    )
    left_out = onnx_opt.package(mlp, tmp_path / "c", ort="no", **options)
    assert left_out.warnings == []


# refused


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (RANDOM, "is another one in each evaluation: no sample can prove anything"),
        (SEQUENCE, "its output 'y' is a seq"),
    ],
)
def test_a_model_without_samples_that_prove_anything_is_refused(
    tmp_path, text, problem
):
    path = saved(text, tmp_path / "m.onnx")
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RefusedError, match=problem):
        onnx_opt.package(path, tmp_path / "b", bench=False)
    assert sorted(tmp_path.iterdir()) == before


def test_data_that_the_model_does_not_run_on_is_refused(mlp, tmp_path):
    done = invoke("package", mlp, "-o", tmp_path / "b", "--data", tmp_path / "no.npz")
    assert done.exit_code == 3
    assert not (tmp_path / "b").exists()


def test_an_output_that_is_there_is_refused_at_once(mlp, tmp_path):
    (tmp_path / "b").mkdir()
    done = invoke("package", mlp, "-o", tmp_path / "b")
    assert done.exit_code == 2
    assert done.stderr.splitlines() == [
        f"error: {tmp_path / 'b'}: exists already",
        "  fix: choose another path, or pass --force to replace it",
    ]
    with pytest.raises(UsageError, match="'abacus' is not one of cpu"):
        onnx_opt.package(mlp, tmp_path / "c", target="abacus")


def test_a_model_that_reads_what_is_not_its_own_is_not_loaded(tmp_path):
    """A bundle whose digests all fit, made by whoever wants to see a file of its user."""
    path = saved(MLP.replace("16", "64"), tmp_path / "mlp.onnx")
    onnx_opt.package(path, tmp_path / "b", bench=False, ort="no")
    (tmp_path / "secret").write_bytes(bytes(8 * 64 * 4))
    model = tmp_path / "b" / "model" / "model.onnx"
    proto = onnx.load(model)
    tensor = proto.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = onnx.TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value="../../secret")
    model.write_bytes(proto.SerializeToString())
    manifest_path = tmp_path / "b" / "manifest.json"
    before = sha256_of(manifest_path)
    manifest = json.loads(manifest_path.read_text())
    manifest["files"]["model/model.onnx"] = {
        "bytes": model.stat().st_size,
        "sha256": sha256_of(model),
    }
    manifest_path.write_text(json.dumps(manifest))
    sums = tmp_path / "b" / "SHA256SUMS"
    sums.write_text(sums.read_text().replace(before, sha256_of(manifest_path)))
    with pytest.raises(RefusedError, match="secret"):
        onnx_opt.selftest(tmp_path / "b")


# the commands


def test_the_commands_tell_in_tables_and_json(mlp, tmp_path):
    done = invoke("package", mlp, "-o", tmp_path / "b", "--no-bench")
    assert (done.exit_code, done.stdout) == (0, f"{tmp_path / 'b'}\n")
    assert "needs ONNX Runtime" in done.stderr
    done = invoke("package", mlp, "-o", tmp_path / "c.zip", "--json")
    assert json.loads(done.stdout)["manifest"]["name"] == "mlp"
    done = invoke("selftest", tmp_path / "c.zip", "--seconds", 0)
    assert done.exit_code == 0
    assert "self-test passed" in done.stdout
    done = invoke("selftest", tmp_path / "b", "--json", "--seconds", 0)
    assert json.loads(done.stdout)["provider"] == "CPUExecutionProvider"
    (tmp_path / "b" / "run.py").write_text("raise SystemExit('I am run')")
    done = invoke("selftest", tmp_path / "b", "--json", "--seconds", 0)
    assert done.exit_code == 4
    assert json.loads(done.stdout)["error"]["where"] == "run.py"


def test_nodes_on_another_provider_are_named():
    model = {"file": "m", "load_ms": 1.0, "cold_start_ms": 1.0, "latency_ms": 1.0}
    nodes = {"CUDAExecutionProvider": ["a", "b"], "CPUExecutionProvider": ["c[0]"]}
    facts = {
        "files": 1,
        "onnxruntime": "1.32.0",
        "provider": "CUDAExecutionProvider",
        "hardware": {"label": "a CPU"},
        "models": [{**model, "nodes": nodes, "samples": []}],
    }
    text = as_text(selftest_parts(facts))
    assert "CUDAExecutionProvider 2, CPUExecutionProvider 1" in text
    assert "\non CPUExecutionProvider: c[0]\n" in text


RELEASE = os.environ.get("ONNXRUNTIME_DIR")


@pytest.mark.skipif(
    RELEASE is None, reason="ONNXRUNTIME_DIR names no release with headers"
)
@pytest.mark.skipif(shutil.which("cmake") is None, reason="cmake is not installed")
def test_the_cpp_example_builds_and_finds_a_wrong_output(mlp, tmp_path):
    folder = tmp_path / "b"
    onnx_opt.package(mlp, folder, data=rows(6), bench=False)
    build = tmp_path / "build"
    for words in (
        ["cmake", "-S", folder / "cpp", "-B", build, f"-DONNXRUNTIME_DIR={RELEASE}"],
        ["cmake", "--build", build],
    ):
        subprocess.run(words, check=True, capture_output=True)
    program = build / "run_bundle"
    done = subprocess.run(
        [program, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith("all as expected\n")
    output = Path(folder, "samples", "0", "output_0.npy")
    np.save(output, np.load(output) + 1)
    done = subprocess.run(
        [program, folder], capture_output=True, text=True, check=False
    )
    assert done.returncode == 4
    assert "y: off by 1" in done.stdout
