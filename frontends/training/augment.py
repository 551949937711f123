"""Changes to images that keep what they show: flips, shifts and mixtures.

They are drawn anew for every step, by its seed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from ...passes._core.training_recipe import TrainingRecipe
from .data import Example

Array = NDArray[Any]
Indices = NDArray[np.int64]


class Mixture(NamedTuple):
    """The row that each row was mixed with, and the share (0-1) that is left of its own."""

    other: Indices
    share: float


@dataclass(frozen=True)
class Augment:
    """Changes that a recipe asks for.

    `flip`: left to right by a coin. `shift`: pixels, edges repeated. `mixup`, `cutmix`: alpha of
    the Beta distribution of a partner's share, of all pixels (arXiv:1710.09412) or of the area
    (arXiv:1905.04899).
    """

    flip: bool = False
    shift: int = 0
    mixup: float = 0.0
    cutmix: float = 0.0

    @classmethod
    def of(cls, recipe: TrainingRecipe) -> Augment:
        """Return the changes that the recipe asks for; falsy if it asks for none."""
        return cls(recipe.flip, recipe.shift, recipe.mixup, recipe.cutmix)

    def __bool__(self) -> bool:
        return self.flip or bool(self.shift or self.mixup or self.cutmix)

    def __call__(
        self, example: Example, random: np.random.Generator
    ) -> tuple[Example, Mixture | None]:
        """Return the example with changed images, without targets, and how rows were mixed."""
        name = image_input(example)
        images = example.feeds[name]
        if self.flip:
            images = _flipped(images, random)
        if self.shift:
            images = _shifted(images, self.shift, random)
        images, mixture = self._mixed(images, random)
        feeds = {**example.feeds, name: np.ascontiguousarray(images)}
        return Example(feeds, example.labels), mixture

    def _mixed(
        self, images: Array, random: np.random.Generator
    ) -> tuple[Array, Mixture | None]:
        """Mix rows with others, pixel by pixel or by a pasted rectangle."""
        # of both one by a coin, which is not drawn for one alone
        cut = bool(self.cutmix) and (not self.mixup or random.random() < 0.5)
        alpha = self.cutmix if cut else self.mixup
        if not alpha:
            return images, None
        share = float(random.beta(alpha, alpha))
        other = random.permutation(len(images)).astype(np.int64)
        partners = images[other]
        if cut:
            images, share = _pasted(images, partners, share, random)
        else:
            blend = share * images + (1 - share) * partners
            images = blend.astype(images.dtype)
        return images, Mixture(other, share)


def image_input(example: Example) -> str:
    """Return the one input that is a batch of float images (N, C, H, W).

    Errors: RefusedError for none or several.
    """
    found = []
    for name, array in example.feeds.items():
        if array.ndim == 4 and array.dtype.kind == "f":
            found.append(name)
    if len(found) != 1:
        raise RefusedError(
            "finetune",
            f"{len(found)} inputs are batches of float images (N, C, H, W)",
            "leave flip, shift and mixup out, or augment in the data's own code",
        )
    return found[0]


def _flipped(images: Array, random: np.random.Generator) -> Array:
    coins = random.random(len(images)) < 0.5
    return np.where(coins[:, None, None, None], images[..., ::-1], images)


def _shifted(images: Array, most: int, random: np.random.Generator) -> Array:
    """Move each image by up to `most` pixels along both axes, repeating its edges."""
    offsets = random.integers(-most, most + 1, (len(images), 2))
    height, width = images.shape[2:]
    border = (most, most)
    padded = np.pad(images, ((0, 0), (0, 0), border, border), mode="edge")
    rows = most + offsets[:, :1] + np.arange(height)
    columns = most + offsets[:, 1:] + np.arange(width)
    # one index array an axis, broadcast against each other to (N, C, H, W)
    index = np.arange(len(images))[:, None, None, None]
    channels = np.arange(images.shape[1])[None, :, None, None]
    row_index = rows[:, None, :, None]
    column_index = columns[:, None, None, :]
    return np.asarray(padded[index, channels, row_index, column_index])


def _pasted(
    images: Array, others: Array, share: float, random: np.random.Generator
) -> tuple[Array, float]:
    """Paste the others' pixels into one rectangle of about 1 - `share` of the area.

    Returns the images, and the share that is left of their own, exactly.
    """
    size = np.array(images.shape[2:])
    half = np.sqrt(1 - share) * size / 2
    middle = random.random(2) * size
    low = np.clip(np.rint(middle - half), 0, size).astype(int)
    high = np.clip(np.rint(middle + half), 0, size).astype(int)
    rows = slice(low[0], high[0])
    columns = slice(low[1], high[1])
    mixed = images.copy()
    mixed[:, :, rows, columns] = others[:, :, rows, columns]
    # the rectangle is cut off at the edges: its area is less than the share drawn
    pasted = np.prod(high - low) / np.prod(size)
    return mixed, 1 - float(pasted)
