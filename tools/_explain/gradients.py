"""Integrated gradients of a sample, through the graph as torch runs it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...frontends.input_gradients import InputGradients, Path, Score, number_of
from .target import Aim

Heat = NDArray[np.float64]


def points_of(count: int, random: np.random.Generator | None) -> Heat:
    """Places on the path: the middles of equal steps, or one drawn within each."""
    offsets: Any = 0.5 if random is None else random.random(count)
    return np.asarray((np.arange(count) + offsets) / count)


def _number_of(aim: Aim) -> Score:
    return number_of(aim.chosen or 0, aim.embedding)


def integrated(gradients: InputGradients, path: Path, aim: Aim) -> NDArray[Any]:
    """Integrated gradients in the shape of one sample's array."""
    return gradients.integrated(path, _number_of(aim))


def by_captum(gradients: InputGradients, path: Path, aim: Aim) -> NDArray[Any]:
    """The same by the library captum, with as many points: the middles of equal steps."""
    from captum.attr import IntegratedGradients

    starts, ends = gradients.ends(path)

    score = _number_of(aim)

    def numbers(*places: Any) -> Any:
        return gradients.numbers(path, places, score)

    found = IntegratedGradients(numbers).attribute(
        tuple(ends),
        tuple(starts),
        n_steps=len(path.points),
        method="riemann_middle",
        internal_batch_size=8 if gradients.rows is None else gradients.rows,
    )
    return gradients.by_element([each.detach() for each in found])
