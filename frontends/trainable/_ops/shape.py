"""Ops that give the same elements another shape or order: reshape, transpose, slice, join, split,
pad.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op
from .conv import torch_pads

Tensor = Any
Ints = list[int]


def listed(value: int | Ints) -> Ints:
    """Some exporters write a number where ONNX asks for a list of one."""
    return value if isinstance(value, list) else [value]


@op("Reshape")
def reshape_by_attribute(x: Tensor, *, shape: Ints) -> Tensor:
    return reshape(x, shape)


@op("Reshape", 5, host=(1,))
def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    if not allowzero:
        shape = [x.shape[i] if size == 0 else size for i, size in enumerate(shape)]
    return x.reshape(shape)


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    axis = axis + x.ndim if axis < 0 else axis
    return x.reshape(math.prod(x.shape[:axis]), math.prod(x.shape[axis:]))


@op("Transpose")
def transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    return x.permute(perm or list(reversed(range(x.ndim))))


@op("Squeeze")
def squeeze_by_attribute(x: Tensor, *, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(axes))


@op("Squeeze", 13, host=(1,))
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    return x.squeeze() if axes is None else x.squeeze(tuple(listed(axes)))


@op("Unsqueeze")
def unsqueeze_by_attribute(x: Tensor, *, axes: Ints) -> Tensor:
    return unsqueeze(x, axes)


@op("Unsqueeze", 13, host=(1,))
def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    rank = x.ndim + len(listed(axes))
    for axis in sorted(a % rank for a in listed(axes)):
        x = x.unsqueeze(axis)
    return x


@op("Slice")
def slice_by_attributes(
    x: Tensor, *, starts: Ints, ends: Ints, axes: Ints | None = None
) -> Tensor:
    return slice_(x, starts, ends, axes)


@op("Slice", 10, host=(1, 2, 3, 4))
def slice_(
    x: Tensor,
    starts: Ints,
    ends: Ints,
    axes: Ints | None = None,
    steps: Ints | None = None,
) -> Tensor:
    """Negative steps gather: torch has no views that run backwards."""
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis, step = i if axes is None else axes[i], 1 if steps is None else steps[i]
        if step == 1:
            x = _narrowed(x, axis, start, end)
        elif step > 1:
            x = x[(slice(None),) * (axis % x.ndim) + (slice(start, end, step),)]
        else:
            picked = list(range(x.shape[axis]))[
                slice(start, None if end < -x.shape[axis] else end, step)
            ]
            x = x.index_select(
                axis, torch.tensor(picked, dtype=torch.int64, device=x.device)
            )
    return x


def _narrowed(x: Tensor, axis: int, start: int, end: int) -> Tensor:
    return x[(slice(None),) * (axis % x.ndim) + (slice(start, end),)]


@op("Concat")
def concat(*xs: Tensor, axis: int = 1) -> Tensor:
    return torch.cat(xs, axis)


@op("Split", many=True)
def split_by_attribute(
    x: Tensor,
    sizes: Tensor | None = None,
    *,
    axis: int = 0,
    split: Ints | None = None,
    call: Call,
) -> tuple[Tensor, ...]:
    return _split(
        x, split or (None if sizes is None else sizes.tolist()), axis, call.wanted
    )


@op("Split", 13, host=(1,), many=True)
def split(
    x: Tensor,
    sizes: Ints | None = None,
    *,
    axis: int = 0,
    num_outputs: int | None = None,
    call: Call,
) -> tuple[Tensor, ...]:
    return _split(x, sizes, axis, num_outputs or call.wanted)


def _split(x: Tensor, sizes: Ints | None, axis: int, count: int) -> tuple[Tensor, ...]:
    """Without sizes into equal parts, the last one smaller if need be."""
    if sizes is None:
        whole = x.shape[axis]
        part = -(-whole // count)
        sizes = [max(min(part, whole - i * part), 0) for i in range(count)]
    return tuple(torch.split(x, sizes, axis))


@op("Pad")
def pad_by_attributes(
    x: Tensor,
    *,
    mode: str = "constant",
    pads: Ints | None = None,
    paddings: Ints | None = None,
    value: float = 0.0,
) -> Tensor:
    return _pad(x, pads or paddings or [], value, mode)


@op("Pad", 11, host=(1, 2, 3))
def pad(
    x: Tensor,
    pads: Ints,
    value: Any = None,
    axes: Ints | None = None,
    *,
    mode: str = "constant",
) -> Tensor:
    if axes is not None:
        full = [0] * (2 * x.ndim)
        for i, axis in enumerate(axes):
            full[axis % x.ndim], full[axis % x.ndim + x.ndim] = (
                pads[i],
                pads[i + len(axes)],
            )
        pads = full
    fill = value[0] if isinstance(value, list) else value
    return _pad(x, pads, 0 if fill is None else fill, mode)


def _pad(x: Tensor, pads: Ints, value: float, mode: str) -> Tensor:
    """Constant in one go; the other modes gather along each dim, so that any rank and negative pads
    work.
    """
    if mode == "constant":
        if x.dtype == torch.bool:
            return F.pad(x.to(torch.uint8), torch_pads(pads), value=float(value)).bool()
        return F.pad(x, torch_pads(pads), value=value)
    for axis in range(x.ndim):
        begin, end = pads[axis], pads[axis + x.ndim]
        if begin or end:
            x = x.index_select(
                axis, _mirrored(x.shape[axis], begin, end, mode, x.device)
            )
    return x


def _mirrored(
    size: int, begin: int, end: int, mode: str, device: torch.device
) -> Tensor:
    at = torch.arange(-begin, size + end, device=device)
    if mode == "edge":
        return at.clamp(0, size - 1)
    if mode == "wrap":
        return at % size
    period = max(2 * (size - 1), 1)
    at = at % period
    return torch.where(at < size, at, period - at)


@op("Expand", 8, host=(1,))
def expand(x: Tensor, shape: Ints) -> Tensor:
    """Both ways: a dim of one on either side gives way."""
    rank = max(x.ndim, len(shape))
    wanted = [1] * (rank - len(shape)) + shape
    have = [1] * (rank - x.ndim) + list(x.shape)
    return x.expand([h if w == 1 else w for h, w in zip(have, wanted, strict=True)])


@op("Tile", host=(1, 2))
def tile_along(x: Tensor, tiles: Any, axis: Any) -> Tensor:
    repeats = [1] * x.ndim
    repeats[listed(axis)[0]] = listed(tiles)[0]
    return x.repeat(repeats)


@op("Tile", 6, host=(1,))
def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(repeats)


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    if mode == "DCR":
        parts = x.reshape(n, b, b, c // (b * b), h, w).permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, c // (b * b), b, b, h, w).permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, c // (b * b), h * b, w * b)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    parts = x.reshape(n, c, h // b, b, w // b, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    return parts.permute(order).reshape(n, c * b * b, h // b, w // b)


@op("Trilu", 14, host=(1,))
def trilu(x: Tensor, k: Any = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else listed(k)[0]
    return torch.triu(x, diagonal) if upper else torch.tril(x, diagonal)


@op("ReverseSequence", 10)
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first `lengths[b]` steps of each sequence, reversed; time and batch are the first two
    axes.
    """
    return (
        reversed_steps(x, lengths)
        if time_axis == 0
        else reversed_steps(x.transpose(0, 1), lengths).transpose(0, 1)
    )


def reversed_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """`x` (T, B, …) with the first `lengths[b]` steps of sequence b in reverse."""
    steps = torch.arange(x.shape[0], device=x.device)[:, None]
    back = lengths.to(torch.int64)[None, :] - 1 - steps
    at = torch.where(back >= 0, back, steps)
    return x.gather(0, at.reshape(*at.shape, *(1,) * (x.ndim - 2)).expand(x.shape))


@op("Shape", gradient=False)
def shape_(x: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """Of values that are no plain tensors; those are measured outside of tensors."""
    sizes = list(x.shape) if hasattr(x, "shape") else [len(x)]
    return torch.tensor(sizes[start:end], dtype=torch.int64)


@op("Size", gradient=False)
def size(x: Any) -> Tensor:
    return torch.tensor(math.prod(x.shape), dtype=torch.int64)
