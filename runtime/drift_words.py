"""One word for what a drift means; `docs/drift.md` says how the words were measured."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from ..passes._core.drift_budget import BROKEN, sqnr_of
from .choices import Choices
from .compare import Drift

LEAST_SQNR = 3.0
"""SQNR in dB below which an output that makes no choices is worthless.

A decoder of perplexity 32 had 56 at 5.1 dB, and 1,300 at 2.8.
"""

LEAST_SQNR_SYNTHETIC = 1.0
"""The same on made-up inputs, which are up to 3 dB off: an embedding model that showed 1.4 dB there
kept 98 % of its score, and classifiers below 0.9 dB a quarter of theirs.
"""

LEAST_ERROR_SYNTHETIC = 0.01
"""Error of an output up to which made-up inputs say nothing: a text detector finds no text on them,
its probabilities are 1e-7, and noise of 1e-5 reads -40 dB.
"""

LEAST_AGREEMENT = 0.5
"""Share of clear choices below which an output that makes them is worthless: the accuracy of three
classifiers fell by half there.
"""

WORDS = (
    ("near-identical", 40.0),
    ("close", 20.0),
    ("usable", BROKEN),
    ("poor", float("-inf")),
)
"""Words for an output that is not identical nor worthless, and the least SQNR in dB of each."""

IDENTICAL, WORTHLESS = "identical", "worthless"
ALL_WORDS = (IDENTICAL, *(word for word, _ in WORDS), WORTHLESS)
"""All words, best first."""


@dataclass(frozen=True)
class Bounds:
    """Least SQNR in dB, and least share of clear choices, of what is not worthless.

    `max_abs`: largest error up to which an output is not worthless, whatever its SQNR.
    `of_variation`: words are by what varies between samples; made-up ones vary little.
    """

    sqnr_db: float = LEAST_SQNR
    agreement: float = LEAST_AGREEMENT
    max_abs: float = 0.0
    of_variation: bool = True

    def problem(
        self, drifts: Mapping[str, Drift], choices: Mapping[str, Choices]
    ) -> str | None:
        """Say which output misses a bound, and which; None where none does."""
        for name, drift in drifts.items():
            missed = self.missed(drift, choices[name])
            if missed is not None:
                return f"output '{name}' {missed}"
        return None

    def missed(self, drift: Drift, choices: Choices) -> str | None:
        """Say which bound an output misses, as `keeps …`; None where it misses none.

        Agreement decides where an output makes choices enough, and not always the same one.
        """
        same = choices.agreement
        if same is not None and same < self.agreement:
            return (
                f"chooses the same for {same:.0%} of {choices.rows} rows, less than "
                f"{self.agreement:.0%}"
            )
        # where one answer for everything reached the bound, its agreement would prove nothing
        if same is not None and choices.constant < self.agreement:
            return None
        # an original that gives nothing but zeros has no SQNR, and neither have labels
        if choices.is_label or drift.is_without_signal:
            return None
        if drift.sqnr_db >= self.sqnr_db or drift.max_abs <= self.max_abs:
            return None
        return f"keeps {drift.sqnr_db:.1f} dB of SQNR, less than {self.sqnr_db:g}"


ON_DATA = Bounds()
"""Bounds on real data."""

ON_SYNTHETIC = Bounds(
    LEAST_SQNR_SYNTHETIC,
    max_abs=LEAST_ERROR_SYNTHETIC,
    of_variation=False,
)
"""Bounds on made-up inputs."""


def word_of(drift: Drift, choices: Choices, bounds: Bounds) -> str:
    """One word for an output's drift; `bounds`: of what is not worthless."""
    if drift.identical:
        return IDENTICAL
    if bounds.missed(drift, choices) is not None:
        return WORTHLESS
    decibels = judged_db(drift, choices, bounds)
    return next(word for word, least in WORDS if decibels >= least)


def judged_db(drift: Drift, choices: Choices, bounds: Bounds) -> float:
    """Decibels by which an output is judged.

    Of labels and choices all of it counts: that one of them is nearly always made is what the model
    says. Of everything else what varies between samples counts.
    """
    if choices.is_label and choices.rows:
        # the share of other labels as the share of noise: 99 % alike are 20 dB
        return sqnr_of((choices.rows - choices.agreeing) / choices.rows)
    makes_choices = choices.agreement is not None and choices.kinds > 1
    if makes_choices or not bounds.of_variation or math.isnan(drift.variation_db):
        return drift.sqnr_db
    return min(drift.sqnr_db, drift.variation_db)


def weak_output(
    drifts: Mapping[str, Drift], choices: Mapping[str, Choices], bounds: Bounds
) -> str | None:
    """Say which output keeps least, of those that are poor or worse; None where none is."""
    judged = {
        name: judged_db(drift, choices[name], bounds) for name, drift in drifts.items()
    }
    weakest = min(judged, key=lambda name: judged[name], default=None)
    if weakest is None or judged[weakest] >= BROKEN:
        return None
    # larger tables of numbers have no rows to count
    if choices[weakest].is_label and choices[weakest].rows:
        same = choices[weakest].agreeing / choices[weakest].rows
        return f"output '{weakest}' is the same for {same:.0%} of samples"
    sqnr = f"output '{weakest}' keeps {drifts[weakest].sqnr_db:.1f} dB of SQNR"
    if judged[weakest] == drifts[weakest].sqnr_db:
        return sqnr
    return f"{sqnr}, and {judged[weakest]:.1f} dB of what varies between samples"


def worst_word(
    drifts: Mapping[str, Drift], choices: Mapping[str, Choices], bounds: Bounds
) -> str | None:
    """Word for all outputs together: that of the worst one; None without outputs."""
    return worst(word_of(each, choices[name], bounds) for name, each in drifts.items())


def worst(words: Iterable[str]) -> str | None:
    """The worst of some words; None of none."""
    return max(words, key=ALL_WORDS.index, default=None)
