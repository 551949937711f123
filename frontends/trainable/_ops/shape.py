"""Other shapes and orders of the same elements: reshape, transpose, slice, join, split, pad."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op
from .conv import ceil_divided, torch_pads

Tensor = Any
Ints = list[int]


def listed(value: int | Ints) -> Ints:
    """Return a list; some exporters write a number where ONNX asks for a list of one."""
    if isinstance(value, list):
        return value
    return [value]


@op("Reshape")
def reshape_by_attribute(x: Tensor, *, shape: Ints) -> Tensor:
    return reshape(x, shape)


@op("Reshape", 5, host=(1,))
def reshape(x: Tensor, shape: Ints, *, allowzero: int = 0) -> Tensor:
    if allowzero:
        return x.reshape(shape)
    # zero: as it was
    sizes = []
    for dim, size in enumerate(shape):
        sizes.append(size if size else x.shape[dim])
    return x.reshape(sizes)


@op("Flatten")
def flatten(x: Tensor, *, axis: int = 1) -> Tensor:
    # not modulo: an axis that equals the rank leaves one column
    if axis < 0:
        axis += x.ndim
    before = x.shape[:axis]
    behind = x.shape[axis:]
    rows = math.prod(before)
    columns = math.prod(behind)
    return x.reshape(rows, columns)


@op("Transpose")
def transpose(x: Tensor, *, perm: Ints | None = None) -> Tensor:
    if not perm:
        perm = list(reversed(range(x.ndim)))
    return x.permute(perm)


@op("Squeeze")
def squeeze_by_attribute(x: Tensor, *, axes: Ints | None = None) -> Tensor:
    return squeeze(x, axes)


@op("Squeeze", 13, host=(1,))
def squeeze(x: Tensor, axes: Ints | None = None) -> Tensor:
    if axes is None:
        return x.squeeze()
    wanted = tuple(listed(axes))
    return x.squeeze(wanted)


@op("Unsqueeze")
def unsqueeze_by_attribute(x: Tensor, *, axes: Ints) -> Tensor:
    return unsqueeze(x, axes)


@op("Unsqueeze", 13, host=(1,))
def unsqueeze(x: Tensor, axes: Ints) -> Tensor:
    wanted = listed(axes)
    rank = x.ndim + len(wanted)
    # axes count in the result, so the first ones must be there before the next are
    for axis in sorted(axis % rank for axis in wanted):
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
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        axis = i if axes is None else axes[i]
        step = 1 if steps is None else steps[i]
        if step < 0:
            x = _sliced_backwards(
                x,
                axis,
                start,
                end,
                step,
            )
            continue
        dims_before = axis % x.ndim
        whole = (slice(None),) * dims_before
        part = slice(start, end, step)
        x = x[(*whole, part)]
    return x


def _sliced_backwards(x: Tensor, axis: int, start: int, end: int, step: int) -> Tensor:
    """Gather the elements: torch has no views that run backwards."""
    size = x.shape[axis]
    # beyond the first element is an end that Python writes as None
    stop = None if end < -size else end
    positions = list(range(size))
    picked = positions[start:stop:step]
    indices = torch.tensor(picked, dtype=torch.int64, device=x.device)
    return x.index_select(axis, indices)


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
    # opset 1 had the sizes as an input too
    if not split and sizes is not None:
        split = sizes.tolist()
    return _split(
        x,
        split or None,
        axis,
        call.wanted,
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
    return _split(
        x,
        sizes,
        axis,
        num_outputs or call.wanted,
    )


def _split(x: Tensor, sizes: Ints | None, axis: int, count: int) -> tuple[Tensor, ...]:
    """Without sizes into equal parts, the last one smaller if need be."""
    if sizes is None:
        whole = x.shape[axis]
        part = ceil_divided(whole, count)
        sizes = []
        for index in range(count):
            left = whole - index * part
            size = min(part, left)
            # more outputs than elements: the last ones are empty
            sizes.append(max(size, 0))
    parts = torch.split(x, sizes, axis)
    return tuple(parts)


@op("Pad")
def pad_by_attributes(
    x: Tensor,
    *,
    mode: str = "constant",
    pads: Ints | None = None,
    paddings: Ints | None = None,
    value: float = 0.0,
) -> Tensor:
    return _pad(
        x,
        pads or paddings or [],
        value,
        mode,
    )


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
        pads = _pads_of_all_axes(pads, axes, x.ndim)
    fill = value[0] if isinstance(value, list) else value
    if fill is None:
        fill = 0
    return _pad(x, pads, fill, mode)


def _pads_of_all_axes(pads: Ints, axes: Ints, rank: int) -> Ints:
    """Return the pads of some axes as those of all: zero for the others."""
    full = [0] * (2 * rank)
    for i, axis in enumerate(axes):
        begin = axis % rank
        end = begin + rank
        full[begin] = pads[i]
        full[end] = pads[i + len(axes)]
    return full


def _pad(x: Tensor, pads: Ints, value: float, mode: str) -> Tensor:
    """Pad with a constant in one go.

    The other modes gather along each dim, so that any rank and negative pads work.
    """
    if mode == "constant":
        return _pad_constant(x, pads, value)
    # torch reflects the last three dims at most
    for axis in range(x.ndim):
        begin = pads[axis]
        end = pads[axis + x.ndim]
        if begin or end:
            at = _mirrored(
                size=x.shape[axis],
                begin=begin,
                end=end,
                mode=mode,
                device=x.device,
            )
            x = x.index_select(axis, at)
    return x


def _pad_constant(x: Tensor, pads: Ints, value: float) -> Tensor:
    widths = torch_pads(pads)
    if x.dtype != torch.bool:
        return F.pad(x, widths, value=value)
    # torch does not pad booleans
    numbers = x.to(torch.uint8)
    fill = float(value)
    padded = F.pad(numbers, widths, value=fill)
    return padded.bool()


def _mirrored(
    size: int, begin: int, end: int, mode: str, device: torch.device
) -> Tensor:
    """Return the index that each position of a padded axis is filled from."""
    last = size - 1
    at = torch.arange(-begin, size + end, device=device)
    if mode == "edge":
        return at.clamp(0, last)
    if mode == "wrap":
        return at % size
    # forth and back, the ends once each; an axis of one element has no way back
    period = max(2 * last, 1)
    at = at % period
    mirrored = period - at
    return torch.where(at < size, at, mirrored)


@op("Expand", 8, host=(1,))
def expand(x: Tensor, shape: Ints) -> Tensor:
    """Both ways: a dim of one on either side gives way."""
    rank = max(x.ndim, len(shape))
    missing_in_shape = rank - len(shape)
    missing_in_x = rank - x.ndim
    wanted = [1] * missing_in_shape + shape
    have = [1] * missing_in_x + list(x.shape)
    sizes = []
    for old, new in zip(have, wanted, strict=True):
        size = old if new == 1 else new
        sizes.append(size)
    return x.expand(sizes)


@op("Tile", host=(1, 2))
def tile_along(x: Tensor, tiles: Any, axis: Any) -> Tensor:
    """Before opset 6 along one axis."""
    repeats = [1] * x.ndim
    along = listed(axis)[0]
    repeats[along] = listed(tiles)[0]
    return x.repeat(repeats)


@op("Tile", 6, host=(1,))
def tile(x: Tensor, repeats: Ints) -> Tensor:
    return x.repeat(repeats)


@op("DepthToSpace")
def depth_to_space(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    """(N, C, H, W) -> (N, C / b^2, H b, W b); DCR has the block before the channels, CRD behind."""
    n, c, h, w = x.shape
    b = blocksize
    depth = c // (b * b)
    rows = h * b
    columns = w * b
    if mode == "DCR":
        parts = x.reshape(n, b, b, depth, h, w)
        parts = parts.permute(0, 3, 4, 1, 5, 2)
    else:
        parts = x.reshape(n, depth, b, b, h, w)
        parts = parts.permute(0, 1, 4, 2, 5, 3)
    return parts.reshape(n, depth, rows, columns)


@op("SpaceToDepth")
def space_to_depth(x: Tensor, *, blocksize: int, mode: str = "DCR") -> Tensor:
    n, c, h, w = x.shape
    b = blocksize
    rows = h // b
    columns = w // b
    depth = c * b * b
    parts = x.reshape(n, c, rows, b, columns, b)
    order = (0, 3, 5, 1, 2, 4) if mode == "DCR" else (0, 1, 3, 5, 2, 4)
    parts = parts.permute(order)
    return parts.reshape(n, depth, rows, columns)


@op("Trilu", 14, host=(1,))
def trilu(x: Tensor, k: Any = None, *, upper: int = 1) -> Tensor:
    diagonal = 0 if k is None else listed(k)[0]
    if upper:
        return torch.triu(x, diagonal)
    return torch.tril(x, diagonal)


@op("ReverseSequence", 10)
def reverse_sequence(
    x: Tensor, lengths: Tensor, *, batch_axis: int = 1, time_axis: int = 0
) -> Tensor:
    """The first `lengths[b]` steps of each sequence, reversed.

    Time and batch are the first two axes, in either order.
    """
    if time_axis == 0:
        return reversed_steps(x, lengths)
    time_first = x.transpose(0, 1)
    turned = reversed_steps(time_first, lengths)
    return turned.transpose(0, 1)


def reversed_steps(x: Tensor, lengths: Tensor) -> Tensor:
    """Return `x` (T, B, …) with the first `lengths[b]` steps of sequence b in reverse."""
    count = x.shape[0]
    steps = torch.arange(count, device=x.device)
    steps = steps[:, None]
    ends = lengths.to(torch.int64)
    ends = ends[None, :]
    last = ends - 1
    back = last - steps
    # steps behind the end of a sequence stay where they are
    at = torch.where(back >= 0, back, steps)
    inner_dims = x.ndim - 2
    trailing = (1,) * inner_dims
    index = at.reshape(*at.shape, *trailing)
    index = index.expand(x.shape)
    return x.gather(0, index)


@op("Shape", gradient=False)
def shape_(x: Any, *, start: int = 0, end: int | None = None) -> Tensor:
    """For arrays of strings and sequences; tensors are measured outside of tensors."""
    sizes = list(x.shape) if hasattr(x, "shape") else [len(x)]
    wanted = sizes[start:end]
    return torch.tensor(wanted, dtype=torch.int64)


@op("Size", gradient=False)
def size(x: Any) -> Tensor:
    count = math.prod(x.shape)
    return torch.tensor(count, dtype=torch.int64)
