"""A metric of one model on labelled data: what `eval` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

from .. import UsageError
from ..frontends.onnx_file import load
from ..runtime.data_files import data_files
from ..runtime.feeds import open_feeds
from ..runtime.hardware import Hardware, hardware
from ..runtime.metrics import MetricScore, metric_named
from ..runtime.session import Session, open_session
from ..runtime.worker_pool import pool
from ._run.figures import files_of, input_infos, output_infos
from ._run.scoring import LANGUAGE_FIX, drop_facts, is_chance, score, score_cache_of
from ._run.settings import ProgressBar


class Evaluation(NamedTuple):
    """A score, the name of its metric, and what ran the model.

    `notes`: what was adapted of the data, where it was read.
    """

    score: MetricScore
    metric: str
    hardware: Hardware
    notes: tuple[str, ...] = ()

    @property
    def warnings(self) -> list[str]:
        """Words on the data and the score, for people."""
        found = self.score
        words = []
        if found.strangers:
            words.append(f"no label is one that the model predicts: {found.strangers}")
        words.extend(f"data: {note}" for note in self.notes)
        if found.remark:
            words.append(found.remark)
        if not is_chance(found):
            return words
        if found.hits is None:
            words.append(f"no better than a guess among its tokens: {LANGUAGE_FIX}")
        else:
            words.append(
                f"as a guess among {found.classes} classes would be: are labels numbered as the "
                "outputs are, and is the data preprocessed as for training?"
            )
        return words


def evaluated(
    path: Path,
    data: Any,
    metric: str | Callable[..., Any],
    *,
    output: str | None,
    provider: str,
    threads: int,
    use_cache: bool,
    progress: ProgressBar | None = None,
) -> Evaluation:
    """Score the model file at `path`, or find what it scored before.

    Errors: UsageError, RefusedError (model, data).
    """
    chosen = metric_named(metric)
    if chosen.generates is not None:
        raise UsageError(
            f"metric {chosen.name}",
            "compares two models",
            f"onnx-opt verify ORIGINAL {path.name} --data DATA --metric {chosen.name}",
        )
    # ONNX Runtime gets no file that the loader would refuse
    model = load(path)
    feeds = open_feeds(data, input_infos(model), path.parent, output_infos(model))
    with pool().borrowed() as worker:
        machine = hardware(worker, provider)

        def compute() -> MetricScore:
            session = open_session(worker, path.absolute(), provider, threads=threads)
            try:
                return score(session, feeds, chosen, progress, output)
            finally:
                session.close()

        cache = None
        if use_cache:
            sources = data_files(data, path.parent)
            cache = score_cache_of(worker, machine, metric, output, threads, sources)
        files = files_of(path, model)
        found = compute() if cache is None else cache.score(path, files, compute)
    return Evaluation(found, chosen.name, machine, tuple(feeds.warnings))


def scored_side_by_side(
    first: Session, second: Session, data: Any, metric: str | Callable[..., Any]
) -> dict[str, Any]:
    """Score two models on the same data: `name`, `a`, `b`, `drop`, and `remarks` on either.

    Errors: UsageError without data or for the metric, RefusedError for the data.
    """
    chosen = metric_named(metric)
    if data is None:
        raise UsageError("--metric", f"'{chosen.name}' needs data", "give --data")
    feeds = open_feeds(data, first.inputs, first.path.parent, first.outputs)
    one = score(first, feeds, chosen, None)
    other = score(second, feeds, chosen, None)
    remarks = []
    for session, found in ((first, one), (second, other)):
        if found.remark:
            remarks.append(f"{session.path.name}: {found.remark}")
    return {
        "name": chosen.name,
        "a": one.value,
        "b": other.value,
        **drop_facts(chosen, one.value, other.value),
        "remarks": remarks,
    }
