"""Training data: feeds collected once beside the teacher's values, then drawn in any order."""

from __future__ import annotations

import math
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError

Array = NDArray[Any]
Arrays = dict[str, Array]
Units = NDArray[np.int64]
"""Numbers of units of `Samples`, in any order."""

TrainingBatch = tuple[Mapping[str, Array], Array | None]
"""Feeds by input name, and labels or None."""

MEMORY_BYTES = 1 << 30
"""Bytes of data kept in memory; what comes after goes to temporary files that are mapped.

Chosen by hand to fit small machines beside the model and torch; not measured.
"""

LEAST_ROWS = 16
"""Rows below which nothing is trained: 8 to learn from and 8 to judge by say hardly anything."""

UNASKED_ROWS = 64
"""Rows below which nothing is trained unless a budget is named: of those held out too few say
whether it got better. Chosen by hand."""

LEAST_HELD_ROWS = 8
"""Rows held out at the least, so that a score has steps of an eighth; chosen by hand."""

MOST_HELD_ROWS = 1000
"""Rows held out at the most: a share of right rows then has a deviation of at most 1.6 %."""

SPLIT_STREAM = 1
"""Second word of the seed that splits rows; other draws of the same seed have other words."""

ORDER_STREAM = 2
"""Second word of the seed that shuffles epochs."""


class TooFewSamples(RefusedError):
    """Data of too few samples to train on."""


@dataclass(frozen=True)
class Example:
    """Rows that go through the model together.

    `feeds`: inputs by name. `labels`: None where there are none. `targets`: the teacher's values by
    name.
    """

    feeds: Arrays
    labels: Array | None
    targets: Arrays = field(default_factory=dict)

    @property
    def rows(self) -> int:
        first = next(iter(self.feeds.values()), np.zeros(()))
        return len(first) if first.ndim else 1


class Column:
    """Rows of one array: first appended, then drawn.

    They are in memory, or in a file that is mapped once `spill` was called.
    """

    def __init__(self) -> None:
        self._parts: list[Array] = []
        self._file: IO[bytes] | None = None
        self._rows: Array | None = None
        self.length = 0

    def append(self, rows: Array) -> int:
        """Add rows; return the bytes that this adds to memory."""
        self.length += len(rows)
        if self._file is not None:
            self._write(rows)
            return 0
        self._parts.append(rows)
        return rows.nbytes

    def spill(self, folder: Path) -> None:
        """Move rows to a file in the folder; those that follow go there at once."""
        if self._file is not None:
            return
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - as long as the column
        for part in self._parts:
            self._write(part)
        # the first part stays: it knows dtype and shape of a row
        self._parts = self._parts[:1]

    def _write(self, rows: Array) -> None:
        assert self._file is not None
        contiguous = np.ascontiguousarray(rows)
        self._file.write(contiguous.tobytes())

    def close(self) -> None:
        """Drop the file; rows that were drawn are copies and stay."""
        self._rows = None
        if self._file is not None:
            self._file.close()

    def rows(self, index: Sequence[int] | Units) -> Array:
        """Return a copy of these rows."""
        if self._rows is None:
            self._rows = self._joined()
        # indexing by an array copies, also from a mapped file
        places = np.asarray(index)
        return np.asarray(self._rows[places])

    def _joined(self) -> Array:
        """All rows as one array; of a file, mapped."""
        first = self._parts[0]
        if self._file is not None:
            self._file.flush()
            return np.memmap(
                self._file,
                dtype=first.dtype,
                mode="r",
                shape=(self.length, *first.shape[1:]),
            )
        rows = first
        if len(self._parts) > 1:
            rows = np.concatenate(self._parts)
        # dropped at once: parts and rows together would be twice the data
        self._parts = []
        return rows


class Samples:
    """All data of a training, in units that can be drawn in any order.

    A unit is one row where every batch has rows of one shape along axis 0, else a whole batch as it
    came (`ragged`): from the first batch on that does not fit the others. `whole`: batches must
    stay as they came.
    """

    def __init__(self, whole: bool, folder: Path) -> None:
        self.ragged = whole
        self._folder = folder
        self._row_form: Any = None
        self._lengths: list[int] = []
        self._feeds: dict[str, Column] = {}
        self._targets: dict[str, Column] = {}
        self._labels: Column | None = None
        self._batches: list[Example] = []
        self._bytes_in_memory = 0
        self._unlabelled = False

    @property
    def units(self) -> int:
        if self.ragged:
            return len(self._batches)
        first = next(iter(self._feeds.values()))
        return first.length

    @property
    def rows(self) -> int:
        if self.ragged:
            return sum(batch.rows for batch in self._batches)
        return self.units

    @property
    def labelled(self) -> bool:
        return not self._unlabelled

    def rows_per_unit(self) -> float:
        """Mean rows of a unit: 1, or those of a batch."""
        return self.rows / self.units

    def rows_in(self, units: Units) -> int:
        """Number of rows in these units."""
        if self.ragged:
            return sum(self._batches[unit].rows for unit in units)
        return len(units)

    def add(self, batch: Example) -> None:
        """Keep a batch."""
        if batch.labels is None:
            self._unlabelled = True
        form = _row_form(batch)
        fits = form is not None and self._row_form in (None, form)
        if not self.ragged and not fits:
            self._rejoin_batches()
        if self.ragged:
            self._batches.append(batch)
            return
        self._row_form = form
        # kept for the case that a later batch does not fit and all become batches again
        self._lengths.append(batch.rows)
        self._append(self._feeds, batch.feeds)
        self._append(self._targets, batch.targets)
        if batch.labels is not None:
            if self._labels is None:
                self._labels = Column()
            self._bytes_in_memory += self._labels.append(batch.labels)
        if self._bytes_in_memory > MEMORY_BYTES:
            for column in self._columns():
                column.spill(self._folder)

    def _append(self, columns: dict[str, Column], arrays: Arrays) -> None:
        for name, array in arrays.items():
            if name not in columns:
                columns[name] = Column()
            self._bytes_in_memory += columns[name].append(array)

    def _columns(self) -> list[Column]:
        """Columns that may go to files; labels stay in memory."""
        return [*self._feeds.values(), *self._targets.values()]

    def close(self) -> None:
        """Drop what is kept in files."""
        for column in self._columns():
            column.close()

    def take(self, units: Units, most: int) -> list[Example]:
        """Return these units in examples of at most `most` rows each.

        They are alike in size: statistics of a few rows left over would say nothing. A batch that
        came whole stays whole.
        """
        if self.ragged:
            return [self._batches[unit] for unit in units]
        count = math.ceil(len(units) / most)
        count = max(count, 1)
        # pieces differ by one row at most
        pieces = np.array_split(units, count)
        return [self._example(piece) for piece in pieces if len(piece)]

    def _rejoin_batches(self) -> None:
        """Turn rows back into the batches that they came in."""
        start = 0
        for length in self._lengths:
            rows = np.arange(start, start + length)
            self._batches.append(self._example(rows))
            start += length
        self.ragged = True

    def _example(self, index: Units) -> Example:
        labels = None
        # one batch without labels leaves all without: a part of them has no use
        if self._labels is not None and not self._unlabelled:
            labels = self._labels.rows(index)
        return Example(
            feeds=_rows_of(self._feeds, index),
            labels=labels,
            targets=_rows_of(self._targets, index),
        )


def _rows_of(columns: Mapping[str, Column], index: Units) -> Arrays:
    return {name: column.rows(index) for name, column in columns.items()}


def _row_form(batch: Example) -> list[tuple[Any, ...]] | None:
    """Return what batches must share to be taken apart into rows, None if this one cannot be."""
    form = []
    lengths = set()
    arrays = {**batch.feeds, **batch.targets}
    for name, array in sorted(arrays.items()):
        if array.ndim == 0:
            return None
        lengths.add(array.shape[0])
        form.append((name, array.dtype, array.shape[1:]))
    if len(lengths) != 1:
        return None
    if batch.labels is not None and len(batch.labels) != batch.rows:
        return None
    return form


@dataclass(frozen=True)
class Split:
    """Units to train on and units held out, disjoint."""

    train: Units
    held: Units


def split(
    samples: Samples,
    fraction: float,
    seed: int,
    most: int = MOST_HELD_ROWS,
    least: int = LEAST_ROWS,
) -> Split:
    """Hold out a random fraction of the units, 8 rows at least and `most` at most.

    Errors: TooFewSamples for fewer rows than `least`.
    """
    if samples.rows < least or samples.units < 2:
        problem = f"holds {samples.rows} samples"
        if samples.ragged:
            problem += f" in {samples.units} batch"
        raise TooFewSamples(
            "finetune, data",
            f"{problem}: too few to train on and to judge by",
            f"give at least {least} samples, hundreds are better; labels are not needed",
        )
    rows = max(fraction * samples.rows, LEAST_HELD_ROWS)
    units = round(min(rows, most) / samples.rows_per_unit())
    # one unit at least on both sides, whatever its rows
    count = min(max(units, 1), samples.units - 1)
    random = np.random.default_rng([seed, SPLIT_STREAM])
    order = random.permutation(samples.units)
    return Split(
        train=np.sort(order[count:]),
        held=np.sort(order[:count]),
    )


def spread(units: Units, rows: int, samples: Samples) -> Units:
    """Return so many of these units as hold about `rows` rows, taken evenly over all of them.

    Data is often sorted by what it shows: the first rows would be of one kind.
    """
    wanted = round(rows / samples.rows_per_unit())
    count = max(min(wanted, len(units)), 1)
    places = np.linspace(
        start=0,
        stop=len(units) - 1,
        num=count,
    )
    nearest = places.round()
    return units[nearest.astype(np.int64)]


class Order:
    """The units of each step: every epoch all of them, shuffled by the seed.

    It is a function of the step alone, so that an interrupted training goes on with the same rows.
    `steps`: those of an epoch; units left over wait for another epoch's order.
    """

    def __init__(self, units: Units, each: int, seed: int) -> None:
        self._units = units
        self._each = min(each, len(units))
        self._seed = seed
        self._epoch = -1
        self._shuffled = units
        self.steps = max(len(units) // self._each, 1)

    def units(self, step: int) -> Units:
        """Return the units of a step, counted from 0 over all epochs."""
        epoch, place = divmod(step, self.steps)
        start = place * self._each
        stop = start + self._each
        return self._of_epoch(epoch)[start:stop]

    def _of_epoch(self, epoch: int) -> Units:
        """Return all units in the order of an epoch, the last one asked for being kept."""
        if epoch != self._epoch:
            seed = [self._seed, ORDER_STREAM, epoch]
            random = np.random.default_rng(seed)
            self._epoch = epoch
            self._shuffled = random.permutation(self._units)
        return self._shuffled
