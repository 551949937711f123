"""Outputs of changed models against reference outputs, computed in the worker's child."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import OnnxOptError, RefusedError
from ...runtime.choices import ChoiceMeter, Choices
from ...runtime.compare import Drift, DriftMeter, pieces
from ...runtime.feeds import candidate_feeds, synthetic_feeds
from ...runtime.held_outputs import Arrays, HeldOutputs
from ...runtime.session import Session
from ...runtime.table_rows import NO_ROW
from ...runtime.tolerance import FLOAT32, NOISE_FACTOR, Tolerance

Outputs = Iterable[Arrays]
"""Outputs by name, one mapping a batch; iterated as often as wanted."""

TOKENS = 256
"""Length of the made-up sequences from which passes take the statistics of what layers read."""

MAX_BATCHES = 4
MAX_SAMPLES = 256
"""Batches and samples that models are compared on: each pass runs the model over all of them.

Both chosen by hand; not measured.
"""


class Reference:
    """Outputs of the original on a few batches, and a way to run other models on the same.

    `open_session(path, optimize)` opens a model file in the worker; `batches`: at most 4 batches of
    feeds; `path`, `original`: the original's file and its outputs.
    """

    def __init__(
        self,
        open_session: Callable[[Path, bool], Session],
        batches: Sequence[Arrays],
        path: Path,
        original: HeldOutputs,
    ) -> None:
        self._open = open_session
        self.batches = batches
        self.path = path
        self.original = original
        self._noise: dict[str, Drift] | None = None

    @contextlib.contextmanager
    def opened(self, path: Path, optimize: bool = True) -> Iterator[Session]:
        """Provide a session of the model at `path`. Errors: RefusedError, WorkerDied."""
        session = self._open(path, optimize)
        try:
            yield session
        finally:
            session.close()

    def outputs(self, path: Path, optimize: bool = True) -> HeldOutputs:
        """Outputs of the model at `path`. Errors: RefusedError, WorkerDied, RemoteError."""
        with self.opened(path, optimize) as session:
            return self.outputs_of(session)

    def outputs_of(self, session: Session) -> HeldOutputs:
        """Outputs of a session's model. Errors: WorkerDied, RemoteError."""
        return HeldOutputs(session.run(feeds) for feeds in self.batches)

    def noise_of(self, path: Path, outputs: Outputs) -> dict[str, Drift]:
        """Drift, per output, of a model's `outputs` from its own without graph optimizations.

        Pure float noise: deep and sharp models amplify rounding, and no fixed tolerance tells their
        noise from a fault. Empty where the model does not run that way.
        """
        try:
            unoptimized = self.outputs(path, optimize=False)
            return meter(outputs, unoptimized).per_output()
        except OnnxOptError:
            # some models run only after ONNX Runtime has optimized them
            return {}

    def from_original(self, outputs: Outputs, is_exact: bool = False) -> Drift:
        """Drift of outputs from the original's, all outputs together."""
        return self.measured(outputs, is_exact).overall()

    def measured(self, outputs: Outputs, is_exact: bool = False) -> DriftMeter:
        """Figures of outputs against the original's.

        An output that is zero up to noise counts as the same. `is_exact`: they were found equal.
        """
        drift = meter(self.original, outputs, by_rows=True)
        zeros = {
            name: each for name, each in drift.per_output().items() if _is_zero(each)
        }
        if zeros and not is_exact:
            if self._noise is None:
                self._noise = self.noise_of(self.path, self.original)
            noise = self._noise
            zeros = {
                name: each
                for name, each in zeros.items()
                if name in noise and each.max_abs <= NOISE_FACTOR * noise[name].max_abs
            }
        if not zeros:
            return drift
        drift = DriftMeter(by_rows=True)
        for expected, got in zip(self.original, outputs, strict=True):
            drift.update(expected, {**got, **{name: expected[name] for name in zeros}})
        return drift


def _is_zero(drift: Drift) -> bool:
    """True for an output that SQNR says nothing of: its errors are too small to matter."""
    if drift.nonfinite or drift.max_abs > FLOAT32.floor:
        return False
    return drift.sqnr_db < FLOAT32.sqnr_db


def meter(reference: Outputs, got: Outputs, by_rows: bool = False) -> DriftMeter:
    """Figures of one list of batches against another; `by_rows`: as of a `DriftMeter`.

    Errors: CheckError where shapes or names differ.
    """
    drift = DriftMeter(by_rows)
    for expected, actual in zip(reference, got, strict=True):
        drift.update(expected, actual)
    return drift


def choices_of(reference: Outputs, got: Outputs) -> dict[str, Choices]:
    """Clear choices of each output, over all batches."""
    choices = ChoiceMeter()
    for expected, actual in zip(reference, got, strict=True):
        choices.update(expected, actual)
    return choices.per_output()


def inexact(
    reference: Outputs,
    got: Outputs,
    tolerance: Tolerance,
    noise: Mapping[str, Drift] | None = None,
) -> str | None:
    """Say why `got` is not equal to `reference` up to float noise; None if it is.

    `noise`: drift per output that two evaluations of one model show; it widens the tolerance.
    """
    try:
        drifts = meter(reference, got).per_output()
    except OnnxOptError as error:
        return f"{error.where}: {error.problem}"
    for name, drift in drifts.items():
        # outputs smaller than 1 are judged by absolute error
        largest = max([1.0, *(_magnitude(batch[name]) for batch in reference)])
        allowed = tolerance.max_abs * largest
        least_sqnr = tolerance.sqnr_db
        own = noise.get(name) if noise else None
        if own is not None:
            allowed = max(allowed, NOISE_FACTOR * own.max_abs)
            least_sqnr = min(least_sqnr, own.sqnr_db - 20 * math.log10(NOISE_FACTOR))
        if drift.nonfinite:
            return f"output '{name}' has {drift.nonfinite} values that are no longer finite"
        # negated, so that an error of NaN is refused too
        if not drift.max_abs <= allowed:
            return (
                f"output '{name}' is off by {drift.max_abs:.3g} "
                f"(allowed: {allowed:.3g})"
            )
        if drift.sqnr_db < least_sqnr and drift.max_abs > tolerance.floor:
            return (
                f"output '{name}' has an SQNR of {drift.sqnr_db:.1f} dB (exact passes "
                f"keep {least_sqnr:.1f} dB)"
            )
    return None


def _magnitude(array: NDArray[Any]) -> float:
    """Largest finite |x|; 0 for texts and for arrays without finite elements."""
    # V is how numpy sees the small floats of ml_dtypes, bfloat16 among them
    if array.dtype.kind not in "fiuV":
        return 0.0
    largest = 0.0
    for values in _in_pieces(array):
        finite = values[np.isfinite(values)]
        highest = np.abs(finite).max(initial=0.0)
        largest = max(largest, float(highest))
    return largest


def _in_pieces(array: NDArray[Any]) -> Iterator[NDArray[np.float64]]:
    """All values, some at a time, in float64."""
    flat = array.reshape(-1)
    for piece in pieces(flat.size):
        yield flat[piece].astype(np.float64)


def all_finite(outputs: Outputs) -> bool:
    """True if every float output holds only finite numbers."""
    for batch in outputs:
        for array in batch.values():
            if array.dtype.kind not in "fV":
                continue
            if not all(np.isfinite(values).all() for values in _in_pieces(array)):
                return False
    return True


def none_finite(outputs: Outputs) -> bool:
    """True if there are float outputs, and all that they hold is NaN or infinite."""
    has_floats = False
    for batch in outputs:
        for array in batch.values():
            if array.dtype.kind not in "fV" or not array.size:
                continue
            has_floats = True
            if any(np.isfinite(values).any() for values in _in_pieces(array)):
                return False
    return has_floats


def first_batches(batches: Iterable[Arrays]) -> list[Arrays]:
    """First batches of feeds: at most 4, and none after 256 samples are reached."""
    chosen: list[Arrays] = []
    samples = 0
    for feeds in batches:
        chosen.append(feeds)
        samples += sample_count(feeds)
        if len(chosen) == MAX_BATCHES or samples >= MAX_SAMPLES:
            break
    return chosen


class NoFiniteOutputs(RefusedError):
    """A model that no kind of synthetic feeds suits."""


def synthetic_batches(session: Session, seed: int) -> tuple[list[Arrays], HeldOutputs]:
    """A few synthetic batches on which a model gives finite outputs, and those outputs.

    Errors: NoFiniteOutputs, with the runtime's reason, if no kind of synthetic feeds suits the
    model; RefusedError for an input that cannot be made up.
    """
    reasons = []
    has_run = False
    for feeds in candidate_feeds(session.inputs, seed, path=session.path):
        try:
            batches = first_batches(batch.feeds for batch in feeds)
            outputs = HeldOutputs(session.run(batch) for batch in batches)
        except OnnxOptError as error:
            # this kind of feeds is not for this model; the next may be
            reasons.append(" ".join(error.problem.split()))
            continue
        if all_finite(outputs):
            return batches, outputs
        has_run = True
    # ids that were made up too large say nothing of the model
    own = [words for words in reasons if NO_ROW not in words]
    reason = (own or reasons or [""])[0]
    if has_run:
        reason = "all that were tried give NaN or infinite values"
    raise NoFiniteOutputs(
        session.path.name,
        f"gives no finite outputs on synthetic feeds: {reason}",
        "give --data with real ones",
    )


def long_tokens(session: Session, seed: int) -> list[Arrays]:
    """A made-up batch of one long sequence of tokens; none where the model does not run on it."""
    sizes = {"batch": 1, "sequence": TOKENS}
    try:
        feeds = synthetic_feeds(
            session.inputs, seed, batches=1, sizes=sizes, phases=("prefill",)
        )
        (batch,) = (batch.feeds for batch in feeds)
        outputs = [session.run(batch)]
    except OnnxOptError:
        # positions of fewer tokens, say
        return []
    return [batch] if all_finite(outputs) else []


def sample_count(feeds: Arrays) -> int:
    """Samples of a batch: the longest first axis of its arrays, 1 where all are scalars."""
    lengths = [len(array) for array in feeds.values() if array.ndim]
    return max(lengths, default=1)


def as_figures(drift: Drift) -> dict[str, float]:
    """The three figures of the JSON form."""
    return {"sqnr_db": drift.sqnr_db, "cosine": drift.cosine, "max_abs": drift.max_abs}
