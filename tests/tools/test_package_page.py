"""The page in bundles for the target web: which files, which warnings, whose licence."""

import json
from pathlib import Path

import numpy as np
import onnx
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError
from onnx_opt.tools._package.web import MODULES, RUNTIME
from onnx_opt.tools.cli import main
from sample_models import model_from

TEXTS = """
<ir_version: 10, opset_import: ["" : 21]>
texts (string[n] s) => (string[n] t)
{
    t = Identity (s)
}
"""

OF_PAGE = {"page.css", "page.js", "bundle.js", "compare.js", "npy.js"}
ROWS = {"x": np.linspace(-1, 1, 16, dtype=np.float32).reshape(2, 8)}


@pytest.fixture(autouse=True)
def _no_modules(monkeypatch):
    monkeypatch.delenv(MODULES, raising=False)


@pytest.fixture
def modules(tmp_path):
    """A folder as npm makes it, of files that nobody runs."""
    folder = tmp_path / "node_modules"
    dist = folder / "onnxruntime-web" / "dist"
    dist.mkdir(parents=True)
    for name in (*RUNTIME, "ort.all.min.mjs"):
        Path(dist, name).write_text(name)
    return folder


def packaged(model, out, **options):
    return onnx_opt.package(model, out, data=ROWS, bench=False, **options)


def web_files(folder):
    return {path.name for path in Path(folder, "web").glob("*")}


def test_other_targets_have_no_page(mlp, modules, tmp_path, monkeypatch):
    monkeypatch.setenv(MODULES, str(modules))
    facts = packaged(mlp, tmp_path / "b")
    assert facts.warnings == []
    assert not (tmp_path / "b" / "index.html").exists()
    assert web_files(tmp_path / "b") == set()
    facts = packaged(mlp, tmp_path / "c", node_modules=modules)
    assert facts.warnings == ["no page: only target web has one"]
    assert web_files(tmp_path / "c") == set()


def test_the_page_tells_what_it_lacks(mlp, tmp_path):
    facts = packaged(mlp, tmp_path / "b", target="web")
    (warning,) = facts.warnings
    assert warning.startswith("no onnxruntime-web in the bundle: its page needs")
    for name in RUNTIME:
        assert name in warning
    assert web_files(tmp_path / "b") == OF_PAGE
    assert "index.html" in facts.manifest["files"]
    assert "`index.html`: " in (tmp_path / "b" / "README.md").read_text()
    notices = (tmp_path / "b" / "NOTICES.md").read_text()
    assert "onnxruntime-web" not in notices
    # files that a user adds afterwards are none of the bundle's
    (tmp_path / "b" / "web" / RUNTIME[0]).write_text("")
    assert onnx_opt.selftest(tmp_path / "b", seconds=0).bundle == "mlp"


def test_the_runtime_comes_along_with_its_licence(mlp, modules, tmp_path, monkeypatch):
    facts = packaged(mlp, tmp_path / "b", target="web", node_modules=modules)
    assert facts.warnings == []
    copied = {*RUNTIME, "LICENSE.onnxruntime"}
    assert web_files(tmp_path / "b") == OF_PAGE | copied
    for name in RUNTIME:
        assert (tmp_path / "b" / "web" / name).read_text() == name
    notices = (tmp_path / "b" / "NOTICES.md").read_text()
    assert "is onnxruntime-web, MIT License (`web/LICENSE.onnxruntime`)" in notices
    monkeypatch.setenv(MODULES, str(modules))
    packaged(mlp, tmp_path / "c", target="web")
    manifests = [(tmp_path / name / "manifest.json").read_bytes() for name in "bc"]
    assert manifests[0] == manifests[1]


def test_a_folder_without_the_runtime_is_refused(mlp, tmp_path):
    with pytest.raises(RefusedError, match=r"has no onnxruntime-web/dist/ort\.wasm"):
        packaged(mlp, tmp_path / "b", target="web", node_modules=tmp_path)
    assert not (tmp_path / "b").exists()
    words = ["package", mlp, "-o", tmp_path / "b", "--target", "web", "--no-bench"]
    words += ["--node-modules", tmp_path, "--json"]
    done = CliRunner().invoke(main, list(map(str, words)))
    assert done.exit_code == 3
    error = json.loads(done.stdout)["error"]
    assert error["where"] == str(tmp_path)
    assert error["fix"].startswith("npm install onnxruntime-web")


def test_texts_have_no_page(tmp_path):
    path = tmp_path / "texts.onnx"
    onnx.save(model_from(TEXTS), path)
    data = {"s": np.array(["a", "b"], object)}
    facts = onnx_opt.package(path, tmp_path / "b", data=data, target="web", bench=False)
    assert "no page: it has arrays of numbers alone" in facts.warnings
    assert not (tmp_path / "b" / "index.html").exists()
