"""Bundles: what a self-test finds, what a reader refuses, and what a writer leaves behind."""

import copy
import io
import json
import math
import os
import shutil
import stat
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx_opt import CheckError, OnnxOptError, RefusedError, UsageError, runtime
from onnx_opt.runtime import bundles
from onnx_opt.runtime._bundle import archive, run, schema, texts
from onnx_opt.runtime._worker.ort_format import sorted_kernels
from onnx_opt.runtime.session import TensorInfo
from onnx_opt.runtime.tolerance import COARSE, FLOAT32
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools.functions import package
from sample_models import CNN, MLP, model_from

X = np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A bundle, which no test changes."""
    folder = tmp_path_factory.mktemp("bundles")
    path = folder / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ONNX_OPT_CACHE", str(folder / "cache"))
        package(path, folder / "b", data={"x": X}, bench=False, ort="yes")
    return folder / "b"


@pytest.fixture
def bundle(made, tmp_path):
    """A bundle to damage."""
    return Path(shutil.copytree(made, tmp_path / "b"))


def edit_manifest(folder, change, with_sums=True):
    """Change a manifest as whoever has no onnx-opt would, and its digest too."""
    path = folder / "manifest.json"
    before = run.sha256_of(path)
    manifest = json.loads(path.read_text(encoding="utf-8"))
    change(manifest)
    path.write_text(json.dumps(manifest), encoding="utf-8")
    sums = folder / "SHA256SUMS"
    if with_sums:
        text = sums.read_text(encoding="utf-8")
        sums.write_text(text.replace(before, run.sha256_of(path)), encoding="utf-8")


# running


def test_a_bundle_is_a_function(made):
    model = runtime.load(made)
    (expected,) = onnxruntime.InferenceSession(
        str(made / "model" / "model.onnx"), providers=["CPUExecutionProvider"]
    ).run(None, {"x": X})
    assert model({"x": X})["y"] == pytest.approx(expected, abs=1e-5)
    # lists and other types are converted
    assert model({"x": X.astype(np.float64).tolist()})["y"].dtype == np.float32
    assert model.provider["onnxruntime"] == "CPUExecutionProvider"
    assert [info["name"] for info in model.inputs] == ["x"]


def test_a_call_names_what_is_missing_or_does_not_fit(made):
    model = runtime.load(made)
    with pytest.raises(UsageError, match="input 'x': is not given; there is y"):
        model({"y": X})
    with pytest.raises(OnnxOptError, match="ONNX Runtime fails") as caught:
        model({"x": X[:, :3]})
    assert caught.value.exit_code == 1


def test_the_self_test_tells_what_ran_where(made):
    facts = bundles.selftest(made, seconds=0.01)
    newest = f"{onnxruntime.__version__}"
    assert facts["onnxruntime"] == newest
    assert facts["provider"] == "CPUExecutionProvider"
    assert facts["loads"] == "model/model.ort"
    files = [model["file"] for model in facts["models"]]
    assert files == ["model/model.ort", "model/model.onnx"]
    for model in facts["models"]:
        # MatMul, Relu, MatMul; releases differ in whether fused nodes count as one
        assert set(model["nodes"]) == {"CPUExecutionProvider"}
        assert len(model["nodes"]["CPUExecutionProvider"]) in (2, 3)
        assert [own["output"] for own in model["samples"]] == ["y"]
        assert model["latency_ms"] > 0


def test_run_py_needs_nothing_of_this_package(made):
    """With -I neither this package nor the tests' folder is on the path."""
    code = (
        "import sys, runpy; sys.argv = ['run.py', '--selftest', '--json']\n"
        "sys.modules['onnx_opt'] = sys.modules['onnx'] = sys.modules['psutil'] = None\n"
        f"runpy.run_path({str(made / 'run.py')!r}, run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-I", "-c", code],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    report = json.loads(done.stdout)
    assert report["bundle"] == "mlp"
    # infinite where nothing differs
    assert {own["sqnr_db"] for own in report["models"][1]["samples"]} == {None}


def test_run_py_runs_on_own_inputs(made, tmp_path):
    np.savez(tmp_path / "in.npz", x=X)
    words = [str(tmp_path / "in.npz"), "-o", str(tmp_path / "out.npz")]
    done = subprocess.run(
        [sys.executable, "-I", str(made / "run.py"), *words],
        capture_output=True,
        text=True,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")
    with np.load(tmp_path / "out.npz") as outputs:
        assert list(outputs) == ["y"]
        assert outputs["y"] == pytest.approx(
            runtime.load(made)({"x": X})["y"], abs=1e-5
        )


# what a self-test finds


def append(name):
    def damage(folder):
        with open(folder / name, "ab") as file:
            file.write(b"x")

    return damage


def too_old(folder):
    def change(manifest):
        manifest["runtime"] |= {"minimum": "99.0", "because": "opset 99"}

    edit_manifest(folder, change)


def another_output(folder):
    """An expected output that is off by 1, with a digest that fits."""
    path = folder / "samples" / "0" / "output_0.npy"
    np.save(path, np.load(path) + 1)

    def change(manifest):
        entry = manifest["files"]["samples/0/output_0.npy"]
        entry["sha256"] = run.sha256_of(path)
        entry["bytes"] = path.stat().st_size

    edit_manifest(folder, change)


def without_digest(folder):
    def change(manifest):
        del manifest["files"]["model/model.onnx"]

    edit_manifest(folder, change)


@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        (append("model/model.onnx"), "model/model.onnx: is not the file that was"),
        (append("samples/0/input_0.npy"), "samples/0/input_0.npy: is not the file"),
        (lambda folder: (folder / "run.py").unlink(), "run.py: is missing"),
        (
            lambda folder: shutil.rmtree(folder / "samples"),
            "samples/0/input_0.npy: is missing",
        ),
        (
            lambda folder: edit_manifest(folder, lambda m: m.update(name="z"), False),
            "manifest.json: is not the file that was packaged",
        ),
        (too_old, r"onnxruntime \S+: is too old: the model needs 99.0 \(opset 99\)"),
        (another_output, "sample 0: output 'y' is off by 1"),
        (without_digest, "model/model.onnx: has no digest"),
        (
            lambda folder: edit_manifest(folder, lambda m: m.update(samples=[])),
            "samples: there are none",
        ),
    ],
)
def test_what_is_not_as_packaged_fails(bundle, damage, problem):
    damage(bundle)
    with pytest.raises(CheckError, match=problem) as caught:
        bundles.selftest(bundle, seconds=0.01)
    assert caught.value.exit_code == 4
    assert caught.value.fix


def test_a_damaged_bundle_is_not_loaded_unless_asked(bundle):
    # what is not loaded is for the self-test
    append("README.md")(bundle)
    assert runtime.load(bundle).file == "model/model.ort"
    append("model/model.ort")(bundle)
    with pytest.raises(CheckError, match=r"model\.ort: is not the file"):
        runtime.load(bundle)
    assert runtime.load(bundle, check=False)({"x": X})["y"].shape == (2, 4)


def test_a_provider_that_is_not_there_is_no_other(made):
    with pytest.raises(CheckError, match="has no TensorrtExecutionProvider"):
        bundles.selftest(made, provider="tensorrt")
    with pytest.raises(UsageError, match="'abacus' is none of"):
        runtime.load(made, provider="abacus")


def test_a_provider_that_runs_no_node_fails():
    cuda = {"name": "cuda", "onnxruntime": "CUDAExecutionProvider"}
    with pytest.raises(run.BundleError, match="runs none of the nodes") as caught:
        run.check_assignment(cuda, {"CPUExecutionProvider": ["a"]})
    assert caught.value.exit_code == 4
    run.check_assignment(
        cuda, {"CPUExecutionProvider": ["a"], cuda["onnxruntime"]: ["b"]}
    )


@pytest.mark.parametrize(
    ("present", "chosen"),
    [
        (["CPUExecutionProvider"], "cpu"),
        (["CUDAExecutionProvider", "CPUExecutionProvider"], "cuda"),
        (["TensorrtExecutionProvider", "CUDAExecutionProvider"], "tensorrt"),
    ],
)
def test_auto_takes_the_best_that_is_there(monkeypatch, present, chosen):
    ort = SimpleNamespace(
        get_available_providers=lambda: present,
        get_all_providers=onnxruntime.get_all_providers,
    )
    monkeypatch.setattr(run, "runtime_module", lambda: ort)
    names = {
        "tensorrt": "TensorrtExecutionProvider",
        "cuda": "CUDAExecutionProvider",
        "cpu": "CPUExecutionProvider",
    }
    providers = [
        {"name": name, "onnxruntime": ort_name} for name, ort_name in names.items()
    ]
    found = run.chosen_provider({"providers": providers}, "auto")
    assert found["name"] == chosen
    with pytest.raises(run.BundleError, match="has none of OpenVINO"):
        run.chosen_provider(
            {"providers": [{"name": "o", "onnxruntime": "OpenVINO"}]}, "auto"
        )


def test_a_profile_tells_what_ran(made):
    manifest = run.read_manifest(made)
    feeds, _ = run.load_sample(made, manifest, 0)
    cpu = manifest["providers"][0]
    nodes = run.nodes_by_profile(
        made / "model" / "model.onnx", cpu, manifest["inputs"], feeds
    )
    assert set(nodes) == {"CPUExecutionProvider"}
    assert len(nodes["CPUExecutionProvider"]) in (2, 3)


# limits


@pytest.mark.parametrize(
    ("expected", "got", "figures"),
    [
        ([3.0, 4.0], [3.0, 4.0], {"max_abs": 0.0, "sqnr_db": math.inf}),
        ([3.0, 4.0], [3.0, 4.5], {"max_abs": 0.5, "sqnr_db": 20.0}),
        ([0.0, 0.0], [0.0, 0.5], {"max_abs": 0.5, "sqnr_db": -math.inf}),
        ([math.nan, 1.0], [math.nan, 1.0], {"max_abs": 0.0, "sqnr_db": math.inf}),
        ([math.inf, 1.0], [2.0, 1.0], {"max_abs": math.inf, "sqnr_db": -math.inf}),
        ([1, 2, 3, 4], [1, 2, 3, 5], {"unequal": 0.25}),
        (["a", "b"], ["a", "c"], {"unequal": 0.5}),
        ([1.0, 2.0], [1.0], {"shape": [1], "max_abs": math.inf}),
    ],
)
def test_figures_of_an_output(expected, got, figures):
    assert run.distance(np.array(expected), np.array(got)) == figures


LIMITS = {"atol": 0.1, "min_sqnr_db": 40.0, "floor": 1e-6, "unequal": 0.25}


@pytest.mark.parametrize(
    ("figures", "problem"),
    [
        ({"max_abs": 0.1, "sqnr_db": 40.0}, None),
        ({"max_abs": 0.2, "sqnr_db": 60.0}, "is off by 0.2 (at most 0.1)"),
        (
            {"max_abs": 0.01, "sqnr_db": 39.0},
            "has an SQNR of 39.0 dB (at least 40.0 dB)",
        ),
        ({"max_abs": 1e-7, "sqnr_db": -math.inf}, None),
        ({"unequal": 0.25}, None),
        ({"unequal": 0.5}, "differs in 50 % of its elements (at most 25 %)"),
        ({"shape": [1], "max_abs": math.inf}, "has the shape [1]"),
    ],
)
def test_limits_of_an_output(figures, problem):
    assert run.outside(LIMITS, figures) == problem


class FakeSession:
    """Gives one output after the other."""

    path = Path("fake.onnx")

    def __init__(self, *outputs):
        self.outputs = [TensorInfo("y", "float32", (2,))]
        self.inputs = []
        self._left = [np.array(output, np.float32) for output in outputs]

    def run(self, feeds):
        return {"y": self._left.pop(0)}

    def close(self):
        """Nothing is open."""


def limits(base, *others):
    session = FakeSession([30.0, 40.0])
    samples = bundles.expected(session, [{}])
    evaluations = [
        bundles.Reevaluation(str(number), lambda other=other: FakeSession(other))
        for number, other in enumerate(others)
    ]
    found = bundles.limits_of(session, samples, evaluations, base)
    assert found.measured == [str(number) for number in range(len(others))]
    return found.outputs[0]


def test_limits_are_those_of_the_kind_of_graph_or_four_times_the_noise():
    same = [30.0, 40.0]
    assert limits(FLOAT32, same) == {
        "name": "y",
        # relative to the largest magnitude, 40
        "atol": pytest.approx(1e-4 * 40),
        "min_sqnr_db": 80.0,
        "floor": 1e-6,
        "unequal": 0.0,
    }
    assert limits(COARSE, same)["atol"] == pytest.approx(0.4)
    # 5 of 50 is 20 dB; 4 times is 12.04 dB more
    noisy = limits(COARSE, same, [35.0, 40.0])
    assert noisy["atol"] == pytest.approx(20.0)
    assert noisy["min_sqnr_db"] == pytest.approx(20 - 12.0412, abs=1e-4)


def test_a_model_that_is_another_one_each_time_is_refused():
    for other in ([-30.0, 10.0], [math.nan, 40.0]):
        with pytest.raises(RefusedError, match="is another one in each evaluation"):
            limits(COARSE, other)


# what a reader refuses


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "cannot be read: No such file or directory"),
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[]", "is no JSON object"),
        ('{"schema": "2.0"}', r"has the form 2\.0; this program reads 1\.x"),
        ('{"schema": "1.0"}', "lacks"),
    ],
)
def test_what_is_no_bundle_is_refused(tmp_path, content, problem):
    if content is not None:
        (tmp_path / "manifest.json").write_text(content, encoding="utf-8")
    with pytest.raises(RefusedError, match=problem) as caught:
        bundles.selftest(tmp_path)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "name", ["../x", "/etc/passwd", "a/../../x", "a\\..\\x", "C:x", "", "link"]
)
def test_no_name_leads_out_of_the_folder(tmp_path, name):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "link").symlink_to(tmp_path / "outside")
    with pytest.raises(run.BundleError) as caught:
        run.inside(tmp_path / "b", name)
    assert caught.value.exit_code == 3


def zipped(path, entries):
    with zipfile.ZipFile(path, "w") as file:
        for name, content in entries:
            file.writestr(name, content)
    return path


def linked_zip(path):
    info = zipfile.ZipInfo("b/link")
    info.external_attr = (stat.S_IFLNK | 0o777) << 16
    return zipped(path, [(info, "/etc/passwd")])


def tarred(path, entries):
    with tarfile.open(path, "w:gz") as file:
        for info, content in entries:
            info.size = len(content)
            file.addfile(info, io.BytesIO(content))
    return path


def linked_tar(path, kind):
    info = tarfile.TarInfo("b/link")
    info.type = kind
    info.linkname = "/etc/passwd"
    return tarred(path, [(info, b"")])


@pytest.mark.parametrize(
    ("make", "problem"),
    [
        (lambda p: zipped(p / "a.zip", [("../x", "")]), "leads outside"),
        (lambda p: zipped(p / "a.zip", [("/x", "")]), "leads outside"),
        (lambda p: zipped(p / "a.zip", [("b/../../x", "")]), "leads outside"),
        (lambda p: zipped(p / "a.zip", [("C:\\x", "")]), "leads outside"),
        (lambda p: linked_zip(p / "a.zip"), "is a link or a device"),
        (lambda p: zipped(p / "a.zip", [("x", ""), ("x/y", "")]), "as a file and as a"),
        (
            lambda p: tarred(p / "a.tar.gz", [(tarfile.TarInfo("../x"), b"")]),
            "leads outside",
        ),
        (
            lambda p: linked_tar(p / "a.tar.gz", tarfile.SYMTYPE),
            "is a link or a device",
        ),
        (
            lambda p: linked_tar(p / "a.tar.gz", tarfile.LNKTYPE),
            "is a link or a device",
        ),
        (lambda p: linked_tar(p / "a.tgz", tarfile.CHRTYPE), "is a link or a device"),
        (
            lambda p: tarred(p / "a.tgz", [(tarfile.TarInfo("x"), b"")] * 2),
            "is in it twice",
        ),
        (
            lambda p: zipped(p / "a.zip", [("x", "y" * 5000)]),
            "unpacks to more than 1000",
        ),
        (lambda p: zipped(p / "a.zip", [("x", "")]), "it has no manifest.json"),
        (lambda p: (p / "a.zip", (p / "a.zip").write_bytes(b"PK"))[0], "is damaged"),
        (lambda p: (p / "a.tgz", (p / "a.tgz").write_bytes(b"no"))[0], "is damaged"),
        (lambda p: p / "none.zip", "cannot be read: No such file"),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_archives_that_are_not_sound_are_refused(tmp_path, monkeypatch, make, problem):
    monkeypatch.setenv("ONNX_OPT_BUNDLE_BYTES", "1000")
    path = make(tmp_path)
    (tmp_path / "deep" / "folder").mkdir(parents=True)
    with pytest.raises(RefusedError, match=problem):
        archive.unpack(path, tmp_path / "deep" / "folder")
    # nothing came to lie outside
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "deep" / "x").exists()


@pytest.mark.parametrize("suffix", archive.SUFFIXES)
def test_an_archive_of_the_same_files_has_the_same_bytes(made, tmp_path, suffix):
    copied = shutil.copytree(made, tmp_path / "copy")
    for path in copied.rglob("*"):
        os.utime(path, (1, 1))
        path.chmod(0o700)
    for name, folder in (("a", made), ("b", copied)):
        archive.pack(folder, "mlp", tmp_path / f"{name}{suffix}", suffix)
    first, second = [tmp_path / f"{name}{suffix}" for name in "ab"]
    assert first.read_bytes() == second.read_bytes()
    facts = bundles.selftest(first, seconds=0.01)
    assert facts["bundle"] == "mlp"
    assert runtime.load(first)({"x": X})["y"].shape == (2, 4)


def test_half_an_archive_is_refused(made, tmp_path):
    for suffix in (".zip", ".tar.gz"):
        path = tmp_path / f"a{suffix}"
        archive.pack(made, "mlp", path, suffix)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
        (tmp_path / f"to{suffix}").mkdir()
        with pytest.raises(RefusedError, match="is damaged"):
            archive.unpack(path, tmp_path / f"to{suffix}")


# the schema


def edits(value, path=()):
    """Every way to take one part of a manifest out, or to give it another type."""
    if isinstance(value, dict):
        for key, item in value.items():
            yield (*path, key)
            yield from edits(item, (*path, key))
    elif isinstance(value, list):
        for index, item in enumerate(value[:1]):
            yield from edits(item, (*path, index))


def test_the_schema_is_read_as_jsonschema_reads_it(made):
    jsonschema = pytest.importorskip("jsonschema")
    asked = schema.manifest_schema()
    jsonschema.Draft202012Validator.check_schema(asked)
    validator = jsonschema.Draft202012Validator(asked)
    manifest = run.read_manifest(made)
    assert schema.first_fault(manifest) is None
    assert validator.is_valid(manifest)
    faulty = 0
    for path in edits(manifest):
        for value in ("?", None, 7, True, [], {}, ["?"], "absent"):
            edited = copy.deepcopy(manifest)
            place = edited
            for key in path[:-1]:
                place = place[key]
            if value == "absent":
                del place[path[-1]]
            else:
                place[path[-1]] = value
            is_valid = validator.is_valid(edited)
            assert (schema.first_fault(edited) is None) == is_valid, (path, value)
            faulty += not is_valid
    assert faulty > 500


# what a writer leaves behind


def test_what_is_there_stays(made, bundle, tmp_path):
    (tmp_path / "file").write_text("mine")
    (tmp_path / "folder").mkdir()
    for name in ("file", "folder", "b"):
        with pytest.raises(UsageError, match="exists already"):
            bundles.Place.of(tmp_path / name, force=False)
    # with --force a bundle is replaced, and nothing else that is a folder
    with pytest.raises(UsageError, match="is there, and no bundle"):
        bundles.Place.of(tmp_path / "folder", force=True)
    place = bundles.Place.of(bundle, force=True)
    manifest = run.read_manifest(made)
    bundles.write(place, {"run.py": b"new"}, manifest)
    assert sorted(path.name for path in bundle.iterdir()) == [
        "SHA256SUMS",
        "manifest.json",
        "run.py",
    ]
    with pytest.raises(UsageError, match="does not exist"):
        bundles.Place.of(tmp_path / "none" / "b", force=False)


@pytest.mark.parametrize("name", ["new", "new.zip", "new.tar.gz"])
def test_a_failure_leaves_nothing(made, tmp_path, name):
    manifest = run.read_manifest(made)
    before = sorted(tmp_path.iterdir())
    place = bundles.Place.of(tmp_path / name, force=False)
    with pytest.raises(OnnxOptError, match="cannot be written: No such file"):
        bundles.write(place, {"a": b"", "model": tmp_path / "gone"}, manifest)
    assert sorted(tmp_path.iterdir()) == before


def test_what_a_killed_writer_left_goes_with_the_next(made, tmp_path):
    left = tmp_path / ".new.0123abcd.tmp"
    left.mkdir()
    # without a lock on it, as after the death of its process
    (left / "onnx-opt.lock").touch()
    strange = tmp_path / ".new.strange.tmp"
    strange.mkdir()
    place = bundles.Place.of(tmp_path / "new", force=False)
    bundles.write(place, {"a": b""}, run.read_manifest(made))
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == [".new.strange.tmp", "new"]


# texts and formats


def test_names_of_a_model_are_texts_of_cpp():
    assert texts._c_text('a"b\\c?\né') == '"a\\042b\\134c\\077\\012\\303\\251"'


def test_ort_format_has_the_same_bytes_in_each_process(tmp_path):
    """ONNX Runtime's own order differs between processes; the sorted one does not."""
    onnx.save(model_from(CNN), tmp_path / "m.onnx")
    plain = tmp_path / "plain.ort"
    settings = onnxruntime.SessionOptions()
    settings.optimized_model_filepath = str(plain)
    settings.add_session_config_entry("session.save_model_format", "ORT")
    onnxruntime.InferenceSession(str(tmp_path / "m.onnx"), settings)
    content = plain.read_bytes()
    made = sorted_kernels(content)
    assert sorted_kernels(made) == made
    plain.write_bytes(made)
    feeds = {"x": np.ones((1, 3, 8, 8), np.float32)}
    outputs = [
        onnxruntime.InferenceSession(str(path)).run(None, feeds)[0]
        for path in (tmp_path / "m.onnx", plain)
    ]
    assert outputs[0] == pytest.approx(outputs[1], abs=1e-5)
    for name in "ab":
        with Worker(timeout=60) as worker:
            paths = [str(tmp_path / each) for each in ("m.onnx", name)]
            worker.call("write_ort_format", *paths, True)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


FOUR_BITS = """
<ir_version: 10, opset_import: ["" : 21]>
four_bits (int8[3] x) => (int8[3] y)
{
    c = Cast <to = 22> (x)
    y = Cast <to = 3> (c)
}
"""


@pytest.mark.parametrize(
    ("text", "operators"),
    [
        (
            MLP,
            [
                'ai.onnx;13;MatMul{"inputs": {"0": ["float"]}}',
                'ai.onnx;14;Relu{"inputs": {"0": ["float"]}}',
            ],
        ),
        # ONNX Runtime's tool does not know this type
        pytest.param(
            FOUR_BITS,
            ["ai.onnx;21;Cast"],
            marks=pytest.mark.needs("onnxruntime", "1.23", "Cast from INT4"),
        ),
    ],
)
def test_operators_of_a_model_for_a_reduced_runtime(tmp_path, text, operators):
    onnx.save(model_from(text), tmp_path / "m.onnx")
    written = str(tmp_path / "m.ort")
    with Worker(timeout=60) as worker:
        worker.call("write_ort_format", str(tmp_path / "m.onnx"), written, False)
        worker.call("write_operators", [written], str(tmp_path / "operators.config"))
    lines = (tmp_path / "operators.config").read_text().splitlines()
    assert [line for line in lines if line[0] != "#"] == operators
