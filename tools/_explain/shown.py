"""Samples as pages draw them: pixels, texts and heat, small enough for one file."""

from __future__ import annotations

import base64
import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ...runtime.token_texts import token_texts
from .explain import Explained, ExplainedSample
from .inputs import ExplainedInput
from .parts import STAYS

MOST_SAMPLES = 24
"""Samples that are drawn: evenly spread from those that agree least to those that agree most."""

MOST_PIXELS = 96
"""Pixels along each side of a picture; larger ones are made smaller."""

MOST_CELLS = 32
"""Cells of heat along each side of a picture."""

DIGITS = 3
"""Decimals of heat, which is 1 at its largest."""

BYTES = 256
"""Values of bytes: tokens of no more, and one for padding, are shown as characters."""

Heat = NDArray[np.float64]


def shown_samples(found: Explained) -> list[dict[str, Any]]:
    """Drawings of some samples, those that agree least first."""
    text_of = _texts(found)
    drawn = []
    for each in _spread(found.samples):
        heats = {
            "a": each.a.heat,
            "b": each.b.heat,
            "again": each.again.heat,
        }
        if found.subject.kind == "image":
            drawing = _drawn_image(found, each, heats)
        else:
            drawing = _drawn_row(found, each, heats, text_of)
        drawn.append({"sample": each.index, **drawing})
    return drawn


def _spread(samples: list[ExplainedSample]) -> list[ExplainedSample]:
    """At most 24 samples, evenly spread by their agreement, the least first."""
    ordered = sorted(samples, key=lambda each: each.agreement.spearman)
    last = len(ordered) - 1
    count = min(len(ordered), MOST_SAMPLES)
    places = np.linspace(0, last, count)
    chosen = places.round().astype(int)
    return [ordered[place] for place in chosen]


def _drawn_image(
    found: Explained, each: ExplainedSample, heats: dict[str, Heat]
) -> dict[str, Any]:
    """Pixels, and heat in cells."""
    values = each.sample.values(found.subject)
    picture = _picture(values, found.subject)
    cells = {name: _means(heat, MOST_CELLS) for name, heat in heats.items()}
    shape = list(cells["a"].shape)
    heat = _rounded(cells)
    return {**picture, "cells": shape, "heat": heat}


def _drawn_row(
    found: Explained,
    each: ExplainedSample,
    heats: dict[str, Heat],
    text_of: Callable[[int], str],
) -> dict[str, Any]:
    """Texts of stretches, and the mean heat of each."""
    values = each.sample.values(found.subject)
    blank = found.baselines.blank(each.index, None)
    labels = blank.parts.labels
    stretches = _stretches(labels)
    texts = []
    for start, stop in stretches:
        text = _stretch_text(
            values,
            found.subject,
            start,
            stop,
            text_of,
        )
        texts.append(text)
    rows = {name: _means_of(heat, stretches) for name, heat in heats.items()}
    heat = _rounded(rows)
    return {"texts": texts, "heat": heat}


def _means_of(heat: Heat, stretches: list[tuple[int, int]]) -> Heat:
    means = [heat[start:stop].mean() for start, stop in stretches]
    return np.array(means)


def _rounded(heats: dict[str, Heat]) -> dict[str, list[float]]:
    """Heat in parts of its largest magnitude."""
    found = {}
    for name, heat in heats.items():
        magnitudes = np.abs(heat)
        largest = float(magnitudes.max(initial=0.0))
        scaled = heat.ravel() / (largest or 1.0)
        # no negative zeros
        rounded = np.round(scaled, DIGITS) + 0.0
        found[name] = rounded.tolist()
    return found


def _means(values: NDArray[Any], most: int) -> NDArray[np.float64]:
    """Means over blocks of (H, W, …): at most `most` along each of both axes."""
    found = values.astype(np.float64)
    for axis in (0, 1):
        length = found.shape[axis]
        size = math.ceil(length / most)
        starts = np.arange(0, length, size)
        sums = np.add.reduceat(found, starts, axis=axis)
        counts = np.diff([*starts, length])
        shape = [1] * found.ndim
        shape[axis] = -1
        found = sums / counts.reshape(shape)
    return found


def _picture(values: NDArray[Any], subject: ExplainedInput) -> dict[str, Any]:
    """Pixels of an image as text: (H, W, 3) bytes, whatever range the model takes."""
    (channels,) = {0, 1, 2} - set(subject.axes)
    pixels = np.moveaxis(values, channels, -1)
    # opacity is no colour
    colours = pixels[..., :3]
    small = _means(colours, MOST_PIXELS)
    shades = _shades(small)
    height, width, _ = shades.shape
    shape = (height, width, 3)
    # grey has three equal colours
    whole = np.broadcast_to(shades, shape)
    text = base64.b64encode(whole.tobytes())
    return {
        "pixels": text.decode(),
        "size": [height, width],
    }


def _shades(values: Heat) -> NDArray[np.uint8]:
    """Values as bytes, from the smallest to the largest."""
    low = values.min()
    high = values.max()
    span = float(high - low)
    above = values - low
    parts = above / (span or 1.0)
    shades = np.round(255 * parts)
    return np.asarray(shades, np.uint8)


def _stretches(labels: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Neighbours of one part, as start and stop, without the padding at the end of a row.

    Tokens of no part stand alone.
    """
    found = []
    start = 0
    for place, label in enumerate(labels):
        own = labels[start]
        is_other = label != own or own == STAYS
        if place > start and is_other:
            found.append((start, place))
            start = place
    found.append((start, len(labels)))
    # at the end one marker is shown
    while len(found) > 2 and _are_alone(labels, found[-2:]):
        found.pop()
    return found


def _are_alone(labels: NDArray[np.int64], stretches: list[tuple[int, int]]) -> bool:
    """True where all stretches are tokens of no part."""
    return all(labels[start] == STAYS for start, _ in stretches)


def _stretch_text(
    values: NDArray[Any],
    subject: ExplainedInput,
    start: int,
    stop: int,
    text_of: Callable[[int], str],
) -> str:
    if subject.kind == "tokens":
        tokens = values.reshape(-1)[start:stop]
        return "".join(map(text_of, tokens.tolist()))
    if subject.kind == "columns" and stop == start + 1:
        return f"{start}: {values[start]:.4g}"
    return f"{start} … {stop - 1}"


def _texts(found: Explained) -> Callable[[int], str]:
    """Words for tokens: by the tokenizer beside the model, as characters, or their numbers."""
    known = token_texts(found.request.a.parent)
    if known is not None:
        return lambda token: known(token) or f" {token}"
    words = found.baselines.words
    is_bytes = found.subject.mask is None and words.size and words.max() <= BYTES
    if is_bytes:
        return _character
    return lambda token: f" {token}"


def _character(token: int) -> str:
    if token in (10, 13):
        return "⏎"
    text = chr(token)
    return text if token < BYTES and text.isprintable() else "·"
