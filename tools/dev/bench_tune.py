"""The table of `tune`: its result beside uniform settings of ours that keep the same budget.

    python tools/dev/bench_tune.py [--models NAME …] [--minutes 15] [--objective size|latency]
        [--recover MINUTES]

Budgets: 0.005 of top-1 and of Spearman, 0.01 of exact lines of OCR. Each uniform setting and the
tuned model are judged on either half of the evaluation data: the one that the search sees, by which
one would choose among settings, and the other one, that only the verdict sees.
"""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path

import onnx_opt
from bench_data import MODELS, BenchModel, source
from live_table import show
from onnx_opt import OnnxOptError
from onnx_opt.runtime.feeds import Feeds, open_feeds
from onnx_opt.runtime.held_out import cut, halves
from onnx_opt.runtime.metrics import METRIC_NAMES
from onnx_opt.tools._run.figures import input_infos
from onnx_opt.tools.tune import TuneResult

BUDGETS = {
    "cifar10_resnet20": 0.005,
    "cifar10_resnet56": 0.005,
    "efficientnet_lite0": 0.005,
    "minilm_l6_v2": 0.005,
    "ch_PP-OCRv4_rec_infer": 0.01,
}
"""Most that the metric may drop, by model."""

UNIFORM = {}
"""Settings that are the same for all layers, by what is to be small."""

UNIFORM["size"] = (
    "simplify, quant, strip",
    "simplify, quant(bits=4), strip",
    "simplify, quant(palette, bits=4), strip",
    "simplify, quant(palette, bits=3), strip",
    "simplify, prune, quant, strip",
    "simplify, prune, quant(palette, bits=4), strip",
    "simplify, prune(sparsity=0.5), quant(palette, bits=3), strip",
)

UNIFORM["latency"] = (
    "simplify, quant, strip",
    "simplify, prune-channels, quant, strip",
    "simplify, prune-channels(min_sqnr=20), quant, strip",
    "simplify, prune-channels(ratio=0.25), quant, strip",
)

Row = tuple[str, str, float, float | None, float | None, float | None]
"""Model, setting, share of the bytes, drops on the seen half and the unseen, latency."""


def tuned(
    model: BenchModel, budget: float, minutes: float, objective: str, recover: float
) -> TuneResult:
    """Search within the budget, with half of the evaluation data.

    `recover`: minutes of training at the end.
    """
    with tempfile.TemporaryDirectory() as folder:
        return onnx_opt.tune(
            model.file,
            data=source(model.calibration),
            eval_data=source(model.evaluation),
            metric=_metric(model),
            max_drop=budget,
            minutes=minutes,
            objective=objective,
            recover=recover,
            out=Path(folder, "tuned.onnx"),
        )


def _metric(model: BenchModel) -> str | None:
    if model.metric in (None, "top1"):
        return model.metric
    return source(model.metric)


def parts_of(model: BenchModel) -> tuple[Feeds, Feeds]:
    """The half of the evaluation data that a search sees, and that of its verdict."""
    infos = input_infos(onnx_opt.load(model.file))
    feeds = open_feeds(source(model.evaluation), infos, model.file.parent)
    share_out = halves if _metric(model) in METRIC_NAMES else cut
    return share_out(feeds, 0)


def uniform(model: BenchModel, passes: str) -> tuple[onnx_opt.Result, float | None]:
    """The model after a setting, judged on the unseen half, and its drop on the seen one."""
    seen, unseen = parts_of(model)
    metric = _metric(model)
    result = onnx_opt.optimize(
        model.file,
        passes,
        data=source(model.calibration),
        eval_data=unseen,
        metric=metric,
    )
    if metric is None:
        return result, None
    before = onnx_opt.evaluate(model.file, seen, metric)
    after = onnx_opt.evaluate(result.model, seen, metric)
    return result, before - after


def rows_of(
    model: BenchModel, minutes: float, objective: str, recover: float
) -> Iterator[Row]:
    """Yield rows of a model: uniform settings, and the tuned one."""
    budget = BUDGETS[model.name]
    for passes in UNIFORM[objective]:
        try:
            result, seen = uniform(model, passes)
        except OnnxOptError as error:
            yield model.name, f"{passes}: {error.problem[:60]}", 1.0, None, None, None
            continue
        yield _row(model, passes, result, seen)
    try:
        found = tuned(model, budget, minutes, objective, recover)
    except OnnxOptError as error:
        yield model.name, f"tune: {error.problem[:120]}", 1.0, None, None, None
        return
    search = found.search
    minutes = search["seconds"] / 60
    name = (
        f"tune: {search['trials']} trials, a front of {len(search['front'])}, "
        f"{minutes:.1f} minutes"
    )
    print(f"{model.name}: {search['recipe']}", flush=True)
    yield _row(model, name, found, search["split"]["seen"]["drop"])


def _row(
    model: BenchModel, name: str, result: onnx_opt.Result, seen: float | None
) -> Row:
    size = (result.output.bytes or 0) / (result.input.bytes or 1)
    drop = None if result.metric is None else result.metric["drop"]
    ratio = None if result.latency is None else result.latency.median
    return model.name, name, size, seen, drop, ratio


def every_row(
    names: Collection[str], minutes: float, objective: str, recover: float
) -> Iterator[tuple[str, ...]]:
    """Yield the cells of these models."""
    for model in MODELS:
        if model.name not in names or model.name not in BUDGETS:
            continue
        for row in rows_of(model, minutes, objective, recover):
            name, setting, size, seen, unseen, ratio = row
            drops = (_cell(seen, 4), _cell(unseen, 4))
            yield name, setting, f"{size:.4f}", *drops, _cell(ratio, 2)


def _cell(value: float | None, digits: int) -> str:
    return "" if value is None else f"{value:.{digits}f}"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="*", default=list(BUDGETS))
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--objective", choices=list(UNIFORM), default="size")
    parser.add_argument("--recover", type=float, default=0.0)
    asked = parser.parse_args()
    columns = ("model", "setting", "size", "drop, seen", "drop, unseen", "latency")
    rows = every_row(asked.models, asked.minutes, asked.objective, asked.recover)
    show(columns, rows)


if __name__ == "__main__":
    main()
