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
            # a CPU without instructions for bfloat16 emulates it, slower than float32
            half = bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return cls(name, half)

    def halved(self) -> AbstractContextManager[Any]:
        """Compute convolutions and matrix products in bfloat16 if `half`.

        Everything else follows where torch's autocast deems it safe.
        """
        manager: AbstractContextManager[Any] = torch.autocast(
            self.name, torch.bfloat16, enabled=self.half
        )
        return manager


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
