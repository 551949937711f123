"""Kinds of inputs by rule: images, tokens, frames and columns, and the elements that each has."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ... import RefusedError, UsageError
from ...runtime.session import Dim, TensorInfo

Kind = Literal["image", "tokens", "frames", "columns"]

CHANNELS = (1, 3, 4)
"""Lengths of an axis of channels: grey, colours, colours and opacity."""

MASKS = ("attention_mask", "input_mask", "mask")
"""Names of inputs that say which tokens count."""


@dataclass(frozen=True)
class ExplainedInput:
    """The input whose elements are explained.

    `axes`: those of one sample's array that its elements lie along, two of an image and else one.
    `batched`: its first axis is that of samples. `mask`: the input that says which tokens count.
    """

    name: str
    kind: Kind
    axes: tuple[int, ...]
    batched: bool
    dtype: str
    mask: str | None = None

    def elements(self, shape: Sequence[int]) -> tuple[int, ...]:
        """Shape of the elements in a sample's array of a shape."""
        return tuple(shape[axis] for axis in self.axes)

    def spread(self, elements: np.ndarray, ndim: int) -> np.ndarray:
        """Elements (V, *E) as something that goes with arrays (V, *sample); `ndim`: of a sample."""
        own = {axis + 1 for axis in self.axes}
        # the first axis is that of variants
        others = [axis for axis in range(1, ndim + 1) if axis not in own]
        return np.expand_dims(elements, tuple(others))


@dataclass(frozen=True)
class InputRule:
    """A kind of input: of which types (numpy's letters), and the axes of elements for a shape.

    `axes` gives None where a shape does not fit; the shape is that of one sample.
    """

    kind: Kind
    letters: str
    rank: int

    def axes(self, shape: Sequence[Dim]) -> tuple[int, ...] | None:
        """Axes of the elements in one sample; None for what this kind is not."""
        if len(shape) != self.rank:
            return None
        if self.kind == "image":
            return _image_axes(shape)
        if self.kind == "frames":
            return (_longer_axis(shape),)
        return (0,)


RULES = (
    InputRule("image", "fiu", rank=3),
    InputRule("tokens", "iu", rank=1),
    InputRule("frames", "f", rank=2),
    InputRule("columns", "f", rank=1),
)
"""Kinds in the order in which they are looked for; ranks are of one sample."""


def explained_input(
    inputs: Sequence[TensorInfo], name: str | None = None
) -> ExplainedInput:
    """Find the input to explain: the first of a kind, or the one of a name.

    Errors: UsageError for a name that is no input, RefusedError where none has elements to tell
    apart.
    """
    chosen = _named(inputs, name)
    for rule in RULES:
        for info in chosen:
            found = _as_kind(rule, info, inputs)
            if found is not None:
                return found
    shapes = ", ".join(f"{i.name} {i.dtype} {list(i.shape)}" for i in chosen)
    raise RefusedError(
        "inputs",
        f"none is an image, a row of tokens, frames or columns: {shapes}",
        "explain a model that reads one of these",
    )


def _named(inputs: Sequence[TensorInfo], name: str | None) -> Sequence[TensorInfo]:
    if name is None:
        return [info for info in inputs if info.name not in MASKS]
    found = [info for info in inputs if info.name == name]
    if found:
        return found
    names = ", ".join(info.name for info in inputs)
    raise UsageError("--input", f"no input '{name}'", f"the inputs are {names}")


def _as_kind(
    rule: InputRule, info: TensorInfo, inputs: Sequence[TensorInfo]
) -> ExplainedInput | None:
    """The input as one of a kind, with or without an axis of samples; None where it is not."""
    if not info.is_tensor or info.dtype == "object":
        return None
    letter = _letter(info.dtype)
    if letter not in rule.letters:
        return None
    # without an axis of samples as well, but only where all lengths are fixed
    is_fixed = all(isinstance(dim, int) for dim in info.shape)
    for batched in (True, False):
        if not batched and not is_fixed:
            continue
        shape = info.shape[1:] if batched else info.shape
        axes = rule.axes(shape)
        if axes is None:
            continue
        mask = _mask_of(info, inputs) if rule.kind == "tokens" else None
        return ExplainedInput(
            info.name,
            rule.kind,
            axes,
            batched,
            info.dtype,
            mask,
        )
    return None


def _letter(dtype: str) -> str:
    # numpy does not know bfloat16, which is a float
    if dtype == "bfloat16":
        return "f"
    return np.dtype(dtype).kind


def _image_axes(shape: Sequence[Dim]) -> tuple[int, ...] | None:
    """Height and width of (C, H, W) or (H, W, C); None for anything else."""
    if shape[0] in CHANNELS:
        return (1, 2)
    if shape[2] in CHANNELS:
        return (0, 1)
    return None


def _longer_axis(shape: Sequence[Dim]) -> int:
    """The axis of time: the open one, or the longer."""
    lengths = [dim if isinstance(dim, int) else np.inf for dim in shape]
    return int(np.argmax(lengths))


def _mask_of(info: TensorInfo, inputs: Sequence[TensorInfo]) -> str | None:
    for other in inputs:
        if other.name in MASKS and len(other.shape) == len(info.shape):
            return other.name
    return None
