"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op

Tensor = Any
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}
SAME = ("SAME_UPPER", "SAME_LOWER")
"""Values of `auto_pad` that leave ceil(size / stride) positions."""


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> list[int]:
    """Return ONNX pads for which the output has ceil(size / stride) positions.

    All begins, then all ends. `upper`: of an odd pad the larger half goes to the end.
    """
    begins = []
    ends = []
    for size, k, stride, dilation in zip(
        sizes,
        kernel,
        strides,
        dilations,
        strict=True,
    ):
        positions = ceil_divided(size, stride)
        span = (k - 1) * dilation + 1
        covered = (positions - 1) * stride + span
        total = max(covered - size, 0)
        smaller = total // 2
        larger = total - smaller
        begins.append(smaller if upper else larger)
        ends.append(larger if upper else smaller)
    return begins + ends


def ceil_divided(a: int, b: int) -> int:
    """Return a / b rounded up, in integers."""
    return -(-a // b)


def torch_pads(pads: Sequence[int]) -> list[int]:
    """Return ONNX pads as `F.pad` takes them: last dim first, begin and end of each."""
    half = len(pads) // 2
    found: list[int] = []
    for dim in reversed(range(half)):
        found += [pads[dim], pads[dim + half]]
    return found


def by_channel(parameter: Tensor, dims: int) -> Tensor:
    """Reshape (C) so that it broadcasts over (N, C, *dims)."""
    return parameter.reshape(-1, *(1,) * dims)


@op("Conv")
def conv(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    dims = x.ndim - 2
    strides = strides or [1] * dims
    dilations = dilations or [1] * dims
    if auto_pad in SAME:
        upper = auto_pad == "SAME_UPPER"
        pads = same_pads(
            sizes=x.shape[2:],
            kernel=w.shape[2:],
            strides=strides,
            dilations=dilations,
            upper=upper,
        )
    if not pads or auto_pad == "VALID":
        pads = [0] * (2 * dims)
    padding = pads[:dims]
    if padding != pads[dims:]:
        # torch pads both ends alike
        x = F.pad(x, torch_pads(pads))
        padding = [0] * dims
    convolution = _CONVOLUTIONS[dims]
    return convolution(
        x,
        w,
        b,
        stride=strides,
        padding=padding,
        dilation=dilations,
        groups=group,
    )


@op("ConvTranspose")
def conv_transpose(
    x: Tensor,
    w: Tensor,
    b: Tensor | None = None,
    *,
    auto_pad: str = "NOTSET",
    dilations: list[int] | None = None,
    group: int = 1,
    kernel_shape: list[int] | None = None,
    output_padding: list[int] | None = None,
    output_shape: list[int] | None = None,
    pads: list[int] | None = None,
    strides: list[int] | None = None,
) -> Tensor:
    """Computed without padding, then cropped (or padded) to what `pads` or `output_shape` leave."""
    dims = x.ndim - 2
    strides = strides or [1] * dims
    dilations = dilations or [1] * dims
    extra = output_padding or [0] * dims
    if output_shape is None and auto_pad in SAME:
        sizes = zip(x.shape[2:], strides, strict=True)
        output_shape = [size * stride for size, stride in sizes]
    if output_shape is not None:
        full = _transposed_sizes(
            x,
            w,
            strides,
            dilations,
            extra,
        )
        pads = _cropping_pads(full, output_shape[-dims:], auto_pad == "SAME_UPPER")
    pads = pads or [0] * (2 * dims)
    transposed = _TRANSPOSED[dims]
    y = transposed(
        x,
        w,
        stride=strides,
        dilation=dilations,
        groups=group,
    )
    # torch's own padding is the same at both ends, and never negative
    crop = torch_pads([-pad for pad in pads])
    grow = torch_pads([0] * dims + extra)
    change = [cut + grown for cut, grown in zip(crop, grow, strict=True)]
    y = F.pad(y, change)
    if b is None:
        return y
    return y + by_channel(b, dims)


def _transposed_sizes(
    x: Tensor, w: Tensor, strides: list[int], dilations: list[int], extra: list[int]
) -> list[int]:
    """Return the spatial sizes that a ConvTranspose without pads gives, `extra` at the ends."""
    full = []
    for size, stride, k, dilation, more in zip(
        x.shape[2:],
        strides,
        w.shape[2:],
        dilations,
        extra,
        strict=True,
    ):
        span = (k - 1) * dilation + 1
        full.append((size - 1) * stride + span + more)
    return full


def _cropping_pads(full: list[int], wanted: list[int], upper: bool) -> list[int]:
    """Return the pads that crop sizes `full` to `wanted`.

    `upper`: of an odd crop the larger half goes to the end. Only SAME_UPPER asks for that; an
    `output_shape` alone crops like SAME_LOWER.
    """
    begins = []
    ends = []
    for size, target in zip(full, wanted, strict=True):
        total = size - target
        smaller = total // 2
        larger = total - smaller
        begins.append(smaller if upper else larger)
        ends.append(larger if upper else smaller)
    return begins + ends
