"""Convolutions' relatives that gather or add up patches: DeformConv and Col2Im."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from .._registry import op

Tensor = Any


@op("Col2Im", 18, host=(1, 2))
def col2im(
    x: Tensor,
    image: list[int],
    block: list[int],
    *,
    dilations: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """(N, C * prod(block), positions) -> (N, C, *image): overlapping patches are added up."""
    dims = len(image)
    strides, dilations, pads = (
        strides or [1] * dims,
        dilations or [1] * dims,
        pads or [0] * (2 * dims),
    )
    padded = [n + pads[i] + pads[i + dims] for i, n in enumerate(image)]
    at = torch.zeros(1, 1, dtype=torch.int64, device=x.device)
    for size, k, stride, dilation in zip(
        padded, block, strides, dilations, strict=True
    ):
        count = (size - dilation * (k - 1) - 1) // stride + 1
        inside = torch.arange(k, device=x.device) * dilation
        starts = torch.arange(count, device=x.device) * stride
        at = (
            at[:, None, :, None] * size
            + inside[None, :, None, None]
            + starts[None, None, None, :]
        )
        at = at.reshape(at.shape[0] * k, -1)
    patches = x.reshape(x.shape[0], -1, at.numel())
    flat = patches.new_zeros(*patches.shape[:2], math.prod(padded))
    y = flat.index_add(2, at.reshape(-1), patches).reshape(*patches.shape[:2], *padded)
    return y[(..., *(slice(pads[i], pads[i] + n) for i, n in enumerate(image)))]


@op("DeformConv", 19)
def deform_conv(
    x: Tensor,
    w: Tensor,
    offset: Tensor,
    b: Tensor | None = None,
    mask: Tensor | None = None,
    *,
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    offset_group: int = 1,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Images only. Each kernel element reads the image, bilinearly, at its own place moved by its
    offset.
    """
    (n, channels, height, width), (rows, columns) = x.shape, w.shape[2:]
    out = offset.shape[2:]
    strides, dilations, pads = (
        strides or [1, 1],
        dilations or [1, 1],
        pads or [0, 0, 0, 0],
    )
    moved = offset.reshape(n * offset_group, rows, columns, 2, *out)
    y = (
        _places(rows, out[0], strides[0], dilations[0], pads[0], x.device)[
            :, None, :, None
        ]
        + moved[:, :, :, 0]
    )
    z = (
        _places(columns, out[1], strides[1], dilations[1], pads[1], x.device)[
            None, :, None, :
        ]
        + moved[:, :, :, 1]
    )
    source = x.reshape(n * offset_group, channels // offset_group, height, width)
    taken = _bilinear(source, y.flatten(1), z.flatten(1))
    taken = taken.reshape(
        n, offset_group, channels // offset_group, rows * columns, *out
    )
    if mask is not None:
        taken = taken * mask.reshape(n, offset_group, 1, rows * columns, *out)
    patches = taken.reshape(n, group, channels // group * rows * columns, -1)
    result = torch.einsum(
        "gok,ngkp->ngop", w.reshape(group, w.shape[0] // group, -1), patches
    ).reshape(n, -1, *out)
    return result if b is None else result + b.reshape(-1, 1, 1)


def _bilinear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(B, C, H, W) at (B, P) places -> (B, C, P); zero outside."""
    height, width = images.shape[2:]
    flat = images.flatten(2)
    total = 0
    for row, column in itertools.product((0, 1), (0, 1)):
        r, c = y.floor() + row, x.floor() + column
        inside = (r >= 0) & (r < height) & (c >= 0) & (c < width)
        weight = (1 - (y - r).abs()) * (1 - (x - c).abs()) * inside
        at = (r.clamp(0, height - 1) * width + c.clamp(0, width - 1)).long()
        total = (
            total
            + flat.gather(2, at[:, None].expand(-1, flat.shape[1], -1))
            * weight[:, None]
        )
    return total


def _places(
    k: int, out: int, stride: int, dilation: int, pad: int, device: torch.device
) -> Tensor:
    """(k, out): where each kernel element lies at each output position, without offset."""
    inside = torch.arange(k, device=device)[:, None] * dilation
    return inside + torch.arange(out, device=device)[None, :] * stride - pad
