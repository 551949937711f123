"""Changes to images that keep what they show: flips, shifts and mixtures.

They are drawn anew for every step, by its seed.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ... import RefusedError
from ...passes._core.options import AUTO
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
        """Return the changes that the recipe asks for; falsy if it asks for none.

        What is left open is not asked for.
        """
        names = [field.name for field in dataclasses.fields(cls)]
        asked = {name: getattr(recipe, name) for name in names}
        return cls(**{name: value for name, value in asked.items() if value != AUTO})

    def __bool__(self) -> bool:
        return self.flip or bool(self.shift or self.mixup or self.cutmix)

    def __call__(
        self, example: Example, random: np.random.Generator
    ) -> tuple[Example, Mixture | None]:
        """Return the example with changed images, without targets, and how rows were mixed."""
        name = image_input(example)
        feeds = dict(example.feeds)
        images = feeds[name]
        if self.flip:
            images = _flipped(images, random)
        if self.shift:
            images = _shifted(images, self.shift, random)
        # last, so that a partner is flipped and shifted as well
        images, mixture = self._mixed(images, random)
        feeds[name] = np.ascontiguousarray(images)
        return Example(feeds, example.labels), mixture

    def _mixed(
        self, images: Array, random: np.random.Generator
    ) -> tuple[Array, Mixture | None]:
        """Mix rows with others, pixel by pixel or by a pasted rectangle."""
        cut = bool(self.cutmix)
        # of both one by a coin, which is not drawn for one alone
        if cut and self.mixup:
            cut = random.random() < 0.5
        alpha = self.cutmix if cut else self.mixup
        if not alpha:
            return images, None
        share = float(random.beta(alpha, alpha))
        order = random.permutation(len(images))
        other = order.astype(np.int64)
        partners = images[other]
        if cut:
            mixed, share = _pasted(images, partners, share, random)
        else:
            own = share * images
            added = (1 - share) * partners
            blend = own + added
            mixed = blend.astype(images.dtype)
        return mixed, Mixture(other, share)


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
    rows = len(images)
    coins = random.random(rows) < 0.5
    flipped = images.copy()
    flipped[coins] = images[coins, ..., ::-1]
    return flipped


def _shifted(images: Array, most: int, random: np.random.Generator) -> Array:
    """Move each image by up to `most` pixels along both axes, repeating its edges."""
    height, width = images.shape[2:]
    offsets = random.integers(
        low=-most,
        high=most + 1,
        size=(len(images), 2),
    )
    # an offset of -most begins at the border's edge, one of 0 at the image's own
    starts = offsets + most
    border = (most, most)
    padded = np.pad(
        images,
        pad_width=((0, 0), (0, 0), border, border),
        mode="edge",
    )
    shifted = np.empty_like(images)
    for index, (top, left) in enumerate(starts):
        rows = slice(top, top + height)
        columns = slice(left, left + width)
        shifted[index] = padded[index, :, rows, columns]
    return shifted


def _pasted(
    images: Array, others: Array, share: float, random: np.random.Generator
) -> tuple[Array, float]:
    """Paste the others' pixels into one rectangle of about 1 - `share` of the area.

    Returns the images, and the share that is left of their own, exactly.
    """
    size = np.array(images.shape[2:])
    # sides are the root of the area
    scale = np.sqrt(1 - share)
    half = scale * size / 2
    drawn = random.random(2)
    middle = drawn * size
    low = _nearest_pixels(middle - half, size)
    high = _nearest_pixels(middle + half, size)
    top, left = low
    bottom, right = high
    rows = slice(top, bottom)
    columns = slice(left, right)
    mixed = images.copy()
    mixed[:, :, rows, columns] = others[:, :, rows, columns]
    # the rectangle is cut off at the edges: its area is less than the share drawn
    sides = high - low
    area = np.prod(sides)
    whole_area = np.prod(size)
    pasted = area / whole_area
    return mixed, 1 - float(pasted)


def _nearest_pixels(places: NDArray[np.float64], size: Indices) -> Indices:
    pixels = np.rint(places)
    inside = np.clip(pixels, 0, size)
    return inside.astype(np.int64)
