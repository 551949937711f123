"""The table of defaults: what counts as a defect, and that refusals and crashes are only rows."""

import os
import sys
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx_opt import optimize

sys.path.insert(0, str(Path(__file__).resolve().parents[3] / "tools" / "dev"))
import bench_data
import bench_defaults
from bench_data import BenchModel, head
from bench_defaults import Job, Row
from bench_measure import Isolated, worse_by
from decoded_zeros import count_zeros

CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 21]>
classifier (float[N, 4] x) => (float[N, 2] y)
<float[4, 2] w = {1, -8, 0, 7, -3, 0, 4, 5}, float[2] b = {0.1, 0.1}>
{
    h = MatMul (x, w)
    y = Add (h, b)
}
"""


@pytest.fixture
def model(tmp_path, monkeypatch):
    """A classifier whose labels are its own classes, with data of its own."""
    path = tmp_path / "classifier.onnx"
    onnx.save(onnx.parser.parse_model(CLASSIFIER), path)
    weight = np.array([[1, -8], [0, 7], [-3, 0], [4, 5]], np.float32)

    def rows(seed):
        x = np.random.default_rng(seed).normal(size=(48, 4)).astype(np.float32)
        return [({"x": x}, (x @ weight).argmax(1))]

    monkeypatch.setattr(bench_data, "tiny_rows", lambda: rows(0), raising=False)
    monkeypatch.setattr(bench_data, "other_rows", lambda: rows(1), raising=False)
    return BenchModel("classifier", "tiny_rows", "other_rows", "top1", path=path)


@pytest.mark.parametrize(
    ("rows", "sizes"), [(None, [3, 3, 2]), (3, [3]), (4, [3, 1]), (9, [3, 3, 2])]
)
def test_head_cuts_the_last_batch(rows, sizes):
    batches = [
        ({"x": np.zeros((n, 2)), "rate": np.array(16_000)}, np.arange(n))
        for n in (3, 3, 2)
    ]
    found = list(head(batches, rows))
    assert [len(feeds["x"]) for feeds, _ in found] == sizes
    assert [len(labels) for _, labels in found] == sizes


def numbered(size, batch):
    """Rows that are their own numbers, as feeds and as labels."""
    return [
        ({"x": np.arange(start, start + batch)}, np.arange(start, start + batch))
        for start in range(0, size, batch)
    ]


@pytest.mark.parametrize(
    ("loader", "seen", "whole"),
    [
        (bench_data.imagenet_unseen, set(range(0, 40, 5)), "imagenet_val"),
        (bench_data.stsb_unseen, set(range(8)), "stsb_val"),
    ],
)
def test_rows_to_judge_by_are_those_that_calibration_leaves(
    monkeypatch, loader, seen, whole
):
    loaders = SimpleNamespace(stsb_calib=lambda: numbered(8, 4))
    setattr(loaders, whole, lambda: numbered(40, 4))
    monkeypatch.setattr(bench_data, "_shared_loaders", lambda: loaders)
    found = list(loader())
    rows = np.concatenate([feeds["x"] for feeds, _ in found])
    labels = np.concatenate([labels for _, labels in found])
    assert set(rows) == set(range(40)) - seen
    np.testing.assert_array_equal(rows, labels)


@pytest.mark.parametrize(
    ("learnt", "judged"),
    [
        (bench_data.detector_images, bench_data.other_detector_images),
        (bench_data.speech_windows, bench_data.other_speech_windows),
        (bench_data.file_bytes, bench_data.other_file_bytes),
    ],
)
def test_made_up_rows_to_judge_by_are_others(learnt, judged):
    first, other = list(learnt()), list(judged())
    assert len(first) == len(other)
    for one, two in zip(first, other, strict=True):
        assert any(not np.array_equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize(
    ("figures", "expected"),
    [
        ({"lost": 0.0}, False),
        ({"lost": 0.99 - 0.98}, False),
        ({"lost": 0.011}, True),
        ({"lost": 0.011, "warnings": ["prune: loses much"]}, False),
        ({"lost": float("nan")}, True),
        # labels decide where there are any
        ({"lost": 0.0, "sqnr_db": 3.0}, False),
        ({"sqnr_db": 10.0}, False),
        ({"sqnr_db": 9.9}, True),
        ({"sqnr_db": 9.9, "warnings": ["prune: loses much"]}, False),
        ({"error": "needs data"}, False),
        ({"error": "ValueError: x", "crashed": True}, True),
    ],
)
def test_a_defect_is_a_loss_that_nobody_was_told_of(figures, expected):
    assert Row("model", "prune", True, **figures).is_defect is expected


def test_perplexity_is_worse_where_it_grows():
    language = BenchModel("language", "a", "b", "perplexity")
    images = BenchModel("images", "a", "b", "top1")
    assert worse_by(language, 40.0, 44.0) == pytest.approx(0.1)
    assert worse_by(images, 0.9, 0.8) == pytest.approx(0.1)


def test_every_lossy_pass_is_in_the_table():
    quick, all_of_them = bench_defaults.pipelines(False), bench_defaults.pipelines(True)
    assert {"prune", "prune-channels", "quant", "compress-weights"} < set(quick)
    assert set(all_of_them) - set(quick) == {"finetune"}
    assert "simplify" not in quick
    assert quick[-2:] == ["prune,quant", "simplify,quant"]


def test_a_row_has_its_figures(model):
    job = Job(model, "prune(sparsity=0.5, fit=false)", False, None, 0.01, 1.0)
    row = bench_defaults.made_or_refused(job)
    assert row.error == ""
    # of eight weights the two zeros and the two smallest
    assert row.zeros == 0.5
    assert row.lost == pytest.approx(1.0 - row.after)
    assert row.ratio == pytest.approx(row.bytes / model.file.stat().st_size)
    assert row.claimed_on == "synthetic feeds"
    (warning,) = row.warnings
    assert warning.startswith("result: the outputs keep 11.0 dB of SQNR")


def test_a_refusal_is_a_row(model):
    job = Job(model, "prune(include=[nothing])", False, None, 0.01, 1.0)
    row = bench_defaults.made_or_refused(job)
    assert row.error.startswith("prune.include: 'nothing' matches")
    assert not row.is_defect


def test_a_crash_is_a_row_and_a_defect(model, monkeypatch):
    def broken(*_, **__):
        raise ValueError("out of luck\nsecond line")

    monkeypatch.setattr(bench_defaults, "optimize", broken)
    row = bench_defaults.made_or_refused(Job(model, "prune", False, None, 0.01, 1.0))
    assert row.error == "ValueError: out of luck"
    assert row.is_defect


def test_a_job_that_kills_its_process_is_only_one_job():
    with Isolated() as isolated:
        with pytest.raises(BrokenProcessPool):
            isolated.run(os._exit, 1)
        assert isolated.run(abs, -3) == 3


@pytest.mark.parametrize(
    "passes", ["", "prune(sparsity=0.75, fit=false)", "compress-weights(min_size=1)"]
)
def test_zeros_are_those_of_the_decoded_weights(model, tmp_path, passes):
    path = model.file
    if passes:
        path = tmp_path / "result.onnx"
        optimize(model.file, passes, out=path, bench=False)
    found = count_zeros(path)
    assert found.weights == 8
    assert found.zeros == (6 if "0.75" in passes else 2)


SHIFTED = """
<ir_version: 10, opset_import: ["" : 21]>
shifted (float[N, 2] x) => (float[N, 2] y)
<uint8[2, 2] codes = {128, 7, 128, 9}, float[2] scale = {1, 1}, uint8[2] zero = {128, 9}>
{
    w = DequantizeLinear <axis = 1> (codes, scale, zero)
    y = MatMul (x, w)
}
"""


def test_a_zero_is_the_code_that_stands_for_it(tmp_path):
    path = tmp_path / "shifted.onnx"
    onnx.save(onnx.parser.parse_model(SHIFTED), path)
    assert count_zeros(path).zeros == 3
