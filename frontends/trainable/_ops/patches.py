"""Relatives of convolutions that gather or add up patches: DeformConv and Col2Im."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch

from .._registry import op
from .conv import by_channel

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
    strides = strides or [1] * dims
    dilations = dilations or [1] * dims
    pads = pads or [0] * (2 * dims)
    begins = pads[:dims]
    ends = pads[dims:]
    padded = []
    for size, begin, end in zip(image, begins, ends, strict=True):
        whole = begin + size + end
        padded.append(whole)
    at = _patch_indices(
        padded,
        block,
        strides,
        dilations,
        x.device,
    )
    batch = x.shape[0]
    elements = at.numel()
    patches = x.reshape(batch, -1, elements)
    channels = patches.shape[1]
    area = math.prod(padded)
    flat = patches.new_zeros(batch, channels, area)
    index = at.reshape(-1)
    summed = flat.index_add(2, index, patches)
    y = summed.reshape(batch, channels, *padded)
    inside = []
    for begin, size in zip(begins, image, strict=True):
        end = begin + size
        inside.append(slice(begin, end))
    return y[(..., *inside)]


def _patch_indices(
    sizes: list[int],
    block: list[int],
    strides: list[int],
    dilations: list[int],
    device: torch.device,
) -> Tensor:
    """(prod(block), positions) indices into a flat image of `sizes`: what each patch covers."""
    at = torch.zeros(1, 1, dtype=torch.int64, device=device)
    # one dim after another: rows of the index are pairs (block, k), columns (positions, count)
    for size, k, stride, dilation in zip(sizes, block, strides, dilations, strict=True):
        span = dilation * (k - 1) + 1
        count = (size - span) // stride + 1
        elements = torch.arange(k, device=device)
        inside = elements * dilation
        positions = torch.arange(count, device=device)
        starts = positions * stride
        # what the dims before say, as dims (block, k, positions, count)
        outer = at[:, None, :, None]
        grid = outer * size
        grid = grid + inside[None, :, None, None]
        grid = grid + starts[None, None, None, :]
        rows = at.shape[0] * k
        at = grid.reshape(rows, -1)
    return at


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
    """Images only.

    Each kernel element reads the image, bilinearly, at its own place moved by its offset.
    """
    n, channels, height, width = x.shape
    rows, columns = w.shape[2:]
    out = offset.shape[2:]
    strides = strides or [1, 1]
    dilations = dilations or [1, 1]
    pads = pads or [0, 0, 0, 0]
    images = n * offset_group
    # ONNX stores two offsets of each kernel element, down and across
    moved = offset.reshape(images, rows, columns, 2, *out)
    moved_down = moved[:, :, :, 0]
    moved_across = moved[:, :, :, 1]
    down = _places(
        k=rows,
        out=out[0],
        stride=strides[0],
        dilation=dilations[0],
        pad=pads[0],
        device=x.device,
    )
    across = _places(
        k=columns,
        out=out[1],
        stride=strides[1],
        dilation=dilations[1],
        pad=pads[1],
        device=x.device,
    )
    y = down[:, None, :, None] + moved_down
    z = across[None, :, None, :] + moved_across
    depth = channels // offset_group
    elements = rows * columns
    source = x.reshape(images, depth, height, width)
    places_down = y.flatten(1)
    places_across = z.flatten(1)
    taken = _bilinear(source, places_down, places_across)
    taken = taken.reshape(n, offset_group, depth, elements, *out)
    if mask is not None:
        weights = mask.reshape(n, offset_group, 1, elements, *out)
        taken = taken * weights
    group_channels = channels // group
    group_inputs = group_channels * elements
    group_outputs = w.shape[0] // group
    patches = taken.reshape(n, group, group_inputs, -1)
    kernels = w.reshape(group, group_outputs, -1)
    products = torch.einsum("gok,ngkp->ngop", kernels, patches)
    result = products.reshape(n, -1, *out)
    if b is None:
        return result
    bias = by_channel(b, 2)
    return result + bias


def _bilinear(images: Tensor, y: Tensor, x: Tensor) -> Tensor:
    """(B, C, H, W) at (B, P) places -> (B, C, P); zero outside."""
    height, width = images.shape[2:]
    flat = images.flatten(2)
    channels = flat.shape[1]
    first_row = y.floor()
    first_column = x.floor()
    last_row = height - 1
    last_column = width - 1
    total = 0
    for down, across in itertools.product((0, 1), (0, 1)):
        row = first_row + down
        column = first_column + across
        inside_rows = (row >= 0) & (row < height)
        inside_columns = (column >= 0) & (column < width)
        inside = inside_rows & inside_columns
        row_distance = (y - row).abs()
        column_distance = (x - column).abs()
        row_weight = 1 - row_distance
        column_weight = 1 - column_distance
        weight = row_weight * column_weight * inside
        # places outside are read at the border; their weight is zero
        nearest_row = row.clamp(0, last_row)
        nearest_column = column.clamp(0, last_column)
        place = nearest_row * width + nearest_column
        at = place.long()
        index = at[:, None].expand(-1, channels, -1)
        picked = flat.gather(2, index)
        total = total + picked * weight[:, None]
    return total


def _places(
    k: int, out: int, stride: int, dilation: int, pad: int, device: torch.device
) -> Tensor:
    """(k, out): place of each kernel element at each output position, without offset."""
    elements = torch.arange(k, device=device)
    inside = elements * dilation
    positions = torch.arange(out, device=device)
    starts = positions * stride
    padded_places = inside[:, None] + starts[None, :]
    return padded_places - pad
