"""Normalizations."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn import functional as F  # noqa: N812 - torch's own convention

from .._registry import Call, op
from .conv import by_channel

Tensor = Any


def _fixed_batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Tensor:
    """Normalize with the graph's own statistics."""
    if mean.requires_grad or variance.requires_grad:
        # Statistics that the graph computes, as of standardized weights, take gradients;
        # torch's kernel gives them none.
        dims = x.ndim - 2
        factor = scale * torch.rsqrt(variance + epsilon)
        centered = x - by_channel(mean, dims)
        return centered * by_channel(factor, dims) + by_channel(bias, dims)
    return F.batch_norm(
        x,
        mean,
        variance,
        weight=scale,
        bias=bias,
        training=False,
        eps=epsilon,
    )


def _batch_norm(
    x: Tensor,
    scale: Tensor,
    bias: Tensor,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
    momentum: float,
) -> tuple[Tensor, ...]:
    """Normalize with the batch's statistics; the running ones move towards them."""
    # The kernel that normalizes gives its statistics too: asked for on their own they
    # take ten times as long as it does.
    y, batch_mean, inverse = torch.native_batch_norm(
        x,
        weight=scale,
        bias=bias,
        running_mean=None,
        running_var=None,
        training=True,
        momentum=0.0,
        eps=epsilon,
    )
    batch_variance = (inverse.square().reciprocal() - epsilon).clamp_min(0)
    new_mean = _moved(mean, batch_mean, momentum)
    new_variance = _moved(variance, batch_variance, momentum)
    return y, new_mean, new_variance


def _moved(running: Tensor, now: Tensor, momentum: float) -> Tensor:
    """Return a running statistic after a batch; `momentum` is the share that stays."""
    return running * momentum + now.to(running.dtype) * (1 - momentum)


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
        y = _fixed_batch_norm(
            x,
            scale,
            bias,
            mean,
            variance,
            epsilon,
        )
        return (y,)
    y, new_mean, new_variance = _batch_norm(
        x,
        scale,
        bias,
        mean,
        variance,
        epsilon,
        momentum,
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
        return _batch_norm(
            x,
            scale,
            bias,
            mean,
            variance,
            epsilon,
            momentum,
        )
    y = _fixed_batch_norm(
        x,
        scale,
        bias,
        mean,
        variance,
        epsilon,
    )
    return (y,)


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
        y = F.layer_norm(x, shape, scale, bias, epsilon)
        return (y,)
    # torch's kernel gives no statistics, and takes no scale that broadcasts
    over = tuple(range(axis, x.ndim))
    variance, mean = torch.var_mean(x, dim=over, correction=0, keepdim=True)
    inverse = torch.rsqrt(variance + epsilon)
    y = (x - mean) * inverse * scale
    if bias is not None:
        y = y + bias
    return y, mean, inverse


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
    mean_square = x.square().mean(dim=over, keepdim=True)
    return x * torch.rsqrt(mean_square + epsilon) * scale


@op("GroupNormalization", 18)
def group_norm_by_group(
    x: Tensor, scale: Tensor, bias: Tensor, *, num_groups: int, epsilon: float = 1e-5
) -> Tensor:
    """Opset 18: one scale a group."""
    channels_each = x.shape[1] // num_groups
    scales = scale.repeat_interleave(channels_each)
    biases = bias.repeat_interleave(channels_each)
    return F.group_norm(
        x,
        num_groups,
        scales,
        biases,
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
    return F.group_norm(
        x,
        num_groups,
        scale,
        bias,
        epsilon,
    )


@op("LRN")
def local_response_norm(
    x: Tensor, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> Tensor:
    # torch's own puts the odd neighbour of an even size on the other side
    before = (size - 1) // 2
    after = size - 1 - before
    pads = [0, 0] * (x.ndim - 2) + [before, after]
    squares = F.pad(x.square(), pads)
    total = squares.unfold(1, size, 1).sum(-1)
    return x / (bias + alpha / size * total) ** beta


@op("LpNormalization")
def lp_norm(x: Tensor, *, axis: int = -1, p: int = 2) -> Tensor:
    """Zero where the norm is."""
    norm = torch.linalg.vector_norm(x, p, axis, keepdim=True)
    divisor = norm.masked_fill(norm == 0, math.inf)
    return x / divisor
