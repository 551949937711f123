"""A wrong rewrite of an exact pass: left out of a run, and found by `onnx-opt bisect`."""

import json
import sys

import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, UsageError, bisect, optimize
from onnx_opt.passes._core.rewrites import Rewrite, permit
from onnx_opt.passes._simplify.rules import arithmetic, shape
from onnx_opt.tools._run.bisection import Bisection, Problem, without_culprits
from onnx_opt.tools.bisect import Bisected
from onnx_opt.tools.cli import main

CHAIN = """
<ir_version: 10, opset_import: ["" : 21]>
chain (float[2, 4] x) => (float[2, 4] y)
{
    t = Transpose <perm = [0, 1]> (x)
    n = Neg (t)
    a = Relu (n)
    b = Relu (a)
    y = Sub (b, x)
}
"""
NORMALIZED = """
<ir_version: 8, opset_import: ["" : 13]>
normalized (float[b, 4, 8] x) => (float[b, 4, 8] y)
<float[8] gamma = {1, 1, 1, 1, 1, 1, 1, 1}, float[8] beta = {0, 0, 0, 0, 0, 0, 0, 0},
 float two = {2}, float eps = {0.00001}>
{
    r = Relu (x)
    s = Relu (r)
    m = ReduceMean <axes = [-1]> (s)
    d = Sub (s, m)
    p = Pow (d, two)
    v = ReduceMean <axes = [-1]> (p)
    ve = Add (v, eps)
    q = Sqrt (ve)
    n = Div (d, q)
    g = Mul (n, gamma)
    y = Add (g, beta)
}
"""
TWO_LAYERS = """
<ir_version: 10, opset_import: ["" : 21]>
two_layers (float[1, 4] x) => (float[1, 2] y)
<float[4, 4] v = {1, -8, 2, 7, -3, 6, 4, 5, 1, -8, 2, 7, -3, 6, 4, 5},
 float[4, 2] w = {1, -8, 2, 7, -3, 6, 4, 5}>
{
    h = MatMul (x, v)
    y = MatMul (h, w)
}
"""
WRONG = "output 'y' is off by"


def wrong_neg(node, edit):
    """Neg(x) = x."""
    return edit.bypass(node, node.inputs[0])


def failing(node, edit):
    raise KeyError("surprise")


class ScaleWeights(ir.passes.InPlacePass):
    """A foreign pass that is wrong, and makes no rewrite of its own name."""

    def call(self, model):
        for value in model.graph.initializers.values():
            value.const_value = ir.tensor(
                value.const_value.numpy() * 2, name=value.name
            )
        return ir.passes.PassResult(model, True)


@pytest.fixture
def file_of(tmp_path):
    def write(text):
        path = tmp_path / "model.onnx"
        onnx.save(onnx.parser.parse_model(text), path)
        return path

    return write


def ops(model):
    return [node.op_type for node in model.graph]


# the search


def rewrites(count):
    return [Rewrite("pass", f"rule-{i % 3}", f"node {i}") for i in range(count)]


class Numbers:
    """Rewrites by number, some of which are bad."""

    def __init__(self, count, bad):
        self.rewrites = rewrites(count)
        self.bad = {self.rewrites[index] for index in bad}
        self.problem = None

    def __call__(self):
        done = Numbers(len(self.rewrites), [])
        for each in self.rewrites:
            leave = permit(each.pass_name, each.rule, each.where)
            if leave is None:
                continue
            leave.used()
            if each in self.bad:
                done.problem = Problem(each.where)
        return done


@pytest.mark.parametrize("bad", [[0], [4], [9], [1, 8], [0, 1, 2]])
def test_every_bad_rewrite_is_found(bad):
    search = Bisection(Numbers(10, bad))
    result, culprits = without_culprits(search)
    assert result.problem is None
    assert [each.rewrite for each in culprits] == [rewrites(10)[i] for i in bad]


def test_a_rule_that_is_bad_twice_goes_everywhere():
    search = Bisection(Numbers(30, [3, 12, 21, 27]))
    _, culprits = without_culprits(search)
    assert [each.rewrite for each in culprits] == [Rewrite("pass", "rule-0")]


def test_the_search_gives_up_after_its_tries():
    assert without_culprits(Bisection(Numbers(1000, [500]), tries=5)) is None


def test_rules_found_before_it_gives_up_go_everywhere():
    # halving 300 takes about 9 runs: the second culprit is not reached
    search = Bisection(Numbers(300, [150, 153, 210]), tries=12)
    _, culprits = without_culprits(search)
    assert [each.rewrite for each in culprits] == [Rewrite("pass", "rule-0")]


# a run


def test_a_wrong_rewrite_is_left_out_alone(file_of, monkeypatch):
    monkeypatch.setattr(arithmetic, "involution", wrong_neg)
    result = optimize(file_of(CHAIN), "simplify", bench=False)
    assert ops(result.model) == ["Neg", "Relu", "Sub"]
    (warning,) = [w for w in result.warnings if "left out" in w]
    named = "simplify: left out remove-identities, wrong-neg at Neg n: " + WRONG
    assert warning.startswith(named)
    (declined,) = result.passes[0].declined
    assert declined["where"] == "Neg n"
    assert declined["reason"].startswith(f"wrong-neg left out: {WRONG}")


def test_strict_makes_a_wrong_rewrite_an_error(file_of, monkeypatch):
    monkeypatch.setattr(arithmetic, "involution", wrong_neg)
    with pytest.raises(CheckError, match=WRONG):
        optimize(file_of(CHAIN), "simplify", strict=True, bench=False)


def test_a_rule_that_fails_is_left_out_alone(file_of, monkeypatch):
    monkeypatch.setattr(shape, "transpose", failing)
    result = optimize(file_of(CHAIN), "simplify", bench=False)
    assert ops(result.model) == ["Transpose", "Neg", "Relu", "Sub"]
    (warning,) = [w for w in result.warnings if "left out" in w]
    assert "failing at Transpose t: KeyError: 'surprise'" in warning


def test_a_rewrite_that_costs_a_fusion_is_left_out(file_of, monkeypatch):
    monkeypatch.setattr(arithmetic, "_is_normalized", lambda value: False)
    result = optimize(file_of(NORMALIZED), "simplify", bench=False)
    # the second Relu goes all the same
    assert len(result.model.graph) == 10
    assert not [w for w in result.warnings if "left out" in w]
    reasons = [each["reason"] for each in result.passes[0].declined]
    assert reasons
    assert all("costs a fusion of ONNX Runtime" in reason for reason in reasons)


def test_a_scale_of_ones_stays_in_a_normalization(file_of):
    result = optimize(file_of(NORMALIZED), "simplify", bench=False)
    assert ops(result.model)[-3:] == ["Div", "Mul", "Add"]
    assert result.passes[0].declined == []


# the command


def test_bisect_finds_the_pass_and_its_rewrite(file_of, monkeypatch):
    monkeypatch.setattr(arithmetic, "involution", wrong_neg)
    found = bisect(file_of(CHAIN), "strip, simplify, deduplicate-initializers")
    assert (found.number, found.text) == (2, "simplify")
    assert found.problem.startswith(WRONG)
    where = {key: found.rewrite[key] for key in ("pass", "rule", "where")}
    assert where == {
        "pass": "remove-identities",
        "rule": "wrong-neg",
        "where": "Neg n",
    }
    assert 1 <= found.rewrite["number"] <= found.rewrite["count"]


def test_a_foreign_pass_is_named_without_a_rewrite(file_of):
    found = bisect(file_of(TWO_LAYERS), ["simplify", ScaleWeights()])
    assert found.number == 2
    assert "ScaleWeights" in found.text
    assert found.rewrite is None


def test_a_lossy_pass_is_followed_to_its_layer(file_of):
    found = bisect(file_of(TWO_LAYERS), "simplify, prune(sparsity=0.5)", min_sqnr=200)
    assert (found.number, found.layer) == (2, "v")
    spared = "prune(sparsity=0.5, exclude=[v])"
    assert bisect(file_of(TWO_LAYERS), spared, min_sqnr=200).layer == "w"


def test_a_check_of_ones_own(file_of, tmp_path):
    script = tmp_path / "check.py"
    script.write_text(
        "import sys\nsys.exit(b'Transpose' not in open(sys.argv[1], 'rb').read())\n"
    )
    command = f"{sys.executable} {script}"
    path = file_of(CHAIN)
    done = CliRunner().invoke(
        main, ["bisect", str(path), "-p", "simplify", "--check", command, "--json"]
    )
    assert done.exit_code == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["pass"] == {"number": 1, "text": "simplify"}
    assert found["problem"] == "the check exits with 1"
    assert found["rewrite"]["where"] == "Transpose t"
    # the model itself fails a check for the contrary
    script.write_text("import sys; sys.exit(3)\n")
    with pytest.raises(CheckError, match="before any pass: the check exits with 3"):
        bisect(path, "simplify", check=command)


def test_nothing_breaks_a_good_pipeline(file_of):
    done = CliRunner().invoke(main, ["bisect", str(file_of(CHAIN)), "-p", "simplify"])
    assert done.exit_code == 0
    assert done.stdout.startswith("good to the end: ")


def test_a_command_that_is_not_there(file_of):
    with pytest.raises(UsageError, match="--check: cannot be run"):
        bisect(file_of(CHAIN), "simplify", check="no-such-command-here")


@pytest.mark.parametrize(
    ("found", "lines"),
    [
        (Bisected("prune", "valid"), ["good to the end: valid"]),
        (
            Bisected("prune", "valid", 1, "prune", "SQNR 3.0 dB", layer="w1"),
            ["pass 1: prune: SQNR 3.0 dB", "layer: w1"],
        ),
        (
            Bisected(
                "simplify",
                "valid",
                2,
                "simplify",
                "not exact",
                {"number": 3, "count": 4, "pass": "fold", "rule": "r", "where": "n"},
            ),
            ["pass 2: simplify: not exact", "rewrite 3 of 4: fold, r at n"],
        ),
    ],
)
def test_a_finding_prints_as_the_command_does(found, lines):
    assert str(found).splitlines() == lines
