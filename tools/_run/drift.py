"""Does a changed model still compute what it did? Its outputs against reference outputs, in the
worker's child.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import OnnxOptError
from ...runtime.compare import Drift, DriftMeter
from ...runtime.session import Session

Arrays = Mapping[str, NDArray[Any]]
Outputs = list[dict[str, NDArray[Any]]]

MAX_BATCHES = 4
MAX_SAMPLES = 256


@dataclass(frozen=True)
class Tolerance:
    """How far an exact pass may drift: `max_abs` relative to max(1, largest magnitude of the
    output), and an SQNR.

    An output whose errors all stay below `floor` passes whatever its SQNR: it is zero for all
    purposes.
    """

    max_abs: float
    sqnr_db: float
    floor: float = 1e-6


FLOAT32 = Tolerance(1e-4, 80.0)
COARSE = Tolerance(1e-2, 40.0)
"""Where the graph rounds between layers (half precision, quantized parts): noise at a rounding edge
moves one step.
"""


NOISE_FACTOR = 4.0
"""An exact pass may drift by this many times what the original drifts when it is evaluated in
another order.
"""


class Referee:
    """Runs models over the same few batches; remembers what the original gave.

    `open_session(path, optimize)` opens a model file in the worker; `batches`: at most 4 batches of
    feeds; `path`, `original`: the original's file and its outputs.
    """

    def __init__(
        self,
        open_session: Callable[[Path, bool], Session],
        batches: Sequence[Arrays],
        path: Path,
        original: Outputs,
    ) -> None:
        self._open = open_session
        self.batches = batches
        self.path = path
        self.original = original
        self._noise: dict[str, Drift] | None = None

    def noise(self) -> dict[str, Drift]:
        """How far the original is from itself, per output, when ONNX Runtime does not optimize it:
        pure float noise.

        Deep and sharp models amplify rounding; no fixed tolerance tells their noise from a fault.
        Measured once, when first asked for; empty where the original does not run that way.
        """
        if self._noise is None:
            try:
                self._noise = meter(
                    self.original, self.outputs(self.path, optimize=False)
                ).per_output()
            except OnnxOptError:
                self._noise = {}
        return self._noise

    def outputs(self, path: Path, optimize: bool = True) -> Outputs:
        """Outputs of the model at `path`, one dict a batch. Errors: RefusedError, WorkerDied,
        RemoteError.
        """
        session = self._open(path, optimize)
        try:
            return [session.run(feeds) for feeds in self.batches]
        finally:
            session.close()

    def from_original(self, outputs: Outputs) -> Drift:
        """Drift of outputs from the original's, all outputs together."""
        return meter(self.original, outputs).overall()


def meter(reference: Outputs, got: Outputs) -> DriftMeter:
    """The figures of one list of batches against another. Errors: CheckError where shapes or names
    differ.
    """
    drift = DriftMeter()
    for expected, actual in zip(reference, got, strict=True):
        drift.update(expected, actual)
    return drift


def inexact(
    reference: Outputs,
    got: Outputs,
    tolerance: Tolerance,
    noise: Mapping[str, Drift] | None = None,
) -> str | None:
    """Why `got` is not equal to `reference` up to float noise; None if it is.

    `noise`: drift per output that two evaluations of one model show; it widens the tolerance.
    """
    try:
        drifts = meter(reference, got).per_output()
    except OnnxOptError as error:
        return f"{error.where}: {error.problem}"
    for name, drift in drifts.items():
        scale = max([1.0, *(_magnitude(batch[name]) for batch in reference)])
        most, least = tolerance.max_abs * scale, tolerance.sqnr_db
        if noise and name in noise:
            most = max(most, NOISE_FACTOR * noise[name].max_abs)
            least = min(least, noise[name].sqnr_db - 20 * math.log10(NOISE_FACTOR))
        if drift.nonfinite:
            return f"output '{name}' has {drift.nonfinite} values that are no longer finite"
        if not drift.max_abs <= most:
            return (
                f"output '{name}' is off by {drift.max_abs:.3g} (allowed: {most:.3g})"
            )
        if drift.sqnr_db < least and drift.max_abs > tolerance.floor:
            return (
                f"output '{name}' has an SQNR of {drift.sqnr_db:.1f} dB (exact passes "
                f"keep {least:.1f} dB)"
            )
    return None


def _magnitude(array: NDArray[Any]) -> float:
    if array.dtype.kind not in "fiuV" or not array.size:
        return 0.0
    values = np.abs(array.astype(np.float64))
    finite = values[np.isfinite(values)]
    return float(finite.max()) if finite.size else 0.0


def all_finite(outputs: Outputs) -> bool:
    """Whether every float output holds only finite numbers."""
    arrays = (
        array
        for batch in outputs
        for array in batch.values()
        if array.dtype.kind in "fV"
    )
    return all(np.isfinite(array.astype(np.float64)).all() for array in arrays)


def limited(batches: Any) -> list[Arrays]:
    """The first batches of `batches` (feeds dicts): at most 4, and none after 256 samples are
    reached.
    """
    chosen: list[Arrays] = []
    samples = 0
    for feeds in batches:
        chosen.append(feeds)
        samples += max((len(a) for a in feeds.values() if a.ndim), default=1)
        if len(chosen) == MAX_BATCHES or samples >= MAX_SAMPLES:
            break
    return chosen
