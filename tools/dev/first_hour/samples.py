"""Models and data that several tasks share: made here, or shipped with the demo."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
from numpy.typing import NDArray

DEMO = Path(__file__).resolve().parents[2] / "demo"

WORDS = ("[PAD]", "[UNK]", "good", "bad", "fine", "poor", "the", "film", "was", "and")
"""The vocabulary of the text model; the place of a word is its id."""

SENTIMENT = """
<ir_version: 8, opset_import: ["" : 17]>
sentiment (int64[N, L] input_ids, int64[N, L] attention_mask) => (float[N, 2] logits)
<float[10, 32] table, float[32, 64] w1, float[64, 2] w2, int64[1] last = {2}, int64[1] one = {1}>
{
    words = Gather (table, input_ids)
    mask = Cast <to = 1> (attention_mask)
    column = Unsqueeze (mask, last)
    kept = Mul (words, column)
    sum = ReduceSum <keepdims = 0> (kept, one)
    hidden = MatMul (sum, w1)
    active = Relu (hidden)
    logits = MatMul (active, w2)
}
"""


def digits() -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Images (450, 1, 8, 8) of values 0 to 16, and their classes (450,)."""
    held = np.load(DEMO / "digits_test.npz")
    return held["image"], held["labels"]


def sentiment(path: Path) -> None:
    """Write a model that tells good words from bad ones."""
    model = onnx.parser.parse_model(SENTIMENT)
    random = np.random.default_rng(0)
    table = random.normal(0, 0.05, (len(WORDS), 32))
    for word, sign in (("good", 1), ("fine", 1), ("bad", -1), ("poor", -1)):
        table[WORDS.index(word), :8] += sign
    first = random.normal(0, 0.05, (32, 64))
    # one half of the hidden units counts good words, the other bad ones
    first[:8, :32] += 1
    first[:8, 32:] -= 1
    second = np.zeros((64, 2))
    second[:32, 1] = 1
    second[32:, 0] = 1
    for name, array in (("table", table), ("w1", first), ("w2", second)):
        tensor = onnx.numpy_helper.from_array(array.astype(np.float32), name)
        model.graph.initializer.append(tensor)
    del model.graph.value_info[:]
    onnx.save(model, path)


def outputs(path: Path, **feeds: NDArray[Any]) -> list[NDArray[Any]]:
    """Outputs of ONNX Runtime itself."""
    session = onnxruntime.InferenceSession(str(path))
    found: list[NDArray[Any]] = session.run(None, feeds)
    return found


def agreement(before: Path, after: Path, **feeds: NDArray[Any]) -> float:
    """Share of samples for which two classifiers give the same first output, or its largest."""
    first = outputs(before, **feeds)[0]
    second = outputs(after, **feeds)[0]
    if first.ndim > 1:
        first = first.argmax(1)
        second = second.argmax(1)
    return float((first == second).mean())
