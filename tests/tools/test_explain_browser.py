"""Pages of `explain` in a real browser: pictures and texts with heat, markup as text."""

import json

import numpy as np
import onnx
import onnx_opt
import pytest
from browser import browsing
from explain_models import embedding, pixels

EVIL = (
    "</script><script>document.evil = 1</script><img src=x onerror='document.evil = 1'>"
)
WINDOWS = [(360, "light"), (360, "dark"), (1600, "light"), (1600, "dark")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


def with_output_named(model, name):
    for node in model.graph.node:
        node.output[:] = [name if each == "y" else each for each in node.output]
    model.graph.output[0].name = name
    return model


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """Pages of images and of tokens, with markup wherever a model or tokenizer has text."""
    del browser
    folder = tmp_path_factory.mktemp("pages")
    weights = np.random.default_rng(0).random((16, 16))
    images = folder / "images.onnx"
    onnx.save(with_output_named(pixels(weights), EVIL), images)
    pictures = np.random.default_rng(1).random((3, 1, 16, 16)).astype(np.float32)
    found = {"image": folder / "image.html", "tokens": folder / "tokens.html"}
    onnx_opt.explain(images, images, {"x": pictures}, report=found["image"])
    texts = folder / "texts.onnx"
    table = np.zeros((10, 3))
    table[5] = [9, 0, 0]
    onnx.save(embedding(table), texts)
    words = {f"w{number}": number for number in range(10) if number != 5}
    tokenizer = {
        "version": "1.0",
        "model": {"type": "WordLevel", "vocab": {**words, EVIL: 5}, "unk_token": "w0"},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    ids = np.array([[1, 4, 5, 4, 2], [1, 4, 4, 5, 2]])
    data = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    onnx_opt.explain(texts, texts, data, form="class", report=found["tokens"])
    return found


@pytest.mark.parametrize("kind", ["image", "tokens"])
@pytest.mark.parametrize(("width", "theme"), WINDOWS)
def test_pages_fit_and_ask_for_nothing(browser, pages, kind, width, theme):
    browser.open(pages[kind], width, theme)
    assert browser.complaints() == []
    assert len(browser.requests()) == 1
    assert browser.run("return document.evil") is None
    page = browser.run("return document.documentElement.scrollWidth")
    assert page <= width
    assert [each.text for each in browser.all("h2")] == [
        "Figures",
        "Samples",
        "Provenance",
    ]


def test_pictures_have_heat(browser, pages):
    browser.open(pages["image"])
    figures = browser.all(".heat")
    assert len(figures) == 3
    assert len(browser.all(".heat canvas")) == 12
    # only heat has colours: the sample itself is grey
    coloured = browser.run(
        """return [...document.querySelectorAll('.heat:first-child canvas')].map((canvas) => {
          const { data } = canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height);
          return data.some((value, place) => place % 4 === 0 && value !== data[place + 2]);
        })"""
    )
    assert coloured == [False, True, True, True]
    assert EVIL in browser.find("header p").text


def test_texts_have_heat(browser, pages):
    browser.open(pages["tokens"])
    marks = browser.run(
        """return [...document.querySelectorAll('.tokens')[0].children]
          .map((mark) => [mark.textContent, mark.style.background])"""
    )
    heats = dict(marks)
    if EVIL not in heats:
        pytest.skip("tokenizers is not installed: tokens are numbers")
    assert "0.55" in heats[EVIL]
    assert heats["w1"].endswith("/ 0)") or ", 0)" in heats["w1"]
    table = browser.find(".heat details")
    assert EVIL in browser.run("return arguments[0].textContent", table)


def test_a_notebook_shows_the_page_in_a_frame(browser, pages, tmp_path):
    """The frame's scripts run, and reach nothing of the notebook around."""
    account = tmp_path / "account.json"
    weights = np.random.default_rng(0).random((16, 16))
    model = pixels(weights).SerializeToString()
    pictures = np.random.default_rng(1).random((2, 1, 16, 16)).astype(np.float32)
    page = onnx_opt.explain(model, model, {"x": pictures}).report()
    around = tmp_path / "notebook.html"
    around.write_text(
        '<!doctype html><html data-ready="true"><meta charset="utf-8">'
        f"<body>{page._repr_html_()}</body></html>"
    )
    browser.open(around)
    frame = browser.find("iframe")
    browser.driver.switch_to.frame(frame)
    try:
        browser.wait("document.documentElement.dataset.ready === 'true'")
        assert browser.run("return document.querySelectorAll('canvas').length") == 8
    finally:
        browser.driver.switch_to.default_content()
    assert page.save(account.with_suffix(".html")).read_text() == page.html
