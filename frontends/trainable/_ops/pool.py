"""Pooling over windows, over everything, and back."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op
from .conv import same_pads, torch_pads

Tensor = Any
_MAX = {1: F.max_pool1d, 2: F.max_pool2d, 3: F.max_pool3d}
_AVERAGE = {1: F.avg_pool1d, 2: F.avg_pool2d, 3: F.avg_pool3d}


class Windows:
    """Where windows of a pool lie: kernel, strides, dilations, ONNX pads, with what `ceil_mode`
    adds at the ends.
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
        self.kernel, self.dims = kernel, dims
        self.strides, self.dilations = strides or [1] * dims, dilations or [1] * dims
        sizes = x.shape[2:]
        if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
            pads = same_pads(
                sizes, kernel, self.strides, self.dilations, auto_pad == "SAME_UPPER"
            )
        self.pads = pads if pads and auto_pad != "VALID" else [0] * (2 * dims)
        self.extra = [self._extra(i, sizes[i]) if ceil else 0 for i in range(dims)]

    def _extra(self, dim: int, size: int) -> int:
        """Positions past the end that the last window needs; one that would start in the end
        padding is left out.
        """
        begin, end = self.pads[dim], self.pads[dim + self.dims]
        span = self.dilations[dim] * (self.kernel[dim] - 1) + 1
        stride = self.strides[dim]
        count = -(-(size + begin + end - span) // stride) + 1
        if (count - 1) * stride >= size + begin:
            count -= 1
        return max((count - 1) * stride + span - (size + begin + end), 0)

    def padded(self, x: Tensor, value: float, extra: bool = True) -> Tensor:
        """The input with its pads filled with `value`."""
        ends = [
            p + (e if extra else 0)
            for p, e in zip(self.pads[self.dims :], self.extra, strict=True)
        ]
        pads = self.pads[: self.dims] + ends
        return F.pad(x, torch_pads(pads), value=value) if any(pads) else x

    def views(self, x: Tensor) -> Tensor:
        """(N, C, *positions, prod(kernel)): what each window sees of an input padded already."""
        for dim, (k, s, d) in enumerate(
            zip(self.kernel, self.strides, self.dilations, strict=True)
        ):
            x = x.unfold(dim + 2, d * (k - 1) + 1, s)[..., ::d]
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
    windows = Windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    floating = x if x.is_floating_point() else x.float()
    half = windows.dims
    fits = all(
        2 * p <= k for p, k in zip(windows.pads, windows.kernel * 2, strict=True)
    )
    plain = (
        windows.pads[:half] == windows.pads[half:] and not any(windows.extra) and fits
    )
    padded = floating if plain else windows.padded(floating, -math.inf)
    padding = windows.pads[:half] if plain else [0] * half
    pool = _MAX[half]
    if call.wanted == 1:
        return (
            pool(
                padded, windows.kernel, windows.strides, padding, windows.dilations
            ).to(x.dtype),
        )
    y, where = pool(
        padded,
        windows.kernel,
        windows.strides,
        padding,
        windows.dilations,
        return_indices=True,
    )
    return y.to(x.dtype), _positions(where, x, padded, windows, storage_order)


def _positions(
    where: Tensor, x: Tensor, padded: Tensor, windows: Windows, column_major: int
) -> Tensor:
    """Indices into one padded plane as ONNX indices into the whole of `x`."""
    begins = (
        [p - 0 for p in windows.pads[: windows.dims]]
        if padded is not x and padded.shape != x.shape
        else None
    )
    coordinates = []
    for size in reversed(padded.shape[2:]):
        coordinates.append(where % size)
        where = where // size
    coordinates.reverse()
    if begins is not None:
        coordinates = [c - b for c, b in zip(coordinates, begins, strict=True)]
    sizes = list(x.shape[2:])
    order = range(len(sizes))
    index, step = torch.zeros_like(where), 1
    for dim in order if column_major else reversed(order):
        index = index + coordinates[dim] * step
        step *= sizes[dim]
    planes = torch.arange(x.shape[0] * x.shape[1], device=x.device).reshape(
        x.shape[0], x.shape[1], *(1,) * len(sizes)
    )
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
    windows = Windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    half = windows.dims
    dilated = any(d != 1 for d in windows.dilations)
    fits = all(
        2 * p <= k for p, k in zip(windows.pads, windows.kernel * 2, strict=True)
    )
    if (
        not dilated
        and windows.pads[:half] == windows.pads[half:]
        and not any(windows.extra)
        and fits
    ):
        include = bool(count_include_pad)
        return _AVERAGE[half](
            x, windows.kernel, windows.strides, windows.pads[:half], False, include
        )
    ones = torch.ones_like(x[:1, :1])
    ones = windows.padded(ones, 1.0 if count_include_pad else 0.0, extra=False)
    tail = [e for e in reversed(windows.extra) for e in (0, e)]
    counts = windows.views(F.pad(ones, tail)).sum(-1)
    return windows.views(windows.padded(x, 0.0)).sum(-1) / counts


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
    windows = Windows(x, kernel_shape, strides, pads, dilations, auto_pad, ceil_mode)
    return windows.views(windows.padded(x.abs(), 0.0)).pow(p).sum(-1).pow(1.0 / p)


def _spatial(x: Tensor) -> tuple[int, ...]:
    return tuple(range(2, x.ndim))


@op("GlobalAveragePool")
def global_average_pool(x: Tensor) -> Tensor:
    return x.mean(dim=_spatial(x), keepdim=True)


@op("GlobalMaxPool")
def global_max_pool(x: Tensor) -> Tensor:
    return x.amax(dim=_spatial(x), keepdim=True)


@op("GlobalLpPool")
def global_lp_pool(x: Tensor, *, p: float = 2) -> Tensor:
    return x.abs().pow(p).sum(dim=_spatial(x), keepdim=True).pow(1.0 / p)


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
    strides, pads = strides or [1] * dims, pads or [0] * (2 * dims)
    implied = [
        (n - 1) * s - pads[i] - pads[i + dims] + k
        for i, (n, s, k) in enumerate(
            zip(x.shape[2:], strides, kernel_shape, strict=True)
        )
    ]
    full = [*x.shape[:2], *implied]
    y = (
        x.new_zeros(math.prod(full))
        .scatter(0, indices.reshape(-1), x.reshape(-1))
        .reshape(full)
    )
    if shape is None or list(shape) == full:
        return y
    return F.pad(
        y,
        [
            pad
            for new, old in zip(reversed(shape), reversed(full), strict=True)
            for pad in (0, new - old)
        ],
    )


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
    return _roi_align(
        x,
        rois,
        batch,
        mode,
        output_height,
        output_width,
        sampling_ratio,
        spatial_scale,
        0.0,
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
    offset = 0.5 if coordinate_transformation_mode == "half_pixel" else 0.0
    return _roi_align(
        x,
        rois,
        batch,
        mode,
        output_height,
        output_width,
        sampling_ratio,
        spatial_scale,
        offset,
    )


def _roi_align(
    x: Tensor,
    rois: Tensor,
    batch: Tensor,
    mode: str,
    height: int,
    width: int,
    sampling: int,
    scale: float,
    offset: float,
) -> Tensor:
    """One box at a time: bilinear samples of a grid within each bin, averaged or maximal."""
    pooled = []
    for roi, image in zip(rois, batch.tolist(), strict=True):
        left, top, right, bottom = (roi * scale - offset).unbind()
        across, down = right - left, bottom - top
        if offset == 0.0:
            across, down = across.clamp(min=1.0), down.clamp(min=1.0)
        rows, columns = (
            sampling or math.ceil(float(side) / bins)
            for side, bins in ((down, height), (across, width))
        )
        y = top + (torch.arange(height * rows, device=x.device) + 0.5) * down / (
            height * rows
        )
        z = left + (torch.arange(width * columns, device=x.device) + 0.5) * across / (
            width * columns
        )
        corners = _bilinear_corners(x[image], y, z)
        if mode == "avg":
            grid = torch.stack(corners).sum(0)
            pooled.append(
                grid.reshape(-1, height, rows, width, columns).mean(dim=(2, 4))
            )
        else:
            best = torch.stack(corners).amax(0)
            pooled.append(
                best.reshape(-1, height, rows, width, columns).amax(dim=(2, 4))
            )
    return torch.stack(pooled) if pooled else x.new_zeros(0, x.shape[1], height, width)


def _bilinear_corners(plane: Tensor, y: Tensor, x: Tensor) -> list[Tensor]:
    """The four weighted neighbours of every (y, x) of a grid; samples more than one pixel outside
    count zero.
    """
    (y0, y1, fy, in_y), (x0, x1, fx, in_x) = (
        _neighbours(y, plane.shape[1]),
        _neighbours(x, plane.shape[2]),
    )
    inside = (in_y[:, None] & in_x[None, :]).to(plane.dtype)
    corners = itertools.product(((y0, 1 - fy), (y1, fy)), ((x0, 1 - fx), (x1, fx)))
    return [
        plane[:, r][:, :, c] * (wr[:, None] * wc[None, :] * inside)
        for (r, wr), (c, wc) in corners
    ]


def _neighbours(at: Tensor, size: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    inside = (at >= -1.0) & (at <= size)
    at = at.clamp(0, size - 1)
    low = at.floor().long()
    return low, (low + 1).clamp(max=size - 1), at - low, inside
