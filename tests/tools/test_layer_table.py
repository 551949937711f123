"""The account's table of layers: bytes, bits, zeros, shapes and histograms, before and after."""

import numpy as np
import onnx
import pytest
from onnx_opt import optimize
from onnx_opt.tools._run import layers
from sample_models import CNN, MLP, model_from

FAST = {"bench": False, "verify": "never", "layers": True}


def rows_of(model, passes, **options):
    result = optimize(model.SerializeToString(), passes, **FAST, **options)
    return {row["layer"]: row for row in result.to_dict()["layers"]}


def test_a_run_that_is_not_asked_has_none():
    model = model_from(MLP).SerializeToString()
    account = optimize(model, "prune", bench=False, verify="never").to_dict()
    assert {"layers", "files"} & set(account) == set()


def test_pruning_shows_in_zeros_alone():
    model = model_from(MLP)
    w1, w2 = (onnx.numpy_helper.to_array(each) for each in model.graph.initializer)
    rows = rows_of(model, "prune(sparsity=0.5)", pack=False)
    assert list(rows) == ["h", "y"]
    assert [row["tensor"] for row in rows.values()] == ["w1", "w2"]
    for row, weight in zip(rows.values(), (w1, w2), strict=True):
        before, after = row["before"], row["after"]
        assert before["bytes"] == after["bytes"] == weight.nbytes
        assert before["bits"] == after["bits"] == 32
        assert before["shape"] == after["shape"] == list(weight.shape)
        assert (before["sparsity"], after["sparsity"]) == (0, 0.5)
        high = float(np.abs(weight).max())
        expected, _ = np.histogram(weight, layers.BINS, (-high, high))
        assert before["histogram"] == {
            "low": -high,
            "high": high,
            "counts": expected.tolist(),
        }
        assert sum(after["histogram"]["counts"]) == weight.size // 2


@pytest.mark.parametrize("pack", [False, True])
def test_quantizing_keeps_rows_together(pack):
    images = np.random.default_rng(0).standard_normal((64, 3, 8, 8))
    rows = rows_of(
        model_from(CNN), "quant(int8)", pack=pack, data={"x": images.astype(np.float32)}
    )
    conv = rows["c2"]
    assert (conv["op"], conv["before"]["bits"], conv["after"]["bits"]) == (
        "Conv",
        32,
        8,
    )
    assert conv["before"]["shape"] == conv["after"]["shape"] == [16, 16, 3, 3]
    # codes stand for floats of the same range, up to half a step
    low, high = (conv[end]["histogram"]["high"] for end in ("before", "after"))
    assert high == pytest.approx(low, rel=0.02)


def test_tables_of_other_nodes_are_known_by_their_weight():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    one (int64[n] ids) => (float[n, 64] y)
    <float[512, 64] table> { y = Gather (table, ids) }
    """
    model = model_from(text).SerializeToString()
    result = optimize(model, "quant", bench=False, layers=True)
    (row,) = [row for row in result.to_dict()["layers"] if row["tensor"] == "table"]
    ends = [row[end]["bytes"] for end in ("before", "after")]
    # codes of a byte each
    assert ends == [4 * 512 * 64, 512 * 64]


def test_channels_that_go_show_in_shapes():
    rows = rows_of(model_from(CNN), "prune-channels(ratio=0.5)", target="cpu")
    widths = [rows["c2"][end]["shape"][:2] for end in ("before", "after")]
    assert widths[0] == [16, 16]
    assert widths[1] < widths[0]


def test_layers_that_are_folded_away_have_no_after():
    text = """
    <ir_version: 10, opset_import: ["" : 21]>
    one (float[n, 8] x) => (float[n, 8] y)
    <float[8, 8] w, float[8, 8] v>
    {
        u = MatMul (w, v)
        y = MatMul (x, u)
    }
    """
    rows = rows_of(model_from(text), "simplify")
    ends = {name: (row["before"], row["after"]) for name, row in rows.items()}
    # read at run time by one layer, which is made of two constants
    assert [None if end is None else end["bytes"] for end in ends["y"]] == [512, 256]


def test_small_constants_are_together():
    rows = rows_of(model_from(CNN), "simplify")
    before, after = (rows[layers.OTHERS][end] for end in ("before", "after"))
    # four of 16 floats of BatchNormalization, and the two numbers of the shape
    assert (before["bytes"], after["bytes"]) == (4 * 64 + 16, 16)
    assert before["histogram"] is None
    # the convolution keeps its bias, with the shift of the normalization in it
    assert rows["c1"]["before"]["bytes"] == 4 * (16 * 3 * 3 * 3 + 16)


def test_weights_of_zeros_have_no_histogram():
    model = model_from(MLP)
    model.graph.initializer[0].CopyFrom(
        onnx.numpy_helper.from_array(np.zeros((8, 16), np.float32), "w1")
    )
    row = rows_of(model, "prune(sparsity=0.5)")["h"]
    assert (row["before"]["sparsity"], row["before"]["histogram"]) == (1.0, None)


@pytest.mark.parametrize("scale", [1.0, 1e-42, 1e38])
def test_numbers_of_any_size_are_counted(scale):
    numbers = np.array([-2, -0.9, 0, 0, 0.45, 1.1, 2, 2])
    expected, _ = np.histogram(numbers[numbers != 0], layers.BINS, (-2, 2))
    block = (numbers * scale).astype(np.float32)
    found = layers._counts(block, layers._largest(block))
    assert found.tolist() == expected.tolist()


def test_numbers_that_are_not_finite_have_no_bin():
    block = np.array([np.nan, np.inf, -np.inf, 1, -1], np.float32)
    assert layers._largest(block) == 1
    counts = layers._counts(block, 1.0)
    assert (counts[0], counts[-1], counts.sum()) == (1, 1, 2)


def test_large_weights_are_sampled(monkeypatch):
    monkeypatch.setattr(layers, "MOST_BLOCKS", 1)
    rng = np.random.default_rng(0)
    weight = rng.normal(size=(8, 1 << 16)).astype(np.float32)
    model = model_from(
        """
        <ir_version: 10, opset_import: ["" : 21]>
        one (float[n, 8] x) => (float[n, 65536] y)
        <float[8, 65536] w> { y = MatMul (x, w) }
        """
    )
    model.graph.initializer[0].CopyFrom(onnx.numpy_helper.from_array(weight, "w"))
    state = rows_of(model, "prune(sparsity=0.5)", pack=False)["y"]["before"]
    # every second block of 256 Ki elements
    assert sum(state["histogram"]["counts"]) == weight.size // 2
    assert state["elements"] == weight.size


def test_files_have_their_hashes(tmp_path):
    import hashlib

    out = tmp_path / "out.onnx"
    account = optimize(
        model_from(MLP).SerializeToString(), "prune(sparsity=0.5)", out=out, **FAST
    ).to_dict()
    assert account["files"] == [
        {
            "path": str(out),
            "bytes": out.stat().st_size,
            "sha256": hashlib.sha256(out.read_bytes()).hexdigest(),
        }
    ]


def test_a_file_that_is_replaced_was_read_before(tmp_path):
    path = tmp_path / "mlp.onnx"
    onnx.save(model_from(MLP), path)
    account = optimize(
        path, "prune(sparsity=0.5)", out=path, force=True, **FAST
    ).to_dict()
    sparsity = [row["after"]["sparsity"] for row in account["layers"]]
    assert sparsity == [0.5, 0.5]
