"""Zeros that move while a pruned graph trains: small weights go, and others grow in their stead.

Source: Evci et al., Rigging the Lottery, ICML 2020 (arXiv:1911.11134): those with the largest
gradients grow, from zero; fewer each time.
"""

from __future__ import annotations

import math

import torch

from ..trainable import TrainableModule

EVERY = 100
"""Steps between two exchanges, as in the paper."""

LAST = 0.75
"""Part of the run after which zeros stay, as in the paper: what grew last has to learn."""


def exchanged_share(regrow: float, steps: int, progress: float) -> float:
    """Return the share of the nonzeros that change places with zeros at this step; mostly 0.

    `regrow`: that share at first. `steps`: done so far. `progress`: point of the run, 0 to 1.
    """
    if not regrow or not steps or steps % EVERY or progress >= LAST:
        return 0.0
    return regrow / 2 * (1 + math.cos(math.pi * progress / LAST))


def exchange(module: TrainableModule, share: float) -> int:
    """Let zeros and nonzeros of each pruned weight change places; return how many did.

    `share`: of a weight's nonzeros. Needs gradients. Each weight keeps its number of zeros.
    """
    total = 0
    with torch.no_grad():
        for name, kept in module.masks().items():
            parameter = module.get_parameter(name)
            if parameter.grad is None:
                continue
            held = kept == 0
            count = min(round(share * float(kept.sum())), int(held.sum()))
            sizes = parameter.abs().masked_fill(held, math.inf)
            smallest = sizes.flatten().topk(count, largest=False).indices
            gradients = parameter.grad.abs().masked_fill(~held, -1.0)
            steepest = gradients.flatten().topk(count).indices
            places = (kept != 0).flatten()
            places[smallest] = False
            places[steepest] = True
            module.mask(name, places.view(kept.shape))
            total += count
        module.constrain(grids=False)
    return total
