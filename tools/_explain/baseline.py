"""Baselines: values in the place of parts that are taken away.

The plain baseline is the mean colour of an image, the mean of a column over the data, and the token
of padding, which a mask then leaves out. Another baseline is drawn by a seed: a colour near the
mean, the row of another sample, tokens of the data; and patches begin elsewhere. Explanations by
one and the other differ by what such choices alone make of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .inputs import ExplainedInput
from .parts import (
    MOST,
    Division,
    Markers,
    PartLabels,
    Random,
    numbered,
    patches,
    stretches,
    tokens_that_count,
)
from .samples import DataSample

Array = NDArray[Any]

NOISE = 0.25
"""Deviation of a drawn colour from the mean, in deviations of the channel. Chosen by hand."""


@dataclass(frozen=True)
class Blank:
    """A sample with all of its parts taken away, and what the parts are.

    `values`: like the sample's explained array. `drops`: the mask leaves out what is taken away.
    """

    parts: PartLabels
    values: Array
    drops: bool = False


@dataclass(frozen=True)
class Baselines:
    """Baselines of the samples of one data set.

    `padding`: the token that fills up rows; `words`: all others, as often as they occur.
    """

    subject: ExplainedInput
    samples: Sequence[DataSample]
    markers: Markers
    padding: int
    words: Array
    division: Division

    @staticmethod
    def of(
        subject: ExplainedInput, samples: Sequence[DataSample], division: Division
    ) -> Baselines:
        """Learn from the samples what pads their tokens, and what these are."""
        if subject.kind != "tokens":
            none = Markers(None, None)
            return Baselines(
                subject,
                samples,
                none,
                0,
                np.empty(0),
                division,
            )
        texts = []
        rest = []
        for sample in samples:
            tokens = sample.row_of(subject.name)
            counts = tokens_that_count(sample, subject.name, subject.mask)
            texts.append(tokens[counts])
            rest.append(tokens[~counts])
        masked = np.concatenate(rest)
        padding = _padding_of(texts, masked)
        markers = Markers(None, None)
        # of rows without a mask nothing tells what a tokenizer put there
        if subject.mask is not None:
            markers = Markers.of(texts)
        tokens = np.concatenate(texts)
        words = tokens[tokens != padding]
        return Baselines(
            subject,
            samples,
            markers,
            padding,
            words,
            division,
        )

    def blank(self, index: int, drawn: Random | None) -> Blank:
        """The baseline of a sample. `drawn`: draws another one than the plain."""
        values = self._values(index)
        parts = self._parts(index, drawn)
        kind = self.subject.kind
        drops = False
        if kind == "tokens":
            rest = self._tokens(values, drawn)
            drops = drawn is None and self.subject.mask is not None
        elif kind == "image":
            rest = self._colour(values, drawn)
        else:
            rest = self._rows(index, values, drawn)
        return Blank(parts, rest, drops)

    def _values(self, index: int) -> Array:
        sample = self.samples[index]
        return sample.values(self.subject)

    def _parts(self, index: int, drawn: Random | None) -> PartLabels:
        values = self._values(index)
        shape = self.subject.elements(values.shape)
        phase = drawn if self.division.shifts else None
        stays = np.zeros(shape, bool)
        if self.subject.kind == "tokens":
            stays = self._tokens_that_stay(index)
        if self.subject.kind == "image":
            labels = patches(shape, self.division.side, phase)
        else:
            (length,) = shape
            labels = stretches(length, MOST, phase)
        return numbered(labels, stays)

    def _tokens_that_stay(self, index: int) -> NDArray[np.bool_]:
        """Places of padding and of markers, (T,)."""
        subject = self.subject
        values = self._values(index)
        # what is padding already has nothing to take away
        if subject.mask is None:
            return np.asarray(values == self.padding)
        sample = self.samples[index]
        counts = tokens_that_count(sample, subject.name, subject.mask)
        return self.markers.stays(values, counts)

    def _tokens(self, values: Array, drawn: Random | None) -> Array:
        if drawn is None or not self.words.size:
            return np.full_like(values, self.padding)
        tokens = drawn.choice(self.words, values.shape)
        return np.asarray(tokens, values.dtype)

    def _colour(self, values: Array, drawn: Random | None) -> Array:
        axes = self.subject.axes
        pixels = values.astype(np.float64)
        colour = pixels.mean(axes, keepdims=True)
        if drawn is not None:
            deviations = pixels.std(axes, keepdims=True)
            shift = drawn.standard_normal(colour.shape)
            colour = colour + NOISE * deviations * shift
        everywhere = np.broadcast_to(colour, values.shape)
        return _as_type(everywhere, values)

    def _rows(self, index: int, values: Array, drawn: Random | None) -> Array:
        """The mean of the samples' rows, or the row of another sample."""
        others = self._rows_like(values)
        if len(others) < 2:
            return np.zeros_like(values)
        if drawn is None:
            table = np.array(others, np.float64)
            return _as_type(table.mean(0), values)
        # one of the others: the sample itself would take nothing away
        step = int(drawn.integers(1, len(others)))
        place = (index + step) % len(others)
        return others[place]

    def _rows_like(self, values: Array) -> list[Array]:
        rows = [sample.values(self.subject) for sample in self.samples]
        return [row for row in rows if row.shape == values.shape]

    def variants(
        self, index: int, blank: Blank, kept: NDArray[np.bool_]
    ) -> Mapping[str, Array]:
        """Arrays (V, …), by name, of the inputs in which variants of a sample differ.

        `kept`: parts that stay, (V, P).
        """
        subject = self.subject
        values = self._values(index)
        elements = blank.parts.kept_elements(kept)
        stays = subject.spread(elements, values.ndim)
        changed = np.where(stays, values, blank.values)
        found = {subject.name: changed}
        if blank.drops:
            assert subject.mask is not None
            sample = self.samples[index]
            mask = sample.row_of(subject.mask)
            nothing = np.zeros_like(mask)
            found[subject.mask] = np.where(elements, mask, nothing)
        return found


def _padding_of(texts: Sequence[Array], masked: Array) -> int:
    """The token that a mask leaves out, or with which most rows end that end with one twice, or 0.

    `texts`: rows without the tokens that are `masked`.
    """
    if masked.size:
        return int(masked[0])
    ends = []
    for row in texts:
        # once may be chance
        *_, before, last = (None, *row)
        if last == before:
            ends.append(int(last))
    if not ends:
        return 0
    values, counts = np.unique(ends, return_counts=True)
    commonest = counts.argmax()
    return int(values[commonest])


def _as_type(values: Array, like: Array) -> Array:
    if like.dtype.kind in "iu":
        bounds = np.iinfo(like.dtype)
        whole = np.rint(values)
        values = whole.clip(bounds.min, bounds.max)
    return np.asarray(values, like.dtype)
