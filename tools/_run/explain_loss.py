"""Which layer lost what: each layer's drift in the result, and what its own weights and activations
add to it.
"""

from __future__ import annotations

import dataclasses
import glob
import math
import shlex
import tempfile
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.contract import Pass
from ...passes._core.pipeline import Pipeline
from ...runtime.context import RowLimit, micro_batches
from ...runtime.feeds import Batch, Feeds
from ...runtime.session import open_session
from ...runtime.worker import Worker
from .loss_probes import Probe, instrumented

SAMPLES = 32
"""Losses are averages over a whole layer's output: few samples tell them well."""


@dataclass
class Stage:
    """A lossy pass of the run: what it started from, and what it and its refinements made of
    that.
    """

    pass_: Pass
    reference: ir.Model
    result: ir.Model


@dataclass
class Loss:
    """What one layer lost, as SQNR in dB of its output (None: not known, inf: nothing).

    sqnr_db: in the result against the reference, all noise of the layers before it included.
    weight_sqnr_db and activation_sqnr_db: of this layer alone on the reference's values, with only
    its weights, or only its input, as in the result.
    """

    layer: str
    op: str
    sqnr_db: float | None
    weight_sqnr_db: float | None
    activation_sqnr_db: float | None

    @property
    def own_db(self) -> float:
        """Both local noises together; what floating this layer would spare."""
        own = [
            d for d in (self.weight_sqnr_db, self.activation_sqnr_db) if d is not None
        ]
        noise = sum(10 ** (-d / 10) for d in own)
        return -10 * math.log10(noise) if noise > 0 else math.inf


def explain_stage(
    worker: Worker, stage: Stage, batches: Sequence[Mapping[str, Any]]
) -> list[Loss]:
    """The losses of every layer of the main graph that the stage changed, in graph order.

    Runs the reference and the result side by side in the worker, a few rows at a time: memory does
    not grow with the data. The reference runs without graph optimizations: they would make integer
    kernels of its added noise.
    """
    reference, probes = instrumented(stage.reference, stage.result)
    if not probes:
        return []
    result = _tapped(stage.result, {probe.output for probe in probes})
    sums = [
        name
        for p in probes
        for name in (p.signal, p.weight, p.activation)
        if name is not None
    ]
    totals: defaultdict[str, float] = defaultdict(float)
    noise: defaultdict[str, float] = defaultdict(float)
    with tempfile.TemporaryDirectory(prefix="onnx-opt-") as folder:
        paths = [Path(folder, "reference.onnx"), Path(folder, "result.onnx")]
        save(reference, paths[0])
        save(result, paths[1])
        first, second = (
            open_session(worker, paths[0], optimize=False),
            open_session(worker, paths[1]),
        )
        limit = RowLimit()
        feeds = Feeds(
            lambda: [Batch(dict(batch)) for batch in batches], first.inputs, "data"
        )
        for part, rows in micro_batches(feeds, first.inputs, SAMPLES, limit):
            powers, scalars, size = worker.call(
                "compare", first.handle(), second.handle(), part, sums
            )
            limit.adapt(size, rows)
            for name, value in scalars.items():
                totals[name] += value
            for name, (_, error) in powers.items():
                noise[name] += error
        first.close()
        second.close()
    return [_loss(probe, totals, noise) for probe in probes]


def _loss(
    probe: Probe, totals: Mapping[str, float], noise: Mapping[str, float]
) -> Loss:
    signal = totals[probe.signal]
    own = [
        None if name is None else decibels(signal, totals[name])
        for name in (probe.weight, probe.activation)
    ]
    overall = decibels(signal, noise[probe.output]) if probe.output in noise else None
    return Loss(probe.layer, probe.op, overall, *own)


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); inf without noise, None where one of them is unknown."""
    if math.isnan(noise) or math.isnan(signal):
        return None
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _tapped(model: ir.Model, names: set[str]) -> ir.Model:
    """A copy of the model whose outputs are the named values."""
    copy = model.clone()
    copy.graph.outputs.clear()
    copy.graph.outputs.extend(
        v for node in copy.graph for v in node.outputs if v.name in names
    )
    return copy


def explain(
    worker: Worker, stages: Iterable[Stage], batches: Sequence[Mapping[str, Any]]
) -> list[dict[str, Any]]:
    """Every stage's losses with the pass that they are due to; worst first: by what the layer
    itself adds.
    """
    rows = []
    for stage in stages:
        losses = sorted(
            explain_stage(worker, stage, batches), key=lambda loss: loss.own_db
        )
        rows += [
            {"pass": stage.pass_.name, **dataclasses.asdict(loss)} for loss in losses
        ]
    return rows


def next_pipeline(
    pipeline: Pipeline, losses: Sequence[Mapping[str, Any]]
) -> Pipeline | None:
    """The same pipeline, with the worst layer left out of the pass that it lost to; None where that
    cannot be said.
    """
    for loss in losses:
        for index, pass_ in enumerate(pipeline.passes):
            if pass_.name == loss["pass"] and hasattr(pass_, "exclude"):
                changed: Any = dataclasses.replace(
                    pass_, exclude=(*pass_.exclude, glob.escape(loss["layer"]))
                )  # type: ignore[call-arg]
                return Pipeline(
                    (*pipeline.passes[:index], changed, *pipeline.passes[index + 1 :])
                )
    return None


def next_command(
    model: str,
    pipeline: Pipeline,
    data: str | None,
    losses: Sequence[Mapping[str, Any]],
) -> str | None:
    """What to paste into a shell to try the run without the worst layer; None where no layer lost
    anything.
    """
    following = next_pipeline(pipeline, losses)
    if following is None:
        return None
    words = [
        "onnx-opt",
        model,
        "--passes",
        str(following),
        *(["--data", data] if data else []),
        "--explain-loss",
    ]
    return shlex.join(words)
