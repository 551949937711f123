"""Needs of a written file: least versions, proved; the account, the metadata and
`inspect` say it.
"""

import json

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.passes._core import versions
from onnx_opt.tools._inspect import inspection
from onnx_opt.tools.cli import main
from onnx_opt.tools.tables import needed
from sample_models import CNN, MLP, model_from

FOUR_BITS = "quant(bits=4, kernel=float, ends=same)"


@pytest.fixture
def written(tmp_path):
    def run(text, passes, change=lambda proto: None, **options):
        source, out = tmp_path / "source.onnx", tmp_path / "out.onnx"
        proto = model_from(text)
        change(proto)
        onnx.save(proto, source)
        return optimize(source, passes, out=out, bench=False, **options), onnx.load(out)

    return run


@pytest.mark.parametrize(
    ("passes", "opset", "ir_version", "release", "because"),
    [
        ("simplify", 13, 7, "1.15", "the oldest tried"),
        ("prune", 13, 7, "1.15", "the oldest tried"),
        (FOUR_BITS, 21, 10, "1.23", "Cast from INT4"),
        ("quant(ternary, kernel=float)", 13, 7, "1.15", "the oldest tried"),
    ],
)
def test_a_file_asks_for_no_more_than_its_content(
    written, passes, opset, ir_version, release, because
):
    result, proto = written(CNN, passes)
    assert result.requires == {
        "opset": opset,
        "ir_version": ir_version,
        "onnxruntime": release,
        "because": because,
    }
    assert (proto.opset_import[0].version, proto.ir_version) == (opset, ir_version)
    assert {p.key: p.value for p in proto.metadata_props}[
        "onnx_opt.min_runtime"
    ] == release
    assert result.as_dict()["requires"] == result.requires
    onnx.checker.check_model(proto, full_check=True)


def test_what_comes_low_stays(written):
    def older(proto):
        proto.opset_import[0].version, proto.ir_version = 12, 6

    result, proto = written(MLP, "simplify", older)
    assert (proto.opset_import[0].version, proto.ir_version) == (12, 6)
    assert result.requires["onnxruntime"] == "1.15"


def test_notes_that_stay_need_their_ir_version(written):
    def noted(proto):
        onnx.helper.set_model_props(proto.graph.node[0], {"pkg.exporter": "a trace"})

    result, proto = written(MLP, "prune", noted)
    assert (proto.opset_import[0].version, proto.ir_version) == (13, 10)
    assert (result.requires["onnxruntime"], result.requires["because"]) == (
        "1.18",
        "IR version 10",
    )
    assert [p.key for p in proto.graph.node[0].metadata_props] == ["pkg.exporter"]


def test_a_model_in_memory_comes_back_lowered_and_is_not_changed():
    model = ir.from_proto(model_from(MLP))
    result = optimize(model, "prune", bench=False)
    assert (result.model.opset_imports[""], result.model.ir_version) == (13, 7)
    assert (model.opset_imports[""], model.ir_version) == (21, 10)
    assert result.requires["opset"] == 13


def test_outputs_are_equal_to_the_bit(written):
    _, proto = written(CNN, "simplify")
    again = onnx.ModelProto.FromString(proto.SerializeToString())
    again.opset_import[0].version, again.ir_version = 21, 10
    feeds = {
        "x": np.random.default_rng(0).standard_normal((2, 3, 8, 8)).astype(np.float32)
    }
    sessions = [
        onnxruntime.InferenceSession(
            p.SerializeToString(), providers=["CPUExecutionProvider"]
        )
        for p in (proto, again)
    ]
    np.testing.assert_array_equal(*(session.run(None, feeds) for session in sessions))


def test_lowering_that_is_not_exact_is_taken_back(written, monkeypatch):
    def wrong(model):
        model.opset_imports[""] = 13
        node = next(node for node in model.graph if node.op_type == "Relu")
        node.op_type = "Neg"
        return True

    monkeypatch.setattr(versions, "lower_versions", wrong)
    result, proto = written(MLP, "prune(sparsity=0.1)")
    assert [node.op_type for node in proto.graph.node] == ["MatMul", "Relu", "MatMul"]
    assert (proto.opset_import[0].version, result.requires["opset"]) == (21, 21)
    assert [w for w in result.warnings if w.startswith("opset: not lowered: ")]


def test_lowering_that_fails_leaves_the_model(written, monkeypatch):
    def failing(model):
        model.opset_imports[""] = 5
        raise RuntimeError("no schema")

    monkeypatch.setattr(versions, "lower_versions", failing)
    result, proto = written(MLP, "prune(sparsity=0.1)")
    assert proto.opset_import[0].version == 21
    assert "opset: not lowered: RuntimeError: no schema" in result.warnings


@pytest.mark.parametrize(
    ("requires", "words"),
    [
        (
            {
                "opset": 21,
                "ir_version": 10,
                "onnxruntime": "1.23",
                "because": "Cast from INT4",
            },
            "needs ONNX Runtime 1.23 or newer (Cast from INT4); opset 21, IR 10",
        ),
        (
            {
                "opset": None,
                "ir_version": 8,
                "onnxruntime": None,
                "because": "operators of own",
            },
            "needs an ONNX Runtime, not known which (operators of own); opset none, IR 8",
        ),
    ],
)
def test_in_words(requires, words):
    assert needed(requires) == words


def test_the_command_line_and_inspect_say_it(written, tmp_path):
    written(MLP, FOUR_BITS)
    out = tmp_path / "out.onnx"
    assert inspection(out)["requires"] == {
        "opset": 21,
        "ir_version": 10,
        "onnxruntime": "1.23",
        "because": "Cast from INT4",
    }
    shown = CliRunner().invoke(main, ["inspect", str(out)]).stdout
    assert (
        "needs ONNX Runtime 1.23 or newer (Cast from INT4); opset 21, IR 10"
        in shown.replace("\n", " ")
    )
    assert (
        json.loads(CliRunner().invoke(main, ["inspect", str(out), "--json"]).stdout)[
            "requires"
        ]["opset"]
        == 21
    )
    again = CliRunner().invoke(
        main,
        [str(out), "-o", str(tmp_path / "b.onnx"), "--passes", "strip", "--no-bench"],
    )
    assert "needs ONNX Runtime 1.23 or newer" in again.stderr


# LeakyRelu of opset 16 runs on float64, that of opset 6 has no such kernel
DOUBLES = """
<ir_version: 10, opset_import: ["" : 16]>
doubles (double[2] x, float[2] a) => (double[2] y, float[2] z)
<float zero = {0}>
{
    y = LeakyRelu (x)
    z = Div (a, zero)
}
"""


@pytest.mark.parametrize("verify", ["auto", "never"])
def test_the_opset_stays_where_nothing_is_compared(written, tmp_path, verify):
    # no feeds give finite outputs: the result is never run
    _, out = written(DOUBLES, "simplify", verify=verify)
    assert out.opset_import[0].version == 16
    onnxruntime.InferenceSession(
        tmp_path / "out.onnx", providers=["CPUExecutionProvider"]
    )
