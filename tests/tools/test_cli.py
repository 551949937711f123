"""The command line: words, exit codes, error form, JSON; and that it starts at once."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, OnnxOptError, RefusedError, UsageError, optimize
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.passes._core.registry import pass_names
from onnx_opt.runtime.hardware import hardware
from onnx_opt.tools._run.provenance import provenance
from onnx_opt.tools.cli import COMMANDS, main, report_error
from onnx_opt.tools.commands.bench import latency_table
from onnx_opt.tools.console import escaped, finite
from sample_models import CNN, model_from

SCHEMA = Path(__file__).resolve().parents[2] / "tools" / "schema" / "run-1.json"


def run_schema() -> dict:
    return json.loads(SCHEMA.read_text(encoding="utf-8"))


HEAVY = ("numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript", "torch", "rich")


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def bare(code: str) -> subprocess.CompletedProcess:
    """Run Python code in a fresh process in which `onnx_opt` can be imported."""
    tests = Path(__file__).resolve().parents[1]
    environment = {**os.environ, "PYTHONPATH": str(tests), "ONNX_OPT_DEBUG": ""}
    return subprocess.run(
        [sys.executable, "-c", f"import conftest\n{code}"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def cnn(tmp_path):
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    return path


@pytest.fixture
def labelled(mlp, tmp_path):
    path = tmp_path / "labelled.npz"
    random = np.random.default_rng(0)
    feeds = random.standard_normal((24, 8)).astype(np.float32)
    first, second = [
        onnx.numpy_helper.to_array(t) for t in onnx.load(mlp).graph.initializer
    ]
    labels = (np.maximum(feeds @ first, 0) @ second).argmax(1)
    # the model is right for 20 of 24
    labels[:4] = (labels[:4] + 1) % 4
    np.savez(path, x=feeds, labels=labels)
    return path


# starting


def test_importing_the_command_line_imports_nothing_heavy():
    done = bare(
        "import sys, onnx_opt.tools.cli as c\n"
        "for name in c.COMMANDS: c.main.get_command(None, name)\n"
        f"print(sorted(set({HEAVY!r}) & set(sys.modules)))"
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == "[]\n"


def test_help_answers_in_under_300_ms():
    code = (
        "import sys; sys.argv = ['onnx-opt', '--help']; from onnx_opt.tools.cli import "
        "main; main()"
    )

    def seconds(text):
        start = time.perf_counter()
        done = bare(text)
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - start

    assert min(seconds(code) for _ in range(5)) < 0.3


def test_help_names_every_command_and_every_exit_code():
    text = invoke("--help").output
    assert all(f"\n  {name} " in text for name in COMMANDS)
    assert "130 interrupted" in text


@pytest.mark.parametrize("group", [[], ["data"]])
def test_no_line_of_the_list_of_commands_is_cut(group):
    assert "..." not in invoke(*group, "--help").output.partition("Commands:")[2]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if c != "data"] + ["data init"]
)
def test_every_command_has_help_and_json(command):
    done = invoke(*command.split(), "--help")
    assert done.exit_code == 0
    assert "--json" in done.output


# words


def test_a_model_without_a_command_is_optimized(mlp, tmp_path):
    done = invoke(mlp, "--passes", "prune", "--no-bench")
    assert done.exit_code == 0, done.output
    assert done.stdout.strip() == str(tmp_path / "mlp.opt.onnx")
    assert "prune" in done.stderr
    assert provenance(load(tmp_path / "mlp.opt.onnx"))["passes"] == "prune"


@pytest.mark.parametrize(
    "order",
    [
        ("-p", "prune", "--no-bench", "MODEL", "-o", "OUT"),
        ("run", "MODEL", "-o", "OUT", "-p", "prune", "--no-bench"),
        ("--json", "run", "MODEL", "-o", "OUT", "-p", "prune", "--no-bench"),
        ("--json", "MODEL", "-o", "OUT", "-p", "prune", "--no-bench"),
    ],
)
def test_options_may_come_first(mlp, tmp_path, order):
    out = tmp_path / "out.onnx"
    done = invoke(*[{"MODEL": mlp, "OUT": out}.get(word, word) for word in order])
    assert done.exit_code == 0, done.output
    assert out.is_file()


def test_passes_repeat_and_join(mlp, tmp_path):
    done = invoke(
        mlp, "-p", "remove-unused", "-p", "prune:sparsity=0.25", "--json", "--no-bench"
    )
    assert [p["text"] for p in json.loads(done.stdout)["passes"]] == [
        "remove-unused",
        "prune(sparsity=0.25)",
    ]


def test_passes_come_from_a_recipe(mlp, tmp_path):
    recipe = tmp_path / "recipe.txt"
    recipe.write_text(
        "# two steps\nremove-unused,\nprune(sparsity=0.25)\n", encoding="utf-8"
    )
    done = invoke(mlp, "-p", f"@{recipe}", "--json", "--no-bench")
    assert (
        json.loads(done.stdout)["model"]["passes"]
        == "remove-unused, prune(sparsity=0.25)"
    )


def test_dry_run_writes_nothing(mlp, tmp_path):
    before = sorted(tmp_path.iterdir())
    done = invoke(mlp, "-p", "prune", "--dry-run", "--no-bench")
    assert done.exit_code == 0
    assert done.stdout == ""
    assert "dry run: nothing was written" in done.stderr
    assert sorted(tmp_path.iterdir()) == before


# JSON


def test_json_is_one_object_and_nothing_else(mlp):
    done = invoke(mlp, "-p", "prune", "--json", "--no-bench")
    assert done.stderr == ""
    # all that the published schema has, but for what is asked for and what a cache has
    asked = {"loss", "layers", "files", "error", "step_latency", "tune", "cached"}
    asked.add("latency_samples")
    known = set(run_schema()["properties"]) - asked
    assert set(json.loads(done.stdout)) == known


def test_passes_json_describes_every_pass():
    listed = json.loads(invoke("passes", "--json").stdout)["passes"]
    assert [item["pass"] for item in listed] == pass_names()
    options = {
        o["name"]: o for p in listed if p["pass"] == "prune" for o in p["options"]
    }
    assert (options["sparsity"]["default"], options["sparsity"]["low"]) == ("auto", 0.0)


def test_finite_replaces_what_json_lacks():
    assert finite(
        {"a": [np.float32(1.5), float("inf")], 2: (np.int64(3), float("nan"), "x")}
    ) == {"a": [1.5, None], "2": [3, None, "x"]}


# errors


@pytest.mark.parametrize(
    ("words", "code", "lines"),
    [
        (
            ("inspct",),
            2,
            [
                "error: usage: 'inspct' is neither a command nor a file; did you mean 'inspect'?",
                "  fix: see onnx-opt --help",
            ],
        ),
        (
            ("MODEL", "--pases", "prune"),
            2,
            ["error: --pases: no such option", "  fix: did you mean '--passes'?"],
        ),
        (
            ("MODEL", "-p", "prun"),
            2,
            ["error: passes: prun: no such pass", "  fix: did you mean 'prune'?"],
        ),
        (
            ("MODEL", "-p", "prune(sparsity=1.5)"),
            2,
            [
                "error: prune.sparsity: 1.5 is outside [0.0, 0.99]",
                "  fix: choose a value in [0.0, 0.99]; the default is auto",
            ],
        ),
        (
            ("MODEL", "-p", "prune(sparsity=0.5"),
            2,
            [
                "error: --passes: column 19: expected ',' or ')' in 'prune(sparsity=0.5'",
                "  fix: close the parenthesis, and quote the text for the shell: --passes "
                "'prune(sparsity=0.5)'; prune:sparsity=0.5 needs no quotes",
            ],
        ),
        (
            ("MODEL", "--target", "gpu"),
            2,
            [
                "error: --target: 'gpu' is not one of 'cpu', 'cpu-vnni', 'arm64', "
                "'cuda', 'tensorrt', 'generic', 'openvino', 'web', 'qnn', 'coreml'",
                "  fix: choose one of cpu, cpu-vnni, arm64, cuda, tensorrt, generic, openvino, "
                "web, qnn, coreml",
            ],
        ),
        (
            ("passes", "quantt"),
            2,
            ["error: passes: quantt: no such pass", "  fix: did you mean 'quant'?"],
        ),
        (("eval", "MODEL", "--metric", "top1"), 2, None),
        (("MODEL", "-o", "MODEL", "-p", "prune"), 2, None),
        (("gone.onnx",), 3, None),
        (("inspect", "gone.onnx"), 3, None),
        (("verify", "MODEL", "gone.onnx"), 3, None),
        (("bench", "gone.onnx"), 3, None),
        (
            # without -q the account comes before
            ("MODEL", "-q", "-p", "prune(sparsity=0.9)", "--min-sqnr", "90"),
            4,
            None,
        ),
    ],
)
def test_errors_are_two_lines_with_the_right_exit_code(
    mlp, tmp_path, words, code, lines
):
    before = sorted(tmp_path.iterdir())
    done = CliRunner().invoke(
        main,
        [str(mlp) if word == "MODEL" else word for word in words],
        prog_name="onnx-opt",
    )
    found = done.stderr.splitlines()
    assert done.exit_code == code
    assert len(found) == 2
    assert found[0].startswith("error: ")
    assert found[1].startswith("  fix: ")
    assert lines is None or found == lines
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("error", "code", "first"),
    [
        (OnnxOptError("disk", "full", "free space"), 1, "error: disk: full"),
        (UsageError("a", "b", "c"), 2, "error: a: b"),
        (RefusedError("a", "b", "c"), 3, "error: a: b"),
        (CheckError("a", "b", "c"), 4, "error: a: b"),
        (KeyboardInterrupt(), 130, "error: interrupted: stopped by the user"),
        (
            ZeroDivisionError("by zero"),
            1,
            "error: internal: ZeroDivisionError: by zero (onnx-opt 0.1.0)",
        ),
    ],
)
def test_every_error_has_its_exit_code(capsys, error, code, first):
    assert report_error(error) == code
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == first
    assert len(lines) == 2


def test_debug_adds_the_traceback(capsys):
    try:
        raise ZeroDivisionError("by zero")
    except ZeroDivisionError as error:
        report_error(error, debug=True)
    assert "Traceback (most recent call last)" in capsys.readouterr().err


def test_names_cannot_write_to_the_terminal():
    assert escaped("a\x1b[31mb\nc\u202ed é ✓") == "a\\x1b[31mb\\nc\\u202ed é ✓"


# the other commands


def test_passes_shows_one_pass_with_its_options():
    done = invoke("passes", "prune")
    assert done.exit_code == 0
    assert "Zero the weights of smallest magnitude" in done.stdout
    assert "number in [0.0, 0.99]" in done.stdout


def test_verify_a_model_against_itself(mlp):
    done = invoke("verify", mlp, mlp, "--min-sqnr", "100", "--atol", "0", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == 0
    assert facts["within"] is True
    assert facts["outside_tolerance"] == 0
    assert facts["overall"]["sqnr_db"] is None
    assert facts["outputs"]["y"]["max_abs"] == 0


@pytest.mark.parametrize(
    ("limit", "problem"),
    [
        (("--min-sqnr", "60"), "dB is below 60 dB"),
        (("--atol", "1e-6"), "output values are outside atol 1e-06 + rtol 0 |y|"),
    ],
)
def test_verify_past_a_limit_exits_with_4_and_still_reports(
    mlp, tmp_path, limit, problem
):
    other = tmp_path / "other.onnx"
    assert (
        invoke(mlp, "-p", "prune(sparsity=0.8)", "-o", other, "--no-bench").exit_code
        == 0
    )
    done = invoke("verify", mlp, other)
    assert done.exit_code == 0
    assert "warning: data: none given: compared on synthetic feeds" in done.stderr
    done = invoke("verify", mlp, other, "--json", *limit)
    assert done.exit_code == 4
    assert problem in done.stderr
    assert json.loads(done.stdout)["within"] is False


def test_verify_names_an_input_that_is_missing(mlp, cnn, tmp_path):
    model = load(mlp)
    model.graph.inputs[0].name = "renamed"
    other = tmp_path / "renamed.onnx"
    save(model, other)
    done = invoke("verify", mlp, other)
    assert done.exit_code == 3
    assert done.stderr == (
        "error: renamed.onnx: has no input 'x', which mlp.onnx has\n"
        "  fix: compare models with the same inputs; these have mlp.onnx: x float32 [batch, 8]; "
        "renamed.onnx: renamed float32 [batch, 8]\n"
    )


def test_bench_measures_each_model(mlp, cnn):
    done = invoke("bench", mlp, cnn, "--seconds", "0.1", "--json")
    facts = json.loads(done.stdout)
    first, second = facts["models"]
    assert facts["hardware"] == hardware(None).to_json()
    assert first["ratio_to_first"] == first["ratio_low"] == first["ratio_high"] == 1.0
    assert second["ratio_low"] <= second["ratio_to_first"]
    assert second["model"] == str(cnn)
    assert 0 < first["min_ms"] <= first["median_ms"] <= first["p90_ms"]
    assert first["peak_memory_bytes"] > 1e6


def test_bench_shows_the_interval_of_the_ratio():
    row = {
        "model": "m.onnx",
        **dict.fromkeys(("median_ms", "p90_ms", "min_ms"), 2.0),
        "ratio_to_first": 0.5,
        "ratio_low": 0.4625,
        "ratio_high": 0.5321,
        "runs": 40,
        "peak_memory_bytes": 1000,
    }
    unknown = {**row, "ratio_low": 0.0, "ratio_high": float("inf")}
    table = latency_table([row, unknown])
    cells = {column.header: list(column.cells) for column in table.columns}
    assert cells["ratio"] == ["0.500", "0.500"]
    assert cells["95 %"] == ["0.463-0.532", "?"]


def test_tables_of_latency_name_the_cpu(mlp):
    done = invoke("bench", mlp, "--seconds", "0.1")
    assert done.stdout.endswith(f"\non {hardware(None).label}\n")
    done = invoke("demo", "--passes", "prune")
    assert f"\non {hardware(None).label}; latency: " in done.stdout


def test_eval_scores_labelled_data(mlp, labelled):
    done = invoke("eval", mlp, "--data", labelled, "--metric", "top1", "--json")
    facts = json.loads(done.stdout)
    with np.load(labelled) as arrays:
        weights = [
            onnx.numpy_helper.to_array(t) for t in onnx.load(mlp).graph.initializer
        ]
        outputs = np.maximum(arrays["x"] @ weights[0], 0) @ weights[1]
        expected = float(np.mean(outputs.argmax(1) == arrays["labels"]))
    assert (facts["metric"], facts["value"]) == ("top1", expected)
    assert facts["hardware"] == hardware(None).to_json()
    done = invoke("eval", mlp, "--data", labelled, "--metric", "top1", "--no-cache")
    assert (done.stdout, done.stderr) == (
        f"top1 {expected:.6g}\n",
        f"on {hardware(None).label}\n",
    )
    assert (
        invoke("eval", mlp, "--data", labelled, "--metric", "top1", "--quiet").stderr
        == ""
    )


def test_demo_reports_accuracy_before_and_after():
    done = invoke("demo", "--passes", "quant", "--json")
    facts = json.loads(done.stdout)
    assert facts["metric"]["name"] == "top1"
    assert facts["metric"]["before"] > 0.98
    assert facts["metric"]["before"] - facts["metric"]["after"] < 0.01
    assert facts["output"]["bytes"] < 0.35 * facts["input"]["bytes"]
    assert facts["output_path"] is None


# failures as JSON


def test_a_failure_is_one_object_too(mlp, tmp_path):
    done = invoke(tmp_path / "none.onnx", "--json")
    assert done.exit_code == 3
    error = json.loads(done.stdout)["error"]
    assert error["exit_code"] == 3
    assert "no such file" in error["problem"]
    assert error["fix"]


def test_a_limit_of_verify_that_is_not_met_is_in_the_object(mlp, tmp_path):
    pruned = tmp_path / "pruned.onnx"
    assert (
        invoke(mlp, "-p", "prune(sparsity=0.5)", "-o", pruned, "--no-bench").exit_code
        == 0
    )
    done = invoke("verify", mlp, pruned, "--min-sqnr", "90", "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == facts["error"]["exit_code"] == 4
    assert facts["within"] is False
    assert facts["overall"]["sqnr_db"] < 90


@pytest.mark.parametrize("budget", [("--min-sqnr", "90"), ("--max-drop", "0")])
def test_a_missed_budget_comes_with_the_whole_account(mlp, labelled, tmp_path, budget):
    out = tmp_path / "out.onnx"
    words = (mlp, "-p", "prune(sparsity=0.95)", "-o", out, "--data", labelled)
    metric = ("--metric", "top1", "--no-bench")
    done = invoke(*words, *metric, *budget, "--json")
    facts = json.loads(done.stdout)
    assert done.exit_code == facts["error"]["exit_code"] == 4
    assert facts["error"]["where"] == budget[0]
    assert facts["passes"][0]["pass"] == "prune"
    assert facts["metric"]["after"] <= facts["metric"]["before"]
    assert facts["output_path"] is None
    assert not out.exists()
    assert "passes" in invoke(*words, *metric, *budget, "-v").stderr
    with pytest.raises(CheckError) as error:
        optimize(mlp, "prune(sparsity=0.95)", min_sqnr=90, bench=False)
    assert error.value.account.passes[0].name == "prune"


def test_data_that_is_given_twice_is_joined_by_every_command(mlp, tmp_path):
    for name, rows in (("a", 2), ("b", 3)):
        np.savez(tmp_path / f"{name}.npz", x=np.zeros((rows, 8), np.float32))
    both = ("--data", tmp_path / "a.npz", "--data", tmp_path / "b.npz")
    facts = json.loads(invoke("verify", mlp, mlp, *both, "--json").stdout)
    assert facts["batches"] == 2


# where output goes


def real_command(words, stdout, shell="exec"):
    """A command whose output goes where the shell's words send it: its code and stderr."""
    line = f'{shell} "{sys.executable}" -m onnx_opt {words} {stdout}'
    return subprocess.run(
        ["bash", "-c", line], capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("words", ["passes", "passes --json", "passes quant"])
def test_a_reader_that_stops_early_is_no_error(words):
    done = real_command(words, "| head -1", shell="")
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_no_bug():
    done = real_command("passes", "> /dev/full")
    assert done.returncode == 1
    assert done.stderr.splitlines() == [
        "error: output: no space left where it is written",
        "  fix: make room there, or write to another place",
    ]
