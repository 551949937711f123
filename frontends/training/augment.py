"""Changes to images that keep what they show: flips, shifts, mixtures. Drawn anew for every step,
by its seed.
"""

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
    """`flip`: left and right by a coin. `shift`: pixels, edges repeated. `mixup`, `cutmix`: alpha
    of the Beta distribution of a partner's share, of all pixels (arXiv:1710.09412) or of the area
    (arXiv:1905.04899).
    """

    flip: bool = False
    shift: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, recipe: Recipe) -> Augment:
        """What the recipe asks for."""
        return cls(recipe.flip, recipe.shift, recipe.mixup, recipe.cutmix)

    def __bool__(self) -> bool:
        return self.flip or bool(self.shift or self.mixup or self.cutmix)

    def __call__(
        self, example: Example, random: np.random.Generator
    ) -> tuple[Example, tuple[NDArray[np.int64], float] | None]:
        """The example changed, without targets; and with which rows its own were mixed, at which
        share.
        """
        name = image_of(example)
        images = example.feeds[name]
        if self.flip:
            coins = random.random(len(images)) < 0.5
            images = np.where(coins[:, None, None, None], images[..., ::-1], images)
        if self.shift:
            images = _shifted(
                images,
                random.integers(-self.shift, self.shift + 1, (len(images), 2)),
                self.shift,
            )
        partner = None
        cut = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        if alpha := self.cutmix if cut else self.mixup:
            share = float(random.beta(alpha, alpha))
            other = random.permutation(len(images)).astype(np.int64)
            if cut:
                images, share = _pasted(images, images[other], share, random)
            else:
                images = (share * images + (1 - share) * images[other]).astype(
                    images.dtype
                )
            partner = (other, share)
        return Example(
            {**example.feeds, name: np.ascontiguousarray(images)}, example.labels
        ), partner


def image_of(example: Example) -> str:
    """The one input that is a batch of images, (N, C, H, W). Errors: RefusedError for none or
    several.
    """
    found = [
        name
        for name, array in example.feeds.items()
        if array.ndim == 4 and array.dtype.kind == "f"
    ]
    if len(found) != 1:
        raise RefusedError(
            "finetune",
            f"{len(found)} inputs are batches of float images (N, C, H, W)",
            "leave flip, shift and mixup out, or augment in the data's own code",
        )
    return found[0]


def _pasted(
    images: Array, others: Array, share: float, random: np.random.Generator
) -> tuple[Array, float]:
    """The others' pixels in one rectangle of about 1 - share of the area; and the share that is
    left, exactly.
    """
    size = np.array(images.shape[2:])
    half = np.sqrt(1 - share) * size / 2
    middle = random.random(2) * size
    low, high = (
        np.clip(np.rint(middle + side * half), 0, size).astype(int) for side in (-1, 1)
    )
    mixed = images.copy()
    mixed[:, :, low[0] : high[0], low[1] : high[1]] = others[
        :, :, low[0] : high[0], low[1] : high[1]
    ]
    return mixed, 1 - float(np.prod(high - low) / np.prod(size))


def _shifted(images: Array, offsets: NDArray[np.int64], most: int) -> Array:
    height, width = images.shape[2:]
    padded = np.pad(images, ((0, 0), (0, 0), (most, most), (most, most)), mode="edge")
    rows = most + offsets[:, :1] + np.arange(height)
    columns = most + offsets[:, 1:] + np.arange(width)
    index = np.arange(len(images))[:, None, None, None]
    channels = np.arange(images.shape[1])[None, :, None, None]
    return np.asarray(
        padded[index, channels, rows[:, None, :, None], columns[:, None, None, :]]
    )
