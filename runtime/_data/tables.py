"""Batches from tables, .csv and .parquet, by the names of their columns; read with pyarrow."""

from __future__ import annotations

import difflib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ..session import TensorInfo
from .arrays import BATCH

SUFFIXES = (".csv", ".parquet")

LABELS = ("labels", "label", "target")
"""Columns of labels, the first that is there and no input's."""


@dataclass(frozen=True)
class Table:
    """A table file, the columns that feed each input, and the column of labels.

    `batch`: rows of a batch; `exact`: the model takes no other number.
    """

    path: Path
    columns: dict[str, list[str]]
    label: str | None
    infos: dict[str, TensorInfo]
    batch: int
    exact: bool

    @staticmethod
    def open(path: Path, inputs: Sequence[TensorInfo]) -> Table:
        """Match columns to inputs: each by its name, or all but the labels to the only input.

        Errors: RefusedError for a missing file or column, UsageError without pyarrow.
        """
        if not path.is_file():
            raise RefusedError(
                f"data {path}", "no such file", "give the path of an existing table"
            )
        names = _column_names(path)
        infos = {info.name: info for info in inputs}
        label = _label_column(names, infos)
        columns = _matched(path.name, [n for n in names if n != label], inputs)
        fixed = {info.shape[0] for info in inputs if info.shape}
        exact = len(fixed) == 1 and isinstance(next(iter(fixed)), int)
        batch = int(str(fixed.pop())) if exact else BATCH
        return Table(
            path,
            columns,
            label,
            infos,
            batch,
            exact,
        )

    def batches(self) -> Iterator[tuple[dict[str, NDArray[Any]], NDArray[Any] | None]]:
        """Yield (feeds, labels) in the file's order; rows that fill no fixed batch are left out.

        Errors: RefusedError for a cell without a value, by its row and column.
        """
        first = 0
        for rows in self._rows():
            count = rows.num_rows
            if not self.exact or count == self.batch:
                feeds = {name: self._input(rows, name, first) for name in self.columns}
                labels = None
                if self.label is not None:
                    labels = self._column(rows, self.label, first)
                yield feeds, labels
            first += count

    def _rows(self) -> Iterator[Any]:
        """Record batches of `batch` rows, the last perhaps shorter."""
        import pyarrow

        pending: list[Any] = []
        held = 0
        for part in _parts(self.path, self.batch):
            pending.append(part)
            held += part.num_rows
            # a file's own blocks have any length
            if held < self.batch:
                continue
            table = pyarrow.Table.from_batches(pending).combine_chunks()
            whole = held - held % self.batch
            for start in range(0, whole, self.batch):
                yield table.slice(start, self.batch)
            rest = table.slice(whole)
            pending = rest.to_batches()
            held = rest.num_rows
        if held:
            yield pyarrow.Table.from_batches(pending)

    def _input(self, rows: Any, name: str, first: int) -> NDArray[Any]:
        info = self.infos[name]
        arrays = [self._column(rows, column, first) for column in self.columns[name]]
        array = arrays[0]
        if len(arrays) > 1:
            array = np.stack(arrays, axis=1)
        # a column of scalars feeds (B, 1) as well as (B,)
        if array.ndim == 1 and len(info.shape) == 2:
            array = array[:, None]
        # numbers in a text have no type of their own
        if array.dtype.kind in "iubf" and info.dtype in ("float32", "float64"):
            array = array.astype(info.dtype)
        return array

    def _column(self, rows: Any, column: str, first: int) -> NDArray[Any]:
        values = rows.column(column)
        if values.null_count:
            empty = np.flatnonzero(np.asarray(values.is_null()))
            raise RefusedError(
                f"data {self.path.name}",
                f"row {first + int(empty[0]) + 1} has no value in column '{column}'",
                "fill it, or leave the row out",
            )
        array = values.to_numpy()
        # a column of lists: one vector a row
        if array.dtype == object and len(array) and not isinstance(array[0], str):
            return np.stack([np.asarray(row) for row in array])
        return np.asarray(array)


def _column_names(path: Path) -> list[str]:
    try:
        import pyarrow
    except ImportError:
        raise UsageError(
            f"data {path.name}",
            "pyarrow is not installed",
            'pip install "onnx-opt[tables]"',
        ) from None
    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            return [str(name) for name in parquet.ParquetFile(path).schema_arrow.names]
        from pyarrow import csv

        with csv.open_csv(path) as reader:
            return [str(name) for name in reader.schema.names]
    except (pyarrow.ArrowException, OSError) as error:
        line = str(error).splitlines()[0]
        raise RefusedError(
            f"data {path.name}", f"cannot be read: {line}", "correct the table"
        ) from error


def _parts(path: Path, batch: int) -> Iterator[Any]:
    import pyarrow

    try:
        if path.suffix == ".parquet":
            from pyarrow import parquet

            yield from parquet.ParquetFile(path).iter_batches(batch_size=batch)
            return
        from pyarrow import csv

        with csv.open_csv(path) as reader:
            yield from reader
    except pyarrow.ArrowException as error:
        line = str(error).splitlines()[0]
        raise RefusedError(
            f"data {path.name}", f"cannot be read: {line}", "correct the table"
        ) from error


def _label_column(names: Sequence[str], infos: dict[str, TensorInfo]) -> str | None:
    for name in LABELS:
        if name in names and name not in infos:
            return name
    return None


def _matched(
    where: str, names: Sequence[str], inputs: Sequence[TensorInfo]
) -> dict[str, list[str]]:
    """Columns of each input."""
    if len(inputs) == 1 and inputs[0].name not in names:
        return {inputs[0].name: _features(where, names, inputs[0])}
    columns: dict[str, list[str]] = {}
    taken = {info.name for info in inputs}
    free = [name for name in names if name not in taken]
    for info in inputs:
        if info.name not in names:
            near = difflib.get_close_matches(info.name, free, 1, 0.4)
            fix = f"its columns are {', '.join(names)}"
            if near:
                fix = f"rename '{near[0]}' to '{info.name}'"
            raise RefusedError(
                f"data {where}",
                f"has no column '{info.name}', an input of the model",
                fix,
            )
        columns[info.name] = [info.name]
    return columns


def _features(where: str, names: Sequence[str], info: TensorInfo) -> list[str]:
    """All columns, as the features of the only input."""
    wanted = info.shape[-1] if len(info.shape) == 2 else None
    # one column of vectors holds them all
    if isinstance(wanted, int) and len(names) not in (1, wanted):
        raise RefusedError(
            f"data {where}",
            f"has {len(names)} columns besides the labels; "
            f"'{info.name}' takes {wanted} features",
            f"keep the {wanted} features in the model's order, and the labels as 'label'",
        )
    return list(names)
