"""Gradients of a number by an input of a graph, summed along a path: integrated gradients.

Integers have no gradient. Of an input of integers it is by the floats that are looked up by them:
rows of a table, or zeros and ones. Integers that are only cast to floats, as the bytes of an image
are, count as these floats.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from .. import RefusedError
from .trainable import TrainableModule, to_torch

Array = NDArray[Any]
Tensor = Any
Score = Callable[[Tensor], Tensor]
"""The number of each row, (R,), from an output (R, …)."""


def number_of(column: int, embedding: Array | None = None) -> Score:
    """The value of a column of each row, or the row's cosine to an embedding of unit length."""
    import torch

    def score(output: Tensor) -> Tensor:
        rows = len(output)
        table = output.float().reshape(rows, -1)
        if embedding is None:
            return table[:, column]
        own = torch.as_tensor(embedding, dtype=table.dtype)
        return torch.nn.functional.cosine_similarity(table, own[None], dim=1)

    return score


SHAPE_OPS = frozenset({"Shape", "Size", "NonZero"})
"""Operators whose outputs say nothing of single values."""

MOVING_OPS = frozenset(
    {"Flatten", "Identity", "Reshape", "Slice", "Squeeze", "Transpose", "Unsqueeze"}
)
"""Operators that keep the values of their first input, of whatever type."""


@dataclass(frozen=True)
class Path:
    """A straight path from a baseline to a sample, and what stays the same on it.

    `start`, `end`: arrays (1, …) of the input. `feeds`: of the sample, by name; those in `batched`
    have a first axis of length 1. `points`: places on the path, 0 to 1.
    """

    start: Array
    end: Array
    feeds: Mapping[str, Array]
    batched: frozenset[str]
    points: NDArray[np.float64]


class InputGradients:
    """A model whose output's gradients by one of its inputs are taken.

    `rows`: samples that the model takes at once; None: any number. Errors: RefusedError for a
    graph through which no gradient reaches the input.
    """

    def __init__(
        self, model: ir.Model, name: str, output: str, rows: int | None
    ) -> None:
        self.name = name
        self.output = output
        self.rows = rows
        model = _with_floats_fed(model, name)
        self._lookups = _lookups(model, name)
        self._looked_up: TrainableModule | None = None
        entries = [name]
        if self._lookups:
            self._looked_up = _module(model, taps=self._lookups)
            entries = self._lookups
            model = _fed_behind(model, entries)
        self._entries = entries
        self._module = _module(model)

    def integrated(self, path: Path, score: Score) -> Array:
        """Integrated gradients, of the input's shape without the axis of samples.

        Of integers (T,) what their floats have together. Source: Sundararajan et al. 2017
        (arXiv:1703.01365).
        """
        starts, ends = self.ends(path)
        ways = list(zip(starts, ends, strict=True))
        sums = self._summed(path, ways, score)
        count = len(path.points)
        found = []
        for (start, end), total in zip(ways, sums, strict=True):
            mean = total / count
            way = end - start
            found.append(way * mean)
        return self.by_element(found)

    def _summed(
        self, path: Path, ways: Sequence[tuple[Tensor, Tensor]], score: Score
    ) -> list[Tensor]:
        """Gradients at all points together, (1, …) for each lookup."""
        sums: list[Tensor] = [0.0] * len(ways)
        for chunk in _chunks(path.points, self.rows):
            places = [_between(start, end, chunk) for start, end in ways]
            numbers = self.numbers(path, places, score)
            # of a model with a fixed batch all rows are the same point
            if self.rows is not None:
                numbers = numbers[:1]
            number = numbers.sum()
            gradients = self._gradients(number, places)
            for index, gradient in enumerate(gradients):
                of_chunk = gradient.sum(0, keepdim=True)
                sums[index] = sums[index] + of_chunk
        return sums

    def numbers(self, path: Path, places: Sequence[Tensor], score: Score) -> Tensor:
        """The number at places (R, …) given in the order of `ends`, (R,)."""
        (first, *_) = places
        rows = len(first)
        feeds: dict[str, Any] = {}
        for name, array in path.feeds.items():
            if name in path.batched:
                feeds[name] = np.repeat(array, rows, axis=0)
            else:
                feeds[name] = array
        named = zip(self._entries, places, strict=True)
        feeds.update(named)
        outputs = self._module.run(feeds)
        output = outputs[self.output]
        return score(output)

    def ends(self, path: Path) -> tuple[list[Tensor], list[Tensor]]:
        """Starts and ends of the path as floats (1, …), one for each lookup."""
        return self._floats(path, path.start), self._floats(path, path.end)

    def _floats(self, path: Path, array: Array) -> list[Tensor]:
        import torch

        if self._looked_up is None:
            return [torch.as_tensor(array).float()]
        feeds = {**path.feeds, self.name: array}
        with torch.no_grad():
            values = self._looked_up.run(feeds)
        return [values[name] for name in self._entries]

    def _gradients(self, total: Tensor, places: Sequence[Tensor]) -> Sequence[Tensor]:
        import torch

        found: Sequence[Any] = [None] * len(places)
        if total.requires_grad:
            found = torch.autograd.grad(total, places, allow_unused=True)
        if all(each is None for each in found):
            raise RefusedError(
                f"input '{self.name}'",
                f"no gradient of output '{self.output}' reaches it",
                "use --method occlusion, lime or shap, which only run the model",
            )
        pairs = zip(found, places, strict=True)
        return [torch.zeros_like(p) if g is None else g for g, p in pairs]

    def by_element(self, found: Sequence[Tensor]) -> Array:
        """Attributions (1, …) in the order of `ends` as those of the input's elements."""
        if self._looked_up is None:
            (only,) = found
            return np.asarray(only[0].numpy())
        total: Any = 0.0
        for each in found:
            # (1, T, *): all floats of a place together
            floats = each[0].flatten(1)
            total = total + floats.sum(1)
        return np.asarray(total.numpy())


def _between(start: Tensor, end: Tensor, points: NDArray[np.float64]) -> Tensor:
    """Places on the way from `start` to `end`, (R, …), of which gradients are taken."""
    import torch

    parts = torch.as_tensor(points, dtype=end.dtype)
    others = [1] * (end.ndim - 1)
    shares = parts.reshape(-1, *others)
    way = end - start
    places = start + shares * way
    return places.requires_grad_()


def _module(model: ir.Model, taps: Sequence[str] = ()) -> TrainableModule:
    # rounding passes gradients on as if it were none
    return to_torch(model, train=False, taps=taps, qat="fixed")


def _chunks(points: NDArray[np.float64], rows: int | None) -> list[NDArray[np.float64]]:
    """Points to run together; for a model with a fixed batch each by itself, repeated."""
    if rows is None:
        return [points[start : start + 8] for start in range(0, len(points), 8)]
    return [np.repeat(point, rows) for point in points]


def _input(model: ir.Model, name: str) -> ir.Value:
    (value,) = [each for each in model.graph.inputs if each.name == name]
    return value


def _with_floats_fed(model: ir.Model, name: str) -> ir.Model:
    """A copy that takes floats for an input of integers; the model itself if it reads integers."""
    if _is_float(_input(model, name)):
        return model
    copied = model.clone()
    moved = _only_cast(_input(copied, name))
    if moved is None:
        return model
    for value in moved:
        value.type = ir.TensorType(ir.DataType.FLOAT)
    return copied


def _only_cast(value: ir.Value) -> list[ir.Value] | None:
    """An input and what moves its elements; None if more than casts to floats reads them."""
    moved = [value]
    for each in moved:
        for node, place in each.uses():
            if node.op_type in SHAPE_OPS:
                continue
            if node.op_type in MOVING_OPS and place == 0:
                moved.extend(node.outputs)
            elif node.op_type != "Cast" or not _is_float(node.outputs[0]):
                return None
    return moved


def _is_float(value: ir.Value) -> bool:
    return value.dtype is None or value.dtype.is_floating_point()


def _lookups(model: ir.Model, name: str) -> list[str]:
    """The first floats behind an input of integers; nothing behind one of floats.

    Errors: RefusedError where there are none.
    """
    value = _input(model, name)
    if _is_float(value):
        return []
    found: list[str] = []
    waiting = [value]
    seen = {value}
    while waiting:
        for node in waiting.pop().consumers():
            if node.op_type in SHAPE_OPS:
                continue
            for output in node.outputs:
                if output in seen:
                    continue
                seen.add(output)
                if output.dtype is not None and output.dtype.is_floating_point():
                    found.append(output.name or "")
                else:
                    waiting.append(output)
    if not found:
        raise RefusedError(
            f"input '{name}'",
            "its integers lead to no floats that have a gradient",
            "use --method occlusion, lime or shap, which only run the model",
        )
    return found


def _fed_behind(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """A copy in which some values are inputs."""
    copied = model.clone()
    for node in list(copied.graph):
        for output in node.outputs:
            if output.name not in names:
                continue
            fed = ir.Value(name=output.name, shape=output.shape, type=output.type)
            output.name = f"{output.name}_looked_up"
            ir.convenience.replace_all_uses_with(output, fed)
            copied.graph.inputs.append(fed)
    return copied
