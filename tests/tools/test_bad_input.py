"""Bad input at the command line: one error with a fix, exit code 2 or 3, nothing written, nothing
lost.
"""

import io
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx import TensorProto, helper, parser
from onnx_opt.tools.cli import main

MODEL = """
<ir_version: 10, opset_import: ["" : 21]>
small (float[N, 2] x) => (float[N, 2] y)
<float[2, 2] w = {1, 2, 3, 4}>
{
    h = MatMul (x, w)
    y = Relu (h)
}
"""


def model() -> onnx.ModelProto:
    return parser.parse_model(MODEL)


def changed(change) -> bytes:
    proto = model()
    change(proto)
    return proto.SerializeToString()


def outside(location: str):
    def change(proto):
        tensor = proto.graph.initializer[0]
        for field in ("raw_data", "float_data"):
            tensor.ClearField(field)
        tensor.data_location = TensorProto.EXTERNAL
        tensor.external_data.add(key="location", value=location)

    return change


def map_output(proto):
    proto.graph.output.append(
        helper.make_value_info(
            "p",
            helper.make_map_type_proto(
                TensorProto.INT64,
                helper.make_tensor_type_proto(TensorProto.FLOAT, None),
            ),
        )
    )


BAD_MODELS = {
    "empty": (b"", "is empty"),
    "png": (b"\x89PNG\r\n\x1a\n" + bytes(40), "PNG image"),
    "lfs pointer": (
        b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n",
        "Git LFS pointer",
    ),
    "zip": (b"PK\x03\x04" + bytes(40), "zip archive"),
    "text": (b"not a model\n", "text file"),
    "zeros": (bytes(500), "is not an ONNX model"),
    "truncated": (model().SerializeToString()[:-20], "cut short"),
    "no graph": (
        onnx.ModelProto(
            ir_version=10, opset_import=[helper.make_opsetid("", 21)]
        ).SerializeToString(),
        "no graph",
    ),
    "opset 9999": (
        changed(lambda m: setattr(m.opset_import[0], "version", 9999)),
        "opset 9999",
    ),
    "IR version 99": (changed(lambda m: setattr(m, "ir_version", 99)), "IR version 99"),
    "unknown domain": (
        changed(lambda m: setattr(m.graph.node[0], "domain", "my.domain")),
        "does not import",
    ),
    "unknown operator": (
        changed(lambda m: setattr(m.graph.node[0], "op_type", "Frobnicate")),
        "no such operator",
    ),
    "cycle": (changed(lambda m: m.graph.node[0].input.__setitem__(0, "y")), "cycle"),
    "undefined value": (
        changed(lambda m: m.graph.node[0].input.__setitem__(0, "ghost")),
        "'ghost'",
    ),
    "short raw data": (
        changed(lambda m: setattr(m.graph.initializer[0], "raw_data", bytes(5))),
        "tensor 'w'",
    ),
    "map output": (changed(map_output), "zipmap"),
    "weights missing": (
        changed(outside("weights.bin")),
        "weights file 'weights.bin' is missing",
    ),
    "weights above": (changed(outside("../secret.bin")), "outside the model's folder"),
    "weights absolute": (changed(outside("/etc/hostname")), "absolute path"),
    "weights behind a link": (changed(outside("link.bin")), "link to a place outside"),
    "weights are a FIFO": (changed(outside("fifo.bin")), "not a regular file"),
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder to work in, with a sound model in it and a secret above it."""
    (tmp_path / "secret.bin").write_bytes(bytes(16))
    work = tmp_path / "work"
    work.mkdir()
    (work / "link.bin").symlink_to(tmp_path / "secret.bin")
    os.mkfifo(work / "fifo.bin")
    (work / "m.onnx").write_bytes(model().SerializeToString())
    monkeypatch.chdir(work)
    return work


def snapshot(folder: Path) -> dict[str, bytes | None]:
    """Every path below the folder and the one above it, with the contents of the files."""
    return {
        str(p): p.read_bytes() if p.is_file() else None
        for p in sorted(folder.parent.rglob("*"))
    }


def refused(folder: Path, capfd, *args: object) -> tuple[int, str, str]:
    """Run the command, which must refuse: (exit code, error line, fix line), both lines checked for
    form.
    """
    before = snapshot(folder)
    result = CliRunner().invoke(main, [str(a) for a in args])
    assert snapshot(folder) == before
    assert result.exit_code in (2, 3), result.output
    lines = result.stderr.splitlines()
    assert len(lines) == 2, result.stderr
    assert lines[0].startswith("error: ")
    assert lines[1].startswith("  fix: ")
    assert len(lines[1]) > len("  fix: ")
    if "--json" in args:
        assert json.loads(result.stdout)["error"]["exit_code"] == result.exit_code
    else:
        assert result.stdout == ""
    assert capfd.readouterr() == ("", "")  # nothing from C++ either
    return result.exit_code, lines[0], lines[1]


@pytest.mark.parametrize("name", BAD_MODELS)
def test_a_bad_model_is_refused(folder, capfd, name):
    data, reason = BAD_MODELS[name]
    (folder / "bad.onnx").write_bytes(data)
    code, error, fix = refused(folder, capfd, "bad.onnx", "--passes", "prune")
    assert code == 3
    assert error.startswith("error: bad.onnx: ")
    assert reason in error + fix


@pytest.mark.parametrize(
    "args",
    [
        ["inspect", "bad.onnx"],
        ["verify", "bad.onnx", "m.onnx"],
        ["verify", "m.onnx", "bad.onnx"],
        ["bench", "m.onnx", "bad.onnx"],
        ["eval", "bad.onnx", "--data", "d.npz", "--metric", "top1"],
        ["run", "bad.onnx", "--dry-run"],
        ["bad.onnx", "--json"],
    ],
    ids=" ".join,
)
@pytest.mark.parametrize("name", ["png", "truncated", "weights above"])
def test_every_command_refuses_a_bad_model(folder, capfd, args, name):
    np.savez(
        folder / "d.npz", x=np.ones((4, 2), np.float32), labels=np.zeros(4, np.int64)
    )
    data, reason = BAD_MODELS[name]
    (folder / "bad.onnx").write_bytes(data)
    code, error, _ = refused(folder, capfd, *args)
    assert code == 3
    assert error.startswith("error: bad.onnx: ")
    assert reason in error


@pytest.mark.parametrize(
    "args",
    [
        ["none.onnx"],
        ["inspect", "none.onnx"],
        ["verify", "m.onnx", "none.onnx"],
        ["bench", "none.onnx"],
    ],
    ids=" ".join,
)
def test_a_missing_model_is_named(folder, capfd, args):
    _, error, fix = refused(folder, capfd, *args)
    assert "none.onnx" in error
    assert "m.onnx" in fix


def test_a_folder_is_no_model(folder, capfd):
    assert "is a folder" in refused(folder, capfd, ".")[1]


@pytest.mark.parametrize(
    ("out", "reason"),
    [
        ("m.onnx", "input model itself"),
        ("./m.onnx", "input model itself"),
        (".", "is a folder"),
        ("none/out.onnx", "does not exist"),
        ("m.onnx/out.onnx", "does not exist"),
        ("/proc/out.onnx", "cannot be written"),
        ("fifo.bin", "not a regular file"),
        ("n" * 300, "cannot be written"),
    ],
)
def test_an_output_that_cannot_be_written_is_refused_first(folder, capfd, out, reason):
    code, error, _ = refused(folder, capfd, "m.onnx", "-o", out)
    assert code == 2
    assert reason in error


def unknown_compression() -> bytes:
    """An archive whose directory says method 99."""
    file = io.BytesIO()
    np.savez(file, x=np.ones((4, 2), np.float32))
    archive = bytearray(file.getvalue())
    archive[archive.rindex(b"PK\x01\x02") + 10] = 99
    return bytes(archive)


BAD_DATA = {
    "missing": (None, "d.npz"),
    "not an archive": (b"hello", "d.npz"),
    "empty": (b"", "d.npz"),
    "wrong name": (
        {"z": np.ones((4, 2), np.float32), "q": np.ones(4, np.float32)},
        "x",
    ),
    "wrong rank": ({"x": np.ones((4, 2, 2), np.float32)}, "x"),
    "wrong dim": ({"x": np.ones((4, 3), np.float32)}, "x"),
    "wrong type": ({"x": np.ones((4, 2), np.complex64)}, "x"),
    "text": ({"x": np.array([["a", "b"]])}, "x"),
    "NaN": ({"x": np.full((4, 2), np.nan, np.float32)}, "NaN"),
    "infinite": ({"x": np.full((4, 2), np.inf, np.float32)}, "x"),
    "no samples": ({"x": np.ones((0, 2), np.float32)}, "d.npz"),
    "a header cut short": (
        b"\x93NUMPY\x01\x00\x10\x00{'descr': (((((((\n",
        "d.npz",
    ),
    "an unknown compression": (
        unknown_compression(),
        "d.npz",
    ),
    "a negative shape": (
        b"\x93NUMPY\x01\x00\x46\x00"
        b"{'descr': '<f4', 'fortran_order': True, 'shape': (8, -2), }          \n",
        "d.npz",
    ),
    "a pickle": ({"x": np.array([{"a": 1}], object)}, "d.npz"),
}


@pytest.mark.parametrize("name", BAD_DATA)
def test_bad_data_is_refused(folder, capfd, name):
    content, word = BAD_DATA[name]
    if isinstance(content, bytes):
        (folder / "d.npz").write_bytes(content)
    elif content is not None:
        np.savez(folder / "d.npz", **content)
    code, error, fix = refused(
        folder, capfd, "m.onnx", "--data", "d.npz", "--passes", "quant"
    )
    assert code == 3
    assert word in error + fix


@pytest.mark.parametrize(
    ("data", "word"),
    [
        ("nomodule:batches", "nomodule"),
        ("m.onnx", "m.onnx"),
        (".", "."),
        ("d.py:none", "none"),
        ("d.py:broken", "broken"),
        ("d.py:number", "number"),
    ],
)
def test_bad_loaders_are_refused(folder, capfd, data, word):
    (folder / "d.py").write_text(
        "def broken():\n    raise KeyError('oops')\n\ndef number():\n    return 3\n"
    )
    _, error, fix = refused(
        folder, capfd, "m.onnx", "--data", data, "--passes", "quant"
    )
    assert word in error + fix


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (
            ["--passes", "prune(sparsity=1.5)"],
            ["prune.sparsity", "1.5 is outside [0.0, 0.99]", "default is auto"],
        ),
        (
            ["--passes", "prune(sparsty=0.5)"],
            ["prune.sparsty", "did you mean 'sparsity'?"],
        ),
        (["--passes", "prume"], ["prume", "did you mean 'prune'?"]),
        (["--passes", "prune(sparsity=abc)"], ["prune.sparsity", "'abc'"]),
        (["--passes", "prune(sparsity=[0.5])"], ["prune.sparsity", "is not"]),
        (["--passes", "prune(scope=world)"], ["prune.scope", "layer"]),
        (["--passes", "prune("], ["column"]),
        (["--passes", ""], ["pass"]),
        (["--passes", "@none.toml"], ["none.toml"]),
        (["--target", "abacus"], ["--target", "cpu"]),
        (["--metric", "top1"], ["--metric", "data"]),
        (["--max-drop", "0.1"], ["--max-drop", "metric"]),
        (["--seed", "-1"], ["--seed"]),
        (["--sed", "1"], ["--sed", "--seed"]),
        (["extra.onnx"], ["extra"]),
    ],
)
def test_bad_options_are_usage_errors(folder, capfd, args, words):
    code, error, fix = refused(folder, capfd, "m.onnx", *args)
    assert code == 2
    for word in words:
        assert word in error + fix


def test_terminal_codes_in_names_are_not_printed(folder, capfd):
    (folder / "bad.onnx").write_bytes(
        changed(lambda m: m.graph.node[0].input.__setitem__(0, "e\x1b[31mvil\nname"))
    )
    _, error, fix = refused(folder, capfd, "bad.onnx")
    assert (error + fix).isprintable()
    os.rename(folder / "bad.onnx", folder / "b\x1b[31ma\nd.onnx")
    _, error, fix = refused(folder, capfd, "b\x1b[31ma\nd.onnx")
    assert (error + fix).isprintable()


def test_terminal_codes_in_names_are_not_printed_as_json_either(folder):
    name = "e\x1b[31m\x7f\x9b\u202evil"
    proto = model()
    proto.graph.name = name
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    result = CliRunner().invoke(main, ["inspect", "m.onnx", "--json"])
    assert result.stdout.replace("\n", "").isprintable()
    assert json.loads(result.stdout)["model"]["name"] == name


@pytest.mark.parametrize("text", ["(" * 100_000, "x" * 100_000, "prune(" * 3000])
def test_an_error_has_a_length_that_one_reads(folder, capfd, text):
    _, error, fix = refused(folder, capfd, "m.onnx", "--passes", text)
    assert len(error) < 2000
    assert len(fix) < 1000


def test_a_model_that_asks_for_any_memory_is_not_run(folder):
    """An input that cannot be made up is named, and the rest of the run goes on."""
    proto = model()
    for info in (proto.graph.input[0], proto.graph.output[0]):
        info.type.tensor_type.shape.dim[0].dim_value = 2**62
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    arguments = ["m.onnx", "--passes", "simplify", "--no-bench", "--quiet"]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.stderr
    assert "no finite outputs on synthetic feeds" in result.stderr


def test_what_was_refused_is_untouched_and_works_afterwards(folder, capfd):
    refused(folder, capfd, "m.onnx", "-o", "m.onnx")
    args = [
        "m.onnx",
        "-o",
        "m.onnx",
        "--force",
        "--passes",
        "prune(sparsity=0.5)",
        "--json",
        "--no-bench",
    ]
    result = CliRunner().invoke(main, args)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout)["output_path"] == "m.onnx"
    assert (
        onnx.numpy_helper.to_array(onnx.load("m.onnx").graph.initializer[0]) == 0
    ).sum() == 2


@pytest.mark.parametrize("name", ["zeros", "opset 9999"])
def test_a_real_process_prints_the_same_two_lines(folder, name):
    (folder / "bad.onnx").write_bytes(BAD_MODELS[name][0])
    done = subprocess.run(
        [sys.executable, "-m", "onnx_opt", "bad.onnx"],
        capture_output=True,
        text=True,
        timeout=60,
        env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert done.returncode == 3
    assert done.stdout == ""
    assert [line[:7] for line in done.stderr.splitlines()] == ["error: ", "  fix: "]
    assert sorted(p.name for p in folder.iterdir()) == [
        "bad.onnx",
        "fifo.bin",
        "link.bin",
        "m.onnx",
    ]
