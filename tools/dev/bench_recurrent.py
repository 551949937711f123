"""Recurrent models and models with branches: size, time and drift of what `quant` makes of them.

    python tools/dev/bench_recurrent.py [--only crnn,…] [--turns 15] [--keep DIR]

Models with random weights, written here: a CRNN (5 Conv, 2 bidirectional LSTM of 256, as readers of
captchas and lines are) and a GRU encoder-decoder. From the shared data (ONNX_OPT_DATA): silero VAD
with If on the sample rate, and its form of 16 kHz. Speech is made up: harmonics with formants,
pauses, noise of several strengths.

size: bytes / bytes of the original. time: CPU seconds of one thread / those of the original, the
median of turns in one process. dB: SQNR of all outputs on feeds that calibration did not see.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.helper
import onnx.parser
import onnxruntime
from bench_data import data_folder
from numpy.typing import NDArray
from onnx_opt import optimize
from onnx_opt.runtime.compare import DriftMeter
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

Feeds = dict[str, NDArray[Any]]

CALIBRATION, UNSEEN = 0, 1_000
"""Seeds of the first sample of either kind."""

SAMPLES, TIMED = 64, 16
LSTM_ROWS, GRU_ROWS = 4, 3
HIDDEN, CLASSES, TOKENS = 256, 96, 80

CRNN = f"""
<ir_version: 8, opset_import: ["" : 17]>
crnn (float[N, 1, 32, W] x) => (float[T, N, {CLASSES}] y)
<int64[3] joined = {{0, 0, -1}}, int64[1] height = {{2}}> {{
    c1 = Conv <pads = [1, 1, 1, 1]> (x, k1, b1)
    r1 = Relu (c1)
    p1 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r1)
    c2 = Conv <pads = [1, 1, 1, 1]> (p1, k2, b2)
    r2 = Relu (c2)
    p2 = MaxPool <kernel_shape = [2, 2], strides = [2, 2]> (r2)
    c3 = Conv <pads = [1, 1, 1, 1]> (p2, k3, b3)
    r3 = Relu (c3)
    p3 = MaxPool <kernel_shape = [2, 1], strides = [2, 1]> (r3)
    c4 = Conv <pads = [1, 1, 1, 1]> (p3, k4, b4)
    r4 = Relu (c4)
    p4 = MaxPool <kernel_shape = [2, 1], strides = [2, 1]> (r4)
    c5 = Conv <kernel_shape = [2, 2]> (p4, k5, b5)
    r5 = Relu (c5)
    flat = Squeeze (r5, height)
    turned = Transpose <perm = [2, 0, 1]> (flat)
    l1, h1, s1 = LSTM <direction = "bidirectional", hidden_size = {HIDDEN}> (turned, w1, u1, v1)
    t1 = Transpose <perm = [0, 2, 1, 3]> (l1)
    j1 = Reshape (t1, joined)
    l2, h2, s2 = LSTM <direction = "bidirectional", hidden_size = {HIDDEN}> (j1, w2, u2, v2)
    t2 = Transpose <perm = [0, 2, 1, 3]> (l2)
    j2 = Reshape (t2, joined)
    m = MatMul (j2, head)
    y = Add (m, bias)
}}
"""

TRANSLATOR = f"""
<ir_version: 8, opset_import: ["" : 17]>
translator (int64[T, N] letters, int64[U, N] sounds) => (float[U, N, {TOKENS}] y)
<int64[1] direction = {{1}}> {{
    e = Gather (letter_table, letters)
    l, h = GRU <hidden_size = {HIDDEN}, linear_before_reset = 1> (e, w1, u1, v1)
    d = Gather (sound_table, sounds)
    o, g = GRU <hidden_size = {HIDDEN}, linear_before_reset = 1> (d, w2, u2, v2, , h)
    s = Squeeze (o, direction)
    m = MatMul (s, head)
    y = Add (m, bias)
}}
"""


@dataclass(frozen=True)
class Model:
    """A model and its data. `write`: puts it at a path. `feeds`: so many samples from a seed on."""

    name: str
    write: Callable[[Path], None]
    feeds: Callable[[int, int], Iterator[Feeds]]
    passes: Sequence[str]


def _written(text: str, weights: Mapping[str, tuple[int, ...]], path: Path) -> None:
    """Write a model from its text; weights are random, as a layer's start is."""
    rng = np.random.default_rng(0)
    proto = onnx.parser.parse_model(text)
    for name, shape in weights.items():
        # Conv, MatMul and gates: what one output sums up
        inputs = np.prod(shape[1:]) if len(shape) == 4 else shape[-1]
        spread = np.sqrt((2 if len(shape) == 4 else 1) / inputs)
        values = rng.normal(0, spread, shape).astype(np.float32)
        proto.graph.initializer.append(onnx.numpy_helper.from_array(values, name))
    onnx.save(proto, path)


def write_crnn(path: Path) -> None:
    """5 Conv and 2 bidirectional LSTM of 256."""
    channels = [1, 64, 128, 256, 256]
    weights: dict[str, tuple[int, ...]] = {}
    for number, inputs in enumerate(channels, start=1):
        outputs = [*channels, 256][number]
        size = 2 if number == len(channels) else 3
        weights[f"k{number}"] = (outputs, inputs, size, size)
        weights[f"b{number}"] = (outputs,)
    rows = LSTM_ROWS * HIDDEN
    for number, inputs in ((1, 256), (2, 2 * HIDDEN)):
        weights[f"w{number}"] = (2, rows, inputs)
        weights[f"u{number}"] = (2, rows, HIDDEN)
        weights[f"v{number}"] = (2, 2 * rows)
    weights["head"] = (2 * HIDDEN, CLASSES)
    weights["bias"] = (CLASSES,)
    _written(CRNN, weights, path)


def write_translator(path: Path) -> None:
    """GRU over letters, GRU over sounds that starts from its state; the right sounds are given."""
    rows = GRU_ROWS * HIDDEN
    weights: dict[str, tuple[int, ...]] = {
        "letter_table": (TOKENS, HIDDEN),
        "sound_table": (TOKENS, HIDDEN),
        "head": (HIDDEN, TOKENS),
        "bias": (TOKENS,),
    }
    for number in (1, 2):
        weights[f"w{number}"] = (1, rows, HIDDEN)
        weights[f"u{number}"] = (1, rows, HIDDEN)
        weights[f"v{number}"] = (1, 2 * rows)
    _written(TRANSLATOR, weights, path)


def lines_of_text(first: int, count: int) -> Iterator[Feeds]:
    """Strokes on paper (1, 1, 32, 160)."""
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        paper = rng.normal(0, 0.05, (1, 1, 32, 160))
        for _ in range(40):
            row, column = rng.integers(4, 24), rng.integers(0, 150)
            height, width = rng.integers(1, 8, 2)
            paper[..., row : row + height, column : column + width] += 1
        yield {"x": paper.astype(np.float32)}


def words(first: int, count: int) -> Iterator[Feeds]:
    """Letters (12, 1) and sounds (10, 1), at random."""
    for seed in range(first, first + count):
        rng = np.random.default_rng(seed)
        yield {
            "letters": rng.integers(0, TOKENS, (12, 1)),
            "sounds": rng.integers(0, TOKENS, (10, 1)),
        }


def speech(rates: Sequence[int]) -> Callable[[int, int], Iterator[Feeds]]:
    """Windows of 36 ms at rates in turn, in Hz, with a state as speech leaves it."""

    def windows(first: int, count: int) -> Iterator[Feeds]:
        for seed in range(first, first + count):
            rng = np.random.default_rng(seed)
            rate = rates[seed % len(rates)]
            sound = _voice(rng, rate) + _noise(rng, rate)
            state = rng.normal(0, 0.3, (2, 1, 128)) * (seed % 3 > 0)
            yield {
                "input": sound.astype(np.float32)[None],
                "state": state.astype(np.float32),
                "sr": np.array(rate),
            }

    return windows


def _voice(rng: np.random.Generator, rate: int) -> NDArray[Any]:
    """Harmonics, louder around a formant; in every fifth window none."""
    seconds = np.arange(576 * rate // 16_000) / rate
    pitch = rng.uniform(90, 280)
    total = np.zeros(len(seconds))
    for order in range(1, 25):
        distance = (pitch * order - rng.choice([500, 1500, 2500])) / 500
        phase = rng.uniform(0, 6)
        wave = np.sin(2 * np.pi * order * pitch * seconds + phase)
        total += (np.exp(-(distance**2)) + 0.1) * wave
    loudness: float = rng.choice([0, 0.01, 0.05, 0.1, 0.2])
    return total * loudness


def _noise(rng: np.random.Generator, rate: int) -> NDArray[Any]:
    strength = rng.choice([0.0005, 0.003, 0.01, 0.03])
    return rng.normal(0, strength, 576 * rate // 16_000)


def _shared(name: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        source = data_folder() / "models" / f"{name}.onnx"
        path.write_bytes(source.read_bytes())

    return write


USUAL = ("quant", "quant,compress-weights")

MODELS = (
    Model("crnn", write_crnn, lines_of_text, USUAL),
    Model("gru", write_translator, words, USUAL),
    Model("silero_vad", _shared("silero_vad"), speech([16_000, 8_000]), USUAL),
    Model("silero_vad, 16 kHz alone", _shared("silero_vad"), speech([16_000]), USUAL),
    Model(
        "silero_vad_16k_op15",
        _shared("silero_vad_16k_op15"),
        speech([16_000]),
        USUAL,
    ),
)


@dataclass(frozen=True)
class Row:
    """Figures of one result. `db`: SQNR; `size`, `time`: in units of the original's."""

    size: float
    time: float
    db: float


def measured(model: Model, original: Path, result: Path, turns: int) -> Row:
    """Compare a result with its original on feeds that calibration did not see."""
    feeds = list(model.feeds(UNSEEN, SAMPLES))
    sessions = [_session(path) for path in (original, result)]
    meter = DriftMeter()
    for fed in feeds:
        first, second = (_outputs(session, fed) for session in sessions)
        meter.update(first, second)
    ratios = []
    for turn in range(turns):
        # whoever comes second finds warm caches
        order = sessions if turn % 2 else sessions[::-1]
        seconds = {id(session): _cpu_seconds(session, feeds) for session in order}
        before, after = (seconds[id(session)] for session in sessions)
        ratios.append(after / before)
    size = result.stat().st_size / original.stat().st_size
    return Row(size, statistics.median(ratios), meter.overall().sqnr_db)


def _session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(path, options)


def _outputs(session: onnxruntime.InferenceSession, fed: Feeds) -> Feeds:
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, fed), strict=True))


def _cpu_seconds(
    session: onnxruntime.InferenceSession, feeds: Sequence[Feeds]
) -> float:
    start = time.process_time()
    for fed in feeds[:TIMED]:
        session.run(None, fed)
    return time.process_time() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--only", default="", help="names, with commas")
    parser.add_argument("--turns", type=int, default=15)
    parser.add_argument("--keep", type=Path, help="folder for the files")
    arguments = parser.parse_args()
    only = [name for name in arguments.only.split(",") if name]
    table = Table("model", "passes", "size", "time", "dB", box=MARKDOWN)
    with contextlib.ExitStack() as stack:
        folder = arguments.keep
        if folder is None:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for model in MODELS:
            if only and model.name not in only:
                continue
            original = folder / f"{model.name}.onnx"
            model.write(original)
            for passes in model.passes:
                row = _row(model, original, passes, arguments.turns)
                figures = (f"{row.size:.3f}", f"{row.time:.2f}", f"{row.db:.1f}")
                table.add_row(model.name, passes, *figures)
    Console(width=100).print(table)


def _row(model: Model, original: Path, passes: str, turns: int) -> Row:
    result = original.with_suffix(f".{passes.replace(',', '.')}.onnx")
    optimize(
        original,
        passes,
        out=result,
        data=lambda: model.feeds(CALIBRATION, SAMPLES),
        force=True,
    )
    return measured(model, original, result, turns)


if __name__ == "__main__":
    main()
