"""Layout in memory: kernels of two-dimensional convolutions have their channels last.

Convolutions give what they compute in the layout of their kernels, and most operators keep it, so
that maps have it throughout. Torch's own convolutions, poolings and normalizations are faster so.
"""

from __future__ import annotations

import onnx_ir as ir
import torch

from ...passes._core.ops import COPIES, is_standard

CONVOLUTIONS = frozenset({"Conv", "ConvTranspose"})
"""Operators whose input 1 is a kernel."""

ELEMENTWISE = COPIES | {"Cast", "DequantizeLinear", "QuantizeLinear", "Mul"}
"""Operators that a kernel may go through on its way, and that keep its layout."""

MAP_RANK = 4
"""Rank of a kernel (M, C, kH, kW) and of maps (N, C, H, W): torch knows the layout by it."""


def laid_out(tensor: torch.Tensor, value: ir.Value) -> torch.Tensor:
    """Return the tensor of a constant, its channels last in memory if it is a kernel."""
    if tensor.ndim != MAP_RANK or not _is_kernel(value):
        return tensor
    # a copy: with one channel `contiguous` sees both layouts, and leaves the other one's strides
    return tensor.clone(memory_format=torch.channels_last)


def _is_kernel(value: ir.Value) -> bool:
    """Return whether some convolution multiplies by a value."""
    waiting = [value]
    seen = {value}
    while waiting:
        for node, index in waiting.pop().uses():
            if not is_standard(node):
                continue
            if node.op_type in CONVOLUTIONS and index == 1:
                return True
            if node.op_type in ELEMENTWISE:
                new = [out for out in node.outputs if out not in seen]
                waiting.extend(new)
                seen.update(new)
    return False
