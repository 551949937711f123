"""Where and in which floats training computes."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from ... import UsageError
from .recipe import Recipe

Tensor = Any


@dataclass(frozen=True)
class Device:
    """`name`: torch's. `half`: products are bfloat16's where it learns; weights, and what is
    judged, are not.
    """

    name: str = "cpu"
    half: bool = False

    @classmethod
    def of(cls, recipe: Recipe) -> Device:
        """What the recipe asks for, or what is fastest here. Errors: UsageError for a GPU that is
        not there.
        """
        gpu = torch.cuda.is_available()
        if recipe.device == "cuda" and not gpu:
            raise UsageError(
                "finetune.device", "torch finds no GPU", "choose device=cpu or auto"
            )
        name = "cuda" if gpu and recipe.device != "cpu" else "cpu"
        able = name == "cuda" or bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
        return cls(
            name, able if recipe.precision == "auto" else recipe.precision == "bfloat16"
        )

    def halved(self) -> AbstractContextManager[Any]:
        """Convolutions and products of matrices in bfloat16 if `half`, the rest where torch deems
        it safe.
        """
        manager: AbstractContextManager[Any] = torch.autocast(
            self.name, torch.bfloat16, enabled=self.half
        )
        return manager


def laid_out(feeds: Mapping[str, Any], device: Any) -> dict[str, Any]:
    """Images with their channels last in memory, which convolutions are faster with."""
    return {
        name: torch.from_numpy(array)
        .to(device)
        .contiguous(memory_format=torch.channels_last)
        if array.ndim == 4 and array.dtype == np.float32
        else array
        for name, array in feeds.items()
    }
