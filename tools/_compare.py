"""Two models, or several, side by side: what `verify`, `bench` and `eval` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from .. import OnnxOptError, RefusedError
from ..frontends.onnx_file import load
from ..passes._core.normalize import normalize
from ..runtime.compare import DriftMeter
from ..runtime.feeds import candidate_feeds, open_feeds
from ..runtime.hardware import Hardware, hardware
from ..runtime.session import Session, open_session
from ..runtime.worker import Worker
from ._run.drift import Arrays, Outputs, all_finite, limited
from ._run.kernels import Kernels, compare_kernels, enough, is_quantized, remedy
from ._run.provenance import provenance
from ._run.saturation import SaturatingPairs, saturating_pairs
from .console import say


@dataclass
class Side:
    """One of two models that are compared. `outputs`: those on the first feeds, which show what its
    kernels do.
    """

    path: Path
    model: ir.Model
    session: Session
    outputs: Outputs = field(default_factory=list)

    @classmethod
    def of(cls, worker: Worker, path: Path, threads: int) -> Side:
        """Load it, and open it in the worker."""
        model = load(path)
        normalize(model)
        return cls(path, model, open_session(worker, path.absolute(), threads=threads))


@dataclass(frozen=True)
class Quantization:
    """A quantized file: its weight pairs, and its kernels' results beside the graph's (None: not
    compared).
    """

    pairs: SaturatingPairs
    kernels: Kernels | None
    warning: str | None

    def to_json(self) -> dict[str, Any]:
        """The pairs' keys and `kernels`."""
        kernels = None if self.kernels is None else dataclasses.asdict(self.kernels)
        return {**self.pairs.to_json(), "kernels": kernels}


def quantization(
    side: Side, other: Side, feeds: Sequence[Arrays], machine: Hardware
) -> Quantization | None:
    """What is to be said of a file's integers; None where it has none."""
    if not is_quantized(side.model):
        return None

    def open_again(path: Path, optimize: bool = True, exact: bool = False) -> Session:
        session = side.session
        return open_session(
            session.worker,
            path,
            threads=session.threads,
            optimize=optimize,
            exact=exact,
        )

    reference = None if is_quantized(other.model) else other.outputs
    pairs = saturating_pairs(side.model)
    kernels = compare_kernels(
        open_again,
        side.session.path,
        side.model,
        machine,
        feeds,
        side.outputs,
        reference,
    )
    warning = None
    if kernels is not None and kernels.disagree:
        what_helps = remedy(side.model, machine, provenance(side.model).get("target"))
        warning = f"{side.path}: {kernels.words(machine)}; {what_helps}"
    return Quantization(pairs, kernels, warning)


def checked(path: Path) -> Path:
    """`path`, after the loader has found it sound: ONNX Runtime gets nothing that we would
    refuse.
    """
    load(path)
    return path.absolute()


def feeds_for(session: Session, data: str | None, seed: int) -> Iterable[Arrays]:
    """All batches of the data, or a few synthetic ones that the model accepts."""
    if data is not None:
        feeds = open_feeds(data, session.inputs)
        for message in feeds.warnings:
            say(f"warning: data: {message}")
        return (batch.feeds for batch in feeds)
    for kind in candidate_feeds(session.inputs, seed):
        batches = limited(batch.feeds for batch in kind)
        try:
            outputs = [session.run(feeds) for feeds in batches]
        except OnnxOptError:
            continue  # not this kind; the next may be
        if all_finite(outputs):
            return batches
    raise RefusedError(
        session.path.name,
        "gives no finite outputs on synthetic feeds",
        "give --data with real ones",
    )


@dataclass(frozen=True)
class Comparison:
    """Two models on the same feeds: how close they are, on which CPU, and what is said of each
    file's integers.
    """

    closeness: Closeness
    hardware: Hardware
    quantized: dict[str, Quantization | None]

    @property
    def warnings(self) -> list[str]:
        return [
            each.warning
            for each in self.quantized.values()
            if each is not None and each.warning
        ]


def compared(
    worker: Worker,
    first: Side,
    second: Side,
    closeness: Closeness,
    feeds: Iterable[Arrays],
) -> Comparison:
    """Run both on the feeds. Errors: CheckError where outputs differ in name or shape."""
    kept: list[Arrays] = []
    for batch in feeds:
        outputs = first.session.run(batch), second.session.run(batch)
        closeness.update(*outputs)
        if not enough(kept):
            kept.append(batch)
            first.outputs.append(outputs[0])
            second.outputs.append(outputs[1])
    machine = hardware(worker)
    return Comparison(
        closeness,
        machine,
        {
            "a": quantization(first, second, kept, machine),
            "b": quantization(second, first, kept, machine),
        },
    )


class Closeness:
    """Figures of one model's outputs against another's, and whether each element is within atol +
    rtol |y|.
    """

    def __init__(self, atol: float | None, rtol: float | None) -> None:
        self.atol, self.rtol = atol or 0.0, rtol or 0.0
        self.elementwise = atol is not None or rtol is not None
        self.meter = DriftMeter()
        self.outside = 0

    def update(self, reference: dict[str, Any], got: dict[str, Any]) -> None:
        """Take one batch of outputs. Errors: CheckError where names or shapes differ."""
        self.meter.update(reference, got)
        if self.elementwise:
            self.outside += sum(
                self._outside(reference[name], got[name]) for name in reference
            )

    def _outside(self, reference: Any, got: Any) -> int:
        if reference.dtype.kind in "OUS":
            return int(np.count_nonzero(reference != got))
        close = np.isclose(
            got.astype(np.float64),
            reference.astype(np.float64),
            self.rtol,
            self.atol,
            equal_nan=True,
        )
        return int(np.count_nonzero(~close))

    def problem(self, min_sqnr: float | None) -> str | None:
        """Which limit is not met; None if all are."""
        overall = self.meter.overall()
        if overall.nonfinite:
            return f"{overall.nonfinite} output values are finite in A and not in B"
        if min_sqnr is not None and overall.sqnr_db < min_sqnr:
            return f"SQNR {overall.sqnr_db:.1f} dB is below {min_sqnr:g} dB"
        if self.outside:
            return (
                f"{self.outside} output values are outside atol {self.atol:g} + rtol "
                f"{self.rtol:g} |y|"
            )
        return None
