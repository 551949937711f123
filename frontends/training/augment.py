"""Changes to images that keep what they show: flips, shifts, mixtures. Drawn anew for every step, by its seed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from .data import Example
from .recipe import Recipe

Array = NDArray[Any]


@dataclass(frozen=True)
class Augment:
    """`flip`: left and right by a coin. `shift`: pixels, edges repeated. `mixup`: alpha of the Beta distribution."""

    flip: bool = False
    shift: int = 0
    mixup: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Augment:
        """What the recipe asks for."""
        return cls(recipe.flip, recipe.shift, recipe.mixup)

    def __bool__(self) -> bool:
        return self.flip or bool(self.shift) or bool(self.mixup)

    def __call__(
        self, example: Example, random: np.random.Generator
    ) -> tuple[Example, tuple[NDArray[np.int64], float] | None]:
        """The example changed, without targets; and with which rows its own were mixed, at which share."""
        name = image_of(example)
        images = example.feeds[name]
        if self.flip:
            coins = random.random(len(images)) < 0.5
            images = np.where(coins[:, None, None, None], images[..., ::-1], images)
        if self.shift:
            images = _shifted(images, random.integers(-self.shift, self.shift + 1, (len(images), 2)), self.shift)
        partner = None
        if self.mixup:
            share = float(random.beta(self.mixup, self.mixup))
            other = random.permutation(len(images)).astype(np.int64)
            images = (share * images + (1 - share) * images[other]).astype(images.dtype)
            partner = (other, share)
        return Example({**example.feeds, name: np.ascontiguousarray(images)}, example.labels), partner


def image_of(example: Example) -> str:
    """The one input that is a batch of images, (N, C, H, W). Errors: RefusedError for none or several."""
    found = [name for name, array in example.feeds.items() if array.ndim == 4 and array.dtype.kind == "f"]
    if len(found) != 1:
        raise RefusedError("finetune", f"{len(found)} inputs are batches of float images (N, C, H, W)",
                           "leave flip, shift and mixup out, or augment in the data's own code")
    return found[0]


def _shifted(images: Array, offsets: NDArray[np.int64], most: int) -> Array:
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
    rows = most + offsets[:, :1] + np.arange(height)
    columns = most + offsets[:, 1:] + np.arange(width)
    index = np.arange(len(images))[:, None, None, None]
    channels = np.arange(images.shape[1])[None, :, None, None]
    return np.asarray(padded[index, channels, rows[:, None, :, None], columns[:, None, None, :]])
