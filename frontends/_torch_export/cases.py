"""An exported model beside what torch computed, and the comparison of the two. Needs no torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ... import CheckError

Arrays = dict[str, NDArray[Any]]
"""Tensors by input or output name."""

_TOLERANCES = {"float16": (1e-2, 1e-2), "bfloat16": (5e-2, 5e-2)}
"""Default (atol, rtol) by type: the tolerance grows as the mantissa shrinks (10 and 7 bits).

Chosen by hand; not measured.
"""

_TOLERANCE = (1e-4, 1e-3)
"""Default (atol, rtol) of every other type. Chosen by hand; not measured."""


@dataclass(frozen=True)
class OutputDifference:
    """One output y' against torch's y.

    `max_abs`: largest |y - y'|. `max_rel`: largest |y - y'| / |y|. `outside`: number of values
    beyond the tolerance. `problem`: why the two cannot be compared at all.
    """

    max_abs: float
    max_rel: float
    outside: int
    problem: str | None = None


@dataclass
class Case:
    """One call: its inputs, torch's outputs, and how far ONNX's are from them.

    `sizes`: sizes of the dynamic dims by name. `tensors`: the inputs as torch tensors.
    """

    sizes: dict[str, int]
    feeds: Arrays
    expected: Arrays
    tensors: list[Any] = field(default_factory=list, repr=False)
    differences: dict[str, OutputDifference] = field(default_factory=dict)

    def compare(
        self, got: Mapping[str, Any], atol: float | None, rtol: float | None
    ) -> str | None:
        """Fill `differences`; return the reason why the outputs disagree, None if they agree."""
        for name, expected in self.expected.items():
            array = np.asarray(got[name])
            found = output_difference(
                expected,
                array,
                atol,
                rtol,
            )
            self.differences[name] = found
        worst = self._worst()
        if worst is None:
            return None
        found = self.differences[worst]
        where = "".join(f" at {dim} {size}" for dim, size in self.sizes.items())
        if found.problem:
            return f"output '{worst}'{where}: {found.problem}"
        count = self.expected[worst].size
        return (
            f"output '{worst}'{where} is off in {found.outside} of "
            f"{count} values: "
            f"max abs error {found.max_abs:.3g}, "
            f"max rel {found.max_rel:.3g}"
        )

    def _worst(self) -> str | None:
        """Name of the output that is furthest off, one that cannot be compared first."""

        def severity(name: str) -> tuple[bool, float]:
            found = self.differences[name]
            return found.problem is not None, found.max_abs

        wrong = [
            name
            for name, found in self.differences.items()
            if found.problem or found.outside
        ]
        return max(wrong, key=severity, default=None)


def output_difference(
    expected: NDArray[Any], got: NDArray[Any], atol: float | None, rtol: float | None
) -> OutputDifference:
    """Compare an output with torch's: values beyond atol + rtol |y| are outside.

    Without tolerances those of the type apply, and the default atol is relative to the largest |y|
    where that is above 1.
    """
    if expected.shape != got.shape:
        problem = f"shape {list(got.shape)} where torch gives {list(expected.shape)}"
        return OutputDifference(
            max_abs=math.inf,
            max_rel=math.inf,
            outside=0,
            problem=problem,
        )
    is_complex = expected.dtype.kind == "c"
    wide = np.complex128 if is_complex else np.float64
    y = expected.astype(wide)
    z = got.astype(wide)
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        # an infinity minus itself is NaN, so equal values are set apart before subtracting
        both_nan = np.isnan(y) & np.isnan(z)
        same = (y == z) | both_nan
        distance = np.abs(y - z)
        error = np.where(same, 0.0, distance)
        # what is NaN by now is so on one side only
        one_nan = np.isnan(error)
        error = np.where(one_nan, math.inf, error)
        finite = np.isfinite(y)
        magnitudes = np.abs(y)
        magnitude = np.where(finite, magnitudes, 0.0)
        ratios = error / magnitude
        relative = np.where(magnitude > 0, ratios, 0.0)
        if atol is None and rtol is None:
            atol, rtol = _TOLERANCES.get(expected.dtype.name, _TOLERANCE)
            largest = float(magnitude.max(initial=0.0))
            atol *= max(1.0, largest)
        absolute = atol or 0.0
        share = rtol or 0.0
        allowed = absolute + share * magnitude
        is_outside = error > allowed
        outside = np.count_nonzero(is_outside)
    return OutputDifference(
        max_abs=float(error.max(initial=0.0)),
        max_rel=float(relative.max(initial=0.0)),
        outside=int(outside),
    )


@dataclass
class Exported:
    """An exported model, and what torch gives to check it with.

    `cases`: torch's outputs at the sizes of the arguments and at others. `dims`: names of the
    dynamic dims.
    """

    model: ir.Model
    where: str
    cases: list[Case] = field(default_factory=list)
    dims: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def check(
        self,
        run: Callable[[Sequence[Arrays]], Sequence[Arrays]],
        atol: float | None = None,
        rtol: float | None = None,
    ) -> None:
        """Compare with torch. Errors: CheckError, with the output that is furthest off."""
        feeds = [case.feeds for case in self.cases]
        results = run(feeds)
        for case, got in zip(self.cases, results, strict=True):
            problem = case.compare(got, atol, rtol)
            if problem is not None:
                raise CheckError(
                    self.where,
                    f"ONNX Runtime does not agree with torch: {problem}",
                    "set --atol and --rtol if that is close enough; else try another opset",
                )
