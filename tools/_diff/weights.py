"""Distances of the weights that two nodes read at the same place."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from numpy.typing import NDArray

from ...passes._core.graph import input_of, label
from ...passes._core.lazy import blocks
from .._decoded import DecodedWeight, decoded
from .match import weight_place


def weight_changes(node: ir.Node, other: ir.Node) -> list[dict[str, Any]]:
    """Constants that both nodes read at the same place, and how far apart they are."""
    found = []
    for index, value in enumerate(node.inputs):
        place = weight_place(node, other, index)
        twin = None if place is None else input_of(other, place)
        if value is None or twin is None:
            continue
        first = decoded(value, node)
        second = decoded(twin, other)
        if first is not None and second is not None:
            facts = dataclasses.asdict(_distance(first, second))
            found.append(
                {
                    "layer": label(other),
                    "weight": value.name or "",
                    "a": _stored(value, first),
                    "b": _stored(twin, second),
                    **facts,
                }
            )
    return found


def _stored(value: ir.Value, weight: DecodedWeight) -> dict[str, Any]:
    """Shape as its reader sees it, and the type that the file stores it in."""
    while value.const_value is None and value.producer() is not None:
        producer = value.producer()
        assert producer is not None
        source = producer.inputs[0]
        if source is None:
            break
        value = source
    tensor = value.const_value
    dtype = None if tensor is None else str(tensor.dtype)
    return {"dtype": dtype, "shape": list(weight.shape)}


@dataclass
class WeightDistance:
    """Distance of a weight from another.

    `relative`: |b - a| / |a| of the Euclidean norms; `max_abs`: largest |b - a|; both None where
    shapes differ. `changed`: share of elements that differ, 1 of another shape. `zeros_a`,
    `zeros_b`: shares that are zero.
    """

    relative: float | None
    max_abs: float | None
    changed: float
    zeros_a: float
    zeros_b: float


@dataclass
class _DistanceSums:
    """Sums over the elements of two weights so far."""

    squares: float = 0.0
    noise: float = 0.0
    most: float = 0.0
    changed: int = 0
    zeros_a: int = 0
    zeros_b: int = 0

    def add(self, old: NDArray[Any], new: NDArray[Any]) -> None:
        """Add the elements of two flat blocks."""
        error = np.abs(new - old)
        largest = float(error.max(initial=0.0))
        self.most = max(self.most, largest)
        self.squares += float(old @ old)
        self.noise += float(error @ error)
        self.changed += int(np.count_nonzero(error))
        self.zeros_a += _zeros_in(old)
        self.zeros_b += _zeros_in(new)

    @property
    def relative(self) -> float | None:
        """Noise as a share of the norm; None of what was zero and is not."""
        if self.squares:
            return float((self.noise / self.squares) ** 0.5)
        return None if self.noise else 0.0


def _distance(first: DecodedWeight, second: DecodedWeight) -> WeightDistance:
    if first.shape != second.shape:
        return WeightDistance(
            relative=None,
            max_abs=None,
            changed=1.0,
            zeros_a=_share_of_zeros(first),
            zeros_b=_share_of_zeros(second),
        )
    sums = _DistanceSums()
    for old, new in _blocks_of_both(first, second):
        sums.add(old, new)
    size = max(int(first.tensor.size), 1)
    return WeightDistance(
        relative=sums.relative,
        max_abs=sums.most,
        changed=sums.changed / size,
        zeros_a=sums.zeros_a / size,
        zeros_b=sums.zeros_b / size,
    )


Blocks = tuple[NDArray[Any], NDArray[Any]]


def _blocks_of_both(first: DecodedWeight, second: DecodedWeight) -> Iterator[Blocks]:
    """Flat blocks of both weights, element by element as their readers see them."""
    if not (first.is_in_order and second.is_in_order):
        yield _in_order(first), _in_order(second)
        return
    olds = blocks(first.tensor)
    news = blocks(second.tensor)
    for (_, old), (_, new) in zip(olds, news, strict=True):
        before = old.astype(np.float64)
        after = new.astype(np.float64)
        yield before, after


def _in_order(weight: DecodedWeight) -> NDArray[Any]:
    array = weight.tensor.numpy().transpose(weight.order)
    return array.astype(np.float64).reshape(-1)


def _zeros_in(block: NDArray[Any]) -> int:
    return block.size - int(np.count_nonzero(block))


def _share_of_zeros(weight: DecodedWeight) -> float:
    zeros = 0
    counted = 0
    for _, block in blocks(weight.tensor):
        zeros += _zeros_in(block)
        counted += block.size
    return zeros / max(counted, 1)


def is_change(weight: Mapping[str, Any]) -> bool:
    """True unless both hold the same numbers in the same type."""
    before = weight["a"]["dtype"]
    after = weight["b"]["dtype"]
    if before != after:
        return True
    return bool(weight["changed"])


def weight_words(weight: Mapping[str, Any]) -> str:
    """Change of a weight: `w: 1.2 % of its norm away, INT8 instead of FLOAT`."""
    before = weight["a"]
    after = weight["b"]
    distance = weight["relative"]
    words = [f"weight {weight['weight']}:"]
    if before["shape"] != after["shape"]:
        old = shape_words(before["shape"])
        new = shape_words(after["shape"])
        words.append(f"{old} became {new}")
    elif distance is None:
        words.append("no longer zero")
    elif distance:
        words.append(f"{100 * distance:.2g} % of its norm away")
    else:
        words.append("the same numbers")
    if before["dtype"] != after["dtype"]:
        words.append(f"as {after['dtype']} instead of {before['dtype']}")
    return " ".join(words)


def shape_words(shape: list[int]) -> str:
    """`64 × 3 × 7 × 7`."""
    return " × ".join(map(str, shape)) or "scalar"


def by_distance(weight: Mapping[str, Any]) -> float:
    """Key that sorts weights, the farthest first."""
    # what cannot be subtracted has changed most
    distance = weight["relative"]
    return -np.inf if distance is None else -float(distance)
