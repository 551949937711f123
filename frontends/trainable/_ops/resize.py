"""Resampling: Resize in all its modes as one interpolation matrix an axis, and sampling by
grids.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op

Tensor = Any


@dataclass(frozen=True)
class Sampling:
    """Resize's attributes that say where an output element lies and what it takes from its
    neighbours.
    """

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
    sampling = Sampling(mode, "asymmetric", "floor")
    return _resize(
        x, sampling, list(range(x.ndim)), _scaled(x.shape, scales), scales, None
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
    chosen = [a % x.ndim for a in axes] if axes else list(range(x.ndim))
    sampling = Sampling(
        mode,
        coordinate_transformation_mode,
        nearest_mode,
        cubic_coeff_a,
        bool(antialias),
        bool(exclude_outside),
        extrapolation_value,
    )
    lengths = [x.shape[a] for a in chosen]
    if scales:
        out = _cropped(lengths, scales, roi, sampling)
    else:
        assert sizes, "Resize needs scales or sizes"
        scales, out = _fitted(lengths, sizes, keep_aspect_ratio_policy)
    return _resize(x, sampling, chosen, out, scales, roi)


def _scaled(lengths: Any, scales: list[float]) -> list[int]:
    return [math.floor(n * s) for n, s in zip(lengths, scales, strict=True)]


def _cropped(
    lengths: list[int], scales: list[float], roi: list[float] | None, sampling: Sampling
) -> list[int]:
    if sampling.coordinates != "tf_crop_and_resize" or not roi:
        return _scaled(lengths, scales)
    half = len(lengths)
    return [
        math.floor(n * (roi[i + half] - roi[i]) * s)
        for i, (n, s) in enumerate(zip(lengths, scales, strict=True))
    ]


def _fitted(
    lengths: list[int], sizes: list[int], policy: str
) -> tuple[list[float], list[int]]:
    """Scales for wanted sizes; with a policy one scale for all axes."""
    scales = [size / n for size, n in zip(sizes, lengths, strict=True)]
    if policy == "stretch":
        return scales, sizes
    one = min(scales) if policy == "not_larger" else max(scales)
    return [one] * len(lengths), [math.floor(one * n + 0.5) for n in lengths]


def _resize(
    x: Tensor,
    sampling: Sampling,
    axes: list[int],
    out: list[int],
    scales: list[float],
    roi: list[float] | None,
) -> Tensor:
    fast = _fast(x, sampling, axes, out, scales)
    if fast is not None:
        return fast
    outside = None
    for i, axis in enumerate(axes):
        if sampling.coordinates == "tf_crop_and_resize" and roi:
            window = (roi[i], roi[i + len(axes)])
        elif out[i] == x.shape[axis] and scales[i] == 1.0:
            continue
        else:
            window = (0.0, 1.0)
        size = x.shape[axis]
        at = _coordinates(
            sampling.coordinates, size, out[i], scales[i], window, x.device
        )
        x = _along(x, axis, at, scales[i], sampling)
        if sampling.coordinates == "tf_crop_and_resize":
            beyond = ((at < 0) | (at > size - 1)).reshape(
                -1, *(1,) * (x.ndim - axis - 1)
            )
            outside = beyond if outside is None else outside | beyond
    return (
        x
        if outside is None
        else torch.where(
            outside, torch.tensor(sampling.extrapolation, dtype=x.dtype), x
        )
    )


def _fast(
    x: Tensor, sampling: Sampling, axes: list[int], out: list[int], scales: list[float]
) -> Tensor | None:
    """Torch's own kernels for whole multiples of images, nearest or (bi)linear."""
    spatial = dict(zip(axes, zip(out, scales, strict=True), strict=True))
    plain = all(spatial.get(a, (x.shape[a], 1.0))[1] == 1.0 for a in (0, 1))
    if x.ndim != 4 or not plain or sampling.antialias or not x.is_floating_point():
        return None
    if any(isinstance(s, float) and s != int(s) for _, s in spatial.values()):
        return None
    size = [spatial.get(a, (x.shape[a], 1.0))[0] for a in (2, 3)]
    if (
        sampling.mode == "nearest"
        and (sampling.coordinates, sampling.nearest) in _REPEATING
    ):
        return F.interpolate(x, size, mode="nearest")
    if sampling.mode == "linear" and sampling.coordinates in (
        "half_pixel",
        "align_corners",
    ):
        return F.interpolate(
            x,
            size,
            mode="bilinear",
            align_corners=sampling.coordinates == "align_corners",
        )
    return None


_REPEATING = {
    ("asymmetric", "floor"),
    ("half_pixel", "round_prefer_floor"),
    ("half_pixel", "round_prefer_ceil"),
}
"""Ways to say that whole multiples repeat elements."""


def _coordinates(
    mode: str,
    size: int,
    out: int,
    scale: float,
    window: tuple[float, float],
    device: torch.device,
) -> Tensor:
    """Where each output element lies on the input's axis, in double precision."""
    o = torch.arange(out, dtype=torch.float64, device=device)
    match mode:
        case "asymmetric":
            return o / scale
        case "align_corners":
            return o * ((size - 1) / (out - 1)) if out > 1 else o * 0
        case "pytorch_half_pixel":
            return (o + 0.5) / scale - 0.5 if out > 1 else o * 0
        case "tf_half_pixel_for_nn":
            return (o + 0.5) / scale
        case "half_pixel_symmetric":
            offset = size / 2 * (1 - out / (scale * size))
            return offset + (o + 0.5) / scale - 0.5
        case "tf_crop_and_resize":
            start, end = window
            if out > 1:
                return start * (size - 1) + o * (end - start) * (size - 1) / (out - 1)
            return o * 0 + 0.5 * (start + end) * (size - 1)
    return (o + 0.5) / scale - 0.5


def _along(
    x: Tensor, axis: int, at: Tensor, scale: float, sampling: Sampling
) -> Tensor:
    size = x.shape[axis]
    if sampling.mode == "nearest":
        return x.index_select(axis, _nearest(at, sampling.nearest).clamp(0, size - 1))
    places, weights = _taps(at, scale, sampling)
    if sampling.exclude_outside:
        weights = weights * ((places >= 0) & (places < size))
        weights = weights / weights.sum(1, keepdim=True)
    matrix = torch.zeros(at.shape[0], size, dtype=torch.float64, device=x.device)
    matrix = matrix.scatter_add(1, places.clamp(0, size - 1), weights)
    floating = x if x.is_floating_point() else x.float()
    y = torch.tensordot(
        floating, matrix.to(floating.dtype), dims=([axis], [1])
    ).movedim(-1, axis)
    return y if x.is_floating_point() else y.to(x.dtype)


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
    """(out, taps) positions and weights; antialiasing widens the filter of an axis that shrinks."""
    shrink = min(scale, 1.0) if sampling.antialias else 1.0
    reach = 1.0 if sampling.mode == "linear" else 2.0
    first = math.floor(-reach / shrink) + 1
    base = at.floor()
    ratio = (at - base)[:, None]
    offsets = torch.arange(first, 2 - first, dtype=torch.float64, device=at.device)
    distance = ((offsets - ratio) * shrink).abs()
    weights = (
        (1 - distance).clamp(min=0)
        if sampling.mode == "linear"
        else _cubic(distance, sampling.cubic)
    )
    if sampling.antialias:
        weights = weights / weights.sum(1, keepdim=True)
    return (base[:, None] + offsets).to(torch.int64), weights


def _cubic(d: Tensor, a: float) -> Tensor:
    near = ((a + 2) * d - (a + 3)) * d * d + 1
    far = ((a * d - 5 * a) * d + 8 * a) * d - 4 * a
    return torch.where(d <= 1, near, torch.where(d < 2, far, 0.0))


@op("GridSample", 16)
def grid_sample(
    x: Tensor,
    grid: Tensor,
    *,
    align_corners: int = 0,
    mode: str = "bilinear",
    padding_mode: str = "zeros",
) -> Tensor:
    name = {"linear": "bilinear", "cubic": "bicubic"}.get(mode, mode)
    return F.grid_sample(x, grid, name, padding_mode, bool(align_corners))


@op("AffineGrid", 20, host=(1,))
def affine_grid(theta: Tensor, size: list[int], *, align_corners: int = 0) -> Tensor:
    return F.affine_grid(theta, size, bool(align_corners))
