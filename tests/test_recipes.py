"""Every command of docs/recipes.md runs, on small models of the kind that it is for."""

import re
import shlex
from pathlib import Path

import numpy as np
import onnx
import pytest
from click.testing import CliRunner
from onnx_opt.runtime.context import RunContext
from onnx_opt.tools.cli import main
from sample_models import model_from

PAGE = Path(__file__).resolve().parents[1] / "docs" / "recipes.md"

CLASSIFIER = """
<ir_version: 10, opset_import: ["" : 21]>
classifier (float[batch, 3, 8, 8] x) => (float[batch, 4] y)
<float[16, 3, 3, 3] k1, float[16] b1, float[16, 16, 3, 3] k2, float[16] b2, float[16, 4] w>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2, b2)
    r2 = Relu (c2)
    p = GlobalAveragePool (r2)
    f = Flatten (p)
    y = MatMul (f, w)
}
"""
STUDENT = """
<ir_version: 10, opset_import: ["" : 21]>
student (float[batch, 3, 8, 8] x) => (float[batch, 4] y)
<float[8, 3, 3, 3] k, float[8] b, float[8, 4] w>
{
    c = Conv <pads = [1, 1, 1, 1]> (x, k, b)
    r = Relu (c)
    p = GlobalAveragePool (r)
    f = Flatten (p)
    y = MatMul (f, w)
}
"""
DECODER = """
<ir_version: 10, opset_import: ["" : 21]>
decoder (int64[batch, tokens] input_ids) => (float[batch, tokens, 40] logits)
<float[40, 64] table, float[64, 64] w1, float[64, 40] w2>
{
    e = Gather (table, input_ids)
    h = MatMul (e, w1)
    r = Relu (h)
    logits = MatMul (r, w2)
}
"""
ENCODER = """
<ir_version: 10, opset_import: ["" : 21]>
encoder (int64[batch, tokens] input_ids, int64[batch, tokens] attention_mask)
    => (float[batch, 32] embedding)
<float[40, 64] table, float[64, 32] w, int64[1] one = {1}, int64[1] last = {2}>
{
    e = Gather (table, input_ids)
    m = Cast <to = 1> (attention_mask)
    u = Unsqueeze (m, last)
    k = Mul (e, u)
    s = ReduceSum <keepdims = 0> (k, one)
    embedding = MatMul (s, w)
}
"""
TABLE = """
<ir_version: 10, opset_import: ["" : 21]>
table (float[rows, 4] x) => (float[rows, 3] y)
<float[4, 64] w1, float[64] b1, float[64, 64] w2, float[64] b2, float[64, 3] w3>
{
    h = Gemm (x, w1, b1)
    r = Relu (h)
    g = Gemm (r, w2, b2)
    s = Relu (g)
    y = MatMul (s, w3)
}
"""
DETECTOR = """
<ir_version: 10, opset_import: ["" : 21]>
detector (float[batch, 3, 16, 16] x) => (float[batch, 1, 16, 16] map)
<float[32, 3, 3, 3] k1, float[32] b1, float[32, 32, 3, 3] k2, float[1, 32, 3, 3] k3>
{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    c2 = Conv <pads = [1, 1, 1, 1]> (r1, k2)
    r2 = Relu (c2)
    c3 = Conv <pads = [1, 1, 1, 1]> (r2, k3)
    map = Sigmoid (c3)
}
"""
MODELS = {
    "classifier": CLASSIFIER,
    "student": STUDENT,
    "decoder": DECODER,
    "encoder": ENCODER,
    "table": TABLE,
    "detector": DETECTOR,
}


def commands() -> list[str]:
    """Lines of the page's code blocks."""
    blocks = re.findall(r"^```sh\n(.*?)^```", PAGE.read_text("utf-8"), re.M | re.S)
    return [line for block in blocks for line in block.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A folder with the models and the data that the page names."""
    where = tmp_path_factory.mktemp("recipes")
    for name, text in MODELS.items():
        onnx.save(model_from(text), where / f"{name}.onnx")
    random = np.random.default_rng(0)
    for name, rows in (("images", 32), ("train", 32), ("pages", 8), ("other-pages", 8)):
        size = 16 if "pages" in name else 8
        images = random.standard_normal((rows, 3, size, size)).astype(np.float32)
        np.savez(where / f"{name}.npz", x=images)
    np.savez(where / "tokens.npz", input_ids=random.integers(0, 40, (8, 16)))
    for name in ("train", "test"):
        table = random.standard_normal((48, 5)).astype(np.float32)
        labels = _scores(where / "table.onnx", table[:, :4]).argmax(1)
        rows = [
            ",".join(map(str, [*r[:4], n])) for r, n in zip(table, labels, strict=True)
        ]
        text = "\n".join(["a,b,c,d,label", *rows])
        (where / f"{name}.csv").write_text(text, encoding="utf-8")
    _write_texts(where)
    return where


def _scores(path, rows):
    import onnxruntime

    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return session.run(None, {"x": rows})[0]


def _write_texts(where):
    tokenizers = pytest.importorskip("tokenizers")
    words = {f"w{number}": number for number in range(40)}
    model = tokenizers.models.WordLevel(words, unk_token="w0")
    tokenizer = tokenizers.Tokenizer(model)
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    tokenizer.save(str(where / "tokenizer.json"))
    random = np.random.default_rng(1)
    lines = [" ".join(f"w{n}" for n in random.integers(0, 40, 12)) for _ in range(32)]
    (where / "sentences.txt").write_text("\n".join(lines), encoding="utf-8")


@pytest.mark.parametrize("line", commands())
def test_the_command_runs_and_writes_a_smaller_model(line, folder, monkeypatch):
    monkeypatch.chdir(folder)
    # integers make no model of this size faster, and all would go back to float
    monkeypatch.setattr(RunContext, "latency_ratio", lambda *models: None)
    if "finetune" in line or "distill" in line:
        pytest.importorskip("torch")
    program, *words = shlex.split(re.sub(r"minutes=\d+", "steps=1", line))
    assert program == "onnx-opt"
    if words[0] not in ("verify", "distill"):
        words.append("--no-bench")
    done = CliRunner().invoke(main, words)
    assert done.exit_code == 0, done.output
    if "-o" not in words:
        return
    source = words[1] if words[0] == "distill" else words[0]
    written = onnx.load(words[words.index("-o") + 1])
    onnx.checker.check_model(written, full_check=True)
    assert written.ByteSize() < onnx.load(source).ByteSize()


def test_every_recipe_has_a_command_and_a_figure():
    parts = PAGE.read_text(encoding="utf-8").split("\n## ")[1:]
    assert len(parts) >= 9
    for part in parts:
        assert "```sh\nonnx-opt " in part
        # a figure has a decimal point; then what to watch
        assert re.search(r"\d\.\d", part.partition("```\n")[2])
        assert "\nWatch:" in part
