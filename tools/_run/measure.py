"""Latency of the result beside the original."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import NamedTuple

from ... import OnnxOptError, RefusedError
from ...passes._core.latency import SLOWER
from ...runtime.bench import PairedLatency, brief_latency, is_large, paired_latency
from ...runtime.held_outputs import Arrays
from ...runtime.optimized import optimized_nodes
from ...runtime.session import Session
from ...runtime.worker import RemoteError, WorkerDied
from .drift import sample_count
from .evidence import VerificationInputs
from .run import Run


class Latencies(NamedTuple):
    """Latencies of the original and the result: of the first feed, and of one token behind it.

    `step`: None for a model without a cache. `samples`: that the first feed holds.
    """

    first: PairedLatency
    step: PairedLatency | None
    samples: int


def measure_latency(
    run: Run,
    inputs: VerificationInputs,
    before: Path,
    after: Path,
    is_same: bool = False,
) -> Latencies | None:
    """Latencies of both models in turns; None where they are not measured. `is_same`: it is one.

    Warns where the result is slower, by the rule that passes decide by, or may be.
    """
    if not run.settings.bench or not inputs.latency_feeds:
        return None
    try:
        with (
            run.reporter.progress("measuring latency"),
            contextlib.closing(inputs.open(before)) as one,
        ):
            if is_large(before):
                # the next use loads it again
                one.close()
            with contextlib.closing(inputs.open(after)) as other:
                is_brief = is_same or _run_the_same(run, inputs, one, other)
                timed = brief_latency if is_brief else paired_latency
                first = timed(one, other, inputs.latency_feeds)
                step = None
                single = None
                if inputs.step_feeds:
                    step = timed(one, other, inputs.step_feeds)
                elif not is_brief and not is_large(before) and not _is_slower(first):
                    single = _single_sample_latency(inputs, one, other)
    except (RefusedError, WorkerDied) as error:
        run.reporter.warn("bench", f"latency was not measured: {error.problem}")
        return None
    _warn_if_slower(run, inputs, first, "the result")
    if step is not None:
        _warn_if_slower(run, inputs, step, "a one-token step of the result")
    # what is undecided there is no reason to time it longer
    if single is not None and _is_slower(single):
        _warn_if_slower(run, inputs, single, "at one sample a run, the result")
    samples = sample_count(inputs.latency_feeds[0])
    return Latencies(first, step, samples)


def _single_sample_latency(
    inputs: VerificationInputs, one: Session, other: Session
) -> PairedLatency | None:
    """Latencies of one sample where a run of the data holds several: integers pay off later.

    None for a model that takes none alone.
    """
    feeds = _single_sample(inputs.latency_feeds[0], one)
    if feeds is None:
        return None
    try:
        return paired_latency(one, other, [feeds], SLOWER, True)
    except OnnxOptError:
        return None


def _single_sample(feeds: Arrays, session: Session) -> Arrays | None:
    """The first sample of a batch; None of a batch of one, or of a length that the model fixes."""
    count = sample_count(feeds)
    if count == 1:
        return None
    single = {**feeds}
    for info in session.inputs:
        array = feeds.get(info.name)
        if array is None or not array.ndim or len(array) != count:
            continue
        if isinstance(info.shape[0], int):
            return None
        single[info.name] = array[:1]
    return single


def _is_slower(found: PairedLatency) -> bool:
    return found.ratio is not None and found.ratio.verdict() == "slower"


def _warn_if_slower(
    run: Run, inputs: VerificationInputs, found: PairedLatency, what: str
) -> None:
    if found.ratio is None:
        return
    verdict = found.ratio.verdict()
    times = f"{found.second_ms:.3g} ms, {found.first_ms:.3g} ms before (ratio {found.ratio})"
    where = ""
    if not inputs.on_target:
        where = f" on this CPU, which is not one of {run.settings.target}'s"
    if verdict == "slower":
        run.reporter.warn("latency", f"{what} is slower{where}: {times}")
    if verdict == "undecided":
        run.reporter.warn(
            "latency",
            f"undecided whether {what} is slower{where}: {times}; this machine is too "
            "busy, `onnx-opt bench` with more --seconds may decide",
        )


def _run_the_same(
    run: Run, inputs: VerificationInputs, one: Session, other: Session
) -> bool:
    """True if exact passes left ONNX Runtime the kernels that it ran before: no slower, then."""
    if any(pass_.effect == "lossy" for pass_ in run.settings.pipeline.passes):
        return False
    # other providers compile their part of the graph out of sight
    if inputs.hardware.provider != "cpu":
        return False
    # optimizing loads one of them anew; the next use opens both again
    for each in (one, other):
        each.close()
    try:
        kernels = [[node.op for node in optimized_nodes(each)] for each in (one, other)]
    except RemoteError:
        # some optimized graphs cannot be written, of models that run all the same
        return False
    return kernels[0] == kernels[1]
