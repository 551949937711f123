"""The tables of `explain`: compressed models beside their originals, and the attribution loss.

    python tools/dev/bench_explain.py [--samples 100] [--steps 300] [--weight 1] [--only NAME …]

Each row: what was done to the model, its metric on the evaluation data where this has labels, the
agreement with the original by occlusion, the noise floor, their ratio, and the seconds it took.
`--weight`: of the attribution loss, which is compared with the same training without it.
`--pages FOLDER`: writes a page of each row there.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

import onnx_opt
from bench_data import MODELS, BenchModel, source
from both_classes import this_cpu
from rich.box import MARKDOWN
from rich.console import Console
from rich.table import Table

TRAINING = "prune(sparsity=0.8), finetune(steps={steps}{options})"


class Variant(NamedTuple):
    """A compressed model: by name, of which model, by which passes on which data."""

    name: str
    model: str
    passes: str
    data: str
    samples: int


def variants(samples: int, steps: int, weight: float) -> list[Variant]:
    """Rows of the table."""
    few = min(samples, 16)
    images = "cifar10_resnet20"
    attributed = f", attribution={weight:g}"
    without = TRAINING.format(steps=steps, options="")
    with_loss = TRAINING.format(steps=steps, options=attributed)
    train = "cifar10_train"
    return [
        Variant("int8", images, "simplify, quant", "cifar10_calib", samples),
        Variant("pruned", images, "prune(sparsity=0.8, fit=false)", train, samples),
        Variant("fitted", images, "prune(sparsity=0.8)", train, samples),
        Variant("trained", images, without, train, samples),
        Variant("attributed", images, with_loss, train, samples),
        Variant("minilm", "minilm_l6_v2", "simplify, quant", "stsb_calib", few),
        Variant("magika", "magika_v3_3", "simplify, quant", "file_bytes", few),
    ]


def row_of(variant: Variant, pages: Path | None) -> list[str]:
    """Make the model, and explain it beside its original."""
    (model,) = [each for each in MODELS if each.name == variant.model]
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder, f"{variant.name}.onnx")
        result = onnx_opt.optimize(
            model.file,
            variant.passes,
            data=source(variant.data),
            eval_data=source(model.evaluation),
            metric=_metric(model),
            out=out,
            bench=False,
            force=True,
        )
        began = time.perf_counter()
        found = onnx_opt.explain(
            model.file,
            out,
            source(model.evaluation),
            samples=variant.samples,
            report=None if pages is None else pages / f"{variant.name}.html",
        )
        seconds = time.perf_counter() - began
    metric = "" if result.metric is None else f"{result.metric['after']:.4f}"
    row = [variant.model, variant.passes, metric, str(found.samples)]
    for key in ("spearman", "topk"):
        row.append(f"{found.agreement[key]:.3f}")
        row.append(f"{found.noise_floor[key]:.3f}")
        row.append(f"{found.share[key]:.2f}")
    return [*row, f"{seconds:.0f}"]


def _metric(model: BenchModel) -> str | None:
    if model.metric in (None, "top1"):
        return model.metric
    return source(model.metric)


def main() -> None:
    """Print the table as rows come in, then as a whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=100)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--weight", type=float, default=1.0)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--pages", type=Path)
    chosen = parser.parse_args()
    columns = ("model", "passes", "metric", "samples")
    figures = ("Spearman", "floor", "share", "first 10 %", "floor", "share", "seconds")
    table = Table(*columns, *figures, box=MARKDOWN, title=this_cpu().label)
    for variant in variants(chosen.samples, chosen.steps, chosen.weight):
        if chosen.only and variant.name not in chosen.only:
            continue
        row = row_of(variant, chosen.pages)
        print(" | ".join(row), flush=True)
        table.add_row(*row)
    Console(width=200).print(table)


if __name__ == "__main__":
    main()
