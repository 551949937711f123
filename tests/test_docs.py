"""The pages say what is so: code blocks run, commands and options exist, links lead somewhere."""

import re
from pathlib import Path

import numpy as np
import pytest
from onnx_opt.passes._core import toml
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.metrics import metric_named
from onnx_opt.runtime.session import TensorInfo

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "tools" / "demo").glob("*.md"),
    ]
)
DEMO_INPUT = [TensorInfo("image", "float32", ("batch", 1, 8, 8))]


def code_blocks(page: Path, language: str) -> list[str]:
    return re.findall(
        rf"^```{language}\n(.*?)^```", page.read_text(encoding="utf-8"), re.M | re.S
    )


@pytest.fixture(scope="module")
def data_page(tmp_path_factory):
    """A folder in which every code block of docs/data.md has been executed."""
    folder = tmp_path_factory.mktemp("data_page")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for block in code_blocks(ROOT / "docs" / "data.md", "python"):
            exec(compile(block, "docs/data.md", "exec"), {})
    return folder


@pytest.mark.parametrize(
    ("form", "sizes", "labelled"),
    [
        ("feeds.npz", [64, 36], True),
        ("feeds.npy", [64, 36], False),
        ("load.py:calibration", [8, 8, 8, 8], False),
        ("load.py:labelled", [8, 8, 8, 8], True),
        ("zoo", [4, 4], False),
    ],
)
def test_every_form_of_the_data_page_opens(data_page, form, sizes, labelled):
    batches = list(open_feeds(str(data_page / form), DEMO_INPUT))
    assert [batch.feeds["image"].shape for batch in batches] == [
        (size, 1, 8, 8) for size in sizes
    ]
    assert [batch.labels is not None for batch in batches] == [labelled] * len(sizes)


def test_the_image_folder_of_the_data_page_opens(tmp_path):
    image = pytest.importorskip("PIL.Image")
    for index, name in enumerate(("cat", "dog")):
        (tmp_path / name).mkdir()
        image.new("L", (10, 12), 255 * index).save(tmp_path / name / "1.png")
    (spec,) = code_blocks(ROOT / "docs" / "data.md", "toml")
    (tmp_path / "preprocess.toml").write_text(spec, encoding="utf-8")
    (batch,) = open_feeds(str(tmp_path), DEMO_INPUT)
    assert batch.labels.tolist() == [0, 1]
    np.testing.assert_allclose(
        batch.feeds["image"].max((1, 2, 3)), [0.0, 16.0], rtol=1e-6
    )


def test_the_metric_of_the_data_page_scores(data_page):
    metric = metric_named(f"{data_page / 'score.py'}:error_rate")
    scores = np.eye(4, dtype=np.float32)
    assert metric([[scores]], [np.array([0, 1, 2, 0])]) == 0.25


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_links_lead_to_files(page):
    targets = re.findall(
        r"\]\((?!https?:|#|mailto:)([^)#]+)", page.read_text(encoding="utf-8")
    )
    assert [target for target in targets if not (page.parent / target).exists()] == []


def mentioned_commands() -> list[tuple[str, str]]:
    """(page, line) of every line inside a code block that calls onnx-opt."""
    found = []
    for page in PAGES:
        fenced = False
        for line in page.read_text(encoding="utf-8").splitlines():
            fenced ^= line.lstrip().startswith("```")
            called = re.match(r"\s*(?:\$ )?(onnx-opt .*)", line)
            if called and (fenced or line.startswith("    ")):
                found.append(
                    (page.relative_to(ROOT).as_posix(), called[1].partition("  #")[0])
                )
    return found


@pytest.mark.parametrize(("page", "line"), mentioned_commands())
def test_commands_in_the_pages_exist(page, line):
    import shlex

    import click
    from onnx_opt.tools.cli import main

    words = shlex.split(line)[1:]
    context = click.Context(main)
    name = words[0] if words[0] in main.list_commands(context) else "run"
    command = main.get_command(context, name)
    known = {
        option
        for parameter in (*command.params, *main.params)
        for option in parameter.opts
    }
    given = {word.partition("=")[0] for word in words if re.match(r"-{1,2}[a-z]", word)}
    assert sorted(given - known - {"--help", "-h", "--version"}) == []


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_make_targets_in_the_pages_exist(page):
    targets = set(
        re.findall(
            r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M
        )
    )
    mentioned = set(
        re.findall(
            r"(?:^|`)make ([a-z][a-z-]*)", page.read_text(encoding="utf-8"), re.M
        )
    )
    assert sorted(mentioned - targets) == []


@pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_extras_in_the_pages_exist(page):
    project = toml.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))[
        "project"
    ]
    mentioned = set(
        re.findall(r"onnx-opt\[([a-z]+)\]", page.read_text(encoding="utf-8"))
    )
    assert sorted(mentioned - set(project["optional-dependencies"])) == []


def test_the_rows_of_training_carry_the_pipelines_that_were_measured(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "tools" / "dev")
    from bench_finetune import CASES

    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    for case in CASES:
        # threads are of the machine
        text = case.passes.replace("BUDGET", case.budget).replace(", THREADS", "")
        assert f"| `{text}` |" in readme
