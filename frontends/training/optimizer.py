"""Optimizers: learning rates that fit every tensor, their schedule, and penalties on weights."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import onnx_ir as ir
import torch

from ...passes._core.training_recipe import TrainingRecipe
from ..trainable import Origin, TrainableModule

Tensor = Any

LEAST_SIZE = 0.01
"""Root mean square that a tensor counts as having at least: biases that start at zero must move.

Chosen by hand; not measured.
"""

OTHER_UNIT = 1000.0
"""Largest element of a vector over a usual one from which its elements are of different units, as
the means and deviations are that a regression ends with: no step fits all, and they do not train.
Chosen by hand; not measured.
"""

SCALE_RATE = 0.1
"""Rate of a quantization scale against that of weights: all codes of a tensor depend on one.

Chosen by hand; not measured.
"""

EXTRA_RATE = 0.1
"""Rate of tensors beside the graph's, against that of weights; chosen by hand, not measured."""

ADAM_BETAS = (0.9, 0.99)
"""Decay of AdamW's means. The second forgets faster than the usual 0.999: runs are short.

Chosen by hand; not measured.
"""

SGD_MOMENTUM = 0.9
"""Momentum of SGD, the usual one."""

LEAST_WARMUP_FACTOR = 0.01
"""Factor of the rate at the first step, which would be 0 otherwise and move nothing."""

SMALLEST_NORM_SQUARED = 1e-12
"""Floor under the root of a norm: at 0 its gradient is not finite."""


def parameter_groups(
    module: TrainableModule, recipe: TrainingRecipe, extra: Iterable[Tensor] = ()
) -> list[dict[str, Any]]:
    """Return one group a tensor, with its full rate under `full`.

    AdamW: a step moves each by about `rate` times its own root mean square (zeros that are held do
    not count), in the units that it has: latents thus in units of their grid. SGD: `rate` times the
    gradient, for latents as if they were the floats that they stand for. `extra`: tensors beside
    the graph's.
    """
    groups = []
    for group in module.parameter_groups(1.0):
        (parameter,) = group["params"]
        origin = module.origins[group["name"]]
        # 1 / step of the grid for latents, 1 / largest code for scales, 1 for all others
        units_per_float = group["lr"]
        rate = recipe.rate
        if is_scale(origin.value) or origin.is_palette:
            rate *= SCALE_RATE
        if recipe.optimizer == "sgd":
            # once for the gradient's units, once for the step's
            rate *= units_per_float**2
        else:
            rate *= _size(parameter, origin, units_per_float)
        if origin.latent is None and _differ_in_unit(parameter):
            rate = 0.0
        decay = recipe.l2 if parameter.ndim > 1 else 0.0
        groups.append(_group([parameter], rate, decay))
    rest = list(extra)
    if rest:
        rate = recipe.rate * EXTRA_RATE
        groups.append(_group(rest, rate, decay=0.0))
    return groups


def _group(parameters: list[Tensor], rate: float, decay: float) -> dict[str, Any]:
    return {
        "params": parameters,
        "lr": rate,
        "full": rate,
        "weight_decay": decay,
    }


def make_optimizer(groups: list[dict[str, Any]], recipe: TrainingRecipe) -> Any:
    """Return AdamW, or SGD with Nesterov's momentum."""
    # one kernel a tensor, where torch's default makes a dozen passes over memory
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(
            groups,
            lr=recipe.rate,
            momentum=SGD_MOMENTUM,
            nesterov=True,
            fused=True,
        )
    return torch.optim.AdamW(
        groups,
        lr=recipe.rate,
        betas=ADAM_BETAS,
        fused=True,
    )


def set_rate(optimizer: Any, progress: float, warmup: float) -> None:
    """Set rates for a point of the run, 0 to 1: a linear rise over `warmup`, then half a cosine."""
    if progress < warmup:
        factor = max(progress / warmup, LEAST_WARMUP_FACTOR)
    else:
        passed = (progress - warmup) / (1 - warmup)
        angle = math.pi * min(passed, 1.0)
        factor = 0.5 * (1 + math.cos(angle))
    for group in optimizer.param_groups:
        group["lr"] = group["full"] * factor


def penalty(module: TrainableModule, recipe: TrainingRecipe) -> Tensor:
    """Return L1 and group lasso of the weights of two axes or more.

    Groups are slices along axis 0, the output channels of a Conv, each weighed by the root of its
    size.
    """
    total: Tensor = 0.0
    for parameter in module.parameters():
        if parameter.ndim < 2:
            continue
        if recipe.l1:
            magnitudes = parameter.abs()
            total = total + recipe.l1 * magnitudes.sum()
        if recipe.group_lasso:
            slices = parameter.flatten(1)
            squares = slices.square().sum(1)
            norms = squares.clamp_min(SMALLEST_NORM_SQUARED).sqrt()
            size_root = slices.shape[1] ** 0.5
            total = total + recipe.group_lasso * norms.sum() * size_root
    return total


def is_scale(value: ir.Value) -> bool:
    """True if a trained constant is the scale of a quantization."""
    for node, index in value.uses():
        if index == 1 and node.op_type in ("QuantizeLinear", "DequantizeLinear"):
            return True
    return False


def _size(parameter: Tensor, origin: Origin, units_per_float: float) -> float:
    """Return the root mean square of a tensor, in its units.

    That of a stored bias by way of its floats: the codes of a channel whose weights are all but
    zero are a million times as large as those of the others, and say nothing about these.
    """
    latent = origin.latent
    if latent is None:
        return _root_mean_square(parameter, LEAST_SIZE)
    if latent.dtype == ir.DataType.INT32 and latent.scale is not None:
        floats = parameter.detach() * torch.from_numpy(latent.scale).to(parameter)
        return _root_mean_square(floats, LEAST_SIZE) * units_per_float
    return _root_mean_square(parameter, LEAST_SIZE * units_per_float)


def _differ_in_unit(parameter: Tensor) -> bool:
    """True for a vector whose elements have nothing in common but their place."""
    with torch.no_grad():
        magnitudes = parameter.detach().abs().flatten()
        if max(parameter.shape, default=1) < magnitudes.numel():
            # a matrix: its columns are weighed together
            return False
        magnitudes = magnitudes[magnitudes > 0]
        if magnitudes.numel() < 2:
            return False
        # torch's median is the smaller of two
        usual = magnitudes.median()
        return bool(magnitudes.max() > OTHER_UNIT * usual)


def _root_mean_square(parameter: Tensor, least: float) -> float:
    """Return the root mean square of the elements that are not zero, `least` at the least."""
    with torch.no_grad():
        kept = parameter[parameter != 0]
        if not kept.numel():
            return least
        squares = kept.double().square()
        mean = squares.mean()
        return max(float(mean.sqrt()), least)
