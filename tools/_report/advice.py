"""Remedies of refusals: a table from the words of a reason to what a user can do."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple


class Advice(NamedTuple):
    """A remedy where a reason has these words (a regular expression)."""

    words: str
    text: str


TABLE = (
    Advice(r"run simplify first", "put simplify in front of this pass"),
    Advice(
        r"already quantized|bits already|stored as \w*INT",
        "start from the float model to choose other bits; requantize changes how it is coded",
    ),
    Advice(r"pruned so already", "give a sparsity, or a lower min_sqnr"),
    Advice(
        r"input of the model|graph input|callers may override|weight is an input",
        "take it off the graph's inputs when exporting, so that it is a constant",
    ),
    Advice(r"is an output of the model|gives an output", "leave it out of the outputs"),
    Advice(
        r"calibration data never reaches|never computed|samples or more|give more data",
        "give more --data, of every kind that the model will see",
    ),
    Advice(r"no data|--data|needs data", "give --data; labels are not needed"),
    Advice(r"matched by exclude", "take it out of exclude"),
    Advice(r"not matched by include", "add it to include"),
    Advice(r"left float by the option layers", "change the option layers"),
    Advice(r"no use is one of ops", "add its operator to ops"),
    Advice(r"min_size|min_elements", "lower min_size"),
    Advice(
        r"times as long as in float|measures slower|slower in int8",
        "measure=false keeps it in integers all the same, for the size",
    ),
    Advice(r"no codec saves", "lower min_saving; it is close to its least already"),
    Advice(r"load_memory", "raise load_memory"),
    Advice(r"would keep less than", "lower min_sqnr, or give a ratio"),
    Advice(r"folding would add", "raise the budget of growth of fold-constants"),
    Advice(
        r"only a sparsity|only if a sparsity|predicted: ",
        "give a sparsity to take more than the outputs bear",
    ),
    Advice(r"target has no", "choose another --target"),
    Advice(
        r"NaN|infinity",
        "mend the weights: values that are not finite come from the training",
    ),
    Advice(r"shared with another", "nothing: both layers would have to agree"),
    Advice(r"too few to pay|fewer than one block", "nothing: it would cost bytes"),
    Advice(
        r"not of ONNX|local function|no pass shrinks",
        "export it by standard operators",
    ),
    Advice(
        r"body of an If, Loop or Scan",
        "export without control flow, or unroll it",
    ),
    Advice(
        r"too many to (fit|compare)", "nothing: it would take more memory than it gains"
    ),
)
"""The first row that matches a reason counts."""


def advice_on(reason: str) -> str | None:
    """The remedy of a refusal; None where the table has no row for it."""
    for row in TABLE:
        if re.search(row.words, reason):
            return row.text
    return None


def advice_by_reason(passes: Iterable[Mapping[str, Any]]) -> dict[str, str]:
    """Advice on each reason that passes of an account give."""
    found: dict[str, str] = {}
    for each in passes:
        for declined in each.get("declined", ()):
            reason = str(declined["reason"])
            text = advice_on(reason)
            if text is not None:
                found[reason] = text
    return found
