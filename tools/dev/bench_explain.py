"""The tables of `explain`: compressed models beside their originals, and the attribution loss.

    python tools/dev/bench_explain.py [--samples 100] [--steps 150] [--only NAME …]
    python tools/dev/bench_explain.py --attribution [--weights 3] [--seeds 3] [--samples 200]

Each row: what was done to the model, its metric on the evaluation data where this has labels, the
agreement with the original by occlusion, the noise floor, their ratio, and the seconds it took.
`--pages FOLDER`: writes a page of each row there.

`--attribution`: ResNet-20 pruned to 80 % without a fit, then trained with and without the
attribution loss, for each seed; then means over the seeds. The same images are explained each time.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from statistics import fmean
from typing import NamedTuple

import onnx_opt
from bench_data import MODELS, BenchModel, source
from live_table import show
from onnx_opt.tools.facts import Facts

COLUMNS = (
    "model",
    "passes",
    "metric",
    "samples",
    "Spearman",
    "floor",
    "share",
    "first 10 %",
    "floor",
    "share",
    "seconds",
)

TRAINED = "prune(sparsity=0.8), finetune(steps={steps})"

ATTRIBUTED = (
    "prune(sparsity=0.8, fit=false), "
    "finetune(steps={steps}, features=[], attribution={weight:g})"
)
"""Pipeline of the attribution loss: what fits or matches features keeps most of it by itself."""


class Variant(NamedTuple):
    """A compressed model: by name, of which model, by which passes on which data."""

    name: str
    model: str
    passes: str
    data: str
    samples: int
    seed: int = 0


class ExplainedVariant(NamedTuple):
    """A compressed model's metric, its agreement with the original, and the seconds that took."""

    metric: float | None
    found: Facts
    seconds: float


def variants(samples: int, steps: int) -> list[Variant]:
    """Rows of the table."""
    few = min(samples, 16)
    images = "cifar10_resnet20"
    trained = TRAINED.format(steps=steps)
    train = "cifar10_train"
    return [
        Variant("int8", images, "simplify, quant", "cifar10_calib", samples),
        Variant("pruned", images, "prune(sparsity=0.8, fit=false)", train, samples),
        Variant("fitted", images, "prune(sparsity=0.8)", train, samples),
        Variant("trained", images, trained, train, samples),
        Variant("minilm", "minilm_l6_v2", "simplify, quant", "stsb_calib", few),
        Variant("magika", "magika_v3_3", "simplify, quant", "file_bytes", few),
    ]


def explained(variant: Variant, pages: Path | None = None) -> ExplainedVariant:
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
            seed=variant.seed,
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
    metric = None if result.metric is None else result.metric["after"]
    return ExplainedVariant(metric, found, seconds)


def row_of(variant: Variant, pages: Path | None) -> list[str]:
    """Cells of a model."""
    made = explained(variant, pages)
    found = made.found
    metric = "" if made.metric is None else f"{made.metric:.4f}"
    row = [variant.model, variant.passes, metric, str(found.samples)]
    for key in ("spearman", "topk"):
        row.append(f"{found.agreement[key]:.3f}")
        row.append(f"{found.noise_floor[key]:.3f}")
        row.append(f"{found.share[key]:.2f}")
    return [*row, f"{made.seconds:.0f}"]


def attribution_rows(
    samples: int, steps: int, weights: list[float], seeds: int
) -> Iterator[list[str]]:
    """Yield a row for each training, then the means of each weight over the seeds."""
    figures: dict[float, list[tuple[float, float, float]]] = {}
    for seed in range(seeds):
        for weight in [0.0, *weights]:
            passes = ATTRIBUTED.format(steps=steps, weight=weight)
            variant = Variant(
                "attribution",
                "cifar10_resnet20",
                passes,
                "cifar10_train",
                samples,
                seed,
            )
            made = explained(variant)
            agreement = made.found.agreement
            own = (made.metric or 0.0, agreement["spearman"], agreement["topk"])
            figures.setdefault(weight, []).append(own)
            yield [f"{weight:g}", str(seed), *_cells(own)]
    for weight, own in figures.items():
        metrics, spearmans, shares = zip(*own, strict=True)
        means = (fmean(metrics), fmean(spearmans), fmean(shares))
        yield [f"{weight:g}", "mean", *_cells(means)]


def _cells(figures: tuple[float, float, float]) -> list[str]:
    metric, spearman, share = figures
    return [f"{metric:.4f}", f"{spearman:.3f}", f"{share:.3f}"]


def _metric(model: BenchModel) -> str | None:
    if model.metric in (None, "top1"):
        return model.metric
    return source(model.metric)


def main() -> None:
    """Print the table as rows come in, then as a whole."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=0)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--only", nargs="*", default=[])
    parser.add_argument("--pages", type=Path)
    parser.add_argument("--attribution", action="store_true")
    parser.add_argument("--weights", type=float, nargs="*", default=[3.0])
    parser.add_argument("--seeds", type=int, default=3)
    chosen = parser.parse_args()
    if chosen.attribution:
        columns = ("attribution", "seed", "top-1", "Spearman", "first 10 %")
        rows = attribution_rows(
            chosen.samples or 200,
            chosen.steps,
            chosen.weights,
            chosen.seeds,
        )
        show(columns, rows)
        return
    every = variants(chosen.samples or 100, chosen.steps)
    asked = [each for each in every if not chosen.only or each.name in chosen.only]
    show(COLUMNS, (row_of(variant, chosen.pages) for variant in asked))


if __name__ == "__main__":
    main()
