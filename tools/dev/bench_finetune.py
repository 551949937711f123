"""The table of `finetune` and `distill` on real models: top-1 by ONNX Runtime on the written file, before and after.

    python tools/dev/bench_finetune.py [--only prune80,ternary,…] [--minutes 20] [--steps N] [--threads 2] [--json FILE]

Learns from 10,000 training images of CIFAR-10 without their labels; measures on 5,000 of the test set. Needs torch and
the shared data (ONNX_OPT_DATA). `--minutes` is the budget of each case; the bars were set for 20 on two idle cores.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from bench_data import data_folder
from onnx_opt import optimize
from onnx_opt.tools.commands.distill import as_pass, initialized
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table


@dataclass(frozen=True)
class Case:
    """`passes` with BUDGET in them. `teacher`: of a student drawn anew. `bar`: the top-1 that it must reach."""

    name: str
    model: str
    passes: str
    bar: float | None = None
    teacher: str | None = None


IMAGES = "flip=true, shift=2"
CASES = [
    Case("prune80", "cifar10_resnet20",
         "prune(sparsity=0.8, allocation=lamp), finetune(recover, BUDGET, labels=0)", 0.905),
    Case("prune90", "cifar10_resnet20",
         "prune(sparsity=0.9, allocation=lamp), finetune(recover, BUDGET, labels=0)", 0.885),
    Case("ternary", "cifar10_resnet20",
         "quant(ternary), finetune(block, labels=0), finetune(qad, BUDGET, rate=0.01, labels=0)", 0.895),
    Case("binary", "cifar10_resnet20",
         "quant(binary), finetune(block, labels=0), finetune(qad, BUDGET, rate=0.01, labels=0)", 0.87),
    Case("channels", "cifar10_resnet56",
         "prune-channels(ratio=0.5), finetune(recover, BUDGET, labels=0)", 0.92),
    Case("labels_only", "cifar10_resnet20_bn", f"BUDGET, labels=1, distill=false, watch=labels, {IMAGES}",
         teacher="cifar10_resnet56"),
    Case("distill_t1", "cifar10_resnet20_bn", f"BUDGET, labels=0, temperature=1, {IMAGES}", teacher="cifar10_resnet56"),
    Case("distill_t4", "cifar10_resnet20_bn", f"BUDGET, labels=0, temperature=4, {IMAGES}", teacher="cifar10_resnet56"),
]


@dataclass
class Row:
    """One case's figures."""

    name: str
    before: float
    after: float
    bar: float | None
    steps: int
    seconds: float


def run(case: Case, budget: str, threads: int) -> Row:
    """Do one case, and measure the file that it writes."""
    folder = data_folder()
    loaders, models = folder / "loaders.py", folder / "models"
    path = models / f"{case.model}.onnx"
    text = case.passes.replace("BUDGET", f"{budget}, threads={threads}").replace("block,", f"block, threads={threads},")
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        result = optimize(
            initialized(path, 0) if case.teacher else path, as_pass(text) if case.teacher else text,
            teacher=models / f"{case.teacher}.onnx" if case.teacher else None, out=Path(scratch, "out.onnx"),
            data=f"{loaders}:cifar10_train", metric="top1", eval_data=f"{loaders}:cifar10_val", bench=False)
        seconds = time.perf_counter() - start
    assert result.metric is not None
    steps = int(result.passes[-1].stats.get("steps", 0))
    return Row(case.name, result.metric["before"], result.metric["after"], case.bar, steps, seconds)


def table_of(rows: list[Row]) -> Table:
    """As markdown."""
    table = Table(box=MARKDOWN)
    for head in ("case", "top-1 before", "after", "bar", "steps", "minutes"):
        table.add_column(head)
    for row in rows:
        bar = "" if row.bar is None else f"{row.bar:.1%} {'met' if row.after >= row.bar else 'MISSED'}"
        table.add_row(row.name, f"{row.before:.2%}", f"{row.after:.2%}", bar, str(row.steps), f"{row.seconds / 60:.1f}")
    return table


def main() -> None:
    """Run the chosen cases, printing each as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default="", help="names of cases, separated by commas")
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--steps", type=int, default=0, help="a budget of steps in place of minutes")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = set(filter(None, arguments.only.split(",")))
    budget = f"steps={arguments.steps}" if arguments.steps else f"minutes={arguments.minutes}"
    rows = []
    for case in CASES:
        if not chosen or case.name in chosen:
            rows.append(run(case, budget, arguments.threads))
            print(rows[-1], flush=True)
    Console(width=140).print(table_of(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
