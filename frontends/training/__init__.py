"""Training of ONNX graphs: fine-tuning and distillation. Needs torch."""

from __future__ import annotations

from ..trainable import to_torch as _to_torch  # noqa: F401 - says at once where torch is missing
from .session import Environment
from .teacher import Runtime
from .train import Trained, train

__all__ = ["Environment", "Runtime", "Trained", "train"]
