"""Sequences are lists of tensors, an empty optional is None."""

from __future__ import annotations

from typing import Any

import torch

from .._registry import op

Tensor = Any


@op("SequenceEmpty", 11)
def sequence_empty(*, dtype: int = 1) -> list[Tensor]:
    return []


@op("SequenceConstruct", 11)
def sequence_construct(*xs: Tensor) -> list[Tensor]:
    return list(xs)


def _index(position: int | list[int] | None, default: int) -> int:
    """Return a position, which ONNX lets be left out, a number, or a list of one."""
    if position is None:
        return default
    if isinstance(position, list):
        return position[0]
    return position


@op("SequenceInsert", 11, host=(2,))
def sequence_insert(
    xs: list[Tensor], x: Tensor, position: int | None = None
) -> list[Tensor]:
    at = _index(position, len(xs))
    if at < 0:
        at += len(xs)
    # a new list: other nodes may read the old one
    return [*xs[:at], x, *xs[at:]]


@op("SequenceErase", 11, host=(1,))
def sequence_erase(xs: list[Tensor], position: int | None = None) -> list[Tensor]:
    at = _index(position, -1) % len(xs)
    before = xs[:at]
    after = xs[at + 1 :]
    return before + after


@op("SequenceAt", 11, host=(1,))
def sequence_at(xs: list[Tensor], position: int) -> Tensor:
    at = _index(position, 0)
    return xs[at]


@op("SequenceLength", 11, gradient=False)
def sequence_length(xs: list[Tensor], *, device: torch.device) -> Tensor:
    count = len(xs)
    return torch.tensor(count, dtype=torch.int64, device=device)


@op("SplitToSequence", 11, host=(1,))
def split_to_sequence(
    x: Tensor, split: Any = None, *, axis: int = 0, keepdims: int = 1
) -> list[Tensor]:
    if split is not None:
        return list(torch.split(x, split, axis))
    # without sizes one by one; only then may the axis go
    parts = torch.split(x, 1, axis) if keepdims else x.unbind(axis)
    return list(parts)


@op("ConcatFromSequence", 11)
def concat_from_sequence(xs: list[Tensor], *, axis: int, new_axis: int = 0) -> Tensor:
    if new_axis:
        return torch.stack(xs, axis)
    return torch.cat(xs, axis)


@op("Optional", 15)
def optional(x: Any = None, *, type: Any = None) -> Any:
    return x


@op("OptionalHasElement", 15, gradient=False)
def optional_has_element(x: Any = None, *, device: torch.device) -> Tensor:
    return torch.tensor(x is not None, device=device)


@op("OptionalGetElement", 15)
def optional_get_element(x: Any) -> Any:
    return x
