"""The device that training computes on, and the floats that it computes in."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ... import UsageError
from ...passes._core.training_recipe import TrainingRecipe

Tensor = Any

BFLOAT16_PRODUCTS = ("avx512_bf16", "amx_bf16", "bf16", "sve_bf16")
"""Instructions that multiply bfloat16, as `torch.cpu.get_capabilities` names them: x86, arm64."""


@dataclass(frozen=True)
class Device:
    """A device by torch's `name`.

    `half`: products are bfloat16 while learning; weights, and the values that are judged, are not.
    """

    name: str = "cpu"
    half: bool = False

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> Device:
        """Return what the recipe asks for, or what is fastest here.

        Errors: UsageError for a GPU that is not there.
        """
        has_gpu = torch.cuda.is_available()
        if recipe.device == "cuda" and not has_gpu:
            raise UsageError(
                "finetune.device", "torch finds no GPU", "choose device=cpu or auto"
            )
        name = "cuda" if has_gpu and recipe.device != "cpu" else "cpu"
        if recipe.precision != "auto":
            half = recipe.precision == "bfloat16"
        elif name == "cuda":
            half = True
        else:
            half = _cpu_multiplies_bfloat16()
        return cls(name, half)

    def halved(self) -> AbstractContextManager[Any]:
        """Compute convolutions and matrix products in bfloat16 if `half`.

        Everything else follows where torch's autocast deems it safe.
        """
        manager: AbstractContextManager[Any] = torch.autocast(
            self.name, torch.bfloat16, enabled=self.half
        )
        return manager


def _cpu_multiplies_bfloat16() -> bool:
    """Return whether this CPU has instructions for products of bfloat16.

    Torch computes in bfloat16 on any CPU with AVX-512. Where it has to emulate the products,
    convolutions take 2 to 3 times as long as in float32.
    """
    if not torch.ops.mkldnn._is_mkldnn_bf16_supported():
        return False
    capabilities = torch.cpu.get_capabilities()
    return any(capabilities.get(name) for name in BFLOAT16_PRODUCTS)


def channels_last(feeds: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Return feeds with images (N, C, H, W) on the device, their channels last in memory.

    Convolutions are faster with that layout; all other arrays are passed on as they are.
    """
    placed = dict(feeds)
    for name, array in feeds.items():
        if array.ndim == 4 and array.dtype == np.float32:
            tensor = torch.from_numpy(array)
            # the layout is made where the copy is: on the device
            moved = tensor.to(device)
            placed[name] = moved.contiguous(memory_format=torch.channels_last)
    return placed
