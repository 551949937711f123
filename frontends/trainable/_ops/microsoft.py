"""Ops of ONNX Runtime's own domain that exporters and optimizers write."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op
from .quant import dequantize, quantize

Tensor = Any
MICROSOFT = "com.microsoft"

op("QuantizeLinear", domain=MICROSOFT)(quantize)
op("DequantizeLinear", domain=MICROSOFT)(dequantize)


@op("Gelu", domain=MICROSOFT)
def gelu(x: Tensor) -> Tensor:
    return F.gelu(x)


@op("QuickGelu", domain=MICROSOFT)
def quick_gelu(x: Tensor, *, alpha: float = 1.702) -> Tensor:
    gate = torch.sigmoid(alpha * x)
    return x * gate


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    if bias is not None:
        x = x + bias
    return F.gelu(x, approximate="tanh")


@op("BiasGelu", domain=MICROSOFT)
def bias_gelu(x: Tensor, bias: Tensor) -> Tensor:
    return F.gelu(x + bias)


@op("SkipLayerNormalization", domain=MICROSOFT, many=True)
def skip_layer_norm(
    x: Tensor,
    skip: Tensor,
    gamma: Tensor,
    beta: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    epsilon: float = 1e-12,
) -> tuple[Tensor | None, ...]:
    """(normalized, mean, inverse deviation, sum); nothing but training reads the two between."""
    total = x + skip
    if bias is not None:
        total = total + bias
    y = F.layer_norm(
        total,
        list(gamma.shape),
        gamma,
        beta,
        epsilon,
    )
    return y, None, None, total


@op("FusedMatMul", domain=MICROSOFT)
def fused_matmul(
    a: Tensor,
    b: Tensor,
    *,
    alpha: float = 1.0,
    transA: int = 0,  # noqa: N803 - ONNX's names
    transB: int = 0,  # noqa: N803 - ONNX's names
    transBatchA: int = 0,  # noqa: N803 - ONNX's names
    transBatchB: int = 0,  # noqa: N803 - ONNX's names
) -> Tensor:
    left = _turned(a, transBatchA, transA)
    right = _turned(b, transBatchB, transB)
    return torch.matmul(left, right) * alpha


def _turned(x: Tensor, batch: int, matrix: int) -> Tensor:
    """Put a leading dim of rows behind the batch dims, then transpose, as far as is asked."""
    if batch:
        x = x.movedim(0, -2)
    if matrix:
        return x.mT
    return x
