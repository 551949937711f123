"""Samples of a bundle: inputs with the outputs that are expected, and how far these may be missed.

The limits are measured: the model is evaluated in other ways, and may drift a few times as far as
these drift from each other.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import OnnxOptError, RefusedError
from ..batching import RowLimit, micro_batches
from ..feeds import Feeds
from ..session import Session, TensorInfo
from ..tolerance import NOISE_FACTOR, Tolerance
from . import run

Arrays = dict[str, NDArray[Any]]

SAMPLES = 3
ROWS = 2
"""Samples of a bundle, and rows of each where the batch is open. Chosen by hand."""

LEAST_SQNR = 3.0
"""SQNR in dB between two evaluations of a model below which they have nothing in common.

Chosen by hand: where noise has half the power of the signal.
"""

KINDS = "fiub"
"""Kinds of numpy's types that C++ can read from .npy files, and that every runtime takes."""


@dataclass(frozen=True)
class ReferenceSample:
    """Inputs and expected outputs, by name."""

    feeds: Arrays
    outputs: Arrays


@dataclass(frozen=True)
class Reevaluation:
    """Another evaluation of the same model; `words` name it, `open` gives a session of it."""

    words: str
    open: Callable[[], Session]


@dataclass(frozen=True)
class Limits:
    """Limits by output, as the manifest has them; `measured`: by which other evaluations."""

    outputs: list[dict[str, Any]]
    measured: list[str]


def few(feeds: Feeds, inputs: Sequence[TensorInfo]) -> list[Arrays]:
    """The first few rows of data, cut into samples where the model's batch is open."""
    limit = RowLimit()
    limit.rows = ROWS
    cut = micro_batches(feeds, inputs, SAMPLES * ROWS, limit)
    return [dict(part.feeds) for part in islice(cut, SAMPLES)]


def expected(
    session: Session, batches: Sequence[Mapping[str, Any]]
) -> list[ReferenceSample]:
    """Run the model on the samples.

    Errors: RefusedError where it does not run, and for types that a bundle cannot hold.
    """
    for side in ("inputs", "outputs"):
        for info in getattr(session, side):
            _check_type(session, side.removesuffix("s"), info)
    samples = []
    for feeds in batches:
        try:
            outputs = session.run(feeds)
        except OnnxOptError as error:
            raise RefusedError(
                session.path.name,
                f"has no sample that it runs on: {error.problem}",
                "give --data with real inputs",
            ) from error
        samples.append(ReferenceSample(dict(feeds), outputs))
    return samples


def _check_type(session: Session, side: str, info: TensorInfo) -> None:
    is_known = info.is_tensor and info.dtype not in ("bfloat16",)
    if info.dtype == "object":
        return
    if not is_known or np.dtype(info.dtype).kind not in KINDS:
        raise RefusedError(
            session.path.name,
            f"its {side} '{info.name}' is a {info.dtype}: samples hold arrays of numbers and texts",
            "export it with tensors (of scikit-learn: zipmap=False), and without bfloat16",
        )


def limits_of(
    session: Session,
    samples: Sequence[ReferenceSample],
    evaluations: Sequence[Reevaluation],
    base: Tolerance,
) -> Limits:
    """Measure how far the outputs may be missed: see docs/deploy.md.

    Errors: RefusedError where evaluations of the model have nothing in common.
    """
    noise: dict[str, list[dict[str, Any]]] = {}
    measured = []
    for evaluation in evaluations:
        # some models run only after ONNX Runtime has optimized them
        with contextlib.suppress(OnnxOptError):
            _add_noise(noise, evaluation, samples)
            measured.append(evaluation.words)
    outputs = []
    for info in session.outputs:
        arrays = [sample.outputs[info.name] for sample in samples]
        found = noise.get(info.name, [])
        if _have_nothing_in_common(found, base):
            raise RefusedError(
                session.path.name,
                f"its output '{info.name}' is another one in each evaluation: no sample can prove "
                "anything",
                "take random operators out, or give --data on which the output is not noise",
            )
        outputs.append({"name": info.name, **_limits(arrays, found, base)})
    return Limits(outputs, measured)


def _add_noise(
    noise: dict[str, list[dict[str, Any]]],
    evaluation: Reevaluation,
    samples: Sequence[ReferenceSample],
) -> None:
    session = evaluation.open()
    try:
        for sample in samples:
            got = session.run(sample.feeds)
            for name, array in sample.outputs.items():
                found = run.distance(array, got[name])
                noise.setdefault(name, []).append(found)
    finally:
        session.close()


def _have_nothing_in_common(noise: Sequence[dict[str, Any]], base: Tolerance) -> bool:
    for found in noise:
        is_far = found.get("sqnr_db", math.inf) < LEAST_SQNR
        if is_far and found["max_abs"] > base.floor:
            return True
        # another shape, or infinity where the other has a number
        if math.isinf(found.get("max_abs", 0.0)):
            return True
    return False


def _limits(
    arrays: Sequence[NDArray[Any]], noise: Sequence[dict[str, Any]], base: Tolerance
) -> dict[str, Any]:
    """Limits of one output: the base's, or more where the noise asks for it."""
    unequal = error = 0.0
    sqnr_db = math.inf
    for found in noise:
        unequal = max(unequal, found.get("unequal", 0.0))
        error = max(error, found.get("max_abs", 0.0))
        sqnr_db = min(sqnr_db, found.get("sqnr_db", math.inf))
    magnitude = max(1.0, *map(_magnitude, arrays))
    atol = max(base.max_abs * magnitude, NOISE_FACTOR * error)
    least = min(base.sqnr_db, sqnr_db - _decibels(NOISE_FACTOR))
    return {
        "atol": atol,
        # of an output of zeros the SQNR says nothing, and JSON has no infinity
        "min_sqnr_db": least if math.isfinite(least) else None,
        "floor": base.floor,
        "unequal": min(1.0, NOISE_FACTOR * unequal),
    }


def _decibels(factor: float) -> float:
    return 20 * math.log10(factor)


def _magnitude(array: NDArray[Any]) -> float:
    """Largest finite |x| of floats; 0 of anything else."""
    if array.dtype.kind != "f" or not array.size:
        return 0.0
    values = np.abs(array.astype(np.float64))
    finite = values[np.isfinite(values)]
    return float(finite.max(initial=0.0))
