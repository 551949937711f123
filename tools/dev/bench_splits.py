"""Twenty searches of ResNet-20 with other halves of the data: how often the budget is kept.

    python tools/dev/bench_splits.py [--splits 20] [--max-drop 0.005]

The model of a recipe does not depend on the half that judges it. So each is made once, and its
answers to all images are kept: a further search takes the time of the recipes that are new.
"""

from __future__ import annotations

import argparse
import dataclasses
import math
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_opt
import onnxruntime
from bench_data import MODELS, BenchModel, source
from both_classes import this_cpu
from numpy.typing import NDArray
from onnx_opt.passes._core.pipeline import parse
from onnx_opt.runtime.feeds import open_feeds
from onnx_opt.runtime.held_out import first_half
from onnx_opt.tools._run.figures import input_infos, output_infos
from onnx_opt.tools._run.settings import RunSettings
from onnx_opt.tools._tune.goal import Goal
from onnx_opt.tools._tune.lab import open_lab
from onnx_opt.tools._tune.plans import MenuSettings, SearchPlan, plan_for
from onnx_opt.tools._tune.search import RecipeSearch, Searched
from onnx_opt.tools._tune.sensitivity import not_kept
from onnx_opt.tools._tune.trial import RecipeTrial, Task
from onnx_opt.tools._tune.verdict import candidates_of

Rows = NDArray[np.bool_]


@dataclass(frozen=True)
class Answered:
    """A recipe's model: its figures, and for every row whether it answers rightly (N,)."""

    bytes: int | None
    sqnr_db: float | None
    is_right: Rows


class SharedModels:
    """An engine whose models are made once for all searches, whatever rows judge them."""

    def __init__(self, model: BenchModel) -> None:
        self._model = model
        self._made: dict[str, Answered] = {}
        self.original = answers(model, model.file)

    def run(self, task: Task, recipes: Sequence[str]) -> Iterator[RecipeTrial]:
        for recipe in recipes:
            if recipe not in self._made:
                self._made[recipe] = self._answered(recipe)
                print(f"model {len(self._made)}: {recipe[:100]}", flush=True)
            yield self.trial(recipe, seen_rows(task.seed, len(self.original)))

    def trial(self, recipe: str, rows: Rows) -> RecipeTrial:
        """Figures of a recipe, judged on some rows."""
        made = self._made[recipe]
        lost = self.original[rows].astype(float) - made.is_right[rows]
        return RecipeTrial(
            recipe,
            bytes=made.bytes,
            sqnr_db=made.sqnr_db,
            drop=float(lost.mean()),
            error=float(lost.std() / math.sqrt(len(lost))),
        )

    def close(self) -> None:
        return None

    def _answered(self, recipe: str) -> Answered:
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder, "model.onnx")
            result = onnx_opt.optimize(
                self._model.file,
                recipe,
                data=source(self._model.calibration),
                out=path,
                bench=False,
                floor="none",
            )
            drift = result.drift or {}
            is_right = answers(self._model, path)
        return Answered(result.output.bytes, drift.get("sqnr_db"), is_right)


def answers(model: BenchModel, path: Path) -> Rows:
    """Rows of the evaluation that a file answers rightly, (N,)."""
    infos = input_infos(onnx_opt.load(model.file))
    feeds = open_feeds(source(model.evaluation), infos, model.file.parent)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    found = []
    for batch in feeds:
        scores, *_ = session.run(None, dict(batch.feeds))
        found.append(scores.argmax(axis=1) == batch.labels)
    return np.concatenate(found)


def seen_rows(seed: int, count: int) -> Rows:
    """Rows that the search of a seed sees, (N,)."""
    return first_half(seed)(np.arange(count))


def plan_of(model: BenchModel, goal: Goal) -> tuple[SearchPlan, Task]:
    """Menus of the model, and the facts that trials share."""
    data = source(model.calibration)
    settings = RunSettings(model=model.file, pipeline=parse("simplify"), data=data)
    how = MenuSettings("auto", not_kept, lambda name, make: make(), math.inf)
    with open_lab(settings) as lab:
        task = Task(
            model=model.file,
            target="cpu",
            data=data,
            labelled=source(model.evaluation),
            is_apart=True,
            is_timed=False,
            metric="top1",
            metric_output=None,
            seed=0,
            threads=0,
            inputs=tuple(input_infos(lab.model)),
            outputs=tuple(output_infos(lab.model)),
        )
        return plan_for(goal, lab, how), task


def main() -> None:
    """Search again and again, and print the counts."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--splits", type=int, default=20)
    parser.add_argument("--max-drop", type=float, default=0.005)
    asked = parser.parse_args()
    model = next(each for each in MODELS if each.name == "cifar10_resnet20")
    goal = Goal("size", max_drop=asked.max_drop)
    plan, task = plan_of(model, goal)
    engine = SharedModels(model)
    size = model.file.stat().st_size
    first, kept, sizes = 0, 0, []
    for seed in range(asked.splits):
        found = Searched()
        own = dataclasses.replace(task, seed=seed)
        RecipeSearch(goal, plan, own, engine, deadline=math.inf).run(found)
        candidates = candidates_of(found, goal)
        unseen = ~seen_rows(seed, len(engine.original))
        judged = [engine.trial(each.recipe, unseen) for each in candidates]
        keeps = [(each.drop or 0.0) <= asked.max_drop for each in judged]
        first += bool(keeps and keeps[0])
        if any(keeps):
            kept += 1
            chosen = judged[keeps.index(True)]
            sizes.append((chosen.bytes or 0) / size)
            print(f"seed {seed}: size {sizes[-1]:.4f}, drop {chosen.drop:.4f}")
    print(f"CPU: {this_cpu()}")
    print(f"budget {asked.max_drop}: of {asked.splits} searches")
    print(f"  {first} of their first choices keep it on the half that they never saw")
    print(f"  {kept} results do, with the next best where the first fails")
    if sizes:
        low, middle, high = np.quantile(sizes, [0, 0.5, 1])
        print(f"  size: {middle:.4f} ({low:.4f} to {high:.4f})")


if __name__ == "__main__":
    main()
