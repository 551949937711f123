"""How far outputs drifted from the original's: streaming figures, one set an output and one
overall.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .. import CheckError


@dataclass(frozen=True)
class Drift:
    """Distance of outputs from the reference.

    sqnr_db: 10 log10(sum y^2 / sum (y - y')^2), in dB; inf when identical. cosine: of all values as
    one vector; 1 when identical. max_abs, max_rel: largest |y - y'| and |y - y'| / |y| (y not 0).
    top1_agreement: fraction of rows with the same argmax on the last axis, None where that means
    nothing. nonfinite: positions where y is finite and y' not.
    """

    sqnr_db: float
    cosine: float
    max_abs: float
    max_rel: float
    top1_agreement: float | None
    nonfinite: int

    @property
    def identical(self) -> bool:
        return self.max_abs == 0 and self.nonfinite == 0

    def to_json(self) -> dict[str, Any]:
        """The figures as JSON values: an infinite SQNR, which JSON cannot hold, is null beside
        `identical`: true.
        """
        return {
            "sqnr_db": self.sqnr_db if math.isfinite(self.sqnr_db) else None,
            "cosine": self.cosine,
            "max_abs": self.max_abs if math.isfinite(self.max_abs) else None,
            "max_rel": self.max_rel if math.isfinite(self.max_rel) else None,
            "top1_agreement": self.top1_agreement,
            "nonfinite": self.nonfinite,
            "identical": self.identical,
        }


class _Sums:
    """Running sums of one output, in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = self.product = self.power = 0.0
        self.max_abs = self.max_rel = 0.0
        self.rows = self.agreeing = self.nonfinite = 0

    def update(self, reference: NDArray[Any], got: NDArray[Any]) -> None:
        if (
            reference.dtype.kind in "fV"
            and reference.ndim >= 2
            and reference.shape[-1] > 1
            and reference.size
        ):
            self.rows += reference.size // reference.shape[-1]
            self.agreeing += int(np.sum(reference.argmax(-1) == got.argmax(-1)))
        y, z = _numbers(reference, got)
        with np.errstate(invalid="ignore", over="ignore"):
            same = (y == z) | (np.isnan(y) & np.isnan(z))
        lost = np.isfinite(y) & ~np.isfinite(z)
        self.nonfinite += int(np.count_nonzero(lost))
        usable = np.isfinite(y) & np.isfinite(z)
        unlike = ~(
            same | lost | usable
        )  # infinite or NaN in the reference, something else in the other
        if unlike.any():
            self.max_abs = math.inf
        y, z = y[usable], z[usable]
        self._add(y, z, np.abs(y - z))

    def _add(
        self, y: NDArray[np.float64], z: NDArray[np.float64], error: NDArray[np.float64]
    ) -> None:
        if not y.size:
            return
        self.signal += float(y @ y)
        self.noise += float(error @ error)
        self.product += float(y @ z)
        self.power += float(z @ z)
        self.max_abs = max(self.max_abs, float(error.max()))
        nonzero = y != 0
        if nonzero.any():
            self.max_rel = max(
                self.max_rel, float((error[nonzero] / np.abs(y[nonzero])).max())
            )

    def add(self, other: _Sums) -> None:
        for name in (
            "signal",
            "noise",
            "product",
            "power",
            "rows",
            "agreeing",
            "nonfinite",
        ):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.max_abs, self.max_rel = (
            max(self.max_abs, other.max_abs),
            max(self.max_rel, other.max_rel),
        )

    def drift(self) -> Drift:
        broken = self.nonfinite > 0 or math.isinf(self.max_abs)
        if self.noise == 0:
            sqnr, cosine = (-math.inf, 0.0) if broken else (math.inf, 1.0)
        else:
            sqnr = (
                10 * math.log10(self.signal / self.noise)
                if self.signal > 0
                else -math.inf
            )
            norm = math.sqrt(self.signal) * math.sqrt(self.power)
            cosine = self.product / norm if norm > 0 else 0.0
        top1 = self.agreeing / self.rows if self.rows else None
        return Drift(
            sqnr,
            min(max(cosine, -1.0), 1.0),
            self.max_abs,
            self.max_rel,
            top1,
            self.nonfinite,
        )


class DriftMeter:
    """Drift of outputs, batch by batch; memory does not grow with the data."""

    def __init__(self) -> None:
        self._sums: dict[str, _Sums] = {}
        self.batches = 0

    def update(
        self, reference: Mapping[str, NDArray[Any]], got: Mapping[str, NDArray[Any]]
    ) -> None:
        """Take one batch of outputs. Errors: CheckError when an output is missing or has another
        shape or kind.
        """
        if set(reference) != set(got):
            raise CheckError(
                "outputs",
                f"{_names(got)} instead of {_names(reference)}",
                "compare models with the same outputs",
            )
        for name, expected in reference.items():
            actual = np.asarray(got[name])
            if np.shape(expected) != actual.shape:
                raise CheckError(
                    f"output '{name}'",
                    f"shape {_shape(actual)} instead of {_shape(np.asarray(expected))}",
                    "compare models with the same interface on the same data",
                )
            self._sums.setdefault(name, _Sums()).update(np.asarray(expected), actual)
        self.batches += 1

    def per_output(self) -> dict[str, Drift]:
        """Drift of each output, in the order of the first batch."""
        return {name: sums.drift() for name, sums in self._sums.items()}

    def overall(self) -> Drift:
        """All outputs together: sums added, worst maxima."""
        total = _Sums()
        for sums in self._sums.values():
            total.add(sums)
        return total.drift()


def _numbers(
    reference: NDArray[Any], got: NDArray[Any]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Both as flat float64; text becomes 1 and, where it differs, 0."""
    if reference.dtype.kind in "OUS":
        equal = np.asarray(
            reference.astype(str) == got.astype(str), np.float64
        ).reshape(-1)
        return np.ones_like(equal), equal
    return reference.astype(np.float64).reshape(-1), got.astype(np.float64).reshape(-1)


def _names(outputs: Mapping[str, Any]) -> str:
    return ", ".join(f"'{name}'" for name in outputs) or "no outputs"


def _shape(array: NDArray[Any]) -> str:
    return "[" + ", ".join(map(str, array.shape)) + "]"
