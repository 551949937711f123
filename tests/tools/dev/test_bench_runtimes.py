"""The table of runtimes: what counts as running, from which release on, and that a wrong rule is
found.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import bench_runtimes
from bench_runtimes import File, agrees, compared, judge

SOUND = '<ir_version: 7, opset_import: ["" : 13]> g (float[2] x) => (float[2] y) { y = Neg (x) }'
UNKNOWN = """
<ir_version: 7, opset_import: ["" : 13, "own" : 1]>
g (float[2] x) => (float[2] y) { y = own.Thing (x) }
"""


def file(says, **verdicts):
    return File(
        "a file",
        Path("a.onnx"),
        Path("a.npz"),
        says,
        {
            release.replace("_", ".").removeprefix("v"): verdict
            for release, verdict in verdicts.items()
        },
    )


@pytest.mark.parametrize(
    ("verdicts", "oldest"),
    [
        ({"v1_9_1": "exact", "v1_10_2": "close", "v1_11_0": "exact"}, "1.9"),
        (
            {"v1_9_1": "fails: no kernel", "v1_10_2": "close", "v1_11_0": "exact"},
            "1.10",
        ),
        (
            {"v1_9_1": "exact", "v1_10_2": "differs", "v1_11_0": "exact"},
            "1.11",
        ),  # every newer one must run it
        ({"v1_9_1": "exact", "v1_10_2": "exact", "v1_11_0": "fails: no kernel"}, None),
    ],
)
def test_the_oldest_from_which_on_all_run_it(verdicts, oldest):
    assert file(oldest, **verdicts).oldest == oldest
    assert agrees(file(oldest, **verdicts))
    assert not agrees(file("1.8", **verdicts))


@pytest.mark.parametrize(
    ("factor", "verdict"),
    [(1.0, "exact"), (1.05, "close"), (1.2, "differs"), (-1.0, "differs")],
)
def test_how_outputs_compare(tmp_path, factor, verdict):
    values = np.arange(1, 9, dtype=np.float32)
    np.savez(tmp_path / "a.npz", out0=values)
    np.savez(tmp_path / "b.npz", out0=values * np.float32(factor))
    assert compared(tmp_path / "a.npz", tmp_path / "b.npz") == verdict


def test_files_run_in_an_environment_and_failures_are_told(tmp_path):
    for release in ("1.0.0", "2.0.0"):
        python = bench_runtimes.python_of(tmp_path / "envs", release)
        python.parent.mkdir(parents=True)
        python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        python.chmod(0o755)
    np.savez(tmp_path / "x.npz", x=np.array([1, -2], np.float32))
    found = []
    for name, text in (("sound", SOUND), ("unknown", UNKNOWN)):
        onnx.save(onnx.parser.parse_model(text), tmp_path / f"{name}.onnx")
        found.append(File(name, tmp_path / f"{name}.onnx", tmp_path / "x.npz", "1.0"))
    judge(found, tmp_path, tmp_path / "envs", ["1.0.0", "2.0.0"])
    assert found[0].verdicts == {"2.0.0": "exact", "1.0.0": "exact"}
    assert all(
        verdict.startswith("fails: ") and "own" in verdict
        for verdict in found[1].verdicts.values()
    )
    assert [agrees(one) for one in found] == [True, False]
    with np.load(tmp_path / "2.0.0" / "sound.npz") as outputs:
        assert outputs["out0"].tolist() == [-1, 2]


def test_the_small_nets_are_what_their_forms_need(tmp_path):
    names = [
        one.name
        for one in bench_runtimes.files(
            tmp_path, ["image_net: quant(bits=4)", "opset 20", "uint4 in"]
        )
    ]
    assert names == ["image_net: quant(bits=4)", "opset 20, IR 9", "uint4 in blocks"]
