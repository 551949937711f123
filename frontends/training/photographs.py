"""A test of data: photographs that may be mirrored and moved, by the teacher's own word.

Pictures of text, digits and road signs mean something else when they are mirrored. What the data
are is not asked: the teacher is, which must see in changed images what it sees in them as they are.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .augment import Augment
from .data import Arrays, Example
from .heads import Head
from .score import Scorer
from .teacher import TeacherFunction

Array = NDArray[Any]

LEAST_SIDE = 16
"""Pixels of the shorter side from which an image can be a photograph; chosen by hand."""

LEAST_ROWS = 64
"""Images from which a share of them says something: of fewer it deviates by over 4 %."""

SAME_CHANNELS = 0.999
"""Correlation of channels from which they are copies: grey images stored as coloured ones."""

LEAST_AGREEMENT = 0.9
"""Share of changed images (0-1) that the teacher must answer as it does the originals.

A classifier of photographs agrees with itself on 0.93 to 1 of mirrored ones, one of digits on 0.4,
a reader of lines of text on none (docs/finetune.md).
"""

LEAST_CONFIDENCE = 0.9
"""Part of its confidence that the teacher must keep on changed images; chosen by hand."""

SHIFT_PARTS = (8, 16)
"""Parts of the shorter side by which images are moved: 4 pixels of 32, usual for CIFAR, or less."""


@dataclass(frozen=True)
class Photographs:
    """Changes that the data bear.

    `flip`: they may be mirrored. `shift`: pixels that they may be moved by. `reason`: for people,
    also where nothing is borne.
    """

    flip: bool = False
    shift: int = 0
    reason: str = ""


class _Teacher:
    """Answers of a teacher to images as they are, beside its answers to changed ones."""

    def __init__(self, heads: Sequence[Head], ask: TeacherFunction) -> None:
        self._heads = heads
        self._ask = ask

    def bears(self, examples: Sequence[Example], changed: Sequence[Arrays]) -> float:
        """Return the share of changed images (0-1) with the same answer; 0 of less confidence."""
        # the teacher is compared with itself: both sides have its names
        own_heads = []
        for head in self._heads:
            own = replace(head, student=head.teacher)
            own_heads.append(own)
        scorer = Scorer(own_heads, "agreement")
        confidences = np.zeros(2)
        for example, feeds in zip(examples, changed, strict=True):
            answers = self._ask(feeds)
            targets = example.targets
            scorer.add(answers, targets, None)
            now = self._confidence(answers)
            before = self._confidence(targets)
            confidences += now, before
        total_now, total_before = confidences
        least = LEAST_CONFIDENCE * total_before
        if total_now < least:
            return 0.0
        score = scorer.score()
        return score.value

    def _confidence(self, answers: Arrays) -> float:
        """Return the sum over images of the first choice's probability; of values their norm."""
        total = 0.0
        for head in self._heads:
            answer = answers[head.teacher]
            values = np.asarray(answer, np.float64)
            if head.kind == "classes":
                logits = np.moveaxis(values, head.axis, -1)
                confidences = _first_probabilities(logits)
            else:
                confidences = np.linalg.norm(values, axis=-1)
            total += float(confidences.sum())
        return total


def _first_probabilities(logits: Array) -> Array:
    """Probability of the largest of each row's logits: (*N, classes) -> (*N,)."""
    largest = logits.max(-1, keepdims=True)
    distances = logits - largest
    powers = np.exp(distances)
    normalizer = powers.sum(-1)
    probabilities: Array = 1 / normalizer
    return probabilities


def photographs(
    examples: Sequence[Example],
    heads: Sequence[Head],
    ask: TeacherFunction,
    seed: int,
) -> Photographs:
    """Return the changes that images bear, with a reason.

    `examples`: some of the data, with the teacher's answers; `ask`: for its answers to others.
    """
    name, reason = _image_name(examples, heads)
    if reason:
        return Photographs(reason=reason)
    teacher = _Teacher(heads, ask)
    mirrored = [_mirrored(example, name) for example in examples]
    share = teacher.bears(examples, mirrored)
    words = f"the teacher sees the same in {share:.0%} of mirrored images"
    if share < LEAST_AGREEMENT:
        # what has a left and a right may be cut off at its edges, too
        return Photographs(reason=words)
    shift, moved_share = _largest_shift(teacher, examples, name, seed)
    words += f" and {moved_share:.0%} of moved ones"
    return Photographs(flip=True, shift=shift, reason=words)


def _largest_shift(
    teacher: _Teacher, examples: Sequence[Example], name: str, seed: int
) -> tuple[int, float]:
    """Return the pixels by which images may be moved, and the share that stays the same; or 0."""
    images = examples[0].feeds[name]
    height, width = images.shape[2:]
    side = min(height, width)
    share = 0.0
    for part in SHIFT_PARTS:
        shift = side // part
        random = np.random.default_rng(seed)
        move = Augment(shift=shift)
        moved = []
        for example in examples:
            changed = move(example, random)
            moved.append(changed[0].feeds)
        share = teacher.bears(examples, moved)
        if share >= LEAST_AGREEMENT:
            return shift, share
    return 0, share


def _image_name(examples: Sequence[Example], heads: Sequence[Head]) -> tuple[str, str]:
    """Return the input that holds coloured images, or the reason why there is none."""
    first = examples[0]
    inputs = len(first.feeds)
    if inputs != 1:
        return "", f"the model takes {inputs} inputs"
    ((name, images),) = first.feeds.items()
    if not _is_coloured(images):
        return "", "the data are no coloured images (N, 3, H, W)"
    height, width = images.shape[2:]
    side = min(height, width)
    if side < LEAST_SIDE:
        return "", f"images of {height} x {width} pixels are no photographs"
    for head in heads:
        target = first.targets[head.teacher]
        if np.ndim(target) != 2:
            return "", "the model does not give one answer an image"
    rows = sum(example.rows for example in examples)
    if rows < LEAST_ROWS:
        return "", f"fewer than {LEAST_ROWS} images to ask the teacher about"
    if _is_grey(images):
        return "", "the images are grey"
    return name, ""


def _is_coloured(images: Array) -> bool:
    """True for images of three channels (N, 3, H, W), in floating point."""
    if images.ndim != 4:
        return False
    if images.dtype.kind != "f":
        return False
    channels: int = images.shape[1]
    return channels == 3


def _is_grey(images: Array) -> bool:
    """True if the channels of most images are copies of each other, whatever their scale."""
    grey = 0
    for image in images:
        if _has_one_pattern(image):
            grey += 1
    return 2 * grey > len(images)


def _has_one_pattern(image: Array) -> bool:
    """True if the channels of an image (3, H, W) follow from one another by scale and offset."""
    flat = image.reshape(3, -1)
    channels = flat.astype(np.float64)
    means = channels.mean(1, keepdims=True)
    channels -= means
    first, second, third = channels
    if not _are_alike(first, second):
        return False
    return _are_alike(second, third)


def _are_alike(one: Array, other: Array) -> bool:
    lengths = np.linalg.norm(one) * np.linalg.norm(other)
    product = one @ other
    least = SAME_CHANNELS * lengths
    return bool(product >= least)


def _mirrored(example: Example, name: str) -> Arrays:
    feeds = dict(example.feeds)
    images = feeds[name]
    mirrored = images[..., ::-1]
    feeds[name] = np.ascontiguousarray(mirrored)
    return feeds
