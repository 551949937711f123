"""Zeros that move while a pruned graph trains: small weights go, and others grow in their stead.

Source: Evci et al., Rigging the Lottery, ICML 2020 (arXiv:1911.11134): those with the largest
gradients grow, from zero; fewer each time.
"""

from __future__ import annotations

import math
from typing import Any

import torch

from ..trainable import TrainableModule

Tensor = Any

EVERY = 100
"""Steps between two exchanges, as in the paper."""

LAST = 0.75
"""Part of the run after which zeros stay, as in the paper: what grew last has to learn."""


def exchanged_share(regrow: float, steps: int, progress: float) -> float:
    """Return the share of the nonzeros that change places with zeros at this step; mostly 0.

    `regrow`: that share at first. `steps`: done so far. `progress`: point of the run, 0 to 1.
    """
    if not regrow or not steps:
        return 0.0
    if steps % EVERY or progress >= LAST:
        return 0.0
    angle = math.pi * progress / LAST
    return regrow / 2 * (1 + math.cos(angle))


def exchange(module: TrainableModule, share: float) -> int:
    """Let zeros and nonzeros of each pruned weight change places; return how many did.

    `share`: of a weight's nonzeros. Needs gradients. Each weight keeps its number of zeros.
    """
    total = 0
    with torch.no_grad():
        for name, mask in module.masks().items():
            parameter = module.get_parameter(name)
            if parameter.grad is None:
                continue
            kept = mask != 0
            nonzeros = int(kept.sum())
            zeros = kept.numel() - nonzeros
            count = min(round(share * nonzeros), zeros)
            places = _exchanged(parameter, kept, count)
            module.mask(name, places)
            total += count
        # what went is zero from now on
        module.constrain(grids=False)
    return total


def _exchanged(parameter: Tensor, kept: Tensor, count: int) -> Tensor:
    """Return `kept` without the smallest weights, and with the places of the largest gradients."""
    sizes = parameter.abs()
    sizes = sizes.masked_fill(~kept, math.inf)
    smallest = sizes.flatten().topk(count, largest=False)
    gradients = parameter.grad.abs()
    gradients = gradients.masked_fill(kept, -1.0)
    steepest = gradients.flatten().topk(count)
    places = kept.flatten()
    places[smallest.indices] = False
    places[steepest.indices] = True
    return places.view(kept.shape)
