"""Drift of outputs from the original's: streaming figures, one set an output and one overall."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import CheckError
from ..passes._core.variation import ColumnSums
from .rows import RowMatches, differ_in_rows, padded_rows

Outputs = Mapping[str, NDArray[Any]]

PIECE = 1 << 15
"""Values that are looked at together, few enough for the cache. Measured on 12.6 million logits: an
eighth of the time that all at once take, and 685 MB less.
"""

FEWEST_VALUES = 16
"""Values of each column from which it is told how they vary. Chosen by hand."""

MOVED = 0.5
"""Rows that count as lost where all that changed is their order. Chosen by hand."""

SHAPE_FIX = (
    "compare models with the same interface on the same data; where the data decides this length, "
    "as behind NonZero, transpose the output so that it is the first axis, or end the model before"
)
"""Advice on outputs whose shapes differ in more than their number of rows."""

QUANTITIES = "fcV"
"""Kinds of numpy's types whose differences mean something; V is bfloat16."""


@dataclass(frozen=True)
class Drift:
    """Distance of outputs from the reference.

    sqnr_db: 10 log10(sum y^2 / sum (y - y')^2), in dB; inf when identical. cosine: of all values as
    one vector; 1 when identical. max_abs, max_rel: largest |y - y'| and |y - y'| / |y| (y not 0).
    top1_agreement: fraction of rows with the same argmax on the last axis, or of equal labels, None
    where that means nothing. nonfinite: positions where y is finite and y' not. variation_db: SQNR
    of what varies between samples, as in `passes._core.variation`; NaN where nothing does, or where
    there are few.
    """

    sqnr_db: float
    cosine: float
    max_abs: float
    max_rel: float
    top1_agreement: float | None
    nonfinite: int
    variation_db: float = math.nan

    @property
    def identical(self) -> bool:
        """True if no value differs."""
        return self.max_abs == 0 and self.nonfinite == 0

    @property
    def is_without_signal(self) -> bool:
        """True if the reference is all zeros, and the rest is not: SQNR says nothing then."""
        is_broken = self.nonfinite > 0 or math.isinf(self.max_abs)
        return self.sqnr_db == -math.inf and not is_broken

    def to_json(self) -> dict[str, Any]:
        """Give the figures as JSON values.

        JSON cannot hold infinity: an infinite SQNR is null, beside `identical`: true.
        """
        return {
            "sqnr_db": _finite_or_none(self.sqnr_db),
            "cosine": self.cosine,
            "max_abs": _finite_or_none(self.max_abs),
            "max_rel": _finite_or_none(self.max_rel),
            "top1_agreement": self.top1_agreement,
            "nonfinite": self.nonfinite,
            "identical": self.identical,
        }


def _finite_or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


class _Sums:
    """Running sums of one output, in float64."""

    def __init__(self) -> None:
        self.signal = 0.0
        self.noise = 0.0
        self.product = 0.0
        self.power = 0.0
        self.max_abs = 0.0
        self.max_rel = 0.0
        self.rows = 0
        self.agreeing = 0
        self.nonfinite = 0
        self.is_measured = True
        """Its values are quantities: not labels, indices, truth values or texts."""
        self._columns = ColumnSums()
        self._matches = RowMatches()

    def update(
        self, reference: NDArray[Any], got: NDArray[Any], by_rows: bool = False
    ) -> None:
        """Take one batch; `by_rows`: as of a `DriftMeter`."""
        self.is_measured = reference.dtype.kind in QUANTITIES
        if by_rows and not self.is_measured:
            self._matches.update(reference, got)
        y, z = padded_rows(reference, got)
        same_choice = self._same_choices(y, z)
        if same_choice is not None:
            # a row that only one of them has is no choice of both
            shared = min(len(reference), len(got))
            same_choice[shared:] = False
            agreeing = np.sum(same_choice)
            self.rows += same_choice.size
            self.agreeing += int(agreeing)
        flat = y.reshape(-1)
        other = z.reshape(-1)
        for piece in pieces(flat.size):
            self._take(*_numbers(flat[piece], other[piece]))
        if reference.dtype.kind in "fV":
            self._columns.update(y, z)

    def _take(self, y: NDArray[np.float64], z: NDArray[np.float64]) -> None:
        """Add values of which some may not be finite."""
        if np.isfinite(y).all() and np.isfinite(z).all():
            self._add(y, z)
            return
        with np.errstate(invalid="ignore", over="ignore"):
            equal = y == z
            both_nan = np.isnan(y) & np.isnan(z)
        same = equal | both_nan
        y_finite = np.isfinite(y)
        z_finite = np.isfinite(z)
        lost = y_finite & ~z_finite
        self.nonfinite += int(np.count_nonzero(lost))
        usable = y_finite & z_finite
        # infinite or NaN in the reference, something else in the other
        unlike = ~(same | lost | usable)
        if unlike.any():
            self.max_abs = math.inf
        self._add(y[usable], z[usable])

    def _same_choices(
        self, reference: NDArray[Any], got: NDArray[Any]
    ) -> NDArray[Any] | None:
        """Mask of the rows with the same choice of a class or label; None where none is made."""
        if has_classes(reference):
            choices = reference.argmax(-1)
            same: NDArray[Any] = choices == got.argmax(-1)
            return same
        if not self.is_measured and has_labels(reference):
            return np.asarray(reference == got)
        return None

    def _add(self, y: NDArray[np.float64], z: NDArray[np.float64]) -> None:
        """Add finite values."""
        if not y.size:
            return
        error = np.abs(y - z)
        self.signal += _dot(y, y)
        self.noise += _dot(error, error)
        self.product += _dot(y, z)
        self.power += _dot(z, z)
        self.max_abs = max(self.max_abs, float(error.max()))
        # relative to zero every error would be infinite
        nonzero = y != 0
        if nonzero.any():
            magnitude = np.abs(y[nonzero])
            relative = error[nonzero] / magnitude
            self.max_rel = max(self.max_rel, float(relative.max()))

    def add(self, other: _Sums) -> None:
        """Add the sums of another output."""
        self.signal += other.signal
        self.noise += other.noise
        self.product += other.product
        self.power += other.power
        self.max_abs = max(self.max_abs, other.max_abs)
        self.max_rel = max(self.max_rel, other.max_rel)
        self.rows += other.rows
        self.agreeing += other.agreeing
        self.nonfinite += other.nonfinite

    def judged(self) -> _Sums:
        """Sums of what tells: of rows in common, 1 for each, where places say nothing."""
        matches = self._matches
        if not matches.is_unordered:
            return self
        lost = matches.rows - matches.common
        sums = _Sums()
        sums.is_measured = False
        sums.signal = sums.power = float(matches.rows)
        sums.product = float(matches.common)
        # rows that only moved are no loss, and yet not the original's bit by bit
        sums.noise = max(float(lost), MOVED)
        sums.max_abs = sums.max_rel = 1.0
        sums.rows = matches.rows
        sums.agreeing = matches.common
        return sums

    def drift(self) -> Drift:
        top1_agreement = None
        if self.rows:
            top1_agreement = self.agreeing / self.rows
        return Drift(
            sqnr_db=self._sqnr(),
            cosine=self._cosine(),
            max_abs=self.max_abs,
            max_rel=self.max_rel,
            top1_agreement=top1_agreement,
            nonfinite=self.nonfinite,
            variation_db=self._variation_db(),
        )

    def _variation_db(self) -> float:
        """SQNR in dB of what varies; NaN where nothing does, or of few values."""
        if self._columns.count < FEWEST_VALUES:
            return math.nan
        lost = self._columns.lost()
        if math.isnan(lost):
            return math.nan
        return math.inf if lost == 0 else -10 * math.log10(lost)

    @property
    def _is_broken(self) -> bool:
        return self.nonfinite > 0 or math.isinf(self.max_abs)

    def _sqnr(self) -> float:
        if self.noise == 0:
            # values that are not finite have no part in the sums, and must not pass for equal
            return -math.inf if self._is_broken else math.inf
        if self.signal == 0:
            return -math.inf
        ratio = self.signal / self.noise
        return 10 * math.log10(ratio)

    def _cosine(self) -> float:
        if self.noise == 0:
            return 0.0 if self._is_broken else 1.0
        norm = math.sqrt(self.signal) * math.sqrt(self.power)
        if norm == 0:
            return 0.0
        cosine = self.product / norm
        # rounding can carry it past 1
        return min(max(cosine, -1.0), 1.0)


class DriftMeter:
    """Drift of outputs, batch by batch; memory does not grow with the data.

    `by_rows`: the number of rows of an output, its first axis, may change, as a lossy pass may
    change it where the data decides it. Floats are compared as far as both have rows, and the rest
    is lost; of all else the rows in common count, see `RowMatches`.
    """

    def __init__(self, by_rows: bool = False) -> None:
        self.by_rows = by_rows
        self._sums: dict[str, _Sums] = {}
        self.batches = 0

    def update(self, reference: Outputs, got: Outputs) -> None:
        """Take one batch of outputs.

        Errors: CheckError when an output is missing or has another shape or kind.
        """
        if set(reference) != set(got):
            raise CheckError(
                "outputs",
                f"{_names(got)} instead of {_names(reference)}",
                "compare models with the same outputs",
            )
        for name, value in reference.items():
            expected = np.asarray(value)
            actual = np.asarray(got[name])
            is_loose = self.by_rows and differ_in_rows(expected, actual)
            if expected.shape != actual.shape and not is_loose:
                raise CheckError(
                    f"output '{name}'",
                    f"shape {_shape(actual)} instead of {_shape(expected)}",
                    SHAPE_FIX,
                )
            sums = self._sums.setdefault(name, _Sums())
            sums.update(expected, actual, self.by_rows)
        self.batches += 1

    def per_output(self) -> dict[str, Drift]:
        """Drift of each output, in the order of the first batch."""
        return {name: sums.judged().drift() for name, sums in self._sums.items()}

    def overall(self) -> Drift:
        """Drift of all outputs together: sums added, worst maxima.

        SQNR and cosine are of quantities alone, unless these do not differ or there are none: the
        numbers of classes would outweigh them, and say nothing by their size. The agreement is of
        all outputs.
        """
        judged = [sums.judged() for sums in self._sums.values()]
        total = _sum_of(judged)
        measured = _sum_of(each for each in judged if each.is_measured)
        if measured.noise == 0:
            return total.drift()
        drift = measured.drift()
        return dataclasses.replace(
            drift,
            max_abs=total.max_abs,
            max_rel=total.max_rel,
            top1_agreement=total.drift().top1_agreement,
            nonfinite=total.nonfinite,
        )


def _sum_of(parts: Iterable[_Sums]) -> _Sums:
    total = _Sums()
    for part in parts:
        total.add(part)
    return total


def pieces(size: int) -> Iterator[slice]:
    """Slices of a flat array that are small enough for the cache, as are copies of them."""
    for start in range(0, size, PIECE):
        yield slice(start, start + PIECE)


def has_classes(output: NDArray[Any]) -> bool:
    """Return whether an argmax over the last axis can mean something: float scores of rows."""
    # kind V is bfloat16
    if output.dtype.kind not in "fV" or output.ndim < 2:
        return False
    return output.shape[-1] > 1 and output.size > 0


def has_labels(output: NDArray[Any]) -> bool:
    """Return whether an output that is no quantity holds one label a row."""
    return output.ndim == 1 or (output.ndim == 2 and output.shape[1] == 1)


def _numbers(
    reference: NDArray[Any], got: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both (n,) in float64; text becomes 1 and, where it differs, 0."""
    if reference.dtype.kind in "OUS":
        same_text = reference.astype(str) == got.astype(str)
        z = np.asarray(same_text, np.float64)
        return np.ones_like(z), z
    return reference.astype(np.float64), got.astype(np.float64)


def _dot(first: NDArray[np.float64], second: NDArray[np.float64]) -> float:
    # not @, which wakes threads for it: on busy cores they take ten times as long
    return float(np.einsum("i,i->", first, second))


def _names(outputs: Outputs) -> str:
    if not outputs:
        return "no outputs"
    quoted = [f"'{name}'" for name in outputs]
    return ", ".join(quoted)


def _shape(array: NDArray[Any]) -> str:
    return str(list(array.shape))
