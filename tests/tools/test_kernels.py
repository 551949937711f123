"""Effects of integer kernels: pairs that may saturate, and files that lose by it.

Each class of CPU has its own expectation here; CI runs this file on both.
"""

import json

import numpy as np
import onnx
import onnx.parser
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._base import LatencyRatio
from onnx_opt.runtime import context
from onnx_opt.runtime.bench import PairedLatency
from onnx_opt.runtime.hardware import (
    ARM,
    X86,
    Hardware,
    products_model,
    products_saturate,
)
from onnx_opt.tools._inspect import inspection
from onnx_opt.tools._run import evidence
from onnx_opt.tools._run.kernels import (
    Kernels,
    SaturatingPairs,
    enough_samples,
    is_quantized,
    remedy,
    saturating_pairs,
)
from onnx_opt.tools._run.provenance import provenance
from onnx_opt.tools.cli import main

SATURATES = products_saturate(products_model())
"""Of the CPU that runs this."""

HEAD = '<ir_version: 10, opset_import: ["" : 21]>'
WIDTH, OUTPUTS = 16, 4
FLOAT = f"""{HEAD}
layer (float[N, {WIDTH}] x) => (float[N, {OUTPUTS}] y)
<float[{WIDTH}, {OUTPUTS}] w = {{%WEIGHTS%}}>
{{ y = MatMul (x, w) }}
"""
FOREIGN = f"""{HEAD}
foreign (float[N, {WIDTH}] x) => (float[N, {OUTPUTS}] y)
<int8[{WIDTH}, {OUTPUTS}] w_q = {{%CODES%}}, float step = {{0.00392156862745098}},
 float w_step = {{0.01}}, uint8 zero = {{0}}, int8 w_zero = {{0}}>
{{
    x_q = QuantizeLinear (x, step, zero)
    x_dq = DequantizeLinear (x_q, step, zero)
    w = DequantizeLinear (w_q, w_step, w_zero)
    y = MatMul (x_dq, w)
}}
"""
DYNAMIC = f"""{HEAD}
dynamic (float[N, {WIDTH}] x) => (float[N, {OUTPUTS}] y)
<int8[{WIDTH}, {OUTPUTS}] w_q = {{%CODES%}}, float w_step = {{0.01}}, int8 w_zero = {{0}}>
{{
    x_q, step, zero = DynamicQuantizeLinear (x)
    sums = MatMulInteger (x_q, w_q, zero, w_zero)
    floats = Cast <to = 1> (sums)
    scale = Mul (step, w_step)
    y = Mul (floats, scale)
}}
"""
BLOCKED = f"""{HEAD}
blocked (float[N, {WIDTH}] x) => (float[N, {OUTPUTS}] y)
<int8[{WIDTH}, {OUTPUTS}] w_q = {{%CODES%}}, float[1, {OUTPUTS}] steps = {{0.1, 0.2, 0.3, 0.4}}>
{{
    w = DequantizeLinear <axis = 0, block_size = {WIDTH}> (w_q, steps)
    y = MatMul (x, w)
}}
"""
HERE = Hardware("Xeon", X86, ("avx2",), True)
EXACT = Hardware("Xeon", X86, ("avx2", "avx512", "avx512_vnni"), False)


def codes(offending):
    """Codes near 100; in all but the first `offending` columns the signs of a pair differ."""
    found = np.random.default_rng(0).integers(90, 127, (WIDTH, OUTPUTS))
    found[1::2, offending:] *= -1
    return found


def written(path, text, weights):
    listed = ", ".join(map(str, weights.reshape(-1).tolist()))
    text = text.replace("%WEIGHTS%", listed).replace("%CODES%", listed)
    onnx.save(onnx.parser.parse_model(text), path)
    return path


@pytest.fixture
def data(tmp_path):
    """Bright inputs: most sums of two products are beyond 16 bits."""
    path = tmp_path / "data.npz"
    np.savez(
        path, x=np.random.default_rng(1).uniform(0.7, 1, (64, WIDTH)).astype(np.float32)
    )
    return path


@pytest.fixture
def float_file(tmp_path):
    return written(tmp_path / "float.onnx", FLOAT, codes(OUTPUTS) * 0.01)


def verified(*words):
    done = CliRunner().invoke(main, ["verify", *map(str, words), "--json"])
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)


# when they disagree


@pytest.mark.parametrize(
    ("kernels", "disagree"),
    [
        (Kernels(30, 30), False),
        (Kernels(30, 33), False),
        (Kernels(30, 33.1), True),
        (Kernels(33.1, 30), False),
        (Kernels(float("inf"), float("inf")), False),
        (Kernels(float("-inf"), 10), True),
        (Kernels(15, None), False),
        (Kernels(14.9, None), True),
    ],
)
def test_kernels_disagree_where_they_lose_more_than_3_db(kernels, disagree):
    assert kernels.disagree is disagree


@pytest.mark.parametrize(
    ("text", "offending", "machine", "target", "words"),
    [
        (FOREIGN, 0, HERE, "cpu", "--explain-loss names"),
        (FOREIGN, 3, EXACT, "cpu-vnni", "--explain-loss names"),
        (FOREIGN, 3, HERE, "cpu", "--passes requantize mends"),
        (DYNAMIC, 3, HERE, None, "--passes requantize mends"),
        (FOREIGN, 3, HERE, "cpu-vnni", "--target cpu makes"),
        (FOREIGN, 3, HERE, "arm64", "--target cpu makes"),
        (BLOCKED, 0, HERE, "cpu", "what blocked weights multiply is rounded to 8 bits"),
    ],
)
def test_what_helps(tmp_path, text, offending, machine, target, words):
    model = load(written(tmp_path / "m.onnx", text, codes(offending)))
    assert remedy(model, machine, target).startswith(words)


def test_a_few_samples_are_enough():
    batch = {"x": np.zeros((16, 2)), "scalar": np.zeros(())}
    assert not enough_samples([])
    assert not enough_samples([batch])
    assert enough_samples([batch, batch])
    assert not enough_samples([{"scalar": np.zeros(())}] * 31)


# counted


@pytest.mark.parametrize(
    ("text", "offending"), [(FOREIGN, 0), (FOREIGN, 3), (DYNAMIC, 0), (DYNAMIC, 1)]
)
def test_pairs_are_counted_whoever_made_the_file(tmp_path, text, offending):
    path = written(tmp_path / "m.onnx", text, codes(offending))
    found = saturating_pairs(load(path))
    assert (found.offending, found.pairs) == (
        offending * WIDTH // 2,
        OUTPUTS * WIDTH // 2,
    )
    facts = inspection(path)
    assert facts["saturation"] == {
        "offending_pairs": found.offending,
        "pairs": 32,
        "layers": found.by_layer,
    }
    assert facts["hardware"]["saturates"] is SATURATES


def test_a_float_model_has_no_pairs_and_names_no_cpu(float_file):
    facts = inspection(float_file)
    assert (facts["saturation"], facts["hardware"]) == (None, None)
    assert saturating_pairs(load(float_file)) == SaturatingPairs({}, 0)


@pytest.mark.parametrize(
    ("offending", "line"),
    [
        (0, "none of 32 weight pairs saturates on any CPU"),
        (
            3,
            "24 of 32 weight pairs may saturate on x86 CPUs without VNNI "
            "(AVX2, and AVX-512 before Cascade Lake): requantize mends it",
        ),
    ],
)
def test_inspect_and_verify_say_how_many_and_where(tmp_path, offending, line):
    path = written(tmp_path / "m.onnx", FOREIGN, codes(offending))
    for words in (("inspect", path), ("verify", path, path)):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0
        assert line in " ".join(done.stdout.split())
        assert ("(8-bit products saturate)" in done.stdout) is SATURATES


def test_nothing_is_said_of_pairs_where_there_are_none(tmp_path, float_file):
    for words in (("inspect", float_file), ("verify", float_file, float_file)):
        done = CliRunner().invoke(main, list(map(str, words)))
        assert done.exit_code == 0
        assert "weight pairs" not in done.stdout


# measured


@pytest.mark.parametrize("text", [FOREIGN, DYNAMIC])
def test_verify_compares_kernels_with_the_graph(tmp_path, data, float_file, text):
    path = written(tmp_path / "m.onnx", text, codes(OUTPUTS))
    for words, which in (((float_file, path), "b"), ((path, float_file), "a")):
        facts = verified(*words, "--data", data)
        assert facts["quantized"]["ab".replace(which, "")] is None
        kernels = facts["quantized"][which]["kernels"]
        assert kernels["as_written_db"] > 40
        assert (kernels["sqnr_db"] < 15) is SATURATES
        assert len(facts["warnings"]) == SATURATES
        for warning in facts["warnings"]:
            assert warning.startswith(f"{path}: the integer kernels of this CPU (")
            assert warning.endswith("; --passes requantize mends weights that saturate")


def test_without_offending_pairs_kernels_agree_on_every_cpu(tmp_path, data):
    reference = written(tmp_path / "float.onnx", FLOAT, codes(0) * 0.01)
    path = written(tmp_path / "m.onnx", FOREIGN, codes(0))
    facts = verified(reference, path, "--data", data)
    kernels = facts["quantized"]["b"]["kernels"]
    assert kernels["sqnr_db"] == pytest.approx(kernels["as_written_db"], abs=0.1)
    assert facts["warnings"] == []


def test_between_two_quantized_files_the_graph_is_the_measure(tmp_path, data):
    path = written(tmp_path / "m.onnx", FOREIGN, codes(OUTPUTS))
    facts = verified(path, path, "--data", data)
    assert facts["quantized"]["a"]["kernels"]["as_written_db"] is None
    assert len(facts["warnings"]) == (2 if SATURATES else 0)


@pytest.mark.parametrize(
    ("target", "warned"), [("cpu", []), ("cpu-vnni", ["kernels", "target cpu-vnni"])]
)
def test_a_result_for_another_cpu_says_so(tmp_path, data, float_file, target, warned):
    result = optimize(
        float_file,
        "quant(measure=false)",
        out=tmp_path / "q.onnx",
        data=str(data),
        target=target,
        bench=False,
    )
    if target == "cpu":
        assert saturating_pairs(result.model).offending == 0
    else:
        assert saturating_pairs(result.model).offending == OUTPUTS * WIDTH // 2
    found = [w for w in result.warnings if w.startswith(("kernels: ", "target "))]
    assert sorted(w.partition(":")[0] for w in found) == (warned if SATURATES else [])
    remedies = [w.rpartition("; ")[2] for w in found if w.startswith("kernels: ")]
    assert set(remedies) <= {"--target cpu makes weights that saturate on no CPU"}


def test_a_foreign_file_that_stays_as_it_is(tmp_path, data):
    path = written(tmp_path / "m.onnx", FOREIGN, codes(OUTPUTS))
    result = optimize(
        path, "remove-unused", out=None, data=str(data), bench=False, dry_run=True
    )
    found = [w for w in result.warnings if w.startswith("kernels: ")]
    assert len(found) == SATURATES
    assert all("requantize" in warning for warning in found)


# targets on other CPUs


def test_a_target_whose_cpu_is_not_here_decides_nothing_by_time(
    data, float_file, monkeypatch
):
    timed = []
    monkeypatch.setattr(
        context,
        "paired_latency",
        lambda *_: timed.append(1) or PairedLatency(2, 1, LatencyRatio(0.5, 0.5, 0.5)),
    )

    def warnings_on(machine):
        monkeypatch.setattr(evidence, "hardware", lambda worker, provider: machine)
        result = optimize(
            float_file, "quant", data=str(data), target="arm64", bench=False
        )
        return [w for w in result.warnings if w.startswith("target ")]

    assert warnings_on(EXACT) == [
        f"target arm64: made for arm64 CPUs, but this is {EXACT.label}: latency is this CPU's, and "
        "no layer stays float for being slow here"
    ]
    assert warnings_on(HERE) == [
        f"target arm64: made for arm64 CPUs, but this is {HERE.label}: drift, metric and latency "
        "are this CPU's, and no layer stays float for being slow here"
    ]
    assert timed == []
    assert warnings_on(Hardware("Apple M2", ARM, ("neon", "dot_product"), False)) == []
    assert timed


# the account


def test_the_account_names_the_cpu(tmp_path, float_file):
    out = tmp_path / "out.onnx"
    result = optimize(float_file, "prune", out=out, bench=False)
    assert result.hardware.saturates is SATURATES
    assert result.as_dict()["hardware"] == result.hardware.to_json()
    assert provenance(load(out))["cpu"] == result.hardware.label
    done = CliRunner().invoke(
        main, [str(float_file), "-p", "prune", "-o", str(out), "--no-bench"]
    )
    assert f"\non {result.hardware.label}\n" in done.stderr


def test_where_nothing_is_run_nothing_is_measured(tmp_path, float_file, monkeypatch):
    seen = []
    monkeypatch.setattr(
        evidence, "hardware", lambda worker, provider: seen.append(worker) or EXACT
    )
    optimize(float_file, "quant", out=tmp_path / "out.onnx", verify="never")
    assert seen == [None]


@pytest.mark.parametrize(
    ("text", "quantized"), [(FLOAT, False), (FOREIGN, True), (DYNAMIC, True)]
)
def test_what_is_quantized(tmp_path, text, quantized):
    assert is_quantized(load(written(tmp_path / "m.onnx", text, codes(0)))) is quantized
