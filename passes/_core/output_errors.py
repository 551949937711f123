"""Errors at a model's outputs by changes of its layers: sums over data, which add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import UsageError

Change = tuple[str, str]
"""Name of a weight, and the form that its layers take."""

Sums = NDArray[np.float64]


@dataclass(frozen=True)
class OutputErrors:
    """Sums over runs of a model of the errors that changes cause at its K float outputs.

    `squares`: (K, changes), of the mean square that a change adds to an output; `draws`: (K,), how
    many of these were summed. `powers`: (K,), of the mean square of each output, `runs` of them.
    """

    outputs: tuple[str, ...]
    changes: tuple[Change, ...]
    squares: Sums
    draws: Sums
    powers: Sums
    runs: int

    @staticmethod
    def none(outputs: Sequence[str], changes: Sequence[Change]) -> OutputErrors:
        """Sums before the first run."""
        count = len(outputs)
        return OutputErrors(
            tuple(outputs),
            tuple(changes),
            squares=np.zeros((count, len(changes))),
            draws=np.zeros(count),
            powers=np.zeros(count),
            runs=0,
        )

    def merged(self, other: OutputErrors) -> OutputErrors:
        """Sums over the data of both. Errors: UsageError for other outputs or changes."""
        same = self.outputs == other.outputs and self.changes == other.changes
        if not same:
            raise UsageError(
                "sensitivities",
                "they are of other outputs or other changes and do not add up",
                "merge those of one model, in the same forms",
            )
        return OutputErrors(
            self.outputs,
            self.changes,
            squares=self.squares + other.squares,
            draws=self.draws + other.draws,
            powers=self.powers + other.powers,
            runs=self.runs + other.runs,
        )

    def beside(self, other: OutputErrors) -> OutputErrors:
        """Sums of other changes, too, that were measured in the same runs."""
        return OutputErrors(
            self.outputs,
            self.changes + other.changes,
            squares=np.concatenate([self.squares, other.squares], axis=1),
            draws=self.draws,
            powers=self.powers,
            runs=self.runs,
        )

    def shares(self) -> dict[Change, float]:
        """Share of the outputs' mean square that each change costs, the mean over outputs.

        Outputs that are zero in all runs, or that no draw looked at, do not count; NaN where none
        is left.
        """
        counted = (self.powers > 0) & (self.draws > 0)
        if not counted.any():
            return dict.fromkeys(self.changes, float("nan"))
        errors = self.squares[counted] / self.draws[counted, None]
        signals = self.powers[counted] / self.runs
        means = (errors / signals[:, None]).mean(axis=0)
        return {
            change: float(share)
            for change, share in zip(self.changes, means, strict=True)
        }

    def as_dict(self) -> dict[str, Any]:
        """Plain lists and numbers, for JSON."""
        return {
            "outputs": list(self.outputs),
            "changes": [list(change) for change in self.changes],
            "squares": self.squares.tolist(),
            "draws": self.draws.tolist(),
            "powers": self.powers.tolist(),
            "runs": self.runs,
        }

    @staticmethod
    def from_dict(facts: Mapping[str, Any]) -> OutputErrors:
        """Sums from what `as_dict` gave. Errors: KeyError, TypeError, ValueError for all else."""
        outputs = tuple(facts["outputs"])
        changes = tuple((weight, form) for weight, form in facts["changes"])
        shape = (len(outputs), len(changes))
        return OutputErrors(
            outputs,
            changes,
            squares=np.asarray(facts["squares"], np.float64).reshape(shape),
            draws=np.asarray(facts["draws"], np.float64).reshape(len(outputs)),
            powers=np.asarray(facts["powers"], np.float64).reshape(len(outputs)),
            runs=int(facts["runs"]),
        )
