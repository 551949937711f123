"""Pages in a real browser: drawn, usable on phones and wide screens, asking for nothing."""

import json
import os
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnx_opt
import pytest
from browser import browsing
from onnx import TensorProto, helper, numpy_helper
from onnx_opt import optimize
from onnx_opt.tools._report.graph import graph_of
from onnx_opt.tools._report.page import page_of
from sample_models import CNN, MLP, model_from

EVIL = (
    "</script><script>document.evil = 1</script><img src=x onerror='document.evil = 1'>"
)
DATA = Path(
    os.environ.get(
        "ONNX_OPT_DATA", Path(__file__).resolve().parents[2] / "../shared/data"
    )
)
RESNET = DATA / "models" / "cifar10_resnet20.onnx"
WINDOWS = [(360, "light"), (360, "dark"), (1600, "light"), (1600, "dark")]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with browsing(tmp_path_factory.mktemp("profile")) as found:
        yield found


@pytest.fixture(scope="module")
def pages(browser, tmp_path_factory):
    """One page of each kind, of models whose texts would be markup."""
    # the browser first: without one nothing need be made
    del browser
    folder = tmp_path_factory.mktemp("pages")
    model = model_from(CNN)
    for index, node in enumerate(model.graph.node):
        node.name = f"stage{index // 3}.{index}.{node.op_type}"
    model.graph.node[3].name = EVIL
    model.producer_name = EVIL
    helper.set_model_props(model, {EVIL: EVIL})
    source = folder / "evil.onnx"
    onnx.save(model, source)
    images = np.random.default_rng(0).standard_normal((64, 3, 8, 8))
    data = {"x": images.astype(np.float32)}
    out = folder / "out.onnx"
    found = {
        kind: folder / f"{kind}.html" for kind in ("run", "inspect", "diff", "bench")
    }
    passes = "simplify, prune-channels(ratio=0.5), prune(sparsity=0.5), quant(int8)"
    optimize(source, passes, data=data, out=out, force=True, report=found["run"])
    onnx_opt.inspect(source, html=found["inspect"])
    onnx_opt.diff(source, out, html=found["diff"])
    onnx_opt.bench(source, out, seconds=0.2, report=found["bench"])
    return found


MOST_BYTES = 5_000_000


def is_quick(browser):
    """True if the page at hand was there, drawn, within two seconds."""
    entry = "performance.getEntriesByType('navigation')[0]"
    return 0 < browser.run(f"return {entry}.loadEventEnd") < 2_000


KINDS = ("run", "inspect", "diff", "bench")


@pytest.mark.parametrize(("width", "theme"), WINDOWS)
@pytest.mark.parametrize("kind", KINDS)
def test_pages_are_drawn_and_ask_for_nothing(browser, pages, kind, width, theme):
    browser.open(pages[kind], width, theme)
    assert is_quick(browser)
    assert pages[kind].stat().st_size < MOST_BYTES
    assert browser.complaints() == []
    assert browser.requests() == [pages[kind].as_uri()]
    assert browser.run("return document.evil") is None
    assert browser.run("return document.querySelectorAll('img, iframe').length") == 0
    # nothing lies beyond the edge of the window
    assert browser.run("return document.documentElement.scrollWidth") <= width
    drawn = browser.run(
        "return [...document.querySelectorAll('.plot')].map((place) => [place.ariaLabel, "
        "place.querySelectorAll('svg path, svg rect, svg circle, svg line').length])"
    )
    assert drawn
    assert [label for label, marks in drawn if not marks] == []
    # behind every plot its table
    tables = browser.run(
        "return [...document.querySelectorAll('figure')].map("
        "(each) => each.querySelectorAll('details tbody tr').length)"
    )
    assert min(tables) > 0


CONTRAST = """
const luminance = (color) => {
  const [r, g, b] = color.match(/[0-9.]+/g).slice(0, 3).map((each) => {
    const share = each / 255;
    return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4;
  });
  return 0.2126 * r + 0.7152 * g + 0.0722 * b;
};
const shown = document.createElement("p");
document.body.append(shown);
const value = (name) => {
  shown.style.color = `var(--${name})`;
  return luminance(getComputedStyle(shown).color);
};
return arguments[0].map(([ink, ground]) => {
  const [low, high] = [value(ink), value(ground)].sort((a, b) => a - b);
  return (high + 0.05) / (low + 0.05);
});
"""


@pytest.mark.parametrize("theme", ["light", "dark"])
def test_colours_can_be_told_apart(browser, pages, theme):
    """Text and marks as WCAG 2.2 asks (1.4.3, 1.4.11): 4.5 for text, 3 for marks."""
    browser.open(pages["run"], theme=theme)
    grounds = ("ground", "surface")
    texts = [(ink, ground) for ink in ("ink", "muted", "after") for ground in grounds]
    assert min(browser.run(CONTRAST, texts)) >= 4.5
    marks = ("after", "before-line", "third", "good", "bad", "focus")
    pairs = [(mark, ground) for mark in marks for ground in grounds]
    assert min(browser.run(CONTRAST, pairs)) >= 3
    # bars lie on one another
    assert min(browser.run(CONTRAST, [("after", "before")])) >= 3


@pytest.mark.parametrize("width", [360, 1600])
@pytest.mark.parametrize("kind", KINDS)
def test_links_lead_to_their_sections(browser, pages, kind, width):
    browser.open(pages[kind], width)
    names = browser.run(
        "return [...document.querySelectorAll('section')].map((e) => e.id)"
    )
    links = browser.run(
        "return [...document.querySelectorAll('nav a')].map((e) => e.hash)"
    )
    assert links == [f"#{name}" for name in names]
    for name in names:
        browser.run(
            "document.querySelector(arguments[0]).click()", f'nav a[href="#{name}"]'
        )
        browser.settle()
        top = browser.run(
            "return document.getElementById(arguments[0]).offsetTop", name
        )
        seen = browser.run("return [scrollY, scrollY + innerHeight]")
        assert seen[0] <= top < seen[1]
        bottom = browser.run(
            "return document.querySelector('nav').getBoundingClientRect().bottom"
        )
        heading = browser.run(
            "return document.querySelector(`#${arguments[0]} h2`).getBoundingClientRect().top",
            name,
        )
        # not behind the bar, unless the page ends before
        assert heading >= bottom - 1


@pytest.mark.parametrize("width", [360, 1600])
def test_filters_leave_what_matches(browser, pages, width):
    browser.open(pages["run"], width)
    bars = '.plot[aria-label^="Size by layer"] [aria-label="y-axis tick label"] text'
    names = [each.text for each in browser.all(bars)]
    assert len(names) > 2
    browser.find("#layers input[type=search]").send_keys("GEMM")
    browser.wait(f"document.querySelectorAll('{bars}').length === 1")
    rows = "#declined tbody tr"
    before = len(browser.all(rows))
    browser.find("#declined input").send_keys("no such thing")
    browser.wait(f"document.querySelectorAll('{rows}').length === 0")
    assert browser.find("#declined [role=status]").text == "Nothing matches."
    assert before > 0
    assert browser.complaints() == []


def test_tables_sort_by_each_column(browser, pages):
    browser.open(pages["run"])
    size = "#layers figure:first-of-type"
    browser.find(f"{size} summary").click()
    heading = browser.all(f"{size} thead button")[2]
    rows = f"document.querySelectorAll('{size} tbody tr')"
    cells = f"return [...{rows}].map((row) => row.cells[2].innerText)"

    def shown():
        scales = {"B": 1, "kB": 1e3, "MB": 1e6}
        texts = [text.split() for text in browser.run(cells) if text != "?"]
        return [float(number) * scales[unit] for number, unit in texts]

    heading.click()
    assert shown() == sorted(shown(), reverse=True)
    heading.click()
    assert shown() == sorted(shown())
    assert (
        browser.find(f"{size} th[aria-sort]").get_attribute("aria-sort") == "ascending"
    )


def test_colours_can_be_chosen(browser, pages):
    browser.open(pages["run"], theme="light")
    colour = "return getComputedStyle(document.body).backgroundColor"
    light = browser.run(colour)
    for _ in range(2):
        browser.find("button.theme").click()
    dark = browser.run(colour)
    browser.open(pages["run"], theme="dark")
    assert browser.run(colour) == dark != light


def test_a_run_has_every_plot_of_its_layers(browser, pages):
    browser.open(pages["run"])
    headings = [each.text for each in browser.all("#layers h3")]
    assert headings == [
        "Size by layer",
        "Bits by layer",
        "Sparsity by layer",
        "Channels kept by layer",
        "Loss by layer",
        "Weights",
    ]


# the graph


def test_modules_fold_by_keyboard(browser, pages):
    from selenium.webdriver.common.keys import Keys

    browser.open(pages["inspect"])
    browser.find(".buttons button").click()
    stop = browser.find('.picture [tabindex="0"]')
    browser.run("arguments[0].focus()", stop)
    for _ in range(20):
        active = browser.driver.switch_to.active_element
        if active.get_attribute("aria-expanded") == "false":
            break
        active.send_keys(Keys.ARROW_RIGHT)
    name = active.get_attribute("data-id")
    assert active.get_attribute("aria-label").endswith("folded")
    active.send_keys(Keys.ENTER)
    active = browser.driver.switch_to.active_element
    assert active.get_attribute("data-id") == name
    assert active.get_attribute("aria-expanded") == "true"
    active.send_keys(Keys.ENTER)
    active = browser.driver.switch_to.active_element
    assert active.get_attribute("aria-expanded") == "false"
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 1600])
def test_a_search_opens_what_it_finds(browser, pages, width):
    browser.open(pages["diff"], width)
    browser.find("#graph input").send_keys("onerror")
    browser.wait("document.querySelectorAll('.results button').length > 0")
    browser.find(".results button").click()
    details = browser.find(".details")
    # the text of the model, as it stands there
    assert EVIL in details.text
    assert browser.find(".picture .selected").is_displayed()
    inside = browser.run(
        "const box = (e) => document.querySelector(e).getBoundingClientRect();"
        "const [a, b] = [box('.picture'), box('.picture .selected')];"
        "return b.left >= a.left - 1 && b.right <= a.right + 1 && b.top >= a.top - 1 "
        "&& b.bottom <= a.bottom + 1"
    )
    assert inside
    assert browser.run("return document.evil") is None


def test_differences_are_marked_by_signs_too(browser, pages):
    browser.open(pages["diff"])
    field = browser.find("#graph input")
    for words, sign in (("stage0.0.conv", "~"), ("batchnormalization", "−")):
        field.clear()
        field.send_keys(words)
        browser.wait(
            "[...document.querySelectorAll('.results button')].some("
            f"(each) => each.textContent.toLowerCase().includes('{words}'))"
        )
        texts = [each.text for each in browser.all(".results button")]
        assert {text.split()[0] for text in texts} == {sign}


def deep_model(layers):
    """15 nodes a layer, in modules named as torch names them."""
    nodes, tensors, last = [], [], "x"
    weight = np.eye(4, dtype=np.float32)

    def add(op, inputs, name):
        output = f"v{len(nodes)}"
        nodes.append(helper.make_node(op, inputs, [output], name=name))
        return output

    for index in range(layers):
        tensors.append(numpy_helper.from_array(weight, f"layers.{index}.weight"))
        module = f"/model/layers.{index}"
        start = last
        product = add("MatMul", [start, tensors[-1].name], f"{module}/attn/MatMul")
        last = add("Add", [product, start], f"{module}/Add")
        for step in range(12):
            last = add("Tanh", [last], f"{module}/mlp/{step}/Tanh")
        last = add("Add", [last, start], f"{module}/Add_1")
    nodes.append(helper.make_node("Identity", [last], ["y"], name="/out"))
    ends = [
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", 4])]
        for name in "xy"
    ]
    graph = helper.make_graph(nodes, "deep", *ends, tensors)
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])


@pytest.mark.parametrize("has_names", [True, False])
def test_thousands_of_nodes_open_at_once(browser, tmp_path, has_names):
    proto = deep_model(200)
    if not has_names:
        for node in proto.graph.node:
            node.name = ""
    graph = graph_of(ir.from_proto(proto))
    assert len(graph["nodes"]) == 3003
    facts = onnx_opt.inspect(model_from(MLP)).to_dict()
    path = tmp_path / "deep.html"
    path.write_text(page_of(facts, "inspect", graph), encoding="utf-8")
    assert path.stat().st_size < MOST_BYTES
    browser.open(path)
    assert is_quick(browser)
    # folded: few enough to be read
    assert 1 < len(browser.all(".picture [data-id]")) < 30
    for step in range(3):
        # it may lie outside of what is seen
        module = browser.find('.picture [aria-expanded="false"]')
        browser.run("arguments[0].dispatchEvent(new MouseEvent('click'))", module)
        assert len(browser.all(".picture [data-id]")) < 30 + 50 * (step + 1)
    assert browser.complaints() == []


@pytest.mark.skipif(
    not RESNET.is_file(), reason="the shared models are not here (ONNX_OPT_DATA)"
)
def test_the_page_of_resnet_20_opens_at_once(browser, tmp_path):
    images = np.random.default_rng(0).standard_normal((64, 3, 32, 32))
    path = tmp_path / "resnet.html"
    optimize(
        RESNET,
        "simplify, prune(sparsity=0.5, fit=false), quant",
        data={"input": images.astype(np.float32)},
        bench=False,
        force=True,
        report=path,
    )
    assert path.stat().st_size < MOST_BYTES
    for width in (360, 1600):
        browser.open(path, width)
        assert is_quick(browser)
        # small plots of the first twelve layers, beside the five by layer
        assert len(browser.all("#layers .histogram svg")) == 12
        assert len(browser.all("#layers .plot > svg")) == 4
        assert browser.complaints() == []


# what only some accounts have


def with_search(account):
    """The account of a run with a front, as `tune` adds it, and curves, as `finetune` does."""
    front = [
        {"recipe": "quant", "bytes": 900, "macs": 10, "latency_ms": 1.5, "metric": 0.9},
        {"recipe": EVIL, "bytes": 500, "macs": 9, "latency_ms": None, "metric": 0.8},
    ]
    search = {
        "objective": "size",
        "budget": {"max_drop": 0.1},
        "recipe": "quant",
        "split": "held out",
        "trials": 2,
        "seconds": 3.0,
        "front": front,
        "rejected": [{"recipe": "prune", "reason": EVIL}],
    }
    stats = {
        "unit": "weights",
        "drift": "measured",
        "scores": "0.5 0.7 0.8",
        "losses": "2 1",
    }
    trained = {**account["passes"][0], "pass": "finetune", "stats": stats}
    return {**account, "tune": search, "passes": [*account["passes"], trained]}


def test_points_of_a_front_tell_their_recipe(browser, tmp_path):
    account = optimize(
        model_from(MLP).SerializeToString(), "prune", bench=False, layers=True
    ).to_dict()
    path = tmp_path / "front.html"
    path.write_text(page_of(with_search(account), "run"), encoding="utf-8")
    browser.open(path)
    points = browser.all('#tune svg [role="button"]')
    browser.run("arguments[0].focus()", points[0])
    assert browser.find("#tune .recipe code").text == EVIL
    browser.run("arguments[0].focus()", points[1])
    assert browser.find("#tune .recipe").text == "quant 900 B, 1.5 ms, 10, metric 0.9"
    # a point whose latency is not known is not on that plot
    browser.find('#tune input[value="latency_ms"]').click()
    browser.wait(
        """document.querySelectorAll('#tune svg [role="button"]').length === 1"""
    )
    assert len(browser.all("#training figure svg")) == 2
    assert browser.complaints() == []


def test_an_account_of_little_says_what_adds_the_rest(browser, tmp_path):
    model = model_from(MLP).SerializeToString()
    account = optimize(model, "prune", bench=False, verify="never").to_dict()
    path = tmp_path / "little.html"
    path.write_text(page_of(json.loads(json.dumps(account)), "run"), encoding="utf-8")
    browser.open(path)
    text = browser.find("main").text
    assert "are there with --report or --layers" in text
    assert "--metric top1 --data D with labels measures it" in text
    assert browser.complaints() == []
