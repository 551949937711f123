"""Pages as files: what is in them, what they refuse, and that JSON gives the same page later."""

import base64
import hashlib
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import onnx_opt
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError, UsageError, optimize
from onnx_opt.tools._report import page
from onnx_opt.tools._report.advice import TABLE, advice_on
from onnx_opt.tools._report.page import as_data, page_of
from onnx_opt.tools.cli import main
from onnx_opt.tools.commands.bench import bench_line
from sample_models import MLP, model_from

EVIL = '</script><script>alert("x")</script><!--<script>'


class Parsed(HTMLParser):
    """Elements of a page: attributes of each, and the text of each script."""

    def __init__(self, text):
        super().__init__()
        self.elements = []
        self.scripts = []
        self.title = ""
        self._tag = None
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._tag = tag
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self._tag == "script":
            self.scripts[-1] += data
        elif self._tag == "title":
            self.title += data

    def handle_endtag(self, tag):
        self._tag = None

    @property
    def data(self):
        """The JSON of the page."""
        return json.loads(self.scripts[0])


def invoke(*words, **options):
    return CliRunner().invoke(main, [str(word) for word in words], **options)


@pytest.fixture
def account(mlp):
    return optimize(mlp, "prune(sparsity=0.5)", bench=False, layers=True).to_dict()


# the file


def test_the_account_is_in_the_page_and_nothing_else(account):
    parsed = Parsed(page_of(account, "run"))
    assert parsed.data["account"] == account
    assert parsed.title == "mlp.onnx: onnx-opt"
    tags = [tag for tag, _ in parsed.elements]
    assert {"link", "img", "iframe", "base", "form"}.isdisjoint(tags)
    named = [
        name
        for _, attributes in parsed.elements
        for name in attributes
        if name in ("src", "href", "action") or name.startswith("on")
    ]
    assert named == []


def test_the_policy_names_every_script_and_allows_no_request(account):
    parsed = Parsed(page_of(account, "run"))
    policies = [
        attributes["content"]
        for tag, attributes in parsed.elements
        if attributes.get("http-equiv") == "Content-Security-Policy"
    ]
    digests = [
        base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        for script in parsed.scripts[1:]
    ]
    hashes = " ".join(f"'sha256-{digest}'" for digest in digests)
    assert policies == [
        f"default-src 'none'; style-src 'unsafe-inline'; script-src {hashes}"
    ]


def test_markup_in_an_account_stays_text(account):
    account["model"]["path"] = EVIL
    account["warnings"] = [EVIL]
    text = page_of(account, "run")
    parsed = Parsed(text)
    assert EVIL not in text
    assert parsed.data["account"]["warnings"] == [EVIL]
    clean = Parsed(
        page_of({**account, "model": {**account["model"], "path": "a"}}, "run")
    )
    assert [tag for tag, _ in parsed.elements] == [tag for tag, _ in clean.elements]


@pytest.mark.parametrize(
    "text", [EVIL, "\u2028\u2029", "é 日本 😀", "]]>", "\0", "\ud800"]
)
def test_data_is_what_was_put_in(text):
    encoded = as_data({text: [text]})
    assert "<" not in encoded
    assert encoded.isascii()
    assert json.loads(encoded) == {text: [text]}


def test_licences_of_what_is_in_the_page_are_in_it(account):
    libraries = Parsed(page_of(account, "run")).data["libraries"]
    assert [each["name"] for each in libraries] == ["D3", "Observable Plot"]
    for each in libraries:
        assert "Copyright" in each["licence"]
        assert re.search("(?i)permission to use|permission is hereby", each["licence"])


def test_assets_ask_for_nothing():
    for path in page.ASSETS.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        assert "</script" not in text.lower()
        assert "<!--" not in text
        if ".min." not in path.name:
            assert (
                re.findall(
                    r"innerHTML|outerHTML|insertAdjacentHTML|document\.write", text
                )
                == []
            )


# from the command line


def test_the_page_of_a_run_and_of_its_json_are_one(mlp, tmp_path):
    out = tmp_path / "run.html"
    words = ("-p", "prune(sparsity=0.5)", "--no-bench", "--report", out, "--json")
    done = invoke(mlp, *words)
    assert done.exit_code == 0, done.stderr
    stored = tmp_path / "run.json"
    stored.write_text(done.stdout, encoding="utf-8")
    assert json.loads(done.stdout)["loss"]
    again = invoke("report", stored, "-o", tmp_path / "again.html")
    assert again.stdout == f"{tmp_path / 'again.html'}\n"
    assert out.read_bytes() == (tmp_path / "again.html").read_bytes()
    piped = invoke("report", "-", "-o", tmp_path / "piped.html", input=done.stdout)
    assert piped.exit_code == 0, piped.stderr
    assert out.read_bytes() == (tmp_path / "piped.html").read_bytes()
    # without a name it stands beside its account
    assert invoke("report", stored, "--json").exit_code == 0
    assert stored.with_suffix(".html").read_bytes() == out.read_bytes()


def test_losses_are_told_where_they_are_asked_for(mlp, tmp_path):
    words = (mlp, "-p", "prune(sparsity=0.5)", "--no-bench", "--dry-run")
    heading = "loss by layer"
    assert heading not in invoke(*words, "--report", tmp_path / "r.html").stderr
    assert heading in invoke(*words, "--explain-loss").stderr


def test_a_model_that_is_not_run_has_a_page(mlp, tmp_path):
    out = tmp_path / "run.html"
    result = optimize(mlp, "prune(sparsity=0.5)", verify="never", report=out)
    assert result.loss is None
    assert Parsed(out.read_text(encoding="utf-8")).data["account"] == result.to_dict()
    assert not any("explain" in warning for warning in result.warnings)


def test_a_budget_that_is_missed_has_a_page_with_the_error(mlp, tmp_path):
    out = tmp_path / "run.html"
    words = ("-p", "prune(sparsity=0.9)", "--min-sqnr", "60", "--report", out)
    done = invoke(mlp, *words, "--json")
    assert done.exit_code == 4
    found = Parsed(out.read_text(encoding="utf-8")).data["account"]
    assert found == json.loads(done.stdout)
    assert found["error"]["where"] == "--min-sqnr"
    assert [path.name for path in tmp_path.iterdir() if path.suffix == ".onnx"] == [
        "mlp.onnx"
    ]


def test_a_run_that_did_not_begin_has_none(mlp, tmp_path):
    out = tmp_path / "run.html"
    done = invoke(mlp, "-p", "prune", "--data", "missing.npz", "--report", out)
    assert done.exit_code != 0
    assert not out.exists()


def test_bench_has_a_page(mlp, tmp_path):
    out = tmp_path / "bench.html"
    facts = onnx_opt.bench(mlp, mlp, seconds=0.1, report=out)
    parsed = Parsed(out.read_text(encoding="utf-8"))
    assert parsed.data["account"] == facts.to_dict()
    assert parsed.title == "mlp.onnx, mlp.onnx: latency"
    digest = hashlib.sha256(mlp.read_bytes()).hexdigest()
    assert [row["sha256"] for row in facts.models] == [digest] * 2
    assert facts.versions["onnxruntime"] is not None
    assert facts.command == (
        f"onnx-opt bench {mlp} {mlp} --provider cpu --threads 0 --seconds 0.1 --seed 0"
    )
    other = tmp_path / "other.html"
    assert invoke("bench", mlp, "--seconds", "0.1", "--report", other).exit_code == 0
    assert Parsed(other.read_text(encoding="utf-8")).data["kind"] == "bench"


def test_a_line_repeats_bench_where_one_can():
    options = {"provider": "cpu", "threads": 2}
    models = (Path("a b.onnx"),)
    line = bench_line(models, data=["x.npz", "y.npz"], **options)
    assert line == (
        "onnx-opt bench 'a b.onnx' --data x.npz --data y.npz --provider cpu --threads 2"
    )
    assert bench_line(models, data={"x": np.zeros(3)}, **options) is None


def test_inspect_has_a_page_with_the_graph(mlp, tmp_path):
    out = tmp_path / "inspect.html"
    done = invoke("inspect", mlp, "--html", out)
    assert done.exit_code == 0, done.stderr
    data = Parsed(out.read_text(encoding="utf-8")).data
    ops = [node["op"] for node in data["graph"]["nodes"]]
    assert ops == ["Input", "MatMul", "Relu", "MatMul", "Output"]
    sources = [
        [port.get("from") for port in node["inputs"]] for node in data["graph"]["nodes"]
    ]
    assert sources == [[], [0, None], [1], [2, None], [3]]
    assert data["graph"]["nodes"][1]["bytes"] == 8 * 16 * 4
    onnx_opt.inspect(mlp, html=tmp_path / "again.html")
    assert (tmp_path / "again.html").read_bytes() == out.read_bytes()


def test_distill_takes_a_page():
    assert "--report" in invoke("distill", "--help").stdout


# from Python


def test_results_and_accounts_have_pages(mlp, tmp_path):
    result = optimize(mlp, "prune(sparsity=0.5)", bench=False, layers=True)
    first = result.report(tmp_path / "first.html")
    second = onnx_opt.report(result, tmp_path / "second.html")
    third = onnx_opt.report(result.to_dict(), tmp_path / "third.html")
    stored = tmp_path / "run.json"
    stored.write_text(result.to_json(), encoding="utf-8")
    fourth = onnx_opt.report(stored)
    assert fourth == tmp_path / "run.html"
    pages = [path.read_bytes() for path in (first, second, third, fourth)]
    assert pages == pages[:1] * 4


# what is refused


def test_a_folder_is_refused_before_any_work(mlp, tmp_path):
    for words in ((mlp,), ("bench", mlp), ("distill", mlp, mlp, "--data", "x.npz")):
        done = invoke(*words, "--report", tmp_path)
        assert done.exit_code == 2
        assert done.stderr.splitlines() == [
            f"error: --report: '{tmp_path}' is a folder",
            f"  fix: name a file in it: --report {tmp_path / 'report.html'}",
        ]
    for words in (("inspect", mlp), ("diff", mlp, mlp)):
        done = invoke(*words, "--html", tmp_path)
        assert (done.exit_code, "is a folder" in done.stderr) == (2, True)
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.onnx"]


@pytest.mark.parametrize("name", ["mlp.onnx", "page", "page.json", "missing/page.html"])
def test_other_paths_are_refused(mlp, tmp_path, name):
    before = mlp.read_bytes()
    with pytest.raises(UsageError) as error:
        optimize(mlp, "prune", report=tmp_path / name)
    assert error.value.fix
    assert mlp.read_bytes() == before
    assert [path.name for path in tmp_path.iterdir()] == ["mlp.onnx"]


WRONG = {
    "no file": (None, "cannot be read"),
    "no JSON": ("{", "is no JSON"),
    "a number": ("3", "is not the JSON of"),
    "an error alone": ('{"error": {}}', "is not the JSON of"),
    "deep": ("[" * 100_000, "is no JSON"),
    "text in binary": ("\0", "is no JSON"),
}


@pytest.mark.parametrize(("text", "problem"), WRONG.values(), ids=WRONG)
def test_other_json_is_refused(tmp_path, text, problem):
    source = tmp_path / "run.json"
    if text is not None:
        source.write_text(text, encoding="utf-8")
    done = invoke("report", source)
    assert done.exit_code == 3
    assert problem in done.stderr
    assert not source.with_suffix(".html").exists()


@pytest.mark.parametrize("key", ["model", "passes"])
def test_an_account_that_is_not_whole_is_refused(account, tmp_path, key):
    account[key] = 5
    with pytest.raises(RefusedError, match="is not whole"):
        onnx_opt.report(account, tmp_path / "run.html")
    assert list(tmp_path.glob("*.html")) == []


# advice


def test_every_advice_can_be_given():
    first_words = {
        "simplify in front": "its input is constant: run simplify first",
        "float model": "weight 'w' is INT8: already quantized",
        "off the graph's inputs": "'w' is also an input of the model: callers may override it",
        "give --data": "Conv needs calibrated ranges: give --data",
        "out of exclude": "matched by exclude",
        "measure=false": "in int8 it took 1.3 times as long as in float",
        "min_saving": "no codec saves 5% of its bytes",
    }
    for text, reason in first_words.items():
        assert text in (advice_on(reason) or "")
    assert advice_on("it is a Tuesday") is None
    for row in TABLE:
        assert re.compile(row.words)
        assert row.text


def test_advice_is_beside_the_reasons():
    data = {"x": np.zeros((4, 8), np.float32)}
    model = model_from(MLP).SerializeToString()
    account = optimize(model, "quant(exclude=[h])", data=data, bench=False).to_dict()
    declined = [
        each["reason"] for part in account["passes"] for each in part["declined"]
    ]
    advice = Parsed(page_of(account, "run")).data["advice"]
    assert set(advice) <= set(declined)
    assert advice["matched by exclude"] == "take it out of exclude"
