"""Ids for which a model's table has no row: the usual sign of another model's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE = re.compile(r"idx=-?\d+ must be within the inclusive range \[-\d+,(\d+)\]")
"""ONNX Runtime's words where a Gather is asked for a row that its table lacks."""

NO_ROW = "has no row in the model's table"
"""Words on an id that is outside."""

SHOWN = 8
"""Ids of the row at fault that are shown."""


def row_at_fault(problem: str, feeds: Mapping[str, NDArray[Any]]) -> str | None:
    """Clause that names the input and the first row (B, …) of it whose ids have no row; else None.

    None too where ONNX Runtime's `problem` is another, or the indices are computed inside.
    """
    found = OUTSIDE.search(problem)
    if found is None:
        return None
    last = int(found[1])
    for name, array in feeds.items():
        if array.dtype.kind not in "iu" or array.ndim == 0:
            continue
        outside = first_outside(array, last)
        if outside is not None:
            return f"input '{name}', {outside}"
    return None


def first_outside(array: NDArray[Any], last: int) -> str | None:
    """Clause on the first row (B, …) with an id that a table of rows 0 to `last` lacks; else None.

    Negative ids count from the table's end.
    """
    wide = array.astype(np.int64)
    is_outside = (wide > last) | (wide < -last - 1)
    by_row = is_outside.reshape(len(array), -1)
    (rows,) = np.nonzero(by_row.any(1))
    if not len(rows):
        return None
    row = int(rows[0])
    ids = wide[row].reshape(-1)
    at_fault = ids[by_row[row]]
    worst = int(at_fault[0])
    shown = ", ".join(str(number) for number in ids[:SHOWN])
    more = ", …" if len(ids) > SHOWN else ""
    return (
        f"row {row + 1} of a batch ({shown}{more}): the id {worst} {NO_ROW}, "
        f"whose rows are 0 to {last}"
    )
