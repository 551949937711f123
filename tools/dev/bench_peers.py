"""This project and its peers on the four shared models: one run, one table a model.

    # once, from PyPI
    python tools/dev/bench_peers.py --install ort,nncf,inc,onnxsim,quark,modelopt,aimet
    python tools/dev/bench_peers.py [--only cifar10_resnet20,…] [--peers ort,nncf] [--passes TEXT]…
                                    [--samples 500] [--seconds 6] [--timeout 120] [--envs DIR]
                                    [--json FILE]

Every peer runs as a child process in its own environment (--envs) under a time limit; one that is
not installed or fails has a row with the reason. All results are then measured in one process in
turns, with one thread and with all cores; where this CPU has VNNI and can hide it, a second time as
on a CPU without. Every peer gets the same samples: 128, or what there are. Needs the shared data
(ONNX_OPT_DATA).

Columns: the task's metric and its drop from fp32; SQNR of the outputs in dB; file size and latency
as ratios to fp32; integer kernels of all Conv, Gemm and MatMul kernels in ONNX Runtime's optimized
graph; wall seconds, CPU seconds and peak memory (MB) of the optimization, start of the process
included.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import data_folder
from both_classes import this_cpu, without_vnni
from onnx_opt import OnnxOptError
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.compare import DriftMeter
from onnx_opt.runtime.feeds import Batch, open_feeds
from onnx_opt.runtime.metrics import metric_named
from onnx_opt.runtime.optimized import optimized_nodes
from onnx_opt.runtime.session import Session, open_session
from onnx_opt.runtime.worker import Worker
from peers import PEERS, TASKS, Peer, Row, Task, install, missing, ours, quantize
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

USABLE_DROP = 0.03  # of the metric: beyond it a result counts as broken, however fast
INTEGER = {
    "QLinearConv",
    "ConvInteger",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "MatMulIntegerToFloat",
    "DynamicQuantizeMatMul",
    "QAttention",
}
FLOAT = {
    "Conv",
    "FusedConv",
    "Gemm",
    "FusedGemm",
    "MatMul",
    "FusedMatMul",
    "MatMulNBits",
    "Attention",
}


def run_task(
    task: Task, peers: Sequence[Peer], folder: Path, options: argparse.Namespace
) -> tuple[list[Row], list[Row]]:
    """Make every variant, then measure all that load against the original in one process.

    The rows of this CPU, and those as of one without VNNI; none where they cannot be had.
    """
    path = data_folder() / "models" / f"{task.model}.onnx"
    calibration = folder / "calibration.npz"
    write_calibration(task, path, calibration)
    rows = [Row(task.model, "fp32", file=str(path))]
    for index, peer in enumerate(peers):
        row = Row(task.model, peer.name)
        row.note = missing(peer, options.envs)
        if not row.note:
            quantize(peer, path, calibration, folder / f"{index}.onnx", options, row)
        rows.append(row)
        print(f"{task.model}: {peer.name}: {row.note or 'done'}", flush=True)
    others = without_vnni(
        Path(__file__),
        [asdict(row) for row in rows],
        ["--samples", str(options.samples), "--seconds", str(options.seconds)],
    )
    with Worker(timeout=1800) as worker:
        measure(worker, task, rows, options)
    return rows, [Row(**fields) for fields in others or ()]


def measure_again(path: Path, options: argparse.Namespace) -> None:
    """Measure the files of rows that another process made; the rows are written back."""
    rows = [Row(**fields) for fields in json.loads(path.read_text())]
    task = next(task for task in TASKS if task.model == rows[0].model)
    with Worker(timeout=1800) as worker:
        measure(worker, task, rows, options)
    path.write_text(json.dumps([asdict(row) for row in rows]))


def write_calibration(task: Task, path: Path, out: Path) -> None:
    """The first `task.samples` rows of the task's calibration data, one array an input."""
    parts: list[Batch] = []
    with Worker() as worker:
        feeds = open_feeds(loader(task.calibration), open_session(worker, path).inputs)
    for batch in feeds:
        parts.append(batch)
        if sum(map(rows_of, parts)) >= task.samples:
            break
    names = parts[0].feeds
    np.savez(
        out,
        **{
            name: joined([p.feeds[name] for p in parts])[: task.samples]
            for name in names
        },
    )


def joined(parts: list[np.ndarray]) -> np.ndarray:
    """Batches of one width each as one array: token ids and masks are filled up with zeros."""
    widest = np.max([part.shape[1:] for part in parts], axis=0)
    return np.concatenate(
        [
            np.pad(
                part,
                [
                    (0, 0),
                    *(
                        (0, end - size)
                        for end, size in zip(widest, part.shape[1:], strict=True)
                    ),
                ],
            )
            for part in parts
        ]
    )


def loader(name: str) -> str:
    """`file.py:callable` of the shared loaders."""
    return f"{data_folder() / 'loaders.py'}:{name}"


def rows_of(batch: Batch) -> int:
    return len(next(iter(batch.feeds.values())))


def measure(
    worker: Worker, task: Task, rows: list[Row], options: argparse.Namespace
) -> None:
    """Fill in what needs a session: latencies, kernels, drift and the metric."""
    sessions = opened(worker, [row for row in rows if row.file], 1)
    feeds = open_feeds(loader(task.evaluation), sessions[0][1].inputs)
    batches = evaluation_batches(feeds, options.samples, task.batches_together)
    timed = [
        {k: v[: task.rows_timed] for k, v in b.feeds.items()}
        for b in islice(batches, 4)
    ]
    for row, latency in timings(sessions, timed, options.seconds):
        row.latency_one = latency
    loaded = [row for row, _ in sessions]
    for _, session in sessions:
        session.close()
    sessions = opened(worker, loaded, os.cpu_count() or 1)
    for row, latency in timings(sessions, timed, options.seconds):
        row.latency_all = latency
    score(
        sessions,
        batches,
        metric_named(task.metric if task.metric == "top1" else loader(task.metric)),
    )


def evaluation_batches(feeds: Any, samples: int, together: int) -> list[Batch]:
    """Batches of at least `samples` rows; batches that belong together are not parted."""
    batches: list[Batch] = []
    for batch in feeds:
        if (
            len(batches) % together == 0
            and samples
            and sum(map(rows_of, batches)) >= samples
        ):
            break
        batches.append(batch)
    return batches


def opened(worker: Worker, rows: list[Row], threads: int) -> list[tuple[Row, Session]]:
    """A session for each row whose file loads and runs; the others say why not."""
    found = []
    for row in rows:
        try:
            session = open_session(worker, row.file, threads=threads)
            row.kernels = kernels(session)
        except OnnxOptError as error:
            row.note = f"does not load: {error.problem}"
            continue
        count = len(session.outputs)
        expected = len(found[0][1].outputs) if found else count
        if count != expected:
            row.note = f"not the model's interface: {count} outputs, not {expected}"
            session.close()
        else:
            found.append((row, session))
    return found


def kernels(session: Session) -> str:
    """Integer kernels / all kernels that multiply."""
    integer = total = 0
    for node in optimized_nodes(session):
        op = node.op.rsplit(".", 1)[-1]
        integer += op in INTEGER
        total += op in INTEGER or op in FLOAT
    return f"{integer}/{total}"


def timings(
    sessions: list[tuple[Row, Session]], feeds: Any, seconds: float
) -> list[tuple[Row, float]]:
    latencies = interleaved(
        [s for _, s in sessions], [feeds] * len(sessions), seconds=seconds, min_rounds=7
    )
    return [
        (row, latency.ratio_to_first)
        for (row, _), latency in zip(sessions, latencies, strict=True)
    ]


def score(
    sessions: list[tuple[Row, Session]], batches: list[Batch], metric: Any
) -> None:
    """Drift from the first session's outputs, and the metric, over the same batches."""
    labels = [batch.labels for batch in batches]
    reference = [sessions[0][1].run(batch.feeds) for batch in batches]
    for row, session in sessions:
        meter, outputs = DriftMeter(), []
        for batch, expected in zip(batches, reference, strict=True):
            got = session.run(batch.feeds) if row.variant != "fp32" else expected
            meter.update(expected, dict(zip(expected, got.values(), strict=True)))
            outputs.append(list(got.values()))
        row.sqnr_db = meter.overall().sqnr_db
        row.metric = float(metric(outputs, labels))
        row.drop = (sessions[0][0].metric or 0.0) - row.metric


def show(rows: list[Row], cpu: str, console: Console) -> None:
    table = Table(
        "variant",
        "metric",
        "drop",
        "SQNR dB",
        "size",
        "1 thread",
        "all cores",
        "int",
        "s",
        "CPU s",
        "MB",
        "note",
        title=f"{rows[0].model}, {cpu}",
    )
    for r in rows:
        figures = [
            (r.metric, ".4f"),
            (r.drop, "+.4f"),
            (r.sqnr_db, ".1f"),
            (r.size_ratio, ".3f"),
            (r.latency_one, ".2f"),
            (r.latency_all, ".2f"),
        ]
        costs = [(r.seconds, ".1f"), (r.cpu_seconds, ".1f"), (r.peak_mb, ".0f")]
        table.add_row(
            r.variant,
            *(cell(*f) for f in figures),
            r.kernels or "-",
            *(cell(*c) for c in costs),
            r.note,
        )
    console.print(table)
    console.print(verdict(rows), highlight=False)


def show_markdown(rows: list[Row], others: list[Row], console: Console) -> None:
    """All models in one table, the figures of both classes of CPU beside each other."""
    table = Table(
        "model",
        "tool",
        "size",
        "integer kernels",
        "metric (fp32)",
        "SQNR dB",
        "latency",
        "without VNNI: metric",
        "SQNR dB",
        "latency",
        box=MARKDOWN,
    )
    masked = {(r.model, r.variant): r for r in others}
    reference = {r.model: r.metric for r in rows if r.variant == "fp32"}
    for r in (r for r in rows if r.variant != "fp32"):
        other = masked.get((r.model, r.variant))
        name = "**onnx-opt**" if r.own else r.variant
        figures = (
            [
                f"{cell(r.metric, '.3f')} ({cell(reference[r.model], '.3f')})",
                cell(r.sqnr_db, ".1f"),
                cell(r.latency_one, ".2f"),
            ]
            if r.metric is not None
            else ["fails", "", ""]
        )
        figures += (
            [
                cell(other.metric, ".3f"),
                cell(other.sqnr_db, ".1f"),
                cell(other.latency_one, ".2f"),
            ]
            if (other is not None and other.metric is not None)
            else ["", "", ""]
        )
        table.add_row(r.model, name, cell(r.size_ratio, ".2f"), r.kernels, *figures)
    console.print(table)


def cell(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def verdict(rows: list[Row]) -> str:
    """Ours against the fastest peer that quantized anything and whose metric still stands."""
    usable = [
        r
        for r in rows
        if r.latency_one is not None and r.drop is not None and r.drop <= USABLE_DROP
    ]
    own, peers = (
        [r for r in usable if r.own],
        [r for r in usable if not r.own and not r.kernels.startswith("0/")],
    )
    if not own or not peers:
        return (
            f"{rows[0].model}: nothing to compare (usable: "
            f"{', '.join(r.variant for r in usable) or 'none'})"
        )
    fastest = min(peers, key=lambda r: r.latency_one or 0.0)
    faithful = max(peers, key=lambda r: r.sqnr_db or 0.0)
    return "\n".join(
        [
            f"{rows[0].model}: fastest usable peer: {fastest.variant}, most faithful: "
            f"{faithful.variant}",
            *(
                f"  {r.variant}: "
                f"{(r.latency_one or 0) / (fastest.latency_one or 1):.2f} of the "
                "fastest one's time, "
                f"{(r.sqnr_db or 0) - (fastest.sqnr_db or 0):+.1f} dB"
                for r in own
            ),
        ]
    )


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model names, comma separated")
    parser.add_argument(
        "--peers", default="", help="environments to run, comma separated; none: all"
    )
    parser.add_argument(
        "--passes", action="append", help="our pipeline; several give several rows"
    )
    parser.add_argument(
        "--samples", type=int, default=0, help="evaluation rows; 0: all"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=6.0,
        help="how long to time each model, a thread setting",
    )
    parser.add_argument(
        "--timeout",
        type=float,
        default=120.0,
        help="seconds a peer may take on one model",
    )
    parser.add_argument(
        "--envs", type=Path, default=Path.home() / ".cache" / "onnx-opt" / "peers"
    )
    parser.add_argument(
        "--install", default="", help="environments to make, comma separated; then stop"
    )
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> None:
    options = arguments()
    if options.measure:
        measure_again(options.measure, options)
        return
    if options.install:
        for name in options.install.split(","):
            install(name, options.envs)
        return
    wanted = set(filter(None, options.peers.split(",")))
    peers = [p for p in PEERS if not wanted or p.environment in wanted]
    only = set(filter(None, options.only.split(",")))
    rows: list[Row] = []
    others: list[Row] = []
    console, cpu = Console(width=160), this_cpu().label
    for task in TASKS:
        if only and task.model not in only:
            continue
        chosen = ours(options.passes or ["simplify,quant"])
        chosen += [p for p in peers if not p.only or task.model in p.only]
        with tempfile.TemporaryDirectory() as folder:
            found, masked = run_task(task, chosen, Path(folder), options)
        show(found, cpu, console)
        if masked:
            show(masked, "without VNNI", console)
        rows += found
        others += masked
        if options.json:
            options.json.write_text(
                json.dumps(
                    {
                        "cpu": cpu,
                        "rows": list(map(asdict, rows)),
                        "without_vnni": list(map(asdict, others)),
                    },
                    indent=1,
                )
            )
    console.print(f"CPU: {cpu}", highlight=False)
    show_markdown(rows, others, console)


if __name__ == "__main__":
    main()
