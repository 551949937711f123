"""Resampling: Resize in all its modes as one interpolation matrix an axis, and sampling by grids.

Where the standard's own suite and ONNX Runtime differ (align_corners with scales), ONNX Runtime is
followed: docs/decisions/2026-11-22-trainable-graphs.md.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op
from .conv import by_channel

Tensor = Any
CROP = "tf_crop_and_resize"


@dataclass(frozen=True)
class Sampling:
    """Attributes of Resize: where an output element lies, and what it takes from its neighbours."""

    mode: str = "nearest"
    coordinates: str = "half_pixel"
    nearest: str = "round_prefer_floor"
    cubic: float = -0.75
    antialias: bool = False
    exclude_outside: bool = False
    extrapolation: float = 0.0


@op("Upsample", 7)
def upsample_by_attribute(
    x: Tensor, *, mode: str = "nearest", scales: list[float]
) -> Tensor:
    return resize_10(x, scales, mode=mode)


@op("Upsample", 9, host=(1,))
@op("Resize", 10, host=(1,))
def resize_10(x: Tensor, scales: list[float], *, mode: str = "nearest") -> Tensor:
    """Before opset 11 there was one way to place elements."""
    sampling = Sampling(mode, "asymmetric", "floor")
    axes = list(range(x.ndim))
    sizes = _scaled(x.shape, scales)
    return _resize(
        x,
        sampling,
        axes,
        out=sizes,
        scales=scales,
        roi=None,
    )


@op("Resize", 11, host=(1, 2, 3))
def resize(
    x: Tensor,
    roi: list[float] | None = None,
    scales: list[float] | None = None,
    sizes: list[int] | None = None,
    *,
    antialias: int = 0,
    axes: list[int] | None = None,
    coordinate_transformation_mode: str = "half_pixel",
    cubic_coeff_a: float = -0.75,
    exclude_outside: int = 0,
    extrapolation_value: float = 0.0,
    keep_aspect_ratio_policy: str = "stretch",
    mode: str = "nearest",
    nearest_mode: str = "round_prefer_floor",
) -> Tensor:
    chosen = list(range(x.ndim))
    if axes:
        chosen = [axis % x.ndim for axis in axes]
    sampling = Sampling(
        mode,
        coordinates=coordinate_transformation_mode,
        nearest=nearest_mode,
        cubic=cubic_coeff_a,
        antialias=bool(antialias),
        exclude_outside=bool(exclude_outside),
        extrapolation=extrapolation_value,
    )
    lengths = [x.shape[axis] for axis in chosen]
    if scales:
        out = _cropped(lengths, scales, roi, sampling)
    else:
        assert sizes, "Resize needs scales or sizes"
        scales, out = _fitted(lengths, sizes, keep_aspect_ratio_policy)
    return _resize(
        x,
        sampling,
        chosen,
        out,
        scales,
        roi,
    )


def _scaled(lengths: Any, scales: list[float]) -> list[int]:
    pairs = zip(lengths, scales, strict=True)
    return [math.floor(length * scale) for length, scale in pairs]


def _cropped(
    lengths: list[int], scales: list[float], roi: list[float] | None, sampling: Sampling
) -> list[int]:
    """Return the sizes that scales give; of a crop, those of its part."""
    if sampling.coordinates != CROP or not roi:
        return _scaled(lengths, scales)
    # all starts, then all ends, as fractions of the axes
    starts = roi[: len(lengths)]
    ends = roi[len(lengths) :]
    sizes = []
    for length, start, end, scale in zip(lengths, starts, ends, scales, strict=True):
        part = length * (end - start)
        sizes.append(math.floor(part * scale))
    return sizes


def _fitted(
    lengths: list[int], sizes: list[int], policy: str
) -> tuple[list[float], list[int]]:
    """Return scales for wanted sizes, and the sizes; with a policy one scale for all axes."""
    scales = [size / length for size, length in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return scales, sizes
    one = min(scales) if policy == "not_larger" else max(scales)
    # halves go up; Python's round would send them to even
    rounded = [math.floor(one * length + 0.5) for length in lengths]
    return [one] * len(lengths), rounded


def _resize(
    x: Tensor,
    sampling: Sampling,
    axes: list[int],
    out: list[int],
    scales: list[float],
    roi: list[float] | None,
) -> Tensor:
    """Resample one axis after another.

    `axes`: those that change; `out`, `scales`: sizes and scales of these, `roi` their crop.
    """
    fast = _fast(
        x,
        sampling,
        axes,
        out,
        scales,
    )
    if fast is not None:
        return fast
    cropping = sampling.coordinates == CROP
    outside = None
    for i, axis in enumerate(axes):
        window = (0.0, 1.0)
        if cropping and roi:
            window = (roi[i], roi[i + len(axes)])
        elif out[i] == x.shape[axis] and scales[i] == 1.0:
            continue
        size = x.shape[axis]
        at = _coordinates(
            mode=sampling.coordinates,
            size=size,
            out=out[i],
            scale=scales[i],
            window=window,
            device=x.device,
        )
        x = _along(
            x,
            axis,
            at,
            scales[i],
            sampling,
        )
        if cropping:
            beyond = (at < 0) | (at > size - 1)
            beyond = by_channel(beyond, x.ndim - axis - 1)
            outside = beyond if outside is None else outside | beyond
    if outside is None:
        return x
    # a crop may reach over the borders
    fill = torch.tensor(sampling.extrapolation, dtype=x.dtype)
    return torch.where(outside, fill, x)


def _fast(
    x: Tensor, sampling: Sampling, axes: list[int], out: list[int], scales: list[float]
) -> Tensor | None:
    """Run torch's own kernels, which do whole multiples of images, nearest or (bi)linear."""
    if x.ndim != 4 or sampling.antialias or not x.is_floating_point():
        return None
    sizes = dict(zip(axes, out, strict=True))
    factors = dict(zip(axes, scales, strict=True))
    # torch resizes neither batch nor channels
    if factors.get(0, 1.0) != 1.0 or factors.get(1, 1.0) != 1.0:
        return None
    # of other multiples torch and ONNX place the elements differently
    if any(isinstance(scale, float) and scale != int(scale) for scale in scales):
        return None
    size = [sizes.get(axis, x.shape[axis]) for axis in (2, 3)]
    places = (sampling.coordinates, sampling.nearest)
    if sampling.mode == "nearest" and places in _REPEATING:
        return F.interpolate(x, size, mode="nearest")
    if sampling.mode == "linear" and sampling.coordinates in _BILINEAR:
        corners = sampling.coordinates == "align_corners"
        return F.interpolate(
            x,
            size,
            mode="bilinear",
            align_corners=corners,
        )
    return None


_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
}
"""Ways to say that whole multiples repeat elements."""

_BILINEAR = ("half_pixel", "align_corners")
"""Places of elements that torch's bilinear kernel knows."""


def _coordinates(
    mode: str,
    size: int,
    out: int,
    scale: float,
    window: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """Return the place of each output element on the input's axis, in double precision."""
    o = torch.arange(out, dtype=torch.float64, device=device)
    match mode:
        case "asymmetric":
            return o / scale
        case "align_corners":
            if out == 1:
                return o * 0
            return o * ((size - 1) / (out - 1))
        case "pytorch_half_pixel":
            if out == 1:
                return o * 0
        case "tf_half_pixel_for_nn":
            return (o + 0.5) / scale
        case "half_pixel_symmetric":
            # centers the output where its size was rounded down
            unrounded = scale * size
            offset = size / 2 * (1 - out / unrounded)
            return offset + (o + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            start, end = window
            last = size - 1
            if out == 1:
                middle = 0.5 * (start + end) * last
                return o * 0 + middle
            return start * last + o * (end - start) * last / (out - 1)
    # half_pixel
    return (o + 0.5) / scale - 0.5


def _along(
    x: Tensor, axis: int, at: Tensor, scale: float, sampling: Sampling
) -> Tensor:
    """Resample one axis at the places `at`; places outside take the border."""
    last = x.shape[axis] - 1
    if sampling.mode == "nearest":
        picked = _nearest(at, sampling.nearest).clamp(0, last)
        return x.index_select(axis, picked)
    matrix = _interpolation(
        at,
        last,
        scale,
        sampling,
    )
    floating = x if x.is_floating_point() else x.float()
    matrix = matrix.to(floating.dtype)
    y = torch.tensordot(floating, matrix, dims=([axis], [1]))
    y = y.movedim(-1, axis)
    return y.to(x.dtype)


def _interpolation(at: Tensor, last: int, scale: float, sampling: Sampling) -> Tensor:
    """Return the matrix (out, last + 1) that interpolates an axis, in double precision."""
    places, weights = _taps(at, scale, sampling)
    if sampling.exclude_outside:
        weights = weights * ((places >= 0) & (places <= last))
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(
        at.shape[0],
        last + 1,
        dtype=torch.float64,
        device=at.device,
    )
    # several places outside add up at the border
    return matrix.scatter_add(1, places.clamp(0, last), weights)


def _nearest(at: Tensor, mode: str) -> Tensor:
    match mode:
        case "floor":
            place = at.floor()
        case "ceil":
            place = at.ceil()
        case "round_prefer_ceil":
            place = (at + 0.5).floor()
        case _:
            place = (at - 0.5).ceil()
    return place.to(torch.int64)


def _taps(at: Tensor, scale: float, sampling: Sampling) -> tuple[Tensor, Tensor]:
    """Return positions and weights of the filter, (out, taps) both.

    Antialiasing widens the filter of an axis that shrinks.
    """
    shrink = min(scale, 1.0) if sampling.antialias else 1.0
    # reach of the filter to either side, so that it has 2 taps, or 4 of a cubic
    radius = 1.0 if sampling.mode == "linear" else 2.0
    first = math.floor(-radius / shrink) + 1
    base = at.floor()
    ratio = (at - base)[:, None]
    offsets = torch.arange(
        first,
        2 - first,
        dtype=torch.float64,
        device=at.device,
    )
    distance = ((offsets - ratio) * shrink).abs()
    weights = _filter(distance, sampling)
    if sampling.antialias:
        weights = weights / weights.sum(1, keepdim=True)
    places = base[:, None] + offsets
    return places.to(torch.int64), weights


def _filter(distance: Tensor, sampling: Sampling) -> Tensor:
    """Return the weights of elements at distances from a place."""
    if sampling.mode == "linear":
        return (1 - distance).clamp(min=0)
    return _cubic(distance, sampling.cubic)


def _cubic(d: Tensor, a: float) -> Tensor:
    """Return the weights at distances `d`; Keys' kernel with its free parameter `a`."""
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    beyond = torch.where(d < 2, far, 0.0)
    return torch.where(d <= 1, near, beyond)


@op("GridSample", 16)
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    # opset 20 gave the modes other names, those of any number of dims
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(
        x,
        grid,
        name,
        padding_mode,
        bool(align_corners),
    )


@op("AffineGrid", 20, host=(1,))
def affine_grid(theta: Tensor, size: list[int], *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, size, bool(align_corners))
