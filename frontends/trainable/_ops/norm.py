"""Normalizations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op

Tensor = Any


def _fixed_batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Tensor:
    """With the graph's own statistics. Those may be computed (standardized weights), and then take
    gradients.
    """
    if mean.requires_grad or variance.requires_grad:
        shape = (-1, *(1,) * (x.ndim - 2))
        factor = scale * torch.rsqrt(variance + epsilon)
        return (x - mean.reshape(shape)) * factor.reshape(shape) + bias.reshape(shape)
    return F.batch_norm(x, mean, variance, scale, bias, False, 0.0, epsilon)


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[Tensor, ...]:
    """With the batch's statistics; the running ones move towards them.

    They come out of the kernel that normalizes: asked for on their own they take ten times as long
    as it does.
    """
    y, batch_mean, inverse = torch.native_batch_norm(
        x, scale, bias, None, None, True, 0.0, epsilon
    )
    batch_variance = (inverse.square().reciprocal() - epsilon).clamp_min(0)
    moved = [
        running * momentum + now.to(running.dtype) * (1 - momentum)
        for running, now in ((mean, batch_mean), (variance, batch_variance))
    ]
    return y, *moved


@op("BatchNormalization", many=True)
def batch_norm_by_outputs(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    call: Call,
) -> tuple[Tensor, ...]:
    """Before opset 14 a node with five outputs trains."""
    if call.wanted == 1:
        return (_fixed_batch_norm(x, scale, bias, mean, variance, epsilon),)
    y, new_mean, new_variance = _batch_norm(
        x, scale, bias, mean, variance, epsilon, momentum
    )
    return y, new_mean, new_variance, mean, variance


@op("BatchNormalization", 14, many=True)
def batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    *,
    epsilon: float = 1e-5,
    momentum: float = 0.9,
    training_mode: int = 0,
) -> tuple[Tensor, ...]:
    if training_mode:
        return _batch_norm(x, scale, bias, mean, variance, epsilon, momentum)
    return (_fixed_batch_norm(x, scale, bias, mean, variance, epsilon),)


@op("InstanceNormalization")
def instance_norm(
    x: Tensor, scale: Tensor, bias: Tensor, *, epsilon: float = 1e-5
) -> Tensor:
    return F.instance_norm(x, weight=scale, bias=bias, eps=epsilon)


@op("LayerNormalization", many=True)
def layer_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
    call: Call,
) -> tuple[Tensor, ...]:
    axis = axis % x.ndim
    shape = list(x.shape[axis:])
    if call.wanted == 1 and list(scale.shape) == shape:
        return (F.layer_norm(x, shape, scale, bias, epsilon),)
    over = tuple(range(axis, x.ndim))
    variance, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = (x - mean) * inverse * scale
    return (y if bias is None else y + bias), mean, inverse


@op("RMSNormalization")
def rms_norm(
    x: Tensor,
    scale: Tensor,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    over = tuple(range(axis % x.ndim, x.ndim))
    return x * torch.rsqrt(x.square().mean(dim=over, keepdim=True) + epsilon) * scale


@op("GroupNormalization", 18)
def group_norm_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Opset 18: one scale a group."""
    each = x.shape[1] // num_groups
    return F.group_norm(
        x,
        num_groups,
        scale.repeat_interleave(each),
        bias.repeat_interleave(each),
        epsilon,
    )


@op("GroupNormalization", 21)
def group_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    *,
    num_groups: int,
    epsilon: float = 1e-5,
    stash_type: int = 1,
) -> Tensor:
    return F.group_norm(x, num_groups, scale, bias, epsilon)


@op("LRN")
def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    before = (size - 1) // 2
    squares = F.pad(x.square(), [0, 0] * (x.ndim - 2) + [before, size - 1 - before])
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


@op("LpNormalization")
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zero where the norm is."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    return x / norm.masked_fill(norm == 0, math.inf)
