"""Models of the fuzzer are valid, varied and the same for the same seed; its verdicts tell faults
from noise; passes bear a sample.
"""

import sys
from pathlib import Path

import numpy as np
import onnx
import onnx.parser
import pytest
from onnx_opt import reduce
from onnx_opt.passes._simplify.rules import arithmetic
from onnx_opt.runtime.worker import Worker

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
from fuzzing import crew, judge, official
from fuzzing.models import random_model

# numpy and ONNX Runtime speak of the infinities that models are made to give
pytestmark = pytest.mark.filterwarnings("ignore::RuntimeWarning")

HEADER = '<ir_version: 10, opset_import: ["" : 21]>\n'
TWICE = HEADER + "g (float[N, 3] x) => (float[N, 3] y) { y = Add (x, x) }"


@pytest.fixture(scope="module")
def worker():
    with Worker(timeout=60) as worker:
        yield worker


def model_of(text):
    return onnx.parser.parse_model(text)


def original_of(text=TWICE):
    return judge.Original.of(model_of(text), [{"x": np.float32([[1, -2, 3]])}])


def faults(verdicts):
    return [verdict for verdict in verdicts if verdict.kind not in judge.GOOD]


def judged(seed, suites, worker):
    """Faults of the passes on the model of a seed."""
    generated = random_model(seed)
    original = judge.Original.of(generated.model, generated.feeds)
    assert original is not None
    found = []
    for suite in suites:
        found += judge.SUITES[suite](original, judge.Phases(), worker)
    return faults(found)


# models


def test_models_are_valid_run_and_of_many_ops():
    ops, parts = set(), set()
    for seed in range(30):
        generated = random_model(seed)
        model = generated.model
        assert judge.session_of(model).run(None, generated.feeds[0])
        domains = {opset.domain for opset in model.opset_import}
        # inference knows nothing of what ops of other domains give
        if "com.microsoft" not in domains:
            onnx.checker.check_model(model, full_check=True)
        ops |= generated.ops
        parts |= parts_of(model)
    assert len(ops) >= 90
    assert parts == {"function", "default", "symbol", "body", "input as output"}


def parts_of(model):
    graph = model.graph
    inputs = {value.name for value in graph.input}
    dims = [d for value in graph.input for d in value.type.tensor_type.shape.dim]
    found = {
        "function": model.functions,
        "default": inputs & {tensor.name for tensor in graph.initializer},
        "symbol": any(dim.dim_param for dim in dims),
        "body": any(a.HasField("g") for node in graph.node for a in node.attribute),
        "input as output": inputs & {value.name for value in graph.output},
    }
    return {name for name, is_there in found.items() if is_there}


def test_a_seed_gives_the_same_model_again():
    first, again = random_model(7), random_model(7)
    assert first.model == again.model
    for one, other in zip(first.feeds, again.feeds, strict=True):
        assert one.keys() == other.keys()
        assert all(np.array_equal(one[name], other[name]) for name in one)
    assert first.model != random_model(8).model


# verdicts


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        (TWICE, "ok"),
        (TWICE.replace("Add", "Mul"), "wrong"),
        (TWICE.replace("[N, 3] y", "[M, 3] y"), "interface"),
        (TWICE.replace("] x)", "] z)").replace("(x, x)", "(z, z)"), "interface"),
        (TWICE.replace("Add (x, x)", "Add (x)"), "invalid"),
        (
            HEADER
            + "g (float[N, 3] x) => (float[N, 3] y) <int64[2] s = {7, 3}> "
            + "{ h = Reshape (x, s)  y = Reshape (h, s) }",
            "fails",
        ),
    ],
)
def test_verdicts(text, kind):
    verdict = judge.judged("a pass", original_of(), model_of(text), exact=True)
    assert verdict.kind == kind


def test_noise_is_no_fault():
    # 1e4 - 1e4 + x: what is left is rounding, and another order gives other rounding
    noisy = HEADER + (
        "g (float[N, 3] x) => (float[N, 3] y) <float big = {1e5}> "
        "{ a = Mul (x, big)  b = Add (a, big)  c = Sub (b, a)  y = Sub (c, big) }"
    )
    other = noisy.replace(
        "b = Add (a, big)  c = Sub (b, a)", "b = Sub (big, a)  c = Add (b, a)"
    )
    feeds = [{"x": np.float32([[0.1, -0.7, 0.3]])}]
    original = judge.Original.of(model_of(noisy), feeds)
    assert judge.judged("a pass", original, model_of(other), exact=True).kind in (
        "noise",
        "ok",
    )


@pytest.mark.parametrize(
    ("want", "have", "problem"),
    [
        ([1.0, 2.0], [1.0, 2.0 + 1e-6], None),
        ([1.0, 2.0], [1.0, 2.1], "output 0: off by 0.1 of 2"),
        ([np.nan, np.inf], [np.nan, np.inf], None),
        ([np.nan, 1.0], [0.0, 1.0], "output 0: infinite or NaN where it was not"),
        ([np.inf], [-np.inf], "output 0: infinite or NaN where it was not"),
        ([1.0], [[1.0]], "output 0: shape (1,) became (1, 1)"),
    ],
)
def test_differences(want, have, problem):
    assert judge.difference([np.array(want)], [np.array(have)], 1e-4) == problem


# processes


def judge_that(does):
    program = f"""
import json, os, sys, time
for line in sys.stdin:
    print(json.dumps({{"phase": "busy"}}), flush=True)
    if "fault" in json.loads(line):
        {does}
    print(json.dumps({{"answer": {{"pid": os.getpid()}}}}), flush=True)
"""
    return crew.Judge(["-c", program], timeout=5)


@pytest.mark.parametrize(
    ("does", "end"), [("os.abort()", "died"), ("time.sleep(60)", "hang")]
)
def test_a_process_that_dies_or_hangs_is_told_and_replaced(does, end):
    with judge_that(does) as one:
        first = one.ask({}).answer["pid"]
        assert one.ask({}).answer["pid"] == first
        one.timeout = 0.5 if end == "hang" else 5
        assert one.ask({"fault": 1}) == (None, end, "busy")
        one.timeout = 5
        assert one.ask({}).answer["pid"] != first


# passes


@pytest.mark.parametrize("seed", range(12))
def test_exact_passes_are_exact(seed, worker):
    assert judged(seed, ["exact"], worker) == []


@pytest.mark.parametrize("seed", [3, 14])
def test_lossy_pipelines_give_sound_models(seed, worker):
    assert judged(seed, ["lossy"], worker) == []


@pytest.mark.slow
@pytest.mark.parametrize("start", range(1000, 1150, 25))
def test_more_models_through_exact_passes(start, worker):
    found = [judged(seed, ["exact"], worker) for seed in range(start, start + 25)]
    assert found == [[]] * 25


@pytest.mark.slow
@pytest.mark.parametrize("start", range(2000, 2030, 10))
def test_more_models_through_lossy_pipelines(start, worker):
    found = [judged(seed, ["lossy"], worker) for seed in range(start, start + 10)]
    assert found == [[]] * 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3000, 3010))
def test_whole_runs(seed, worker):
    assert judged(seed, ["driven"], worker) == []


def test_simple_official_models_stay_as_expected(tmp_path):
    kinds = ("simple",)
    verdicts = [
        official.official_verdict(name, judge.Phases(), tmp_path, kinds)
        for name in official.cases(kinds)
    ]
    assert faults(verdicts) == []
    assert sum(verdict.kind == "ok" for verdict in verdicts) >= 17


@pytest.mark.slow
def test_official_models_stay_as_expected(tmp_path):
    names = [name for name in official.cases() if not name.startswith("light/")]
    verdicts = [
        official.official_verdict(name, judge.Phases(), tmp_path) for name in names[::4]
    ]
    assert faults(verdicts) == []
    assert sum(verdict.kind == "ok" for verdict in verdicts) > len(verdicts) / 2


# a fault put in on purpose


def test_a_wrong_rewrite_is_caught_and_reduced(monkeypatch, tmp_path, worker):
    wrong = arithmetic.INVOLUTIONS | {"Sigmoid", "Relu", "Abs"}
    monkeypatch.setattr(arithmetic, "INVOLUTIONS", wrong)
    monkeypatch.setattr(judge, "exact_passes", lambda: ["remove-identities"])
    for seed in range(300):
        generated = random_model(seed)
        found = judged(seed, ["exact"], worker)
        # a run without data judges on feeds that give finite outputs
        if found and not has_nonfinite(generated):
            break
    else:
        pytest.fail("not caught")
    assert {verdict.kind for verdict in found} == {"wrong"}
    path = tmp_path / "found.onnx"
    onnx.save(generated.model, path)
    reduced = reduce(path, passes="remove-identities", max_checks=40)
    assert reduced.after.nodes <= 5
    assert reduced.is_text_whole


def has_nonfinite(generated):
    outputs = judge.session_of(generated.model).run(None, generated.feeds[0])
    return any(
        not np.all(np.isfinite(each)) for each in outputs if each.dtype.kind == "f"
    )
