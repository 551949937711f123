"""The account of a run: complete, by the published schema, also where the run fails."""

import contextlib
import json
import re
import shlex
import time
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import onnx.reference
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, RefusedError, UsageError, optimize
from onnx_opt.tools._run.clock import Clock
from onnx_opt.tools.cli import main
from onnx_opt.tools.console import OpenStep, Progress, StepTeller
from sample_models import model_from

SCHEMA = Path(__file__).resolve().parents[2] / "tools" / "schema" / "run-1.json"
VALIDATOR = jsonschema.Draft202012Validator(
    json.loads(SCHEMA.read_text(encoding="utf-8"))
)
PRUNED = ("-p", "prune(sparsity=0.9)")


WIDE = """
<ir_version: 10, opset_import: ["" : 21]>
wide (float[batch, 64] x) => (float[batch, 64] y)
<float[64, 256] w1, float[256, 64] w2>
{
    h = MatMul (x, w1)
    r = Relu (h)
    y = MatMul (r, w2)
}
"""


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def account_of(*words):
    """The JSON object of a run, which is valid and has nothing that the schema does not name."""
    done = invoke(*words, "--json")
    found = json.loads(done.stdout)
    VALIDATOR.validate(found)
    assert set(found) <= set(VALIDATOR.schema["properties"])
    return found


@pytest.fixture
def wide(tmp_path):
    path = tmp_path / "wide.onnx"
    onnx.save(model_from(WIDE), path)
    return path


@pytest.fixture
def labelled(mlp, tmp_path):
    path = tmp_path / "labelled.npz"
    x = np.random.default_rng(1).standard_normal((64, 8)).astype(np.float32)
    labels = onnx.reference.ReferenceEvaluator(onnx.load(mlp)).run(None, {"x": x})[0]
    np.savez(path, x=x, labels=labels.argmax(1))
    return path


# the schema


def test_the_schema_is_one():
    jsonschema.Draft202012Validator.check_schema(VALIDATOR.schema)


@pytest.mark.parametrize(
    "words",
    [
        ("--no-bench",),
        ("--layers", "--no-bench"),
        ("--dry-run", "--zipped", "--explain-loss"),
        ("--verify", "never", "--dry-run", "--no-bench"),
        ("-p", "remove-unused", "--dry-run", "--min-sqnr", "60"),
    ],
)
def test_runs_are_valid(mlp, words):
    assert "error" not in account_of(mlp, *words)


def test_a_missed_budget_has_the_whole_account(wide):
    found = account_of(wide, *PRUNED, "--min-sqnr", "90", "--no-bench")
    budget = found["budgets"]["min_sqnr"]
    assert found["error"]["exit_code"] == 4
    assert (budget["limit"], budget["kept"]) == (90, False)
    assert budget["value"] == found["passes"][-1]["drift"]["sqnr_db"]
    assert found["output"]["bytes"] < found["input"]["bytes"]
    assert found["output_path"] is None


def test_a_kept_budget_is_told(mlp, labelled):
    words = (
        "--data",
        labelled,
        "--metric",
        "top1",
        "--max-drop",
        "0.9",
        "--dry-run",
        "--no-bench",
    )
    found = account_of(mlp, *PRUNED, *words)
    metric = found["metric"]
    assert found["budgets"] == {
        "max_drop": {"limit": 0.9, "value": metric["drop"], "kept": True}
    }
    assert metric["drop"] == pytest.approx(metric["before"] - metric["after"])


def test_a_refused_model_tells_what_was_asked(tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no model")
    found = account_of(path, "--min-sqnr", "9")
    assert found["error"]["exit_code"] == 3
    assert found["model"]["path"] == str(path)
    assert found["model"]["name"] is None
    assert found["budgets"]["min_sqnr"] == {"limit": 9, "value": None, "kept": None}
    assert [step["step"] for step in found["steps"]] == ["start", "load"]


def test_wrong_options_are_an_error_alone(mlp):
    assert set(account_of(mlp, "--seed", "-1")) == {"error"}


POISON = """
import dataclasses
import numpy as np
import onnx_ir as ir
from onnx_opt.passes._base import Declined, Pass, PassOutcome

@dataclasses.dataclass(frozen=True)
class Poison(Pass):
    name = "poison"
    effect = "lossy"
    unit = "weights"

    def run(self, model, context):
        value = model.graph.initializers["w2"]
        value.const_value = ir.Tensor(value.const_value.numpy() * np.nan, name="w2")
        return PassOutcome(1, {"poured": 2}, [Declined("w1", "spared")])
"""


def poison():
    scope = {"__name__": "poison"}
    exec(POISON, scope)
    return scope["Poison"]()


def test_a_refused_pass_is_in_the_account(mlp):
    with pytest.raises(CheckError, match="no longer finite") as caught:
        optimize(mlp, ["remove-unused", poison()], bench=False)
    found = caught.value.account
    plain = found.as_dict()
    VALIDATOR.validate(plain)
    assert [step.name for step in found.passes] == ["remove-unused", "poison"]
    assert found.passes[1].stats == {"poured": 2}
    assert found.passes[1].declined == [{"where": "w1", "reason": "spared"}]
    assert plain["input"]["nodes"] == 3
    assert plain["output"]["nodes"] is None
    assert "poison" in str(found)


# on failure, as text


def test_a_missed_budget_prints_the_account_and_every_layer(mlp):
    done = invoke(
        mlp, "-p", "simplify, prune(sparsity=0.9)", "--min-sqnr", "90", "--no-bench"
    )
    shown = done.stderr
    assert done.exit_code == 4
    for title in ("passes", "result", "budgets", "largest parts left", "time"):
        assert re.search(rf"^{title}\b", shown, re.MULTILINE), shown
    assert shown.index("largest parts left") < shown.index("error: --min-sqnr")
    assert invoke(mlp, *PRUNED, "--min-sqnr", "90", "-q").stderr.startswith("error:")


def test_a_model_that_is_refused_prints_two_lines(tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no model")
    assert len(invoke(path).stderr.splitlines()) == 2


# what it says


def test_exact_and_not_measured_are_different(mlp):
    exact = account_of(mlp, "-p", "remove-unused", "--dry-run", "--no-bench")["passes"][
        0
    ]
    unknown = account_of(mlp, *PRUNED, "--verify", "never", "--dry-run", "--no-bench")[
        "passes"
    ][0]
    assert (exact["stats"]["drift"], exact["drift"]["max_abs"]) == ("exact", 0)
    assert (unknown["stats"]["drift"], unknown["drift"]) == ("not measured", None)
    words = ("--verify", "never", "--dry-run", "--no-bench")
    assert "not measured" in invoke(mlp, *PRUNED, *words).stderr


def test_every_count_has_a_unit(mlp):
    found = account_of(
        mlp, "-p", "simplify, prune(sparsity=0.9)", "--dry-run", "--no-bench"
    )
    units = [each["stats"]["unit"] for each in found["passes"]]
    assert units == ["rewrites", "weights", "constants"]
    words = ("-p", "simplify, prune(sparsity=0.9)", "--dry-run", "--no-bench")
    assert "2 weights" in invoke(mlp, *words).stderr


def test_the_metric_after_each_pass(mlp, labelled):
    words = (
        "--data",
        labelled,
        "--metric",
        "top1",
        "--dry-run",
        "--no-bench",
        "--metric-each",
    )
    found = account_of(mlp, "-p", "remove-unused, prune(sparsity=0.9)", *words)
    first, last, packed = [each["stats"]["metric"] for each in found["passes"]]
    assert packed == last
    assert first == found["metric"]["before"] == 1.0
    assert last == found["metric"]["after"] < 1.0
    with pytest.raises(UsageError, match="--metric-each: needs a metric"):
        optimize(mlp, "prune", metric_each=True)


def test_versions_are_those_that_ran(mlp):
    versions = account_of(mlp, *PRUNED, "--dry-run", "--no-bench")["versions"]
    import onnxruntime

    assert versions["onnxruntime"] == onnxruntime.__version__
    assert versions["onnx"] == onnx.__version__


def test_the_command_repeats_the_run(mlp, labelled, tmp_path):
    out = tmp_path / "a b.onnx"
    given = (
        *(mlp, "-o", out, "-p", "prune(sparsity=0.5)", "--data", labelled),
        *("--metric", "top1", "--no-bench", "--seed", "7", "--no-pack"),
    )
    command = account_of(*given)["command"]
    written = out.read_bytes()
    words = shlex.split(command)
    assert words[0] == "onnx-opt"
    out.unlink()
    assert account_of(*words[1:])["command"] == command
    assert out.read_bytes() == written


def test_python_has_the_same_command_where_there_is_one(mlp):
    result = optimize(mlp, "prune", bench=False)
    assert result.command == f"onnx-opt {mlp} --passes prune --no-bench --dry-run"
    feeds = {"x": np.zeros((4, 8), np.float32)}
    assert optimize(mlp, "prune", data=feeds, bench=False).command is None


@pytest.mark.parametrize(
    ("passes", "why", "text"),
    [
        ("remove-unused", "no pass of this run touches it", "quant"),
        (
            "quant(exclude=w1, measure=false)",
            "quant: matched by exclude",
            "compress-weights",
        ),
        ("quant(measure=false)", "stored in 8 bits a weight", "quant(blocked)"),
    ],
)
def test_the_largest_parts_say_why_they_stayed(wide, passes, why, text):
    result = optimize(wide, passes, bench=False, pack=False)
    (found,) = [part for part in result.largest if part.tensor == "w1"]
    assert (found.why, found.pass_text) == (why, text)
    sizes = [part.bytes for part in result.largest]
    assert sizes == sorted(sizes, reverse=True)


def test_bits_are_by_number_of_weights(wide):
    result = optimize(wide, "quant(exclude=w1, measure=false)", bench=False, pack=False)
    assert result.input.bits == {"32": 2 * 64 * 256}
    assert result.output.bits["8"] == 64 * 256
    assert result.output.bits["32"] >= 64 * 256


def test_what_is_too_small_to_shrink_has_no_pass_for_it(mlp):
    result = optimize(mlp, "remove-unused", bench=False)
    assert [part.pass_text for part in result.largest] == [None, None]


# time


def test_steps_add_up(mlp, labelled):
    words = ("--data", labelled, "--metric", "top1", "--dry-run", "--no-bench")
    found = account_of(mlp, "-p", "simplify, prune(sparsity=0.9)", *words)
    names = [step["step"] for step in found["steps"]]
    assert names == [
        *("start", "load", "original", "check as loaded"),
        *("simplify", "prune(sparsity=0.9)", "pack", "finish"),
        "looking for the layers that lost most",
    ]
    for key in ("seconds", "cpu_seconds"):
        total = sum(step[key] for step in found["steps"])
        assert 0.9 * found[key] <= total <= found[key] + 0.001
    inner = {step["step"] for step in found["steps"][2]["steps"]}
    assert {"run the original", "metric top1"} <= inner


def test_steps_of_one_name_are_added_up():
    clock = Clock()
    for _ in range(3):
        with (
            contextlib.suppress(ZeroDivisionError),
            clock.step("outer"),
            clock.step("inner"),
        ):
            time.sleep(0.01)
            raise ZeroDivisionError
    (outer,) = clock.whole().as_dict()["steps"]
    (inner,) = outer["steps"]
    assert (outer["step"], inner["step"]) == ("outer", "inner")
    assert 0.03 <= inner["seconds"] <= outer["seconds"]


def test_cpu_seconds_of_others_count_from_then_on():
    clock = Clock()
    spent = [5.0]
    clock.count(lambda: spent[0])
    with clock.step("work"):
        spent[0] += 100.0
    whole = clock.whole()
    assert 100 <= whole.steps["work"].cpu_seconds <= whole.cpu_seconds < 104


def test_the_worker_is_counted():
    from onnx_opt.runtime.worker import Worker

    with Worker() as worker:
        worker.call("installed")
        first = worker.cpu_seconds
        worker.close()
        worker.call("installed")
        # what a child took that is gone stays counted
        assert worker.cpu_seconds > first > 0


def test_off_a_terminal_the_step_at_hand_is_told(capfd):
    teller = StepTeller(seconds=0.05)
    with teller.telling("quant"), teller.telling("calibrating"):
        time.sleep(0.2)
    lines = capfd.readouterr().err.splitlines()
    # a busy machine may take a second to come here
    assert re.fullmatch(r"\d+ s: quant: calibrating", lines[-1])
    # and no more once it is over
    time.sleep(0.1)
    assert capfd.readouterr().err == ""


def test_nothing_is_told_once_the_last_step_is_over(capfd):
    # lines without a pause: many steps end while one is being written
    teller = StepTeller(seconds=0.0)
    for _ in range(200):
        with teller.telling("quant"):
            time.sleep(0.0002)
        capfd.readouterr()
        time.sleep(0.0002)
        assert capfd.readouterr().err == ""


def test_a_step_tells_its_state_and_the_time_that_is_left():
    step = OpenStep("finetune", total=1000, began=100.0)
    assert step.text(now=110.0) == "finetune"
    step.words = "step 25 of 100, loss 2"
    step.advance(200)
    step.advance(50)
    assert step.text(now=110.0) == "finetune: step 25 of 100, loss 2, 30 s left"
    assert step.text(now=180.0).endswith(", 4 min left")


def test_off_a_terminal_the_words_of_a_step_are_told(capfd, monkeypatch):
    monkeypatch.setattr("onnx_opt.tools.console.TELL_SECONDS", 0.05)
    progress = Progress()
    with progress("finetune", 1000) as advance:
        advance(500)
        progress.note("step 5 of 10")
        time.sleep(0.2)
    last = capfd.readouterr().err.splitlines()[-1]
    assert re.fullmatch(r"\d+ s: finetune: step 5 of 10, \d+ s left", last)


def test_a_short_run_tells_nothing(mlp):
    assert invoke(mlp, *PRUNED, "--dry-run", "--no-bench", "--json").stderr == ""


def test_errors_of_data_keep_what_is_known(mlp, tmp_path):
    path = tmp_path / "x.npz"
    np.savez(path, x=np.zeros((4, 9), np.float32))
    with pytest.raises(RefusedError) as caught:
        optimize(mlp, "prune", data=path, bench=False)
    plain = caught.value.account.as_dict()
    VALIDATOR.validate(plain)
    assert plain["input"]["nodes"] == 3
    assert plain["passes"] == []


def test_arrays_as_data_have_no_command(mlp):
    images = np.random.default_rng(0).standard_normal((8, 8)).astype(np.float32)
    assert (
        optimize(mlp, "prune", data=images, bench=False, floor="none").command is None
    )
