"""The number that is explained: the score of a class, a value, or the cosine to an embedding."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError, UsageError
from ...runtime.choices import LEAD

Array = NDArray[Any]
As = Literal["class", "value", "embedding"]
FORMS: tuple[As, ...] = get_args(As)

CLEAR = 0.5
"""Share of samples whose first choice leads clearly from which on an output has classes."""


@dataclass(frozen=True)
class ExplainedOutput:
    """The part of an output to explain: the score of a class, or the cosine to an embedding."""

    output: str
    form: As

    def of_sample(self, outputs: Mapping[str, Array]) -> Aim:
        """The class that the original chooses for one sample, or its embedding."""
        row = _row_of(outputs[self.output])
        if self.form == "class":
            chosen = int(row.argmax())
            return Aim(self, chosen=chosen)
        if self.form == "embedding":
            norm = float(np.linalg.norm(row))
            return Aim(self, embedding=row / max(norm, _TINY))
        return Aim(self)


@dataclass(frozen=True)
class Aim:
    """The target of one sample. `chosen`: the class; `embedding`: of unit length."""

    target: ExplainedOutput
    chosen: int | None = None
    embedding: Array | None = None

    def scores(self, outputs: Mapping[str, Array], rows: int) -> NDArray[np.float64]:
        """The number for each of `rows` samples that were run together."""
        name = self.target.output
        values = np.asarray(outputs[name], np.float64)
        table = values.reshape(rows, -1)
        if self.embedding is None:
            column = self.chosen or 0
            return table[:, column]
        products = table @ self.embedding
        lengths = np.linalg.norm(table, axis=1)
        # of zeros the cosine is 0
        norms = np.maximum(lengths, _TINY)
        return np.asarray(products / norms)


_TINY = 1e-30


def _row_of(array: Array) -> NDArray[np.float64]:
    """Scores of one sample, (C,)."""
    values = np.asarray(array, np.float64)
    return values.reshape(-1)


def target_of(
    answers: Sequence[Mapping[str, Array]],
    output: str | None = None,
    form: As | None = None,
) -> ExplainedOutput:
    """Find what to explain, from the original's outputs for single samples.

    `output`: by default the first that holds scores (1, C), or the only one. `form`: by default a
    class where the largest score mostly leads clearly. Errors: UsageError for an output that is
    not there, RefusedError where it has no classes, nor is an embedding or a value.
    """
    first = answers[0]
    if output is not None and output not in first:
        raise UsageError(
            "--output", f"no output '{output}'", f"the outputs are {', '.join(first)}"
        )
    name = _chosen_output(first) if output is None else output
    values = np.asarray(first[name])
    if not _is_table(values):
        raise _no_classes(name, first)
    if form is not None:
        return ExplainedOutput(name, form)
    if values.size == 1:
        return ExplainedOutput(name, "value")
    rows = [_row_of(answer[name]) for answer in answers]
    leads = [_leads_clearly(row) for row in rows]
    share = float(np.mean(leads))
    if share >= CLEAR:
        return ExplainedOutput(name, "class")
    return ExplainedOutput(name, "embedding")


def _chosen_output(outputs: Mapping[str, Array]) -> str:
    # labels beside scores, as of scikit-learn, are no tables
    tables = [name for name in outputs if _is_table(outputs[name])]
    scores = [name for name in tables if outputs[name].size > 1]
    if scores:
        return scores[0]
    if len(tables) == 1:
        return tables[0]
    raise _no_classes(next(iter(outputs)), outputs)


def _is_table(array: Array) -> bool:
    """True for float scores of one sample: (1, C), (1, C, 1, 1), (C,), (1,)."""
    # kind V is bfloat16
    if array.dtype.kind not in "fV" or array.size == 0:
        return False
    longer = [length for length in array.shape if length > 1]
    return len(longer) <= 1


def _leads_clearly(row: Array) -> bool:
    """True where the largest value leads as that of a class does."""
    *_, second, first = np.partition(row, -2)
    lead = first - second
    squares = np.square(row)
    energy = squares.mean()
    least = LEAD * np.sqrt(energy)
    # of zeros alone nothing leads
    return bool(lead >= least and lead > 0)


def _no_classes(name: str, outputs: Mapping[str, Array]) -> RefusedError:
    others = []
    for key, value in outputs.items():
        if key != name and _is_table(value):
            others.append(f"{key} {_shape_text(value)}")
    fix = (
        "explain a model that has scores of classes, an embedding or one value for a sample; "
        "onnx-opt verify A B compares any outputs"
    )
    if others:
        fix = f"choose another one by --output: {', '.join(others)}"
    return RefusedError(
        f"output '{name}'",
        f"has no classes: it is {_shape_text(outputs[name])} for one sample",
        fix,
    )


def _shape_text(array: Array) -> str:
    found = np.asarray(array)
    kind = "text" if found.dtype.kind in "OUS" else found.dtype.name
    return f"{kind} {list(found.shape)}"
