"""Convolutions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op

Tensor = Any
_CONVOLUTIONS = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}
_TRANSPOSED = {1: F.conv_transpose1d, 2: F.conv_transpose2d, 3: F.conv_transpose3d}


def same_pads(
    sizes: Sequence[int],
    kernel: Sequence[int],
    strides: Sequence[int],
    dilations: Sequence[int],
    upper: bool,
) -> list[int]:
    """ONNX pads (all begins, then all ends) for which the output has ceil(size / stride)
    positions.
    """
    begins, ends = [], []
    for size, k, stride, dilation in zip(
        sizes, kernel, strides, dilations, strict=True
    ):
        total = max(
            (-(-size // stride) - 1) * stride + (k - 1) * dilation + 1 - size, 0
        )
        begins.append(total // 2 if upper else total - total // 2)
        ends.append(total - begins[-1])
    return begins + ends


def torch_pads(pads: Sequence[int]) -> list[int]:
    """ONNX pads as `F.pad` takes them: last dim first, begin and end of each."""
    half = len(pads) // 2
    return [
        pad for dim in reversed(range(half)) for pad in (pads[dim], pads[dim + half])
    ]


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
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    if auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        pads = same_pads(
            x.shape[2:], w.shape[2:], strides, dilations, auto_pad == "SAME_UPPER"
        )
    pads = pads if pads and auto_pad != "VALID" else [0] * (2 * dims)
    padding = pads[:dims]
    if padding != pads[dims:]:
        x, padding = F.pad(x, torch_pads(pads)), [0] * dims
    return _CONVOLUTIONS[dims](x, w, b, strides, padding, dilations, group)


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
    strides, dilations = strides or [1] * dims, dilations or [1] * dims
    extra = output_padding or [0] * dims
    full = [
        (n - 1) * s + (k - 1) * d + 1 + e
        for n, s, k, d, e in zip(
            x.shape[2:], strides, w.shape[2:], dilations, extra, strict=True
        )
    ]
    if output_shape is None and auto_pad in ("SAME_UPPER", "SAME_LOWER"):
        output_shape = [n * s for n, s in zip(x.shape[2:], strides, strict=True)]
    if output_shape is not None:
        totals = [
            size - wanted
            for size, wanted in zip(full, output_shape[-dims:], strict=True)
        ]
        begins = [t - t // 2 if auto_pad != "SAME_UPPER" else t // 2 for t in totals]
        pads = begins + [t - b for t, b in zip(totals, begins, strict=True)]
    pads = pads or [0] * (2 * dims)
    y = _TRANSPOSED[dims](x, w, None, strides, [0] * dims, [0] * dims, group, dilations)
    crop = torch_pads([-p for p in pads])
    grow = torch_pads([0] * dims + extra)
    y = F.pad(y, [c + g for c, g in zip(crop, grow, strict=True)])
    return y if b is None else y + b.reshape(-1, *(1,) * dims)
