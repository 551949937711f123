"""The table of recovery with one word: `finetune` by its own choices, and without changed images.

    python tools/dev/bench_recovery.py [--only photographs,digits,…] [--seeds 3] [--steps N]
                                       [--threads 1] [--chosen-alone] [--json FILE]

Each case prunes a model on unlabelled data and trains it twice: as `finetune` chooses, and with
everything turned off that changes images or matches values inside. The metric is of samples that
neither pass has seen. `--steps`: the budget of both, in place of the one that is chosen (which is
what is measured without it). `--chosen-alone`: leave the second training out. CPU seconds are of
all threads and processes; on an idle machine with two cores the minutes are about half of them.
Needs torch, scikit-learn (digits), and the shared data (ONNX_OPT_DATA).
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import statistics
import tempfile
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from bench_data import data_folder, shared_batches, source
from numpy.typing import NDArray
from onnx_opt import optimize
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

Array = NDArray[Any]
Feeds = dict[str, Array]
Labelled = tuple[Feeds, Array]

PLAIN = "flip=false, shift=0, mixup=0, cutmix=0, features=[]"
"""Options that leave images as they are, and values inside alone."""

LINES = 100
"""Text lines to learn from; the other half of the shared ones are judged by."""

DIGIT_SIDE = 24
"""Pixels of a digit: 8 x 8 images, each pixel 3 x 3 times, so that only the teacher tells that
they are no photographs."""


@dataclass(frozen=True)
class Task:
    """A model, data to learn from without labels, and labelled data to judge by."""

    model: Path
    samples: Callable[[], Iterable[Feeds]]
    unseen: Callable[[], Iterable[Labelled]]
    metric: str


@dataclass(frozen=True)
class Case:
    """`pipeline`: passes with FINETUNE in them. `make`: the task, with files in a folder."""

    name: str
    pipeline: str
    make: Callable[[Path], Task]


@dataclass(frozen=True)
class Row:
    """Figures of one training.

    `metric`: of the float model, behind the pass before `finetune`, behind it, and at the end.
    `seconds`, `cpu_seconds`: of the whole run. `chosen`: options, as the account tells them.
    """

    case: str
    kind: str
    seed: int
    steps: int
    seconds: float
    cpu_seconds: float
    original: float
    pruned: float
    trained: float
    end: float
    chosen: str
    warnings: tuple[str, ...]


# data


def _photographs(folder: Path) -> Task:
    return Task(
        data_folder() / "models" / "cifar10_resnet20.onnx",
        lambda: _without_labels(shared_batches("cifar10_train")),
        lambda: shared_batches("cifar10_val"),
        "top1",
    )


def _lines(folder: Path) -> Task:
    lines = [*shared_batches("ocr_calib"), *shared_batches("ocr_val")]
    # batches of ten lines
    half = LINES // 10
    return Task(
        data_folder() / "models" / "ch_PP-OCRv4_rec_infer.onnx",
        lambda: _without_labels(lines[:half]),
        lambda: lines[half:],
        source("ocr_exact"),
    )


def _sentences(folder: Path) -> Task:
    batches = list(shared_batches("stsb_val"))
    # pairs of batches: the left sentences, then the right ones
    pairs = [batches[start : start + 2] for start in range(0, len(batches), 2)]
    learned = list(itertools.chain(*pairs[::2]))
    judged = list(itertools.chain(*pairs[1::2]))
    return Task(
        data_folder() / "models" / "minilm_l6_v2.onnx",
        lambda: _without_labels(learned),
        lambda: judged,
        source("stsb_spearman"),
    )


def _digits(folder: Path) -> Task:
    """Coloured digits, and a net that is trained on them here."""
    from sklearn.datasets import load_digits

    images, labels = load_digits(return_X_y=True)
    large = images.reshape(-1, 8, 8).repeat(3, axis=1).repeat(3, axis=2) / 16
    random = np.random.default_rng(0)
    # each digit in a dark colour of its own on a light one: channels that are no copies
    ink = random.uniform(0.0, 0.3, size=(len(large), 3, 1, 1))
    paper = random.uniform(0.5, 1.0, size=(len(large), 3, 1, 1))
    shape = large[:, None]
    clean = paper + (ink - paper) * shape
    # grain: two colours alone are one pattern, which would be found to be no photograph
    grain = random.normal(scale=0.1, size=clean.shape)
    coloured = (clean + grain).astype(np.float32)
    order = random.permutation(len(large))
    learned, judged = np.array_split(order, 2)
    path = folder / "digits.onnx"
    _train_digits(coloured[learned], labels[learned], path)

    def batches(rows: Array) -> Iterator[Labelled]:
        for part in np.array_split(rows, len(rows) // 64):
            yield {"image": coloured[part]}, labels[part].astype(np.int64)

    return Task(
        path,
        lambda: _without_labels(batches(learned)),
        lambda: batches(judged),
        "top1",
    )


def _train_digits(images: Array, labels: Array, path: Path) -> None:
    import torch
    from torch import nn

    torch.manual_seed(0)
    before = torch.get_num_threads()
    # so small a net is slower on several
    torch.set_num_threads(1)
    layers = [
        nn.Conv2d(3, 32, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(32, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Conv2d(64, 64, 3, 2, 1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(64 * 9, 10),
    ]
    net = nn.Sequential(*layers)
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, weight_decay=0.01)
    x = torch.from_numpy(images)
    y = torch.from_numpy(labels).long()
    for _ in range(40):
        for rows in torch.randperm(len(x)).split(64):
            loss = nn.functional.cross_entropy(net(x[rows]), y[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    torch.set_num_threads(before)
    net.eval()
    program = torch.onnx.export(
        net,
        (torch.zeros(2, 3, DIGIT_SIDE, DIGIT_SIDE),),
        input_names=["image"],
        output_names=["logits"],
        dynamic_shapes=({0: torch.export.Dim("n")},),
        dynamo=True,
    )
    assert program is not None
    program.save(path)


def _without_labels(batches: Iterable[Labelled]) -> Iterator[Feeds]:
    return (feeds for feeds, _ in batches)


CASES = [
    Case("photographs", "prune(sparsity=0.8), FINETUNE, quant", _photographs),
    Case("digits", "prune(sparsity=0.95), FINETUNE, quant", _digits),
    Case("lines", "prune(sparsity=0.5), FINETUNE", _lines),
    Case("sentences", "prune(sparsity=0.6), FINETUNE", _sentences),
]


# trainings


def run(case: Case, task: Task, kind: str, options: str, seed: int) -> Row:
    """Prune and train once; measure on what was not seen."""
    passes = case.pipeline.replace("FINETUNE", f"finetune({options})")
    with tempfile.TemporaryDirectory() as folder:
        result = optimize(
            task.model,
            passes,
            out=Path(folder, "out.onnx"),
            data=task.samples,
            eval_data=task.unseen,
            metric=task.metric,
            metric_each=True,
            bench=False,
            floor="none",
            seed=seed,
        )
    assert result.metric is not None
    index = [step.name for step in result.passes].index("finetune")
    step = result.passes[index]
    after = [one.metric for one in result.passes]
    told = [f"{one['where']}={one['choice']}" for one in step.chosen]
    return Row(
        case=case.name,
        kind=kind,
        seed=seed,
        steps=int(step.stats.get("steps", 0)),
        seconds=result.time.seconds,
        cpu_seconds=result.time.cpu_seconds,
        original=result.metric["before"],
        pruned=after[index - 1],
        trained=after[index],
        end=result.metric["after"],
        chosen=", ".join(told),
        warnings=tuple(result.warnings),
    )


def table_of(rows: list[Row]) -> Table:
    """Means over seeds as markdown; `spread`: from the least to the largest at the end."""
    table = Table(box=MARKDOWN)
    heads = (
        "case",
        "finetune",
        "seeds",
        "steps",
        "minutes",
        "CPU seconds",
        "float",
        "pruned",
        "trained",
        "at the end",
        "spread",
    )
    for head in heads:
        table.add_column(head)
    for _, group in itertools.groupby(rows, key=lambda row: (row.case, row.kind)):
        some = list(group)
        ends = [row.end for row in some]
        table.add_row(
            some[0].case,
            some[0].kind,
            str(len(some)),
            f"{_mean(some, 'steps'):.0f}",
            f"{_mean(some, 'seconds') / 60:.1f}",
            f"{_mean(some, 'cpu_seconds'):.0f}",
            f"{some[0].original:.4f}",
            f"{_mean(some, 'pruned'):.4f}",
            f"{_mean(some, 'trained'):.4f}",
            f"{_mean(some, 'end'):.4f}",
            f"{max(ends) - min(ends):.4f}",
        )
    return table


def _mean(rows: list[Row], name: str) -> float:
    return statistics.fmean(getattr(row, name) for row in rows)


def main() -> None:
    """Run the chosen cases, printing each training as it is done."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--only", default="", help="names of cases, with commas")
    parser.add_argument("--seeds", type=int, default=1, help="trainings of each kind")
    parser.add_argument("--steps", type=int, default=0, help="budget; 0: as chosen")
    parser.add_argument("--threads", type=int, default=0, help="of torch; 0: all")
    parser.add_argument(
        "--chosen-alone", action="store_true", help="no training without choices"
    )
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    names = set(filter(None, arguments.only.split(",")))
    budget = f"threads={arguments.threads}"
    if arguments.steps:
        budget += f", steps={arguments.steps}"
    kinds = {"as it chooses": budget}
    if not arguments.chosen_alone:
        kinds["plain"] = f"{budget}, {PLAIN}"
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for case in CASES:
            if names and case.name not in names:
                continue
            make = functools.partial(run, case, case.make(Path(folder)))
            for kind, options in kinds.items():
                for seed in range(arguments.seeds):
                    rows.append(make(kind, options, seed))
                    print(rows[-1], flush=True)
    Console(width=160).print(table_of(rows))
    if arguments.json:
        arguments.json.write_text(json.dumps([asdict(row) for row in rows], indent=2))


if __name__ == "__main__":
    main()
