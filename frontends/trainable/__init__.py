"""An ONNX graph as a torch module that trains, and its weights back into the same graph. Needs
torch.
"""

from __future__ import annotations

from ... import UsageError

try:
    import torch as _torch  # noqa: F401 - asked for here, once for the whole package
except ModuleNotFoundError as error:
    raise UsageError(
        "torch", "not installed, and training needs it", "pip install 'onnx-opt[torch]'"
    ) from error

from ._latents import coarsest_grid
from ._weights import Origin
from .build import to_torch
from .module import TrainableModule
from .write_back import write_back

__all__ = ["Origin", "TrainableModule", "coarsest_grid", "to_torch", "write_back"]
