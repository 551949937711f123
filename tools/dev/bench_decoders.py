"""The table of language models: what their deployers get of onnx-opt, and of its peers.

    python tools/dev/bench_decoders.py MODEL.onnx [--only TEXT …] [--peers] [--seconds 2]
        [--text FILE.npz]

MODEL: what `onnx-opt export` makes of the folder that the script beside the shared data builds
(ONNX_OPT_DATA). Perplexity is of 8 windows of 256 tokens that no pass has seen, and its change has
the standard error of what the windows lost; data are 16 windows of another part of the text.
`--text`: token ids of another text in place of the shared one, the arrays `calib` and `val`: what
is lost depends on the text.
Prefill is of 256 tokens, a step of one, both in turns with the original's; CPU seconds and peak
memory are those of the command and its children. `--peers`: the weight-only quantizers of
onnxruntime as well, on the model after `simplify` (they find no weight behind a Transpose).
"""

from __future__ import annotations

import argparse
import math
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from bench_data import BenchModel, language_model, source, unseen
from bench_measure import cell
from both_classes import this_cpu
from numpy.typing import NDArray
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.metrics import evaluate, metric_named
from onnx_opt.runtime.session import Session, open_session
from onnx_opt.runtime.worker import Worker
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

PREFILL = 256
LOOK_EACH = 0.2
"""Seconds between looks at the memory of a command."""


@dataclass(frozen=True)
class Job:
    """One row: a pipeline, with data or without; `make` is given instead of it by a peer."""

    name: str
    passes: str = ""
    data: bool = False
    make: Callable[[Path, Path], None] | None = None


@dataclass
class Row:
    """Figures of one row; None where there is none.

    `size`: bytes over the original's. `perplexity`: and `change`, the share that it grew by, with
    its standard `error`.
    `prefill`, `step`: latency over the original's. `cpu_seconds`, `memory`: of the command, the
    latter over the original's bytes. `refused`: why there is no result.
    """

    name: str
    data: bool
    size: float | None = None
    perplexity: float | None = None
    change: float | None = None
    error: float | None = None
    prefill: float | None = None
    step: float | None = None
    cpu_seconds: float | None = None
    memory: float | None = None
    refused: str = ""


OURS = [
    Job("quant(blocked, bits=4)", "quant(blocked, bits=4)"),
    Job("quant(blocked, bits=4)", "quant(blocked, bits=4)", data=True),
    Job(
        "quant(blocked, bits=4, sensitive=0)",
        "quant(blocked, bits=4, sensitive=0)",
    ),
    Job(
        "quant(blocked, bits=4, rounding=nearest)",
        "quant(blocked, bits=4, rounding=nearest)",
    ),
    Job("quant", "quant"),
    Job("quant", "quant", data=True),
    Job("prune-channels(ratio=0.25)", "prune-channels(ratio=0.25)", data=True),
    Job(
        "prune-channels(ratio=0.25), its width kept",
        'prune-channels(ratio=0.25, exclude="*layernorm*")',
        data=True,
    ),
]


def _round_to_nearest(model: Path, out: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    _by_blocks(model, out, nbits.DefaultWeightOnlyQuantConfig(32, True, 4))


def _half_quadratic(model: Path, out: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    _by_blocks(model, out, nbits.HQQWeightOnlyQuantConfig(block_size=32, bits=4))


def _k_quant(model: Path, out: Path) -> None:
    from onnxruntime.quantization import matmul_nbits_quantizer as nbits

    _by_blocks(model, out, nbits.KQuantWeightOnlyQuantConfig())


def _by_blocks(model: Path, out: Path, config: object) -> None:
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(
        onnx.load(model),
        block_size=32,
        is_symmetric=True,
        accuracy_level=4,
        algo_config=config,
    )
    quantizer.process()
    quantizer.model.save_model_to_file(str(out), use_external_data_format=False)


def _dynamic(model: Path, out: Path) -> None:
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(str(model), str(out), per_channel=True)


PEERS = [
    Job("onnxruntime MatMulNBits, nearest", make=_round_to_nearest),
    Job("onnxruntime MatMulNBits, HQQ", make=_half_quadratic),
    Job("onnxruntime MatMulNBits, k_quant", make=_k_quant),
    Job("onnxruntime quantize_dynamic", make=_dynamic),
]


def measure(
    worker: Worker,
    model: BenchModel,
    job: Job,
    simplified: Path,
    seconds: float,
    before: NDArray[np.float64],
) -> Row:
    """Make one row's file in a process of its own, and measure it beside the original.

    `before`: losses of the original, window by window.
    """
    original = model.file
    row = Row(job.name, job.data)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "out.onnx")
        if job.make is None:
            command = _command(model, job, out)
        else:
            command = [__file__, str(simplified), "--make", job.name, str(out)]
        cost = watched([sys.executable, *command])
        row.cpu_seconds = cost.cpu_seconds
        row.memory = cost.peak_bytes / bytes_of(original)
        if not out.exists():
            row.refused = cost.last_words
            return row
        row.size = bytes_of(out) / bytes_of(original)
        losses = window_losses(worker, out, model)
        row.perplexity = float(np.exp(losses.mean()))
        lost = losses - before
        row.change = float(np.expm1(lost.mean()))
        spread = lost.std(ddof=1) / math.sqrt(len(lost))
        row.error = float((1 + row.change) * spread)
        row.prefill, row.step = latencies(worker, original, out, seconds)
    return row


def window_losses(worker: Worker, path: Path, model: BenchModel) -> NDArray[np.float64]:
    """Logarithm of the perplexity of each window that no pass has seen."""
    metric = metric_named("perplexity")
    session = open_session(worker, path)
    losses = []
    try:
        for window in unseen(model, None):
            feeds = open_feeds([window], session.inputs)
            found = evaluate(session, feeds, metric)
            losses.append(math.log(found.value))
    finally:
        session.close()
    return np.array(losses)


def _command(model: BenchModel, job: Job, out: Path) -> list[str]:
    command = ["-m", "onnx_opt", str(model.file), "--passes", job.passes]
    if job.data:
        command += ["--data", source(model.calibration)]
    return [*command, "-o", str(out), "--quiet"]


@dataclass(frozen=True)
class Cost:
    """CPU seconds and most memory (bytes) of a command with its children, and its last words."""

    cpu_seconds: float
    peak_bytes: int
    last_words: str


def watched(command: Sequence[str]) -> Cost:
    """Run a command to its end."""
    before = os.times()
    # a file: a pipe that nobody reads would hold up who says much
    with tempfile.TemporaryFile("w+") as said:
        process = subprocess.Popen(command, stderr=said, text=True)
        peak = 0
        while process.poll() is None:
            peak = max(peak, tree_bytes(process.pid))
            time.sleep(LOOK_EACH)
        said.seek(0)
        words = said.read().strip().splitlines()
    after = os.times()
    user = after.children_user - before.children_user
    system = after.children_system - before.children_system
    errors = [line for line in words if line.startswith("error")]
    return Cost(user + system, peak, (errors or words or [""])[-1])


def tree_bytes(pid: int) -> int:
    """Memory of a process and its children: what is shared counts once."""
    total = 0
    try:
        rollup = Path(f"/proc/{pid}/smaps_rollup").read_text()
        for line in rollup.splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1]) * 1024
        for task in Path(f"/proc/{pid}/task").iterdir():
            children = (task / "children").read_text().split()
            total += sum(tree_bytes(int(child)) for child in children)
    except OSError:
        # it has ended
        return total
    return total


def bytes_of(path: Path) -> int:
    """Bytes of a model file and its external data beside it."""
    beside = path.with_name(f"{path.name}.data")
    size = path.stat().st_size
    return size + (beside.stat().st_size if beside.exists() else 0)


def latencies(
    worker: Worker, original: Path, result: Path, seconds: float
) -> tuple[float, float]:
    """Latency of a prefill and of a step of one token over the original's, in turns."""
    sessions = [open_session(worker, path) for path in (original, result)]
    try:
        found = []
        for tokens in (PREFILL, 1):
            feeds = [_feeds(sessions[0], tokens)]
            timed = interleaved(sessions, [feeds, feeds], seconds=seconds)
            found.append(timed[1].ratio_to_first)
    finally:
        for session in sessions:
            session.close()
    return found[0], found[1]


def _feeds(session: Session, tokens: int) -> dict[str, NDArray[np.int64]]:
    """Feeds of so many tokens for a model without a cache."""
    ids = np.arange(1, tokens + 1, dtype=np.int64)[None]
    values = {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    return {info.name: values[info.name] for info in session.inputs}


def show(rows: Sequence[Row], perplexity: float) -> None:
    """Print the table."""
    print(f"{this_cpu().label}; perplexity of the original {perplexity:.2f}")
    table = Table(box=MARKDOWN)
    for heading in (
        "passes",
        "data",
        "size",
        "perplexity",
        "change",
        "prefill",
        "step",
        "CPU s",
        "peak / file",
    ):
        table.add_column(heading)
    for row in rows:
        change = "" if row.change is None else f"{row.change:+.1%} ± {row.error:.1%}"
        table.add_row(
            row.name,
            "yes" if row.data else "no",
            cell(row.size, ".3f"),
            row.refused or cell(row.perplexity, ".2f"),
            change,
            cell(row.prefill, ".2f"),
            cell(row.step, ".2f"),
            cell(row.cpu_seconds, ".0f"),
            cell(row.memory, ".2f"),
        )
    Console(width=160).print(table)


def main() -> None:
    """Measure what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--peers", action="store_true")
    parser.add_argument("--seconds", type=float, default=2.0)
    parser.add_argument("--text", type=Path)
    parser.add_argument("--make", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        name, out = options.make
        job = next(job for job in PEERS if job.name == name)
        assert job.make is not None
        job.make(options.model, Path(out))
        return
    model = language_model(options.model, options.text)
    jobs = [*OURS, *(PEERS if options.peers else [])]
    if options.only:
        jobs = [job for job in jobs if any(text in job.name for text in options.only)]
    rows = []
    with tempfile.TemporaryDirectory() as folder, Worker(timeout=3600) as worker:
        simplified = Path(folder, "simplified.onnx")
        if any(job.make for job in jobs):
            simplify = ["--passes", "simplify", "--verify", "never", "-o"]
            command = ["-m", "onnx_opt", str(model.file), *simplify, str(simplified)]
            subprocess.run([sys.executable, *command], check=True)
        before = window_losses(worker, model.file, model)
        for job in jobs:
            row = measure(
                worker,
                model,
                job,
                simplified,
                options.seconds,
                before,
            )
            print(row, file=sys.stderr, flush=True)
            rows.append(row)
    show(rows, math.exp(before.mean()))


if __name__ == "__main__":
    main()
