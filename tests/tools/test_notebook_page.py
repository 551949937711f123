"""Pages that a notebook shows: of runs, of facts, and none of what has no page."""

import html

import onnx
import onnx_opt
import pytest
from onnx_opt import RefusedError, UsageError
from onnx_opt.tools._report.page import page_of
from sample_models import MLP, model_from


@pytest.fixture(scope="module")
def result():
    return onnx_opt.optimize(model_from(MLP), "prune(sparsity=0.5)", bench=False)


def test_a_result_shows_its_page(result):
    page = result.report()
    assert page.html == page_of(result.to_dict(), "run")
    frame = page._repr_html_()
    assert frame.startswith('<iframe sandbox="allow-scripts"')
    assert frame.count("<") == 2
    assert html.unescape(frame.partition('srcdoc="')[2]).startswith("<!doctype html>")
    assert "characters" in repr(page)


def test_with_a_path_it_is_written(result, tmp_path):
    written = result.report(tmp_path / "run.html")
    assert written.read_text() == result.report().html
    assert (
        result.report().save(tmp_path / "again.html").read_text() == written.read_text()
    )
    with pytest.raises(UsageError, match="is a folder"):
        result.report().save(tmp_path)


def test_facts_with_a_page_show_it(tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    facts = onnx_opt.diff(path, path)
    assert facts.report().html == page_of(facts.to_dict(), "diff")


def test_facts_without_a_page_say_so():
    with pytest.raises(RefusedError, match="is not the JSON of a run"):
        onnx_opt.list_passes("prune").report()
