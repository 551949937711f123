"""Activations that are quantized and read back at once: one step over memory instead of two.

QuantizeLinear -> DequantizeLinear with the same constant scale and zero point is what PyTorch calls
fake quantization. As two kernels it took a fifth of a training step of ResNet-20 in 8 bits.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import onnx_ir as ir
import torch

from ...passes._core.ops import is_standard
from ._dtypes import RANGES

Tensor = Any

LARGEST_CODE = 2**16
"""Codes up to here, and their differences, are exact in float32."""


@dataclass(frozen=True)
class CodeRange:
    """Values that are rounded to: `scale` times the integers from `low` to `high`."""

    scale: float
    low: float
    high: float


def code_range(
    node: ir.Node, codes: ir.DataType | None, number: Callable[[ir.Value], float | None]
) -> CodeRange | None:
    """Return the range of a QuantizeLinear whose codes are only read back; None for other nodes.

    `codes`: the type of its codes. `number`: what a value is, where it is a constant of one
    element.
    """
    if not is_standard(node, "QuantizeLinear") or codes not in RANGES:
        return None
    low, high = RANGES[codes]
    if high >= LARGEST_CODE:
        return None
    own = _parameters(node, number)
    given = node.outputs[0]
    if own is None or given.is_graph_output() or not given.uses():
        return None
    for reader, index in given.uses():
        is_read_back = is_standard(reader, "DequantizeLinear") and index == 0
        # values of other graphs are not known here
        if not is_read_back or reader.graph is not node.graph:
            return None
        if _parameters(reader, number) != own:
            return None
    scale, zero = own
    return CodeRange(scale, low - zero, high - zero)


def _parameters(
    node: ir.Node, number: Callable[[ir.Value], float | None]
) -> tuple[float, float] | None:
    """Return scale and zero point of a node that has one of each; None where they may vary."""
    _, scale_value, zero_value = [*node.inputs, None][:3]
    scale = None if scale_value is None else number(scale_value)
    zero = 0.0 if zero_value is None else number(zero_value)
    if scale is None or zero is None or not 0 < scale < math.inf:
        return None
    return scale, zero


def fake_quantize(x: Tensor, scale: float, low: float, high: float) -> Tensor:
    """Round to the nearest of scale * low ... scale * high, halves to even.

    The gradient passes inside the range and is zero outside of it.
    """
    result: Tensor = _FakeQuantize.apply(x.to(torch.float32), scale, low, high)
    return result


class _FakeQuantize(torch.autograd.Function):  # type: ignore[misc]  # torch has no types here
    """Rounds, and keeps what it was given: that tells which gradients pass."""

    @staticmethod
    def forward(
        context: Any, x: Tensor, scale: float, low: float, high: float
    ) -> Tensor:
        context.save_for_backward(x)
        context.range = (scale * (low - 0.5), scale * (high + 0.5))
        # in place from the first result on
        return (x / scale).round_().clamp_(low, high).mul_(scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = context.saved_tensors
        low, high = context.range
        # of what torch has, the one that cuts a gradient by a range in a single step
        inside = torch.ops.aten.hardtanh_backward(gradient, x, low, high)
        return inside, None, None, None
