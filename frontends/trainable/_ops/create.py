"""Tensors from nothing but shapes and numbers."""

from __future__ import annotations

from typing import Any

import torch

from .._dtypes import carrier
from .._registry import Call, op

Tensor = Any


@op("ConstantOfShape", 9, host=(0,), gradient=False)
def constant_of_shape(
    shape: list[int], *, value: float = 0.0, call: Call, device: torch.device
) -> Tensor:
    assert call.outputs[0] is not None
    return torch.full(shape, value, dtype=carrier(call.outputs[0]), device=device)


@op("Range", 11, host=(0, 1, 2), gradient=False)
def range_(
    start: Any, limit: Any, delta: Any, *, call: Call, device: torch.device
) -> Tensor:
    assert call.outputs[0] is not None
    dtype = carrier(call.outputs[0])
    start, limit, delta = (
        v[0] if isinstance(v, list) else v for v in (start, limit, delta)
    )
    if (limit - start) * delta <= 0:
        return torch.empty(0, dtype=dtype, device=device)
    return torch.arange(start, limit, delta, dtype=dtype, device=device)


@op("EyeLike", gradient=False)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0, call: Call) -> Tensor:
    assert call.outputs[0] is not None
    ones = torch.ones(x.shape, dtype=torch.int8, device=x.device)
    return (torch.triu(ones, k) - torch.triu(ones, k + 1)).to(carrier(call.outputs[0]))


def _generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    """ONNX fixes a stream by its seed but not the stream itself."""
    return None if seed is None else torch.Generator(device).manual_seed(int(seed))


@op("RandomNormal", gradient=False)
def random_normal(
    *,
    shape: list[int],
    dtype: int = 1,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
    device: torch.device,
) -> Tensor:
    return (
        torch.randn(shape, generator=_generator(seed, device), device=device) * scale
        + mean
    )


@op("RandomUniform", gradient=False)
def random_uniform(
    *,
    shape: list[int],
    dtype: int = 1,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
    device: torch.device,
) -> Tensor:
    return (
        torch.rand(shape, generator=_generator(seed, device), device=device)
        * (high - low)
        + low
    )


@op("RandomNormalLike", gradient=False)
def random_normal_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    return (
        torch.randn(x.shape, generator=_generator(seed, x.device), device=x.device)
        * scale
        + mean
    )


@op("RandomUniformLike", gradient=False)
def random_uniform_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    return (
        torch.rand(x.shape, generator=_generator(seed, x.device), device=x.device)
        * (high - low)
        + low
    )


@op("Bernoulli", 15, gradient=False)
def bernoulli(
    x: Tensor, *, dtype: int | None = None, seed: float | None = None, call: Call
) -> Tensor:
    assert call.outputs[0] is not None
    return (
        torch.rand(x.shape, generator=_generator(seed, x.device), device=x.device) < x
    ).to(carrier(call.outputs[0]))
