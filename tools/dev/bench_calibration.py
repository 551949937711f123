"""Calibration against onnxruntime's calibrators: time and peak memory on the same samples.

    python tools/dev/bench_calibration.py [--only MODEL,…] [--samples N] [--growth 128,2000]
                                          [--repeat 3] [--json F]

Prints two tables. Ranges by entropy and percentile, ours against onnxruntime's: seconds from the
model file to the ranges (imports excluded) and peak memory, every figure from a fresh process, the
least of --repeat in turns; the last column leaves out loading the model and opening sessions, too.
onnxruntime gets its fastest batch and, as it keeps every activation, collects in chunks that fit 12
GiB. Then ours with more and more samples (rows of the calibration data, over again): memory must
stay flat. Needs the shared data (ONNX_OPT_DATA).
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import data_folder
from onnx_opt.frontends.onnx_file import load, save
from onnx_opt.runtime.context import RunContext
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker
from peers._driver import Feed, peak_mb
from rich.console import Console
from rich.table import Table

LIMIT = (
    12 << 30
)  # bytes of address space for onnxruntime, which keeps every activation it collects
PERCENTILE = 99.999
HELD = 128  # rows in memory


@dataclass(frozen=True)
class Case:
    """`batch`: rows at once; onnxruntime fails on a last batch that is smaller. `chunk`: rows it
    collects at once.
    """

    model: str
    loader: str
    batch: int
    chunk: int


CASES = [
    Case("cifar10_resnet20", "cifar10_calib", 64, 128),
    Case("efficientnet_lite0", "imagenet_calib", 8, 64),
    Case("ch_PP-OCRv4_rec_infer", "ocr_calib", 8, 16),
]


def feeds_of(case: Case, samples: int) -> Callable[[], Iterator[Feed]]:
    """Batches of the shared loader: its first 128 rows, read beforehand, over and over up to
    `samples`.
    """
    sys.path.insert(0, str(data_folder()))
    import loaders

    parts: list[Feed] = []
    for feeds, _ in getattr(loaders, case.loader)():
        parts.append(feeds)
        if sum(map(rows_of, parts)) >= min(samples, HELD):
            break
    held = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    size = min(case.batch, samples)
    starts = range(0, rows_of(held) - size + 1, size)

    def batches() -> Iterator[Feed]:
        for start in itertools.islice(itertools.cycle(starts), samples // size):
            yield {name: array[start : start + size] for name, array in held.items()}

    return batches


def rows_of(feeds: Feed) -> int:
    return len(next(iter(feeds.values())))


class Reader:
    """Feeds in onnxruntime's form."""

    def __init__(self, feeds: Iterator[Feed]) -> None:
        self._feeds = feeds

    def get_next(self) -> Feed | None:
        return next(self._feeds, None)


def run_peer(
    model: Path, method: str, feeds: Iterator[Feed], chunk: int, out: Path
) -> tuple[float, float]:
    """onnxruntime, `chunk` batches at a time: seconds from the model to the ranges, and of
    statistics only.
    """
    from onnxruntime.quantization import CalibrationMethod
    from onnxruntime.quantization.calibrate import create_calibrator

    resource.setrlimit(resource.RLIMIT_AS, (LIMIT, LIMIT))
    kind = {
        "entropy": CalibrationMethod.Entropy,
        "percentile": CalibrationMethod.Percentile,
    }[method]
    start = time.perf_counter()
    calibrator: Any = create_calibrator(
        model,
        calibrate_method=kind,
        augmented_model_path=str(out),
        extra_options={"percentile": PERCENTILE} if method == "percentile" else {},
    )
    opened = time.perf_counter()
    while part := list(itertools.islice(feeds, chunk)):
        calibrator.collect_data(Reader(iter(part)))
    calibrator.compute_data()
    end = time.perf_counter()
    return end - start, end - opened


class TimedWorker(Worker):
    """Notes when each function of the child was first called and last returned."""

    def __init__(self) -> None:
        super().__init__()
        self.began: dict[str, float] = {}
        self.ended: dict[str, float] = {}

    def call(
        self, function: str, *args: Any, timeout: float | None = None, **kwargs: Any
    ) -> Any:
        self.began.setdefault(function, time.perf_counter())
        value = super().call(function, *args, timeout=timeout, **kwargs)
        self.ended[function] = time.perf_counter()
        return value


def run_ours(
    model: Path,
    method: str,
    feeds: Callable[[], Iterator[Feed]],
    samples: int,
    out: Path,
) -> tuple[float, float]:
    """This project, on the tensors that onnxruntime would choose; its worker has imported
    onnxruntime before.
    """
    from onnxruntime.quantization.calibrate import MinMaxCalibrater

    chooser: Any = MinMaxCalibrater(model, augmented_model_path=str(out))
    names = sorted(chooser.select_tensors_to_calibrate(chooser.model)[0])
    with TimedWorker() as worker:
        inputs = open_session(worker, model).inputs
        context = RunContext(worker, open_feeds(feeds, inputs), "cpu", 0, save)
        start = time.perf_counter()
        found = context.activation_ranges(
            load(model), names, method, PERCENTILE, samples
        )  # type: ignore[arg-type]
        seconds = time.perf_counter() - start
    assert len(found) >= len(names) - 1, "a tensor was not observed"
    return seconds, worker.ended["ranges"] - worker.began["observe"]


def child(who: str, model: str, method: str, samples: int) -> None:
    """One measurement; prints a JSON object."""
    case = next(c for c in CASES if c.model == model)
    path, feeds = data_folder() / "models" / f"{model}.onnx", feeds_of(case, samples)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "augmented.onnx")
        try:
            seconds, statistics = (
                run_peer(path, method, feeds(), max(case.chunk // case.batch, 1), out)
                if who == "peer"
                else run_ours(path, method, feeds, samples, out)
            )
            print(
                json.dumps(
                    {"seconds": seconds, "statistics": statistics, "peak_mb": peak_mb()}
                ),
                flush=True,
            )
        except MemoryError as error:
            print(json.dumps({"error": f"MemoryError: {error}"[:70]}), flush=True)


def measure(who: str, model: str, method: str, samples: int) -> dict[str, Any]:
    """A fresh process for one measurement."""
    command = [
        sys.executable,
        __file__,
        "--child",
        who,
        "--model",
        model,
        "--method",
        method,
        "--samples",
        str(samples),
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=os.environ
    )
    lines = done.stdout.strip().splitlines()
    with contextlib.suppress(IndexError, json.JSONDecodeError):
        return {
            "who": who,
            "model": model,
            "method": method,
            "samples": samples,
            **json.loads(lines[-1]),
        }
    problem = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[
        -1
    ]
    return {
        "who": who,
        "model": model,
        "method": method,
        "samples": samples,
        "error": problem[:70],
    }


def least(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The rows of one contestant as one: the least of each figure."""
    good = [row for row in rows if "error" not in row]
    figures = (
        {
            key: min(row[key] for row in good)
            for key in ("seconds", "statistics", "peak_mb")
        }
        if good
        else {}
    )
    return {**(good or rows)[0], **figures}


def compare(
    cases: list[Case], samples: int, repeat: int, console: Console
) -> list[dict[str, Any]]:
    """Ours against onnxruntime's calibrators."""
    table = Table(
        "model",
        "method",
        "ours s",
        "ours MB",
        "onnxruntime s",
        "onnxruntime MB",
        "times faster",
        "statistics only",
        title=f"{samples} samples",
    )
    rows = []
    for case in cases:
        for method in ("entropy", "percentile"):
            turns = [
                [measure(who, case.model, method, samples) for who in ("ours", "peer")]
                for _ in range(repeat)
            ]
            own, peer = (
                least([turn[0] for turn in turns]),
                least([turn[1] for turn in turns]),
            )
            rows += [own, peer]
            ratios = [
                f"{peer[key] / own[key]:.1f}" if key in own and key in peer else "-"
                for key in ("seconds", "statistics")
            ]
            table.add_row(case.model, method, *cells(own), *cells(peer), *ratios)
    console.print(table)
    return rows


def grow(cases: list[Case], steps: list[int], console: Console) -> list[dict[str, Any]]:
    """Peak memory of ours with more samples."""
    table = Table("model", "samples", "s", "peak MB", title="ours, auto: more samples")
    rows = []
    for case in cases:
        for samples in steps:
            rows.append(measure("ours", case.model, "auto", samples))
            table.add_row(case.model, str(samples), *cells(rows[-1]))
    console.print(table)
    return rows


def cells(row: dict[str, Any]) -> tuple[str, str]:
    return (
        (row["error"], "-")
        if "error" in row
        else (f"{row['seconds']:.2f}", f"{row['peak_mb']:.0f}")
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only",
        default=",".join(case.model for case in CASES),
        help="models, comma separated",
    )
    parser.add_argument("--samples", type=int, default=128, help="of the comparison")
    parser.add_argument(
        "--growth",
        default="128,2000",
        help="sample counts of the second table; empty: leave it out",
    )
    parser.add_argument(
        "--repeat", type=int, default=2, help="measurements of the comparison, in turns"
    )
    parser.add_argument("--json", type=Path, help="write the rows there too")
    for hidden in ("--child", "--model", "--method"):
        parser.add_argument(hidden, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child, options.model, options.method, options.samples)
        return
    cases = [case for case in CASES if case.model in options.only.split(",")]
    console = Console(width=150)
    rows = compare(cases, options.samples, options.repeat, console)
    if options.growth:
        rows += grow(cases[:1], [int(n) for n in options.growth.split(",")], console)
    if options.json:
        options.json.write_text(json.dumps(rows, indent=1))


if __name__ == "__main__":
    main()
