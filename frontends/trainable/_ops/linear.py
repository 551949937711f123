"""Matrix products, determinants and sums of products."""

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
    if transA:
        a = a.T
    plain = alpha == 1.0 and beta == 1.0 and a.is_floating_point()
    if plain and (c is None or c.ndim == 1):
        # one kernel for product and sum
        weight = b if transB else b.T
        return F.linear(a, weight, c)
    if transB:
        b = b.T
    y = torch.matmul(a, b)
    # floats would make floats of integer matrices
    if alpha != 1.0:
        scaled = y * alpha
        y = scaled.to(y.dtype)
    if c is None:
        return y
    if beta != 1.0:
        scaled = c * beta
        c = scaled.to(y.dtype)
    return y + c


@op("Einsum")
def einsum(*xs: Tensor, equation: str) -> Tensor:
    # letters mean the same in either case, as long as there is one case
    if equation.isupper():
        equation = equation.lower()
    return torch.einsum(equation, *xs)


@op("Det")
def det(x: Tensor) -> Tensor:
    return torch.linalg.det(x)
