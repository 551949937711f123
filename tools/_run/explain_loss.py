"""Accuracy loss of each layer: in total, from its weights alone, from its input alone."""

from __future__ import annotations

import dataclasses
import glob
import math
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import onnx_ir as ir

from ...frontends.onnx_file import save
from ...passes._core.contract import Pass
from ...passes._core.pipeline import Pipeline
from ...passes._core.scratch import scratch_folder
from ...runtime.batching import RowLimit, micro_batches
from ...runtime.feeds import Batch, Feeds
from ...runtime.session import open_session
from ...runtime.worker import Worker
from .loss_probes import Probe, instrumented

SAMPLES = 32
"""Samples that losses are averaged over, besides all elements of a layer's output.

Chosen by hand; not measured.
"""


@dataclass(frozen=True)
class Effort:
    """Samples that losses are averaged over, and seconds after which no further one is run."""

    samples: int = SAMPLES
    seconds: float = math.inf


@dataclass(frozen=True)
class LossyStage:
    """A lossy pass of the run: its float form, and what it and its refinements made of that."""

    pass_: Pass
    reference: ir.Model
    result: ir.Model


@dataclass
class Loss:
    """Loss of one layer, as SQNR in dB of its output (None: not known, inf: nothing).

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
        """Both local noises together: the gain if this layer stayed float."""
        # the two are independent: their powers add
        noise = 0.0
        for sqnr_db in (self.weight_sqnr_db, self.activation_sqnr_db):
            if sqnr_db is not None:
                noise += 10 ** (-sqnr_db / 10)
        return -10 * math.log10(noise) if noise > 0 else math.inf


class StageLosses(NamedTuple):
    """Losses due to the pass of that name, in graph order."""

    name: str
    losses: list[Loss]


def explain(
    worker: Worker,
    stages: Iterable[LossyStage],
    batches: Sequence[Mapping[str, Any]],
    effort: Effort | None = None,
) -> list[StageLosses]:
    """Losses of every stage with the pass that they are due to, in graph order."""
    spent = effort or Effort()
    return [
        StageLosses(stage.pass_.name, explain_stage(worker, stage, batches, spent))
        for stage in stages
    ]


def as_rows(stages: Iterable[StageLosses]) -> list[dict[str, Any]]:
    """Losses as the account has them, worst first within a stage: by what the layer itself adds."""
    rows: list[dict[str, Any]] = []
    for stage in stages:
        for loss in sorted(stage.losses, key=lambda loss: loss.own_db):
            row = {"pass": stage.name, **dataclasses.asdict(loss)}
            rows.append(row)
    return rows


def explain_stage(
    worker: Worker,
    stage: LossyStage,
    batches: Sequence[Mapping[str, Any]],
    effort: Effort,
) -> list[Loss]:
    """Losses of every layer of the main graph that the stage changed, in graph order.

    Runs the reference and the result side by side in the worker, a few rows at a time: memory does
    not grow with the data.
    """
    reference, probes = instrumented(stage.reference, stage.result)
    if not probes:
        return []
    result = _with_outputs(stage.result, {probe.output for probe in probes})
    powers = _powers(
        worker,
        reference,
        result,
        probes,
        batches,
        effort,
    )
    return [_loss(probe, powers) for probe in probes]


@dataclass(frozen=True)
class _Powers:
    """Sums of squares over all samples, by name of an output.

    `local`: of what the instrumented reference computes. `accumulated`: of the result's error.
    """

    local: Mapping[str, float]
    accumulated: Mapping[str, float]


def _powers(
    worker: Worker,
    reference: ir.Model,
    result: ir.Model,
    probes: Sequence[Probe],
    batches: Sequence[Mapping[str, Any]],
    effort: Effort,
) -> _Powers:
    local: defaultdict[str, float] = defaultdict(float)
    accumulated: defaultdict[str, float] = defaultdict(float)
    scalars = _scalar_outputs(probes)
    with scratch_folder() as folder:
        reference_path = Path(folder, "reference.onnx")
        save(reference, reference_path, durable=False)
        # optimizations would make integer kernels of the noise that was added to the reference
        first = open_session(worker, reference_path, optimize=False)
        result_path = Path(folder, "result.onnx")
        save(result, result_path, durable=False)
        second = open_session(worker, result_path)
        # one row at first, then as many as keep the outputs of all layers within its bound
        limit = RowLimit()
        inputs = first.inputs
        feeds = Feeds(lambda: [Batch(dict(batch)) for batch in batches], inputs, "data")
        end = time.monotonic() + effort.seconds
        for part, rows in micro_batches(feeds, inputs, effort.samples, limit):
            tensors, sums, size = worker.call(
                "compare",
                first.handle(),
                second.handle(),
                part,
                scalars,
            )
            limit.adapt(size, rows)
            for name, value in sums.items():
                local[name] += value
            for name, (_, error) in tensors.items():
                accumulated[name] += error
            if time.monotonic() > end:
                break
        first.close()
        second.close()
    return _Powers(local, accumulated)


def _scalar_outputs(probes: Sequence[Probe]) -> list[str]:
    """Names of the sums of squares that the instrumented reference computes."""
    scalars: list[str] = []
    for probe in probes:
        scalars.append(probe.signal)
        if probe.weight is not None:
            scalars.append(probe.weight)
        if probe.activation is not None:
            scalars.append(probe.activation)
    return scalars


def _loss(probe: Probe, powers: _Powers) -> Loss:
    signal = powers.local[probe.signal]

    def local_db(name: str | None) -> float | None:
        return None if name is None else decibels(signal, powers.local[name])

    # absent where the result lacks this value: a fused layer has no output of its own
    accumulated = powers.accumulated.get(probe.output)
    return Loss(
        layer=probe.layer,
        op=probe.op,
        sqnr_db=None if accumulated is None else decibels(signal, accumulated),
        weight_sqnr_db=local_db(probe.weight),
        activation_sqnr_db=local_db(probe.activation),
    )


def decibels(signal: float, noise: float) -> float | None:
    """10 log10(signal / noise); inf without noise, None where one of them is unknown."""
    if math.isnan(noise) or math.isnan(signal):
        return None
    # equal, even where the signal is nothing
    if noise == 0:
        return math.inf
    return 10 * math.log10(signal / noise) if signal > 0 else -math.inf


def _with_outputs(model: ir.Model, names: set[str]) -> ir.Model:
    """A copy of the model whose outputs are the named values."""
    copy = model.clone()
    outputs = copy.graph.outputs
    outputs.clear()
    for node in copy.graph:
        outputs.extend(value for value in node.outputs if value.name in names)
    return copy


# what to try next


def next_pipeline(
    pipeline: Pipeline, losses: Sequence[Mapping[str, Any]]
) -> Pipeline | None:
    """The same pipeline, with the worst layer left out of the pass that it lost to.

    None where no pass of the pipeline can leave a layer out.
    """
    for loss in losses:
        for index, pass_ in enumerate(pipeline.passes):
            if pass_.name == loss["pass"] and hasattr(pass_, "exclude"):
                passes = list(pipeline.passes)
                passes[index] = _without(pass_, loss["layer"])
                return Pipeline(tuple(passes))
    return None


def _without(pass_: Any, layer: str) -> Any:
    """The same pass with one more layer excluded."""
    # exclude takes patterns, and names may hold [ or *
    exclude = (*pass_.exclude, glob.escape(layer))
    return dataclasses.replace(pass_, exclude=exclude)
