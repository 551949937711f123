"""Models side by side: the parts that `verify`, `bench` and `eval` share."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from ..frontends.onnx_file import load
from ..passes._core.normalize import normalize
from ..passes.unpack import restore_packed
from ..runtime.choices import ChoiceMeter
from ..runtime.compare import DriftMeter
from ..runtime.drift_words import ON_DATA, Bounds, word_of
from ..runtime.feeds import Feeds, open_feeds
from ..runtime.hardware import Hardware, hardware
from ..runtime.held_outputs import Arrays, HeldOutputs
from ..runtime.rows import shared_rows
from ..runtime.session import Session, open_session
from ..runtime.worker import Worker
from ._run.drift import synthetic_batches
from ._run.kernels import (
    Kernels,
    SaturatingPairs,
    compare_kernels,
    enough_samples,
    is_quantized,
    remedy,
    saturating_pairs,
)
from ._run.provenance import provenance
from .console import say


@dataclass
class Side:
    """One of two models that are compared.

    `outputs`: those on the first feeds, which show what its kernels do.
    """

    path: Path
    model: ir.Model
    session: Session
    outputs: HeldOutputs = field(default_factory=HeldOutputs)

    @classmethod
    def of(cls, worker: Worker, path: Path, threads: int) -> Side:
        """Load a model, and open it in the worker."""
        model = load(path)
        normalize(model)
        restore_packed(model)
        session = open_session(worker, path.absolute(), threads=threads)
        return cls(path, model, session)


@dataclass(frozen=True)
class Quantization:
    """Facts of a quantized file: its weight pairs, and its kernels beside the graph.

    `kernels` None: not compared. `warning` None: kernels and graph agree.
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
    """Facts of a file's integers; None where it has none."""
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

    # another quantized file has lost on these kernels too: it is no measure of them
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
    # what the file was made for decides what helps; foreign files do not say
    if kernels is not None and kernels.disagree:
        target = provenance(side.model).get("target")
        advice = remedy(side.model, machine, target)
        warning = f"{side.path}: {kernels.words(machine)}; {advice}"
    return Quantization(pairs, kernels, warning)


def checked(path: Path) -> Path:
    """Check a file by loading it; returns its absolute path.

    ONNX Runtime gets no file that the loader would refuse. Errors: RefusedError.
    """
    load(path)
    return path.absolute()


def feeds_for(session: Session, data: Any, seed: int) -> Iterable[Arrays]:
    """All batches of the data, or a few synthetic ones that the model accepts."""
    if data is not None:
        feeds = open_feeds(data, session.inputs, session.path.parent, session.outputs)
        return _telling(feeds)
    batches, _ = synthetic_batches(session, seed)
    return batches


def _telling(feeds: Feeds) -> Iterator[Arrays]:
    """Yield the batches, and say what was adapted as soon as it was."""
    told = 0
    for batch in feeds:
        for message in feeds.warnings[told:]:
            say(f"warning: data: {message}")
        told = len(feeds.warnings)
        yield batch.feeds


@dataclass(frozen=True)
class Comparison:
    """Two models on the same feeds: their closeness, on which CPU, and each file's integers.

    `metric`: both scores; None where none was asked for. `is_made_up`: the feeds are synthetic.
    """

    closeness: Closeness
    hardware: Hardware
    quantized: dict[str, Quantization | None]
    metric: dict[str, Any] | None = None
    is_made_up: bool = False

    @property
    def warnings(self) -> list[str]:
        """Feeds that prove little, and files whose kernels do not compute what their graph says."""
        words = []
        if self.is_made_up:
            words.append(MADE_UP)
        known = [each for each in self.quantized.values() if each is not None]
        words += [each.warning for each in known if each.warning]
        if self.metric is not None:
            words += self.metric["remarks"]
        return words


MADE_UP = (
    "data: none given: compared on synthetic feeds, on which a good model may look bad, and a bad "
    "one good; --data compares on real ones"
)


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
        reference = first.session.run(batch)
        outputs = second.session.run(batch)
        closeness.update(reference, outputs)
        # a few samples tell of the kernels; the data may be larger than memory
        if not enough_samples(kept):
            kept.append(batch)
            first.outputs.append(reference)
            second.outputs.append(outputs)
    machine = hardware(worker)
    quantized = {
        "a": quantization(first, second, kept, machine),
        "b": quantization(second, first, kept, machine),
    }
    return Comparison(closeness, machine, quantized)


class Closeness:
    """Figures of one model's outputs against another's.

    With a tolerance, also the number of elements that are not within atol + rtol |y|. `bounds`: of
    what is not worthless.
    """

    def __init__(
        self, atol: float | None, rtol: float | None, bounds: Bounds = ON_DATA
    ) -> None:
        self.bounds = bounds
        self.choices = ChoiceMeter()
        self.atol = atol or 0.0
        self.rtol = rtol or 0.0
        self.elementwise = atol is not None or rtol is not None
        self.meter = DriftMeter(by_rows=True)
        self.outside = 0

    def update(self, reference: dict[str, Any], got: dict[str, Any]) -> None:
        """Take one batch of outputs. Errors: CheckError where names or shapes differ."""
        self.meter.update(reference, got)
        self.choices.update(reference, got)
        if self.elementwise:
            for name in reference:
                self.outside += self._outside(reference[name], got[name])

    def _outside(self, reference: Any, got: Any) -> int:
        # a row that only one has is within no tolerance
        unshared: int = abs(reference.size - got.size)
        return unshared + self._outside_of(*shared_rows(reference, got))

    def _outside_of(self, reference: Any, got: Any) -> int:
        # texts have no tolerance
        if reference.dtype.kind in "OUS":
            return int(np.count_nonzero(reference != got))
        # in double: the tolerance must not round in the type of the outputs
        close = np.isclose(
            got.astype(np.float64),
            reference.astype(np.float64),
            self.rtol,
            self.atol,
            equal_nan=True,
        )
        return int(np.count_nonzero(~close))

    def words(self) -> dict[str, str]:
        """One word for the drift of each output."""
        choices = self.choices.per_output()
        drifts = self.meter.per_output()
        return {
            name: word_of(drift, choices[name], self.bounds)
            for name, drift in drifts.items()
        }

    def problem(self, min_sqnr: float | None) -> str | None:
        """Limit that is not met, in words; None if all are."""
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
