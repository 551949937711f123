"""The page of a bundle in a real browser: outputs as expected, and no request to anywhere else."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_opt
import pytest
from browser import browsing, serving
from onnx_opt.tools._package.web import MODULES, RUNTIME
from onnx_opt.tools._run.provenance import sha256_of
from sample_models import CNN, MLP, model_from

KINDS = """
<ir_version: 10, opset_import: ["" : 21]>
kinds (float16[n, 2] half, int64[n] whole, bool[n] flag)
    => (float16[n, 2] twice, int64[n] next, bool[n] other)
{
    twice = Add (half, half)
    next = Add (whole, whole)
    other = Not (flag)
}
"""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def modules():
    named = os.environ.get(MODULES, "node_modules")
    folder = Path(named).absolute()
    if not (folder / "onnxruntime-web" / "dist" / RUNTIME[0]).is_file():
        pytest.skip(f"no onnxruntime-web: npm install it, and {MODULES}=node_modules")
    return folder


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def packaged(text, data, modules, tmp_path, passes=None, external=False):
    """The folder of a bundle for the target web."""
    path = tmp_path / "net.onnx"
    weights = {"save_as_external_data": external, "location": "weights 1.bin"}
    onnx.save(model_from(text), path, **weights, size_threshold=0)
    if passes is not None:
        small = tmp_path / "small.onnx"
        options = {"data": data, "target": "web", "bench": False}
        onnx_opt.optimize(path, passes, out=small, **options)
        path = small
    folder = tmp_path / "bundle"
    facts = onnx_opt.package(
        path, folder, target="web", data=data, bench=False, node_modules=modules
    )
    assert facts.warnings == []
    return folder


def shown(browser):
    """Cells of the page's rows, in order."""
    rows = browser.all("table tr:has(td)")
    return [
        [cell.text for cell in row.find_elements("css selector", "td")] for row in rows
    ]


SHOWN = 10
"""Elements of an array that the page shows, floats with 7 digits."""


def beginning(array):
    """The first elements of an array, as the page rounds them."""
    values = array.reshape(-1)[:SHOWN].tolist()
    if array.dtype.kind == "f":
        return [float(f"{value:.7g}") for value in values]
    return [int(value) for value in values]


def read(text):
    """Elements that a cell shows."""
    kind = float if {".", "I"}.intersection(text) else int
    return [kind(part) for part in text.removesuffix(", …").split(", ")]


def check_page(browser, folder):
    """Open the bundle's page; assert that all that it shows is as the bundle's samples have it."""
    manifest = json.loads((folder / "manifest.json").read_text())
    with serving(folder) as address:
        browser.open(address)
        verdict = browser.find("#verdict").text
        requests = browser.requests()
        complaints = browser.complaints()
    assert (
        verdict == f"All outputs of {len(manifest['samples'])} samples are as expected"
    )
    assert complaints == []
    assert requests[0] == address
    assert f"{address}model/model.onnx" in requests
    outside = [url for url in requests if not url.startswith((address, "data:"))]
    assert outside == []
    rows = shown(browser)
    expected = []
    for sample in manifest["samples"]:
        for info, file in zip(manifest["outputs"], sample["outputs"], strict=True):
            array = np.load(folder / file)
            shape = ", ".join(map(str, array.shape))
            form = f"{array.dtype.name} ({shape})"
            expected.append([info["name"], form, beginning(array)])
    assert [[row[0], row[3], read(row[5])] for row in rows] == expected
    assert {row[1] for row in rows} == {"within"}
    return rows


def test_an_integer_model_gives_the_same_outputs(browser, modules, tmp_path):
    images = np.random.default_rng(0).normal(size=(40, 3, 8, 8)).astype("f")
    passes = "quant(measure=false)"
    folder = packaged(CNN, {"x": images}, modules, tmp_path, passes)
    rows = check_page(browser, folder)
    assert len(rows) == 3
    # what is shown as the output, too
    assert [row[4] for row in rows] == [row[5] for row in rows]
    assert [row[2] for row in rows] == ["off by 0"] * 3
    assert "as packaged" in browser.find("#facts").text


def test_weights_beside_the_model_are_loaded(browser, modules, tmp_path):
    data = {"x": np.linspace(-1, 1, 48).reshape(6, 8).astype("f")}
    folder = packaged(MLP, data, modules, tmp_path, external=True)
    assert (folder / "model" / "weights 1.bin").is_file()
    for row in check_page(browser, folder):
        assert float(row[2].removeprefix("off by ")) < 1e-5


def test_halves_integers_and_truths_are_shown(browser, modules, tmp_path):
    data = {
        "half": np.array([[0.1, -65504], [6e-8, 2]], "f2"),
        "whole": np.array([2**53 + 1, -3]),
        "flag": np.array([True, False]),
    }
    folder = packaged(KINDS, data, modules, tmp_path)
    rows = check_page(browser, folder)
    assert [row[4] for row in rows][1:] == ["18014398509481986, -6", "0, 1"]


def test_a_wrong_output_and_a_changed_file_are_told(browser, modules, tmp_path):
    data = {"x": np.linspace(-1, 1, 16).reshape(2, 8).astype("f")}
    folder = packaged(MLP, data, modules, tmp_path)
    output = folder / "samples" / "0" / "output_0.npy"
    np.save(output, np.load(output) + 1)
    with serving(folder) as address:
        browser.open(address)
        assert browser.find("#verdict").text == (
            "samples/0/output_0.npy is not the file that was packaged: its sha256 differs"
        )
        manifest = json.loads((folder / "manifest.json").read_text())
        manifest["files"]["samples/0/output_0.npy"]["sha256"] = sha256_of(output)
        (folder / "manifest.json").write_text(json.dumps(manifest))
        browser.open(address)
        assert browser.find("#verdict").text == "NOT as expected: 1 of 1 outputs"
        (row,) = shown(browser)
        assert row[1].startswith("is off by 1 (at most 0.0")
        (folder / "web" / RUNTIME[0]).unlink()
        browser.open(address)
        assert "npm install onnxruntime-web" in browser.find("#verdict").text
