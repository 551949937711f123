"""The table of `finetune` and `distill` on real models: accuracy by ONNX Runtime on the written
file, before and after.

    python tools/dev/bench_finetune.py [--only prune80,ternary,…] [--budget TEXT] [--threads 2]
                                       [--json FILE]

Images: learns from 10,000 training images of CIFAR-10 without their labels, measures top-1 on 5,000
of the test set. Sentences: learns from every other batch of STS-B's dev pairs, measures Spearman's
correlation on the rest. The budget and the threads of each case are in the table; `--budget
steps=100` and `--threads 2` set them for all. Needs torch and the shared data (ONNX_OPT_DATA).
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

HERE = Path(__file__).resolve().parent


@dataclass(frozen=True)
class Data:
    """Data to learn from and to measure on: callables of a file, and a metric."""

    train: str
    evaluation: str
    metric: str


@dataclass(frozen=True)
class Case:
    """`passes` with BUDGET in them, which stands for `budget` and the threads, or with THREADS
    alone.

    `teacher`: of a student drawn anew. `bar`: what the metric must reach; `drop`: what it may lose
    against float; `beats`: another case, run before it, and by how much. `threads`: of torch, on a
    machine that does nothing else.
    """

    name: str
    model: str
    passes: str
    budget: str
    bar: float | None = None
    drop: float | None = None
    share: float | None = None
    teacher: str | None = None
    sentences: bool = False
    beats: tuple[str, float] | None = None
    threads: int = 1


SHOWN = "labels=0, flip=true, shift=4"
MIXED = f"{SHOWN}, cutmix=1"
MATCHED = f"{SHOWN}, checks=5, features=[auto]"
FROM = "cifar10_resnet56"
HARSHER = 'layers=["layer2.[2-8].*=codebook:1"]'
"""Layers of ResNet-56 that have one bit as well, though they are among the smallest."""

CASES = [
    Case(
        "prune80",
        "cifar10_resnet20",
        f"finetune(recover, BUDGET, rate=0.02, batch=64, {MATCHED}, schedule=[0.6, 0.8])",
        "minutes=18.5",
        0.905,
        threads=2,
    ),
    Case(
        "prune90",
        "cifar10_resnet20",
        f"finetune(recover, BUDGET, rate=0.02, batch=64, {MATCHED}, schedule=[0.6, "
        "0.75, 0.85, 0.9])",
        "minutes=27",
        0.885,
    ),
    Case(
        "w4a4",
        "cifar10_resnet20",
        "quant(bits=4, activation_bits=4), finetune(block, BUDGET)",
        "steps=500",
        0.90,
    ),
    Case(
        "ternary",
        "cifar10_resnet20",
        f"quant(ternary), finetune(block, THREADS), finetune(qad, BUDGET, {SHOWN})",
        "minutes=10",
        0.895,
    ),
    Case(
        "binary",
        "cifar10_resnet20",
        f"quant(binary), finetune(qad, BUDGET, rate=0.02, {MIXED})",
        "minutes=18.5",
        0.87,
    ),
    Case(
        "channels",
        "cifar10_resnet56",
        "prune-channels(scope=global, macs=0.476, least=0), "
        f"finetune(recover, BUDGET, rate=0.01, batch=64, {MATCHED})",
        "minutes=55",
        0.92,
        threads=2,
    ),
    Case(
        "deep20",
        "cifar10_resnet20",
        "quant(codebook, bits=1), finetune(BUDGET, rate=0.015, labels=0, cutmix=1), "
        "strip(names=short)",
        "minutes=43",
        drop=0.01,
        share=1 / 20,
        threads=2,
    ),
    Case(
        "deep56",
        "cifar10_resnet56",
        f"quant(codebook, bits=1, {HARSHER}), "
        "finetune(BUDGET, rate=0.005, labels=0, cutmix=0), "
        "strip(names=short)",
        "minutes=30",
        drop=0.01,
        share=1 / 25,
        threads=2,
    ),
    Case(
        "labels_only",
        "cifar10_resnet20_bn",
        "BUDGET, labels=1, distill=false, watch=labels, flip=true, shift=4, cutmix=1",
        "steps=6000",
        teacher=FROM,
    ),
    Case(
        "distill_t1",
        "cifar10_resnet20_bn",
        f"BUDGET, temperature=1, {MIXED}",
        "steps=6000",
        teacher=FROM,
        beats=("labels_only", 0.015),
    ),
    Case(
        "distill_t4",
        "cifar10_resnet20_bn",
        f"BUDGET, temperature=4, {MIXED}",
        "steps=6000",
        teacher=FROM,
        beats=("labels_only", 0.015),
    ),
    Case(
        "minilm",
        "minilm_l6_v2",
        "prune(sparsity=0.5, fit=false), quant, finetune(qad, BUDGET)",
        "minutes=5",
        drop=0.012,
        sentences=True,
    ),
]


@dataclass
class Row:
    """One case's figures. `share`: bytes of the float file's; `most`: as many may be. `latency`:
    a ratio, where bytes are asked for. `steps` (of block: 0), `scores`: of the last training, at
    each check on the rows held out. `whole`: seconds of everything, passes, checks and measuring
    included.
    """

    name: str
    float_model: float
    after: float
    least: float | None
    share: float
    most: float | None
    latency: float | None
    steps: int
    whole: float
    scores: str


def data_of(case: Case) -> Data:
    """The feeds of a case."""
    shared = data_folder() / "loaders.py"
    if case.sentences:
        return Data(
            f"{HERE}/bench_data.py:stsb_half",
            f"{HERE}/bench_data.py:stsb_other_half",
            f"{shared}:stsb_spearman",
        )
    return Data(f"{shared}:cifar10_train", f"{shared}:cifar10_val", "top1")


def run(case: Case, budget: str, threads: int) -> Row:
    """Do one case, and measure the file that it writes."""
    models, data = data_folder() / "models", data_of(case)
    path = models / f"{case.model}.onnx"
    text = case.passes.replace("BUDGET", f"{budget}, THREADS").replace(
        "THREADS", f"threads={threads}"
    )
    with tempfile.TemporaryDirectory() as scratch:
        start = time.perf_counter()
        result = optimize(
            initialized(path, 0) if case.teacher else path,
            as_pass(text) if case.teacher else text,
            teacher=models / f"{case.teacher}.onnx" if case.teacher else None,
            out=Path(scratch, "out.onnx"),
            data=data.train,
            metric=data.metric,
            eval_data=data.evaluation,
            bench=case.share is not None,
        )
        seconds = time.perf_counter() - start
    assert result.metric is not None
    before, after = result.metric["before"], result.metric["after"]
    least = before - case.drop if case.drop is not None else case.bar
    trainings = [each.stats for each in result.passes if "scores" in each.stats]
    stats = trainings[-1] if trainings else {}
    return Row(
        case.name,
        before,
        after,
        least,
        (result.output.bytes or 0) / (result.input.bytes or 1),
        case.share,
        None if result.latency is None else result.latency.median,
        int(stats.get("steps", 0)),
        seconds,
        str(stats.get("scores", "")),
    )


def table_of(rows: list[Row]) -> Table:
    """As markdown."""
    table = Table(box=MARKDOWN)
    heads = ("case", "before", "after", "asked", "size", "latency", "steps", "minutes")
    for head in heads:
        table.add_column(head)
    for row in rows:
        asked = (
            ""
            if row.least is None
            else f"{row.least:.4f} {'met' if row.after >= row.least else 'MISSED'}"
        )
        size = f"1/{1 / row.share:.1f}"
        if row.most is not None:
            size += f" {'met' if row.share <= row.most else 'MISSED'}"
        table.add_row(
            row.name,
            f"{row.float_model:.4f}",
            f"{row.after:.4f}",
            asked,
            size,
            "" if row.latency is None else f"{row.latency:.2f}",
            str(row.steps),
            f"{row.whole / 60:.1f}",
        )
    return table


def main() -> None:
    """Run the chosen cases, printing each as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--only", default="", help="names of cases, separated by commas"
    )
    parser.add_argument(
        "--budget",
        help="of each training, in place of the table's: minutes=5, steps=100",
    )
    parser.add_argument(
        "--threads", type=int, default=0, help="of torch; 0: those of the table"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    chosen = set(filter(None, arguments.only.split(",")))
    rows = []
    for case in CASES:
        if not chosen or case.name in chosen:
            row = run(
                case, arguments.budget or case.budget, arguments.threads or case.threads
            )
            other = next(
                (r for r in rows if case.beats and r.name == case.beats[0]), None
            )
            if case.beats and other is not None:
                row.least = other.after + case.beats[1]
            rows.append(row)
            print(rows[-1], flush=True)
    Console(width=140).print(table_of(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
