"""A lossy result that no longer says what the original says is not written, unless it is forced."""

import json
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt import CheckError, RefusedError, UsageError, optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._core.contract import Pass
from onnx_opt.passes._core.outcome import PassOutcome
from onnx_opt.tools.cli import main
from sample_models import model_from

NET = """
<ir_version: 10, opset_import: ["" : 21]>
net (float[n, 16] x) => (float[n, 8] y)
<float[16, 64] w1, float[64, 64] w2, float[64, 8] w3>
{
    [first] a = MatMul (x, w1)
    r = Relu (a)
    [second] b = MatMul (r, w2)
    s = Relu (b)
    [third] y = MatMul (s, w3)
}
"""
WORTHLESS = "simplify, prune(sparsity=0.97, fit=false)"


@pytest.fixture
def net(tmp_path):
    path = tmp_path / "net.onnx"
    onnx.save(model_from(NET), path)
    return path


@pytest.fixture
def out(tmp_path):
    return tmp_path / "out.onnx"


def samples(rows=64):
    return np.random.default_rng(0).standard_normal((rows, 16)).astype(np.float32)


@pytest.mark.parametrize("data", [None, {"x": samples()}])
def test_a_worthless_result_is_not_written_and_says_what_lost_it(net, out, data):
    with pytest.raises(CheckError) as raised:
        optimize(net, WORTHLESS, out=out, data=data, bench=False)
    error = raised.value
    assert (error.where, error.exit_code) == ("--floor", 4)
    assert error.problem.startswith("output 'y' keeps ")
    assert "; most was lost by prune, at " in error.problem
    for layer in ("first", "second", "third"):
        assert layer in error.problem
        assert layer in error.fix
    assert "--passes 'simplify, prune(sparsity=0.97, fit=false, exclude=[" in error.fix
    assert "--force writes it" in error.fix
    assert not out.exists()
    # the whole account, as of a budget
    account = error.account.as_dict()
    assert account["drift"]["word"] == "worthless"
    assert account["output_path"] is None


def test_channels_that_were_too_many_are_left_to_what_the_outputs_bear(net, out):
    """Layers of other widths than before cannot be compared, and none is named."""
    with pytest.raises(CheckError) as raised:
        optimize(net, "simplify, prune-channels(ratio=0.9)", out=out, bench=False)
    assert "most was lost by prune-channels" in raised.value.problem
    assert "; --passes 'simplify, prune-channels' takes less" in raised.value.fix
    result = optimize(net, "simplify, prune-channels", out=out, bench=False)
    assert result.drift["sqnr_db"] > 12


def test_the_line_that_it_gives_helps(net, out):
    with pytest.raises(CheckError) as raised:
        optimize(net, WORTHLESS, out=out, bench=False)
    passes = raised.value.fix.split("--passes '")[1].split("'")[0]
    assert optimize(net, passes, out=out, bench=False).drift["word"] == "identical"


def test_it_is_written_with_force_and_told_of(net, out):
    forced = optimize(net, WORTHLESS, out=out, bench=False, force=True)
    assert out.exists()
    (words,) = [text for text in forced.warnings if text.startswith("--floor: ")]
    assert words.endswith(": written, as --force says")


@pytest.mark.parametrize(
    "options",
    [
        {"floor": "none"},
        {"floor": -30},
        {"floor": "-30dB"},
        {"floor": "50%"},  # of outputs that make choices: these do not
        {"min_sqnr": -30},  # a budget of one's own
    ],
)
def test_the_floor_can_be_moved(net, out, options):
    assert optimize(net, WORTHLESS, out=out, bench=False, **options).output_path
    assert out.exists()


def test_a_higher_floor_refuses_what_the_usual_one_writes(net, out):
    optimize(net, "prune(sparsity=0.3)", out=out, bench=False)
    with pytest.raises(CheckError, match=r"dB of SQNR, less than 60;"):
        optimize(net, "prune(sparsity=0.3)", out=out, floor="60,90%", bench=False)


def test_exact_results_have_no_floor(net, out):
    assert optimize(net, "simplify", out=out, floor=1000, bench=False).output_path


@dataclass(frozen=True)
class Mend(Pass):
    """Give the weights their values back, as training would."""

    name = "mend"
    effect = "lossy"
    values = MappingProxyType({})

    def run(self, model, context):
        for name, tensor in self.values.items():
            model.graph.initializers[name].const_value = tensor
        return PassOutcome(changed=len(self.values))


def test_the_result_of_the_whole_pipeline_is_judged(net, out):
    tensors = {
        name: value.const_value for name, value in load(net).graph.initializers.items()
    }
    mend = type("Mended", (Mend,), {"values": tensors})()
    passes = ["prune(sparsity=0.97, fit=false)", mend]
    result = optimize(net, passes, out=out, bench=False)
    assert result.passes[0].drift["sqnr_db"] < 3
    assert result.drift["word"] == "identical"
    assert result.output_path


def test_a_metric_that_is_kept_outweighs_the_drift(net, out):
    labelled = {"x": samples(), "labels": np.zeros(64)}

    def kept(outputs, labels):
        return 1.0

    def lost(outputs, labels):
        # of the original 1, of anything else 0
        total = float(sum(np.abs(each[0]).sum() for each in outputs))
        first.append(total)
        return float(total == first[0])

    first = []
    options = {"data": labelled, "out": out, "bench": False}
    assert optimize(net, WORTHLESS, metric=kept, **options).output_path
    with pytest.raises(CheckError, match="--floor"):
        optimize(net, WORTHLESS, metric=lost, **options)


@pytest.mark.parametrize("text", ["high", "3,", "50 %%", "3 dBs"])
def test_texts_that_are_no_floor(net, text):
    with pytest.raises(UsageError, match=r"--floor: .* is no floor"):
        optimize(net, WORTHLESS, floor=text, bench=False)


def test_the_command_line(net, out):
    arguments = [str(net), "-o", str(out), "-p", WORTHLESS, "--no-bench"]
    done = CliRunner().invoke(main, arguments)
    assert done.exit_code == 4
    assert "error: --floor: output 'y' keeps " in done.stderr
    assert not out.exists()
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert json.loads(done.stdout)["error"]["where"] == "--floor"
    done = CliRunner().invoke(main, [*arguments, "--floor", "none"])
    assert done.exit_code == 0


def test_the_account_has_one_word_for_the_drift(net):
    result = optimize(net, "prune(sparsity=0.3)", data={"x": samples()}, bench=False)
    drift = result.as_dict()["drift"]
    keys = {"sqnr_db", "cosine", "max_abs", "agreement", "word", "samples", "on"}
    assert set(drift) == keys
    assert (drift["samples"], drift["on"]) == (8, "held-out data")
    assert drift["sqnr_db"] == result.passes[-1].drift["sqnr_db"]
    assert f"cosine {drift['cosine']:.4f}" in str(result)
    assert f": {drift['word']}" in str(result)


# data that tells nothing


@pytest.mark.parametrize(
    ("x", "words"),
    [
        (np.zeros((40, 16), np.float32), "data: input 'x' is 0.0 everywhere"),
        (np.tile(samples(1), (40, 1)), "data: all 5 samples of input 'x' are equal"),
    ],
)
def test_data_that_cannot_calibrate_is_named(net, x, words):
    result = optimize(net, "quant(measure=false)", data={"x": x}, bench=False)
    assert any(text.startswith(words) for text in result.warnings)


def test_data_on_which_the_model_gives_no_number_is_refused(tmp_path):
    text = NET.replace("y = MatMul (s, w3)", "q = MatMul (s, w3)  y = Log (q)")
    path = tmp_path / "nan.onnx"
    onnx.save(model_from(text), path)
    data = {"x": np.full((40, 16), np.float32(1e30))}
    data["x"][:, ::2] *= -1
    with pytest.raises(RefusedError, match="nothing but NaN and infinite"):
        optimize(path, "quant", data={"x": 0 * data["x"]}, bench=False)


def test_a_floor_that_cannot_be_checked_is_refused(net, out):
    with pytest.raises(RefusedError, match=r"^--floor: cannot be checked"):
        optimize(net, "prune(sparsity=0.3)", out=out, floor=6, verify="never")
    assert not out.exists()
    # none asks for no check
    assert optimize(net, "prune", out=out, floor="none", verify="never").output_path


def test_a_metric_excuses_the_usual_floor_alone(net, out, tmp_path):
    feeds = samples()
    labels = np.arange(len(feeds)) % 8
    np.savez(tmp_path / "data.npz", x=feeds, labels=labels)

    def kept(outputs, labels):
        return 1.0

    options = {
        "eval_data": tmp_path / "data.npz",
        "metric": kept,
        "bench": False,
        "out": out,
    }
    assert optimize(net, WORTHLESS, **options).metric["after"] == 1
    with pytest.raises(CheckError, match=r"^--floor: "):
        optimize(net, WORTHLESS, floor="3 dB", **options)


def test_a_language_model_that_predicts_its_tokens_far_worse_is_refused(tmp_path, out):
    """A third of the weights that tell the next token goes: 4.4 dB are kept, and most choices."""
    size = 64
    follower = np.roll(np.arange(size), 1)
    head = np.zeros((size, size), np.float32)
    head[np.arange(size), follower] = 8
    model = model_from(f"""
        <ir_version: 10, opset_import: ["" : 21]>
        tokens (int64[batch, length] input_ids) => (float[batch, length, {size}] logits)
        <float[{size}, {size}] table, float[{size}, {size}] head>
        {{
            h = Gather (table, input_ids)
            logits = MatMul (h, head)
        }}""")
    values = {"table": np.eye(size, dtype=np.float32), "head": head}
    for tensor in model.graph.initializer:
        tensor.CopyFrom(onnx.numpy_helper.from_array(values[tensor.name], tensor.name))
    path = tmp_path / "tokens.onnx"
    onnx.save(model, path)
    first = np.random.default_rng(0).integers(0, size, (8, 1))
    data = {"input_ids": (first - np.arange(32)) % size}
    with pytest.raises(CheckError) as raised:
        optimize(
            path, "prune(sparsity=0.99, fit=false)", out=out, data=data, bench=False
        )
    assert raised.value.where == "--floor"
    expected = "output 'logits' predicts the next token with a perplexity of "
    assert raised.value.problem.startswith(expected)
    assert not out.exists()
