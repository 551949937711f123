"""The state of a training on disk, so that an interrupted one goes on where it was."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from ... import RefusedError
from ...passes._core.training_recipe import TrainingRecipe

VERSION = 3
"""Version of what is stored: a state of another one would go on with other random draws."""


class Checkpoint:
    """The file of one training in a folder.

    Its name is a digest of the weights, the data and the recipe, so that nothing else resumes it.
    """

    def __init__(
        self,
        folder: Path,
        parameters: Mapping[str, Any],
        recipe: TrainingRecipe,
        seed: int,
        data: str,
    ) -> None:
        text = f"{VERSION} {recipe} {seed} {data}"
        digest = hashlib.sha256(text.encode())
        for name, parameter in sorted(parameters.items()):
            digest.update(name.encode())
            values = parameter.detach().cpu()
            digest.update(values.numpy().tobytes())
        # 64 bits tell the few trainings of a folder apart, and keep its listing readable
        short = digest.hexdigest()[:16]
        self.path = folder / f"finetune-{short}.pt"

    def load(self) -> dict[str, Any] | None:
        """Return the state that was saved last, None where there is none.

        Errors: RefusedError for a damaged file.
        """
        if not self.path.exists():
            return None
        try:
            # without weights_only a file that someone sent could run code
            state: dict[str, Any] = torch.load(
                self.path, map_location="cpu", weights_only=True
            )
        except Exception as error:
            raise RefusedError(
                str(self.path),
                f"cannot be read: {type(error).__name__}",
                "delete it to start anew",
            ) from error
        return state

    def save(self, state: dict[str, Any]) -> None:
        """Replace what was saved, at once or not at all."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(f".{os.getpid()}.tmp")
        try:
            torch.save(state, draft)
            os.replace(draft, self.path)
        finally:
            draft.unlink(missing_ok=True)
