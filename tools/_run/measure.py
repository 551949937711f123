"""Latency of the result beside the original."""

from __future__ import annotations

import contextlib
from pathlib import Path

from ... import RefusedError
from ...runtime.bench import PairedLatency, brief_latency, paired_latency
from ...runtime.optimized import optimized_nodes
from ...runtime.session import Session
from ...runtime.worker import RemoteError, WorkerDied
from .evidence import VerificationInputs
from .run import Run


def measure_latency(
    run: Run,
    inputs: VerificationInputs,
    before: Path,
    after: Path,
    is_same: bool = False,
) -> PairedLatency | None:
    """Latencies of both models in turns; None where they are not measured. `is_same`: it is one.

    Warns where the result is slower, by the rule that passes decide by, or may be.
    """
    if not run.settings.bench or not inputs.latency_feeds:
        return None
    try:
        with (
            run.reporter.progress("measuring latency"),
            contextlib.closing(inputs.open(before)) as one,
            contextlib.closing(inputs.open(after)) as other,
        ):
            if is_same or _run_the_same(run, inputs, one, other):
                return brief_latency(one, other, inputs.latency_feeds)
            found = paired_latency(one, other, inputs.latency_feeds)
    except (RefusedError, WorkerDied) as error:
        run.reporter.warn("bench", f"latency was not measured: {error.problem}")
        return None
    assert found.ratio is not None
    verdict = found.ratio.verdict()
    times = f"{found.second_ms:.3g} ms, {found.first_ms:.3g} ms before (ratio {found.ratio})"
    where = ""
    if not inputs.on_target:
        where = f" on this CPU, which is not one of {run.settings.target}'s"
    if verdict == "slower":
        run.reporter.warn("latency", f"the result is slower{where}: {times}")
    if verdict == "undecided":
        run.reporter.warn(
            "latency",
            f"undecided whether the result is slower{where}: {times}; this machine is too "
            "busy, `onnx-opt bench` with more --seconds may decide",
        )
    return found


def _run_the_same(
    run: Run, inputs: VerificationInputs, one: Session, other: Session
) -> bool:
    """True if exact passes left ONNX Runtime the kernels that it ran before: no slower, then."""
    if any(pass_.effect == "lossy" for pass_ in run.settings.pipeline.passes):
        return False
    # other providers compile their part of the graph out of sight
    if inputs.hardware.provider != "cpu":
        return False
    try:
        kernels = [[node.op for node in optimized_nodes(each)] for each in (one, other)]
    except RemoteError:
        # some optimized graphs cannot be written, of models that run all the same
        return False
    return kernels[0] == kernels[1]
