"""`finetune` in a run, and `distill`: by ONNX Runtime on the written file; bad input leaves no
file.
"""

import json

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError, UsageError, optimize
from onnx_opt.passes.finetune import Finetune
from onnx_opt.tools._run import context
from onnx_opt.tools.cli import main
from onnx_opt.tools.commands.distill import as_pass
from onnx_opt.tools.demo import __path__ as demo_path

torch = pytest.importorskip("torch")
DEMO = f"{next(iter(demo_path))}/digits_cnn.onnx"

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 6] INPUT) => (float[n, 4] y)
{
    a = MatMul (INPUT, w1)
    h = Add (a, b1)
    r = Relu (h)
    y = Gemm (r, w2, b2)
}
"""


def net(path, hidden, seed, name="x"):
    random = np.random.default_rng(seed)
    proto = onnx.parser.parse_model(NET.replace("INPUT", name))
    for key, shape in (
        ("w1", (6, hidden)),
        ("b1", (hidden,)),
        ("w2", (hidden, 4)),
        ("b2", (4,)),
    ):
        size = 2 / np.sqrt(shape[0]) if len(shape) == 2 else 0.1
        array = (size * random.normal(size=shape)).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(array, key))
    onnx.save(proto, path)
    return path


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture
def files(tmp_path):
    """A teacher, a narrower student, and 256 rows without labels and with the teacher's classes."""
    import onnxruntime

    teacher = net(tmp_path / "teacher.onnx", 16, 0)
    net(tmp_path / "student.onnx", 8, 1)
    x = np.random.default_rng(2).normal(size=(256, 6)).astype(np.float32)
    y = onnxruntime.InferenceSession(str(teacher)).run(None, {"x": x})[0].argmax(1)
    np.savez(tmp_path / "data.npz", x=x)
    np.savez(tmp_path / "labelled.npz", x=x, labels=y)
    return tmp_path


def test_a_pruned_model_recovers_and_is_written(files):
    out = files / "out.onnx"
    result = optimize(
        files / "teacher.onnx",
        "prune(sparsity=0.6), finetune(steps=120, labels=0)",
        out=out,
        data=str(files / "data.npz"),
        metric="top1",
        eval_data=str(files / "labelled.npz"),
        bench=False,
    )
    tuned = result.passes[1]
    assert tuned.changed == 4
    assert tuned.stats["after"] > tuned.stats["before"]
    assert result.metric["after"] > 0.7  # of four classes
    assert result.output.nonzero < 0.6 * result.input.nonzero


def test_quantized_weights_train_from_their_floats(files):
    result = optimize(
        files / "teacher.onnx",
        "quant(bits=3, measure=false), finetune(steps=120)",
        data=str(files / "data.npz"),
        bench=False,
    )
    quant, tuned = result.passes
    assert tuned.stats["preset"] == "qad"
    assert tuned.stats.get("after", 1.0) >= tuned.stats.get("before", 0.0)
    assert quant.changed


def test_without_data_nothing_happens(files):
    result = optimize(files / "teacher.onnx", "finetune", bench=False)
    assert result.passes[0].changed == 0
    assert any("nothing to train on" in warning for warning in result.warnings)


@pytest.mark.parametrize("rows", [5, 20])
def test_too_little_data_leaves_what_was_pruned(files, rows):
    x = np.random.default_rng(0).normal(size=(rows, 6)).astype(np.float32)
    np.savez(files / "few.npz", x=x)
    result = optimize(
        files / "teacher.onnx",
        "prune(sparsity=0.2), finetune",
        data=str(files / "few.npz"),
        bench=False,
    )
    pruned, tuned = result.passes[:2]
    assert (pruned.changed > 0, tuned.changed) == (True, 0)
    assert f"holds {rows} samples: too few" in tuned.declined[0]["reason"]
    assert any(f"holds {rows} samples" in warning for warning in result.warnings)


@pytest.mark.parametrize("passes", ["finetune(steps=5)", "finetune(student)"])
def test_too_little_data_for_a_training_that_must_be_writes_nothing(files, passes):
    out = files / "out.onnx"
    np.savez(files / "few.npz", x=np.zeros((5, 6), np.float32))
    with pytest.raises(RefusedError, match="holds 5 samples"):
        optimize(
            files / "teacher.onnx",
            f"prune, {passes}",
            out=out,
            data=str(files / "few.npz"),
            bench=False,
        )
    assert not out.exists()


def test_without_torch_it_says_so(files, monkeypatch):
    import builtins
    import sys

    real = builtins.__import__

    def without(name, *rest):
        if name == "torch" or name.startswith("torch."):
            raise ModuleNotFoundError("No module named 'torch'", name="torch")
        return real(name, *rest)

    for name in [
        n for n in sys.modules if n.startswith(("onnx_opt.frontends.train", "torch"))
    ]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setattr(builtins, "__import__", without)
    out = files / "out.onnx"
    with pytest.raises(UsageError, match="not installed, and training needs it"):
        optimize(
            files / "teacher.onnx",
            "finetune",
            out=out,
            data=str(files / "data.npz"),
            bench=False,
        )
    assert not out.exists()


def test_distill_teaches_an_untrained_student(files):
    out = files / "out.onnx"
    found = CliRunner().invoke(
        main,
        [
            "distill",
            str(files / "teacher.onnx"),
            str(files / "student.onnx"),
            "--init",
            "--json",
            "-o",
            str(out),
            "--data",
            str(files / "data.npz"),
            "--eval-data",
            str(files / "labelled.npz"),
            "--metric",
            "top1",
            "--recipe",
            "steps=300",
        ],
    )
    assert found.exit_code == 0, found.output
    report = json.loads(found.stdout)
    assert report["passes"][0]["pass"] == "finetune"
    assert report["passes"][0]["stats"]["preset"] == "student"
    assert report["metric"]["after"] > report["metric"]["before"] + 0.2
    assert onnx.load(out).graph.node[0].op_type == "MatMul"


def test_a_teacher_whose_input_has_another_name(files):
    net(files / "other.onnx", 16, 0, name="features")
    result = optimize(
        files / "student.onnx",
        "finetune(student, steps=100)",
        teacher=files / "other.onnx",
        data=str(files / "data.npz"),
        bench=False,
    )
    assert result.passes[0].changed == 4


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "--data"),
        (["--data", "data.npz", "--recipe", "steps=-1"], 2, "finetune.steps"),
        (["--data", "data.npz", "--recipe", "setps=1"], 2, "did you mean 'steps'"),
        (["--data", "nothing.npz"], 3, "no such file"),
        (["--data", "data.npz", "--recipe", "watch=labels"], 3, "no labels"),
    ],
)
def test_bad_input(files, monkeypatch, arguments, code, message):
    monkeypatch.chdir(files)
    found = CliRunner().invoke(
        main, ["distill", "teacher.onnx", "student.onnx", "-o", "out.onnx", *arguments]
    )
    assert (found.exit_code, message in found.stderr) == (code, True), found.stderr
    assert not (files / "out.onnx").exists()


def test_the_recipe_is_the_options_of_the_pass():
    assert as_pass("").passes == (Finetune(preset="student"),)
    assert as_pass("recover, minutes=2, flip=true").passes == (
        Finetune(preset="recover", minutes=2.0, flip=True),
    )


@pytest.mark.parametrize(
    ("environment", "follows"),
    [
        ({}, False),
        ({"RANK": "1"}, False),
        ({"RANK": "0", "WORLD_SIZE": "2"}, False),
        ({"RANK": "1", "WORLD_SIZE": "2"}, True),
    ],
)
def test_only_the_first_process_writes(environment, follows, monkeypatch):
    for name in ("RANK", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert context.is_main_process() is not follows


def test_float_constants_are_found_in_both_places():
    import onnx_ir as ir

    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    both (float[2] x) => (float[2] y) <float[2] w = {1, 2}, int64[1] i = {0}>
    {
        c = Constant <value = float[2] {3, 4}> ()
        s = Constant <value_int = 1> ()
        a = Mul (x, w)
        y = Add (a, c)
    }
    """
    found = context.float_constants(ir.from_proto(onnx.parser.parse_model(text)))
    assert {name: array.tolist() for name, array in found.items()} == {
        "w": [1, 2],
        "c": [3, 4],
    }
