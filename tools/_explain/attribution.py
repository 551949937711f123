"""One model's explanations of samples, by any method."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ...frontends.input_gradients import InputGradients, Path
from .._compare import Side
from .baseline import Baselines, Blank
from .gradients import by_captum, integrated, points_of
from .methods import BY_PERTURBATION
from .parts import STAYS
from .perturbed import Kept, Perturbed, Weights
from .request import ExplainRequest
from .runs import Runner
from .target import Aim, ExplainedOutput

Heat = NDArray[np.float64]

PLAIN = 0
"""Number of the explanation with the plain baseline; of others it is that of their seed."""


class Explanation(NamedTuple):
    """Heat of each element (*E), and which elements belong to a part."""

    heat: Heat
    counts: NDArray[np.bool_]


class Attribution:
    """Explains what one model makes of the samples of `baselines`."""

    def __init__(
        self,
        side: Side,
        baselines: Baselines,
        target: ExplainedOutput,
        request: ExplainRequest,
    ) -> None:
        self.baselines = baselines
        self.request = request
        self.runner = Runner.of(side.session, baselines.subject)
        self._gradients: InputGradients | None = None
        if request.method == "ig":
            self._gradients = InputGradients(
                side.model, baselines.subject.name, target.output, self.runner.rows
            )

    def explain(self, index: int, aim: Aim, number: int = PLAIN) -> Explanation:
        """Explain sample `index`. `number`: other than PLAIN, another one by other seeds."""
        for_baseline, for_method = self._randoms(index, number)
        is_plain = number == PLAIN
        drawn = None if is_plain else for_baseline
        blank = self.baselines.blank(index, drawn)
        parts = blank.parts
        counts = parts.labels != STAYS
        if self._gradients is None:
            weights = self._by_perturbation(index, blank, aim, for_method)
            heat = parts.to_elements(weights)
            return Explanation(heat, counts)
        points = None if is_plain else for_method
        heat = self._by_gradients(index, blank, aim, points)
        # padding has a gradient, too
        heat = np.where(counts, heat, 0.0)
        return Explanation(heat, counts)

    def _randoms(self, index: int, number: int) -> list[np.random.Generator]:
        """Draw baselines by one, variants by the other: neither depends on the method."""
        entropy = [self.request.seed, index, number]
        sequence = np.random.SeedSequence(entropy)
        return [np.random.default_rng(seed) for seed in sequence.spawn(2)]

    def _by_perturbation(
        self, index: int, blank: Blank, aim: Aim, random: np.random.Generator
    ) -> Weights:
        # a sample of padding alone has nothing to take away
        if blank.parts.count == 0:
            return np.zeros(0)
        method = BY_PERTURBATION[self.request.method, self.request.engine]
        sample = self.baselines.samples[index]

        def scores(kept: Kept) -> Weights:
            variants = self.baselines.variants(index, blank, kept)
            found = []
            for outputs, rows in self.runner.run(sample, variants):
                numbers = aim.scores(outputs, rows)
                found.append(numbers)
            return np.concatenate(found)

        case = Perturbed(
            scores,
            parts=blank.parts.count,
            windows=blank.parts.windows(),
            runs=self.request.runs_of_method,
            random=random,
        )
        return method(case)

    def _by_gradients(
        self,
        index: int,
        blank: Blank,
        aim: Aim,
        random: np.random.Generator | None,
    ) -> Heat:
        assert self._gradients is not None
        subject = self.baselines.subject
        sample = self.baselines.samples[index]
        end = sample.feeds[subject.name]
        start = blank.values[None] if subject.batched else blank.values
        kept = self._kept_tokens(blank, end, start)
        path = Path(
            start=kept,
            end=end,
            feeds=sample.feeds,
            batched=sample.batched,
            points=points_of(self.request.runs_of_method, random),
        )
        method = integrated
        if self.request.engine == "library":
            method = by_captum
        found = method(self._gradients, path, aim)
        axes = range(found.ndim)
        others = tuple(axis for axis in axes if axis not in subject.axes)
        heat = found.sum(others)
        return np.asarray(heat, np.float64)

    def _kept_tokens(
        self, blank: Blank, end: NDArray[Any], start: NDArray[Any]
    ) -> NDArray[Any]:
        """The baseline with what belongs to no part as it is in the sample."""
        if self.baselines.subject.kind != "tokens":
            return start
        return np.where(blank.parts.labels == STAYS, end, start)
