"""Pooling over windows, over everything, and back."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op
from .conv import SAME, ceil_divided, same_pads, torch_pads

Tensor = Any
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Windows:
    """Places of a pool's windows: kernel, strides, dilations and ONNX pads, all of each dim.

    `extra`: what `ceil_mode` adds at the ends.
    """

    def __init__(
        self,
        x: Tensor,
        kernel: list[int],
        strides: list[int] | None,
        pads: list[int] | None,
        dilations: list[int] | None,
        auto_pad: str,
        ceil: int,
    ) -> None:
        dims = len(kernel)
        self.kernel = kernel
        self.dims = dims
        self.strides = strides or [1] * dims
        self.dilations = dilations or [1] * dims
        sizes = x.shape[2:]
        if auto_pad in SAME:
            upper = auto_pad == "SAME_UPPER"
            pads = same_pads(
                sizes,
                kernel,
                self.strides,
                self.dilations,
                upper,
            )
        if not pads or auto_pad == "VALID":
            pads = [0] * (2 * dims)
        self.pads = pads
        self.extra = [0] * dims
        if ceil:
            for dim in range(dims):
                self.extra[dim] = self._extra(dim, sizes[dim])

    @property
    def begins(self) -> list[int]:
        """Pads at the begin of each dim."""
        return self.pads[: self.dims]

    @property
    def ends(self) -> list[int]:
        """Pads at the end of each dim."""
        return self.pads[self.dims :]

    @property
    def symmetric(self) -> bool:
        """True if torch's own padding does: both ends alike, and at most half a window."""
        if self.begins != self.ends or any(self.extra):
            return False
        pairs = zip(self.begins, self.kernel, strict=True)
        return all(2 * pad <= k for pad, k in pairs)

    def _extra(self, dim: int, size: int) -> int:
        """Return how many positions past the end the last window needs."""
        begin = self.begins[dim]
        end = self.ends[dim]
        padded = begin + size + end
        stride = self.strides[dim]
        span = self._span(dim)
        # windows behind the first one
        steps = ceil_divided(padded - span, stride)
        # a window that would start in the padding at the end is left out
        last_start = steps * stride
        if last_start >= begin + size:
            last_start -= stride
        covered = last_start + span
        return max(covered - padded, 0)

    def _span(self, dim: int) -> int:
        """Return the elements from the first to the last that a window reads along a dim."""
        gaps = self.kernel[dim] - 1
        return self.dilations[dim] * gaps + 1

    def padded(self, x: Tensor, value: float, extra: bool = True) -> Tensor:
        """Return the input with its pads filled with `value`, and what `ceil_mode` adds too."""
        ends = self.ends
        if extra:
            pairs = zip(self.ends, self.extra, strict=True)
            ends = [end + more for end, more in pairs]
        pads = self.begins + ends
        if not any(pads):
            return x
        return F.pad(x, torch_pads(pads), value=value)

    def views(self, x: Tensor) -> Tensor:
        """(N, C, *positions, prod(kernel)): windows of an input that is padded already."""
        for dim in range(self.dims):
            dilation = self.dilations[dim]
            # batch and channels come before the dims of the windows
            axis = dim + 2
            windows = x.unfold(axis, self._span(dim), self.strides[dim])
            x = windows[..., ::dilation]
        return x.flatten(-self.dims)


@op("MaxPool", many=True)
def max_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    storage_order: int = 0,
    strides: list[int] | None = None,
    call: Call,
) -> tuple[Tensor, ...]:
    windows = Windows(
        x,
        kernel_shape,
        strides,
        pads,
        dilations,
        auto_pad,
        ceil_mode,
    )
    # torch pools no integers
    padded = x if x.is_floating_point() else x.float()
    padding = windows.begins
    if not windows.symmetric:
        padded = windows.padded(padded, -math.inf)
        padding = [0] * windows.dims
    pool = partial(
        _MAX[windows.dims],
        kernel_size=windows.kernel,
        stride=windows.strides,
        padding=padding,
        dilation=windows.dilations,
    )
    if call.wanted == 1:
        y = pool(padded)
        return (y.to(x.dtype),)
    y, where = pool(padded, return_indices=True)
    # torch counts within a plane of the padded input
    places = _positions(
        where,
        x,
        padded,
        windows,
        storage_order,
    )
    return y.to(x.dtype), places


def _positions(
    where: Tensor, x: Tensor, padded: Tensor, windows: Windows, column_major: int
) -> Tensor:
    """Turn indices into one padded plane into ONNX indices into the whole of `x`."""
    coordinates = []
    for size in reversed(padded.shape[2:]):
        coordinates.append(where % size)
        where = where // size
    coordinates.reverse()
    # torch does not count the padding that it adds itself
    if padded.shape != x.shape:
        pairs = zip(coordinates, windows.begins, strict=True)
        coordinates = [coordinate - begin for coordinate, begin in pairs]
    sizes = list(x.shape[2:])
    dims = len(sizes)
    order = list(range(dims))
    if not column_major:
        order.reverse()
    index = torch.zeros_like(where)
    step = 1
    for dim in order:
        offset = coordinates[dim] * step
        index = index + offset
        step *= sizes[dim]
    # by now a step leads from one plane to the next
    batch, channels = x.shape[:2]
    count = batch * channels
    planes = torch.arange(count, device=x.device)
    trailing = (1,) * dims
    planes = planes.reshape(batch, channels, *trailing)
    return index + planes * step


@op("AveragePool")
def average_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    count_include_pad: int = 0,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    windows = Windows(
        x,
        kernel_shape,
        strides,
        pads,
        dilations,
        auto_pad,
        ceil_mode,
    )
    dilated = any(dilation != 1 for dilation in windows.dilations)
    if not dilated and windows.symmetric:
        pool = _AVERAGE[windows.dims]
        return pool(
            x,
            kernel_size=windows.kernel,
            stride=windows.strides,
            padding=windows.begins,
            count_include_pad=bool(count_include_pad),
        )
    # What is counted: elements, and pads if they are included, but never what
    # `ceil_mode` adds behind them.
    ones = torch.ones_like(x[:1, :1])
    ones = windows.padded(ones, 1.0 if count_include_pad else 0.0, extra=False)
    tail = torch_pads([0] * windows.dims + windows.extra)
    counted = F.pad(ones, tail)
    counts = windows.views(counted).sum(-1)
    padded = windows.padded(x, 0.0)
    sums = windows.views(padded).sum(-1)
    return sums / counts


@op("LpPool")
def lp_pool(
    x: Tensor,
    *,
    kernel_shape: list[int],
    auto_pad: str = "NOTSET",
    ceil_mode: int = 0,
    dilations: list[int] | None = None,
    p: float = 2,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    windows = Windows(
        x,
        kernel_shape,
        strides,
        pads,
        dilations,
        auto_pad,
        ceil_mode,
    )
    padded = windows.padded(x.abs(), 0.0)
    powers = windows.views(padded).pow(p)
    sums = powers.sum(-1)
    return sums.pow(1.0 / p)


def _spatial(x: Tensor) -> tuple[int, ...]:
    """Axes behind batch and channels."""
    return tuple(range(2, x.ndim))


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=_spatial(x), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(dim=_spatial(x), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    powers = x.abs().pow(p)
    sums = powers.sum(dim=_spatial(x), keepdim=True)
    return sums.pow(1.0 / p)


@op("MaxUnpool", host=(2,))
def max_unpool(
    x: Tensor,
    indices: Tensor,
    shape: list[int] | None = None,
    *,
    kernel_shape: list[int],
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Indices count over the tensor that the pool's own attributes imply, whatever shape is asked
    for.
    """
    dims = len(kernel_shape)
    strides = strides or [1] * dims
    pads = pads or [0] * (2 * dims)
    full = list(x.shape[:2])
    for dim in range(dims):
        steps = x.shape[dim + 2] - 1
        covered = steps * strides[dim] + kernel_shape[dim]
        begin = pads[dim]
        end = pads[dim + dims]
        size = covered - begin - end
        full.append(size)
    count = math.prod(full)
    zeros = x.new_zeros(count)
    at = indices.reshape(-1)
    values = x.reshape(-1)
    y = zeros.scatter(0, at, values)
    y = y.reshape(full)
    if shape is None or list(shape) == full:
        return y
    begins = [0] * len(full)
    ends = []
    for new, old in zip(shape, full, strict=True):
        ends.append(new - old)
    return F.pad(y, torch_pads(begins + ends))


@op("RoiAlign", 10)
def roi_align_10(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    bins = Bins(
        mode,
        output_height,
        output_width,
        sampling_ratio,
    )
    return _roi_align(
        x,
        rois,
        batch,
        bins,
        scale=spatial_scale,
        offset=0.0,
    )


@op("RoiAlign", 16)
def roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    *,
    coordinate_transformation_mode: str = "half_pixel",
    mode: str = "avg",
    output_height: int = 1,
    output_width: int = 1,
    sampling_ratio: int = 0,
    spatial_scale: float = 1.0,
) -> Tensor:
    bins = Bins(
        mode,
        output_height,
        output_width,
        sampling_ratio,
    )
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    return _roi_align(
        x,
        rois,
        batch,
        bins,
        spatial_scale,
        offset,
    )


@dataclass(frozen=True)
class Bins:
    """Bins of a box: how many, samples a side of each (0: one a pixel), and how they are pooled."""

    mode: str
    height: int
    width: int
    sampling: int

    def samples(self, side: Tensor, bins: int) -> int:
        """Return the samples of a bin along a side of the box."""
        return self.sampling or math.ceil(float(side) / bins)


def _roi_align(
    x: Tensor, rois: Tensor, batch: Tensor, bins: Bins, scale: float, offset: float
) -> Tensor:
    """Pool one box at a time: bilinear samples of a grid within each bin, averaged or maximal."""
    pooled = []
    for roi, image in zip(rois, batch.tolist(), strict=True):
        box = roi * scale - offset
        left, top, right, bottom = box.unbind()
        across = right - left
        down = bottom - top
        if offset == 0.0:
            # the older form has no boxes below one pixel
            across = across.clamp(min=1.0)
            down = down.clamp(min=1.0)
        rows = bins.samples(down, bins.height)
        columns = bins.samples(across, bins.width)
        y = _sampled(top, down, bins.height * rows)
        z = _sampled(left, across, bins.width * columns)
        neighbours = _bilinear_corners(x[image], y, z)
        corners = torch.stack(neighbours)
        # (channels, bins down, samples, bins across, samples)
        grid_shape = (-1, bins.height, rows, bins.width, columns)
        within = (2, 4)
        if bins.mode == "avg":
            values = corners.sum(0)
            grid = values.reshape(grid_shape)
            box_bins = grid.mean(dim=within)
        else:
            # by ONNX the largest of the weighted neighbours counts, not of the interpolated samples
            values = corners.amax(0)
            grid = values.reshape(grid_shape)
            box_bins = grid.amax(dim=within)
        pooled.append(box_bins)
    if not pooled:
        channels = x.shape[1]
        return x.new_zeros(0, channels, bins.height, bins.width)
    return torch.stack(pooled)


def _sampled(start: Tensor, length: Tensor, count: int) -> Tensor:
    """Return the middles of `count` equal parts of a length."""
    parts = torch.arange(count, device=start.device)
    middles = parts + 0.5
    distances = middles * length / count
    return start + distances


def _bilinear_corners(plane: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    """Return the four weighted neighbours of every (y, x) of a grid.

    Samples more than one pixel outside count zero.
    """
    rows = _neighbours(y, plane.shape[1])
    columns = _neighbours(x, plane.shape[2])
    inside = rows.inside[:, None] & columns.inside[None, :]
    inside = inside.to(plane.dtype)
    corners = []
    for (r, row_weight), (c, column_weight) in itertools.product(
        rows.weighted(),
        columns.weighted(),
    ):
        weight = row_weight[:, None] * column_weight[None, :]
        weight = weight * inside
        picked = plane[:, r][:, :, c]
        corners.append(picked * weight)
    return corners


@dataclass(frozen=True)
class Neighbours:
    """Indices below and above places of an axis, the fraction between, and what lies inside."""

    low: Tensor
    high: Tensor
    fraction: Tensor
    inside: Tensor

    def weighted(self) -> list[tuple[Tensor, Tensor]]:
        """Return both indices, each with its weight."""
        return [
            (self.low, 1 - self.fraction),
            (self.high, self.fraction),
        ]


def _neighbours(at: Tensor, size: int) -> Neighbours:
    # up to one pixel outside, samples take the border
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    high = (low + 1).clamp(max=size - 1)
    fraction = at - low
    return Neighbours(low, high, fraction, inside)
