"""A run that changes nothing writes the very file that it was given, whatever it was."""

import hashlib

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnx_opt
import pytest
from onnx_opt.tools._run.provenance import MOST, PREFIX, history, provenance, stamp
from sample_models import CNN, model_from

BLOCK = """
<ir_version: 10, opset_import: ["" : 21]>
block (float[N, 6, 16] x) => (float[N, 6, 8] out)
<float[16, 16] wq, float[16, 16] wk, float[16, 16] wv, float[16, 16] wo,
 float[16] gain, float[16] shift, float[16, 32] w1, float[32] b1, float[32, 16] w2,
 float[16] b2, float[16, 8] head, float scale = {0.25}>
{
    q = MatMul (x, wq)
    k = MatMul (x, wk)
    v = MatMul (x, wv)
    kt = Transpose <perm = [0, 2, 1]> (k)
    s0 = MatMul (q, kt)
    s = Mul (s0, scale)
    p = Softmax <axis = -1> (s)
    c = MatMul (p, v)
    o = MatMul (c, wo)
    r = Add (x, o)
    n = LayerNormalization <axis = -1> (r, gain, shift)
    h0 = MatMul (n, w1)
    h1 = Add (h0, b1)
    h = Relu (h1)
    m0 = MatMul (h, w2)
    m = Add (m0, b2)
    r2 = Add (n, m)
    out = MatMul (r2, head)
}
"""

MODELS = {"cnn": CNN, "block": BLOCK}


@pytest.fixture(params=MODELS)
def model(request, tmp_path):
    path = tmp_path / f"{request.param}.onnx"
    onnx.save(model_from(MODELS[request.param]), path)
    return path


def feeds_of(path, rows=40):
    random = np.random.default_rng(1)
    feeds = {}
    for info in onnx.load(path).graph.input:
        dims = [dim.dim_value or rows for dim in info.type.tensor_type.shape.dim]
        feeds[info.name] = random.standard_normal(dims).astype(np.float32)
    return feeds


def assert_same_bytes(model, passes, tmp_path, **options):
    options = {"bench": False, **options}
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    first = onnx_opt.optimize(model, passes, out=once, **options)
    second = onnx_opt.optimize(once, passes, out=twice, **options)
    assert once.read_bytes() == twice.read_bytes()
    return first, second


@pytest.mark.parametrize(
    "passes",
    [
        "simplify",
        # what is timed may turn out otherwise on a busy machine
        "prune,quant(measure=false)",
        "compress-weights",
        "quant(fp16)",
        "prune,pack",
        "prune-channels",
    ],
)
def test_a_run_over_its_own_output_writes_the_same_bytes(model, passes, tmp_path):
    first, second = assert_same_bytes(model, passes, tmp_path)
    names = [step.name for step in first.passes if step.changed]
    assert names or passes in ("simplify", "compress-weights", "prune-channels")
    assert second.about["changes"] == [] or "pack" in passes


@pytest.mark.slow
@pytest.mark.parametrize(
    "passes",
    [
        "simplify,quant(measure=false)",
        "prune",
        "prune,quant(measure=false)",
        "prune-channels",
        "quant(measure=false),pack",
    ],
)
def test_the_same_with_data(model, passes, tmp_path):
    assert_same_bytes(model, passes, tmp_path, data=feeds_of(model))


def test_quantized_on_data_the_same_bytes(tmp_path):
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    passes = "simplify,quant(measure=false)"
    first, second = assert_same_bytes(path, passes, tmp_path, data=feeds_of(path))
    assert [step.changed for step in first.passes] == [6, 3]
    assert [step.changed for step in second.passes] == [0, 0]


FOREIGN = """
<ir_version: 10, opset_import: ["" : 21]>
foreign (float[N, 3] x) => (float[N, 3] y)
{
    one = Constant <value = float {1}> ()
    y = Add (x, one)
}
"""


def test_a_model_without_anything_to_do_stays_byte_by_byte(tmp_path):
    path = tmp_path / "foreign.onnx"
    proto = onnx.parser.parse_model(FOREIGN)
    proto.producer_name = "someone"
    path.write_bytes(proto.SerializeToString())
    out = tmp_path / "out.onnx"
    result = onnx_opt.optimize(path, "prune,quant", out=out, bench=False)
    # the opset stays 21, and the Constant node a node
    assert out.read_bytes() == path.read_bytes()
    assert [file.name for file in result.files] == ["out.onnx"]
    assert (result.about["changes"], result.requires["opset"]) == ([], 21)
    assert [node.op_type for node in result.model.graph] == ["Constant", "Add"]
    assert result.output.bytes == len(path.read_bytes())


LAYER = """
<ir_version: 10, opset_import: ["" : 21]>
layer (float[N, 3] x) => (float[N, 300] y)
<float[3, 300] w>
{
    y = MatMul (x, w)
}
"""


def test_a_file_with_faults_is_mended_all_the_same(tmp_path):
    path, out = tmp_path / "faulty.onnx", tmp_path / "out.onnx"
    proto = onnx.parser.parse_model(FOREIGN)
    proto.graph.output[0].ClearField("type")
    onnx.save(proto, path)
    result = onnx_opt.optimize(path, "prune", out=out, bench=False)
    assert result.passes[0].changed == 0
    onnx.checker.check_model(onnx.load(out), full_check=True)
    # it has none any more
    again = tmp_path / "again.onnx"
    onnx_opt.optimize(out, "prune", out=again, bench=False)
    assert again.read_bytes() == out.read_bytes()


def test_weights_beside_the_model_get_a_file_of_their_own(tmp_path):
    path, out = tmp_path / "model.onnx", tmp_path / "out.onnx"
    onnx.save(
        model_from(LAYER), path, save_as_external_data=True, location="model.data"
    )
    result = onnx_opt.optimize(path, "unpack", out=out, bench=False)
    assert [file.name for file in result.files] == ["out.onnx.data", "out.onnx"]
    same = [file.read_bytes() for file in (tmp_path / "model.data", *result.files[:1])]
    assert same[0] == same[1]
    written = ir.load(out)
    assert (written.opset_imports, provenance(written)) == ({"": 21}, {})


def test_a_model_in_memory_gets_no_record(tmp_path):
    given = ir.from_proto(onnx.parser.parse_model(FOREIGN))
    result = onnx_opt.optimize(given, "prune", bench=False)
    assert dict(result.model.metadata_props) == {}
    assert result.model is not given


def test_the_same_file_has_the_same_score(tmp_path):
    path = tmp_path / "foreign.onnx"
    onnx.save(onnx.parser.parse_model(FOREIGN), path)
    feeds = np.random.default_rng(0).standard_normal((20, 3)).astype(np.float32)
    asked = []

    def metric(outputs, labels):
        asked.append(len(outputs))
        return float(len(asked))

    data = {"x": feeds, "labels": feeds.argmax(1)}
    result = onnx_opt.optimize(path, "prune", data=data, metric=metric, bench=False)
    scores = [result.metric[key] for key in ("before", "after", "drop")]
    assert scores == [1.0, 1.0, 0.0]
    assert len(asked) == 1


# history


def test_records_of_earlier_runs_become_history(tmp_path):
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    once, twice = tmp_path / "once.onnx", tmp_path / "twice.onnx"
    onnx_opt.optimize(path, "simplify", out=once, seed=3, bench=False)
    first = provenance(ir.load(once))
    onnx_opt.optimize(once, "prune", out=twice, bench=False)
    written = ir.load(twice)
    assert history(written) == [first]
    assert provenance(written)["passes"] == "prune, pack"
    # the chain: what the second run read is what the first wrote
    digest = hashlib.sha256(once.read_bytes()).hexdigest()
    assert provenance(written)["input_sha256"] == digest


def test_the_history_is_bounded():
    model = ir.from_proto(onnx.parser.parse_model(FOREIGN))
    for index in range(MOST + 5):
        stamp(model, f"pass{index}", None, 0, "cpu", cpu="x", min_runtime=None)
    passes = [record["passes"] for record in history(model)]
    assert passes == [f"pass{index}" for index in range(4, MOST + 4)]
    assert provenance(model)["passes"] == f"pass{MOST + 4}"


@pytest.mark.parametrize("text", ["", "{", "{}", "[1]", "[" * 100_000])
def test_a_history_that_cannot_be_read_is_none(text):
    model = ir.from_proto(onnx.parser.parse_model(FOREIGN))
    model.metadata_props[PREFIX + "history"] = text
    assert history(model) == []
    stamp(model, "prune", None, 0, "cpu", cpu="x", min_runtime=None)
    stamp(model, "quant", None, 0, "cpu", cpu="x", min_runtime=None)
    assert [record["passes"] for record in history(model)] == ["prune"]
