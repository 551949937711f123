"""Our files in the runtimes that people deploy to: each form runs, and says the same."""

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
from bench_forms import (
    FORMS,
    INFINITE_DB,
    Cell,
    digits,
    distance,
    encoder,
    measured,
    right,
    table,
    words,
)
from integer_kernels import arithmetic_of_this_cpu
from other_runtimes import RUNTIMES, Ran

OTHERS = [name for name in RUNTIMES if name != "onnxruntime"]

LEAST_DB = 40.0
"""Kernels of integers differ by steps of rounding (42 to 147 dB measured)."""

TOP1 = {"float": 0.99, "1 bit": 0.10}
"""Share of digits that a form must still get right; 0.98 of the others. One bit is untrained."""


INTEGERS = ("int8", "4 bits", "4 bits, tables", "1 bit")
"""Forms whose sums are of integers: arm64 gives what x86-64 with VNNI gives, bit for bit."""


def least_db(name, form):
    """Least distance (dB) of a form in a runtime."""
    is_exact = RUNTIMES[name].target == "arm64" and form in INTEGERS
    return INFINITE_DB if is_exact else LEAST_DB


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("forms")


def runtime_named(name):
    runtime = RUNTIMES[name]
    reason = runtime.missing()
    if reason is not None:
        pytest.skip(reason)
    if runtime.target == "arm64" and arithmetic_of_this_cpu() != "exact":
        pytest.skip("products of 8 bits saturate on this CPU, and not on arm64")
    return runtime


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_digits_are_read_in_every_form(name, form, folder):
    cell = measured(digits(), form, runtime_named(name), folder)
    assert cell.problem == ""
    assert cell.sqnr_db >= least_db(name, form)
    assert cell.top1 >= TOP1.get(form, 0.98)


@pytest.mark.slow
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("name", OTHERS)
def test_matrices_multiply_in_every_form(name, form, folder):
    cell = measured(encoder(folder), form, runtime_named(name), folder)
    assert cell.problem == ""
    assert cell.sqnr_db >= least_db(name, form)


def test_forms_are_what_their_names_say(folder):
    small = encoder(folder)
    local = RUNTIMES["onnxruntime"]
    sizes = {form: measured(small, form, local, folder).bytes for form in FORMS}
    assert sizes["int8"] < 0.4 * sizes["float"]
    assert sizes["4 bits, blocks"] < 0.2 * sizes["float"]
    assert sizes["fp16"] < 0.6 * sizes["float"]
    assert sizes["channels"] < 0.8 * sizes["float"]


def test_distances():
    one = Ran([np.array([3.0, 4.0]), np.array([0])], 1.0)
    assert distance(one, one) == INFINITE_DB
    other = Ran([np.array([3.0, 4.5]), np.array([0])], 1.0)
    assert distance(one, other) == pytest.approx(20.0)
    with pytest.raises(ValueError, match="shorter"):
        distance(one, Ran([np.array([3.0, 4.0])], 1.0))
    scores = Ran([np.array([[0.1, 0.9], [0.8, 0.2]])], 1.0)
    assert right(scores, np.array([1, 1])) == 0.5


def test_the_table_has_a_column_for_each_runtime_that_ran():
    ran = Cell("m", "float", "openvino", 10, sqnr_db=41.6, top1=0.5, ms=2.0)
    failed = Cell("m", "int8", "openvino", 5, problem="no kernel")
    shown = table([ran, failed])
    assert [column.header for column in shown.columns] == [
        "model",
        "form",
        "bytes",
        "openvino",
    ]
    floats = {("m", "openvino"): 4.0}
    assert words(ran, floats) == "42 dB, top1 0.500, 0.50"
    assert words(failed, floats) == "fails: no kernel"


def test_a_runtime_that_is_not_here_says_how_to_get_it(monkeypatch, tmp_path):
    web = RUNTIMES["onnxruntime-web"]
    monkeypatch.setenv("ONNX_OPT_NODE_MODULES", str(tmp_path))
    assert "npm install onnxruntime-web" in web.missing() or "node is not" in (
        web.missing()
    )
    monkeypatch.setenv("PATH", str(tmp_path))
    assert web.missing() == "node is not installed"
    assert RUNTIMES["onnxruntime"].missing() is None


def test_what_a_runtime_raises_is_its_cell(folder):
    broken = RUNTIMES["openvino"].__class__(
        "broken", "cpu", lambda path, feeds: 1 / 0, lambda: None
    )
    cell = measured(encoder(folder), "float", broken, folder)
    assert cell.problem == "division by zero"
    assert cell.sqnr_db is None
