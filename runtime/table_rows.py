"""Ids for which a model's table has no row: the usual sign of another model's tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

OUTSIDE = re.compile(r"idx=-?\d+ must be within the inclusive range \[-\d+,(\d+)\]")
"""ONNX Runtime's words where a Gather is asked for a row that its table lacks."""

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
        is_outside = array > last
        rows = np.nonzero(is_outside.reshape(len(array), -1).any(1))[0]
        if not len(rows):
            continue
        row = int(rows[0])
        ids = array[row].reshape(-1)
        worst = int(ids.max())
        shown = ", ".join(str(number) for number in ids[:SHOWN])
        more = ", …" if len(ids) > SHOWN else ""
        return (
            f"input '{name}', row {row + 1} of a batch ({shown}{more}): the id {worst}"
            f" has no row in the model's table, whose rows are 0 to {last}"
        )
    return None
