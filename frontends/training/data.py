"""Training data: feeds collected once, what the teacher says of them beside, rows drawn in any
order.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError

Array = NDArray[Any]
Arrays = dict[str, Array]
HELD_BYTES = 1 << 30
"""Of data kept in memory; what goes beyond is kept in temporary files and mapped."""
LEAST_ROWS = 16


@dataclass(frozen=True)
class Example:
    """Rows that go through the model together: inputs, labels where there are some, the teacher's
    values by name.
    """

    feeds: Arrays
    labels: Array | None
    targets: Arrays = field(default_factory=dict)

    @property
    def rows(self) -> int:
        first = next(iter(self.feeds.values()), np.zeros(()))
        return len(first) if first.ndim else 1


class Column:
    """Rows of one array, appended, then drawn; in memory, or mapped from a file once `spill` was
    called.
    """

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._file: IO[bytes] | None = None
        self._rows: Array | None = None
        self.length = 0

    def append(self, rows: Array) -> int:
        """Bytes that this adds to memory."""
        self.length += len(rows)
        if self._file is not None:
            self._file.write(np.ascontiguousarray(rows).tobytes())
            return 0
        self._parts.append(rows)
        return rows.nbytes

    def spill(self, folder: Path) -> None:
        """From now on rows go to a file."""
        if self._file is None:
            self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - lives as long as the column
            for part in self._parts:
                self._file.write(np.ascontiguousarray(part).tobytes())
            self._parts = self._parts[:1]

    def close(self) -> None:
        """Drop the file; rows that were drawn are copies and stay."""
        self._rows = None
        if self._file is not None:
            self._file.close()

    def rows(self, index: Sequence[int] | NDArray[np.int64]) -> Array:
        """A copy of these rows."""
        if self._rows is None:
            if self._file is None:
                self._rows = (
                    np.concatenate(self._parts)
                    if len(self._parts) > 1
                    else self._parts[0]
                )
                self._parts = []
            else:
                self._file.flush()
                first = self._parts[0]
                self._rows = np.memmap(
                    self._file, first.dtype, "r", shape=(self.length, *first.shape[1:])
                )
        return np.asarray(self._rows[np.asarray(index)])


class Samples:
    """All data, in units that can be drawn in any order.

    A unit is one row where every batch has rows of one shape along axis 0, else a whole batch as it
    came (`ragged`): from the first batch on that does not fit the others. `whole`: batches must
    stay as they came.
    """

    def __init__(self, whole: bool, folder: Path) -> None:
        self.ragged = whole
        self._folder = folder
        self._form: Any = None
        self._lengths: list[int] = []
        self._feeds: dict[str, Column] = {}
        self._targets: dict[str, Column] = {}
        self._labels: Column | None = None
        self._batches: list[Example] = []
        self._held = 0
        self._unlabelled = False

    @property
    def units(self) -> int:
        return (
            len(self._batches)
            if self.ragged
            else next(iter(self._feeds.values())).length
        )

    @property
    def rows(self) -> int:
        return sum(b.rows for b in self._batches) if self.ragged else self.units

    @property
    def labelled(self) -> bool:
        return not self._unlabelled

    def rows_of_a_unit(self) -> float:
        """Mean rows of a unit: 1, or of a batch."""
        return self.rows / self.units

    def rows_in(self, units: NDArray[np.int64]) -> int:
        """Rows of these units."""
        return (
            sum(self._batches[unit].rows for unit in units)
            if self.ragged
            else len(units)
        )

    def add(self, batch: Example) -> None:
        """Keep a batch."""
        self._unlabelled |= batch.labels is None
        form = _form_of(batch)
        if not self.ragged and (form is None or self._form not in (None, form)):
            self._come_apart()
        if self.ragged:
            self._batches.append(batch)
            return
        self._form = form
        self._lengths.append(batch.rows)
        for columns, arrays in (
            (self._feeds, batch.feeds),
            (self._targets, batch.targets),
        ):
            for name, array in arrays.items():
                self._held += columns.setdefault(name, Column()).append(array)
        if batch.labels is not None:
            self._labels = self._labels or Column()
            self._held += self._labels.append(batch.labels)
        if self._held > HELD_BYTES:
            for column in (*self._feeds.values(), *self._targets.values()):
                column.spill(self._folder)

    def close(self) -> None:
        """Drop what is kept in files."""
        for column in (*self._feeds.values(), *self._targets.values()):
            column.close()

    def take(self, units: NDArray[np.int64], most: int) -> list[Example]:
        """These units, in examples of at most `most` rows, alike in size: statistics of a few left
        over say nothing. A batch that came whole stays whole.
        """
        if self.ragged:
            return [self._batches[unit] for unit in units]
        return [
            self._rows(part)
            for part in np.array_split(units, max(math.ceil(len(units) / most), 1))
            if len(part)
        ]

    def _come_apart(self) -> None:
        """Rows become the batches again that they came in."""
        stops = np.cumsum(self._lengths)
        self._batches = [
            self._rows(np.arange(stop - n, stop))
            for n, stop in zip(self._lengths, stops, strict=True)
        ]
        self.ragged = True

    def _rows(self, index: NDArray[np.int64]) -> Example:
        labels = (
            None
            if self._labels is None or self._unlabelled
            else self._labels.rows(index)
        )
        return Example(
            {n: c.rows(index) for n, c in self._feeds.items()},
            labels,
            {n: c.rows(index) for n, c in self._targets.items()},
        )


def _form_of(batch: Example) -> Any:
    """What batches must share to be taken apart into rows; None where this one cannot be."""
    arrays = {**batch.feeds, **batch.targets}
    lengths = {array.shape[0] if array.ndim else -1 for array in arrays.values()}
    if (
        len(lengths) != 1
        or -1 in lengths
        or (batch.labels is not None and len(batch.labels) != batch.rows)
    ):
        return None
    return [
        (name, array.dtype, array.shape[1:]) for name, array in sorted(arrays.items())
    ]


@dataclass(frozen=True)
class Split:
    """Units to train on and units held out, disjoint."""

    train: NDArray[np.int64]
    held: NDArray[np.int64]


def split(samples: Samples, fraction: float, seed: int, most: int = 1000) -> Split:
    """Hold out a random fraction, 8 rows at least and `most` at most. Errors: RefusedError for too
    few rows.
    """
    if samples.rows < LEAST_ROWS or samples.units < 2:
        problem = f"holds {samples.rows} samples" + (
            f" in {samples.units} batch" if samples.ragged else ""
        )
        raise RefusedError(
            "finetune, data",
            f"{problem}: too few to train on and to judge by",
            f"give at least {LEAST_ROWS} samples, hundreds are better; labels are not needed",
        )
    each = samples.rows_of_a_unit()
    wanted = min(max(fraction * samples.rows, 8), most) / each
    held = min(max(round(wanted), 1), samples.units - 1)
    order = np.random.default_rng([seed, 1]).permutation(samples.units)
    return Split(np.sort(order[held:]), np.sort(order[:held]))


def spread(units: NDArray[np.int64], rows: int, samples: Samples) -> NDArray[np.int64]:
    """So many of these units as hold about `rows` rows, taken evenly: data is often sorted by what
    it shows.
    """
    count = max(min(round(rows / samples.rows_of_a_unit()), len(units)), 1)
    return units[np.linspace(0, len(units) - 1, count).round().astype(np.int64)]


class Order:
    """Which units each step sees: every epoch all of them, shuffled by the seed; a function of the
    step alone.
    """

    def __init__(self, units: NDArray[np.int64], each: int, seed: int) -> None:
        self._units = units
        self._each = min(each, len(units))
        self._seed = seed
        self.steps = max(len(units) // self._each, 1)
        """Of an epoch; what is left over waits for another epoch's order."""

    def units(self, step: int) -> NDArray[np.int64]:
        epoch, place = divmod(step, self.steps)
        order = np.random.default_rng([self._seed, 2, epoch]).permutation(
            len(self._units)
        )
        return self._units[order[place * self._each : (place + 1) * self._each]]
