"""The table of `prune-channels` on real models: the metric without any training, size, and real
latency.

    python tools/dev/bench_channels.py [--only cifar10_resnet56,...]
                                       [--passes "prune-channels(ratio=0.4)"]

Each pipeline runs twice, with recovery and without. Latencies are taken in turns in one process;
`speed` is how many times faster than the whole model, with 1 and 2 threads at batch 1 and 16. Needs
the shared data (ONNX_OPT_DATA).
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

from bench_data import data_folder, source
from onnx_opt import optimize
from onnx_opt.runtime.bench import interleaved
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.metrics import evaluate, metric_named
from onnx_opt.runtime.session import open_session
from onnx_opt.runtime.worker import Worker
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

THREADS = (1, 2)
BATCHES = (1, 16)


@dataclass(frozen=True)
class Case:
    """A model, its data (callables of the shared loaders), the pipeline without its end, and the
    bars to reach.
    """

    model: str
    calibration: str
    evaluation: str
    metric: str
    passes: str
    metric_bar: float | None = None
    macs_bar: float | None = None
    speed_bar: float | None = None


CASES = [
    Case(
        "cifar10_resnet56",
        "cifar10_train",
        "cifar10_val",
        "top1",
        "prune-channels(scope=global, macs=0.476, least=0)",
        0.88,
        2.1,
        1.6,
    ),
    Case(
        "cifar10_resnet20",
        "cifar10_train",
        "cifar10_val",
        "top1",
        "prune-channels(scope=global, macs=0.5, least=0)",
    ),
    Case(
        "minilm_l6_v2",
        "stsb_calib",
        "stsb_val",
        "stsb_spearman",
        "prune-channels(ratio=0.3)",
        0.80,
    ),
]


@dataclass
class Row:
    """One case's figures. `macs` and `params`: how many times fewer. `speed`: by `threads x batch`,
    times faster.
    """

    model: str
    passes: str
    before: float
    pruned: float
    recovered: float
    macs: float
    params: float
    seconds: float
    speed: dict[str, float] = field(default_factory=dict)
    met: bool | None = None


def run_case(case: Case, passes: str, seconds: float, folder: Path) -> Row:
    """Prune with and without recovery; score all three models and time the first and the last."""
    path = data_folder() / "models" / f"{case.model}.onnx"
    files = [path, folder / "pruned.onnx", folder / "recovered.onnx"]
    for text, out in zip((_without_recovery(passes), passes), files[1:], strict=True):
        result = optimize(
            path, text, out=out, data=source(case.calibration), bench=False, force=True
        )
    step = next(step for step in result.passes if step.name == "prune-channels")
    stats: dict[str, Any] = step.stats
    before, pruned, recovered = (score(file, case) for file in files)
    row = Row(
        case.model,
        passes,
        before,
        pruned,
        recovered,
        stats["macs_before"] / stats["macs_after"],
        stats["params_before"] / stats["params_after"],
        step.seconds,
        speeds(path, files[-1], case, seconds),
    )
    row.met = meets(row, case)
    return row


def _without_recovery(passes: str) -> str:
    return passes.replace("prune-channels(", "prune-channels(recover=false, ", 1)


def score(path: Path, case: Case) -> float:
    """The case's metric: a built-in one, or one of the shared loaders."""
    metric = metric_named(case.metric if case.metric == "top1" else source(case.metric))
    with Worker(timeout=1800) as worker:
        session = open_session(worker, path)
        return evaluate(
            session, open_feeds(source(case.evaluation), session.inputs), metric
        ).value


def speeds(path: Path, pruned: Path, case: Case, seconds: float) -> dict[str, float]:
    """Times faster than the whole model, by `threads x batch`."""
    found = {}
    with Worker(timeout=1800) as worker:
        for threads in THREADS:
            sessions = [
                open_session(worker, file, threads=threads) for file in (path, pruned)
            ]
            feeds = list(
                islice(open_feeds(source(case.evaluation), sessions[0].inputs), 4)
            )
            for batch in BATCHES:
                head = [
                    {name: array[:batch] for name, array in each.feeds.items()}
                    for each in feeds
                ]
                timed = interleaved(sessions, [head] * 2, seconds=seconds)
                found[f"{threads} x {batch}"] = 1 / timed[1].ratio_to_first
            for session in sessions:
                session.close()
    return found


def meets(row: Row, case: Case) -> bool | None:
    """True if the row reaches every bar that the case sets, the speed's on one thread; None where
    it sets none.
    """
    bars = (
        (row.recovered, case.metric_bar),
        (row.macs, case.macs_bar),
        (min(v for k, v in row.speed.items() if k.startswith("1 x")), case.speed_bar),
    )
    set_bars = [(value, bar) for value, bar in bars if bar is not None]
    return all(value >= bar for value, bar in set_bars) if set_bars else None


def show(rows: Sequence[Row], console: Console) -> None:
    """The table, as Markdown; `bar` says whether the figures asked for were met."""
    configurations = [f"{t} x {b}" for t in THREADS for b in BATCHES]
    table = Table(
        "model",
        "passes",
        "metric",
        "pruned only",
        "recovered",
        "MACs",
        "params",
        "made in s",
        *(f"speed {each}" for each in configurations),
        "bar",
        box=MARKDOWN,
    )
    for r in rows:
        table.add_row(
            r.model,
            r.passes,
            f"{r.before:.4f}",
            f"{r.pruned:.4f}",
            f"{r.recovered:.4f}",
            f"/ {r.macs:.2f}",
            f"/ {r.params:.2f}",
            f"{r.seconds:.0f}",
            *(f"x {r.speed[each]:.2f}" for each in configurations),
            "-" if r.met is None else "met" if r.met else "MISSED",
        )
    console.print(table)
    console.print("speed: threads x batch")


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="model names, comma separated")
    parser.add_argument(
        "--passes",
        default="",
        help="one pruning pass with options, instead of each case's own",
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=10.0,
        help="how long to time each number of threads and batch",
    )
    parser.add_argument("--json", type=Path, help="write the rows there too")
    options = parser.parse_args()
    wanted = set(filter(None, options.only.split(",")))
    rows = []
    for case in CASES:
        if not wanted or case.model in wanted:
            with tempfile.TemporaryDirectory() as folder:
                rows.append(
                    run_case(
                        case,
                        options.passes or case.passes,
                        options.seconds,
                        Path(folder),
                    )
                )
    show(rows, Console(width=220))
    if options.json:
        options.json.write_text(json.dumps([asdict(r) for r in rows], indent=1))


if __name__ == "__main__":
    main()
