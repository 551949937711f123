"""The study behind the words for a drift, and behind the floor: `docs/drift.md` has its table.

    python tools/dev/study_floor.py [--only MODEL,…] [--passes TEXT …] [--lm MODEL.onnx]

Every model of the shared data (ONNX_OPT_DATA) is damaged more and more, by pruning without a fit
and by few bits, without data. A row has the metric before and after, and SQNR and clear choices
alike on rows that no pass has seen, beside the same on made-up feeds. `word` is that of real data;
`refused on` says which feeds would have kept the result from being written.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench_data import MODELS, BenchModel, language_model, unseen
from bench_measure import ROWS_DRIFT, Isolated, cell, first_line, score
from onnx_opt import OnnxOptError, optimize
from onnx_opt.runtime.choices import Choices
from onnx_opt.runtime.compare import Drift
from onnx_opt.runtime.drift_words import ON_DATA, ON_SYNTHETIC, Bounds, worst_word
from onnx_opt.runtime.session import Session, open_session
from onnx_opt.runtime.worker import Worker
from onnx_opt.tools._run.drift import (
    Arrays,
    Outputs,
    choices_of,
    meter,
    synthetic_batches,
)
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

SPARSITIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
DAMAGES = (
    *(f"prune(sparsity={sparsity}, fit=false)" for sparsity in SPARSITIES),
    "quant(bits=4, measure=false)",
    "quant(bits=3, measure=false)",
    "quant(bits=2, measure=false)",
    "quant(binary, measure=false)",
)
ROWS = 300
SLOW = {"efficientnet_lite0": 100, "minilm_l6_v2": 128, "ch_PP-OCRv4_rec_infer": 50}
"""Rows that a metric is measured on, and of models that take long."""


@dataclass(frozen=True)
class Job:
    """A model, the pipelines that damage it, and the rows its metric is measured on."""

    model: BenchModel
    damages: Sequence[str]


@dataclass(frozen=True)
class Reading:
    """Drift of a result on one kind of feeds: of all outputs together, and of each."""

    overall: Drift
    parts: dict[str, Drift]
    choices: dict[str, Choices]

    @property
    def agreement(self) -> float | None:
        """Clear choices alike, of the first output that makes some; None where none does."""
        found = [each.agreement for each in self.choices.values()]
        return next((each for each in found if each is not None), None)

    def misses(self, bounds: Bounds) -> bool:
        """True if a run with such feeds would refuse the result."""
        return bounds.problem(self.parts, self.choices) is not None


@dataclass(frozen=True)
class Row:
    """One damaged model; `error`: why there is none."""

    model: str
    passes: str
    before: float | None = None
    after: float | None = None
    real: Reading | None = None
    made_up: Reading | None = None
    error: str = ""


def rows_of(job: Job) -> list[Row]:
    """Damage a model in every way, and measure what is left."""
    model = job.model
    rows = SLOW.get(model.name, ROWS)
    with Worker(timeout=1800) as worker, tempfile.TemporaryDirectory() as folder:
        before = score(worker, model.file, model, rows)
        read = reader(worker, model)
        out = Path(folder, "damaged.onnx")
        found = []
        for passes in job.damages:
            try:
                optimize(model.file, passes, out=out, verify="never", bench=False)
            except OnnxOptError as error:
                found.append(Row(model.name, passes, error=first_line(error)))
                continue
            real, made_up = read(out)
            after = score(worker, out, model, rows)
            found.append(Row(model.name, passes, before, after, real, made_up))
    return found


def reader(
    worker: Worker, model: BenchModel
) -> Callable[[Path], tuple[Reading, Reading]]:
    """Readings of a file against the model, on real and on made-up feeds."""
    original = open_session(worker, model.file)
    real = [feeds for feeds, _ in unseen(model, ROWS_DRIFT)]
    made_up = synthetic_batches(original, seed=0)
    expected = outputs_on(original, real)
    original.close()

    def read(path: Path) -> tuple[Reading, Reading]:
        session = open_session(worker, path)
        try:
            batches, outputs = made_up
            return (
                reading(expected, outputs_on(session, real)),
                reading(outputs, outputs_on(session, batches)),
            )
        finally:
            session.close()

    return read


def outputs_on(session: Session, batches: Sequence[Arrays]) -> Outputs:
    return [session.run(feeds) for feeds in batches]


def reading(expected: Outputs, got: Outputs) -> Reading:
    drifts = meter(expected, got)
    choices = choices_of(expected, got)
    return Reading(drifts.overall(), drifts.per_output(), choices)


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, as Markdown."""
    table = Table(
        "model",
        "passes",
        "metric before",
        "after",
        "SQNR dB",
        "cosine",
        "choices alike",
        "made up: SQNR dB",
        "word",
        "refused on",
        box=MARKDOWN,
    )
    for row in rows:
        table.add_row(row.model, row.passes, *figures(row))
    console.print(table)


def figures(row: Row) -> list[str]:
    """The numbers of a row, as text."""
    real, made_up = row.real, row.made_up
    if real is None or made_up is None:
        return [row.error]
    refused = []
    if real.misses(ON_DATA):
        refused.append("data")
    if made_up.misses(ON_SYNTHETIC):
        refused.append("made-up feeds")
    return [
        cell(row.before, ".3f"),
        cell(row.after, ".3f"),
        cell(real.overall.sqnr_db, ".1f"),
        cell(real.overall.cosine, ".3f"),
        cell(real.agreement, ".2f"),
        cell(made_up.overall.sqnr_db, ".1f"),
        worst_word(real.parts, real.choices, ON_DATA) or "",
        ", ".join(refused),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model names, comma separated")
    parser.add_argument("--passes", nargs="+", help="damages, instead of all")
    parser.add_argument("--lm", type=Path, help="a language model, exported")
    options = parser.parse_args()
    models = MODELS + ([language_model(options.lm)] if options.lm else [])
    names = options.only.split(",") if options.only else [m.name for m in models]
    rows: list[Row] = []
    with Isolated() as isolated:
        for model in models:
            if model.name in names:
                job = Job(model, options.passes or DAMAGES)
                rows += isolated.run(rows_of, job)
                print(f"{model.name}: {len(rows)} rows", file=sys.stderr)
    # as wide as a row may be: a row of Markdown is one line
    show(rows, Console(width=1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
