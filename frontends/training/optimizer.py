"""Learning rates that fit every tensor, the schedule over a run, and penalties on weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch

from ..trainable import TrainableModule
from .recipe import Recipe

Tensor = Any
LEAST_SIZE = 0.01
"""Root mean square that a tensor counts as having at least: biases that start at zero must move."""
SCALE_RATE = 0.1
"""Rate of a quantization scale against that of weights: all of a tensor hang on one."""


def parameter_groups(
    module: TrainableModule, recipe: Recipe, extra: Iterable[Tensor] = ()
) -> list[dict[str, Any]]:
    """One group a tensor. AdamW: a step moves each by about `rate` times its own root mean square
    (zeros that are held do not count), in the units that it has: latents thus in units of their
    grid. SGD: `rate` times the gradient, for latents as if they were the floats that they stand
    for. `extra`: tensors beside the graph's.
    """
    groups = []
    for group in module.parameter_groups(1.0):
        parameter, per_float = group["params"][0], group["lr"]
        origin = module.origins[group["name"]]
        rate = recipe.rate * (SCALE_RATE if is_scale(origin.value) else 1.0)
        if recipe.optimizer == "sgd":
            rate *= per_float**2
        else:
            rate *= _size(
                parameter, LEAST_SIZE * per_float if origin.latent else LEAST_SIZE
            )
        decay = recipe.l2 if parameter.ndim > 1 else 0.0
        groups.append(
            {"params": [parameter], "lr": rate, "full": rate, "weight_decay": decay}
        )
    rest = list(extra)
    if rest:
        groups.append(
            {
                "params": rest,
                "lr": recipe.rate * 0.1,
                "full": recipe.rate * 0.1,
                "weight_decay": 0.0,
            }
        )
    return groups


def make_optimizer(groups: list[dict[str, Any]], recipe: Recipe) -> Any:
    """AdamW, or SGD with Nesterov's momentum."""
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=recipe.rate, momentum=0.9, nesterov=True)
    return torch.optim.AdamW(groups, lr=recipe.rate, betas=(0.9, 0.99))


def set_rate(optimizer: Any, progress: float, warmup: float) -> None:
    """Rates at a point of the run, 0 to 1: up in a line over `warmup`, then down along half a
    cosine.
    """
    if progress < warmup:
        factor = max(progress / warmup, 0.01)
    else:
        factor = 0.5 * (
            1 + math.cos(math.pi * min((progress - warmup) / (1 - warmup), 1.0))
        )
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * factor


def penalty(module: TrainableModule, recipe: Recipe) -> Tensor:
    """L1, and group lasso over the slices along axis 0 (output channels of a Conv), of weights of
    two axes or more.
    """
    total: Tensor = 0.0
    for parameter in module.parameters():
        if parameter.ndim < 2:
            continue
        if recipe.l1:
            total = total + recipe.l1 * parameter.abs().sum()
        if recipe.group_lasso:
            norms = parameter.flatten(1).square().sum(1).clamp_min(1e-12).sqrt()
            total = (
                total + recipe.group_lasso * norms.sum() * parameter[0].numel() ** 0.5
            )
    return total


def is_scale(value: Any) -> bool:
    """Whether a trained constant is the scale of a quantization."""
    return any(
        n.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1
        for n, index in value.uses()
    )


def _size(parameter: Tensor, least: float) -> float:
    """Root mean square of what is not zero."""
    with torch.no_grad():
        kept = parameter[parameter != 0]
        return max(
            float(kept.double().square().mean().sqrt()) if kept.numel() else 0.0, least
        )
