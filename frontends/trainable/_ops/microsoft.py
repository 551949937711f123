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
    return x * torch.sigmoid(alpha * x)


@op("FastGelu", domain=MICROSOFT)
def fast_gelu(x: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.gelu(x if bias is None else x + bias, approximate="tanh")


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
    total = x + skip if bias is None else x + skip + bias
    return (
        F.layer_norm(total, list(gamma.shape), gamma, beta, epsilon),
        None,
        None,
        total,
    )


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
    a, b = (
        x.movedim(0, -2) if batch else x
        for x, batch in ((a, transBatchA), (b, transBatchB))
    )
    a, b = (x.mT if turn else x for x, turn in ((a, transA), (b, transB)))
    return torch.matmul(a, b) * alpha
