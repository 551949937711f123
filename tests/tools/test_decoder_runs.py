"""Decoders with a cache from the command line: without data, on tokens alone, by their metrics."""

import json
import tempfile
from pathlib import Path

import jsonschema
import numpy as np
import onnx
import pytest
from cached_decoders import CROSS, TRANSFORMERS, decoder_model
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.runtime.decoding import greedy
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools.cli import main
from onnx_opt.tools.commands.bench import latency_table
from onnx_opt.tools.tables import before_after

SCHEMA = Path(__file__).resolve().parents[2] / "tools" / "schema" / "run-1.json"
WINDOWS = np.random.default_rng(0).integers(0, 12, (6, 10))


@pytest.fixture(scope="module")
def written():
    """Tokens that the model itself writes, which it is good at."""
    with Worker() as worker, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.onnx"
        onnx.save(decoder_model(TRANSFORMERS), path)
        session = open_session(worker, path)
        first = WINDOWS[:, :1]
        return np.concatenate([first, greedy(session, {"input_ids": first})], axis=1)


@pytest.fixture
def folder(tmp_path, monkeypatch, written):
    monkeypatch.chdir(tmp_path)
    onnx.save(decoder_model(TRANSFORMERS), "m.onnx")
    np.savez("tokens.npz", input_ids=written)
    return tmp_path


def invoke(*words):
    return CliRunner().invoke(main, [str(word) for word in words])


def facts_of(*words, code=0):
    done = invoke(*words, "--json")
    assert done.exit_code == code, done.stderr
    return json.loads(done.stdout)


def test_a_run_without_data_is_checked_and_timed_in_both_phases(folder):
    result = optimize("m.onnx", "prune(sparsity=0.1)", dry_run=True)
    account = result.as_dict()
    schema = json.loads(SCHEMA.read_text(encoding="utf-8"))
    jsonschema.Draft202012Validator(schema).validate(account)
    assert set(account) <= set(schema["properties"])
    assert account["drift_on"] == "synthetic feeds"
    assert account["drift"]["sqnr_db"] > 5
    for side in ("input", "output"):
        assert account[side]["latency_ms"] > 0
        assert account[side]["step_ms"] > 0
    assert account["step_latency"]["verdict"] in ("slower", "not slower", "undecided")
    labels = [str(cell) for cell in before_after(result).columns[0].cells]
    assert labels[-2:] == ["latency: prefill", "latency: one token"]


def test_bench_times_both_phases(folder):
    found = facts_of("bench", "m.onnx", "--seconds", "0.2")
    (row,) = found["models"]
    of_the_file = {"model", "sha256", "peak_memory_bytes", "step"}
    assert set(row) - set(row["step"]) == of_the_file
    assert row["step"]["median_ms"] > 0
    names = [str(cell) for cell in latency_table([row]).columns[0].cells]
    assert names == ["m.onnx: prefill", "m.onnx: one token"]


def test_tokens_alone_calibrate_and_judge(folder):
    account = facts_of(
        "m.onnx", "-p", "quant", "--data", "tokens.npz", "--metric", "perplexity",
        "--max-drop", "0.5", "--no-bench", "--dry-run",
    )  # fmt: skip
    metric = account["metric"]
    assert metric["drop"] == pytest.approx(metric["after"] - metric["before"])
    share = metric["drop"] / metric["before"]
    assert metric["drop_share"] == pytest.approx(share)
    assert account["budgets"]["max_drop"]["value"] == pytest.approx(share)
    told = [words for words in account["warnings"] if "not given" in words]
    assert told == [
        "data: tokens.npz: input 'attention_mask' is not given: taken as ones",
        "data: tokens.npz: input 'position_ids' is not given: taken as 0, 1, 2, …",
        "data: tokens.npz: inputs 'past_key_values.0.key' … 'past_key_values.0.value' (2) are "
        "not given: taken as empty",
    ]


def test_the_drop_of_perplexity_is_in_per_cent(folder):
    done = invoke(
        "m.onnx", "-p", "prune(sparsity=0.9)", "--data", "tokens.npz", "--metric", "perplexity",
        "--max-drop", "0.01", "--no-bench", "--dry-run", "-q",
    )  # fmt: skip
    assert done.exit_code == 4
    (line,) = [line for line in done.stderr.splitlines() if line.startswith("error")]
    assert line.startswith("error: --max-drop: perplexity went from ")
    assert line.endswith(" %, more than 1 %")


def test_generation_is_compared_with_the_original(folder):
    account = facts_of(
        "m.onnx", "-p", "quant", "--data", "tokens.npz", "--metric", "generation",
        "--no-bench", "-o", "small.onnx", "--force",
    )  # fmt: skip
    metric = account["metric"]
    assert metric["before"] == 1
    assert 0 <= metric["after"] <= 1
    same = facts_of(
        "verify",
        "m.onnx",
        "small.onnx",
        "--data",
        "tokens.npz",
        "--metric",
        "generation",
    )
    assert same["metric"] == {
        "name": "generation",
        "a": 1.0,
        "b": metric["after"],
        "drop": metric["drop"],
        "remarks": [],
    }


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            ("eval", "m.onnx", "--data", "tokens.npz", "--metric", "generation"),
            "error: metric generation: compares two models\n"
            "  fix: onnx-opt verify ORIGINAL m.onnx --data DATA --metric generation\n",
        ),
        (
            ("verify", "m.onnx", "m.onnx", "--metric", "generation"),
            "error: --metric: 'generation' needs data\n  fix: give --data\n",
        ),
        (
            ("m.onnx", "--data", "flat.npz"),
            "error: flat.npz, batch 0, input 'input_ids': shape [60] has rank 1; the model takes "
            "[s0, s1]\n  fix: give windows: ids[:n].reshape(-1, 256), n a multiple of 256\n",
        ),
        (
            ("m.onnx", "--data", "beyond.npz"),
            "error: beyond.npz, batch 0, input 'input_ids': row 3 of a batch (12, 0, 0, 0): the "
            "id 12 has no row in the model's table, whose rows are 0 to 11\n"
            "  fix: take the tokenizer.json that the model was trained with\n",
        ),
        (
            ("m.onnx", "--data", "noise.npz", "--metric", "perplexity"),
            " among 12 tokens has 12: nothing can be judged by it\n"
            "  fix: check that the tokens are of the model's own tokenizer, and that labels, if "
            "there are any, are the tokens that come next\n",
        ),
        (
            ("cross.onnx", "--data", "tokens.npz"),
            "error: tokens.npz: no array for input 'encoder_hidden_states'; it holds input_ids\n"
            "  fix: the inputs are input_ids, encoder_hidden_states\n",
        ),
    ],
)
def test_bad_data_is_named(folder, words, error):
    onnx.save(decoder_model(CROSS), "cross.onnx")
    np.savez("flat.npz", input_ids=WINDOWS.reshape(-1))
    np.savez("noise.npz", input_ids=WINDOWS)
    beyond = np.zeros((4, 4), np.int64)
    beyond[2, 0] = 12
    np.savez("beyond.npz", input_ids=beyond)
    done = invoke(*words)
    assert done.exit_code in (2, 3)
    assert done.stderr.endswith(error)
