"""The table of `quant` on real models: accuracy, size and latency against fp32 and against
onnxruntime's quantizer.

    python tools/dev/bench_quant.py [--only cifar10_resnet20,...] [--seconds 10] [--no-peers]
                                    [--json FILE]

Every variant of one model is timed in one process in turns, on both cores; where this CPU has VNNI
and can hide it, all is measured a second time as on a CPU without. Needs the shared data
(ONNX_OPT_DATA). The peers are onnxruntime.quantization.quantize_static with its defaults on the raw
model, and its best CPU settings (after quant_pre_process: u8 activations, s8 weights, per channel),
on the same calibration samples.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench_data import data_folder, source
from both_classes import this_cpu, without_vnni
from onnx_opt import OnnxOptError, optimize
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.compare import DriftMeter
from onnx_opt.runtime.feeds import Feeds, open_feeds
from onnx_opt.runtime.metrics import evaluate, metric_named
from onnx_opt.runtime.session import Session, open_session
from onnx_opt.runtime.worker import Worker
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Case:
    """One model with its data (`loader` names a callable of the shared loaders or of bench_data)
    and its bars.
    """

    model: str
    calibration: str
    evaluation: str
    metric: str | None = None
    rows: int | None = None  # rows of a batch to time; None: the whole batch
    max_drop: float | None = None
    max_size: float | None = None
    faster: bool = False
    peers: bool = False


CASES = [
    Case(
        "cifar10_resnet20",
        "cifar10_calib",
        "cifar10_val",
        "top1",
        32,
        0.003,
        0.32,
        True,
        True,
    ),
    Case(
        "cifar10_resnet20_bn",
        "cifar10_calib",
        "cifar10_val",
        "top1",
        32,
        0.003,
        None,
        True,
    ),
    Case(
        "cifar10_resnet56",
        "cifar10_calib",
        "cifar10_val",
        "top1",
        32,
        0.003,
        None,
        True,
    ),
    Case(
        "efficientnet_lite0",
        "imagenet_calib",
        "imagenet_val",
        "top1",
        8,
        0.015,
        0.30,
        True,
    ),
    Case(
        "minilm_l6_v2",
        "stsb_calib",
        "stsb_val",
        "stsb_spearman",
        None,
        0.01,
        None,
        True,
    ),
    Case("minilm_l6_v2", "", "stsb_val", "stsb_spearman", None, 0.01, None, True),
    Case("ch_PP-OCRv4_rec_infer", "ocr_calib", "ocr_val", "ocr_exact"),
    Case("ch_PP-OCRv4_det_infer", "detector_images", "detector_images"),
    Case("silero_vad", "speech_windows", "speech_windows"),
    Case("silero_vad_16k_op15", "speech_windows", "speech_windows"),
    Case("magika_v3_3", "file_bytes", "file_bytes"),
]
CALIBRATION_SAMPLES = 128
OTHER_CLASS = {
    "metric": ".4f",
    "drop": "+.4f",
    "sqnr_db": ".1f",
    "latency_ratio": ".2f",
}


@dataclass
class Row:
    """One variant's figures; None where it could not be made (then `note` says why)."""

    model: str
    variant: str
    metric: float | None = None
    drop: float | None = None
    sqnr_db: float | None = None
    size_ratio: float | None = None
    latency_ratio: float | None = None
    seconds: float | None = None
    note: str = ""
    met: bool | None = None
    declined: dict[str, int] = field(default_factory=dict)
    file: str = ""
    without_vnni: dict[str, Any] = field(default_factory=dict)
    """`metric`, `drop`, `sqnr_db` and `latency_ratio` as on a CPU without VNNI."""


def quantize_ours(path: Path, case: Case, out: Path, row: Row) -> None:
    """`--passes quant` as a user runs it; reasons of everything declined go to the row."""
    data = source(case.calibration) if case.calibration else None
    result = optimize(
        path,
        f"quant(samples={CALIBRATION_SAMPLES})",
        out=out,
        data=data,
        bench=False,
        force=True,
    )
    step = result.passes[-1]
    row.declined = dict(Counter(d["reason"] for d in step.declined))
    row.note = f"{step.changed} layers" + (
        f", {len(step.declined)} declined" if step.declined else ""
    )


class PeerReader:
    """Calibration data in onnxruntime's form."""

    def __init__(self, feeds: Feeds) -> None:
        self._batches: Iterator[Any] = iter(feeds)
        self._left = CALIBRATION_SAMPLES

    def get_next(self) -> Any:
        if self._left <= 0:
            return None
        batch = next(self._batches, None)
        self._left -= len(next(iter(batch.feeds.values()))) if batch else 0
        return batch.feeds if batch else None


def peer(
    best: bool, feeds_of: Callable[[Path], Feeds]
) -> Callable[[Path, Case, Path, Row], None]:
    """Onnxruntime's static quantizer: its defaults on the raw file, or the settings its guide names
    for x64 CPUs.
    """

    def run(path: Path, case: Case, out: Path, row: Row) -> None:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
        from onnxruntime.quantization.shape_inference import quant_pre_process

        reader: Any = PeerReader(feeds_of(path))
        if not best:
            quantize_static(path, out, reader)
            return
        prepared = out.with_suffix(".prepared.onnx")
        quant_pre_process(path, prepared)
        quantize_static(
            prepared,
            out,
            reader,
            quant_format=QuantFormat.QDQ,
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )

    return run


def run_case(case: Case, folder: Path, seconds: float, peers: bool) -> list[Row]:
    """Make every variant, then measure all of them against the original in one process."""
    path = data_folder() / "models" / f"{case.model}.onnx"
    rows = [Row(case.model, "fp32", file=str(path))]

    def calibration(model: Path) -> Feeds:
        with Worker() as worker:
            return open_feeds(
                source(case.calibration), open_session(worker, model).inputs
            )

    makers: dict[str, Callable[[Path, Case, Path, Row], None]] = {
        "quant" if case.calibration else "quant, no data": quantize_ours
    }
    if peers and case.peers:
        makers["ORT defaults"] = peer(False, calibration)
        makers["ORT u8/s8 per channel"] = peer(True, calibration)
    for name, make in makers.items():
        row, out = Row(case.model, name), folder / f"{len(rows)}.onnx"
        start = time.perf_counter()
        try:
            make(path, case, out, row)
        except (OnnxOptError, ValueError, RuntimeError) as error:
            if make is quantize_ours:
                raise
            row.note = f"failed: {str(error).splitlines()[0][:80]}"
            rows.append(row)
            continue
        row.seconds = time.perf_counter() - start
        row.size_ratio = out.stat().st_size / path.stat().st_size
        row.file = str(out)
        rows.append(row)
    made = [r for r in rows if r.file]
    masked = without_vnni(
        Path(__file__),
        [asdict(r) for r in made],
        ["--case", str(CASES.index(case)), "--seconds", str(seconds)],
    )
    measure(made, case, seconds)
    for row, other in zip(made, masked or (), strict=False):
        row.without_vnni = {
            key: other[key] for key in ("metric", "drop", "sqnr_db", "latency_ratio")
        }
        row.met = row.met and meets(
            Row(**{**other, "size_ratio": row.size_ratio}), case
        )
    return rows


def measure_again(path: Path, case: Case, seconds: float) -> None:
    """Measure the files of rows that another process made; the rows are written back."""
    rows = [Row(**fields) for fields in json.loads(path.read_text())]
    measure(rows, case, seconds)
    path.write_text(json.dumps([asdict(row) for row in rows]))


def measure(rows: list[Row], case: Case, seconds: float) -> None:
    """Latency, drift from fp32 and the metric, of every file."""
    with Worker(timeout=1800) as worker:
        sessions = [open_session(worker, row.file) for row in rows]
        feeds = open_feeds(source(case.evaluation), sessions[0].inputs)
        head = [
            {k: v[: case.rows] if case.rows else v for k, v in b.feeds.items()}
            for b in islice(feeds, 4)
        ]
        latencies = interleaved(sessions, [head] * len(sessions), seconds=seconds)
        for row, session, latency in zip(rows, sessions, latencies, strict=True):
            row.latency_ratio = latency.ratio_to_first
            row.sqnr_db = drift(sessions[0], session, feeds)
            if case.metric is not None:
                row.metric = score(session, feeds, case.metric)
                row.drop = (rows[0].metric or 0.0) - row.metric
    for row in rows:
        if row.variant.startswith("quant"):
            row.met = meets(row, case)


def meets(row: Row, case: Case) -> bool | None:
    """True if the row reaches every bar that the case sets; None where it sets none."""
    checks = [
        case.max_drop is None or (row.drop is not None and row.drop <= case.max_drop),
        case.max_size is None
        or (row.size_ratio is not None and row.size_ratio <= case.max_size),
        not case.faster or (row.latency_ratio is not None and row.latency_ratio < 1.0),
    ]
    return (
        None
        if case.max_drop is None and case.max_size is None and not case.faster
        else all(checks)
    )


def drift(original: Session, session: Session, feeds: Feeds) -> float:
    """SQNR in dB over the first batches."""
    meter = DriftMeter()
    for batch in islice(feeds, 8):
        meter.update(original.run(batch.feeds), session.run(batch.feeds))
    return meter.overall().sqnr_db


def score(session: Session, feeds: Feeds, metric: str) -> float:
    """The case's metric: a built-in one, or one of the shared loaders."""
    built_in = metric in ("top1", "top5")
    return evaluate(
        session,
        feeds,
        metric_named(metric if built_in else source(metric)),
    ).value


def show(rows: list[Row], console: Console) -> None:
    """The table, as Markdown; `bar` says whether the figures asked for were met."""
    table = Table(
        "model",
        "variant",
        "metric",
        "drop",
        "SQNR dB",
        "size",
        "latency",
        "without VNNI: metric",
        "drop",
        "SQNR dB",
        "latency",
        "made in s",
        "bar",
        "note",
        box=MARKDOWN,
    )
    for r in rows:

        def cell(value: float | None, form: str) -> str:
            return "-" if value is None else format(value, form)

        table.add_row(
            r.model,
            r.variant,
            cell(r.metric, ".4f"),
            cell(r.drop, "+.4f"),
            cell(r.sqnr_db, ".1f"),
            cell(r.size_ratio, ".3f"),
            cell(r.latency_ratio, ".2f"),
            *(cell(r.without_vnni.get(key), form) for key, form in OTHER_CLASS.items()),
            cell(r.seconds, ".1f"),
            "-" if r.met is None else "met" if r.met else "MISSED",
            r.note,
        )
    console.print(table)
    for r in rows:
        for reason, count in r.declined.items():
            console.print(
                f"{r.model}, {r.variant}: {count} declined: {reason}", highlight=False
            )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model names, comma separated")
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="how long to time each model's variants",
    )
    parser.add_argument("--no-peers", action="store_true")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    parser.add_argument("--measure", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--case", type=int, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure_again(options.measure, CASES[options.case], options.seconds)
        return
    wanted = set(filter(None, options.only.split(",")))
    rows: list[Row] = []
    for case in CASES:
        if not wanted or case.model in wanted:
            with tempfile.TemporaryDirectory() as folder:
                rows += run_case(
                    case, Path(folder), options.seconds, not options.no_peers
                )
    console = Console(width=180)
    console.print(f"CPU: {this_cpu().label}", highlight=False)
    show(rows, console)
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
