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

EXACT_CODES = 2**16
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
    if high >= EXACT_CODES:
        return None
    own = _parameters(node, number)
    if own is None or not _is_only_read_back(node):
        return None
    for reader, _ in node.outputs[0].uses():
        if _parameters(reader, number) != own:
            return None
    scale, zero = own
    return CodeRange(scale, low - zero, high - zero)


def _is_only_read_back(node: ir.Node) -> bool:
    """Return whether nothing but DequantizeLinear reads what a node gives."""
    codes = node.outputs[0]
    if codes.is_graph_output():
        return False
    readers = list(codes.uses())
    for reader, index in readers:
        if index != 0 or not is_standard(reader, "DequantizeLinear"):
            return False
        # values of other graphs are not known here
        if reader.graph is not node.graph:
            return False
    return bool(readers)


def _parameters(
    node: ir.Node, number: Callable[[ir.Value], float | None]
) -> tuple[float, float] | None:
    """Return scale and zero point of a node that has one of each; None where they may vary."""
    scale_value = node.inputs[1]
    if scale_value is None:
        return None
    scale = number(scale_value)
    if scale is None or not 0 < scale < math.inf:
        return None
    zero_value = node.inputs[2] if len(node.inputs) > 2 else None
    if zero_value is None:
        return scale, 0.0
    zero = number(zero_value)
    if zero is None:
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
        # what is rounded to the ends is inside
        lowest = scale * (low - 0.5)
        highest = scale * (high + 0.5)
        context.range = (lowest, highest)
        steps = x / scale
        # in place from here on
        codes = steps.round_().clamp_(low, high)
        return codes.mul_(scale)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None, None, None]:
        (x,) = context.saved_tensors
        lowest, highest = context.range
        # of what torch has, the one that cuts a gradient by a range in a single step
        inside = torch.ops.aten.hardtanh_backward(gradient, x, lowest, highest)
        return inside, None, None, None
