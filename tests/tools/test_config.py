"""Options kept in a file: which of them a run gets, and what is said of those that are wrong."""

import json
import shutil
from pathlib import Path

import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import RefusedError, UsageError
from onnx_opt.tools._config.chosen import chosen
from onnx_opt.tools._config.file import Config, read_config
from onnx_opt.tools.cli import COMMANDS, main
from onnx_opt.tools.commands.run import command as run_command
from sample_models import MLP, model_from

EXAMPLE = Path(__file__).resolve().parents[2] / "examples" / "onnx-opt.toml"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """The current folder, with a model in it."""
    monkeypatch.chdir(tmp_path)
    onnx.save(model_from(MLP), tmp_path / "mlp.onnx")
    return tmp_path


def parsed(*words, command=run_command):
    """Parameters of a command line, after the file of options."""
    # quiet: the line that names the file is a matter of its own
    return command.make_context("run", ["mlp.onnx", "-q", *words]).params


def write(text, name="onnx-opt.toml"):
    Path(name).parent.mkdir(exist_ok=True)
    Path(name).write_text(text)


def test_no_file_changes_nothing(folder):
    before = parsed()
    write("[project]\nname = 'x'", "pyproject.toml")
    assert parsed() == before
    write("seed = 3")
    assert parsed("--config", "none") == before


def test_the_command_line_wins_then_recipe_target_and_file(folder):
    write(
        """
        seed = 1
        threads = 1
        floor = 5
        target = "phone"
        [targets.phone]
        target = "arm64"
        threads = 2
        floor = 6
        [recipes.small]
        floor = 7
        no-bench = true
        passes = ["prune", "quant"]
        """
    )
    found = parsed("--recipe", "small")
    names = ("seed", "threads", "floor", "target", "no_bench", "passes")
    assert {name: found[name] for name in names} == {
        "seed": 1,
        "threads": 2,
        "floor": "7",
        "target": "arm64",
        "no_bench": True,
        "passes": ("prune", "quant"),
    }
    line = ["--seed", "9", "--threads", "8", "--floor", "none", "-p", "strip"]
    found = parsed("--recipe", "small", "--target", "cuda", *line)
    assert {name: found[name] for name in names} == {
        "seed": 9,
        "threads": 8,
        "floor": "none",
        "target": "cuda",
        "no_bench": True,
        "passes": ("strip",),
    }


def test_a_target_of_the_file_is_one_for_the_command_line(folder):
    write("[targets.phone]\ntarget = 'arm64'\nmin-sqnr = 20")
    found = parsed("--target", "phone")
    assert (found["target"], found["min_sqnr"]) == ("arm64", 20.0)
    assert parsed()["target"] == "cpu"


def test_options_in_pyproject_are_read_where_there_is_no_file_of_their_own(folder):
    write("[tool.onnx-opt]\nseed = 4", "pyproject.toml")
    assert parsed()["seed"] == 4
    write("seed = 5")
    assert parsed()["seed"] == 5
    assert parsed("--config", "pyproject.toml")["seed"] == 4


def test_paths_are_relative_to_the_file(folder):
    write(
        """
        data = ["a.npz", "load.py:batches", "package.load:batches"]
        metric = "score.py:top"
        passes = "@recipe.txt"
        report = "page.html"
        [recipes.table]
        passes = "prune, quant(layers=[@layers.toml, 'x*=float'])"
        metric = "top1"
        """,
        "sub/onnx-opt.toml",
    )
    (folder / "sub" / "a.npz").touch()
    found = parsed("--config", "sub/onnx-opt.toml")
    assert found["data"] == [
        "sub/a.npz",
        "sub/load.py:batches",
        "package.load:batches",
    ]
    assert found["metric"] == "sub/score.py:top"
    assert found["passes"] == ("@sub/recipe.txt",)
    assert found["report"] == Path("sub/page.html")
    found = parsed("--config", "sub/onnx-opt.toml", "--recipe", "table")
    assert found["passes"] == ("prune, quant(layers=[@sub/layers.toml, 'x*=float'])",)
    assert found["metric"] == "top1"


@pytest.mark.parametrize(
    ("text", "place", "problem", "fix"),
    [
        ("max-dorp = 1", "max-dorp", "no such option", "did you mean 'max-drop'?"),
        (
            "[recipes.a]\nmax_dorp = 1",
            "recipes.a.max_dorp",
            "no such option",
            "did you mean 'max-drop'?",
        ),
        ("config = 'x'", "config", "no such option", "see onnx-opt run --help"),
        (
            "target = 'cpuu'",
            "target",
            "'cpuu' is not one of",
            "did you mean 'cpu'?",
        ),
        ("seed = 'x'", "seed", "'x' is not a valid integer range", "see"),
        ("seed = -1", "seed", "-1 is not in the range x>=0", "see"),
        ("seed = true", "seed", "true does not fit", "give a value"),
        ("strict = 1", "strict", "1 does not fit", "write true or false"),
        ("seed = [1, 2]", "seed", "takes one value, not a list", "give one"),
        ("[seed]\na = 1", "seed", "is a table", "only recipes and targets"),
        ("recipes = 1", "recipes", "is no table", "write [recipes.NAME]"),
        ("[recipes]\na = 1", "recipes.a", "is no table", "write [recipes.NAME]"),
        (
            "[targets.a]\nseed = 1",
            "targets.a",
            "names no target that it is based on",
            "write target = ",
        ),
    ],
)
def test_what_is_wrong_is_said_with_file_and_key(folder, text, place, problem, fix):
    write(text)
    words = ["--recipe", "a"] if "recipes.a]" in text else ["--target", "a"]
    with pytest.raises(UsageError) as caught:
        parsed(*(words if "s.a]" in text else []))
    assert caught.value.where == f"onnx-opt.toml: {place}"
    assert caught.value.problem.startswith(problem)
    assert caught.value.fix.startswith(fix)


def test_a_recipe_that_is_not_there_is_said_with_the_nearest(folder):
    with pytest.raises(UsageError, match=r"'smal' is no recipe of onnx-opt.toml"):
        parsed("--recipe", "smal")
    write("[recipes.small]\nseed = 1")
    with pytest.raises(UsageError, match="did you mean 'small'"):
        parsed("--recipe", "smal")


def test_a_file_that_cannot_be_read_is_refused(folder):
    with pytest.raises(RefusedError, match=r"missing.toml: cannot be read"):
        parsed("--config", "missing.toml")
    write("seed = ")
    with pytest.raises(RefusedError, match="is no TOML"):
        parsed()
    write("[project]", "pyproject.toml")
    with pytest.raises(UsageError, match=r"it has no table \[tool.onnx-opt\]"):
        parsed("--config", "pyproject.toml")


def test_a_run_follows_the_file_and_says_so(folder):
    write("[recipes.half]\npasses = 'prune(sparsity=0.5)'\nno-bench = true")
    runner = CliRunner()
    words = ["mlp.onnx", "--recipe", "half"]
    done = runner.invoke(main, words)
    assert done.exit_code == 0, done.stderr
    assert done.stderr.startswith("options of onnx-opt.toml, recipe half\n")
    done = runner.invoke(main, [*words, "--json"])
    assert "options of" not in done.stderr
    facts = json.loads(done.stdout)
    assert facts["model"]["passes"] == "prune(sparsity=0.5)"
    assert facts["output"]["latency_ms"] is None


def test_a_batch_takes_the_same_file_and_reads_it_once(folder):
    Path("models").mkdir()
    shutil.move("mlp.onnx", "models")
    # the models' processes would say of a data file that is not there
    write("data = 'none.npz'\n[recipes.half]\npasses = 'prune(sparsity=0.5)'")
    words = ["batch", "models", "--recipe", "half", "--config", "sub/c.toml", "--json"]
    shutil.copy("onnx-opt.toml", "models")
    write("[recipes.half]\npasses = 'prune(sparsity=0.5)'", "sub/c.toml")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.stderr
    (row,) = json.loads(done.stdout)["models"]
    assert row["output"]["nonzero"] < row["input"]["nonzero"]
    write("[recipes.half]\nreport = 'x.html'", "sub/c.toml")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 2
    assert "sub/c.toml: recipes.half.report: onnx-opt batch has no such option" in (
        done.stderr
    )


def test_the_example_is_valid_in_every_recipe():
    config = read_config(str(EXAMPLE))
    assert set(config.recipes) >= {"small", "fast"}
    for recipe in config.recipes:
        for target in (None, *config.targets):
            words = ["--config", str(EXAMPLE), "--recipe", recipe]
            words += [] if target is None else ["--target", target]
            assert parsed(*words)["passes"]


def test_a_target_may_come_from_a_recipe():
    config = Config(
        where="c",
        folder=Path(),
        shared={"target": "cpu"},
        recipes={"r": {"target": "t"}},
        targets={"t": {"target": "arm64"}},
    )
    assert chosen(config, "r", None)["target"].value == "arm64"
    assert chosen(config, None, None)["target"].value == "cpu"
    assert "run" in COMMANDS
