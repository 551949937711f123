"""Matrix products and what is made of them."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op

Tensor = Any


op("MatMul")(torch.matmul)


@op("Gemm")
def gemm(
    a: Tensor,
    b: Tensor,
    c: Tensor | None = None,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    broadcast: int = 0,
    transA: int = 0,  # noqa: N803 - ONNX's names
    transB: int = 0,  # noqa: N803 - ONNX's names
) -> Tensor:
    a = a.T if transA else a
    if (
        alpha == 1.0
        and beta == 1.0
        and (c is None or c.ndim == 1)
        and a.is_floating_point()
    ):
        return F.linear(a, b if transB else b.T, c)
    y = torch.matmul(a, b.T if transB else b)
    y = y if alpha == 1.0 else (y * alpha).to(y.dtype)
    if c is None:
        return y
    return y + (c if beta == 1.0 else (c * beta).to(y.dtype))


@op("Einsum")
def einsum(*xs: Tensor, equation: str) -> Tensor:
    return torch.einsum(equation.lower() if equation.isupper() else equation, *xs)


@op("Det")
def det(x: Tensor) -> Tensor:
    return torch.linalg.det(x)
