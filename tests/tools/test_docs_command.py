"""`onnx-opt docs`: the pages of the repository, printed by the installed command."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner
from onnx_opt.tools.cli import main

DOCS = Path(__file__).resolve().parents[2] / "docs"


def docs(*words):
    return CliRunner().invoke(main, ["docs", *words])


def test_every_page_is_a_topic_with_its_title():
    listed = {}
    for line in docs().stdout.splitlines():
        topic, title = line.split(maxsplit=1)
        listed[topic] = title
    assert sorted(listed) == sorted(path.stem for path in DOCS.glob("*.md"))
    assert listed["errors-and-exit-codes"] == "Errors and exit codes"
    assert listed["data"] == "Data: every form that --data takes"


def test_topics_as_json():
    facts = json.loads(docs("--json").stdout)
    (page,) = [item for item in facts["topics"] if item["topic"] == "data"]
    assert page == {"topic": "data", "title": "Data: every form that --data takes"}


def test_a_page_is_piped_as_it_stands():
    page = DOCS / "pruning.md"
    assert docs("pruning").stdout == page.read_text(encoding="utf-8")
    assert json.loads(docs("pruning", "--json").stdout)["text"] == page.read_text(
        encoding="utf-8"
    )


@pytest.mark.parametrize(
    ("topic", "fix"),
    [
        ("quant", "did you mean 'quantization'?"),
        ("exit-codes", "did you mean 'errors-and-exit-codes'?"),
        ("dta", "did you mean 'data'?"),
        ("smooth", "onnx-opt passes smooth"),
        ("zzz", "the topics are account, channels, ci, config, "),
    ],
)
def test_another_topic_is_told_the_nearest(topic, fix):
    done = docs(topic)
    assert done.exit_code == 2
    error, hint = done.stderr.splitlines()
    assert error == f"error: docs: there is no page '{topic}'"
    assert hint.startswith(f"  fix: {fix}")
