"""The table of palettes and codebooks: accuracy, bytes and time beside uniform bits and int8.

    python tools/dev/bench_palettes.py [--only cifar10_resnet56 …] [--seconds 2]

Metrics are of rows that no pass has seen; latency is that of int8 with the same data (without data:
of float), in turns. Needs the shared data (ONNX_OPT_DATA).
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from bench_data import MODELS, BenchModel, source, unseen
from bench_measure import cell, score
from both_classes import this_cpu
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

INT8 = "quant"
PALETTE_4 = "quant(palette, bits=4)"
PALETTE_2 = "quant(palette, bits=2)"
CODEBOOK_2 = "quant(codebook, bits=2)"
CODEBOOK_1 = "quant(codebook, bits=1)"
PIPELINES = {
    "cifar10_resnet20": [
        INT8,
        "quant(bits=4)",
        PALETTE_4,
        PALETTE_2,
        CODEBOOK_2,
        CODEBOOK_1,
    ],
    "cifar10_resnet56": [
        INT8,
        "quant(bits=4)",
        PALETTE_4,
        "quant(bits=3)",
        "quant(palette, bits=3)",
        PALETTE_2,
        CODEBOOK_2,
        CODEBOOK_1,
    ],
    "efficientnet_lite0": [INT8, "quant(bits=4)", PALETTE_4, PALETTE_2, CODEBOOK_2],
    "minilm_l6_v2": [INT8, "quant(bits=4)", PALETTE_4, PALETTE_2, CODEBOOK_2],
}
"""Pipelines of each model, int8 first: the others are compared with it."""


@dataclass
class Row:
    """Figures of one result; None where there are none.

    `of_float`, `of_int8`: its bytes over theirs. `latency`: over that of int8, of float without
    data. `note`: why there is no result.
    """

    model: str
    passes: str
    data: bool
    metric: float | None = None
    drop: float | None = None
    of_float: float | None = None
    of_int8: float | None = None
    latency: float | None = None
    cpu_seconds: float | None = None
    note: str = ""


def made(model: BenchModel, passes: str, data: bool, out: Path) -> tuple[float, str]:
    """Run the command line; its CPU seconds, and its error if it has one."""
    command = [sys.executable, "-m", "onnx_opt", str(model.file), "--passes", passes]
    if data:
        command += ["--data", source(model.calibration)]
    # the floor is for users: a table shows what is lost
    command += ["-o", str(out), "--floor", "none", "--quiet"]
    before = os.times()
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    after = os.times()
    user = after.children_user - before.children_user
    system = after.children_system - before.children_system
    errors = [line for line in run.stderr.splitlines() if line.startswith("error")]
    return user + system, " ".join(errors)


def time_ratio(
    worker: Worker, model: BenchModel, base: Path, result: Path, seconds: float
) -> float:
    """Latency of a result over that of another file."""
    sessions = [open_session(worker, path) for path in (base, result)]
    try:
        feeds = open_feeds(partial(unseen, model, model.timed), sessions[0].inputs)
        batches = [batch.feeds for batch in feeds]
        timed = interleaved(sessions, [batches, batches], seconds=seconds)
        return timed[1].ratio_to_first
    finally:
        for session in sessions:
            session.close()


def measure(
    worker: Worker, model: BenchModel, folder: Path, data: bool, seconds: float
) -> list[Row]:
    """All results of one model, with calibration data or without."""
    rows = []
    original = score(worker, model.file, model, model.rows)
    assert original is not None
    plain = folder / "int8.onnx"
    base = plain if data else model.file
    for passes in PIPELINES[model.name]:
        row = Row(model.name, passes, data)
        rows.append(row)
        out = plain if passes == INT8 else folder / "out.onnx"
        row.cpu_seconds, row.note = made(model, passes, data, out)
        if not out.exists():
            continue
        row.metric = score(worker, out, model, model.rows)
        assert row.metric is not None
        row.drop = original - row.metric
        size = out.stat().st_size
        row.of_float = size / model.file.stat().st_size
        row.of_int8 = size / plain.stat().st_size
        row.latency = time_ratio(worker, model, base, out, seconds)
        if out != plain:
            out.unlink()
    return rows


def show(rows: Sequence[Row]) -> None:
    """Print the table."""
    print(this_cpu().label)
    table = Table(box=MARKDOWN)
    for heading in (
        "model",
        "passes",
        "data",
        "metric",
        "drop",
        "of float",
        "of int8",
        "latency",
        "CPU s",
    ):
        table.add_column(heading)
    for row in rows:
        table.add_row(
            row.model,
            row.passes,
            "yes" if row.data else "no",
            row.note or cell(row.metric, ".4f"),
            cell(row.drop, "+.4f"),
            cell(row.of_float, ".3f"),
            cell(row.of_int8, ".3f"),
            cell(row.latency, ".2f"),
            cell(row.cpu_seconds, ".0f"),
        )
    Console(width=140).print(table)


def main() -> None:
    """Measure what was asked for, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", nargs="*", default=list(PIPELINES))
    parser.add_argument("--seconds", type=float, default=2.0)
    options = parser.parse_args()
    rows = []
    with Worker(timeout=3600) as worker:
        for model in MODELS:
            if model.name not in PIPELINES or model.name not in options.only:
                continue
            for data in (False, True):
                with tempfile.TemporaryDirectory() as folder:
                    rows += measure(
                        worker,
                        model,
                        Path(folder),
                        data,
                        options.seconds,
                    )
                show(rows)


if __name__ == "__main__":
    main()
