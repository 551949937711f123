"""Training of ONNX graphs: fine-tuning and distillation. Needs torch."""

from __future__ import annotations

from ..trainable import to_torch as _to_torch  # noqa: F401 - says at once where torch is missing
from .recipe import Recipe
from .teacher import Runtime
from .train import Setting, Trained, train

__all__ = ["Recipe", "Runtime", "Setting", "Trained", "train"]
