"""The table of defaults: what each lossy pass does by its name alone, and the plain command.

    python tools/dev/bench_defaults.py [--only MODEL,…] [--passes TEXT …] [--seconds 1] [--full]
                                       [--train] [--lm MODEL.onnx] [--json FILE]

Every pipeline runs with 256 samples (or as many as the calibration data has) and without any, on
all models of the shared data (ONNX_OPT_DATA). Metric, SQNR and agreement are of rows that no pass
has seen; `claimed` is what the run's own account says. Warnings are counted that speak of the
result, not of what was given or timed. A row is a DEFECT that loses more than a point of the metric
(without labels: whose SQNR is below 10 dB) and has no such warning, or that crashes; the command
then exits with 1. `--train`: training passes, too, which take minutes. `--lm`: a language model
made by `onnx-opt export` of what the script beside the shared data builds. `--full`: all evaluation
rows, not the first ones.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from bench_data import MODELS, BenchModel, calibration, language_model
from bench_measure import (
    NOISE,
    Isolated,
    cell,
    distance,
    first_line,
    latency_ratios,
    score,
    worse_by,
)
from both_classes import this_cpu
from decoded_zeros import count_zeros
from onnx_opt import OnnxOptError, optimize
from onnx_opt.passes._core.registry import pass_class, pass_names
from onnx_opt.runtime.worker import Worker
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

SAMPLES = 256
HEADLINES = ("prune,quant", "simplify,quant")
TRAINING = frozenset({"finetune"})
MOST_LOST = 0.01
LEAST_SQNR = 10.0
OF_SOMETHING_ELSE = (
    "data:",
    "target ",
    "bench:",
    "latency:",
    "size:",
    "opset:",
    "nothing changed:",
)
"""Beginnings of warnings that say nothing about how good the result is."""


@dataclass(frozen=True)
class Job:
    """One row to make: a pipeline on a model, with data or without.

    `before`: the metric of the original.
    """

    model: BenchModel
    passes: str
    data: bool
    rows: int | None
    seconds: float
    before: float | None


@dataclass
class Row:
    """One pipeline's figures; None where there are none.

    `claimed_sqnr_db`, `claimed_on`: drift in the run's account, and what it was measured on.
    `zeros`: fraction of the weights. `ratio`: of bytes. `made_in`: seconds of the whole run.
    `warnings`: those that speak of the result. `error`: why there is no result.
    """

    model: str
    passes: str
    data: bool
    before: float | None = None
    after: float | None = None
    lost: float | None = None
    sqnr_db: float | None = None
    agreement: float | None = None
    claimed_sqnr_db: float | None = None
    claimed_on: str | None = None
    zeros: float | None = None
    bytes: int | None = None
    ratio: float | None = None
    latency_ratio: float | None = None
    made_in: float | None = None
    warnings: Sequence[str] = ()
    error: str = ""
    crashed: bool = False

    @property
    def is_defect(self) -> bool:
        """True if the row is worse than it says."""
        if self.error:
            return self.crashed
        if self.warnings:
            return False
        # negated, so that NaN is a defect too
        if self.lost is not None:
            return not self.lost <= MOST_LOST + NOISE
        return self.sqnr_db is not None and not self.sqnr_db >= LEAST_SQNR


def pipelines(train: bool) -> list[str]:
    """Names of the lossy passes, and the headline pipelines."""
    lossy = [name for name in pass_names() if pass_class(name).effect == "lossy"]
    return [name for name in lossy if train or name not in TRAINING] + list(HEADLINES)


def original_score(job: Job) -> float | None:
    """Metric of the model as it came."""
    with Worker(timeout=1800) as worker:
        return score(worker, job.model.file, job.model, job.rows)


def make(job: Job) -> Row:
    """Run one pipeline as a user does, and measure what it writes.

    Errors: OnnxOptError where the pipeline refuses.
    """
    data = partial(calibration, job.model, SAMPLES) if job.data else None
    row = Row(job.model.name, job.passes, job.data)
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, "result.onnx")
        start = time.perf_counter()
        result = optimize(
            job.model.file, job.passes, out=out, data=data, bench=False, force=True
        )
        row.made_in = time.perf_counter() - start
        row.bytes = result.output.bytes
        if result.output.bytes and result.input.bytes:
            row.ratio = result.output.bytes / result.input.bytes
        claimed = result.passes[-1].drift
        if claimed is not None:
            row.claimed_sqnr_db = claimed["sqnr_db"]
            row.claimed_on = result.drift_on
        row.warnings = [
            text for text in result.warnings if not text.startswith(OF_SOMETHING_ELSE)
        ]
        changed = any(step.changed for step in result.passes)
        measure(row, out, job, changed)
    return row


def measure(row: Row, out: Path, job: Job, changed: bool) -> None:
    """Fill in what the file shows when it is run.

    One that no pass changed, and that computes the same, is not scored and timed anew.
    """
    model = job.model
    row.zeros = count_zeros(out).fraction
    with Worker(timeout=1800) as worker:
        drift = distance(worker, model.file, out, model)
        row.sqnr_db, row.agreement = drift.sqnr_db, drift.agreement
        row.before = job.before
        if not changed and math.isinf(drift.sqnr_db):
            row.after, row.lost = row.before, 0.0
            return
        row.after = score(worker, out, model, job.rows)
        if row.before is not None and row.after is not None:
            row.lost = worse_by(model, row.before, row.after)
        ratios = latency_ratios(worker, [model.file, out], model, job.seconds)
        row.latency_ratio = ratios[1]


def made_or_refused(job: Job) -> Row:
    """The row of a job; a refusal and an exception are rows, too."""
    try:
        return make(job)
    except OnnxOptError as error:
        return failed(job, first_line(error), crashed=False)
    except Exception as error:  # whatever it is: the next row is not to suffer
        return failed(job, f"{type(error).__name__}: {first_line(error)}", crashed=True)


def failed(job: Job, error: str, crashed: bool) -> Row:
    return Row(job.model.name, job.passes, job.data, error=error, crashed=crashed)


def rows_of(
    models: Sequence[BenchModel], texts: Sequence[str], full: bool, seconds: float
) -> Iterator[Row]:
    """The rows of all models and pipelines, with data and without."""
    with Isolated() as isolated:
        for model in models:
            rows = None if full else model.few
            asked = Job(model, "", False, rows, seconds, None)
            before = isolated.run(original_score, asked)
            for text in texts:
                for data in (True, False):
                    job = Job(model, text, data, rows, seconds, before)
                    try:
                        yield isolated.run(made_or_refused, job)
                    except BrokenProcessPool:
                        yield failed(job, "its process died", crashed=True)


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, as Markdown."""
    table = Table(
        "model",
        "passes",
        "data",
        "metric before",
        "after",
        "SQNR dB",
        "agree %",
        "claimed dB",
        "zeros %",
        "bytes",
        "ratio",
        "latency",
        "s",
        "defect",
        "warnings",
        box=MARKDOWN,
    )
    for row in rows:
        table.add_row(
            row.model,
            row.passes,
            "256" if row.data else "none",
            *figures(row),
            "DEFECT" if row.is_defect else "",
            remarks(row),
        )
    console.print(table)


def figures(row: Row) -> list[str]:
    """The numbers of a row, as text."""
    claimed = cell(row.claimed_sqnr_db, ".1f")
    if row.claimed_on == "synthetic feeds":
        claimed += " (synthetic)"
    return [
        cell(row.before, ".4f"),
        cell(row.after, ".4f"),
        cell(row.sqnr_db, ".1f"),
        cell(percent(row.agreement), ".1f"),
        claimed,
        cell(percent(row.zeros), ".1f"),
        cell(row.bytes, ","),
        cell(row.ratio, ".3f"),
        cell(row.latency_ratio, ".2f"),
        cell(row.made_in, ".1f"),
    ]


def percent(fraction: float | None) -> float | None:
    return None if fraction is None else 100 * fraction


def remarks(row: Row) -> str:
    """The error, or how many warnings and the first of them."""
    if row.error:
        return f"{'crashes' if row.crashed else 'refuses'}: {row.error}"
    if not row.warnings:
        return ""
    return f"{len(row.warnings)}: {row.warnings[0]}"


def chosen(only: str, lm: Path | None) -> list[BenchModel]:
    """The models that were asked for, all of them by default.

    Errors: SystemExit for a name that is none.
    """
    models = MODELS + ([language_model(lm)] if lm else [])
    names = [name for name in only.split(",") if name]
    known = {model.name: model for model in models}
    for name in names:
        if name not in known:
            raise SystemExit(f"--only: '{name}' is not one of {', '.join(known)}")
    return [known[name] for name in names] or models


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model names, comma separated")
    parser.add_argument("--passes", nargs="+", help="pipelines, instead of all")
    parser.add_argument("--seconds", type=float, default=1.0, help="to time a row for")
    parser.add_argument("--full", action="store_true", help="all evaluation rows")
    parser.add_argument("--train", action="store_true", help="training passes, too")
    parser.add_argument("--lm", type=Path, help="a language model, exported")
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    models = chosen(options.only, options.lm)
    texts = options.passes or pipelines(options.train)

    rows = []
    start = time.perf_counter()
    for row in rows_of(models, texts, options.full, options.seconds):
        rows.append(row)
        state = " DEFECT" if row.is_defect else ""
        spent = time.perf_counter() - start
        print(
            f"{spent:6.0f} s  {row.model}, {row.passes}, data {row.data}{state}",
            file=sys.stderr,
        )
        if options.json:
            options.json.write_text(json.dumps([asdict(row) for row in rows], indent=1))
    # as wide as a row may be: a row of Markdown is one line
    console = Console(width=1000)
    console.print(f"CPU: {this_cpu().label}", highlight=False)
    show(rows, console)
    defects = sum(row.is_defect for row in rows)
    console.print(f"{defects} defects in {len(rows)} rows", highlight=False)
    return 1 if defects else 0


if __name__ == "__main__":
    sys.exit(main())
