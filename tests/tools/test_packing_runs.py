"""The implicit last step of a run, and packed files as inputs of further runs."""

import json
import zipfile
from collections import Counter
from functools import partial

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from click.testing import CliRunner
from onnx_opt import optimize
from onnx_opt.frontends.onnx_file import load
from onnx_opt.passes._core.targets import TARGETS
from onnx_opt.passes.unpack import is_packed, without_packing
from onnx_opt.tools._groups import groups_of
from onnx_opt.tools._inspect import inspection
from onnx_opt.tools.cli import main
from sample_models import CNN, model_from

WIDE = """
<ir_version: 8, opset_import: ["" : 17]>
wide (float[batch, 64] x) => (float[batch, 8] y)
<float[64, 256] w1, float[256, 128] w2, float[128, 8] w3>
{
    h = MatMul (x, w1)
    r = Relu (h)
    g = MatMul (r, w2)
    s = Relu (g)
    y = MatMul (s, w3)
}
"""
PRUNE = "prune(sparsity=0.8)"
# random weights bear no such sparsity: these tests are about how weights are stored
unjudged = partial(optimize, floor="none")
PARAMS = 64 * 256 + 256 * 128 + 128 * 8


@pytest.fixture(scope="module")
def wide(tmp_path_factory):
    path = tmp_path_factory.mktemp("wide") / "wide.onnx"
    onnx.save(model_from(WIDE), path)
    return path


@pytest.fixture(scope="module")
def packed(wide):
    path = wide.parent / "packed.onnx"
    unjudged(wide, PRUNE, out=path, bench=False)
    return path


FEW = """
<ir_version: 8, opset_import: ["" : 17]>
few (float[batch, 64] x, int64[batch] ids) => (float[batch, 8] y)
<float[6000, 64] table, float[64, 128] w1, float[128, 128] w2, float[128, 8] w3>
{
    e = Gather (table, ids)
    s = Add (x, e)
    a = MatMul (s, w1)
    ar = Relu (a)
    b = MatMul (ar, w2)
    br = Relu (b)
    y = MatMul (br, w3)
}
"""


@pytest.mark.parametrize(
    ("passes", "told"),
    [
        ("quant(codebook, bits=2)", True),
        ("quant(codebook, bits=2), pack", False),
        # codes of these bits are stored in them by quant itself
        ("quant(bits=4)", False),
        ("quant", False),
    ],
)
def test_few_bits_that_only_packing_would_store_are_told(tmp_path, passes, told):
    path = tmp_path / "few.onnx"
    onnx.save(model_from(FEW), path)
    random = np.random.default_rng(0)
    data = {
        "x": random.standard_normal((64, 64)).astype(np.float32),
        "ids": random.integers(0, 6000, 64),
    }
    result = unjudged(path, passes, data=data, bench=False)
    words = [each for each in result.warnings if each.startswith("pack: ")]
    assert len(words) == told
    if told:
        assert "24,576 weights of 2 bits are stored in 8" in words[0]
        assert "2" not in result.output.bits
    assert ("pack" in names(result)) == ("pack" in passes)


def names(result):
    return [step.name for step in result.passes]


def outputs(path):
    x = np.random.default_rng(0).normal(size=(3, 64)).astype(np.float32)
    return ort.InferenceSession(path).run(None, {"x": x})[0]


# no implicit step


@pytest.mark.parametrize(
    ("passes", "options"),
    [
        ("simplify", {}),
        (PRUNE, {"pack": False}),
        (f"{PRUNE}, unpack", {}),
        ("prune(sparsity=0.02)", {}),
        *[(PRUNE, {"target": name}) for name in ("tensorrt", "generic")],
    ],
)
def test_nothing_is_packed(wide, passes, options):
    result = unjudged(wide, passes, bench=False, **options)
    assert not is_packed(result.model)
    assert names(result).count("pack") == 0


def test_which_runtimes_unpack_while_loading():
    folding = [name for name, target in TARGETS.items() if target.folds_constants]
    assert folding == ["cpu", "cpu-vnni", "arm64", "cuda", "web"]


def test_the_command_line_leaves_it_out(wide, tmp_path):
    words = [str(wide), "-p", PRUNE, "--no-pack", "--no-bench", "--json"]
    done = CliRunner().invoke(main, [*words, "-o", str(tmp_path / "o.onnx")])
    assert [step["pass"] for step in json.loads(done.stdout)["passes"]] == ["prune"]


# the implicit step


def test_a_lossy_pipeline_ends_with_pack(wide, tmp_path):
    plain = unjudged(wide, PRUNE, out=tmp_path / "a.onnx", pack=False, bench=False)
    result = unjudged(wide, PRUNE, out=tmp_path / "b.onnx", bench=False)
    assert names(result) == ["prune", "pack"]
    assert result.passes[-1].changed == 3
    # of 32 bits a weight 0.2 * 32 and one of the mask are left, and what decodes them
    assert 0.2 < result.output.bytes / plain.output.bytes < 0.26
    same = ("params", "nonzero", "nodes", "macs")
    assert [getattr(result.output, key) for key in same] == [
        getattr(plain.output, key) for key in same
    ]
    assert result.output.params == PARAMS
    assert (outputs(tmp_path / "a.onnx") == outputs(tmp_path / "b.onnx")).all()


def test_the_record_replays(wide, packed, tmp_path):
    recorded = load(packed).metadata_props["onnx_opt.passes"]
    assert recorded == f"{PRUNE}, pack"
    again = tmp_path / "again.onnx"
    unjudged(wide, recorded, out=again, bench=False)
    assert again.read_bytes() == packed.read_bytes()


def test_what_loading_takes_is_told(wide):
    stats = unjudged(wide, PRUNE).passes[-1].stats
    for key in ("load_ms", "load_peak_mb", "plain_load_ms", "plain_load_peak_mb"):
        assert stats[key] > 0


def test_the_size_of_a_download_is_told_where_asked(wide, tmp_path):
    result = unjudged(wide, PRUNE, out=tmp_path / "o.onnx", zipped=True, bench=False)
    zipped = tmp_path / "o.zip"
    with zipfile.ZipFile(zipped, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive:
        archive.write(tmp_path / "o.onnx", "o.onnx")
        (entry,) = archive.infolist()
    assert result.as_dict()["output"]["zipped_bytes"] == entry.compress_size
    assert result.as_dict()["input"]["zipped_bytes"] > entry.compress_size
    plain = unjudged(wide, PRUNE, bench=False).as_dict()
    assert "zipped_bytes" not in plain["output"]


def test_the_runtime_ends_with_the_same_kernels(wide, tmp_path):
    data = {"x": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    kernels = []
    for pack in (False, True):
        out = tmp_path / f"{pack}.onnx"
        unjudged(
            wide, f"{PRUNE}, quant(bits=6)", data=data, out=out, pack=pack, bench=False
        )
        options = ort.SessionOptions()
        options.log_severity_level = 3
        options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
        ort.InferenceSession(out, options)
        nodes = onnx.load(tmp_path / "optimized.onnx").graph.node
        kernels.append(Counter(node.op_type for node in nodes))
    assert kernels[0] == kernels[1]
    integer = ("QGemm", "QLinearMatMul", "MatMulIntegerToFloat")
    assert sum(kernels[0][op] for op in integer) == 3


def test_integer_kernels_are_judged_as_plain_ones(wide, tmp_path):
    data = {"x": np.random.default_rng(0).normal(size=(64, 64)).astype(np.float32)}
    out = tmp_path / "o.onnx"
    result = unjudged(
        wide, f"{PRUNE}, quant", data=data, out=out, explain_loss=True, bench=False
    )
    assert names(result) == ["prune", "quant", "pack"]
    assert result.loss
    plain = unjudged(wide, f"{PRUNE}, quant", data=data, pack=False, bench=False)
    facts = inspection(out)
    assert facts["saturation"]["pairs"] > 0
    assert facts["figures"]["nonzero"] == plain.output.nonzero


# packed files


def test_inspect_tells_of_the_weights(wide, packed):
    facts, before = inspection(packed), inspection(wide)
    assert facts["packed"] == 3
    assert before["packed"] == 0
    for key in ("params", "macs", "nodes"):
        assert facts["figures"][key] == before["figures"][key]
    assert facts["sparsity"] == pytest.approx(0.8, abs=0.001)
    assert [(layer["name"], layer["shape"]) for layer in facts["layers"]] == [
        ("w2", [256, 128]),
        ("w1", [64, 256]),
        ("w3", [128, 8]),
    ]
    assert facts["figures"]["bytes"] == packed.stat().st_size
    done = CliRunner().invoke(main, ["inspect", str(packed)])
    assert "packed: 3 constants" in done.stdout


def test_groups_are_those_of_the_weights(wide, packed):
    slots = [[g["channels"] for g in groups_of(p)["groups"]] for p in (wide, packed)]
    assert slots[0] == slots[1] == [256, 128]


def test_a_packed_file_goes_through_another_run(packed, tmp_path):
    out = tmp_path / "o.onnx"
    result = unjudged(packed, "quant(bits=6)", out=out, bench=False)
    assert names(result) == ["quant", "pack"]
    assert result.passes[0].changed
    assert result.input.params == PARAMS
    assert result.output.bytes < packed.stat().st_size / 2


def test_it_stays_as_it_is_where_no_pass_changes_anything(packed, tmp_path):
    out = tmp_path / "o.onnx"
    result = unjudged(packed, "simplify", out=out, bench=False)
    assert names(result) == ["simplify"]
    assert out.read_bytes() == packed.read_bytes()


def test_it_is_packed_again_after_an_exact_pass(packed, tmp_path):
    again = tmp_path / "again.onnx"
    proto = onnx.load(packed)
    output = proto.graph.output[0].name
    proto.graph.output[0].name = "same"
    proto.graph.node.append(onnx.helper.make_node("Identity", [output], ["same"]))
    onnx.save(proto, again)
    out = tmp_path / "o.onnx"
    result = unjudged(again, "simplify", out=out, bench=False)
    assert names(result) == ["simplify", "pack"]
    assert result.output.bytes == pytest.approx(packed.stat().st_size, abs=800)
    assert (outputs(out) == outputs(packed)).all()


@pytest.mark.parametrize(
    ("passes", "options", "changed"),
    [("unpack", {}, 3), ("simplify", {"pack": False}, 0)],
)
def test_or_left_plain(packed, tmp_path, passes, options, changed):
    out = tmp_path / "o.onnx"
    result = unjudged(packed, passes, out=out, bench=False, **options)
    assert [step.changed for step in result.passes] == [changed]
    assert not is_packed(load(out))
    assert (outputs(out) == outputs(packed)).all()
    assert without_packing(result.model) is result.model


def test_a_runtime_that_does_not_unpack_gets_plain_weights(packed, tmp_path):
    result = unjudged(packed, "simplify", target="generic", bench=False)
    assert not is_packed(result.model)
    assert any("not packed, as the model was" in line for line in result.warnings)


def test_verify_takes_packed_files(wide, packed):
    words = ["verify", str(packed), "--min-sqnr", "100", "--json"]
    codes = [
        CliRunner().invoke(main, [*words, str(p)]).exit_code for p in (wide, packed)
    ]
    assert codes == [4, 0]


def test_tables_by_which_quant_unpacks_stay_known_to_training(tmp_path):
    path = tmp_path / "cnn.onnx"
    onnx.save(model_from(CNN), path)
    random = np.random.default_rng(0)
    data = [{"x": random.normal(size=(8, 3, 8, 8)).astype(np.float32)}]
    result = unjudged(
        path, "quant(ternary, measure=false), pack", data=data, bench=False, force=True
    )
    shapes = [v.shape for v in result.model.graph.initializers.values()]
    assert (243, 5) in shapes
