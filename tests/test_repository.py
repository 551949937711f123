"""The repository as a whole: nothing of a particular machine, the version in the changelog, the
demo's files sound.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import onnx_opt
import onnxruntime
import pytest

ROOT = Path(__file__).resolve().parents[1]
DEMO = ROOT / "tools" / "demo"
BUILT = {"build", "dist", "__pycache__"}
MACHINE_PATH = re.compile(
    r"(?<![\w./~-])/(?:home|Users|root|workspace|work|mnt|tmp|opt|srv)/[\w.-]+"
    r"|[A-Z]:\\Users\\|\.pyen[v]|site-package[s]/"
)


def text_files() -> Iterator[Path]:
    """Every text file of the tree, relative to the root."""
    for folder, folders, names in os.walk(ROOT):
        folders[:] = [
            f
            for f in folders
            if f == ".ci"
            or not (f.startswith(".") or f in BUILT or f.endswith("-info"))
        ]
        for path in (Path(folder, name) for name in names):
            if (
                path.suffix in {".py", ".md", ".toml", ".txt", ".typed", ""}
                and b"\0" not in path.read_bytes()[:1024]
            ):
                yield path.relative_to(ROOT)


def machine_paths(text: str) -> list[str]:
    return [match[0] for match in MACHINE_PATH.finditer(text)]


@pytest.mark.parametrize(
    "text",
    ["docs/home/page", "https://example.org/home/x", "a/tmp/b", "`tmp/x`", "/dev/null"],
)
def test_ordinary_text_names_no_machine(text):
    assert machine_paths(text) == []


@pytest.mark.parametrize("folder", ["home", "Users", "root", "work", "tmp", "opt"])
def test_absolute_paths_are_found(folder):
    path = "/".join(["", folder, "somebody"])
    assert machine_paths(f"data at {path}, there") == [path]


@pytest.mark.parametrize("path", sorted(text_files()), ids=lambda path: path.as_posix())
def test_no_path_of_a_particular_machine(path):
    assert machine_paths((ROOT / path).read_text(encoding="utf-8")) == []


def test_the_changelog_has_the_version():
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (\S+)", changelog, re.M)[0] == onnx_opt.__version__


def test_decisions_are_dated():
    names = sorted(path.name for path in (ROOT / "docs" / "decisions").iterdir())
    assert names
    assert [
        name
        for name in names
        if not re.fullmatch(r"\d{4}-\d\d-\d\d-[a-z0-9-]+\.md", name)
    ] == []


def test_ci_can_be_run():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "set -euo pipefail" in script.read_text(encoding="utf-8")


def test_the_demo_is_small_and_names_no_machine():
    files = [file for file in DEMO.iterdir() if file.suffix in {".onnx", ".npz"}]
    assert sum(file.stat().st_size for file in files) < 1_000_000
    assert (
        machine_paths((DEMO / "digits_cnn.onnx").read_bytes().decode("latin-1")) == []
    )


def test_the_demo_model_is_as_described():
    model = onnx.load(DEMO / "digits_cnn.onnx")
    onnx.checker.check_model(model, full_check=True)
    assert (model.opset_import[0].version, model.ir_version) == (18, 10)
    ops = [node.op_type for node in model.graph.node]
    assert ops.count("BatchNormalization") == ops.count("Conv") == 8
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "batch"


def test_the_demo_parts_are_disjoint():
    parts = [
        np.load(DEMO / f"digits_{part}.npz")["image"] for part in ("calib", "test")
    ]
    assert [part.shape for part in parts] == [(128, 1, 8, 8), (450, 1, 8, 8)]
    calib, test = ({image.tobytes() for image in part} for part in parts)
    assert calib & test == set()


def test_the_demo_model_reads_digits():
    data = np.load(DEMO / "digits_test.npz")
    session = onnxruntime.InferenceSession(
        DEMO / "digits_cnn.onnx", providers=["CPUExecutionProvider"]
    )
    (logits,) = session.run(None, {"image": data["image"]})
    assert float((logits.argmax(1) == data["labels"]).mean()) > 0.98
