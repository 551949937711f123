"""Ops that create tensors: ConstantOfShape, Range, EyeLike, random numbers."""

from __future__ import annotations

from typing import Any

import torch

from .._dtypes import carrier
from .._registry import Call, op

Tensor = Any


def _dtype(call: Call) -> torch.dtype:
    """Return the dtype of the first output."""
    dtype = call.outputs[0]
    assert dtype is not None
    return carrier(dtype)


@op("ConstantOfShape", 9, host=(0,), gradient=False)
def constant_of_shape(
    shape: list[int], *, value: float = 0.0, call: Call, device: torch.device
) -> Tensor:
    return torch.full(
        shape,
        value,
        dtype=_dtype(call),
        device=device,
    )


@op("Range", 11, host=(0, 1, 2), gradient=False)
def range_(
    start: Any, limit: Any, delta: Any, *, call: Call, device: torch.device
) -> Tensor:
    first = _number(start)
    end = _number(limit)
    step = _number(delta)
    # torch refuses ranges that run the wrong way
    if (end - first) * step <= 0:
        return torch.empty(0, dtype=_dtype(call), device=device)
    return torch.arange(
        first,
        end,
        step,
        dtype=_dtype(call),
        device=device,
    )


def _number(value: Any) -> Any:
    """Some exporters write a list of one where ONNX asks for a number."""
    if isinstance(value, list):
        return value[0]
    return value


@op("EyeLike", gradient=False)
def eye_like(x: Tensor, *, dtype: int | None = None, k: int = 0, call: Call) -> Tensor:
    # one diagonal is what two triangles differ by
    ones = torch.ones(x.shape, dtype=torch.int8, device=x.device)
    upper = torch.triu(ones, k)
    above = torch.triu(ones, k + 1)
    return (upper - above).to(_dtype(call))


# --- random numbers: ONNX fixes a stream by its seed, but not which stream it is ----


def _generator(seed: float | None, device: torch.device) -> torch.Generator | None:
    """Return torch's generator for a seed; None for the one that all share."""
    if seed is None:
        return None
    return torch.Generator(device).manual_seed(int(seed))


def _normal(shape: Any, seed: float | None, device: torch.device) -> Tensor:
    return torch.randn(shape, generator=_generator(seed, device), device=device)


def _uniform(shape: Any, seed: float | None, device: torch.device) -> Tensor:
    return torch.rand(shape, generator=_generator(seed, device), device=device)


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
    drawn = _normal(shape, seed, device)
    return drawn * scale + mean


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
    drawn = _uniform(shape, seed, device)
    return drawn * (high - low) + low


@op("RandomNormalLike", gradient=False)
def random_normal_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    mean: float = 0.0,
    scale: float = 1.0,
    seed: float | None = None,
) -> Tensor:
    drawn = _normal(x.shape, seed, x.device)
    return drawn * scale + mean


@op("RandomUniformLike", gradient=False)
def random_uniform_like(
    x: Tensor,
    *,
    dtype: int | None = None,
    high: float = 1.0,
    low: float = 0.0,
    seed: float | None = None,
) -> Tensor:
    drawn = _uniform(x.shape, seed, x.device)
    return drawn * (high - low) + low


@op("Bernoulli", 15, gradient=False)
def bernoulli(
    x: Tensor, *, dtype: int | None = None, seed: float | None = None, call: Call
) -> Tensor:
    drawn = _uniform(x.shape, seed, x.device) < x
    return drawn.to(_dtype(call))
