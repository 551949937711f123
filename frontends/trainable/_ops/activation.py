"""Activations, softmaxes and dropout."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import op
from .conv import by_channel

Tensor = Any


@op("Identity")
def identity(x: Any) -> Any:
    return x


for _name, _function in {
    "Relu": torch.relu,
    "Sigmoid": torch.sigmoid,
    "Tanh": torch.tanh,
    "Softplus": F.softplus,
    "Softsign": F.softsign,
    "Mish": F.mish,
}.items():
    op(_name)(_function)


@op("LeakyRelu")
def leaky_relu(x: Tensor, *, alpha: float = 0.01) -> Tensor:
    return F.leaky_relu(x, alpha)


@op("Elu")
def elu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.elu(x, alpha)


@op("Celu")
def celu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.celu(x, alpha)


@op("Selu")
def selu(
    x: Tensor,
    *,
    alpha: float = 1.67326319217681884765625,
    gamma: float = 1.05070102214813232421875,
) -> Tensor:
    # torch's own has fixed parameters
    return gamma * F.elu(x, alpha)


@op("ThresholdedRelu")
def thresholded_relu(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    return F.threshold(x, alpha, 0.0)


@op("PRelu")
def prelu_by_channel(x: Tensor, slope: Tensor) -> Tensor:
    """Before opset 7 one slope for all or one a channel."""
    if slope.numel() != 1:
        slope = by_channel(slope, x.ndim - 2)
    return prelu(x, slope)


@op("PRelu", 7)
def prelu(x: Tensor, slope: Tensor) -> Tensor:
    if x.ndim > 1 and _goes_by_channel(slope, x):
        return F.prelu(x, slope.flatten())
    return torch.where(x < 0, x * slope, x)


def _goes_by_channel(slope: Tensor, x: Tensor) -> bool:
    """True for one slope, or one a channel of (N, C, *K): what torch's kernel takes."""
    if slope.numel() == 1:
        return bool(slope.ndim <= x.ndim)
    channels = x.shape[1]
    sizes = (channels, *(1,) * (x.ndim - 2))
    return tuple(slope.shape) in (sizes, (1, *sizes))


@op("HardSigmoid")
def hard_sigmoid(x: Tensor, *, alpha: float = 0.2, beta: float = 0.5) -> Tensor:
    # the usual slope, as exporters round it to float32
    if math.isclose(alpha, 1 / 6, rel_tol=1e-6) and beta == 0.5:
        return F.hardsigmoid(x)
    line = x * alpha + beta
    return F.hardtanh(line, 0.0, 1.0)


@op("HardSwish")
def hard_swish(x: Tensor) -> Tensor:
    return F.hardswish(x)


@op("Swish")
def swish(x: Tensor, *, alpha: float = 1.0) -> Tensor:
    if alpha == 1.0:
        return F.silu(x)
    gate = torch.sigmoid(x * alpha)
    return x * gate


@op("Gelu")
def gelu(x: Tensor, *, approximate: str = "none") -> Tensor:
    return F.gelu(x, approximate=approximate)


@op("Shrink")
def shrink(x: Tensor, *, bias: float = 0.0, lambd: float = 0.5) -> Tensor:
    # no element is in both
    is_low = x < -lambd
    is_high = x > lambd
    low = torch.where(is_low, x + bias, 0)
    high = torch.where(is_high, x - bias, 0)
    y = low + high
    return y.to(x.dtype)


def _flat(x: Tensor, axis: int) -> Tensor:
    """Make one dim of all from `axis` on, as ops before opset 13 see them."""
    axis = axis % x.ndim
    kept = x.shape[:axis]
    return x.reshape(*kept, -1)


@op("Softmax")
def softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = _flat(x, axis)
    y = torch.softmax(rows, -1)
    return y.reshape(x.shape)


@op("Softmax", 13)
def softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.softmax(x, axis)


@op("LogSoftmax")
def log_softmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = _flat(x, axis)
    y = torch.log_softmax(rows, -1)
    return y.reshape(x.shape)


@op("LogSoftmax", 13)
def log_softmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return torch.log_softmax(x, axis)


def _one_at_largest(x: Tensor, axis: int) -> Tensor:
    largest = x.argmax(axis, keepdim=True)
    zeros = torch.zeros_like(x)
    return zeros.scatter(axis, largest, 1.0)


@op("Hardmax", gradient=False)
def hardmax_flat(x: Tensor, *, axis: int = 1) -> Tensor:
    rows = _flat(x, axis)
    y = _one_at_largest(rows, -1)
    return y.reshape(x.shape)


@op("Hardmax", 13, gradient=False)
def hardmax(x: Tensor, *, axis: int = -1) -> Tensor:
    return _one_at_largest(x, axis)


@op("Dropout", many=True)
def dropout_never(x: Tensor, *, ratio: float = 0.5) -> tuple[Tensor, ...]:
    """Before opset 12 nothing in the graph says that it trains."""
    mask = torch.ones_like(x, dtype=torch.bool)
    return x, mask


@op("Dropout", 12, many=True, host=(1, 2))
def dropout(
    x: Tensor,
    ratio: float | None = None,
    training: bool | None = None,
    *,
    seed: int | None = None,
) -> tuple[Tensor, ...]:
    """Drops where the graph's own training input says so, with torch's generator."""
    rate = 0.5 if ratio is None else ratio
    if not training or rate == 0.0:
        everything = torch.ones_like(x, dtype=torch.bool)
        return x, everything
    drawn = torch.rand_like(x)
    kept = drawn >= rate
    # what is kept grows, so that the mean stays
    share_kept = 1.0 - rate
    y = x * kept / share_kept
    return y, kept
