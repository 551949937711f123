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
from ..runtime.session import open_session
from ..runtime.worker_pool import pool
from ._run.figures import files_of, input_infos, output_infos
from ._run.scoring import score, score_cache_of
from ._run.settings import ProgressBar


class Evaluation(NamedTuple):
    """A score, the name of its metric, and what ran the model.

    `notes`: what was adapted of the data, where it was read.
    """

    score: MetricScore
    metric: str
    hardware: Hardware
    notes: tuple[str, ...] = ()


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
